//! The range that a quantizer covers (CacheQuant section 5.2): of 40 shrunken copies of the extremes, the one that rounds with the
//! smallest 2.4-norm. Ranges contain zero, when they are scored and when they are used (its ruling 5).

use super::histogram::Histogram;

/// Factors that are tried: 1, 0.98, … 0.22.
const FACTORS: usize = 40;

/// No scale is smaller.
const SMALLEST_SCALE: f64 = 1e-8;

/// What an asymmetric quantizer covers; `low` ≤ 0 ≤ `high`, both finite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// Not above zero.
    pub low: f32,
    /// Not below zero.
    pub high: f32,
}

impl Range {
    /// From `low` to `high` and zero. NaN counts as zero, infinity as the largest number.
    pub fn new(low: f32, high: f32) -> Range {
        // `min` and `max` prefer the other operand to NaN
        Range { low: low.min(0.0).max(f32::MIN), high: high.max(0.0).min(f32::MAX) }
    }

    /// Scale (at least 1e-8) and zero point of `bits` ≤ 8 bits: `x ≈ (q − zero) · scale`, `q = clamp(round(x / scale) + zero, 0, 2^bits − 1)`.
    ///
    /// A range that begins or ends with zero has zero point 0 or 2^bits − 1. A constant tensor is one: its value is the last level,
    /// so that the specification's rule for constants (which clips negative ones) is not needed.
    pub fn parameters(&self, bits: u32) -> (f32, u8) {
        let Range { low, high } = Range::new(self.low, self.high);
        let levels = levels(bits);
        let scale = ((f64::from(high) - f64::from(low)) / levels).max(SMALLEST_SCALE);
        (scale as f32, (-f64::from(low) / scale).round_ties_even().clamp(0.0, levels) as u8)
    }

