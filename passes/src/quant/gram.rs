//! Gram matrices of a layer's inputs.

use nalgebra::{DMatrix, DMatrixView};

/// Number of rows and of columns that are processed together.
const BLOCK: usize = 128;

/// Σ xᵀ·x over rows x of K inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    sums: DMatrix<f64>,
}

impl Gram {
    /// The sums of no rows. It takes 8 · `inputs`² bytes.
    pub fn new(inputs: usize) -> Gram {
        Gram { sums: DMatrix::zeros(inputs, inputs) }
    }

    /// Number of inputs K.
    pub fn inputs(&self) -> usize {
        self.sums.nrows()
    }

    /// Σ x_i·x_j.
    ///
    /// # Panics
    /// If there are fewer inputs.
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.sums[(i, j)]
    }

    pub(super) fn sums(&self) -> &DMatrix<f64> {
        &self.sums
    }

    /// Adds rows, `[n, K]`. Sums over 128 rows are in f32, and sums over those in f64. Rows with a
    /// value that is not finite are left out.
    ///
    /// # Panics
    /// If the length is no multiple of K.
    pub fn add(&mut self, rows: &[f32]) {
        let k = self.inputs();
        if k == 0 {
            return;
        }
        assert!(rows.len().is_multiple_of(k), "rows of {k} inputs");
        for rows in rows.chunks(k * BLOCK) {
            if rows.iter().all(|x| x.is_finite()) {
                self.add_block(rows);
            } else {
                let finite = rows.chunks(k).filter(|row| row.iter().all(|x| x.is_finite()));
                self.add_block(&finite.flatten().copied().collect::<Vec<_>>());
            }
        }
        self.sums.fill_upper_triangle_with_lower_triangle();
    }

    /// Adds the rows of another matrix.
    ///
    /// # Panics
    /// If it has another number of inputs.
    pub fn merge(&mut self, other: &Gram) {
        self.sums += &other.sums;
    }

    /// Adds a block to the lower triangle.
    fn add_block(&mut self, rows: &[f32]) {
        let k = self.inputs();
        let columns = DMatrixView::from_slice(rows, k, rows.len() / k);
        let rows = columns.transpose();
        let mut product = DMatrix::zeros(k, BLOCK);
        for first in (0..k).step_by(BLOCK) {
            let (height, width) = (k - first, BLOCK.min(k - first));
            let mut product = product.view_mut((0, 0), (height, width));
            product.gemm(1.0, &columns.rows(first, height), &rows.columns(first, width), 0.0);
            let mut sums = self.sums.view_mut((first, first), (height, width));
            sums.zip_apply(&product, |sum: &mut f64, p: f32| *sum += f64::from(p));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram(k: usize, rows: &[f32]) -> Gram {
        let mut gram = Gram::new(k);
        gram.add(rows);
        gram
    }

    #[test]
    fn gram_sums_products_however_rows_are_cut() {
        let (k, x) = (150, (0..400 * 150).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>());
        let mut parts = gram(k, &x[..k * 128]);
        parts.merge(&gram(k, &x[k * 128..]));
        assert_eq!(parts, gram(k, &x));
        for (i, j) in [(0, 0), (3, 149), (149, 3), (128, 127)] {
            let direct: f64 = x.chunks(k).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
            assert!(
                (parts.get(i, j) - direct).abs()
                    < 1e-5 * (parts.get(i, i) * parts.get(j, j)).sqrt()
            );
        }
    }
}
