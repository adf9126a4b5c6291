//! Groups of consecutive evaluations that share one row of every quantizer's table (the time groups
//! of TQ-DiT, arXiv:2502.04056).
//!
//! A partition is given by the first evaluation of each group, in ascending order from 0.

use super::range::ClippingRange;
use crate::cache::band::Band;

/// A range narrower than this share of the quantizer's widest one counts as that wide, because its
/// relative change has no meaning.
const NARROWEST: f64 = 1e-4;

/// Groups whose lengths differ by at most one: group `i` of `G` begins with evaluation ⌊i · T / G⌋.
/// There is at least one group and at most one per evaluation; without evaluations there is none.
pub fn equal(evaluations: usize, groups: usize) -> Vec<usize> {
    let groups = groups.max(1).min(evaluations);
    (0..groups).map(|i| i * evaluations / groups).collect()
}

/// The partition into `groups` groups with the least [`cost`]. The number of groups is bounded as
/// in [`equal`]. `ranges[q][t]` is the range of quantizer `q` at evaluation `t`.
///
/// It is dynamic programming in O(T² · (quantizers + groups)). Among equal partitions, the one
/// whose last group is longest wins, then the one before it, and so on.
///
/// # Panics
/// If the quantizers have different numbers of evaluations.
pub fn optimal(ranges: &[Vec<ClippingRange>], groups: usize) -> Vec<usize> {
    let evaluations = ranges.first().map_or(0, Vec::len);
    assert!(
        ranges.iter().all(|r| r.len() == evaluations),
        "every quantizer has {evaluations} evaluations"
    );
    if evaluations == 0 {
        return vec![];
    }
    let mut band = Band::new(evaluations, evaluations);
    for quantizer in ranges {
        let weights = weights(quantizer);
        for i in 0..evaluations {
            let mut before = 0.0;
            for (t, cost) in costs(&quantizer[i..], &weights[i..]).enumerate() {
                // a longer group has no smaller row
                band.add(i, i + t, (cost - before).max(0.0));
                before = cost;
            }
        }
    }
    band.best(groups.max(1).min(evaluations), 1..=evaluations)
        .map_or_else(|| vec![0], |best| best.0)
}

/// The cost of a partition, which is by how much its rows are too wide: the sum, over quantizers
/// and evaluations, of the squares of the distances of both ends to the row's ends, relative to the
/// evaluation's own width. Rounding errors grow with that width.
pub fn cost(ranges: &[Vec<ClippingRange>], firsts: &[usize]) -> f64 {
    let of = |quantizer: &Vec<ClippingRange>| -> f64 {
        let weights = weights(quantizer);
        members(firsts, quantizer.len())
            .filter_map(|m| costs(&quantizer[m.clone()], &weights[m]).last())
            .sum()
    };
    ranges.iter().map(of).sum()
}

/// One row per group: the union of the ranges of its members.
///
/// It is not their mean, because evaluations of a group differ by what the model does and not by
/// chance, and each range has been shrunk as far as is good for its own evaluation. A mean would
/// clip the widest ranges further. A union costs the narrow ones no more than [`cost`] says.
pub fn rows(ranges: &[ClippingRange], firsts: &[usize]) -> Vec<ClippingRange> {
    let union = |m: std::ops::Range<usize>| {
        ranges[m].iter().copied().fold(ClippingRange::default(), ClippingRange::union)
    };
    members(firsts, ranges.len()).map(union).collect()
}

/// The group of every evaluation.
pub fn group_of(firsts: &[usize], evaluations: usize) -> Vec<usize> {
    members(firsts, evaluations).enumerate().flat_map(|(group, m)| m.map(move |_| group)).collect()
}

fn members(
    firsts: &[usize],
    evaluations: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let ends = firsts.iter().skip(1).copied().chain([evaluations]);
    firsts.iter().zip(ends).map(|(&first, end)| first..end)
}

/// 1 / width² per evaluation; zero where the quantizer has only zeros.
fn weights(ranges: &[ClippingRange]) -> Vec<f64> {
    let width = |r: &ClippingRange| f64::from(r.high) - f64::from(r.low);
    let widest = ranges.iter().map(width).fold(0.0, f64::max);
    let weight = |r| if widest > 0.0 { width(r).max(NARROWEST * widest).powi(-2) } else { 0.0 };
    ranges.iter().map(weight).collect()
}

