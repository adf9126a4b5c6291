//! Histograms of the values of a tensor, in memory of a fixed size. The search for a range looks at
//! the histogram instead of the tensor.

use super::scan::Scan;

/// Number of bins of a [`Histogram`], which is a power of two.
pub const BINS: usize = 2048;

/// For fewer values than this, one table of counts is faster than four that must be added up.
const FEW: usize = 16 * BINS;

/// Counts of the values of a stream of f32.
///
/// Bins are 2^e wide, and zero is an edge between two of them, so widening merges neighbours. e is
/// the smallest exponent with which the bins reach from the least value (or zero) to the greatest.
/// A histogram is therefore a function of the values alone: neither their order nor the calls in
/// which they were added matter. At least half of the bins lie between the extremes. Zeros are
/// counted separately.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The count of bin `b`, which holds `b · 2^e ≤ x < (b + 1) · 2^e` (`<` and `≤` change places
    /// below zero), is at `b mod BINS`.
    counts: Vec<u64>,
    exponent: i32,
    zeros: u64,
    min: f32,
    max: f32,
    seen: u64,
    not_finite: u64,
    first_not_finite: Option<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        let counts = vec![0; BINS];
        Self {
            counts,
            exponent: LEAST,
            zeros: 0,
            min,
            max,
            seen: 0,
            not_finite: 0,
            first_not_finite: None,
        }
    }
}

impl Histogram {
    /// A histogram of no values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `values`. Infinities and NaN are counted separately and have no bin.
    pub fn add(&mut self, values: &[f32]) {
        let scan = Scan::of(values);
        if scan.not_finite == 0 {
            self.add_finite(values, &scan);
        } else {
            let at = values.iter().position(|x| !x.is_finite()).map(|at| self.seen + at as u64);
            self.first_not_finite = self.first_not_finite.or(at);
            self.not_finite += scan.not_finite;
            let finite: Vec<f32> = values.iter().copied().filter(|x| x.is_finite()).collect();
            self.add_finite(&finite, &Scan::of(&finite));
        }
        self.seen += values.len() as u64;
    }

    /// Counts every `every`-th row of `width` values, beginning with the first. The extremes are
    /// those of all rows. If a value is not finite, all values are counted.
    pub fn add_some(&mut self, values: &[f32], width: usize, every: usize) {
        let scan = Scan::of(values);
        if every <= 1 || scan.not_finite > 0 {
            return self.add(values);
        }
        if !values.is_empty() {
            self.reach(scan.min, scan.max);
        }
        let rows: Vec<&[f32]> = values.chunks(width).step_by(every).collect();
        self.add(&rows.concat());
    }

    /// Adds the counts of `later`, as if its values had followed.
    pub fn merge(&mut self, later: &Histogram) {
        self.reach(later.min, later.max);
        let shift = self.exponent - later.exponent;
        for bin in later.used() {
            self.counts[at(bin >> shift.min(31))] += later.counts[at(bin)];
        }
        self.first_not_finite =
            self.first_not_finite.or(later.first_not_finite.map(|at| self.seen + at));
        self.zeros += later.zeros;
        self.not_finite += later.not_finite;
        self.seen += later.seen;
    }

    /// Whether no finite value has been counted.
    pub fn is_empty(&self) -> bool {
        self.finite() == 0
    }

    /// Number of finite values that were counted.
    pub fn finite(&self) -> u64 {
        self.seen - self.not_finite
    }

    /// Number of zeros of either sign among them.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Number of infinities and NaN.
    pub fn not_finite(&self) -> u64 {
        self.not_finite
    }

    /// Number of values before the first infinity or NaN; `None` if there is none.
    pub fn first_not_finite(&self) -> Option<u64> {
        self.first_not_finite
    }

