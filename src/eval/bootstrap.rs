//! Confidence intervals of means, by resampling.

/// Number of resamples of [`interval`].
const RESAMPLES: usize = 1000;

/// The 95 % interval of the mean of `values`: the 2.5th and the 97.5th percentile of the means of
/// 1000 resamples, which are drawn from `seed`.
///
/// It is NaN without values. It takes O(1000 · values) time.
pub fn interval(values: &[f64], seed: u64) -> [f64; 2] {
    let mut state = seed;
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| resampled_mean(values, &mut state)).collect();
    means.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|share| percentile(&means, share))
}

fn resampled_mean(values: &[f64], state: &mut u64) -> f64 {
    let n = values.len() as u128;
    let draw = |_| values[((u128::from(splitmix64(state)) * n) >> 64) as usize];
    (0..values.len()).map(draw).sum::<f64>() / values.len() as f64
}

/// A percentile, interpolated linearly between the two nearest ranks, as numpy does.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// <https://prng.di.unimi.it/splitmix64.c>
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::numbers;

    #[test]
    fn the_generator_is_the_published_one() {
        let mut state = 1234567;
        assert_eq!(splitmix64(&mut state), 6457827717110365317);
        assert_eq!(splitmix64(&mut state), 3203168211198807973);
    }

    #[test]
    fn the_interval_is_about_two_standard_errors_each_way() {
        let values: Vec<f64> = numbers(5, 400).into_iter().map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / 400.0;
        let error = (1.0f64 / 12.0 / 400.0).sqrt();
        let [low, high] = interval(&values, 0);
        for (bound, expected) in [(mean - low, 1.96 * error), (high - mean, 1.96 * error)] {
            assert!((bound / expected - 1.0).abs() < 0.15, "{bound} {expected}"); // 1000 resamples: percentiles to some 5 %
        }
        assert_eq!(interval(&values, 0), [low, high]);
        assert_ne!(interval(&values, 1), [low, high]);
        assert_eq!(interval(&[3.0], 0), [3.0, 3.0]);
        assert!(interval(&[], 0)[0].is_nan());
    }
}
