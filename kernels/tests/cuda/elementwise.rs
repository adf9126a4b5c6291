//! Element by element, and maps of rows.

use crate::bench::{assert_codes, benches, expected, halves, tensor};
use crate::common::{Rng, assert_close};
use cqc_kernels::Act;
use cqc_kernels::cuda::{
    ElementOp, ElementType, Output, Rounding, affine, elementwise, gated, quantize,
    timestep_embedding,
};
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{DType, Op};

#[test]
fn functions_of_one_operand_equal_the_definitions() {
    use UnaryKind as K;
    let functions = [
        (K::Neg, ElementOp::Neg),
        (K::Abs, ElementOp::Abs),
        (K::Exp, ElementOp::Exp),
        (K::Sqrt, ElementOp::Sqrt),
        (K::Log, ElementOp::Log),
        (K::Reciprocal, ElementOp::Reciprocal),
        (K::Floor, ElementOp::Floor),
        (K::Ceil, ElementOp::Ceil),
        (K::Round, ElementOp::Round),
        (K::Sin, ElementOp::Sin),
        (K::Cos, ElementOp::Cos),
        (K::Erf, ElementOp::Erf),
        (K::Silu, ElementOp::Act(Act::Silu)),
        (K::GeluErf, ElementOp::Act(Act::GeluErf)),
        (K::GeluTanh, ElementOp::Act(Act::GeluTanh)),
        (K::QuickGelu, ElementOp::Act(Act::QuickGelu)),
        (K::Relu, ElementOp::Act(Act::Relu)),
        (K::Sigmoid, ElementOp::Act(Act::Sigmoid)),
        (K::Tanh, ElementOp::Act(Act::Tanh)),
    ];
    for b in benches() {
        let mut rng = Rng::new(1);
        for (kind, op) in functions {
            let positive = matches!(op, ElementOp::Sqrt | ElementOp::Log | ElementOp::Reciprocal);
            let x: Vec<f32> = halves(&mut rng, 300)
                .iter()
                .map(|v| if positive { v.abs() + 0.5 } else { v * 6.0 })
                .collect();
            let x: Vec<f32> = x.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
            let (source, y) = (b.halves(&x, 300), b.room(1, 300, ElementType::F32));
            b.run(&[elementwise(&b.state, op, &[300], &[(&source, &[1])], (&y, &[1]))]);
            let wanted = expected(&Op::unary(kind), &[Some(&tensor(&x, &[300]))]);
            assert_close(&b.get(&y, 1, 300), &wanted, 1e-5, &format!("{op:?}"));
        }
    }
}

#[test]
fn rounding_to_bf16_is_exact() {
    for b in benches() {
        // ties of both kinds, numbers that round up into the next power of two, tiny ones, both
        // infinities, NaN
        let bits = [
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_8001,
            0x3fff_ffff,
            0xc0ff_8000,
            0x0000_8001,
            0x7f80_0000,
            0xff80_0000,
        ];
        let mut x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        x.extend(Rng::new(5).noise(500));
        x.push(f32::NAN);
        let n = x.len();
        let (source, y) = (b.put(&x, n, n, ElementType::F32), b.room(1, n, ElementType::F32));
        b.run(&[elementwise(&b.state, ElementOp::RoundBf16, &[n], &[(&source, &[1])], (&y, &[1]))]);
        let wanted = expected(&Op::RoundBf16, &[Some(&tensor(&x, &[n]))]);
        let found = b.get(&y, 1, n);
        assert!(found[n - 1].is_nan());
        assert_eq!(found[..n - 1], wanted[..n - 1]);
    }
}

