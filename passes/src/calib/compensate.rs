//! The sample compensation (the variance compensation of Q&C, arXiv:2503.02508): per channel of the
//! sample after one step, an affine map of the accelerated sample that brings it near the ordinary
//! one.

use crate::cache::affine::Affine;

/// The scale is limited to this interval.
const SCALES: [f64; 2] = [0.8, 1.25];

/// A channel with fewer pairs of elements than this is corrected in part only.
const ENOUGH: f64 = 64.0;

/// The objective of the scale K. The formulas use d = x − μ of the accelerated sample x, and e = x′
/// − μ′ of the ordinary sample x′.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompensationMode {
    /// Least absolute and relative square error: Σ w·e·d / Σ w·d² with w = 1 + 1 / max(x′², τ²). τ
    /// is a tenth of the root of the mean x′²; without it a few elements near zero would decide.
    /// This is formula A.
    Regression,
    /// The formula that is printed in the paper: (Σ e·d + Σ d/x′) / (Σ d² + Σ d²/x′²) (formula B).
    /// It is the optimum of the paper's objective only where μ is 0. Elements with x′ = 0 have no
    /// relative error.
    PaperExact,
    /// Least square error: Σ e·d / Σ d². The weaker the two samples correlate, the more it shrinks
    /// the sample.
    Mse,
    /// Equal variance: sd(x′) / sd(x).
    Variance,
}

/// The map `x~ = scale · x + shift` per channel, fitted to pairs of samples `[rows, channels,
/// plane]`: the same rows of the accelerated loop and of the ordinary one. All rows are given at
/// once, because τ must be known before the sums.
///
/// μ is the mean of the accelerated channel. μ′ is the same, unless `center` is set: then it is the
/// mean of the ordinary channel, and the means agree after the correction. The scale is between 0.8
/// and 1.25. With n < 64 pairs, the map goes only n / 64 of the way from the identity. Pairs that
/// are not finite are left out. Where nothing varies, the scale is 1.
///
/// # Panics
/// If the lengths differ or are no multiple of `channels · plane`.
pub fn fit(
    accelerated: &[f32],
    ordinary: &[f32],
    channels: usize,
    plane: usize,
    mode: CompensationMode,
    center: bool,
) -> Affine {
    let row = channels * plane;
    assert!(
        accelerated.len() == ordinary.len()
            && (row == 0 && accelerated.is_empty() || accelerated.len().is_multiple_of(row))
    );
    let mut map = Affine::identity(channels);
    for c in 0..channels {
        let pairs = Channel { accelerated, ordinary, row: row.max(1), first: c * plane, plane };
        let (scale, shift) = pairs.fit(mode, center);
        (map.scale[c], map.shift[c]) = (scale as f32, shift as f32);
    }
    map
}

/// The pairs of one channel.
struct Channel<'a> {
    accelerated: &'a [f32],
    ordinary: &'a [f32],
    row: usize,
    first: usize,
    plane: usize,
}

