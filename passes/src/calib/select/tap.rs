//! Temporal-aware parallel clustering (Q&C, arXiv:2503.02508): selects samples from clusters of
//! rows that are alike in content and in time, so that rows that caching has made nearly equal are
//! not selected over and over. Products of matrices differ in their last bits between CPUs with and
//! without fused multiply-add, so the selection is the same for every run on one machine only.

use super::kmeans::kmeans;
use super::spectral::{Similarity, embed};
use super::{SamplePool, draw, random, top_up};
use nalgebra::DMatrix;

/// Least and greatest number of samples of a cluster.
const QUOTA: [usize; 2] = [3, 10];

/// Settings of the clustering. The default is the published one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    /// Number of embeddings, each with landmarks of its own.
    pub runs: usize,
    /// Share of the pool that is landmarks, which are at least twice as many as the clusters.
    pub fraction: f64,
    /// Number of clusters. It is changed as far as is needed for `total` to be 3 to 10 samples of
    /// each cluster.
    pub clusters: usize,
    /// Weight of the content of rows against their time, 0 to 1.
    pub alpha: f64,
    /// Number of evaluations over which the similarity in time falls to 1/e. (The paper gives no
    /// unit for the distance in time.)
    pub bandwidth: f64,
    /// Number of samples to select.
    pub total: usize,
    /// Number of runs of k-means, of which the best one counts.
    pub restarts: usize,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for Tap {
    fn default() -> Self {
        Tap {
            runs: 3,
            fraction: 0.05,
            clusters: 100,
            alpha: 0.5,
            bandwidth: 1.0,
            total: 800,
            restarts: 20,
            seed: 0,
        }
    }
}

impl Tap {
    /// Indices of the selected rows in ascending order: `total` rows, or all if there are fewer,
    /// and one row of every evaluation that would have none.
    pub fn select(&self, pool: &SamplePool) -> Vec<usize> {
        if self.total >= pool.len() {
            return (0..pool.len()).collect();
        }
        let k = self.cluster_count(pool.len());
        let labels =
            kmeans(&self.embeddings(pool, k), k, self.restarts, &mut random(self.seed, u64::MAX));
        let mut clusters = vec![vec![]; k];
        labels.iter().enumerate().for_each(|(row, &label)| clusters[label].push(row));
        let sizes: Vec<usize> = clusters.iter().map(Vec::len).collect();
        let mut draws = random(self.seed, u64::MAX - 1);
        let chosen = clusters.into_iter().zip(quotas(&sizes, self.total));
        top_up(pool, chosen.flat_map(|(rows, quota)| draw(&mut draws, rows, quota)).collect())
    }

    fn cluster_count(&self, rows: usize) -> usize {
        let fewest = self.total.div_ceil(QUOTA[1]);
        self.clusters.clamp(fewest, fewest.max(self.total / QUOTA[0])).clamp(1, rows)
    }

    /// The embeddings of all runs, one below the other. (The paper does not say how runs are
    /// joined.)
    fn embeddings(&self, pool: &SamplePool, k: usize) -> DMatrix<f32> {
        let part = (self.fraction * pool.len() as f64).ceil() as usize;
        let count = part.max(2 * k).min(pool.len());
        let similarity = Similarity { alpha: self.alpha, bandwidth: self.bandwidth };
        let run = |run| {
            let landmarks = draw(&mut random(self.seed, run), (0..pool.len()).collect(), count);
            embed(pool, &landmarks, k, similarity)
        };
        let runs: Vec<DMatrix<f32>> = (0..self.runs.max(1) as u64).map(run).collect();
        let height = runs[0].nrows();
        DMatrix::from_fn(height * runs.len(), pool.len(), |i, row| {
            runs[i / height][(i % height, row)]
        })
    }
}

