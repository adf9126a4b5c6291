//! From f32 to codes.

use crate::epilogue::check_matrix;
use crate::shared::{SharedMut, cut};
use crate::simd::{Kernel, Simd};
use crate::target::Rounding;
use crate::{FakeQuant, Isa, Pool};
use std::ops::Range;

/// Elements of a task.
const TASK: usize = 1 << 14;

/// y = clamp(round(x · (1 / scale)) + zero_point, 0, 2^bits − 1), the codes that [`fake_quant`](crate::fake_quant) rounds to, over
/// `[rows, Σ segments]`; NaN gives 0. `y` holds elements of [`Isa::code_type`], `ldy` counts them.
///
/// # Panics
/// When a slice is too short or not aligned, a scale is 0, or `bits` is not 1 to 8.
pub fn quantize(isa: Isa, pool: &Pool, rows: usize, x: &[f32], ldx: usize, how: &FakeQuant, y: &mut [u8], ldy: usize) {
    let (c, size) = (how.segments.iter().sum(), isa.code_type().size());
    check_matrix("x", x.len(), rows, c, ldx);
    check_matrix("y", y.len() / size, rows, c, ldy);
    assert!(y.as_ptr().addr().is_multiple_of(size), "codes of {size} bytes are not aligned");
    how.check_codes();
    let tasks = (rows * c).div_ceil(TASK).clamp(1, 8 * pool.threads()).min(rows.max(1));
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| isa.run(Task { rows: cut(rows, tasks, 1, task), x, ldx, how, y, ldy, size }));
}

struct Task<'a> {
    rows: Range<usize>,
    x: &'a [f32],
    ldx: usize,
    how: &'a FakeQuant<'a>,
    y: SharedMut<'a, u8>,
    ldy: usize,
    /// Bytes of a code.
    size: usize,
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
                let y = self.y.at((row * self.ldy + first) * self.size);
                // SAFETY: both have `n` values (checked by `quantize`); tasks have disjoint rows.
                unsafe { rounding.row(s, x.as_ptr(), y, n, self.size) };
            }
            first += n;
        }
    }
}
