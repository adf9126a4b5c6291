//! Products with up to four columns: vectors run over the depth, each result is one sum over lanes.
//!
//! The last convolution of a denoiser has 3 or 4 output channels; a panel would be mostly padding.

use crate::gemm::{Finish, Lhs, RowParts};
use crate::shared::cut;
use crate::simd::{Kernel, Simd};
use crate::{Isa, Pool};
use std::ops::Range;

/// Rows computed together, so that each vector of weights is used more than once.
const M: usize = 3;
/// Rows of a task at least.
const TASK_ROWS: usize = 24;

/// y = epilogue(lhs · w) for `n ≤ 4`; `w` is `[taps, n, depth rounded up to whole vectors]`.
///
/// The caller has checked that `lhs` has all rows, the epilogue and `y` all rows and columns.
pub(crate) fn run(isa: Isa, pool: &Pool, lhs: &Lhs<f32>, rows: usize, n: usize, w: &[f32], finish: &Finish) {
    let tasks = rows.div_ceil(TASK_ROWS).min(8 * pool.threads());
    pool.run(tasks, &|task, _| {
        isa.run(Task { lhs, rows: cut(rows, tasks, M, task), n, w, finish });
    });
}

struct Task<'a> {
    lhs: &'a Lhs<'a, f32>,
    rows: Range<usize>,
    n: usize,
    w: &'a [f32],
    finish: &'a Finish<'a>,
}

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            match self.n {
                1 => self.rows_at::<S, 1>(s, row),
                2 => self.rows_at::<S, 2>(s, row),
                3 => self.rows_at::<S, 3>(s, row),
                _ => self.rows_at::<S, 4>(s, row),
            }
            row += M;
        }
    }
}

impl Task<'_> {
    /// Up to [`M`] rows from `row`. Rows beyond the end repeat the last one and are not stored.
    #[inline(always)]
    fn rows_at<S: Simd, const N: usize>(&self, s: S, row: usize) {
        let last = self.rows.end - 1;
        let width = self.lhs.depth.next_multiple_of(S::LANES);
        let mut acc = [[s.splat(0.0); N]; M];
        let rows = [row, (row + 1).min(last), (row + 2).min(last)].map(|row| self.lhs.row(row));
        for tap in 0..self.lhs.taps {
            let x = [rows[0].tap(tap), rows[1].tap(tap), rows[2].tap(tap)];
            let w = self.w[tap * N * width..][..N * width].as_ptr();
            // SAFETY: `lhs` has `depth` values per row and tap; `w` has `N` rows of `width` for this tap.
            unsafe { accumulate(s, &mut acc, &x, self.lhs.depth, w, width) };
        }
        for i in 0..M.min(self.rows.end - row) {
            let mut sums = [0.0; N];
            for j in 0..N {
                sums[j] = s.sum(acc[i][j]);
            }
            let parts = RowParts::new(&self.finish.epilogue, row + i, 0);
            let mut scratch = [0.0; N];
            let y = self.finish.y.place(row + i, 0, scratch.as_mut_ptr());
            // SAFETY: checked by the caller of `run`; tasks have disjoint rows; `N ≤ 4 ≤ LANES`.
            unsafe {
                let v = s.load_n(sums.as_ptr(), N);
                s.store_n(y, parts.apply(s, self.finish.epilogue.act, v, 0, N), N);
                self.finish.y.store(s, row + i, 0, N, y);
            }
        }
    }
}

/// acc\[i\]\[j\] += lanes of x\[i\] · w\[j\].
///
/// # Safety
/// `x[i]` must have `depth` values, `w` `N` rows of `width`, which is `depth` rounded up to whole vectors.
#[inline(always)]
unsafe fn accumulate<S: Simd, const N: usize>(
    s: S,
    acc: &mut [[S::V; N]; M],
    x: &[*const f32; M],
    depth: usize,
    w: *const f32,
    width: usize,
) {
    let whole = depth - depth % S::LANES;
    // SAFETY: the caller's promise; the last, partial vector of `x` is loaded as such.
    unsafe {
        let mut p = 0;
        while p < whole {
            for j in 0..N {
                let wv = s.load(w.add(j * width + p));
                for i in 0..M {
                    acc[i][j] = s.fma(s.load(x[i].add(p)), wv, acc[i][j]);
                }
            }
            p += S::LANES;
        }
        if p < depth {
            for j in 0..N {
                let wv = s.load(w.add(j * width + p));
                for i in 0..M {
                    acc[i][j] = s.fma(s.load_n(x[i].add(p), depth - p), wv, acc[i][j]);
                }
            }
        }
    }
}
