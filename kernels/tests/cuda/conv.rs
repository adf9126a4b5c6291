//! Convolutions and linear layers.

use crate::bench::{Bench, assert_codes, benches, expected, halves, tensor};
use crate::common::{Rng, assert_close};
use cqc_kernels::cuda::{
    ElementType, Epilogue, Filter, FilterKind, Output, PerImage, Rounding, Tile, conv, matmul,
    split_bytes, splits,
};
use cqc_kernels::{Act, ConvShape, MatmulShape};
use cqc_proto::Op;
use cqc_proto::op::ConvLayout;

fn op(shape: &ConvShape, act: Act) -> Op {
    Op::Conv {
        strides: shape.stride.to_vec(),
        pads: shape.pads.to_vec(),
        dilations: shape.dilation.to_vec(),
        groups: shape.groups,
        layout: ConvLayout::ChannelsLast,
        upsample: shape.upsample,
        act,
    }
}

/// Windows of all kinds over small images.
fn shapes(rng: &mut Rng, cin: usize, cout: usize) -> Vec<ConvShape> {
    let same = ConvShape::same(2, rng.size(3, 7), rng.size(3, 9), cin, cout, 3);
    vec![
        same,
        ConvShape { stride: [2, 2], pads: [0, 0, 1, 1], n: 1, ..same },
        ConvShape { upsample: 2, h: 3, w: 2, ..same },
        ConvShape { dilation: [2, 1], pads: [2, 1, 2, 1], n: 1, ..same },
        ConvShape { kh: 1, kw: 1, pads: [0; 4], n: 1, h: 1, w: rng.size(1, 200), ..same },
    ]
}

struct Numbers {
    x: Vec<f32>,
    w: Vec<f32>,
    columns: [Vec<f32>; 2],
    images: [Vec<f32>; 2],
    residual: Vec<f32>,
}

impl Numbers {
    fn new(rng: &mut Rng, s: &ConvShape) -> Numbers {
        Numbers {
            x: halves(rng, s.n * s.h * s.w * s.cin),
            w: halves(rng, s.cout * s.k()),
            columns: [rng.noise(s.cout), rng.noise(s.cout)],
            images: [rng.noise(s.n * s.cout), rng.noise(s.n * s.cout)],
            residual: halves(rng, s.out_rows() * s.cout),
        }
    }

    fn wanted(&self, s: &ConvShape, act: Act) -> Vec<f32> {
        let x = tensor(&self.x, &[s.n, s.h, s.w, s.cin]);
        let w = tensor(&self.w, &[s.cout, s.cin / s.groups, s.kh, s.kw]);
        let [bias, scale] = self.columns.each_ref().map(|v| tensor(v, &[s.cout]));
        let [row, gate] = self.images.each_ref().map(|v| tensor(v, &[s.n, 1, 1, s.cout]));
        let residual = tensor(&self.residual, &[s.n, s.out_h(), s.out_w(), s.cout]);
        let inputs = [&x, &w, &bias, &row, &gate, &residual, &scale].map(Some);
        expected(&op(s, act), &inputs)
    }

    /// The epilogue's operands on the device.
    fn tail(&self, b: &Bench, s: &ConvShape) -> [cqc_kernels::cuda::Operand; 5] {
        let residual = b.put(&self.residual, s.cout, s.cout + 3, ElementType::F16);
        let [row, gate] =
            self.images.each_ref().map(|v| b.put(v, s.cout, s.cout, ElementType::F32));
        [b.table(&self.columns[0]), row, gate, residual, b.table(&self.columns[1])]
    }
}

fn tail<'a>(parts: &'a [cqc_kernels::cuda::Operand; 5], s: &ConvShape, act: Act) -> Epilogue<'a> {
    let [bias, row, gate, residual, scale] = parts;
    let image = |values| PerImage { values, stride: s.cout, rows: s.out_h() * s.out_w() };
    Epilogue {
        scale: Some(scale),
        bias: Some(bias),
        row: Some(image(row)),
        act,
        gate: Some(image(gate)),
        residual: Some(residual),
    }
}

