//! Second-order rounding of weights (GPTQ, arXiv:2210.17323): the error of one weight of an output
//! is compensated by the weights that are rounded after it.
//!
//! The error of an output is e·G·eᵀ, with e = weights − rounded and G the Gram matrix of the
//! inputs. With G = L·Lᵀ it is |e·L|². Columns are rounded from the last to the first. Column j of
//! e·L is then e_j·L_jj plus a sum that the columns after it have decided, and the level nearest to
//! `w_j + Σ_{i>j} e_i·L_ij / L_jj` makes it least. That is GPTQ's update without an inverse of G.
//! In GPTQ's form the error of a column changes all following columns at once; here each column is
//! changed when its turn comes. A test compares both.
//!
//! Products of matrices differ in their last bits between CPUs with and without fused multiply-add.

use super::cholesky;
pub use super::gram::Gram;
use super::grid::Grid;
use nalgebra::DMatrix;

/// Number of columns that are rounded before the others are updated.
const BLOCK: usize = 128;

/// Rounds weights `[N, K]` to the levels −(2^(bits−1) − 1) … 2^(bits−1) − 1, times a scale per
/// output and segment, so that the outputs change least over the inputs of `gram`. `segments` are
/// the sizes of consecutive parts of K, `scales` is `[N, segments]`, and `bits` is from 2 to 8. The
/// result is the levels `[N, K]`.
///
/// Columns are rounded in descending order of their inputs' squares. `damping` (0.01 is usual)
/// times the mean of those squares is added to each of them, and ten times as much if that leaves
/// the matrix singular. Weights of inputs that are always zero are rounded to the nearest level. An
/// output for which nearest rounding is better keeps it, so no output is ever worse. A scale that
/// is not positive and finite gives level 0.
///
/// It takes O(K³ / 3 + 2.5 · N·K²) time and 16 · K² bytes besides `gram`.
///
/// # Panics
/// If the lengths do not fit.
pub fn round(
    weights: &[f32],
    scales: &[f32],
    segments: &[usize],
    gram: &Gram,
    bits: u32,
    damping: f64,
) -> Vec<i8> {
    let grid = Grid::new(weights, scales, segments, bits);
    assert_eq!(grid.inputs, gram.inputs(), "the Gram matrix has as many inputs");
    let mut levels = grid.nearest();
    let mut order: Vec<usize> = (0..grid.inputs).collect();
    order.sort_by(|&a, &b| gram.get(a, a).total_cmp(&gram.get(b, b)));
    let Some(factor) = factor(gram, &order, damping) else { return levels };
    let second_order = grid.sweep(&order, &factor);
    let before = grid.errors(&levels, gram);
    let after = grid.errors(&second_order, gram);
    let k = grid.inputs;
    for n in (0..grid.outputs).filter(|&n| after[n] < before[n]) {
        levels[n * k..][..k].copy_from_slice(&second_order[n * k..][..k]);
    }
    levels
}

/// The same as [`round`], but rounds each weight to the level nearest to it, half to even.
///
/// # Panics
/// If the lengths do not fit.
pub fn nearest(weights: &[f32], scales: &[f32], segments: &[usize], bits: u32) -> Vec<i8> {
    Grid::new(weights, scales, segments, bits).nearest()
}

/// L of the damped Gram matrix with its inputs in `order`; `None` if all inputs are zero or the
/// matrix stays singular.
fn factor(gram: &Gram, order: &[usize], damping: f64) -> Option<DMatrix<f64>> {
    let k = order.len();
    let mean = gram.sums().trace() / k.max(1) as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return None;
    }
    let mut damping = damping.max(0.0);
    for _ in 0..8 {
        let mut damped = DMatrix::from_fn(k, k, |i, j| gram.get(order[i], order[j]));
        for i in 0..k {
            damped[(i, i)] += damping * mean;
            // a dead input: its row is zero, so any positive number leads to nearest rounding
            if damped[(i, i)] <= 0.0 {
                damped[(i, i)] = mean;
            }
        }
        match cholesky::lower(damped) {
            Some(l) => return Some(l),
            None => damping = (10.0 * damping).max(1e-6),
        }
    }
    None
}