#[test]
fn functions_of_two_operands_broadcast() {
    use BinaryKind as K;
    let functions = [
        (K::Add, ElementOp::Add),
        (K::Sub, ElementOp::Sub),
        (K::Mul, ElementOp::Mul),
        (K::Div, ElementOp::Div),
        (K::Min, ElementOp::Min),
        (K::Max, ElementOp::Max),
        (K::Pow, ElementOp::Pow),
    ];
    for b in benches() {
        let mut rng = Rng::new(2);
        for (kind, op) in functions {
            let (x, z): (Vec<f32>, Vec<f32>) = (
                halves(&mut rng, 3 * 4 * 5).iter().map(|v| v.abs() + 0.25).collect(),
                halves(&mut rng, 3 * 5).iter().map(|v| v + 2.0).collect(),
            );
            let (a, c) = (b.put(&x, 5, 7, ElementType::F32), b.table(&z));
            let y = b.room(12, 6, ElementType::F32);
            let reads = [(&a, &[28, 7, 1][..]), (&c, &[5, 0, 1][..])];
            b.run(&[elementwise(&b.state, op, &[3, 4, 5], &reads, (&y, &[24, 6, 1]))]);
            let wanted = expected(
                &Op::binary(kind),
                &[Some(&tensor(&x, &[3, 4, 5])), Some(&tensor(&z, &[3, 1, 5]))],
            );
            assert_close(&b.get(&y, 12, 5), &wanted, 1e-5, &format!("{op:?}"));
        }
        let x = halves(&mut rng, 100);
        let (source, other) = (b.halves(&x, 100), b.halves(&halves(&mut rng, 100), 100));
        let (less, y) = (b.room(1, 100, ElementType::U8), b.room(1, 100, ElementType::F16));
        let all: &[usize] = &[1];
        b.run(&[
            elementwise(
                &b.state,
                ElementOp::Less,
                &[100],
                &[(&source, all), (&other, all)],
                (&less, all),
            ),
            elementwise(
                &b.state,
                ElementOp::Where,
                &[100],
                &[(&less, all), (&source, all), (&other, all)],
                (&y, all),
            ),
            elementwise(
                &b.state,
                ElementOp::Min,
                &[100],
                &[(&source, all), (&other, all)],
                (&other, all),
            ),
        ]);
        assert_eq!(b.get(&y, 1, 100), b.get(&other, 1, 100), "a < b ? a : b is the smaller one");
    }
}

#[test]
fn copies_move_and_convert() {
    for b in benches() {
        let mut rng = Rng::new(3);
        let x: Vec<f32> = (0..2 * 3 * 4).map(|_| rng.size(0, 200) as f32 - 100.0).collect();
        for from in [ElementType::F16, ElementType::F32, ElementType::I32, ElementType::I64] {
            for to in [ElementType::F16, ElementType::F32, ElementType::I32, ElementType::I64] {
                let (source, y) = (b.put(&x, 4, 4, from), b.room(8, 3, to));
                // [2, 3, 4] to [2, 4, 3]
                b.run(&[elementwise(
                    &b.state,
                    ElementOp::Copy,
                    &[2, 4, 3],
                    &[(&source, &[12, 1, 4])],
                    (&y, &[12, 3, 1]),
                )]);
                let wanted = expected(
                    &Op::Transpose { perm: vec![0, 2, 1] },
                    &[Some(&tensor(&x, &[2, 3, 4]))],
                );
                assert_eq!(b.get(&y, 8, 3), wanted, "{from:?} to {to:?}");
            }
        }
        let odd = [f32::NAN, 1e30, -1e30, -2.9, 2.9];
        let (source, y) = (b.put(&odd, 5, 5, ElementType::F32), b.room(1, 5, ElementType::I32));
        b.run(&[elementwise(&b.state, ElementOp::Copy, &[5], &[(&source, &[1])], (&y, &[1]))]);
        let cast = cqc_kernels::reference::eval(
            &Op::Cast { to: DType::I32 },
            &[Some(&tensor(&odd, &[5]))],
        )
        .unwrap();
        assert_eq!(
            b.get(&y, 1, 5),
            cast[0].to_i64_vec().iter().map(|&v| v as f32).collect::<Vec<_>>()
        );
    }
}