    /// The smallest range that covers both.
    pub fn union(self, other: Range) -> Range {
        Range { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// Mean of the ends (ruling 6: scale and zero point are derived from it, not averaged themselves); of nothing, zero.
    pub fn averaged(ranges: &[Range]) -> Range {
        let mean =
            |end: fn(&Range) -> f32| ranges.iter().map(|r| f64::from(end(r))).sum::<f64>() / ranges.len().max(1) as f64;
        Range::new(mean(|r| r.low) as f32, mean(|r| r.high) as f32)
    }

    /// With both ends nearer to zero: the `i`-th of the candidates.
    fn shrunk(self, i: usize) -> Range {
        Range { low: (f64::from(self.low) * factor(i)) as f32, high: (f64::from(self.high) * factor(i)) as f32 }
    }
}

/// The range with which `bits` ≤ 8 bits round what was counted best; values are taken to be spread evenly within their bin. Wider
/// ones win ties. Of nothing: zero.
///
/// O(bins): the mean of |error|^2.4 over a bin has a closed form.
pub fn search(histogram: &Histogram, bits: u32) -> Range {
    let Some((min, max)) = histogram.extremes() else { return Range::default() };
    best(Range::new(min, max), |range| loss(histogram, range, bits))
}

/// As [`search`], of the values themselves. What is not finite is ignored.
pub fn search_exact(values: &[f32], bits: u32) -> Range {
    let finite = || values.iter().filter(|x| x.is_finite());
    let whole = Range::new(finite().fold(0.0, |a, &b| a.min(b)), finite().fold(0.0, |a, &b| a.max(b)));
    best(whole, |range| loss_exact(values, range, bits))
}

/// Mean of |error|^2.4 over what was counted, rounded with `bits` ≤ 8 bits over `range`; of nothing, zero.
pub fn loss(histogram: &Histogram, range: Range, bits: u32) -> f64 {
    let (scale, zero) = range.parameters(bits);
    let (scale, zero, levels) = (f64::from(scale), f64::from(zero), levels(bits));
    let bin = |(low, high, count)| count as f64 * mean_error(low / scale + zero, high / scale + zero, levels);
    let sum: f64 = histogram.bins().map(bin).sum();
    sum * scale.powf(2.4) / histogram.finite().max(1) as f64
}

/// As [`loss`], of the values themselves. What is not finite counts as exact.
pub fn loss_exact(values: &[f32], range: Range, bits: u32) -> f64 {
    let (scale, zero) = range.parameters(bits);
    let sum = errors(values, scale, f32::from(zero), [0.0, levels(bits) as f32]);
    sum * f64::from(scale).powf(2.4) / values.len().max(1) as f64
}

/// The scale (at least 1e-8) with which the levels −(2^(bits−1) − 1) … 2^(bits−1) − 1, `bits` from 2 to 8, round the weights of an
/// output channel best; the largest wins ties. What is not finite is ignored.
pub fn symmetric_scale(weights: &[f32], bits: u32) -> f32 {
    let last = f64::from((1i32 << (bits.clamp(2, 8) - 1)) - 1);
    let largest = weights.iter().filter(|w| w.is_finite()).fold(0.0, |a: f32, w| a.max(w.abs()));
    let scale = |i| (f64::from(largest) * factor(i) / last).max(SMALLEST_SCALE) as f32;
    let ends = [-last as f32, last as f32];
    let loss = |scale: f32| errors(weights, scale, 0.0, ends) * f64::from(scale).powf(2.4);
    first_least((0..FACTORS).map(scale), loss).unwrap_or(SMALLEST_SCALE as f32)
}

fn best(whole: Range, loss: impl Fn(Range) -> f64) -> Range {
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

/// Mean of |u − round(u)|^2.4 for `u` spread evenly from `a` to `b`, where round clamps to 0 … `levels`.
fn mean_error(a: f64, b: f64, levels: f64) -> f64 {
    if b - a < 1e-9 {
        let u = (a + b) / 2.0;
        return (u - nearest(u, levels)).abs().powf(2.4);
    }
    ((integral(b, levels) - integral(a, levels)) / (b - a)).max(0.0)
}

/// Integral of |u − round(u)|^2.4 from 0 to `u`: a whole valley per level passed, and part of one.
fn integral(u: f64, levels: f64) -> f64 {
    const VALLEY: f64 = 0.055_722_687_617_332_525; // 2 · 0.5^3.4 / 3.4
    let level = nearest(u, levels);
    let (d, away) = ((u - level).abs(), (u - level).signum());
    level * VALLEY + away * d * f64::from(power(d as f32)) / 3.4
}

/// The nearest level, half to even.
fn nearest(u: f64, levels: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52: no fraction is left next to it
    (u.clamp(0.0, levels) + ROUND) - ROUND
}

/// Σ |x / scale + zero − level|^2.4 with the nearest level between the ends: in f32 over a few values, in f64 over all.
fn errors(values: &[f32], scale: f32, zero: f32, [first, last]: [f32; 2]) -> f64 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const LANES: usize = 16;
    let per_scale = 1.0 / scale;
    let error = |x: f32| {
        let u = if x.is_finite() { x * per_scale + zero } else { zero };
        power((u - ((u.clamp(first, last) + ROUND) - ROUND)).abs())
    };
    let block = |values: &[f32]| {
        let mut sums = [0f32; LANES];
        let lanes = values.chunks_exact(LANES);
        lanes.remainder().iter().zip(&mut sums).for_each(|(&x, sum)| *sum += error(x));
        lanes.for_each(|values| sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum += error(x)));
        sums.into_iter().map(f64::from).sum::<f64>()
    };
    values.chunks(64 * LANES).map(block).sum()
}

/// x^2.4 for 0 ≤ x < 2^40, to 1e-6 of it, as (x · x^(−1/5))³: multiplications only, so it vectorises and is the same on every machine.
#[inline(always)]
fn power(x: f32) -> f32 {
    // an exponent divided by −5 is right to a few percent, each step of Newton's then squares three times the error
    let mut root = f32::from_bits(0x4c30_a3d7 - x.to_bits() / 5);
    for _ in 0..3 {
        let square = root * root;
        root *= 1.2 - 0.2 * (x * root) * (square * square);
    }
    let y = x * root;
    y * y * y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal noise by twelve uniform numbers, from a linear congruence.
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
    fn power_is_x_to_the_2_4() {
        for i in 0..200_000 {
            let x = (i as f32 - 100_000.0).mul_add(2e-4, 0.0).exp2();
            let exact = f64::from(x).powf(2.4);
            assert!((f64::from(power(x)) - exact).abs() <= 1e-6 * exact + 1e-37, "{x}: {} {exact}", power(x));
        }
        assert_eq!(power(0.0), 0.0);
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
                println!(
                    "{name}, {bits} bits: {found:?} {exact:?}, loss {a:.4e}, exact {b:.4e}, estimated {:.4e}",
                    loss(&counted, found, bits)
                );
                assert!(a <= 1.01 * b, "{name}, {bits} bits: {found:?} loses {a}, {exact:?} {b}");
            }
        }
    }

    #[test]
    fn the_closed_form_is_the_mean_over_the_bin() {
        for (a, b) in [(0.1, 0.2), (-3.0, -2.5), (2.3, 9.9), (250.0, 270.0), (-1.0, 300.0), (7.4, 7.6)] {
            let n = 100_000;
            let u = |i: usize| a + (b - a) * (i as f64 + 0.5) / n as f64;
            let mean = (0..n).map(|i| (u(i) - nearest(u(i), 255.0)).abs().powf(2.4)).sum::<f64>() / n as f64;
            assert!((mean_error(a, b, 255.0) - mean).abs() < 1e-5 * mean, "{a} to {b}");
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
                assert!(((q - f32::from(zero)) * scale - x).abs() <= 1e-6 * x.abs(), "{x} {range:?}");
            }
        }
    }

    #[test]
    fn degenerate_tensors_have_a_range() {
        for values in [&[][..], &[0.0; 5], &[f32::NAN, f32::INFINITY]] {
            for range in [search(&histogram(values), 8), search_exact(values, 8)] {
                assert_eq!((range, range.parameters(8)), (Range::default(), (1e-8, 0)));
            }
            assert_eq!(symmetric_scale(values, 4), 1e-8);
        }
        let huge = [f32::MAX, f32::MIN];
        assert!(search(&histogram(&huge), 8).parameters(8).0.is_finite());
        assert!(search_exact(&huge, 8).parameters(8).0.is_finite() && symmetric_scale(&huge, 8).is_finite());
        assert_eq!(Range::new(f32::NAN, f32::INFINITY), Range { low: 0.0, high: f32::MAX });
    }

    #[test]
    fn symmetric_scales_are_best_of_the_forty() {
        let weights: Vec<f32> = normal(3000, 4).iter().map(|x| 0.01 * x * x.abs()).collect();
        let largest = weights.iter().fold(0.0, |a: f32, w| a.max(w.abs()));
        for (bits, last) in [(4, 7.0), (8, 127.0)] {
            let loss = |scale: f32| -> f64 {
                let error =
                    |w: &f32| f64::from(w - (w / scale).round_ties_even().clamp(-last, last) * scale).abs().powf(2.4);
                weights.iter().map(error).sum()
            };
            let all = (0..40).map(|i| loss(largest * (1.0 - 0.02 * i as f32) / last));
            let least = all.fold(f64::INFINITY, f64::min);
            assert!(loss(symmetric_scale(&weights, bits)) <= 1.0001 * least);
        }
        // on the grid already: nothing is lost, the widest wins
        assert_eq!(symmetric_scale(&[-7.0, 3.0, 0.0, 1.0], 4), 1.0);
    }

    #[test]
    fn ranges_average_by_their_ends() {
        let ranges = [Range::new(-1.0, 2.0), Range::new(-3.0, 6.0)];
        assert_eq!(Range::averaged(&ranges), Range::new(-2.0, 4.0));
        assert_eq!(Range::averaged(&[]), Range::default());
        assert_eq!(ranges[0].union(ranges[1]), ranges[1]);
        // −2 / (6 / 255) = −85
        assert_eq!(Range::averaged(&ranges).parameters(8), (6.0 / 255.0, 85));
    }

    /// `cargo test -p cqc-passes --release range_speed -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn range_speed() {
        let values = normal(1 << 18, 3);
        let counted = histogram(&values);
        let time = |name: &str, work: &dyn Fn()| {
            let mut times: Vec<f64> = (0..9)
                .map(|_| {
                    let start = std::time::Instant::now();
                    work();
                    start.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!("{name}: median {:.2} ms, {:.2} to {:.2}", times[4], times[0], times[8]);
        };
        time("search", &|| drop(std::hint::black_box(search(&counted, 8))));
        time("search_exact of 2^18", &|| drop(std::hint::black_box(search_exact(&values, 8))));
        time("symmetric_scale of 2^18", &|| drop(std::hint::black_box(symmetric_scale(&values, 4))));
    }
}