impl Grid<'_> {
    /// Rounds the inputs in `order` from the last to the first. The sum that earlier blocks add to
    /// a block is one product.
    fn sweep(&self, order: &[usize], l: &DMatrix<f64>) -> Vec<i8> {
        let (n, k) = (self.outputs, self.inputs);
        let mut levels = vec![0; n * k];
        let mut errors = DMatrix::<f64>::zeros(n, k);
        let mut end = k;
        while end > 0 {
            let first = (end - 1) / BLOCK * BLOCK;
            let mut decided =
                errors.columns(end, k - end) * l.view((end, first), (k - end, end - first));
            for j in (first..end).rev() {
                let mut column = decided.column_mut(j - first);
                for i in j + 1..end {
                    column.axpy(l[(i, j)], &errors.column(i), 1.0);
                }
                for out in 0..n {
                    let at = order[j];
                    let q = self.level(out, at, self.weight(out, at) + column[out] / l[(j, j)]);
                    levels[out * k + at] = q;
                    errors[(out, j)] = self.error(out, at, q);
                }
            }
            end = first;
        }
        levels
    }

    /// e·G·eᵀ per output.
    fn errors(&self, levels: &[i8], gram: &Gram) -> Vec<f64> {
        let (n, k) = (self.outputs, self.inputs);
        let e = DMatrix::from_fn(n, k, |n, i| self.error(n, i, levels[n * k + i]));
        let mut sums = vec![0.0; n];
        for first in (0..k).step_by(BLOCK) {
            let width = BLOCK.min(k - first);
            let product = &e * gram.sums().columns(first, width);
            for (p, e) in product.column_iter().zip(e.columns(first, width).column_iter()) {
                sums.iter_mut().zip(p.iter().zip(e.iter())).for_each(|(s, (p, e))| *s += p * e);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Rows whose inputs are mixtures of a few sources.
    fn correlated(rows: usize, k: usize, seed: u64) -> Vec<f32> {
        let (sources, mix) = (noise(rows * 4, seed), noise(4 * k, seed + 1));
        let own = noise(rows * k, seed + 2);
        let value = |r: usize, i: usize| {
            (0..4).map(|s| sources[r * 4 + s] * mix[s * k + i]).sum::<f32>() + 0.2 * own[r * k + i]
        };
        (0..rows * k).map(|at| value(at / k, at % k)).collect()
    }

    fn gram(k: usize, rows: &[f32]) -> Gram {
        let mut gram = Gram::new(k);
        gram.add(rows);
        gram
    }

    fn scales(weights: &[f32], outputs: usize, segments: &[usize], bits: u32) -> Vec<f32> {
        let k: usize = segments.iter().sum();
        let mut scales = vec![];
        for n in 0..outputs {
            let mut at = n * k;
            for &len in segments {
                let largest = weights[at..at + len].iter().fold(0.0, |a: f32, w| a.max(w.abs()));
                scales.push(largest / ((1 << (bits - 1)) - 1) as f32);
                at += len;
            }
        }
        scales
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_output_is_worse_than_with_nearest_rounding(
            outputs in 1usize..6, split in (1usize..90, 0usize..90), rows in 1usize..300, bits in 2u32..=8, seed in any::<u32>(),
        ) {
            let segments = [split.0, split.1];
            let k = split.0 + split.1;
            let (weights, x) = (noise(outputs * k, seed.into()), correlated(rows, k, u64::from(seed) + 7));
            let (scales, gram) = (scales(&weights, outputs, &segments, bits), gram(k, &x));
            let grid = Grid::new(&weights, &scales, &segments, bits);
            let found = round(&weights, &scales, &segments, &gram, bits, 0.01);
            let plain = nearest(&weights, &scales, &segments, bits);
            let last = (1i32 << (bits - 1)) - 1;
            prop_assert!(found.iter().all(|&q| i32::from(q).abs() <= last));
            for (a, b) in grid.errors(&found, &gram).iter().zip(grid.errors(&plain, &gram)) {
                prop_assert!(*a <= b, "{a} {b}");
            }
        }
    }

    #[test]
    fn correlated_inputs_lose_far_less() {
        let (n, k, bits) = (16, 200, 4);
        let (weights, gram) = (noise(n * k, 1), gram(k, &correlated(1000, k, 2)));
        let scales = scales(&weights, n, &[150, 50], bits);
        let grid = Grid::new(&weights, &scales, &[150, 50], bits);
        let error = |levels: &[i8]| grid.errors(levels, &gram).iter().sum::<f64>();
        let (found, plain) = (
            error(&round(&weights, &scales, &[150, 50], &gram, bits, 0.01)),
            error(&grid.nearest()),
        );
        assert!(found < 0.5 * plain, "{found} {plain}");
    }

    /// The published form: the factor U of the damped inverse, with every column's error spread
    /// over those after it.
    #[test]
    fn levels_are_those_of_the_published_update() {
        let (n, k, bits) = (5, 300, 4);
        let (weights, gram) = (noise(n * k, 3), gram(k, &correlated(500, k, 4)));
        let scales = scales(&weights, n, &[k], bits);
        let grid = Grid::new(&weights, &scales, &[k], bits);
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&a, &b| gram.get(b, b).total_cmp(&gram.get(a, a)));
        let damp = 0.01 * gram.sums().trace() / k as f64;
        let h = DMatrix::from_fn(k, k, |i, j| {
            gram.get(order[i], order[j]) + if i == j { damp } else { 0.0 }
        });
        let u = h.try_inverse().unwrap().cholesky().unwrap().l().transpose();
        let mut published = vec![0; n * k];
        for out in 0..n {
            let mut w: Vec<f64> = order.iter().map(|&i| grid.weight(out, i)).collect();
            for i in 0..k {
                let q = grid.level(out, order[i], w[i]);
                published[out * k + order[i]] = q;
                let error = (w[i] - f64::from(q) * grid.scale(out, order[i])) / u[(i, i)];
                (i..k).for_each(|j| w[j] -= error * u[(i, j)]);
            }
        }
        order.reverse();
        assert_eq!(grid.sweep(&order, &factor(&gram, &order, 0.01).unwrap()), published);
    }

    #[test]
    fn weights_on_the_grid_stay() {
        let (n, k) = (3, 140);
        let levels: Vec<i8> = noise(n * k, 5).iter().map(|x| (x * 7.99) as i8).collect();
        let scales = [0.5, 0.25, 1.0];
        let weights: Vec<f32> =
            levels.iter().enumerate().map(|(i, &q)| f32::from(q) * scales[i / k]).collect();
        assert_eq!(
            round(&weights, &scales, &[k], &gram(k, &correlated(50, k, 6)), 4, 0.01),
            levels
        );
    }

    #[test]
    fn independent_inputs_round_to_nearest() {
        let (n, k) = (4, 130);
        let weights = noise(n * k, 7);
        let scales = scales(&weights, n, &[k], 3);
        let unit: Vec<f32> = (0..k * k).map(|at| f32::from(at / k == at % k)).collect();
        assert_eq!(
            round(&weights, &scales, &[k], &gram(k, &unit), 3, 0.01),
            nearest(&weights, &scales, &[k], 3)
        );
    }

    #[test]
    fn degenerate_inputs_round_to_nearest() {
        let weights = [0.4, -0.6, 1.4, f32::NAN, 0.0, -9.0];
        let plain = nearest(&weights, &[1.0, 2.0], &[3], 3);
        assert_eq!(plain, [0, -1, 1, 0, 0, -3]);
        let nothing = [&[][..], &[0.0; 6], &[f32::NAN, 1.0, 2.0]];
        nothing.iter().for_each(|rows| {
            assert_eq!(round(&weights, &[1.0, 2.0], &[3], &gram(3, rows), 3, 0.0), plain)
        });
        // the second input is dead, and the others are equal
        let rows = [1.0, 0.0, 1.0, 2.0, 0.0, 2.0];
        assert_eq!(round(&[0.4, 0.6, 0.4], &[1.0], &[3], &gram(3, &rows), 3, 0.0)[1], 1);
        assert_eq!(nearest(&weights, &[0.0, f32::NAN], &[3], 3), [0; 6]);
        assert!(nearest(&[], &[], &[], 4).is_empty());
        assert!(round(&[], &[], &[3], &gram(3, &[]), 4, 0.01).is_empty());
    }
}
