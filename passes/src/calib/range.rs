//! Finds the range that a quantizer covers, as CacheQuant's code does: of 40 shrunken copies of the
//! extremes, the one whose rounding error has the smallest 2.4-norm. Ranges contain zero both when
//! they are scored and when they are used (CacheQuant's code scores and stores different ranges).

use super::histogram::Histogram;
use super::rounding::{errors, integral, nearest};

/// Number of factors that are tried: 1, 0.98, … 0.22.
const FACTORS: usize = 40;

/// The scale of a tensor of zeros, for which any scale would do.
const SCALE_OF_ZEROS: f64 = 1e-8;

/// The smallest scale of other tensors: the least f32 whose inverse, by which kernels multiply, is
/// finite and exact to the last digit. Only tensors of values below 1e-36 reach it.
const SMALLEST_SCALE: f64 = f32::MIN_POSITIVE as f64;

/// The scale of a range of this width with this number of levels.
fn scale_of(width: f64, levels: f64) -> f64 {
    if width == 0.0 { SCALE_OF_ZEROS } else { (width / levels).max(SMALLEST_SCALE) }
}

/// The range of values that an asymmetric quantizer covers: `low` ≤ 0 ≤ `high`, both finite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClippingRange {
    /// The lower end, not above zero.
    pub low: f32,
    /// The upper end, not below zero.
    pub high: f32,
}

impl ClippingRange {
    /// The range from `low` to `high`, extended to zero. NaN counts as zero, infinity as the
    /// largest number.
    pub fn new(low: f32, high: f32) -> ClippingRange {
        let end = |x: f32, from, to| if x.is_nan() { 0.0 } else { x.clamp(from, to) };
        ClippingRange { low: end(low, f32::MIN, 0.0), high: end(high, 0.0, f32::MAX) }
    }

    /// Scale and zero point of a quantizer of `bits` ≤ 8 bits: `x ≈ (q − zero) · scale` with `q =
    /// clamp(round(x / scale) + zero, 0, 2^bits − 1)`. The scale is never zero; it is relative to the
    /// width of the range, however small that is.
    ///
    /// A range that begins or ends with zero has the zero point 0 or 2^bits − 1. The range of a
    /// constant tensor is one of these, and its value is the last level.
    pub fn parameters(&self, bits: u32) -> (f32, u8) {
        let ClippingRange { low, high } = ClippingRange::new(self.low, self.high);
        let levels = levels(bits);
        let scale = scale_of(f64::from(high) - f64::from(low), levels);
        (scale as f32, (-f64::from(low) / scale).round_ties_even().clamp(0.0, levels) as u8)
    }