/// The cost of the groups that begin with the first of these ranges and have 1, 2, … members.
fn costs<'a>(ranges: &'a [ClippingRange], weights: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    // Σ w · (row − end)² = row² · Σ w − 2 · row · Σ w · end + Σ w · end², per end
    let (mut row, mut sums) = ([0.0f64; 2], [[0.0; 3]; 2]);
    ranges.iter().zip(weights).map(move |(range, w)| {
        let ends = [-f64::from(range.low), f64::from(range.high)];
        let mut cost = 0.0;
        for ((row, s), end) in row.iter_mut().zip(&mut sums).zip(ends) {
            *row = row.max(end);
            s.iter_mut().zip([*w, w * end, w * end * end]).for_each(|(s, v)| *s += v);
            cost += (*row * *row * s[0] - 2.0 * *row * s[1] + s[2]).max(0.0);
        }
        cost
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every ascending choice of `groups` first evaluations that begins with 0.
    fn partitions(evaluations: usize, groups: usize) -> Vec<Vec<usize>> {
        let firsts = |set: u32| (0..evaluations).filter(|&t| set >> t & 1 == 1).collect::<Vec<_>>();
        (0..1u32 << evaluations)
            .map(firsts)
            .filter(|f| f.first() == Some(&0) && f.len() == groups)
            .collect()
    }

    fn direct_cost(ranges: &[Vec<ClippingRange>], firsts: &[usize]) -> f64 {
        let mut sum = 0.0;
        for ranges in ranges {
            let (rows, group) = (rows(ranges, firsts), group_of(firsts, ranges.len()));
            for (range, row) in ranges.iter().zip(group.iter().map(|&g| rows[g])) {
                let (low, high) =
                    (f64::from(range.low - row.low), f64::from(range.high - row.high));
                sum += (low * low + high * high) / f64::from(range.high - range.low).powi(2);
            }
        }
        sum
    }

    proptest! {
        #[test]
        fn optimal_equals_brute_force(
            ranges in (1usize..=7).prop_flat_map(|t| prop::collection::vec(
                prop::collection::vec((0u8..9, 1u8..9).prop_map(|(a, b)| ClippingRange::new(-f32::from(a), f32::from(b))), t), 1..4)),
            groups in 1usize..=7,
        ) {
            let groups = groups.min(ranges[0].len());
            let found = optimal(&ranges, groups);
            let least = partitions(ranges[0].len(), groups).iter().map(|p| direct_cost(&ranges, p)).fold(f64::INFINITY, f64::min);
            prop_assert_eq!(found.len(), groups);
            prop_assert!((direct_cost(&ranges, &found) - least).abs() <= 1e-9 * least.max(1.0));
            prop_assert!((cost(&ranges, &found) - least).abs() <= 1e-9 * least.max(1.0));
            prop_assert!(least <= direct_cost(&ranges, &equal(ranges[0].len(), groups)) + 1e-9);
        }
    }

    #[test]
    fn equal_groups_are_the_published_ones() {
        assert_eq!(equal(250, 10), (0..250).step_by(25).collect::<Vec<_>>());
        assert_eq!(equal(7, 3), [0, 2, 4]);
        assert_eq!((equal(2, 5), equal(3, 0), equal(0, 2)), (vec![0, 1], vec![0], vec![]));
        assert_eq!(group_of(&[0, 2, 4], 7), [0, 0, 1, 1, 2, 2, 2]);
    }

    #[test]
    fn borders_stand_where_ranges_change() {
        let ranges: Vec<ClippingRange> =
            (0..12).map(|t| ClippingRange::new(-1.0, if t < 9 { 1.0 } else { 4.0 })).collect();
        assert_eq!(optimal(std::slice::from_ref(&ranges), 2), [0, 9]);
        assert_eq!(
            rows(&ranges, &[0, 9]),
            [ClippingRange::new(-1.0, 1.0), ClippingRange::new(-1.0, 4.0)]
        );
        assert_eq!(rows(&ranges, &[0]), [ClippingRange::new(-1.0, 4.0)]);
    }

    #[test]
    fn ranges_of_nothing_can_be_grouped() {
        assert!(optimal(&[], 3).is_empty());
        assert!(optimal(&[vec![]], 3).is_empty());
        assert_eq!(optimal(&[vec![ClippingRange::default(); 5]], 2).len(), 2);
        assert_eq!(
            optimal(&[vec![ClippingRange::new(f32::MIN, f32::MAX), ClippingRange::default()]], 2),
            [0, 1]
        );
    }
}
