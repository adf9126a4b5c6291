//! Precision and recall of a set of features (Kynkäänniemi et al. 2019, arXiv:1904.06991).
//!
//! The manifold of a set is the union of balls around its points. Each ball reaches to the point's
//! k-th nearest neighbour in the set.

use nalgebra::{DMatrix, DMatrixView};

/// The usual number k of the neighbour.
pub const K: usize = 3;

/// Number of queries whose distances are computed at once.
const TILE: usize = 256;

/// The share of each set that lies in the manifold of the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of the generated points in the manifold of the reference.
    pub precision: f64,
    /// Share of the reference points in the manifold of the generated set.
    pub recall: f64,
}

/// Precision and recall of `generated` with the `k`-th neighbour; `None` if a set has at most `k`
/// points.
///
/// Distances are computed in f64. Those that are too near to the surface of a ball are computed
/// again without cancellation, so that points on the surface are inside. It takes O((n + m)² ·
/// dimensions) time, and memory for both sets.
pub fn precision_recall(
    reference: &[f32],
    generated: &[f32],
    dimensions: usize,
    k: usize,
) -> Option<PrecisionRecall> {
    let (reference, generated) =
        (Points::new(reference, dimensions), Points::new(generated, dimensions));
    let (of_reference, of_generated) = (reference.radii(k)?, generated.radii(k)?);
    Some(PrecisionRecall {
        precision: reference.share_inside(&of_reference, &generated),
        recall: generated.share_inside(&of_generated, &reference),
    })
}

struct Points {
    /// One column per point.
    columns: DMatrix<f64>,
    /// |x|² of each point.
    squares: Vec<f64>,
}

impl Points {
    fn new(rows: &[f32], dimensions: usize) -> Points {
        let values = rows.iter().map(|&v| f64::from(v));
        let columns = DMatrix::from_iterator(dimensions, rows.len() / dimensions.max(1), values);
        let squares = columns.column_iter().map(|c| c.norm_squared()).collect();
        Points { columns, squares }
    }

    fn len(&self) -> usize {
        self.squares.len()
    }

    /// Calls `f(j, distances)` for each query `j` with its squared distances to all points, up to
    /// rounding.
    fn for_each_query(&self, queries: &Points, mut f: impl FnMut(usize, &[f64])) {
        let mut distances = vec![0.0; self.len()];
        for first in (0..queries.len()).step_by(TILE) {
            let tile: DMatrixView<f64> =
                queries.columns.columns(first, TILE.min(queries.len() - first));
            let products = self.columns.tr_mul(&tile);
            for (j, products) in products.column_iter().enumerate() {
                let square = queries.squares[first + j];
                for (d, (product, s)) in
                    distances.iter_mut().zip(products.iter().zip(&self.squares))
                {
                    *d = s + square - 2.0 * product;
                }
                f(first + j, &distances);
            }
        }
    }

    /// Squared distance without cancellation. It is exactly symmetric.
    fn distance(&self, i: usize, other: &Points, j: usize) -> f64 {
        let pairs = self.columns.column(i).into_iter().zip(other.columns.column(j));
        pairs.map(|(a, b)| (a - b) * (a - b)).sum()
    }

    /// Squared distance of each point to its `k`-th neighbour.
    fn radii(&self, k: usize) -> Option<Vec<f64>> {
        if k == 0 || self.len() <= k {
            return None;
        }
        let mut radii = Vec::with_capacity(self.len());
        let mut others: Vec<usize> = Vec::with_capacity(self.len());
        self.for_each_query(self, |j, distances| {
            others.clear();
            others.extend((0..distances.len()).filter(|&i| i != j));
            let order = |&a: &usize, &b: &usize| distances[a].total_cmp(&distances[b]);
            let (_, &mut neighbour, _) = others.select_nth_unstable_by(k - 1, order);
            radii.push(self.distance(neighbour, self, j));
        });
        Some(radii)
    }

    fn share_inside(&self, radii: &[f64], queries: &Points) -> f64 {
        // a thousand times the rounding of a product of some thousand elements
        const DOUBT: f64 = 1e-10;
        let mut inside = 0;
        self.for_each_query(queries, |j, distances| {
            let reaches = |i: usize| {
                let doubtful = (distances[i] - radii[i]).abs()
                    <= DOUBT * (self.squares[i] + queries.squares[j]);
                let distance = if doubtful { self.distance(i, queries, j) } else { distances[i] };
                distance <= radii[i]
            };
            inside += usize::from((0..distances.len()).any(reaches));
        });
        inside as f64 / queries.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::numbers;

    const D: usize = 5;

    #[test]
    fn values_are_those_of_numpy() {
        let reference = numbers(21, 400 * D);
        let generated: Vec<f32> =
            numbers(22, 300 * D).into_iter().map(|v| v * 1.25 + 0.125).collect();
        let found = precision_recall(&reference, &generated, D, K).unwrap();
        assert_eq!((found.precision, found.recall), (0.6, 0.9725));
    }

    #[test]
    fn a_set_covers_itself_also_far_from_the_origin() {
        for offset in [0.0, 1000.0] {
            let a: Vec<f32> = numbers(3, 300 * D).into_iter().map(|v| v + offset).collect();
            let shuffled: Vec<f32> = a.chunks_exact(D).rev().flatten().copied().collect();
            let found = precision_recall(&a, &shuffled, D, K).unwrap();
            assert_eq!((found.precision, found.recall), (1.0, 1.0));
        }
    }

    #[test]
    fn points_on_a_ball_are_inside() {
        let reference = [0.0, 1.0, 2.0, 3.0f32]; // radii 3, 2, 2, 3 for k = 3: the farthest of the others
        let found = precision_recall(&reference, &[6.0, 6.0, -3.0, 6.5], 1, 3).unwrap();
        assert_eq!(found.precision, 0.75);
        assert_eq!(precision_recall(&reference, &reference[..3], 1, 3), None);
    }
}