impl Channel<'_> {
    /// Accelerated and ordinary elements that are both finite.
    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let rows =
            self.accelerated.chunks_exact(self.row).zip(self.ordinary.chunks_exact(self.row));
        let here = self.first..self.first + self.plane;
        let pairs = rows.flat_map(move |(x, y)| x[here.clone()].iter().zip(&y[here.clone()]));
        pairs
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|(&x, &y)| (f64::from(x), f64::from(y)))
    }

    fn sums<const N: usize>(&self, term: impl Fn(f64, f64) -> [f64; N]) -> [f64; N] {
        let mut sums = [0.0; N];
        self.pairs().for_each(|(x, y)| sums.iter_mut().zip(term(x, y)).for_each(|(s, v)| *s += v));
        sums
    }

    /// Scale and shift.
    fn fit(&self, mode: CompensationMode, center: bool) -> (f64, f64) {
        let [n, x, y, yy] = self.sums(|x, y| [1.0, x, y, y * y]);
        if n == 0.0 {
            return (1.0, 0.0);
        }
        let mean = x / n;
        let target = if center { y / n } else { mean };
        let ratio = match mode {
            CompensationMode::Variance => self.spread(mean, y / n),
            CompensationMode::Regression => {
                let floor = 0.01 * yy / n;
                self.weighted(mean, target, |y| 1.0 + 1.0 / (y * y).max(floor))
            }
            CompensationMode::Mse => self.weighted(mean, target, |_| 1.0),
            CompensationMode::PaperExact => self.printed(mean, target),
        };
        // 0 / 0 where nothing varies
        let scale = if ratio.is_finite() { ratio.clamp(SCALES[0], SCALES[1]) } else { 1.0 };
        let part = (n / ENOUGH).min(1.0);
        let scale = 1.0 + part * (scale - 1.0);
        (scale, mean + part * (target - mean) - scale * mean)
    }

    fn weighted(&self, mean: f64, target: f64, weight: impl Fn(f64) -> f64) -> f64 {
        let [ed, dd] = self.sums(|x, y| {
            let (d, e, w) = (x - mean, y - target, weight(y));
            // a channel of zeros has no relative error
            let w = if w.is_finite() { w } else { 1.0 };
            [w * e * d, w * d * d]
        });
        ed / dd
    }

    fn printed(&self, mean: f64, target: f64) -> f64 {
        let [above, below] = self.sums(|x, y| {
            let (d, e) = (x - mean, y - target);
            let relative = if y == 0.0 { 0.0 } else { d / y };
            [e * d + relative, d * d + relative * relative]
        });
        above / below
    }

    fn spread(&self, mean: f64, ordinary_mean: f64) -> f64 {
        let [dd, ee] = self.sums(|x, y| [(x - mean).powi(2), (y - ordinary_mean).powi(2)]);
        (ee / dd).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [CompensationMode; 4] = [
        CompensationMode::Regression,
        CompensationMode::PaperExact,
        CompensationMode::Mse,
        CompensationMode::Variance,
    ];

    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// A sample as acceleration might make it: wider by `factor`, shifted, and noisy.
    fn drifted(ordinary: &[f32], factor: f32, seed: u64) -> Vec<f32> {
        ordinary
            .iter()
            .zip(noise(ordinary.len(), seed))
            .map(|(y, n)| y * factor + 0.05 + 0.1 * n)
            .collect()
    }

    /// Applies the map to `[rows, channels, plane]`.
    fn apply(map: &Affine, x: &[f32], plane: usize) -> Vec<f32> {
        let channel = |i: usize| i / plane % map.scale.len();
        x.iter()
            .enumerate()
            .map(|(i, x)| map.scale[channel(i)] * x + map.shift[channel(i)])
            .collect()
    }

    #[test]
    fn equal_samples_are_left_alone() {
        let x = noise(8 * 3 * 50, 1);
        for (mode, center) in [
            (CompensationMode::Regression, false),
            (CompensationMode::Mse, true),
            (CompensationMode::Variance, false),
            (CompensationMode::Regression, true),
        ] {
            let map = fit(&x, &x, 3, 50, mode, center);
            assert!(
                apply(&map, &x, 50).iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-6),
                "{mode:?} {map:?}"
            );
        }
    }

    #[test]
    fn regression_is_the_least_of_its_objective() {
        let y = noise(2000, 2);
        let x = drifted(&y, 1.1, 3);
        let n = x.len() as f64;
        let floor = 0.01 * y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / n;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let objective = |k: f64| -> f64 {
            let term = |(&x, &y): (&f32, &f32)| {
                let (x, y) = (f64::from(x), f64::from(y));
                (1.0 + 1.0 / (y * y).max(floor)) * (mean + k * (x - mean) - y).powi(2)
            };
            x.iter().zip(&y).map(term).sum()
        };
        let k = f64::from(fit(&x, &y, 1, 2000, CompensationMode::Regression, false).scale[0]);
        let h = 1e-4;
        let (slope, bend) = (
            objective(k + h) - objective(k - h),
            objective(k + h) + objective(k - h) - 2.0 * objective(k),
        );
        // the scale is an f32: the optimum is within 1e-7 of it
        assert!(bend > 0.0 && (slope * h / (2.0 * bend)).abs() < 1e-6, "{k}: {slope} {bend}");
    }

    #[test]
    fn mse_never_grows_and_variance_is_matched() {
        let y = noise(6 * 4 * 100, 4);
        let x: Vec<f32> = y
            .chunks(100)
            .enumerate()
            .flat_map(|(i, y)| drifted(y, 0.9 + 0.05 * (i % 4) as f32, i as u64))
            .collect();
        let square =
            |a: &[f32]| -> f64 { a.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
        let plain = square(&apply(&fit(&x, &y, 4, 100, CompensationMode::Mse, false), &x, 100));
        let centred = square(&apply(&fit(&x, &y, 4, 100, CompensationMode::Mse, true), &x, 100));
        assert!(centred < plain && plain < square(&x), "{centred} {plain} {}", square(&x));

        let map = fit(&x, &y, 4, 100, CompensationMode::Variance, true);
        let fixed = apply(&map, &x, 100);
        for c in 0..4 {
            let of = |v: &[f32]| -> Vec<f64> {
                v.chunks(100).skip(c).step_by(4).flatten().map(|&v| f64::from(v)).collect()
            };
            let moments = |v: Vec<f64>| {
                let mean = v.iter().sum::<f64>() / v.len() as f64;
                (mean, v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / v.len() as f64)
            };
            let ((m, v), (m2, v2)) = (moments(of(&fixed)), moments(of(&y)));
            assert!((m - m2).abs() < 1e-6 && (v / v2 - 1.0).abs() < 1e-5);
        }
    }

    /// The formulas of the modes on four elements, by hand: μ = 0, so that A without τ and B agree.
    #[test]
    fn the_printed_formula_is_the_optimum_around_zero() {
        let (x, y) = ([1.0, -1.0, 2.0, -2.0].repeat(16), [1.1, -1.1, 2.0, -2.0].repeat(16));
        // Σ e·d = 2 · (1.1 + 4), Σ d/x′ = 2 · (1/1.1 + 1), Σ d² = 10, Σ d²/x′² = 2 · (1/1.21 + 1)
        let k = (10.2 + 2.0 * (1.0 / 1.1 + 1.0)) / (10.0 + 2.0 * (1.0 / 1.21 + 1.0));
        for mode in [CompensationMode::PaperExact, CompensationMode::Regression] {
            let map = fit(&x, &y, 1, 4, mode, false);
            assert!(
                (f64::from(map.scale[0]) - k).abs() < 1e-6 && map.shift[0].abs() < 1e-6,
                "{mode:?} {map:?} {k}"
            );
        }
    }

    #[test]
    fn scales_are_bounded_and_small_samples_count_in_part() {
        let y: Vec<f32> = noise(640, 5);
        let x: Vec<f32> = y.iter().map(|y| 3.0 * y).collect();
        assert_eq!(fit(&x, &y, 1, 64, CompensationMode::Mse, false).scale, [0.8]);
        assert_eq!(fit(&y, &x, 1, 64, CompensationMode::Mse, false).scale, [1.25]);
        // 1 + 0.25 · 16 / 64
        assert_eq!(fit(&y[..16], &x[..16], 1, 16, CompensationMode::Mse, false).scale, [1.0625]);
    }

    #[test]
    fn degenerate_channels_keep_their_scale() {
        for mode in MODES {
            assert_eq!(fit(&[], &[], 2, 3, mode, true), Affine::identity(2));
            let constant = fit(&[2.0; 128], &[0.0; 128], 2, 64, mode, true);
            assert_eq!(
                constant,
                Affine { scale: vec![1.0; 2], shift: vec![-2.0; 2], previous: vec![] }
            );
            let (mut x, y) = (noise(128, 6), noise(128, 7));
            x[5] = f32::NAN;
            assert!(fit(&x, &y, 1, 128, mode, false).scale[0].is_finite());
            let nothing = fit(&[f32::NAN; 64], &[1.0; 64], 1, 64, mode, false);
            assert_eq!(nothing, Affine::identity(1));
        }
    }

    /// A correction folded into the sampler: p·x + q·eps + r·z, corrected, is the update with p, q
    /// and r times the scale, plus the shift.
    #[test]
    fn the_map_folds_into_the_samplers_update() {
        let (x, eps, z) = (noise(100, 8), noise(100, 9), noise(100, 10));
        let (p, q, r, k, b) = (0.98f32, -0.3, 0.1, 1.07, -0.02);
        for ((x, eps), z) in x.iter().zip(&eps).zip(&z) {
            let explicit = k * (p * x + q * eps + r * z) + b;
            let folded = (k * p) * x + (k * q) * eps + (k * r) * z + b;
            assert!((explicit - folded).abs() < 1e-6);
        }
    }
}
