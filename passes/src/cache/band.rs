//! The cost of reusing at evaluation `t` the tensors that evaluation `i` has stored, for all pairs
//! that are less than a width apart: a band of the matrix evaluations × evaluations. CacheQuant's
//! dynamic programming schedule is computed on it.

/// Costs `d(i, t)` for `i ≤ t < i + width`. `d(i, i)` is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Band {
    evaluations: usize,
    width: usize,
    /// `d(i, i + l)` at `i · width + l`.
    costs: Vec<f64>,
}

impl Band {
    /// A band of zeros. `width` is the length of the longest group of evaluations that can share a
    /// stored tensor, at least 1.
    pub fn new(evaluations: usize, width: usize) -> Band {
        let width = width.clamp(1, evaluations.max(1));
        Band { evaluations, width, costs: vec![0.0; evaluations * width] }
    }

    /// Number of evaluations of the loop.
    pub fn evaluations(&self) -> usize {
        self.evaluations
    }

    /// Length of the longest group.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `d(i, t)`.
    ///
    /// # Panics
    /// If the pair is outside the band.
    pub fn get(&self, i: usize, t: usize) -> f64 {
        self.costs[self.at(i, t)]
    }

    /// Adds to `d(i, t)`. Costs are additive over samples.
    ///
    /// # Panics
    /// If the pair is outside the band.
    pub fn add(&mut self, i: usize, t: usize, cost: f64) {
        let at = self.at(i, t);
        self.costs[at] += cost;
    }

    fn at(&self, i: usize, t: usize) -> usize {
        assert!(
            i <= t && t - i < self.width && t < self.evaluations,
            "({i}, {t}) is outside the band"
        );
        i * self.width + t - i
    }

    /// D(i, i + length): the sum of `d(i, t)` over a group that begins with `i`.
    ///
    /// # Panics
    /// If the group is outside the band.
    pub fn group(&self, i: usize, length: usize) -> f64 {
        assert!(
            length <= self.width && i + length <= self.evaluations,
            "the group lies in the band"
        );
        self.costs[i * self.width..][..length].iter().sum()
    }

    /// The cost of a schedule, given by its full evaluations in ascending order from 0; `None` if
    /// one of its groups is longer than the band is wide.
    pub fn of_schedule(&self, full: &[usize]) -> Option<f64> {
        let ends = full.iter().skip(1).copied().chain([self.evaluations]);
        full.iter()
            .zip(ends)
            .map(|(&i, end)| (end - i <= self.width).then(|| self.group(i, end - i)))
            .sum()
    }

    /// Divides the evaluations into `groups` contiguous groups whose lengths are in `lengths`, so
    /// that the sum of their costs is least. Returns the first evaluation of each group and the
    /// cost. Among equal partitions, the one whose last group is longest wins, then the one before
    /// it, and so on. `None` if there is no such partition.
    ///
    /// It is dynamic programming in O(groups · evaluations · lengths) (the DPS of CacheQuant).
    ///
    /// # Panics
    /// If the longest length exceeds the width.
    pub fn best(
        &self,
        groups: usize,
        lengths: std::ops::RangeInclusive<usize>,
    ) -> Option<(Vec<usize>, f64)> {
        let n = self.evaluations;
        let (shortest, longest) = ((*lengths.start()).max(1), *lengths.end());
        assert!(
            longest <= self.width,
            "the band is {} wide, groups of {longest} are allowed",
            self.width
        );
        // sums[i][l] = D(i, i + l)
        let sums: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                (0..=longest.min(n - i))
                    .scan(0.0, |sum, l| {
                        if l > 0 {
                            *sum += self.get(i, i + l - 1)
                        }
                        Some(*sum)
                    })
                    .collect()
            })
            .collect();
        let mut least = vec![f64::INFINITY; n + 1];
        least[0] = 0.0;
        let mut previous: Vec<Vec<usize>> = Vec::with_capacity(groups);
        for _ in 0..groups {
            let (mut next, mut from) = (vec![f64::INFINITY; n + 1], vec![usize::MAX; n + 1]);
            for end in shortest..=n {
                // longest first: the smallest beginning wins a tie
                for l in (shortest..=longest.min(end)).rev() {
                    let cost = least[end - l] + sums[end - l][l];
                    if cost < next[end] {
                        (next[end], from[end]) = (cost, end - l);
                    }
                }
            }
            least = next;
            previous.push(from);
        }
        if !least[n].is_finite() {
            return None;
        }
        let mut full = vec![];
        let mut end = n;
        for from in previous.iter().rev() {
            end = from[end];
            full.push(end);
        }
        full.reverse();
        Some((full, least[n]))
    }
}

