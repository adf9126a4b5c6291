//! EDA-DM's selection (TDAC, arXiv:2401.04585): takes more samples from evaluations whose features
//! are like those of many others, and from evaluations whose features are unlike.

use super::{SamplePool, draw, random, top_up};

/// Settings of the selection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tdac {
    /// Weight of diversity against density. The published scripts use 1.0 to 5.0.
    pub lambda: f64,
    /// Two features are near if their distance is in this lowest share of all distances. EDA-DM has
    /// a number per data set, in the unit of the features.
    pub near: f64,
    /// Number of channels: rows are `[positions, channels]`, and cosines are over channels.
    pub channels: usize,
    /// Number of samples to select.
    pub total: usize,
    /// Seed of all draws.
    pub seed: u64,
}

impl Tdac {
    /// The settings that are published for ImageNet, with the recommended measure of nearness.
    pub fn new(channels: usize) -> Tdac {
        Tdac { lambda: 1.2, near: 0.2, channels, total: 1024, seed: 0 }
    }

    /// Indices of the selected rows in ascending order: `total` rows, or all if there are fewer,
    /// and one row of every evaluation that would have none. The feature of an evaluation is its
    /// rows in the order of the pool. Of two evaluations with different numbers of rows, only the
    /// first rows that both have are compared.
    ///
    /// It takes O(evaluations · values of the pool).
    ///
    /// # Panics
    /// If the length of a row is no multiple of the number of channels.
    pub fn select(&self, pool: &SamplePool) -> Vec<usize> {
        let rows: Vec<_> =
            pool.by_evaluation().into_iter().filter(|rows| !rows.is_empty()).collect();
        let available: Vec<usize> = rows.iter().map(Vec::len).collect();
        let counts = counts(&self.weights(pool, &rows), &available, self.total);
        let mut draws = random(self.seed, 0);
        top_up(
            pool,
            rows.into_iter().zip(counts).flat_map(|(rows, n)| draw(&mut draws, rows, n)).collect(),
        )
    }

    /// The weight of each evaluation: its density plus `lambda` times its diversity. Both are from
    /// 0 to 1.
    fn weights(&self, pool: &SamplePool, rows: &[Vec<usize>]) -> Vec<f64> {
        let mut pairs = vec![];
        for s in 0..rows.len() {
            for t in s + 1..rows.len() {
                pairs.push((s, t, self.compare(pool, &rows[s], &rows[t])));
            }
        }
        let mut distances: Vec<f64> =
            pairs.iter().map(|pair| pair.2[0]).filter(|d| d.is_finite()).collect();
        distances.sort_by(f64::total_cmp);
        let at = (self.near * distances.len().saturating_sub(1) as f64).round() as usize;
        let radius = distances.get(at).copied().unwrap_or(0.0);
        let (mut density, mut diversity) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
        for (s, t, [distance, unlike]) in pairs {
            for e in [s, t] {
                density[e] += f64::from(distance <= radius);
                diversity[e] += unlike;
            }
        }
        let (density, diversity) = (from_0_to_1(density), from_0_to_1(diversity));
        density.iter().zip(diversity).map(|(d, v)| d + self.lambda * v).collect()
    }

    /// The mean square difference, and the sum of 1 − cos over positions, of the rows that both
    /// have. Positions with a value that is not finite, or with only zeros on one side, count as
    /// equal.
    fn compare(&self, pool: &SamplePool, a: &[usize], b: &[usize]) -> [f64; 2] {
        let c = self.channels;
        assert!(
            c > 0 && pool.length.is_multiple_of(c),
            "rows of {} values in {c} channels",
            pool.length
        );
        let (mut square, mut unlike) = (0.0, 0.0);
        let positions = |&row: &usize| pool.row(row).chunks_exact(c);
        for (a, b) in a.iter().flat_map(positions).zip(b.iter().flat_map(positions)) {
            let mut sums = [0.0; 3];
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (f64::from(a), f64::from(b));
                sums.iter_mut().zip([a * a, b * b, a * b]).for_each(|(s, v)| *s += v);
                square += (a - b) * (a - b);
            }
            let cosine = sums[2] / (sums[0] * sums[1]).sqrt();
            unlike += if cosine.is_finite() { 1.0 - cosine } else { 0.0 };
        }
        [square / (a.len().min(b.len()) * pool.length).max(1) as f64, unlike]
    }
}

