//! Figures of quality: of images against reference images, and of a set of features against
//! another.
//!
//! Everything is summed in f64 and in the order of the samples, so that figures depend on the
//! samples alone, not on batches and shards. Features and logits are given as rows `[n,
//! dimensions]` without gaps.

pub mod bootstrap;
pub mod frechet;
pub mod inception;
pub mod precision_recall;
pub mod psnr;
pub mod ssim;

#[cfg(test)]
mod testing {
    /// The numbers of `tests/golden/make_metric_goldens.py`: in [-0.5, 0.5), exact in f32.
    pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..count).map(next).collect()
    }

    /// Asserts `|found - expected| ≤ 1e-10 · |expected|`, for the same f64 sums in another order.
    pub fn assert_near(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-10 * expected.abs().max(1e-3),
            "{found} instead of {expected}"
        );
    }
}
