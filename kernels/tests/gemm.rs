//! Convolutions and products equal their definitions on ragged shapes, with every epilogue, on
//! every thread count.

mod common;
use common::*;
use cqc_kernels::matmul::matmul_scratch_len;
use cqc_kernels::*;

/// Sums of up to 1000 products of values below 1, in f32: about √1000 · 1e-7, with room.
const TOLERANCE: f32 = 2e-5;

/// What an [`Epilogue`] borrows.
struct Parts {
    bias: Vec<f32>,
    image: Vec<f32>,
    residual: Vec<f32>,
    rows_per_image: usize,
    stride: usize,
    ld: usize,
}

impl Parts {
    fn new(rng: &mut Rng, rows: usize, n: usize) -> Parts {
        let rows_per_image = rng.size(1, rows.max(1));
        let stride = if rng.chance() { 0 } else { n + rng.size(0, 3) };
        let ld = n + rng.size(0, 3);
        Parts {
            bias: rng.noise(n),
            image: rng.noise(rows.div_ceil(rows_per_image) * stride + n),
            residual: rng.noise(rows * ld),
            rows_per_image,
            stride,
            ld,
        }
    }

    /// The combination of parts that the bits of `which` name.
    fn epilogue(&self, which: usize, act: Act) -> Epilogue<'_> {
        let rows = PerImage {
            data: &self.image,
            stride: self.stride,
            rows_per_image: self.rows_per_image,
        };
        Epilogue {
            scale: (which & 16 != 0).then_some(&self.bias),
            bias: (which & 1 != 0).then_some(&self.bias),
            row: (which & 2 != 0).then_some(rows),
            act,
            gate: (which & 4 != 0).then_some(rows),
            residual: (which & 8 != 0).then_some((&self.residual, self.ld)),
        }
    }
}

fn check_conv(rng: &mut Rng, s: ConvShape) {
    let (ldx, ldy) = (s.cin + rng.size(0, 5), s.cout + rng.size(0, 5));
    let x = rng.noise(s.n * s.h * s.w * ldx);
    let w = rng.noise(s.cout * s.k());
    let parts = Parts::new(rng, s.out_rows(), s.cout);
    let epilogue = parts.epilogue(rng.size(0, 31), Act::ALL[rng.size(0, 7)]);
    let mut want = vec![7.0; s.out_rows() * ldy];
    definition::conv(&s, &x, ldx, &w, &epilogue, &mut want, ldy);
    for isa in isas() {
        let conv = Conv::new(isa, s).unwrap();
        let packed = conv.pack(&w);
        let mut first: Option<Vec<f32>> = None;
        for pool in pools() {
            let mut y = vec![7.0; s.out_rows() * ldy];
            conv.run(&pool, &x, ldx, &packed, &epilogue, &mut y, ldy);
            assert_close(&y, &want, TOLERANCE, &format!("{isa} {s:?} {ldx} {ldy} {pool:?}"));
            assert_eq!(
                first.get_or_insert_with(|| y.clone()),
                &y,
                "result depends on the number of threads"
            );
        }
    }
}

#[test]
fn convolutions_of_random_shapes_equal_the_definition() {
    let mut rng = Rng::new(1);
    for round in 0..150 {
        let groups = if round % 5 == 0 { rng.size(2, 4) } else { 1 };
        let widths = [1, 3, 4, 5, 15, 16, 17, 33, 70];
        let mut pick = || widths[rng.size(0, widths.len() - 1)];
        let (cin, cout) = (pick() * groups, pick() * groups);
        let (kh, kw) = (rng.size(1, 3), rng.size(1, 3));
        let shape = ConvShape {
            n: rng.size(1, 3),
            h: rng.size(3, 9),
            w: rng.size(3, 9),
            cin,
            cout,
            kh,
            kw,
            stride: [rng.size(1, 2), rng.size(1, 2)],
            pads: [0; 4].map(|_: usize| rng.size(0, 2)),
            dilation: [rng.size(1, 2), rng.size(1, 2)],
            groups,
            upsample: rng.size(1, 2),
        };
        if shape.check().is_ok() {
            check_conv(&mut rng, shape);
        }
    }
}

#[test]
fn typical_convolutions_equal_the_definition() {
    let mut rng = Rng::new(2);
    let same = ConvShape::same;
    check_conv(&mut rng, same(1, 8, 8, 64, 48, 3));
    check_conv(&mut rng, same(2, 4, 4, 300, 40, 3)); // depth cut into steps
    check_conv(&mut rng, same(1, 11, 12, 20, 40, 3)); // several taps per step, several row blocks
    check_conv(&mut rng, same(1, 12, 12, 3, 32, 3)); // first layer: copied rows
    check_conv(&mut rng, same(1, 12, 12, 40, 3, 3)); // last layer: dot products
    check_conv(&mut rng, ConvShape { groups: 37, ..same(1, 9, 9, 37, 37, 3) }); // depthwise
    check_conv(
        &mut rng,
        ConvShape { stride: [2, 2], pads: [0, 0, 1, 1], ..same(1, 9, 9, 24, 24, 3) },
    );
    check_conv(&mut rng, ConvShape { upsample: 2, ..same(2, 5, 4, 24, 33, 3) });
    // patches
    check_conv(&mut rng, ConvShape { stride: [4, 4], pads: [0; 4], ..same(2, 16, 16, 3, 50, 4) });
    check_conv(
        &mut rng,
        ConvShape { stride: [16, 16], pads: [0; 4], ..same(1, 32, 32, 3, 20, 16) },
    );
    check_conv(&mut rng, same(1, 3, 3, 8, 8, 7)); // mostly padding
}