#[test]
fn affine_equals_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(4);
        // rows that are and are not made of 16 bytes
        for (rows, c, more, to) in [
            (1, 1, 1, ElementType::F32),
            (7, 33, 1, ElementType::F32),
            (40, 24, 8, ElementType::F16),
        ] {
            let [x, residual, previous] = [0, 1, 2].map(|_| halves(&mut rng, rows * c));
            let [scale, shift, factor] = [0, 1, 2].map(|_| rng.noise(c));
            let source = [
                b.put(&x, c, c + more, ElementType::F16),
                b.halves(&residual, c),
                b.halves(&previous, c),
            ];
            let columns = [&scale, &shift, &factor].map(|v| b.table(v));
            let y = b.room(rows, c + 2 * more, to);
            let near = if to == ElementType::F16 { 1e-3 } else { 1e-6 };
            let before = Some([&source[2], &columns[2]]);
            b.run(&[affine(
                &b.state,
                [rows, c],
                &source[0],
                [&columns[0], &columns[1]],
                before,
                Some(&source[1]),
                &y,
            )]);
            let matrices = [&x, &residual, &previous].map(|v| tensor(v, &[rows, c]));
            let vectors = [&scale, &shift, &factor].map(|v| tensor(v, &[c]));
            let inputs =
                [&matrices[0], &vectors[0], &vectors[1], &matrices[1], &matrices[2], &vectors[2]]
                    .map(Some);
            assert_close(
                &b.get(&y, rows, c),
                &expected(&Op::Affine, &inputs),
                near,
                &format!("{rows} {c}"),
            );
        }
    }
}

#[test]
fn rounding_equals_the_definition_exactly() {
    for b in benches() {
        let mut rng = Rng::new(5);
        // rows that are and are not made of 16 bytes
        for (rows, segments, bits, more) in [
            (3, vec![5], 8, 1),
            (20, vec![16, 7, 9], 8, 1),
            (9, vec![3, 30], 4, 1),
            (9, vec![24, 8, 16], 8, 8),
        ] {
            let c: usize = segments.iter().sum();
            let mut x: Vec<f32> = halves(&mut rng, rows * c).iter().map(|v| v * 3.0).collect();
            x[0] = f32::NAN;
            let scale: Vec<f32> =
                rng.noise(segments.len()).iter().map(|v| v.abs() * 0.05 + 0.003).collect();
            let zero: Vec<f32> =
                segments.iter().map(|_| rng.size(0, (1 << bits) - 1) as f32).collect();
            let inputs = [
                tensor(&x, &[rows, c]),
                tensor(&scale, &[segments.len()]),
                tensor(&zero, &[segments.len()]),
            ];
            let wanted = expected(
                &Op::FakeQuant { bits, segments: segments.clone() },
                &inputs.each_ref().map(Some),
            );
            let source = b.put(&x, c, c + more, ElementType::F32);
            let (s, z) = (b.table(&scale), b.table(&zero));
            let how = Rounding { bits, segments: &segments, scale: &s, zero_point: &z };
            let rounded = b.room(rows, c, ElementType::F32);
            let codes = b.room(rows, c + 3 * more, ElementType::U8);
            b.run(&[
                quantize(
                    &b.state,
                    [rows, c],
                    &source,
                    &Output { y: &rounded, rounding: Some(how) },
                ),
                quantize(&b.state, [rows, c], &source, &Output { y: &codes, rounding: Some(how) }),
            ]);
            assert_eq!(b.get(&rounded, rows, c), wanted, "{segments:?} {bits} bits");
            let owner: Vec<usize> =
                segments.iter().enumerate().flat_map(|(i, &n)| vec![i; n]).collect();
            let codes = b.get(&codes, rows, c);
            let stands_for = codes.iter().enumerate().map(|(i, code)| {
                let segment = owner[i % c];
                (code - zero[segment]) * scale[segment]
            });
            assert_eq!(stands_for.collect::<Vec<_>>(), wanted, "codes of {segments:?} {bits} bits");
        }
    }
}

#[test]
fn a_scale_of_zero_lets_values_pass() {
    for b in benches() {
        let x = halves(&mut Rng::new(6), 40);
        let (source, y) = (b.halves(&x, 40), b.room(1, 40, ElementType::F16));
        let (scale, zero) = (b.table(&[0.0]), b.table(&[3.0]));
        let how = Rounding { bits: 8, segments: &[40], scale: &scale, zero_point: &zero };
        b.run(&[quantize(&b.state, [1, 40], &source, &Output { y: &y, rounding: Some(how) })]);
        assert_eq!(b.get(&y, 1, 40), x);
    }
}

