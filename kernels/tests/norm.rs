//! Norms and softmax equal their definitions, also where the mean is large beside the deviation.

mod common;
use common::*;
use cqc_kernels::*;

/// Results of size about 3 from f32 inputs: a few ulp of the input, divided by the deviation.
const TOLERANCE: f32 = 1e-5;

#[test]
fn group_norm_equals_the_definition() {
    let mut rng = Rng::new(1);
    for round in 0..60 {
        let groups = rng.size(1, 9);
        let (n, hw, c) = (rng.size(1, 3), rng.size(1, 150), groups * rng.size(1, 21));
        let (ldx, ldy) = (c + rng.size(0, 5), c + rng.size(0, 5));
        let (gamma, beta) = (rng.noise(c), rng.noise(c));
        let s = GroupNorm {
            n,
            hw,
            c,
            groups,
            eps: 1e-5,
            gamma: rng.chance().then_some(&gamma[..]),
            beta: rng.chance().then_some(&beta[..]),
            act: Act::ALL[round % 8],
        };
        let x = rng.noise(n * hw * ldx);
        let mut want = vec![7.0; n * hw * ldy];
        definition::group_norm(&s, &x, ldx, &mut want, ldy);
        for isa in isas() {
            let mut first: Option<Vec<f32>> = None;
            for pool in pools() {
                let mut y = vec![7.0; want.len()];
                group_norm(isa, &pool, &s, &x, ldx, &mut y, ldy);
                // A variance of few values near eps magnifies rounding: three times the usual.
                assert_close(&y, &want, 3.0 * TOLERANCE, &format!("{isa} {s:?}"));
                assert_eq!(
                    first.get_or_insert_with(|| y.clone()),
                    &y,
                    "result depends on the number of threads"
                );
            }
        }
    }
}

#[test]
fn group_norm_survives_a_large_mean() {
    let mut rng = Rng::new(2);
    let s = GroupNorm {
        n: 1,
        hw: 1000,
        c: 64,
        groups: 4,
        eps: 1e-5,
        gamma: None,
        beta: None,
        act: Act::None,
    };
    let x: Vec<f32> = rng.noise(64_000).iter().map(|x| x + 1000.0).collect();
    let mut want = vec![0.0; 64_000];
    definition::group_norm(&s, &x, 64, &mut want, 64);
    for isa in isas() {
        let mut y = vec![0.0; 64_000];
        group_norm(isa, &Pool::new(2), &s, &x, 64, &mut y, 64);
        // the mean is 1732 deviations, whose last place is 1.2e-4; a product and a sum round
        assert_close(&y, &want, 1.3e-4, "mean over deviation is only known to 6e-5");
    }
}

#[test]
fn row_norms_equal_the_definition() {
    let mut rng = Rng::new(3);
    for round in 0..60 {
        let (rows, c) = (rng.size(1, 40), rng.size(2, 200));
        let (ldx, ldy) = (c + rng.size(0, 5), c + rng.size(0, 5));
        let (gamma, beta, image) = (rng.noise(c), rng.noise(c), rng.noise(rows * 2 * c));
        let rows_of = |from: usize| PerImage {
            data: &image[from..],
            stride: 2 * c,
            rows_per_image: 1.max(rows / 2) + 1,
        };
        let s = LayerNorm {
            rows,
            c,
            eps: 1e-6,
            gamma: rng.chance().then_some(&gamma[..]),
            beta: rng.chance().then_some(&beta[..]),
            modulate: rng.chance().then(|| (rows_of(0), rows_of(c))),
        };
        let x = rng.noise(rows * ldx);
        let mut want = vec![7.0; rows * ldy];
        for isa in isas() {
            let mut y = vec![7.0; rows * ldy];
            if round % 2 == 0 {
                definition::layer_norm(&s, &x, ldx, &mut want, ldy);
                layer_norm(isa, &Pool::new(2), &s, &x, ldx, &mut y, ldy);
            } else {
                definition::rms_norm(&s, &x, ldx, &mut want, ldy);
                rms_norm(isa, &Pool::new(2), &s, &x, ldx, &mut y, ldy);
            }
            // Rows of two nearly equal values divide by a small deviation.
            assert_close(&y, &want, 10.0 * TOLERANCE, &format!("{isa} {s:?}"));
        }
    }
}

#[test]
fn softmax_equals_the_definition() {
    let mut rng = Rng::new(4);
    for cols in (1..70).chain([333]) {
        let mut x: Vec<f32> = rng.noise(5 * cols).iter().map(|x| x * 20.0).collect();
        x[..cols].fill(f32::NEG_INFINITY);
        x[cols] = f32::NEG_INFINITY;
        let mut want = vec![0.0; 5 * cols];
        definition::softmax(5, cols, &x, &mut want);
        // the definition has no number for a row of −∞
        let rows = want.chunks_mut(cols).zip(x.chunks(cols));
        rows.filter(|(_, x)| x.iter().all(|&x| x == f32::NEG_INFINITY))
            .for_each(|(want, _)| want.fill(0.0));
        for isa in isas() {
            let mut y = vec![7.0; 5 * cols];
            softmax(isa, &Pool::new(2), 5, cols, &x, &mut y);
            assert_close(&y, &want, 1e-6, &format!("{isa} {cols}"));
        }
    }
}
