//! Cholesky factorization of large matrices in blocks. The one of nalgebra goes column by column
//! and waits for memory.

use nalgebra::DMatrix;

const BLOCK: usize = 128;

/// Replaces the lower triangle of a symmetric matrix by L, where L·Lᵀ is the matrix. The part above
/// the diagonal then has no meaning. `None` if the matrix is not positive definite. It takes O(n³ /
/// 3).
pub(super) fn lower(mut a: DMatrix<f64>) -> Option<DMatrix<f64>> {
    let n = a.nrows();
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let end = first + width;
        let l = a.view((first, first), (width, width)).clone_owned().cholesky()?.unpack();
        let inverse = l.solve_lower_triangular(&DMatrix::identity(width, width))?;
        a.view_mut((first, first), (width, width)).copy_from(&l);
        if end == n {
            break;
        }
        let below = a.view((end, first), (n - end, width)) * inverse.transpose();
        let across = below.transpose();
        for j in (end..n).step_by(BLOCK) {
            let width = BLOCK.min(n - j);
            let rows = below.rows(j - end, n - j);
            a.view_mut((j, j), (n - j, width)).gemm(
                -1.0,
                &rows,
                &across.columns(j - end, width),
                1.0,
            );
        }
        a.view_mut((end, first), below.shape()).copy_from(&below);
    }
    Some(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l_times_its_transpose_is_the_matrix() {
        for n in [1, 2, 127, 128, 129, 300] {
            let waves =
                DMatrix::from_fn(n, n, |i, j| ((i * 7919 + j * 104_729) as f64 * 0.37).sin());
            let a = &waves * waves.transpose() + DMatrix::identity(n, n);
            let l = lower(a.clone()).unwrap().lower_triangle();
            assert!((&l * l.transpose() - &a).amax() <= 1e-10 * a.amax(), "n = {n}");
        }
        assert_eq!(lower(DMatrix::from_row_slice(2, 2, &[1.0, 2.0, 2.0, 1.0])), None);
        assert_eq!(lower(DMatrix::from_element(1, 1, f64::NAN)), None);
    }
}