/// Maps the least value to 0 and the greatest to 1; all values to 0 if they are equal.
fn from_0_to_1(values: Vec<f64>) -> Vec<f64> {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter().map(|v| if max > min { (v - min) / (max - min) } else { 0.0 }).collect()
}

/// Shares of `total` in proportion to the weights (equal shares if all weights are zero), limited
/// by what is available. The remainder of rounding goes to the largest shares, one each; an excess
/// is taken from the last ones.
fn counts(weights: &[f64], available: &[usize], total: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let total = total.min(available.iter().sum());
    let share = |w: f64| if sum > 0.0 { w / sum } else { 1.0 / weights.len() as f64 };
    let round =
        |(w, &most): (&f64, &usize)| ((total as f64 * share(*w)).round() as usize).min(most);
    let mut counts: Vec<usize> = weights.iter().zip(available).map(round).collect();
    loop {
        let sum: usize = counts.iter().sum();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        if sum < total {
            order.retain(|&t| counts[t] < available[t]);
            order.sort_by_key(|&t| std::cmp::Reverse(counts[t]));
            order.iter().take(total - sum).for_each(|&t| counts[t] += 1);
        } else if sum > total {
            order.retain(|&t| counts[t] > 0);
            order.iter().rev().take(sum - total).for_each(|&t| counts[t] -= 1);
        } else {
            return counts;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Evaluations 0 to 5 have the same feature, and 6 to 9 have four unlike ones. Each has four
    /// rows of two positions of two channels.
    fn pool() -> (Vec<f32>, Vec<usize>) {
        let feature = |e: usize| match e {
            0..6 => [1.0, 0.0],
            6 => [0.0, 5.0],
            7 => [-5.0, 0.0],
            8 => [0.0, -5.0],
            _ => [5.0, 5.0],
        };
        let rows = (0..10).flat_map(|e| [feature(e), feature(e)].concat().repeat(4)).collect();
        (rows, (0..40).map(|row| row / 4).collect())
    }

    #[test]
    fn density_and_diversity_are_the_published_ones() {
        let (rows, evaluations) = pool();
        let pool = SamplePool::new(&rows, &evaluations);
        let by_evaluation = pool.by_evaluation();
        // 15 of 45 pairs are equal, so the 20th percentile is 0: the first six have five neighbours
        let density = Tdac { lambda: 0.0, ..Tdac::new(2) }.weights(&pool, &by_evaluation);
        assert_eq!(density, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let weights = Tdac { lambda: 1.0, ..Tdac::new(2) }.weights(&pool, &by_evaluation);
        // 7 is the opposite of the first six, which are like one another
        assert_eq!((weights[7], weights[0]), (1.0, 1.0));
        assert!(weights[6] < 1.0 && weights[6] > 0.0, "{weights:?}");
    }

    #[test]
    fn selects_the_total_and_something_of_every_evaluation() {
        let (rows, evaluations) = pool();
        let pool = SamplePool::new(&rows, &evaluations);
        let tdac = Tdac { total: 12, ..Tdac::new(2) };
        let selected = tdac.select(&pool);
        assert!((12..=22).contains(&selected.len()) && selected.windows(2).all(|w| w[0] < w[1]));
        (0..10).for_each(|e| assert!(selected.iter().any(|&row| evaluations[row] == e)));
        assert_eq!(selected, tdac.select(&pool));
        assert_eq!(Tdac::new(2).select(&pool), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn degenerate_pools_can_be_selected_from() {
        let tdac = Tdac { total: 4, ..Tdac::new(2) };
        for value in [0.0, 3.0, f32::NAN, f32::INFINITY, f32::MAX] {
            let selected =
                tdac.select(&SamplePool::new(&[value; 24], &[0, 0, 0, 1, 1, 1, 3, 3, 3, 3, 5, 5]));
            assert!((4..=8).contains(&selected.len()), "{value}: {selected:?}");
        }
        assert!(tdac.select(&SamplePool::new(&[], &[])).is_empty());
    }

    proptest! {
        #[test]
        fn counts_sum_up(each in prop::collection::vec((0u8..9, 0usize..12), 1..30), total in 0usize..200) {
            let (weights, available): (Vec<f64>, Vec<usize>) = each.iter().map(|&(w, n)| (f64::from(w), n)).unzip();
            let counts = counts(&weights, &available, total);
            prop_assert_eq!(counts.iter().sum::<usize>(), total.min(available.iter().sum()));
            prop_assert!(counts.iter().zip(&available).all(|(n, most)| n <= most));
        }
    }
}