#[cfg(test)]
mod tests {
    use super::Band;
    use proptest::prelude::*;

    fn filled(n: usize, width: usize, mut cost: impl FnMut(usize, usize) -> f64) -> Band {
        let mut band = Band::new(n, width);
        for i in 0..n {
            (i + 1..(i + band.width()).min(n)).for_each(|t| band.add(i, t, cost(i, t)));
        }
        band
    }

    /// Every way to write `n` as `groups` lengths, the first lengths varying slowest.
    fn compositions(
        n: usize,
        groups: usize,
        lengths: std::ops::RangeInclusive<usize>,
    ) -> Vec<Vec<usize>> {
        if groups == 0 {
            return if n == 0 { vec![vec![]] } else { vec![] };
        }
        let each = lengths.clone().filter(|&l| l <= n);
        each.flat_map(|l| {
            let rest = compositions(n - l, groups - 1, lengths.clone());
            rest.into_iter().map(move |rest| [vec![l], rest].concat())
        })
        .collect()
    }

    proptest! {
        #[test]
        fn equals_brute_force(n in 1usize..=12, interval in 1usize..=5, seed in any::<u64>(), ties in any::<bool>()) {
            let (groups, longest) = (n.div_ceil(interval), (2 * interval).min(n));
            let lengths = interval.div_ceil(2)..=longest;
            let mut random = seed;
            let band = filled(n, longest, |_, _| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if ties { (random >> 62) as f64 } else { (random >> 33) as f64 / 1e6 }
            });
            let all = compositions(n, groups, lengths.clone());
            let starts = |lengths: &[usize]| lengths.iter().scan(0, |at, l| { let s = *at; *at += l; Some(s) }).collect::<Vec<_>>();
            let least = all.iter().map(|l| band.of_schedule(&starts(l)).unwrap()).fold(f64::INFINITY, f64::min);
            match band.best(groups, lengths) {
                None => prop_assert!(all.is_empty()),
                Some((full, cost)) => {
                    prop_assert!((cost - least).abs() <= 1e-9 * least.max(1.0));
                    prop_assert_eq!(full[0], 0);
                    prop_assert_eq!(full.len(), groups);
                    prop_assert!((band.of_schedule(&full).unwrap() - cost).abs() <= 1e-9 * cost.max(1.0));
                    prop_assert_eq!(band.best(groups, interval.div_ceil(2)..=longest).unwrap().0, full);
                }
            }
        }
    }

    #[test]
    fn costs_that_grow_with_the_square_of_the_distance_give_the_uniform_schedule() {
        for (groups, interval) in [(10, 5), (4, 3), (25, 2)] {
            let n = groups * interval;
            let band = filled(n, 2 * interval, |i, t| ((t - i) * (t - i)) as f64);
            let (full, _) = band.best(groups, interval.div_ceil(2)..=2 * interval).unwrap();
            assert_eq!(full, (0..n).step_by(interval).collect::<Vec<_>>());
        }
    }

    #[test]
    fn equal_costs_give_the_longest_last_groups() {
        let band = filled(10, 6, |_, _| 0.0);
        assert_eq!(band.best(3, 2..=6).unwrap(), (vec![0, 2, 4], 0.0));
        assert_eq!(band.best(1, 2..=6), None);
    }
}
