//! Products with up to four columns: vectors run over the depth, each result is one sum over lanes.
//!
//! The last convolution of a denoiser has 3 or 4 output channels; a panel would be mostly padding.

use crate::gemm::{Lhs, RowParts, WriteBack};
use crate::shared::cut;
use crate::simd::{Simd, SimdKernel};
use crate::{Isa, Pool};
use std::ops::Range;

/// Rows of a task at least.
const TASK_ROWS: usize = 24;

/// y = epilogue(lhs · w) for `n ≤ 4`; `w` is `[taps, n, depth rounded up to whole vectors]`.
///
/// The caller has checked that `lhs` has all rows, the epilogue and `y` all rows and columns.
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    lhs: &Lhs<f32>,
    rows: usize,
    n: usize,
    w: &[f32],
    write_back: &WriteBack,
) {
    let tasks = rows.div_ceil(TASK_ROWS).min(8 * pool.threads());
    pool.run(tasks, &|task, _| {
        isa.run(DotTask { lhs, rows: cut(rows, tasks, 1, task), n, w, write_back });
    });
}

struct DotTask<'a> {
    lhs: &'a Lhs<'a, f32>,
    rows: Range<usize>,
    n: usize,
    w: &'a [f32],
    write_back: &'a WriteBack<'a>,
}

impl SimdKernel for DotTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // as many sums as registers hold beside the weights of a vector
        match self.n {
            1 => self.all::<S, 1, 6>(s),
            2 => self.all::<S, 2, 5>(s),
            3 => self.all::<S, 3, 4>(s),
            _ => self.all::<S, 4, 2>(s),
        }
    }
}

impl DotTask<'_> {
    /// All rows, `M` together.
    #[inline(always)]
    fn all<S: Simd, const N: usize, const M: usize>(&self, s: S) {
        for row in self.rows.clone().step_by(M) {
            self.rows_at::<S, N, M>(s, row);
        }
    }

    /// Up to `M` rows from `row`. Rows beyond the end repeat the last one and are not stored.
    #[inline(always)]
    fn rows_at<S: Simd, const N: usize, const M: usize>(&self, s: S, row: usize) {
        let last = self.rows.end - 1;
        let width = self.lhs.depth.next_multiple_of(S::LANES);
        let mut acc = [[s.splat(0.0); N]; M];
        let mut rows = [self.lhs.row(row); M];
        for i in 1..M {
            rows[i] = self.lhs.row((row + i).min(last));
        }
        for tap in 0..self.lhs.taps {
            let mut x = [std::ptr::null(); M];
            for i in 0..M {
                x[i] = rows[i].tap(tap);
            }
            let w = self.w[tap * N * width..][..N * width].as_ptr();
            // SAFETY: `lhs` has `depth` values per row and tap; `w` has `N` rows of `width` for
            // this tap.
            unsafe { accumulate(s, &mut acc, &x, self.lhs.depth, w, width) };
        }
        for i in 0..M.min(self.rows.end - row) {
            // a whole vector, since storing a part of one takes longer than copying a few values
            let mut values = [0.0; 16];
            for j in 0..N {
                values[j] = s.sum(acc[i][j]);
            }
            let parts = RowParts::new(&self.write_back.epilogue, row + i, 0);
            let mut scratch = [0.0; N];
            let y = self.write_back.y.place(row + i, 0, scratch.as_mut_ptr());
            // SAFETY: checked by the caller of `run`; tasks have disjoint rows; `N ≤ 4 ≤ LANES ≤
            // 16`.
            unsafe {
                let v = parts.apply(s, self.write_back.epilogue.act, s.load(values.as_ptr()), 0, N);
                s.store(values.as_mut_ptr(), v);
                y.copy_from_nonoverlapping(values.as_ptr(), N);
                self.write_back.y.store(s, row + i, 0, N, y);
            }
        }
    }
}

/// acc\[i\]\[j\] += lanes of x\[i\] · w\[j\].
///
/// # Safety
/// `x[i]` must have `depth` values, `w` `N` rows of `width`, which is `depth` rounded up to whole
/// vectors.
#[inline(always)]
unsafe fn accumulate<S: Simd, const N: usize, const M: usize>(
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
            let mut wv = [s.splat(0.0); N];
            for j in 0..N {
                wv[j] = s.load(w.add(j * width + p));
            }
            for i in 0..M {
                let xv = s.load(x[i].add(p));
                for j in 0..N {
                    acc[i][j] = s.fma(xv, wv[j], acc[i][j]);
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