    /// The smallest range that covers both.
    pub fn union(self, other: ClippingRange) -> ClippingRange {
        ClippingRange { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// The range whose ends are the means of the ends; zero for no ranges. Scale and zero point are
    /// derived from it, because averages of scales and zero points would belong to no range.
    pub fn averaged(ranges: &[ClippingRange]) -> ClippingRange {
        let mean = |end: fn(&ClippingRange) -> f32| {
            ranges.iter().map(|r| f64::from(end(r))).sum::<f64>() / ranges.len().max(1) as f64
        };
        ClippingRange::new(mean(|r| r.low) as f32, mean(|r| r.high) as f32)
    }

    /// The `i`-th candidate, with both ends nearer to zero.
    fn shrunk(self, i: usize) -> ClippingRange {
        ClippingRange {
            low: (f64::from(self.low) * factor(i)) as f32,
            high: (f64::from(self.high) * factor(i)) as f32,
        }
    }
}

/// The range with which `bits` ≤ 8 bits round the counted values best. Values are assumed to be
/// spread evenly within their bin. Wider ranges win ties. Without values the range is zero.
///
/// It takes O(bins), because the mean of |error|^2.4 over a bin has a closed form.
pub fn search(histogram: &Histogram, bits: u32) -> ClippingRange {
    let Some((min, max)) = histogram.extremes() else { return ClippingRange::default() };
    let bins: Vec<_> = histogram.bins().collect();
    best(ClippingRange::new(min, max), |range| sum_of_bins(&bins, range, bits))
}

/// The same as [`search`], on the values themselves. Values that are not finite are ignored.
pub fn search_exact(values: &[f32], bits: u32) -> ClippingRange {
    let finite = || values.iter().filter(|x| x.is_finite());
    let whole = ClippingRange::new(
        finite().fold(0.0, |a, &b| a.min(b)),
        finite().fold(0.0, |a, &b| a.max(b)),
    );
    best(whole, |range| loss_exact(values, range, bits))
}

/// The mean of |error|^2.4 of the counted values, rounded with `bits` ≤ 8 bits over `range`; zero
/// without values.
pub fn loss(histogram: &Histogram, range: ClippingRange, bits: u32) -> f64 {
    let bins: Vec<_> = histogram.bins().collect();
    sum_of_bins(&bins, range, bits) / histogram.finite().max(1) as f64
}

/// Σ |error|^2.4 over bins, which are given by low end, high end and count.
fn sum_of_bins(bins: &[(f64, f64, u64)], range: ClippingRange, bits: u32) -> f64 {
    let (scale, zero) = range.parameters(bits);
    let (scale, zero, levels) = (f64::from(scale), f64::from(zero), levels(bits));
    // most bins begin where the one before ended
    let mut known = (f64::NAN, 0.0);
    let bin = |&(low, high, count): &(f64, f64, u64)| {
        let (a, b) = (low / scale + zero, high / scale + zero);
        let before = if low == known.0 { known.1 } else { integral(a, levels) };
        known = (high, integral(b, levels));
        let mean = match b - a < 1e-9 {
            true => (a - nearest(a, levels)).abs().powf(2.4),
            false => ((known.1 - before) / (b - a)).max(0.0),
        };
        count as f64 * mean
    };
    bins.iter().map(bin).sum::<f64>() * scale.powf(2.4)
}

/// The same as [`loss`], on the values themselves. Values that are not finite count as exact.
pub fn loss_exact(values: &[f32], range: ClippingRange, bits: u32) -> f64 {
    let (scale, zero) = range.parameters(bits);
    let sum = errors(values, scale, f32::from(zero), [0.0, levels(bits) as f32]);
    sum * f64::from(scale).powf(2.4) / values.len().max(1) as f64
}

/// The scale, never zero, with which the levels −(2^(bits−1) − 1) … 2^(bits−1) − 1 round the
/// weights of an output channel best, for `bits` from 2 to 8. The largest scale wins ties. Values
/// that are not finite are ignored.
pub fn symmetric_scale(weights: &[f32], bits: u32) -> f32 {
    let last = f64::from((1i32 << (bits.clamp(2, 8) - 1)) - 1);
    let largest = weights.iter().filter(|w| w.is_finite()).fold(0.0, |a: f32, w| a.max(w.abs()));
    let scale = |i| scale_of(f64::from(largest) * factor(i), last) as f32;
    let ends = [-last as f32, last as f32];
    let loss = |scale: f32| errors(weights, scale, 0.0, ends) * f64::from(scale).powf(2.4);
    first_least((0..FACTORS).map(scale), loss).unwrap_or(SCALE_OF_ZEROS as f32)
}

fn best(whole: ClippingRange, loss: impl Fn(ClippingRange) -> f64) -> ClippingRange {
    first_least((0..FACTORS).map(|i| whole.shrunk(i)), loss).unwrap_or(whole)
}

fn first_least<T: Copy>(candidates: impl Iterator<Item = T>, loss: impl Fn(T) -> f64) -> Option<T> {
    let scored = candidates.map(|candidate| (candidate, loss(candidate)));
    scored.reduce(|best, next| if next.1 < best.1 { next } else { best }).map(|best| best.0)
}

fn factor(i: usize) -> f64 {
    1.0 - 0.02 * i as f64
}

fn levels(bits: u32) -> f64 {
    f64::from((1i32 << bits.clamp(1, 8)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal noise from sums of twelve uniform numbers of a linear congruential generator.
    fn normal(n: usize, mut seed: u64) -> Vec<f32> {
        let mut uniform = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 24) as f32
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    fn histogram(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.add(values);
        histogram
    }

    fn silu(x: &f32) -> f32 {
        x / (1.0 + (-x).exp())
    }

    #[test]
    fn histogram_search_is_as_good_as_the_exact_one() {
        let gauss = normal(60_000, 1);
        let samples: [(&str, Vec<f32>); 6] = [
            ("normal", gauss.clone()),
            ("heavy tails", gauss.iter().map(|x| x * x * x).collect()),
            ("silu", gauss.iter().map(|x| silu(&(2.0 * x))).collect()),
            ("relu", gauss.iter().map(|x| x.max(0.0)).collect()),
            ("softmax", gauss.iter().map(|x| (3.0 * x).exp() / 60_000.0).collect()),
            ("one outlier", gauss.iter().copied().chain([60.0]).collect()),
        ];
        for (name, values) in &samples {
            for bits in [4, 6, 8] {
                let counted = histogram(values);
                let (found, exact) = (search(&counted, bits), search_exact(values, bits));
                let (a, b) = (loss_exact(values, found, bits), loss_exact(values, exact, bits));
                assert!(a <= 1.01 * b, "{name}, {bits} bits: {found:?} loses {a}, {exact:?} {b}");
            }
        }
    }

    #[test]
    fn one_sided_and_constant_tensors_keep_their_ends_exact() {
        assert_eq!(search(&histogram(&[0.0, 1.0, 2.0, 3.0]), 8).parameters(8).1, 0);
        assert_eq!(search_exact(&[-1.0, -2.0, 0.0], 8).parameters(8).1, 255);
        for x in [3.0f32, -3.0, 1e-3, -1e30] {
            for range in [search(&histogram(&[x; 9]), 8), search_exact(&[x; 9], 8)] {
                let (scale, zero) = range.parameters(8);
                let q = ((x / scale).round() + f32::from(zero)).clamp(0.0, 255.0);
                assert!(
                    ((q - f32::from(zero)) * scale - x).abs() <= 1e-6 * x.abs(),
                    "{x} {range:?}"
                );
            }
        }
    }

    #[test]
    fn degenerate_tensors_have_a_range() {
        for values in [&[][..], &[0.0; 5], &[f32::NAN, f32::INFINITY]] {
            for range in [search(&histogram(values), 8), search_exact(values, 8)] {
                assert_eq!((range, range.parameters(8)), (ClippingRange::default(), (1e-8, 0)));
            }
            assert_eq!(symmetric_scale(values, 4), 1e-8);
        }
        let huge = [f32::MAX, f32::MIN];
        assert!(search(&histogram(&huge), 8).parameters(8).0.is_finite());
        assert!(
            search_exact(&huge, 8).parameters(8).0.is_finite()
                && symmetric_scale(&huge, 8).is_finite()
        );
        assert_eq!(
            ClippingRange::new(f32::NAN, f32::INFINITY),
            ClippingRange { low: 0.0, high: f32::MAX }
        );
    }

    /// A power of two changes the exponents only, so every range is that of the larger tensor times
    /// that power.
    #[test]
    fn scales_are_relative_to_the_magnitude() {
        let large = normal(2000, 5);
        for exponent in [-20, -60, -100] {
            let factor = 2f32.powi(exponent);
            let small: Vec<f32> = large.iter().map(|x| x * factor).collect();
            for bits in [4, 8] {
                let scale = symmetric_scale(&large, bits);
                assert_eq!(symmetric_scale(&small, bits), scale * factor, "2^{exponent}");
                let (scale, zero) = search_exact(&large, bits).parameters(bits);
                let found = search_exact(&small, bits).parameters(bits);
                assert_eq!(found, (scale * factor, zero), "2^{exponent}");
                let (scale, zero) = search(&histogram(&large), bits).parameters(bits);
                let found = search(&histogram(&small), bits).parameters(bits);
                assert!(
                    (found.0 / (scale * factor) - 1.0).abs() < 0.05 && found.1.abs_diff(zero) < 4,
                    "2^{exponent}: {found:?}, {scale} {zero}"
                );
            }
        }
        // subnormal numbers: the inverse of the scale is finite
        let least = symmetric_scale(&[1e-42], 8);
        assert!(least > 0.0 && (1.0 / least).is_finite());
    }

    #[test]
    fn symmetric_scales_are_best_of_the_forty() {
        let weights: Vec<f32> = normal(3000, 4).iter().map(|x| 0.01 * x * x.abs()).collect();
        let largest = weights.iter().fold(0.0, |a: f32, w| a.max(w.abs()));
        for (bits, last) in [(4, 7.0), (8, 127.0)] {
            let loss = |scale: f32| -> f64 {
                let error = |w: &f32| {
                    f64::from(w - (w / scale).round_ties_even().clamp(-last, last) * scale)
                        .abs()
                        .powf(2.4)
                };
                weights.iter().map(error).sum()
            };
            let all = (0..40).map(|i| loss(largest * (1.0 - 0.02 * i as f32) / last));
            let least = all.fold(f64::INFINITY, f64::min);
            assert!(loss(symmetric_scale(&weights, bits)) <= 1.0001 * least);
        }
        // on the grid already: nothing is lost, and the widest wins
        assert_eq!(symmetric_scale(&[-7.0, 3.0, 0.0, 1.0], 4), 1.0);
    }

    #[test]
    fn ranges_average_by_their_ends() {
        let ranges = [ClippingRange::new(-1.0, 2.0), ClippingRange::new(-3.0, 6.0)];
        assert_eq!(ClippingRange::averaged(&ranges), ClippingRange::new(-2.0, 4.0));
        assert_eq!(ClippingRange::averaged(&[]), ClippingRange::default());
        assert_eq!(ranges[0].union(ranges[1]), ranges[1]);
        // −2 / (6 / 255) = −85
        assert_eq!(ClippingRange::averaged(&ranges).parameters(8), (6.0 / 255.0, 85));
    }
}
