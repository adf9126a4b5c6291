//! A small product whose rows lie evenly and whose accumulators are stored as they are: what
//! attention is made of.

use super::{MicroKernel, Tile, Tiling};

/// Rows of a [`Plain`] product at most.
pub(crate) const PLAIN_ROWS: usize = 96;

/// acc (+)= left · right.
pub(crate) struct Plain<L, R, A> {
    /// Rows of `depth` elements, `ld` apart; on tiles, whole tiles of rows and rows of whole pieces
    /// of 64 bytes, zeros beyond `depth`.
    pub(crate) left: *const L,
    pub(crate) ld: usize,
    /// At most [`PLAIN_ROWS`].
    pub(crate) rows: usize,
    /// Whole groups.
    pub(crate) depth: usize,
    /// Panels of `[depth / group, width, group]`; on tiles, each readable in whole pieces of 64
    /// bytes of the depth.
    pub(crate) right: *const R,
    /// Elements between two panels.
    pub(crate) ld_right: usize,
    /// Columns that count; sums have room for whole panels.
    pub(crate) cols: usize,
    /// `[rows, columns]`, rows `ld_acc` apart.
    pub(crate) acc: *mut A,
    pub(crate) ld_acc: usize,
    /// The sums begin at zero, whatever is there.
    pub(crate) first: bool,
}

impl<L: Copy, R: Copy, A: Copy> Plain<L, R, A> {
    /// On vectors.
    ///
    /// # Safety
    /// The fields must be true.
    #[inline(always)]
    pub(crate) unsafe fn run<M: MicroKernel<Left = L, Right = R, Acc = A>>(&self, micro: M) {
        let mut left = [std::ptr::null(); PLAIN_ROWS];
        for (i, left) in left[..self.rows].iter_mut().enumerate() {
            *left = self.left.wrapping_add(i * self.ld);
        }
        for (panel, col) in (0..self.cols).step_by(M::COLS).enumerate() {
            let right = self.right.wrapping_add(panel * self.ld_right);
            let tile = Tile {
                left: left.as_ptr(),
                stride: 1,
                tap: 0,
                skip: 0,
                right,
                acc: self.acc.wrapping_add(col),
                ld: self.ld_acc,
                rows: 0,
                count: 0,
                cols: (self.cols - col).min(M::COLS),
                taps: 1,
                depth: self.depth,
                first: self.first,
                next: right,
                lines: 0,
            };
            // SAFETY: the caller's promise.
            unsafe { Tiling::new(self.rows, M::ROWS).run(micro, tile) }
        }
    }
}