    /// The least and the greatest finite value, exactly; `None` without finite values.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        (!self.is_empty()).then_some((self.min, self.max))
    }

    /// Low end, high end and count of every bin that is not empty, in ascending order. Ends are not
    /// beyond the extremes. Zeros are not in the counts.
    pub fn bins(&self) -> impl Iterator<Item = (f64, f64, u64)> + '_ {
        let width = 2f64.powi(self.exponent);
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let ends = move |bin: i32| {
            ((f64::from(bin) * width).max(min), (f64::from(bin + 1) * width).min(max))
        };
        self.used()
            .map(move |bin| (ends(bin), self.counts[at(bin)]))
            .filter(|bin| bin.1 > 0)
            .map(|((a, b), n)| (a, b, n))
    }

    fn add_finite(&mut self, values: &[f32], scan: &Scan) {
        if values.is_empty() {
            return;
        }
        self.reach(scan.min, scan.max);
        let per_width = power_of_two(-self.exponent);
        if values.len() < FEW {
            values.iter().for_each(|&x| self.counts[bin(x, per_width)] += 1);
        } else {
            // counts of a table stay below 2^32
            values.chunks(1 << 32).for_each(|values| count(values, per_width, &mut self.counts));
        }
        self.counts[0] -= scan.zeros;
        self.zeros += scan.zeros;
    }

    /// Widens the bins until they hold both values.
    fn reach(&mut self, min: f32, max: f32) {
        let old: Vec<i32> = self.used().collect();
        (self.min, self.max) = (self.min.min(min), self.max.max(max));
        let shift = (self.exponent..)
            .take_while(|&e| span(self.min, self.max, e) > BINS as f64)
            .count() as i32;
        if shift == 0 {
            return;
        }
        self.exponent += shift;
        let counts = std::mem::replace(&mut self.counts, vec![0; BINS]);
        old.iter().for_each(|&bin| self.counts[at(bin >> shift.min(31))] += counts[at(bin)]);
    }

    /// The bins between the extremes.
    fn used(&self) -> std::ops::Range<i32> {
        let bins = |x: f32| (f64::from(x.max(0.0)) / 2f64.powi(self.exponent)) as i32 + 1;
        match self.min <= self.max {
            true if self.min < 0.0 => -bins(-self.min)..bins(self.max),
            true => 0..bins(self.max),
            false => 0..0,
        }
    }
}

/// Exponent of the narrowest bins. The inverse of a smaller width would be infinite.
const LEAST: i32 = -126;

/// Number of bins of width 2^`exponent` that reach from `min` to `max` and include zero.
fn span(min: f32, max: f32, exponent: i32) -> f64 {
    let bins = |x: f32| (f64::from(x) / 2f64.powi(exponent)).trunc() + 1.0;
    bins(max.max(0.0)) + if min < 0.0 { bins(-min) } else { 0.0 }
}

/// 2^`exponent`, from 2^-126 to 2^127.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// The position of a bin's count.
fn at(bin: i32) -> usize {
    bin as usize % BINS
}

/// The position of the count of `x`. The product is exact, or too small to matter. Its whole part,
/// below 2048, takes 11 bits. When only those bits are kept, adding 4096 rounds no product up to
/// the next whole number, and puts the whole part into bits 11 to 21. (A cast to i32, which
/// saturates, takes twice as long.)
#[inline(always)]
fn bin(x: f32, per_width: f32) -> usize {
    let magnitude = f32::from_bits((x.abs() * per_width).to_bits() & !0x1fff);
    at(((magnitude + 4096.0).to_bits() >> 11) as i32 ^ -i32::from(x < 0.0))
}