#[test]
fn convolution_in_fp16_equals_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(1);
        for (cin, cout, tile) in
            [(8, 5, Tile::Small), (40, 70, Tile::Small), (24, 136, Tile::Large)]
        {
            for (i, s) in shapes(&mut rng, cin, cout).into_iter().enumerate() {
                let act = Act::ALL[i % Act::ALL.len()];
                let n = Numbers::new(&mut rng, &s);
                let taps = s.kh * s.kw;
                let filter = Filter::halves(&*b.device, taps, cin, cout, |t, c, o| {
                    n.w[(o * cin + c) * taps + t]
                })
                .unwrap();
                let x = b.put(&n.x, cin, cin + 8, ElementType::F16);
                let parts = n.tail(&b, &s);
                let y = b.room(s.out_rows(), cout + 1, ElementType::F16);
                b.run(&conv(
                    &b.state,
                    &s,
                    &filter,
                    &x,
                    None,
                    &tail(&parts, &s, act),
                    &Output::plain(&y),
                    tile,
                    None,
                ));
                // 2^-11 of fp16 results, and what activations make of sums that differ by their
                // order
                assert_close(
                    &b.get(&y, s.out_rows(), cout),
                    &n.wanted(&s, act),
                    2e-3,
                    &format!("{s:?} {act:?} {tile:?}"),
                );
            }
        }
    }
}

#[test]
fn direct_convolution_equals_the_definition_with_groups_and_few_channels() {
    for b in benches() {
        let mut rng = Rng::new(2);
        for (cin, cout, groups) in [(3, 7, 1), (12, 6, 3), (10, 10, 10)] {
            for s in shapes(&mut rng, cin, cout) {
                let s = ConvShape { groups, ..s };
                let n = Numbers::new(&mut rng, &s);
                let (taps, depth) = (s.kh * s.kw, cin / groups);
                let filter = Filter::direct(&*b.device, taps, depth, cout, |t, c, o| {
                    n.w[(o * depth + c) * taps + t]
                })
                .unwrap();
                let x = b.put(&n.x, cin, cin + 1, ElementType::F32);
                let parts = n.tail(&b, &s);
                let y = b.room(s.out_rows(), cout, ElementType::F32);
                let tail = tail(&parts, &s, Act::GeluTanh);
                b.run(&conv(
                    &b.state,
                    &s,
                    &filter,
                    &x,
                    None,
                    &tail,
                    &Output::plain(&y),
                    Tile::Small,
                    None,
                ));
                assert_close(
                    &b.get(&y, s.out_rows(), cout),
                    &n.wanted(&s, Act::GeluTanh),
                    1e-5,
                    &format!("{s:?}"),
                );
            }
        }
    }
}

/// Codes of activations and weights, and what they stand for.
struct Quantized {
    segments: Vec<usize>,
    x: Vec<f32>,
    scale: Vec<f32>,
    zero: Vec<f32>,
    w: Vec<f32>,
    w_scale: Vec<f32>,
}

impl Quantized {
    fn new(rng: &mut Rng, s: &ConvShape, segments: &[usize], exact: bool) -> Quantized {
        let count = segments.len();
        let mut positive = |n: usize, most: f32| -> Vec<f32> {
            if exact {
                vec![1.0; n]
            } else {
                rng.noise(n).iter().map(|v| (v.abs() + 0.05) * most).collect()
            }
        };
        let (scale, w_scale) = (positive(count, 0.02), positive(s.cout * count, 0.01));
        let mut whole = |n: usize, low: i32, high: i32| -> Vec<f32> {
            (0..n).map(|_| (low + rng.size(0, (high - low) as usize) as i32) as f32).collect()
        };
        Quantized {
            x: whole(s.n * s.h * s.w * s.cin, 0, 255),
            zero: whole(count, 0, 255),
            w: whole(s.cout * s.k(), -127, 127),
            segments: segments.to_vec(),
            scale,
            w_scale,
        }
    }

