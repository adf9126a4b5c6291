//! From f32 to codes.

use super::dot::{Dot, IntKernel};
use crate::arena::cast_mut;
use crate::epilogue::check_matrix;
use crate::gemm::load_some;
use crate::math::round_small;
use crate::shared::{SharedMut, cut};
use crate::simd::Simd;
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
    let c: usize = how.segments.iter().sum();
    check_matrix("x", x.len(), rows, c, ldx);
    check_matrix("y", y.len() / isa.code_type().size(), rows, c, ldy);
    how.check_codes();
    let tasks = (rows * c).div_ceil(TASK).clamp(1, 8 * pool.threads()).min(rows.max(1));
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| isa.run_integer(Task { rows: cut(rows, tasks, 1, task), x, ldx, how, y, ldy }));
}

impl FakeQuant<'_> {
    /// Panics unless every segment has codes of at most 8 bits.
    fn check_codes(&self) {
        let count = self.segments.len();
        assert!(self.scale.len() >= count && self.zero_point.len() >= count, "a scale and a zero point per segment");
        assert!((1..=8).contains(&self.bits), "{} bits", self.bits);
        assert!(self.scale[..count].iter().all(|&s| s != 0.0), "a scale of 0 stands for no rounding");
    }
}

struct Task<'a> {
    rows: Range<usize>,
    x: &'a [f32],
    ldx: usize,
    how: &'a FakeQuant<'a>,
    y: SharedMut<'a, u8>,
    ldy: usize,
}

impl IntKernel for Task<'_> {
    #[inline(always)]
    fn run<D: Dot>(self, d: D) {
        let size = size_of::<D::Code>();
        let mut first = 0;
        for (i, &n) in self.how.segments.iter().enumerate() {
            let rounding = Rounding::new(d, self.how, i);
            for row in self.rows.clone() {
                let x = &self.x[row * self.ldx + first..][..n];
                // SAFETY: `quantize` has checked all rows; tasks have disjoint ones.
                let y: &mut [D::Code] = cast_mut(unsafe { self.y.part((row * self.ldy + first) * size, n * size) });
                // SAFETY: both have `n` values.
                unsafe { rounding.row(d, x.as_ptr(), y.as_mut_ptr(), n) };
            }
            first += n;
        }
    }
}

/// How a segment is rounded.
#[derive(Clone, Copy)]
struct Rounding<D: Dot> {
    inverse: <D::Float as Simd>::V,
    low: <D::Float as Simd>::V,
    high: <D::Float as Simd>::V,
    zero: <D::Float as Simd>::V,
}

impl<D: Dot> Rounding<D> {
    #[inline(always)]
    fn new(d: D, how: &FakeQuant, segment: usize) -> Rounding<D> {
        let (s, zero) = (d.float(), how.zero_point[segment]);
        let levels = ((1u32 << how.bits) - 1) as f32;
        let (low, high) = (s.splat(-zero), s.splat(levels - zero));
        Rounding { inverse: s.splat(1.0 / how.scale[segment]), low, high, zero: s.splat(zero) }
    }

    /// # Safety
    /// `n` values must be readable and writable.
    #[inline(always)]
    unsafe fn row(self, d: D, x: *const f32, y: *mut D::Code, n: usize) {
        let (s, lanes) = (d.float(), <D::Float as Simd>::LANES);
        let mut at = 0;
        while at < n {
            let count = (n - at).min(lanes);
            // SAFETY: the caller's promise.
            unsafe {
                let v = s.mul(load_some(s, x.add(at), count), self.inverse);
                // `low` for NaN
                let v = s.min(s.max(v, self.low), self.high);
                d.store_codes(y.add(at), s.add(round_small(s, v), self.zero), count);
            }
            at += count;
        }
    }
}