/// Counts into four tables in turn, because consecutive equal values would wait for one another's
/// count. Bins are found for 64 values at a time, which vectorises.
fn count(values: &[f32], per_width: f32, counts: &mut [u64]) {
    let mut tables = [[0u32; BINS]; 4];
    let (blocks, rest) = values.as_chunks::<64>();
    for block in blocks {
        let bins = block.map(|x| bin(x, per_width) as u32);
        for bins in bins.as_chunks::<4>().0 {
            tables.iter_mut().zip(bins).for_each(|(table, &bin)| table[bin as usize % BINS] += 1);
        }
    }
    rest.iter().for_each(|&x| tables[0][bin(x, per_width)] += 1);
    for (bin, count) in counts.iter_mut().enumerate() {
        *count += tables.iter().map(|table| u64::from(table[bin])).sum::<u64>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.add(values);
        histogram
    }

    proptest! {
        #[test]
        fn depends_on_the_values_alone(
            values in prop::collection::vec(prop_oneof![any::<f32>(), -1f32..1.0, Just(0.0), Just(-0.0)], 0..200),
            cut in 0usize..200,
            swap in any::<bool>(),
        ) {
            let (a, b) = values.split_at(cut.min(values.len()));
            let whole = of(&values);
            let (mut parts, mut merged) = (of(a), of(a));
            parts.add(b);
            merged.merge(&of(b));
            prop_assert_eq!(&parts, &whole);
            prop_assert_eq!(&merged, &whole);
            if swap && values.iter().all(|x| x.is_finite()) {
                let mut other = of(b);
                other.add(a);
                prop_assert_eq!(&other, &whole);
            }
            let finite: Vec<f64> = values.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).collect();
            prop_assert_eq!(whole.finite(), finite.len() as u64);
            prop_assert_eq!(whole.bins().map(|bin| bin.2).sum::<u64>() + whole.zeros(), whole.finite());
            for (low, high, count) in whole.bins() {
                let inside = |x: &&f64| **x != 0.0 && (**x > low && **x < high || **x == if **x > 0.0 { low } else { high });
                let ends = finite.iter().filter(|&&x| x == low.min(high) || x == low.max(high)).count();
                let inside = finite.iter().filter(inside).count();
                prop_assert!((inside as u64) <= count && count <= (inside + ends) as u64, "{low} {high} {count} {inside}");
            }
        }
    }

    #[test]
    fn long_calls_count_like_short_ones() {
        let values: Vec<f32> =
            (0..3 * FEW + 5).map(|i| ((i as f32 * 0.7).sin() * 8.0).trunc() / 3.0 + 0.01).collect();
        let mut parts = Histogram::new();
        values.chunks(1000).for_each(|values| parts.add(values));
        assert_eq!(parts, of(&values));
    }

    #[test]
    fn zero_is_an_edge_and_half_of_the_bins_are_used() {
        let values: Vec<f32> = (0..=4000).map(|i| i as f32 * 0.001 - 0.2).collect();
        let histogram = of(&values);
        assert_eq!(histogram.extremes(), Some((-0.2, 3.8)));
        assert_eq!(histogram.bins().filter(|bin| bin.1 <= 0.0).map(|bin| bin.2).sum::<u64>(), 200);
        assert!(histogram.bins().all(|(low, high, _)| high <= 0.0 || low >= 0.0));
        assert!((BINS / 2..=BINS).contains(&histogram.used().len()), "{:?}", histogram.used());
        assert_eq!(histogram.zeros(), 1);
    }

    #[test]
    fn what_is_not_finite_is_counted_and_found() {
        let mut histogram = Histogram::new();
        histogram.add(&[1.0, 2.0]);
        histogram.add(&[0.0, f32::NAN, -3.0, f32::NEG_INFINITY]);
        assert_eq!((histogram.not_finite(), histogram.first_not_finite()), (2, Some(3)));
        assert_eq!((histogram.finite(), histogram.extremes()), (4, Some((-3.0, 2.0))));
        let mut before = of(&[7.0; 10]);
        before.merge(&histogram);
        assert_eq!(before.first_not_finite(), Some(13));
        assert!(of(&[f32::NAN]).is_empty() && of(&[]).is_empty());
        assert_eq!(of(&[f32::INFINITY]).extremes(), None);
    }

    #[test]
    fn the_largest_and_the_smallest_numbers_have_bins() {
        let histogram = of(&[f32::MAX, f32::MIN, 1e-45, -1e-45, 0.0]);
        assert_eq!(histogram.bins().map(|bin| bin.2).collect::<Vec<_>>(), [1, 1, 1, 1]);
        assert_eq!(of(&[1e-45]).bins().count(), 1);
    }
}