    fn owner(&self, channel: usize) -> usize {
        let mut end = 0;
        self.segments
            .iter()
            .position(|n| {
                end += n;
                channel < end
            })
            .unwrap()
    }

    fn filter(&self, b: &Bench, s: &ConvShape) -> Filter {
        let taps = s.kh * s.kw;
        let at = |t: usize, c: usize, o: usize| self.w[(o * s.cin + c) * taps + t] as i8;
        Filter::codes(&*b.device, taps, &self.segments, s.cout, &self.w_scale, at).unwrap()
    }

    /// The numbers that the codes of x and w stand for.
    fn values(&self, s: &ConvShape) -> (Vec<f32>, Vec<f32>) {
        let x = self.x.iter().enumerate().map(|(i, code)| {
            let segment = self.owner(i % s.cin);
            (code - self.zero[segment]) * self.scale[segment]
        });
        let taps = s.kh * s.kw;
        let w = self.w.iter().enumerate().map(|(i, code)| {
            let (output, channel) = (i / taps / s.cin, i / taps % s.cin);
            code * self.w_scale[output * self.segments.len() + self.owner(channel)]
        });
        (x.collect(), w.collect())
    }
}

#[test]
fn sums_of_codes_are_exact() {
    for b in benches() {
        let mut rng = Rng::new(3);
        for (segments, cout, tile) in [
            (vec![16], 9, Tile::Small),
            (vec![48], 130, Tile::Large),
            (vec![16, 32], 66, Tile::Small),
            (vec![32, 16, 16], 131, Tile::Large),
        ] {
            for s in shapes(&mut rng, segments.iter().sum(), cout) {
                let q = Quantized::new(&mut rng, &s, &segments, true);
                let (x, w) = q.values(&s);
                let (x, w) =
                    (tensor(&x, &[s.n, s.h, s.w, s.cin]), tensor(&w, &[s.cout, s.cin, s.kh, s.kw]));
                let wanted = expected(&op(&s, Act::None), &[Some(&x), Some(&w)]);
                assert!(wanted.iter().all(|v| v.abs() < (1 << 24) as f32), "sums that f32 holds");
                let codes = b.put(&q.x, s.cin, s.cin + 16, ElementType::U8);
                let y = b.room(s.out_rows(), cout, ElementType::F32);
                let (scale, zero) = (b.table(&q.scale), b.table(&q.zero));
                let filter = q.filter(&b, &s);
                let rounding = Some([&scale, &zero]);
                b.run(&conv(
                    &b.state,
                    &s,
                    &filter,
                    &codes,
                    rounding,
                    &Epilogue::default(),
                    &Output::plain(&y),
                    tile,
                    None,
                ));
                assert_eq!(b.get(&y, s.out_rows(), cout), wanted, "{s:?} {segments:?} {tile:?}");
            }
        }
    }
}

