//! Passes over one row: maximum, sums, exponentials.

use crate::gemm::{load_some, store_some};
use crate::math::{exp_weight, round_small};
use crate::simd::wide::{CHAINS, Wide};
use crate::simd::{Arithmetic, Simd};
use cqc_proto::op::SOFTMAX_BF16;

/// The largest scale · x; −∞ for no values.
#[inline(always)]
pub(crate) fn row_max<S: Simd>(s: S, x: &[f32], scale: f32) -> f32 {
    let scale_v = s.splat(scale);
    let mut best = [s.splat(f32::NEG_INFINITY); CHAINS];
    let whole = x.len() / (CHAINS * S::LANES) * (CHAINS * S::LANES);
    for at in (0..whole).step_by(CHAINS * S::LANES) {
        for j in 0..CHAINS {
            // SAFETY: `at + CHAINS · LANES ≤ whole ≤ x.len()`.
            let v = unsafe { s.load(x.as_ptr().add(at + j * S::LANES)) };
            best[j] = s.max(s.mul(v, scale_v), best[j]);
        }
    }
    let best = s.max(s.max(best[0], best[1]), s.max(best[2], best[3]));
    x[whole..].iter().fold(s.max_lane(best), |best, x| best.max(x * scale))
}

/// How softmax rounds exponentials.
#[derive(Clone, Copy)]
pub(crate) enum SoftmaxRounding {
    /// Not at all.
    Exact,
    /// To multiples of one in so many.
    Levels(f32),
    /// To bf16.
    Bf16,
}

impl SoftmaxRounding {
    /// What `softmax_bits` of an attention means.
    pub(crate) fn of(bits: u8) -> SoftmaxRounding {
        match bits {
            0 => SoftmaxRounding::Exact,
            SOFTMAX_BF16 => SoftmaxRounding::Bf16,
            bits => SoftmaxRounding::Levels(((1u32 << bits) - 1) as f32),
        }
    }
}

/// x = exp(scale · x − max), and their sum; no value of scale · x exceeds `max`. With levels x =
/// round(levels · exp(…)) instead.
#[inline(always)]
pub(crate) fn exp_row<S: Simd>(
    s: S,
    x: &mut [f32],
    scale: f32,
    max: f32,
    weights: SoftmaxRounding,
) -> f32 {
    let how = SoftmaxPass { scale: s.splat(scale), minus_max: s.splat(-max), weights };
    let mut total = s.splat(0.0);
    let whole = x.len() - x.len() % S::LANES;
    let many = whole - whole % (CHAINS * S::LANES);
    // SAFETY: all vectors end at `whole`; fewer than `LANES` values are left then.
    unsafe {
        for at in (0..many).step_by(CHAINS * S::LANES) {
            total = how.vectors::<CHAINS>(s, x.as_mut_ptr().add(at), total);
        }
        for at in (many..whole).step_by(S::LANES) {
            total = how.vectors::<1>(s, x.as_mut_ptr().add(at), total);
        }
        let (place, n) = (x.as_mut_ptr().add(whole), x.len() - whole);
        if n > 0 {
            let [v] = how.weights(s, [s.load_n(place, n)]);
            s.store_n(place, v, n);
        }
    }
    s.sum(total) + x[whole..].iter().sum::<f32>()
}

/// How [`exp_row`] treats a value. (No closure: one would not be compiled for the instruction set.)
#[derive(Clone, Copy)]
struct SoftmaxPass<S: Simd> {
    scale: S::V,
    minus_max: S::V,
    weights: SoftmaxRounding,
}

impl<S: Simd> SoftmaxPass<S> {
    /// Weighs `M` vectors at `place`: `total` and theirs.
    ///
    /// # Safety
    /// They must be writable.
    #[inline(always)]
    unsafe fn vectors<const M: usize>(self, s: S, place: *mut f32, mut total: S::V) -> S::V {
        let mut v = [total; M];
        // SAFETY: the caller's promise.
        unsafe {
            for (j, v) in v.iter_mut().enumerate() {
                *v = s.load(place.add(j * S::LANES));
            }
            let v = self.weights(s, v);
            for (j, &v) in v.iter().enumerate() {
                s.store(place.add(j * S::LANES), v);
                total = s.add(total, v);
            }
        }
        total
    }

    /// eˣ, rounded.
    #[inline(always)]
    fn weights<const M: usize>(self, s: S, mut x: [S::V; M]) -> [S::V; M] {
        for x in &mut x {
            *x = s.fma(*x, self.scale, self.minus_max);
        }
        let w = Wide::<S, M>(s);
        let v = exp_weight(w, x);
        match self.weights {
            SoftmaxRounding::Exact => v,
            SoftmaxRounding::Levels(levels) => round_small(w, w.mul(v, w.splat(levels))),
            SoftmaxRounding::Bf16 => {
                let mut v = v;
                for v in &mut v {
                    *v = s.round_bf16(*v);
                }
                v
            }
        }
    }
}

/// x = factor · x
#[inline(always)]
pub(crate) fn scale_row<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    let mut at = 0;
    while at < x.len() {
        let n = (x.len() - at).min(S::LANES);
        // SAFETY: `at + n ≤ x.len()`.
        unsafe {
            let place = x.as_mut_ptr().add(at);
            store_some(s, place, s.mul(load_some(s, place, n), factor), n);
        }
        at += n;
    }
}

/// Σ x
#[inline(always)]
pub(crate) fn row_sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut total = [s.splat(0.0); CHAINS];
    let whole = x.len() / (CHAINS * S::LANES) * (CHAINS * S::LANES);
    for at in (0..whole).step_by(CHAINS * S::LANES) {
        for j in 0..CHAINS {
            // SAFETY: `at + CHAINS · LANES ≤ whole ≤ x.len()`.
            total[j] = s.add(total[j], unsafe { s.load(x.as_ptr().add(at + j * S::LANES)) });
        }
    }
    let total = s.add(s.add(total[0], total[1]), s.add(total[2], total[3]));
    x[whole..].iter().fold(s.sum(total), |total, x| total + x)
}

/// Σ (x − pivot)²
#[inline(always)]
pub(crate) fn row_squares<S: Simd>(s: S, x: &[f32], pivot: f32) -> f32 {
    let pivot_v = s.splat(pivot);
    let mut total = [s.splat(0.0); CHAINS];
    let whole = x.len() / (CHAINS * S::LANES) * (CHAINS * S::LANES);
    for at in (0..whole).step_by(CHAINS * S::LANES) {
        for j in 0..CHAINS {
            // SAFETY: `at + CHAINS · LANES ≤ whole ≤ x.len()`.
            let v = s.sub(unsafe { s.load(x.as_ptr().add(at + j * S::LANES)) }, pivot_v);
            total[j] = s.fma(v, v, total[j]);
        }
    }
    let total = s.add(s.add(total[0], total[1]), s.add(total[2], total[3]));
    x[whole..].iter().fold(s.sum(total), |total, x| total + (x - pivot) * (x - pivot))
}
