//! Selects the samples of a pool on which quantization ranges are found.

mod kmeans;
mod spectral;
mod tap;
mod tdac;

pub use tap::Tap;
pub use tdac::Tdac;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A pool of rows of equal length, each with the evaluation to which it belongs.
#[derive(Clone, Copy, Debug)]
pub struct SamplePool<'a> {
    rows: &'a [f32],
    length: usize,
    evaluations: &'a [usize],
}

impl<'a> SamplePool<'a> {
    /// A pool of `rows`, `[rows, length]`. `evaluations` has the evaluation of each row.
    ///
    /// # Panics
    /// If the number of values is no multiple of the number of evaluations.
    pub fn new(rows: &'a [f32], evaluations: &'a [usize]) -> SamplePool<'a> {
        let length = rows.len().checked_div(evaluations.len()).unwrap_or(0);
        assert_eq!(rows.len(), length * evaluations.len(), "an evaluation per row");
        SamplePool { rows, length, evaluations }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.evaluations.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.evaluations.is_empty()
    }

    /// Row `i`.
    fn row(&self, i: usize) -> &'a [f32] {
        &self.rows[i * self.length..][..self.length]
    }

    /// Indices of the rows of every evaluation, from 0 to the last one in the pool.
    fn by_evaluation(&self) -> Vec<Vec<usize>> {
        let count = self.evaluations.iter().max().map_or(0, |last| last + 1);
        let mut rows = vec![vec![]; count];
        self.evaluations.iter().enumerate().for_each(|(row, &e)| rows[e].push(row));
        rows
    }
}

/// For every evaluation of which nothing is selected, adds the row nearest to the mean of its rows,
/// because each table of a quantizer needs a sample. Q&C does not do that, as it has one quantizer
/// for all evaluations. The result is sorted.
fn top_up(pool: &SamplePool, mut selected: Vec<usize>) -> Vec<usize> {
    let mut has = vec![false; pool.by_evaluation().len()];
    selected.iter().for_each(|&row| has[pool.evaluations[row]] = true);
    let empty = pool.by_evaluation().into_iter().zip(has).filter(|(_, has)| !has);
    selected.extend(empty.filter_map(|(rows, _)| nearest_to_mean(pool, &rows)));
    selected.sort_unstable();
    selected
}

/// The row nearest to the mean, or the first among equal ones. Values that are not finite count as
/// zero.
fn nearest_to_mean(pool: &SamplePool, rows: &[usize]) -> Option<usize> {
    let value = |x: f32| if x.is_finite() { f64::from(x) } else { 0.0 };
    let mut mean = vec![0.0; pool.length];
    for &row in rows {
        mean.iter_mut().zip(pool.row(row)).for_each(|(m, &x)| *m += value(x) / rows.len() as f64);
    }
    let distance = |&row: &usize| {
        pool.row(row).iter().zip(&mean).map(|(&x, m)| (value(x) - m).powi(2)).sum::<f64>()
    };
    let nearest =
        rows.iter().map(|row| (*row, distance(row))).reduce(|a, b| if b.1 < a.1 { b } else { a });
    nearest.map(|nearest| nearest.0)
}

/// Random numbers that depend on the seed and on their purpose.
fn random(seed: u64, stream: u64) -> ChaCha20Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut random = ChaCha20Rng::from_seed(key);
    random.set_stream(stream);
    random
}

/// A number from 0 to `n` − 1, uniformly up to a deviation of `n` / 2^64.
fn below(random: &mut ChaCha20Rng, n: usize) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}

/// Draws `n` of the rows, or all if there are fewer, without replacement.
fn draw(random: &mut ChaCha20Rng, mut rows: Vec<usize>, n: usize) -> Vec<usize> {
    let n = n.min(rows.len());
    for i in 0..n {
        let other = i + below(random, rows.len() - i);
        rows.swap(i, other);
    }
    rows.truncate(n);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_without_a_sample_get_the_one_nearest_to_their_mean() {
        let rows = [0.0, 1.0, 5.0, 9.0, f32::NAN, 2.0];
        let pool = SamplePool::new(&rows, &[0, 2, 2, 2, 4, 4]);
        // The mean of evaluation 2 is 5. That of evaluation 4, NaN being 0, is 1, and both rows are
        // as near.
        assert_eq!(top_up(&pool, vec![0]), [0, 2, 4]);
        assert_eq!(top_up(&pool, vec![5, 3]), [0, 3, 5]);
        assert!(top_up(&SamplePool::new(&[], &[]), vec![]).is_empty());
    }

    #[test]
    fn draws_are_of_different_rows_and_repeat() {
        let drawn = |seed, n| draw(&mut random(seed, 0), (0..10).collect(), n);
        let mut all = drawn(1, 20);
        assert_eq!((drawn(1, 4), drawn(1, 0)), (all[..4].to_vec(), vec![]));
        assert_ne!(drawn(1, 10), drawn(2, 10));
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
}
