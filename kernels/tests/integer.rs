//! Integer products against sums of products in i64, on random shapes.

mod common;

use common::{Rng, isas};
use cqc_kernels::{Activations, Conv, ConvShape, Epilogue, FakeQuant, Isa, PackedCodes, Pool};
use cqc_proto::DType;
use proptest::prelude::*;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    Rng::new(seed).noise(len)
}

/// Whole numbers in `low ..= high`.
fn ints(len: usize, seed: u64, low: i64, high: i64) -> Vec<i64> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| low + rng.size(0, (high - low) as usize) as i64).collect()
}

/// Codes as this instruction set stores them.
fn stored(isa: Isa, codes: &[u8]) -> Vec<u16> {
    let bytes: Vec<u8> = match isa.code_type() {
        DType::I16 => codes.iter().flat_map(|&c| i16::from(c).to_le_bytes()).collect(),
        _ => codes.to_vec(),
    };
    bytes
        .chunks(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
        .collect()
}

/// One product: what all implementations are given.
struct Case {
    shape: ConvShape,
    segments: Vec<usize>,
    x: Vec<u8>,
    w: Vec<i8>,
    scale: Vec<f32>,
    zero_point: Vec<f32>,
    weight_scale: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(shape: ConvShape, segments: Vec<usize>, seed: u64) -> Case {
        let count = segments.len();
        let positive =
            |n: usize, seed| noise(n, seed).iter().map(|v| v.abs() + 0.01).collect::<Vec<_>>();
        Case {
            x: ints(shape.n * shape.h * shape.w * shape.cin, seed, 0, 255)
                .iter()
                .map(|&v| v as u8)
                .collect(),
            w: ints(shape.cout * shape.k(), seed + 1, -128, 127).iter().map(|&v| v as i8).collect(),
            scale: positive(count, seed + 2),
            zero_point: ints(count, seed + 3, 0, 255).iter().map(|&v| v as f32).collect(),
            weight_scale: positive(shape.cout * count, seed + 4),
            bias: noise(shape.cout, seed + 5),
            shape,
            segments,
        }
    }

    /// The definition, in f64 from exact sums.
    fn expected(&self) -> Vec<f64> {
        let s = &self.shape;
        let owner: Vec<usize> =
            self.segments.iter().enumerate().flat_map(|(i, &n)| vec![i; n]).collect();
        let mut y = Vec::with_capacity(s.out_rows() * s.cout);
        for row in 0..s.out_rows() {
            let (image, pixel) = (row / (s.out_h() * s.out_w()), row % (s.out_h() * s.out_w()));
            for co in 0..s.cout {
                let mut sums = vec![0i64; self.segments.len()];
                for (tap, ci) in
                    (0..s.kh * s.kw).flat_map(|tap| (0..s.cin).map(move |ci| (tap, ci)))
                {
                    let source =
                        s.source(pixel / s.out_w(), pixel % s.out_w(), tap / s.kw, tap % s.kw);
                    let Some(source) = source else { continue };
                    let x = i64::from(self.x[(image * s.h * s.w + source) * s.cin + ci]);
                    let zero = self.zero_point[owner[ci]] as i64;
                    sums[owner[ci]] +=
                        (x - zero) * i64::from(self.w[(co * s.cin + ci) * s.kh * s.kw + tap]);
                }
                let of = |i: usize| {
                    sums[i] as f64
                        * f64::from(self.scale[i])
                        * f64::from(self.weight_scale[co * sums.len() + i])
                };
                y.push((0..sums.len()).map(of).sum::<f64>() + f64::from(self.bias[co]));
            }
        }
        y
    }

    fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let s = &self.shape;
        let codes = stored(isa, &self.x);
        let bytes = &bytemuck::cast_slice(&codes)[..self.x.len() * isa.code_type().size()];
        let x = Activations {
            codes: bytes,
            ld: s.cin,
            scale: &self.scale,
            zero_point: &self.zero_point,
        };
        let mut y = vec![f32::NAN; s.out_rows() * s.cout];
        let (pool, epilogue) = (Pool::new(threads), Epilogue::bias(&self.bias));
        let conv = Conv::new(isa, *s).unwrap();
        let packed = PackedCodes::from_oihw(isa, s, &self.segments, &self.w, &self.weight_scale);
        conv.run_codes(&pool, &x, &packed, &epilogue, &mut y, s.cout);
        if s.kh * s.kw == 1 && s.h * s.w == s.out_h() * s.out_w() && s.upsample == 1 {
            let kn: Vec<i8> = (0..s.cin)
                .flat_map(|ci| (0..s.cout).map(move |co| self.w[co * s.cin + ci]))
                .collect();
            let packed = PackedCodes::from_kn(isa, &self.segments, s.cout, &kn, &self.weight_scale);
            let mut z = vec![f32::NAN; y.len()];
            cqc_kernels::linear_codes(
                isa,
                &pool,
                s.out_rows(),
                s.cin,
                s.cout,
                &x,
                &packed,
                &epilogue,
                &mut z,
                s.cout,
            );
            assert_eq!(y, z);
        }
        y
    }

    fn check(&self) {
        let expected = self.expected();
        let largest = expected.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
        for isa in isas() {
            let y = self.run(isa, 1);
            for (i, (a, b)) in y.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(*a) - b).abs() <= 3e-6 * largest,
                    "{isa} {:?}: {a} at {i}, expected {b}",
                    self.shape
                );
            }
            assert_eq!(y, self.run(isa, 3), "{isa}: threads");
        }
    }
}