#[test]
fn eight_neighbours_at_once_are_those_one_by_one() {
    for b in benches() {
        let mut rng = Rng::new(8);
        let (x, z) = (halves(&mut rng, 3 * 5 * 16), halves(&mut rng, 3 * 16));
        let one = halves(&mut rng, 3);
        for element in [ElementType::F16, ElementType::F32] {
            let source = b.put(&x, 16, 24, element);
            let (rows, numbers) = (b.put(&z, 16, 16, element), b.put(&one, 3, 3, ElementType::F32));
            let (whole, of_image, number) = (&[120, 24, 1][..], &[16, 0, 1][..], &[1, 0, 0][..]);
            for op in [ElementOp::Copy, ElementOp::Add, ElementOp::Sub, ElementOp::Mul] {
                for (second, strides) in [(&rows, of_image), (&numbers, number)] {
                    let reads = [(&source, whole), (second, strides)];
                    let reads = &reads[..op.operands()];
                    let (wide, single) =
                        (b.room(15, 32, ElementType::F16), b.room(15, 17, ElementType::F16));
                    b.run(&[
                        elementwise(&b.state, op, &[3, 5, 16], reads, (&wide, &[160, 32, 1])),
                        elementwise(&b.state, op, &[3, 5, 16], reads, (&single, &[85, 17, 1])),
                    ]);
                    assert_eq!(
                        b.get(&wide, 15, 16),
                        b.get(&single, 15, 16),
                        "{op:?} of {element:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn gated_units_and_embeddings_equal_the_definitions() {
    for b in benches() {
        let mut rng = Rng::new(7);
        let (rows, c) = (9, 21);
        let x = halves(&mut rng, rows * 2 * c);
        let (source, y) = (b.halves(&x, 2 * c), b.room(rows, c, ElementType::F32));
        b.run(&[gated(&b.state, [rows, c], Act::GeluErf, &source, &Output::plain(&y))]);
        let wanted =
            expected(&Op::Geglu { act: Act::GeluErf }, &[Some(&tensor(&x, &[rows, 2 * c]))]);
        assert_close(&b.get(&y, rows, c), &wanted, 1e-5, "geglu");
        let codes = b.room(rows, c, ElementType::U8);
        let (scale, zero) = (b.table(&[0.01]), b.table(&[128.0]));
        let how = Rounding { bits: 8, segments: &[c], scale: &scale, zero_point: &zero };
        b.run(&[gated(
            &b.state,
            [rows, c],
            Act::GeluErf,
            &source,
            &Output { y: &codes, rounding: Some(how) },
        )]);
        assert_codes(&b.get(&codes, rows, c), &wanted, 0.01, 128.0, 1e-3, "geglu");
        // eight columns at once
        let c = 24;
        let x = halves(&mut rng, rows * 2 * c);
        let (source, y) =
            (b.put(&x, 2 * c, 2 * c + 8, ElementType::F16), b.room(rows, c + 8, ElementType::F16));
        b.run(&[gated(&b.state, [rows, c], Act::GeluErf, &source, &Output::plain(&y))]);
        let wanted =
            expected(&Op::Geglu { act: Act::GeluErf }, &[Some(&tensor(&x, &[rows, 2 * c]))]);
        assert_close(&b.get(&y, rows, c), &wanted, 1e-3, "geglu, eight columns at once");

        let (t, f) = (vec![999.0, 3.0, 0.0], rng.noise(10));
        let (times, frequencies) = (b.put(&t, 3, 3, ElementType::I64), b.table(&f));
        for cos_first in [false, true] {
            let y = b.room(3, 20, ElementType::F32);
            b.run(&[timestep_embedding(&b.state, [3, 10], cos_first, &times, &frequencies, &y)]);
            let wanted = expected(
                &Op::TimestepEmbedding { cos_first },
                &[Some(&tensor(&t, &[3])), Some(&tensor(&f, &[10]))],
            );
            assert_close(&b.get(&y, 3, 20), &wanted, 1e-5, "embedding");
        }
    }
}