#[test]
fn linear_equals_the_definition_with_every_epilogue() {
    let mut rng = Rng::new(3);
    for (m, k, n) in [
        (1, 70, 50),
        (2, 33, 16),
        (3, 5, 1),
        (4, 300, 3),
        (5, 17, 4),
        (7, 1, 7),
        (13, 64, 100),
        (100, 40, 35),
        (250, 9, 2),
    ] {
        let (ldx, ldy) = (k + rng.size(0, 3), n + rng.size(0, 3));
        let (x, w) = (rng.noise(m * ldx), rng.noise(k * n));
        let transposed: Vec<f32> = (0..n * k).map(|i| w[i % k * n + i / k]).collect();
        let parts = Parts::new(&mut rng, m, n);
        for which in 0..16 {
            let epilogue = parts.epilogue(which, Act::ALL[(which + m) % 8]);
            let mut want = vec![7.0; m * ldy];
            definition::linear([m, k, n], &x, ldx, &w, &epilogue, &mut want, ldy);
            for isa in isas() {
                for packed in [
                    PackedMatrix::from_kn(isa, k, n, &w),
                    PackedMatrix::from_nk(isa, k, n, &transposed),
                ] {
                    let mut y = vec![7.0; m * ldy];
                    linear(isa, &Pool::new(2), m, k, n, &x, ldx, &packed, &epilogue, &mut y, ldy);
                    assert_close(
                        &y,
                        &want,
                        TOLERANCE,
                        &format!("{isa} {m} {k} {n} epilogue {which}"),
                    );
                }
            }
        }
    }
}

#[test]
fn every_activation_is_applied() {
    let (isa, mut rng) = (Isa::detect().unwrap(), Rng::new(4));
    let (x, w) = (rng.noise(6 * 8), rng.noise(8 * 20));
    for act in Act::ALL {
        let epilogue = Epilogue { act, ..Epilogue::default() };
        let (mut want, mut y) = (vec![0.0; 120], vec![0.0; 120]);
        definition::linear([6, 8, 20], &x, 8, &w, &epilogue, &mut want, 20);
        let packed = PackedMatrix::from_kn(isa, 8, 20, &w);
        linear(isa, &Pool::new(1), 6, 8, 20, &x, 8, &packed, &epilogue, &mut y, 20);
        assert_close(&y, &want, TOLERANCE, &format!("{act:?}"));
    }
}

#[test]
fn batched_products_equal_the_definition() {
    let mut rng = Rng::new(5);
    for round in 0..60 {
        let (batch, m, k, n) = (rng.size(1, 4), rng.size(1, 40), rng.size(1, 90), rng.size(1, 50));
        let transpose_b = round % 2 == 0;
        let (b_rows, b_cols) = if transpose_b { (n, k) } else { (k, n) };
        let (lda, ldb, ldy) = (k + rng.size(0, 2), b_cols + rng.size(0, 2), n + rng.size(0, 2));
        let stride = |rng: &mut Rng, size: usize| {
            if rng.size(0, 3) == 0 { 0 } else { size + rng.size(0, 5) }
        };
        let (stride_a, stride_b) = (stride(&mut rng, m * lda), stride(&mut rng, b_rows * ldb));
        let stride_y = m * ldy + rng.size(0, 5);
        let s = MatmulShape {
            batch,
            m,
            k,
            n,
            lda,
            ldb,
            ldy,
            stride_a,
            stride_b,
            stride_y,
            transpose_b,
        };
        let (a, b) =
            (rng.noise(batch * stride_a + m * lda), rng.noise(batch * stride_b + b_rows * ldb));
        let mut want = vec![7.0; batch * stride_y];
        definition::matmul_batched(&s, &a, &b, &mut want);
        for isa in isas() {
            let mut y = vec![7.0; batch * stride_y];
            let mut scratch = vec![f32::NAN; matmul_scratch_len(isa, &s)];
            matmul_batched(isa, &Pool::new(2), &s, &a, &b, &mut y, &mut scratch);
            assert_close(&y, &want, TOLERANCE, &format!("{isa} {s:?}"));
        }
    }
}

#[test]
#[should_panic(expected = "used for")]
fn weights_of_another_shape_are_refused() {
    let packed = PackedMatrix::from_kn(Isa::Portable, 4, 8, &[0.0; 32]);
    linear(
        Isa::Portable,
        &Pool::new(1),
        1,
        8,
        4,
        &[0.0; 8],
        8,
        &packed,
        &Epilogue::default(),
        &mut vec![0.0; 4],
        4,
    );
}

#[test]
#[should_panic(expected = "x: 7 values, needs 8")]
fn short_inputs_are_refused() {
    let packed = PackedMatrix::from_kn(Isa::Portable, 8, 4, &[0.0; 32]);
    linear(
        Isa::Portable,
        &Pool::new(1),
        1,
        8,
        4,
        &[0.0; 7],
        8,
        &packed,
        &Epilogue::default(),
        &mut vec![0.0; 4],
        4,
    );
}

#[test]
fn impossible_shapes_are_errors() {
    let good = ConvShape::same(1, 4, 4, 6, 6, 3);
    assert_eq!(ConvShape { stride: [0, 1], ..good }.check(), Err(ShapeError::Zero("stride")));
    assert_eq!(
        ConvShape { groups: 4, ..good }.check(),
        Err(ShapeError::Groups { groups: 4, cin: 6, cout: 6 })
    );
    let large = ConvShape { kh: 9, ..good };
    assert_eq!(large.check(), Err(ShapeError::Kernel { kernel: 9, padded: 6 }));
}
