//! Normalisations within a row, and softmax. Across pixels: [`crate::group_norm()`].

use crate::epilogue::{PerImage, check_matrix};
use crate::gemm::{load_some, store_some};
use crate::output::{Output, Sink};
use crate::rows::{SoftmaxRounding, exp_row, row_max, row_squares, row_sum, scale_row};
use crate::shared::{SharedMut, cut};
use crate::simd::{Simd, SimdKernel};
use crate::{Isa, Pool, scratch};
use std::ops::Range;

/// Shape and weights of [`layer_norm`] and [`rms_norm`].
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Rows, each normalised by itself.
    pub rows: usize,
    /// Values in a row.
    pub c: usize,
    /// Added to the variance (mean square).
    pub eps: f32,
    /// `[c]`; none = 1.
    pub gamma: Option<&'a [f32]>,
    /// `[c]`; none = 0.
    pub beta: Option<&'a [f32]>,
    /// adaLN: (scale, shift) per image, y · (1 + scale) + shift.
    pub modulate: Option<(PerImage<'a>, PerImage<'a>)>,
}

/// y = ((x − mean) / √(var + eps) · gamma + beta) · (1 + scale) + shift, per row.
///
/// # Panics
/// When a slice is too short.
pub fn layer_norm<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &LayerNorm,
    x: &[f32],
    ldx: usize,
    y: impl Into<Output<'a>>,
    ldy: usize,
) {
    run_norm(isa, pool, shape, true, x, ldx, y.into(), ldy);
}

/// y = (x / √(mean(x²) + eps) · gamma + beta) · (1 + scale) + shift, per row.
///
/// # Panics
/// When a slice is too short.
pub fn rms_norm<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &LayerNorm,
    x: &[f32],
    ldx: usize,
    y: impl Into<Output<'a>>,
    ldy: usize,
) {
    run_norm(isa, pool, shape, false, x, ldx, y.into(), ldy);
}

/// Rows of a task: enough values to be worth handing out.
fn row_tasks(pool: &Pool, rows: usize, cols: usize) -> usize {
    (rows * cols).div_ceil(8192).clamp(1, 8 * pool.threads()).min(rows.max(1))
}

fn run_norm(
    isa: Isa,
    pool: &Pool,
    shape: &LayerNorm,
    centred: bool,
    x: &[f32],
    ldx: usize,
    y: Output,
    ldy: usize,
) {
    check_matrix("x", x.len(), shape.rows, shape.c, ldx);
    let y = Sink::new(isa, y, shape.rows, shape.c, ldy);
    for (name, weights) in [("gamma", shape.gamma), ("beta", shape.beta)] {
        let len = weights.map_or(shape.c, <[f32]>::len);
        assert!(len >= shape.c, "{name} has {len} values, needs {}", shape.c);
    }
    if let Some((scale, shift)) = shape.modulate {
        scale.check("scale", shape.rows, shape.c);
        shift.check("shift", shape.rows, shape.c);
    }
    let tasks = row_tasks(pool, shape.rows, shape.c);
    pool.run(tasks, &|task, _| {
        let rows = cut(shape.rows, tasks, 1, task);
        scratch::with(y.scratch(shape.c), |scratch| {
            isa.run(NormTask { shape, centred, rows, x, ldx, y, scratch: scratch.as_mut_ptr() });
        });
    });
}

struct NormTask<'a> {
    shape: &'a LayerNorm<'a>,
    centred: bool,
    rows: Range<usize>,
    x: &'a [f32],
    ldx: usize,
    y: Sink<'a>,
    /// What the output needs for a row.
    scratch: *mut f32,
}

impl SimdKernel for NormTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.shape;
        for row in self.rows.clone() {
            let x = &self.x[row * self.ldx..][..shape.c];
            let mean = if self.centred { row_sum(s, x) / shape.c as f32 } else { 0.0 };
            let inv = 1.0 / (row_squares(s, x, mean) / shape.c as f32 + shape.eps).sqrt();
            let y = self.y.place(row, 0, self.scratch);
            // SAFETY: `run_norm` has checked all rows and made room for one; tasks have disjoint
            // rows.
            unsafe {
                self.store_row(s, row, x, y, mean, inv);
                self.y.store(s, row, 0, shape.c, y);
            }
        }
    }
}

impl NormTask<'_> {
    /// y = ((x − mean) · inv · gamma + beta) · (1 + scale) + shift
    ///
    /// # Safety
    /// A row must be writable at `y`.
    #[inline(always)]
    unsafe fn store_row<S: Simd>(
        &self,
        s: S,
        row: usize,
        x: &[f32],
        y: *mut f32,
        mean: f32,
        inv: f32,
    ) {
        let (shape, c) = (self.shape, self.shape.c);
        let (mean, inv, one) = (s.splat(mean), s.splat(inv), s.splat(1.0));
        let modulate = shape.modulate.map(|(scale, shift)| (scale.of(row, c), shift.of(row, c)));
        let mut at = 0;
        while at < c {
            let n = (c - at).min(S::LANES);
            // SAFETY: all slices have `c` values (checked by `run_norm`) and `at + n ≤ c`.
            unsafe {
                let mut v = s.mul(s.sub(load_some(s, x.as_ptr().add(at), n), mean), inv);
                if let Some(gamma) = shape.gamma {
                    v = s.mul(v, load_some(s, gamma.as_ptr().add(at), n));
                }
                if let Some(beta) = shape.beta {
                    v = s.add(v, load_some(s, beta.as_ptr().add(at), n));
                }
                if let Some((scale, shift)) = modulate {
                    let factor = s.add(one, load_some(s, scale.as_ptr().add(at), n));
                    v = s.fma(v, factor, load_some(s, shift.as_ptr().add(at), n));
                }
                store_some(s, y.add(at), v, n);
            }
            at += n;
        }
    }
}

/// Softmax of each of `rows` rows of `cols` values, without gaps. A row of −∞ gives zeros.
///
/// # Panics
/// When a slice is too short.
pub fn softmax(isa: Isa, pool: &Pool, rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    check_matrix("x", x.len(), rows, cols, cols);
    check_matrix("y", y.len(), rows, cols, cols);
    let tasks = row_tasks(pool, rows, cols);
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| {
        for row in cut(rows, tasks, 1, task) {
            // SAFETY: tasks have disjoint rows.
            let y = unsafe { y.part(row * cols, cols) };
            y.copy_from_slice(&x[row * cols..][..cols]);
            isa.run(SoftmaxRow(y));
        }
    });
}

struct SoftmaxRow<'a>(&'a mut [f32]);

impl SimdKernel for SoftmaxRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = row_max(s, self.0, 1.0);
        if max == f32::NEG_INFINITY {
            return self.0.fill(0.0);
        }
        let total = exp_row(s, self.0, 1.0, max, SoftmaxRounding::Exact);
        scale_row(s, self.0, 1.0 / total);
    }
}
