//! Embeds the rows of a pool by their similarity: the leading singular vectors of their similarity
//! to some of the rows (Q&C sections 2.2 and 2.3, in the form with landmarks).

use super::SamplePool;
use nalgebra::{DMatrix, DMatrixView, SymmetricEigen};

const TILE: usize = 1024;

/// Singular values below this share of the largest are ignored.
const SMALLEST: f64 = 1e-6;

/// The measure of similarity of two rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Similarity {
    /// Weight of the content of the rows; the rest is the weight of their time.
    pub alpha: f64,
    /// Number of evaluations over which the similarity in time falls to 1/e.
    pub bandwidth: f64,
}

/// A column of length 1 (or 0) per row of the pool: its entries in the `k` leading left singular
/// vectors of the normalised similarity to `landmarks`. It takes O(rows · landmarks · (length +
/// landmarks)).
pub(super) fn embed(
    pool: &SamplePool,
    landmarks: &[usize],
    k: usize,
    similarity: Similarity,
) -> DMatrix<f32> {
    let a = normalised(similarities(pool, landmarks, similarity));
    let (n, rows) = a.shape();
    let tiles = || {
        (0..rows).step_by(TILE).map(|first| a.columns(first, TILE.min(rows - first)).map(f64::from))
    };
    let gram =
        tiles().fold(DMatrix::<f64>::zeros(n, n), |gram, tile| gram + &tile * tile.transpose());
    let Some(to_vectors) = to_left_vectors(gram, k.min(n)) else {
        return DMatrix::zeros(k.min(n), rows);
    };
    let mut embedding = DMatrix::zeros(k.min(n), rows);
    for (tile, first) in tiles().zip((0..rows).step_by(TILE)) {
        for (i, column) in (&to_vectors * tile).column_iter().enumerate() {
            let norm = column.norm();
            let unit = |x: f64| if norm > 0.0 { (x / norm) as f32 } else { 0.0 };
            embedding.column_mut(first + i).zip_apply(&column, |e, x| *e = unit(x));
        }
    }
    embedding
}

/// The similarities `[landmarks, rows]`: α · max(0, cos) + (1 − α) · exp(−|Δt| / bandwidth). Rows
/// of zeros and rows that are not finite have cosine 0.
fn similarities(
    pool: &SamplePool,
    landmarks: &[usize],
    Similarity { alpha, bandwidth }: Similarity,
) -> DMatrix<f32> {
    let length = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let inverse = |row: &[f32]| Some(1.0 / length(row)).filter(|x| x.is_finite()).unwrap_or(0.0);
    let inverses: Vec<f64> = (0..pool.len()).map(|i| inverse(pool.row(i))).collect();
    let marks = DMatrix::from_fn(landmarks.len(), pool.length, |l, at| pool.row(landmarks[l])[at]);
    let rows = DMatrixView::from_slice(pool.rows, pool.length, pool.len());
    let mut all = DMatrix::zeros(landmarks.len(), pool.len());
    for first in (0..pool.len()).step_by(TILE) {
        let count = TILE.min(pool.len() - first);
        all.columns_mut(first, count).gemm(1.0, &marks, &rows.columns(first, count), 0.0);
    }
    for (i, mut column) in all.column_iter_mut().enumerate() {
        for (product, &l) in column.iter_mut().zip(landmarks) {
            let cosine = f64::from(*product) * inverses[i] * inverses[l];
            // NaN is not greater than zero either
            let cosine = if cosine > 0.0 { cosine.min(1.0) } else { 0.0 };
            let steps = pool.evaluations[i].abs_diff(pool.evaluations[l]) as f64;
            *product = (alpha * cosine + (1.0 - alpha) * (-steps / bandwidth).exp()) as f32;
        }
    }
    all
}