/// The number of samples from each cluster: an equal share within the bounds, then one more from
/// the largest or one less from the smallest, until the sum is `total` (at most Σ `sizes`). The
/// bounds are broken where clusters are too small.
fn quotas(sizes: &[usize], total: usize) -> Vec<usize> {
    let share = (total as f64 / sizes.len().max(1) as f64).round() as usize;
    let share = share.clamp(QUOTA[0], QUOTA[1]);
    let mut quotas: Vec<usize> = sizes.iter().map(|&size| share.min(size)).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&c| std::cmp::Reverse(sizes[c]));
    let total = total.min(sizes.iter().sum());
    let mut sum: usize = quotas.iter().sum();
    for [least, most] in [QUOTA, [0, usize::MAX]] {
        while sum < total {
            let fits = |&&c: &&usize| quotas[c] < sizes[c].min(most);
            let more: Vec<usize> = order.iter().filter(fits).take(total - sum).copied().collect();
            if more.is_empty() {
                break;
            }
            more.iter().for_each(|&c| quotas[c] += 1);
            sum += more.len();
        }
        while sum > total {
            let fits = |&&c: &&usize| quotas[c] > least;
            let less: Vec<usize> =
                order.iter().rev().filter(fits).take(sum - total).copied().collect();
            if less.is_empty() {
                break;
            }
            less.iter().for_each(|&c| quotas[c] -= 1);
            sum -= less.len();
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: usize = 30;
    const PER_STEP: usize = 20;

    /// Rows of 32 values. From step 15 on, all rows are equal up to a thousandth.
    fn collapsed() -> (Vec<f32>, Vec<usize>) {
        let noise = |i: usize| {
            let hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32
                / (1 << 23) as f32
                - 1.0
        };
        let value = |i: usize| {
            let step = i / (32 * PER_STEP);
            if step < STEPS / 2 { noise(i) } else { noise(i % 32) + 1e-3 * noise(i) }
        };
        let rows = (0..STEPS * PER_STEP * 32).map(value).collect();
        (rows, (0..STEPS * PER_STEP).map(|i| i / PER_STEP).collect())
    }

    fn settings() -> Tap {
        Tap { clusters: 25, total: 150, restarts: 5, ..Tap::default() }
    }

    #[test]
    fn what_is_nearly_equal_is_selected_less_often() {
        let (rows, evaluations) = collapsed();
        let pool = SamplePool::new(&rows, &evaluations);
        for seed in 0..3 {
            let selected = Tap { seed, ..settings() }.select(&pool);
            assert!(selected.windows(2).all(|w| w[0] < w[1]) && selected.len() >= 150);
            let equal = selected.iter().filter(|&&row| evaluations[row] >= STEPS / 2).count();
            // half of the pool: uniform sampling takes half
            assert!(2 * equal < selected.len() * 9 / 10, "{equal} of {}", selected.len());
            (0..STEPS).for_each(|step| {
                assert!(selected.iter().any(|&row| evaluations[row] == step), "step {step}")
            });
        }
    }

    #[test]
    fn the_seed_decides() {
        let (rows, evaluations) = collapsed();
        let pool = SamplePool::new(&rows, &evaluations);
        let select = |seed| Tap { seed, ..settings() }.select(&pool);
        assert_eq!(select(7), select(7));
        assert_ne!(select(7), select(8));
    }

    #[test]
    fn degenerate_pools_can_be_selected_from() {
        let evaluations: Vec<usize> = (0..40).map(|i| i / 4).collect();
        let tap = Tap { total: 20, restarts: 2, ..Tap::default() };
        for value in [0.0, 1.0, f32::NAN, f32::INFINITY, 1e38] {
            let selected = tap.select(&SamplePool::new(&vec![value; 40 * 3], &evaluations));
            assert!((20..=30).contains(&selected.len()), "{value}: {selected:?}");
        }
        assert!(tap.select(&SamplePool::new(&[], &[])).is_empty());
        assert_eq!(tap.select(&SamplePool::new(&[1.0, 2.0], &[0, 0])), [0, 1]);
        assert_eq!(
            Tap { total: 0, ..tap }.select(&SamplePool::new(&[1.0, 2.0, 3.0], &[0, 1, 1])).len(),
            2
        );
    }

    proptest! {
        #[test]
        fn quotas_sum_up_and_keep_their_bounds(sizes in prop::collection::vec(0usize..40, 1..30), total in 0usize..400) {
            let quotas = quotas(&sizes, total);
            prop_assert_eq!(quotas.iter().sum::<usize>(), total.min(sizes.iter().sum()));
            prop_assert!(quotas.iter().zip(&sizes).all(|(q, size)| q <= size));
            let within = |most: usize| sizes.iter().map(|&size| size.min(most)).sum::<usize>();
            if (within(3)..=within(10)).contains(&total) {
                prop_assert!(quotas.iter().zip(&sizes).all(|(&q, &size)| q <= 10 && q >= size.min(3)), "{:?}", quotas);
            }
        }
    }
}
