//! Normalisations and softmax.

use crate::bench::{assert_codes, benches, expected, halves, tensor};
use crate::common::{Rng, assert_close};
use cqc_kernels::Act;
use cqc_kernels::cuda::{
    ElementType, Output, PerImage, Rounding, group_norm, group_norm_scratch, layer_norm, softmax,
};
use cqc_proto::Op;
use cqc_proto::op::ConvLayout;

#[test]
fn group_norm_equals_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(1);
        let shapes = [(1, 1, 2, 3), (2, 37, 4, 5), (1, 300, 8, 40), (3, 64, 32, 2)];
        // rows that are and are not made of 16 bytes
        for ((images, pixels, groups, width), more) in
            shapes.into_iter().flat_map(|s| [(s, 2), (s, 8)])
        {
            let c = groups * width;
            // far from zero: moments must not cancel
            let x: Vec<f32> = halves(&mut rng, images * pixels * c)
                .iter()
                .map(|v| half::f16::from_f32(v + 20.0).to_f32())
                .collect();
            let (gamma, beta) = (rng.noise(c), rng.noise(c));
            let op = Op::GroupNorm {
                groups,
                eps: 1e-5,
                layout: ConvLayout::ChannelsLast,
                act: Act::Silu,
            };
            let inputs =
                [tensor(&x, &[images, pixels, c]), tensor(&gamma, &[c]), tensor(&beta, &[c])];
            let wanted = expected(&op, &inputs.each_ref().map(Some));
            let there = b.put(&x, c, c + more, ElementType::F16);
            let (g, be) = (b.table(&gamma), b.table(&beta));
            let scratch =
                b.room(1, group_norm_scratch(images, pixels, groups) / 4, ElementType::F32);
            let y = b.room(images * pixels, c + more, ElementType::F16);
            let shape = [images, pixels, c, groups];
            b.run(&group_norm(
                &b.state,
                shape,
                1e-5,
                Act::Silu,
                &there,
                Some(&g),
                Some(&be),
                &Output::plain(&y),
                &scratch,
            ));
            assert_close(&b.get(&y, images * pixels, c), &wanted, 2e-3, &format!("{shape:?}"));

            let codes = b.room(images * pixels, c, ElementType::U8);
            let end = if more == 8 && c > 8 { 8 } else { 1 };
            let (scale, zero, segments) =
                (b.table(&[0.02, 0.02]), b.table(&[30.0, 30.0]), [c - end, end]);
            let how = Rounding { bits: 8, segments: &segments, scale: &scale, zero_point: &zero };
            let output = Output { y: &codes, rounding: Some(how) };
            b.run(&group_norm(
                &b.state,
                shape,
                1e-5,
                Act::Silu,
                &there,
                Some(&g),
                Some(&be),
                &output,
                &scratch,
            ));
            assert_codes(
                &b.get(&codes, images * pixels, c),
                &wanted,
                0.02,
                30.0,
                2e-2,
                &format!("{shape:?}"),
            );
        }
    }
}

#[test]
fn layer_norm_equals_the_definition_with_and_without_modulation() {
    for b in benches() {
        let mut rng = Rng::new(2);
        for (images, tokens, c, to) in [(1, 1, 1, ElementType::F32), (2, 5, 33, ElementType::F32)]
            .into_iter()
            .chain([ElementType::F32, ElementType::F16].map(|to| (3, 7, 200, to)))
        {
            // fp16 results are stored eight at once
            let near = if to == ElementType::F16 { 1e-3 } else { 1e-4 };
            let more = if to == ElementType::F16 { 8 } else { 4 };
            let rows = images * tokens;
            let x = halves(&mut rng, rows * c);
            let (gamma, beta) = (rng.noise(c), rng.noise(c));
            let (scale, shift) = (halves(&mut rng, images * c), halves(&mut rng, images * c));
            let there = b.put(&x, c, c + more, ElementType::F16);
            let (g, be) = (b.table(&gamma), b.table(&beta));
            let parts = [b.halves(&scale, c), b.halves(&shift, c)];
            let modulate =
                parts.each_ref().map(|values| PerImage { values, stride: c, rows: tokens });
            let y = b.room(rows, c, to);
            b.run(&[layer_norm(
                &b.state,
                [rows, c],
                1e-6,
                true,
                &there,
                Some(&g),
                Some(&be),
                Some(modulate),
                &Output::plain(&y),
            )]);
            let inputs = [
                tensor(&x, &[images, tokens, c]),
                tensor(&gamma, &[c]),
                tensor(&beta, &[c]),
                tensor(&scale, &[images, 1, c]),
                tensor(&shift, &[images, 1, c]),
            ];
            let wanted = expected(&Op::LayerNorm { eps: 1e-6 }, &inputs.each_ref().map(Some));
            assert_close(&b.get(&y, rows, c), &wanted, near, &format!("{images} {tokens} {c}"));

            b.run(&[layer_norm(
                &b.state,
                [rows, c],
                1e-6,
                false,
                &there,
                Some(&g),
                None,
                None,
                &Output::plain(&y),
            )]);
            let wanted =
                expected(&Op::RmsNorm { eps: 1e-6 }, &[Some(&inputs[0]), Some(&inputs[1])]);
            assert_close(&b.get(&y, rows, c), &wanted, near, &format!("rms {rows} {c}"));
        }
    }
}

#[test]
fn softmax_equals_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(3);
        for (rows, columns) in [(1, 1), (5, 31), (9, 200)] {
            let x: Vec<f32> = halves(&mut rng, rows * columns).iter().map(|v| v * 16.0).collect();
            let (there, y) = (b.halves(&x, columns), b.room(rows, columns, ElementType::F32));
            b.run(&[softmax(&b.state, [rows, columns], &there, &y)]);
            let wanted = expected(&Op::Softmax { axis: 1 }, &[Some(&tensor(&x, &[rows, columns]))]);
            assert_close(&b.get(&y, rows, columns), &wanted, 1e-5, &format!("{rows} {columns}"));
        }
    }
}