/// Divides each entry by the roots of the sums of its row and of its column.
fn normalised(mut a: DMatrix<f32>) -> DMatrix<f32> {
    let inverse_root = |sum: f64| if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 };
    let mut of_rows = vec![0.0; a.nrows()];
    let mut of_columns = vec![];
    for column in a.column_iter() {
        of_rows.iter_mut().zip(column.iter()).for_each(|(sum, &x)| *sum += f64::from(x));
        of_columns.push(inverse_root(column.iter().map(|&x| f64::from(x)).sum()));
    }
    let of_rows: Vec<f64> = of_rows.into_iter().map(inverse_root).collect();
    for (mut column, by) in a.column_iter_mut().zip(of_columns) {
        column.iter_mut().zip(&of_rows).for_each(|(x, r)| *x = (f64::from(*x) * r * by) as f32);
    }
    a
}

/// diag(1/s)·Vᵀ of the `k` largest eigenvalues s² of a Gram matrix. It maps a column of
/// similarities to its place in the left singular vectors. `None` if there is no decomposition.
fn to_left_vectors(gram: DMatrix<f64>, k: usize) -> Option<DMatrix<f64>> {
    let n = gram.nrows();
    let eigen = SymmetricEigen::try_new(gram, f64::EPSILON, 1000 * n.max(1))?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let largest = order.first().map_or(0.0, |&first| eigen.eigenvalues[first]);
    let map = DMatrix::from_fn(k, n, |i, j| {
        let square = eigen.eigenvalues[order[i]];
        if square > SMALLEST * SMALLEST * largest {
            eigen.eigenvectors[(j, order[i])] / square.sqrt()
        } else {
            0.0
        }
    });
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_is_of_content_and_of_time() {
        let rows = [1.0, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, 0.0, f32::NAN, 1.0];
        let pool = SamplePool::new(&rows, &[0, 0, 1, 2, 0]);
        let a = similarities(&pool, &[0, 1], Similarity { alpha: 0.25, bandwidth: 2.0 });
        let time = |steps: f32| 0.75 * (-steps / 2.0).exp();
        let expected = [
            [0.25 + time(0.0), time(0.0), time(1.0), time(2.0), time(0.0)],
            [time(0.0), 1.0, time(1.0), time(2.0), time(0.0)],
        ];
        for (l, row) in expected.iter().enumerate() {
            row.iter().enumerate().for_each(|(i, x)| assert!((a[(l, i)] - x).abs() < 1e-6, "{a}"));
        }
    }

    /// With every row as a landmark, L is symmetric, and its singular vectors are those of its
    /// decomposition.
    #[test]
    fn the_embedding_spans_the_leading_singular_vectors() {
        let rows: Vec<f32> = (0..40 * 6).map(|i| ((i * i) as f32 * 0.61).sin()).collect();
        let evaluations: Vec<usize> = (0..40).map(|i| i / 4).collect();
        let pool = SamplePool::new(&rows, &evaluations);
        let similarity = Similarity { alpha: 0.5, bandwidth: 1.0 };
        let l = normalised(similarities(&pool, &(0..30).collect::<Vec<_>>(), similarity))
            .map(f64::from);
        let svd = l.transpose().svd(true, false);
        let (u, mut order) = (svd.u.unwrap(), (0..30).collect::<Vec<_>>());
        order.sort_by(|&a, &b| svd.singular_values[b].total_cmp(&svd.singular_values[a]));
        let found = embed(&pool, &(0..30).collect::<Vec<_>>(), 3, similarity);
        for i in 0..40 {
            let row: Vec<f64> = order[..3].iter().map(|&c| u[(i, c)]).collect();
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            // each vector is known up to its sign
            row.iter().enumerate().for_each(|(c, x)| {
                assert!((f64::from(found[(c, i)]).abs() - x.abs() / norm).abs() < 1e-4)
            });
        }
    }

    #[test]
    fn zeros_have_a_place() {
        let pool = SamplePool::new(&[0.0; 8], &[0, 1, 2, 3]);
        let embedding = embed(&pool, &[0, 2], 5, Similarity { alpha: 1.0, bandwidth: 1.0 });
        assert_eq!((embedding.shape(), embedding.amax()), ((2, 4), 0.0));
    }
}
