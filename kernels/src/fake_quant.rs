//! Activations rounded to what unsigned integers stand for.

use crate::epilogue::check_matrix;
use crate::gemm::{load_some, store_some};
use crate::shared::{SharedMut, cut};
use crate::simd::{Kernel, Simd};
use crate::target::Rounding;
use crate::{Isa, Pool};
use std::ops::Range;

/// How [`fake_quant`] rounds: per segment of the last axis a scale and a zero point (a whole number in 0 ..= 2^bits − 1). A scale of 0 lets
/// the segment pass.
#[derive(Clone, Copy, Debug)]
pub struct FakeQuant<'a> {
    /// 2 to 8.
    pub bits: u8,
    /// Sizes, which add up to the columns.
    pub segments: &'a [usize],
    /// One per segment.
    pub scale: &'a [f32],
    /// One per segment.
    pub zero_point: &'a [f32],
}

/// Elements of a task.
const TASK: usize = 1 << 14;

/// y = (q − zero_point) · scale with q = clamp(round(x · (1 / scale)) + zero_point, 0, 2^bits − 1) over `[rows, Σ segments]`; NaN gives q = 0.
///
/// # Panics
/// When a slice is too short.
pub fn fake_quant(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    x: &[f32],
    ldx: usize,
    how: &FakeQuant,
    y: &mut [f32],
    ldy: usize,
) {
    let c: usize = how.segments.iter().sum();
    check_matrix("x", x.len(), rows, c, ldx);
    check_matrix("y", y.len(), rows, c, ldy);
    how.check();
    let tasks = (rows * c).div_ceil(TASK).clamp(1, 8 * pool.threads()).min(rows.max(1));
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| isa.run(Task { rows: cut(rows, tasks, 1, task), x, ldx, how, y, ldy }));
}

struct Task<'a> {
    rows: Range<usize>,
    x: &'a [f32],
    ldx: usize,
    how: &'a FakeQuant<'a>,
    y: SharedMut<'a, f32>,
    ldy: usize,
}

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut first = 0;
        for (i, &n) in self.how.segments.iter().enumerate() {
            let rounding = Rounding::new(s, self.how, i);
            for row in self.rows.clone() {
                let x = &self.x[row * self.ldx + first..][..n];
                // SAFETY: `fake_quant` has checked all rows; tasks have disjoint ones.
                let y = unsafe { self.y.part(row * self.ldy + first, n) };
                let mut at = 0;
                while at < n {
                    let lanes = (n - at).min(S::LANES);
                    // SAFETY: both have `n` values.
                    unsafe {
                        let v = rounding.round(s, load_some(s, x.as_ptr().add(at), lanes));
                        store_some(s, y.as_mut_ptr().add(at), v, lanes);
                    }
                    at += lanes;
                }
            }
            first += n;
        }
    }
}
