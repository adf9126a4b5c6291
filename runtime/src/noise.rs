//! Normal noise from a seed, with one stream per sample.
//!
//! Sample `n` of seed `s` draws from ChaCha20. The first eight bytes of the key are `s` (little
//! endian), and the other 24 are zero. The 64-bit nonce is `n`, and the block counter starts at 0.
//! Two consecutive 64-bit words `a`, `b` of the stream give two values by the Box-Muller transform,
//! which is computed in f64 and rounded to f32:
//!
//! ```text
//! u = ((a >> 11) + 1) / 2^53        in (0, 1], so that its logarithm is finite
//! v = (b >> 11) / 2^53              in [0, 1)
//! √(−2 ln u) · cos(2π v),   √(−2 ln u) · sin(2π v)
//! ```
//!
//! Every [`Noise::fill`] begins with a fresh pair of words, so an odd length drops one value. The
//! first fill gives the initial sample, and each noisy step takes one more. A sample is therefore
//! the same for any batch, shard and number of threads. The words are the same on every machine.
//! The values may differ in the last bits, with the machine's `ln`, `sin` and `cos`.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::f64::consts::TAU;

/// The noise of consecutive samples.
#[derive(Clone, Debug)]
pub struct Noise {
    streams: Vec<ChaCha20Rng>,
}

impl Noise {
    /// The noise of the samples `first` to `first + samples − 1` of `seed`. A shard begins where
    /// the one before it ends.
    pub fn new(seed: u64, first: u64, samples: usize) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let stream = |n| {
            let mut stream = ChaCha20Rng::from_seed(key);
            stream.set_stream(first.wrapping_add(n));
            stream
        };
        Self { streams: (0..samples as u64).map(stream).collect() }
    }

    /// Fills `out`, `[samples, len]`, with normal noise of mean 0 and variance 1.
    ///
    /// # Panics
    /// If the length of `out` is not a multiple of the number of samples.
    pub fn fill(&mut self, out: &mut [f32]) {
        let len = out.len().checked_div(self.streams.len()).unwrap_or(0);
        assert_eq!(out.len(), len * self.streams.len(), "every sample gets as many values");
        for (stream, out) in self.streams.iter_mut().zip(out.chunks_exact_mut(len.max(1))) {
            out.chunks_mut(2).for_each(|out| out.copy_from_slice(&pair(stream)[..out.len()]));
        }
    }
}

fn pair(stream: &mut ChaCha20Rng) -> [f32; 2] {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let u = ((stream.next_u64() >> 11) + 1) as f64 * UNIT;
    let v = (stream.next_u64() >> 11) as f64 * UNIT;
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = (TAU * v).sin_cos();
    [(radius * cos) as f32, (radius * sin) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(seed: u64, first: u64, samples: usize, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; samples * len];
        Noise::new(seed, first, samples).fill(&mut out);
        out
    }

    /// Values from another implementation of ChaCha20 and of the formula above, in Python. The
    /// tolerance of 1e-6 allows for the rounding of `ln`, `sin` and `cos`.
    #[test]
    fn values_are_the_documented_ones() {
        let expected = [
            (0, 0, [0.57882065, 0.90129745, 0.36552662, -2.090554], [1.1543478, 0.38234904]),
            (0, 1, [-0.18898046, -0.0010839406, 0.2987653, 0.8385131], [0.67131954, -0.52438265]),
            (
                1 << 63 | 5,
                1_000_000,
                [0.7082654, -1.0772098, -0.3219708, 0.18025413],
                [-0.032849208, -0.8860084],
            ),
        ];
        for (seed, sample, start, second_block) in expected {
            let values = filled(seed, sample, 1, 10);
            let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(
                near(&values[..4], &start) && near(&values[8..], &second_block),
                "{seed} {sample}: {values:?}"
            );
        }
    }

    #[test]
    fn a_sample_is_the_same_in_every_batch() {
        let all = filled(7, 0, 5, 3);
        assert_eq!(all[6..12], filled(7, 2, 2, 3));
        assert_ne!(all[..3], all[3..6]);
        assert_ne!(all, filled(8, 0, 5, 3));
    }

    #[test]
    fn a_second_fill_goes_on_with_a_fresh_pair() {
        let mut noise = Noise::new(7, 0, 1);
        let (mut first, mut second) = ([0.0; 3], [0.0; 2]);
        noise.fill(&mut first);
        noise.fill(&mut second);
        let together = filled(7, 0, 1, 6);
        assert_eq!((&first[..], &second[..]), (&together[..3], &together[4..]));
    }

    #[test]
    fn mean_and_variance_are_those_of_a_unit_normal() {
        let values = filled(1, 0, 4, 50_000);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        let square =
            values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64;
        // for 200,000 values the standard errors are 0.0022 and 0.0032; the bounds are four of each
        assert!(mean.abs() < 0.009 && (square - 1.0).abs() < 0.013, "mean {mean}, square {square}");
    }
}
