//! Convolution with one channel per group: no sums over channels, so no matrix product; vectors run
//! over channels.

use crate::gemm::{Lhs, RowParts, WriteBack, load_some, store_some};
use crate::shared::cut;
use crate::simd::{Simd, SimdKernel};
use crate::{Isa, Pool};
use std::ops::Range;

/// Output pixels of a task at least.
const TASK_ROWS: usize = 16;

/// y = epilogue(Σ over taps of x · w); `w` is `[taps, channels rounded up to whole vectors]`.
///
/// The caller has checked that `lhs` has all rows, the epilogue and `y` all rows and channels.
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    lhs: &Lhs<f32>,
    rows: usize,
    channels: usize,
    w: &[f32],
    write_back: &WriteBack,
) {
    let tasks = rows.div_ceil(TASK_ROWS).min(8 * pool.threads());
    pool.run(tasks, &|task, _| {
        isa.run(DepthwiseTask { lhs, rows: cut(rows, tasks, 1, task), channels, w, write_back });
    });
}

struct DepthwiseTask<'a> {
    lhs: &'a Lhs<'a, f32>,
    rows: Range<usize>,
    channels: usize,
    w: &'a [f32],
    write_back: &'a WriteBack<'a>,
}

impl SimdKernel for DepthwiseTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            let mut c = 0;
            while c + 4 * S::LANES <= self.channels {
                self.channels_at::<S, 4>(s, row, c, S::LANES);
                c += 4 * S::LANES;
            }
            while c < self.channels {
                let n = (self.channels - c).min(S::LANES);
                self.channels_at::<S, 1>(s, row, c, n);
                c += n;
            }
        }
    }
}

impl DepthwiseTask<'_> {
    /// `V` vectors of channels from `c`; the last has `n` of them.
    #[inline(always)]
    fn channels_at<S: Simd, const V: usize>(&self, s: S, row: usize, c: usize, n: usize) {
        let (x, width) = (self.lhs.row(row), self.w.len() / self.lhs.taps);
        let mut acc = [s.splat(0.0); V];
        for tap in 0..self.lhs.taps {
            let (x, w) = (x.tap(tap).wrapping_add(c), self.w[tap * width + c..].as_ptr());
            for v in 0..V {
                let at = v * S::LANES;
                // SAFETY: `lhs` has `channels` values per row and tap, `w` whole vectors per tap.
                unsafe { acc[v] = s.fma(load_some(s, x.add(at), n), s.load(w.add(at)), acc[v]) };
            }
        }
        let parts = RowParts::new(&self.write_back.epilogue, row, 0);
        let mut scratch = [0.0; 64];
        let y = self.write_back.y.place(row, c, scratch.as_mut_ptr());
        for v in 0..V {
            let at = v * S::LANES;
            // SAFETY: checked by the caller of `run`; tasks have disjoint rows.
            unsafe {
                let sum = parts.apply(s, self.write_back.epilogue.act, acc[v], c + at, n);
                store_some(s, y.add(at), sum, n);
            }
        }
        // SAFETY: the loop has written all vectors.
        unsafe { self.write_back.y.store(s, row, c, (V - 1) * S::LANES + n, y) };
    }
}
