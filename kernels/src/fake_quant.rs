//! Activations rounded to what unsigned integers stand for, or turned into those integers.

use crate::epilogue::check_matrix;
use crate::gemm::load_some;
use crate::output::{Output, Put, Sink};
use crate::shared::cut;
use crate::simd::{Simd, SimdKernel};
use crate::{Isa, Pool};
use std::ops::Range;

/// How [`fake_quant`] rounds: per segment of the last axis a scale and a zero point (a whole number
/// in 0 ..= 2^bits − 1). A scale of 0 lets the segment pass.
#[derive(Clone, Copy, Debug)]
pub struct FakeQuant<'a> {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Columns of each segment; they add up to the columns of a row.
    pub segments: &'a [usize],
    /// One scale per segment; 0 lets the segment pass as it is.
    pub scale: &'a [f32],
    /// One zero point per segment, a whole number in 0 ..= 2^bits − 1.
    pub zero_point: &'a [f32],
}

/// Elements of a task.
const TASK: usize = 1 << 14;

/// y = (q − zero_point) · scale with q = clamp(round(x · (1 / scale)) + zero_point, 0, 2^bits − 1)
/// over `[rows, Σ segments]`; NaN gives q = 0.
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
    store(isa, pool, rows, how.segments.iter().sum(), x, ldx, Output::Rounded(y, *how), ldy);
}

/// y = q, the codes that [`fake_quant`] rounds to: elements of [`Isa::code_type`], which `ldy`
/// counts.
///
/// # Panics
/// When a slice is too short or not aligned, a scale is 0, or `bits` is not 1 to 8.
pub fn quantize(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    x: &[f32],
    ldx: usize,
    how: &FakeQuant,
    y: &mut [u8],
    ldy: usize,
) {
    store(isa, pool, rows, how.segments.iter().sum(), x, ldx, Output::Codes(y, *how), ldy);
}

/// `rows` rows of `c` values in the format of the output.
pub(crate) fn store(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    c: usize,
    x: &[f32],
    ldx: usize,
    y: Output,
    ldy: usize,
) {
    check_matrix("x", x.len(), rows, c, ldx);
    let y = Sink::new(isa, y, rows, c, ldy);
    let tasks = (rows * c).div_ceil(TASK).clamp(1, 8 * pool.threads()).min(rows.max(1));
    pool.run(tasks, &|task, _| {
        isa.run(StoreTask { rows: cut(rows, tasks, 1, task), c, x, ldx, y })
    });
}

struct StoreTask<'a> {
    rows: Range<usize>,
    c: usize,
    x: &'a [f32],
    ldx: usize,
    y: Sink<'a>,
}

impl SimdKernel for StoreTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, 0, self.c) else { continue };
            for row in self.rows.clone() {
                let x = &self.x[row * self.ldx..][..self.c];
                let mut at = columns.start;
                while at < columns.end {
                    let n = (columns.end - at).min(S::LANES);
                    // SAFETY: `at + n ≤ c`; `store` has checked all rows; tasks have disjoint ones.
                    unsafe { writer.put(s, row, at, load_some(s, x.as_ptr().add(at), n), n) };
                    at += n;
                }
            }
        }
    }
}
