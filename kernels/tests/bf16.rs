//! Products of bf16 against sums in f64 of the same rounded values, on random shapes, and rounding
//! against its definition.
//!
//! Without AVX-512 BF16 these run the portable instance: packing, blocking, padding, tails and
//! epilogues are the same code for both.

mod common;

use common::{Rng, isas};
use cqc_kernels::*;
use half::bf16;
use proptest::prelude::*;

/// The nearest bf16, as f32.
fn nearest(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// Bits of the nearest bf16.
fn bits(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect()
}

/// One product: what all implementations are given.
struct Case {
    shape: ConvShape,
    ldx: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    /// Of the weights of every column.
    scale: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

impl Case {
    fn new(shape: ConvShape, seed: u64) -> Case {
        let mut rng = Rng::new(seed);
        let ldx = shape.cin + rng.size(0, 3);
        Case {
            x: rng.noise(shape.n * shape.h * shape.w * ldx),
            w: rng.noise(shape.cout * shape.k()),
            scale: rng.noise(shape.cout),
            bias: rng.noise(shape.cout),
            residual: rng.noise(shape.out_rows() * shape.cout),
            ldx,
            shape,
        }
    }

    fn epilogue(&self) -> Epilogue<'_> {
        Epilogue { residual: Some((&self.residual, self.shape.cout)), ..Epilogue::bias(&self.bias) }
    }

    /// The definition, in f64 from exact products, and the sums of their sizes.
    fn expected(&self) -> Vec<(f64, f64)> {
        let s = &self.shape;
        let mut y = Vec::with_capacity(s.out_rows() * s.cout);
        for row in 0..s.out_rows() {
            let (image, pixel) = (row / (s.out_h() * s.out_w()), row % (s.out_h() * s.out_w()));
            for co in 0..s.cout {
                let (mut sum, mut size) = (f64::from(self.bias[co]), 0.0);
                sum += f64::from(self.residual[row * s.cout + co]);
                for (tap, ci) in
                    (0..s.kh * s.kw).flat_map(|tap| (0..s.cin).map(move |ci| (tap, ci)))
                {
                    let source =
                        s.source(pixel / s.out_w(), pixel % s.out_w(), tap / s.kw, tap % s.kw);
                    let Some(source) = source else { continue };
                    let x = nearest(self.x[(image * s.h * s.w + source) * self.ldx + ci]);
                    let w = nearest(self.w[(co * s.cin + ci) * s.kh * s.kw + tap]);
                    let product = f64::from(x) * f64::from(w) * f64::from(self.scale[co]);
                    (sum, size) = (sum + product, size + product.abs());
                }
                y.push((sum, size));
            }
        }
        y
    }

    fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let (s, x, w) = (&self.shape, bits(&self.x), bits(&self.w));
        let mut y = vec![f32::NAN; s.out_rows() * s.cout];
        let (pool, epilogue) = (Pool::new(threads), self.epilogue());
        let conv = Conv::new(isa, *s).unwrap();
        conv.run_bf16(
            &pool,
            &x,
            self.ldx,
            &PackedBf16::from_oihw(isa, s, &w).scaled(&self.scale),
            &epilogue,
            &mut y,
            s.cout,
        );
        if s.kh * s.kw == 1 && s.h * s.w == s.out_h() * s.out_w() && s.upsample == 1 {
            let kn: Vec<u16> = (0..s.cin)
                .flat_map(|ci| (0..s.cout).map(move |co| (ci, co)))
                .map(|(ci, co)| w[co * s.cin + ci])
                .collect();
            let packed = PackedBf16::from_kn(isa, s.cin, s.cout, &kn).scaled(&self.scale);
            let mut z = vec![f32::NAN; y.len()];
            linear_bf16(
                isa,
                &pool,
                s.out_rows(),
                s.cin,
                s.cout,
                &x,
                self.ldx,
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
        for isa in isas() {
            let y = self.run(isa, 1);
            for (i, (&a, &(b, size))) in y.iter().zip(&expected).enumerate() {
                // f32 sums in another order: 2⁻²⁴ per addition of at most the whole
                let tolerance = 1e-6 + 2e-7 * size * (self.shape.k() as f64).sqrt();
                assert!(
                    (f64::from(a) - b).abs() <= tolerance,
                    "{isa} {:?}: {a} at {i}, expected {b}",
                    self.shape
                );
            }
            assert_eq!(y, self.run(isa, 3), "{isa}: threads");
        }
    }
}

fn shapes() -> impl Strategy<Value = (ConvShape, u64)> {
    let window = (1..4usize, 1..3usize, [0..3usize, 0..3, 0..2, 0..2], 1..3usize);
    (1..40usize, 1..3usize, (3..8usize, 3..8usize), 1..70usize, window, 0..1000u64).prop_map(
        |(cin, n, (h, w), cout, (kernel, stride, pads, upsample), seed)| {
            let pads = pads.map(|pad| pad.min(kernel - 1));
            (
                ConvShape {
                    stride: [stride; 2],
                    pads,
                    upsample,
                    ..ConvShape::same(n, h, w, cin, cout, kernel)
                },
                seed,
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolutions_equal_the_definition((shape, seed) in shapes()) {
        prop_assume!(shape.check().is_ok());
        Case::new(shape, seed).check();
    }

    #[test]
    fn linear_layers_equal_the_definition(m in 1..40usize, n in 1..70usize, k in 1..200usize, seed in 0..1000u64) {
        Case::new(ConvShape::same(m, 1, 1, k, n, 1), seed).check();
    }
}

#[test]
fn long_depths_take_several_steps() {
    Case::new(ConvShape::same(1, 5, 5, 2051, 33, 1), 3).check();
    Case::new(ConvShape::same(1, 10, 10, 719, 40, 3), 4).check();
}

/// Depths of whole cache lines, which tiles read from where they are if rows are a multiple of 16,
/// and copy in whole pieces if not.
#[test]
fn whole_tiles_equal_the_definition() {
    for (rows, seed) in [(16, 1), (48, 2), (96, 3), (100, 4), (208, 5), (13, 6)] {
        Case::new(ConvShape::same(rows, 1, 1, 64, 70, 1), seed).check();
        Case::new(ConvShape::same(rows, 1, 1, 33, 20, 1), seed).check();
    }
    Case::new(ConvShape::same(2, 7, 9, 32, 40, 3), 7).check();
}

#[test]
fn a_depth_that_ends_within_a_pair_reads_nothing_behind_it() {
    let (k, n) = (7, 20);
    for isa in isas() {
        // NaN follows every row, and times zero would still be one
        let x: Vec<u16> = (0..3 * 8).map(|i| if i % 8 == 7 { 0x7fc0 } else { 0x3f80 }).collect();
        let packed = PackedBf16::from_kn(isa, k, n, &vec![0x3f80; k * n]);
        let mut y = vec![0.0; 3 * n];
        linear_bf16(
            isa,
            &Pool::new(1),
            3,
            k,
            n,
            &x[..23],
            8,
            &packed,
            &Epilogue::default(),
            &mut y,
            n,
        );
        assert_eq!(y, vec![7.0; 3 * n], "{isa}");
    }
}

#[test]
fn rounding_is_to_the_nearest_with_ties_to_even() {
    let mut x: Vec<f32> = [
        0,
        0x8000_0000,
        1,
        0x7fff,
        0x8000,
        0x8001,
        0x1_8000,
        0x3f80_8000,
        0x3f81_8000,
        0xbf81_7fff,
        0x7f7f_8000,
        0x7f7f_7fff,
        0x7f80_0000,
        0xff80_0000,
        0x7f80_0001,
        0x7fff_ffff,
        0xffff_ffff,
        0x0080_0000,
        0x007f_ffff,
    ]
    .map(f32::from_bits)
    .to_vec();
    let mut rng = Rng::new(5);
    x.extend((0..5000).map(|_| f32::from_bits(rng.bits() << 1 ^ rng.bits())));
    let (c, rows) = (19, x.len() / 19);
    let (ldx, ldy) = (c, c + 2);
    for isa in isas() {
        let pool = Pool::new(2);
        let (mut stored, mut rounded) = (vec![0xabcd_u16; rows * ldy], vec![7.0f32; rows * ldy]);
        round_bf16(isa, &pool, rows, c, &x, ldx, Output::Bf16(&mut stored), ldy);
        round_bf16(isa, &pool, rows, c, &x, ldx, Output::RoundedBf16(&mut rounded), ldy);
        for (row, col) in (0..rows).flat_map(|row| (0..ldy).map(move |col| (row, col))) {
            let at = row * ldy + col;
            if col >= c {
                assert_eq!((stored[at], rounded[at]), (0xabcd, 7.0), "{isa}: after row {row}");
                continue;
            }
            let expected = bf16::from_f32(x[row * ldx + col]).to_bits();
            assert_eq!(stored[at], expected, "{isa}: {:x}", x[row * ldx + col].to_bits());
            assert_eq!(
                rounded[at].to_bits(),
                u32::from(expected) << 16,
                "{isa}: {:x}",
                x[row * ldx + col].to_bits()
            );
        }
    }
}