fn shapes() -> impl Strategy<Value = (ConvShape, Vec<usize>, u64)> {
    let segments = prop::collection::vec((1..6usize).prop_map(|n| 4 * n), 1..4);
    let window = (1..4usize, 1..3usize, 0..3usize, 1..3usize);
    (segments, 1..3usize, (3..8usize, 3..8usize), 1..50usize, window, 0..1000u64).prop_map(
        |(segments, n, (h, w), cout, (kernel, stride, pad, upsample), seed)| {
            let shape = ConvShape {
                stride: [stride; 2],
                pads: [pad.min(kernel - 1), pad.min(kernel - 1), 0, 1],
                upsample,
                ..ConvShape::same(n, h, w, segments.iter().sum(), cout, kernel)
            };
            (shape, segments, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolutions_are_exact((shape, segments, seed) in shapes()) {
        prop_assume!(shape.check().is_ok());
        Case::new(shape, segments, seed).check();
    }

    #[test]
    fn linear_layers_are_exact(m in 1..40usize, n in 1..70usize, depths in prop::collection::vec(1..40usize, 1..3), seed in 0..1000u64) {
        let segments: Vec<usize> = depths.iter().map(|d| 4 * d).collect();
        Case::new(ConvShape::same(m, 1, 1, segments.iter().sum(), n, 1), segments, seed).check();
    }
}

#[test]
fn the_largest_products_do_not_saturate() {
    for (x, w) in [(255, -128), (255, 127), (0, -128)] {
        let shape = ConvShape::same(1, 4, 4, 256, 40, 3);
        let mut case = Case::new(shape, vec![256], 1);
        case.x.fill(x);
        case.w.fill(w);
        case.check();
    }
}

#[test]
fn long_depths_take_several_steps() {
    Case::new(ConvShape::same(1, 5, 5, 2052, 33, 1), vec![2052], 3).check();
    Case::new(ConvShape::same(1, 10, 10, 720, 40, 3), vec![716, 4], 4).check();
}

/// Depths of whole cache lines, which tiles read from where they are if rows are a multiple of 16,
/// and copy in whole pieces if not.
#[test]
fn whole_tiles_are_exact() {
    for (rows, seed) in [(16, 1), (48, 2), (96, 3), (100, 4), (208, 5), (13, 6)] {
        Case::new(ConvShape::same(rows, 1, 1, 64, 70, 1), vec![64], seed).check();
        Case::new(ConvShape::same(rows, 1, 1, 192, 33, 1), vec![64, 128], seed).check();
        Case::new(ConvShape::same(rows, 1, 1, 132, 16, 1), vec![128, 4], seed).check();
    }
    Case::new(ConvShape::same(2, 7, 9, 128, 40, 3), vec![64, 64], 7).check();
    Case::new(ConvShape { stride: [2; 2], ..ConvShape::same(1, 9, 8, 68, 65, 3) }, vec![64, 4], 8)
        .check();
}

#[test]
fn codes_are_those_that_fake_quant_rounds_to() {
    let segments = [5, 16, 3];
    let (rows, c, ldx, ldy) = (37, 24, 26, 28);
    let mut x = noise(rows * ldx, 7);
    (x[3], x[30]) = (f32::NAN, f32::INFINITY);
    let (scale, zero_point) = ([0.01, 0.003, 0.02], [128.0, 0.0, 17.0]);
    let how = FakeQuant { bits: 8, segments: &segments, scale: &scale, zero_point: &zero_point };
    for isa in isas() {
        let size = isa.code_type().size();
        let (mut codes, mut rounded) = (vec![0u16; rows * ldy * size / 2], vec![0.0; rows * c]);
        let pool = Pool::new(2);
        cqc_kernels::quantize(
            isa,
            &pool,
            rows,
            &x,
            ldx,
            &how,
            bytemuck::cast_slice_mut(&mut codes),
            ldy,
        );
        cqc_kernels::fake_quant(isa, &pool, rows, &x, ldx, &how, &mut rounded, c);
        let bytes: &[u8] = bytemuck::cast_slice(&codes);
        for (row, col) in (0..rows).flat_map(|row| (0..c).map(move |col| (row, col))) {
            let segment = if col < 5 {
                0
            } else if col < 21 {
                1
            } else {
                2
            };
            let code = bytes[(row * ldy + col) * size];
            let value = (f32::from(code) - zero_point[segment]) * scale[segment];
            assert_eq!(value, rounded[row * c + col], "{isa} at {row}, {col}");
        }
    }
}