#[test]
fn codes_in_codes_out_with_everything_between() {
    for b in benches() {
        let mut rng = Rng::new(4);
        for (segments, cout, bits) in [(vec![32], 48, 8), (vec![16, 16], 33, 8), (vec![64], 20, 4)]
        {
            for s in shapes(&mut rng, segments.iter().sum(), cout) {
                let q = Quantized::new(&mut rng, &s, &segments, false);
                let mut n = Numbers::new(&mut rng, &s);
                (n.x, n.w) = q.values(&s);
                let wanted = n.wanted(&s, Act::Silu);
                let codes = b.put(&q.x, s.cin, s.cin, ElementType::U8);
                let (scale, zero, filter) = (b.table(&q.scale), b.table(&q.zero), q.filter(&b, &s));
                let parts = n.tail(&b, &s);
                let how = (0.03f32, 100.0f32.min(((1 << bits) - 1) as f32));
                let (y_scale, y_zero) = (b.table(&[how.0; 2]), b.table(&[how.1; 2]));
                let split = [cout - 7, 7];
                let y = b.room(s.out_rows(), cout + 5, ElementType::U8);
                let rounding =
                    Rounding { bits, segments: &split, scale: &y_scale, zero_point: &y_zero };
                let output = Output { y: &y, rounding: Some(rounding) };
                let tail = tail(&parts, &s, Act::Silu);
                b.run(&conv(
                    &b.state,
                    &s,
                    &filter,
                    &codes,
                    Some([&scale, &zero]),
                    &tail,
                    &output,
                    Tile::Small,
                    None,
                ));
                let most = ((1 << bits) - 1) as f32;
                let wanted: Vec<f32> =
                    wanted.iter().map(|v| v.min((most - how.1) * how.0)).collect();
                assert_codes(
                    &b.get(&y, s.out_rows(), cout),
                    &wanted,
                    how.0,
                    how.1,
                    2e-3,
                    &format!("{s:?} {bits} bits"),
                );

                // and rounded floats, which stand for the same codes
                let rounded = b.room(s.out_rows(), cout, ElementType::F32);
                let output = Output { y: &rounded, rounding: Some(rounding) };
                b.run(&conv(
                    &b.state,
                    &s,
                    &filter,
                    &codes,
                    Some([&scale, &zero]),
                    &tail,
                    &output,
                    Tile::Small,
                    None,
                ));
                let codes = b.get(&y, s.out_rows(), cout);
                let stands_for: Vec<f32> = codes.iter().map(|c| (c - how.1) * how.0).collect();
                assert_eq!(b.get(&rounded, s.out_rows(), cout), stands_for, "{s:?} {bits} bits");
            }
        }
    }
}

/// Room for the sums of several parts of the depth.
fn sums(b: &Bench, s: &ConvShape, splits: usize) -> cqc_kernels::cuda::Operand {
    b.room(1, split_bytes(s.out_rows(), s.cout, splits.max(2)) / 4, ElementType::F32)
}

/// Rows of the result and of the residual that are made of 16 bytes, and blocks that share the
/// depth.
#[test]
fn eight_columns_at_once_and_a_shared_depth_equal_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(6);
        let (cin, cout) = (72, 80);
        for (i, s) in shapes(&mut rng, cin, cout).into_iter().enumerate() {
            let act = Act::ALL[i % Act::ALL.len()];
            let n = Numbers::new(&mut rng, &s);
            let taps = s.kh * s.kw;
            let filter = Filter::halves(&*b.device, taps, cin, cout, |t, c, o| {
                n.w[(o * cin + c) * taps + t]
            })
            .unwrap();
            let x = b.put(&n.x, cin, cin + 8, ElementType::F16);
            let mut parts = n.tail(&b, &s);
            parts[3] = b.put(&n.residual, cout, cout + 8, ElementType::F16);
            let wanted = n.wanted(&s, act);
            for (splits, tile) in
                [(1, Tile::Small), (1, Tile::Large), (2, Tile::Small), (3, Tile::Small)]
            {
                let y = b.room(s.out_rows(), cout + 16, ElementType::F16);
                let (tail, output, sums) =
                    (tail(&parts, &s, act), Output::plain(&y), sums(&b, &s, splits));
                let launches = conv(
                    &b.state,
                    &s,
                    &filter,
                    &x,
                    None,
                    &tail,
                    &output,
                    tile,
                    Some((&sums, splits)),
                );
                assert_eq!(launches.len(), if splits > 1 { 2 } else { 1 });
                b.run(&launches);
                assert_close(
                    &b.get(&y, s.out_rows(), cout),
                    &wanted,
                    2e-3,
                    &format!("{s:?} {act:?} in {splits}"),
                );
            }
        }
    }
}

#[test]
fn codes_by_eights_and_of_a_shared_depth_equal_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(7);
        let cout = 48;
        for s in shapes(&mut rng, 80, cout) {
            let q = Quantized::new(&mut rng, &s, &[80], false);
            let mut n = Numbers::new(&mut rng, &s);
            (n.x, n.w) = q.values(&s);
            let codes = b.put(&q.x, s.cin, s.cin, ElementType::U8);
            let (scale, zero, filter) = (b.table(&q.scale), b.table(&q.zero), q.filter(&b, &s));
            let mut parts = n.tail(&b, &s);
            parts[3] = b.put(&n.residual, cout, cout + 8, ElementType::F16);
            let (y_scale, y_zero) = (b.table(&[0.03; 2]), b.table(&[100.0; 2]));
            let how = Rounding {
                bits: 8,
                segments: &[cout - 8, 8],
                scale: &y_scale,
                zero_point: &y_zero,
            };
            let wanted: Vec<f32> =
                n.wanted(&s, Act::Silu).iter().map(|v| v.min(155.0 * 0.03)).collect();
            for splits in [1, 2] {
                let y = b.room(s.out_rows(), cout + 8, ElementType::U8);
                let (tail, sums) = (tail(&parts, &s, Act::Silu), sums(&b, &s, splits));
                let output = Output { y: &y, rounding: Some(how) };
                let (rounding, shared) = (Some([&scale, &zero]), Some((&sums, splits)));
                b.run(&conv(
                    &b.state,
                    &s,
                    &filter,
                    &codes,
                    rounding,
                    &tail,
                    &output,
                    Tile::Small,
                    shared,
                ));
                assert_codes(
                    &b.get(&y, s.out_rows(), cout),
                    &wanted,
                    0.03,
                    100.0,
                    2e-3,
                    &format!("{s:?} {splits}"),
                );
            }
        }
    }
}

#[test]
fn depth_is_shared_where_tiles_are_few_and_it_is_long() {
    let halves = |rows, cols, depth| splits(rows, cols, depth, FilterKind::Halves, 132);
    assert_eq!(halves(64, 64, 4096), 16, "one tile: as many blocks as there may be");
    assert_eq!(halves(256, 1280, 11520), 1, "80 tiles of 132 multiprocessors");
    assert_eq!(halves(64, 1280, 11520), 6, "20 tiles");
    assert_eq!(halves(64, 64, 256), 1, "8 steps are a block's least");
    assert_eq!(halves(64, 60, 4096), 1, "columns that are not stored by eights");
    assert_eq!(splits(64, 64, 4096, FilterKind::Codes, 132), 8);
}

#[test]
fn batched_product_equals_the_definition() {
    for b in benches() {
        let mut rng = Rng::new(5);
        for _ in 0..6 {
            let (batch, m, k, n) =
                (rng.size(1, 3), rng.size(1, 9), rng.size(1, 20), rng.size(1, 17));
            let (x, w) = (halves(&mut rng, batch * m * k), halves(&mut rng, k * n));
            let shape = MatmulShape {
                batch,
                m,
                k,
                n,
                lda: k,
                ldb: n,
                ldy: n + 2,
                stride_a: m * k,
                stride_b: 0,
                stride_y: m * (n + 2),
                transpose_b: false,
            };
            let (a, w_there, y) =
                (b.halves(&x, k), b.halves(&w, n), b.room(batch * m, n + 2, ElementType::F32));
            b.run(&[matmul(&b.state, &shape, &a, &w_there, &y)]);
            let wanted = expected(
                &Op::MatMul,
                &[Some(&tensor(&x, &[batch, m, k])), Some(&tensor(&w, &[k, n]))],
            );
            assert_close(&b.get(&y, batch * m, n), &wanted, 1e-5, &format!("{shape:?}"));
        }
    }
}
