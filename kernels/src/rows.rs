//! Passes over one row: maximum, sums, exponentials.

use crate::gemm::{load_some, store_some};
use crate::math::{exp_weight, round_small};
use crate::simd::Simd;

/// Vectors summed side by side, so that one addition need not wait for the one before.
const CHAINS: usize = 4;

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

/// x = exp(scale · x − max), and their sum; no value of scale · x exceeds `max`. With `levels` above 0 x = round(levels · exp(…)) instead.
#[inline(always)]
pub(crate) fn exp_row<S: Simd>(s: S, x: &mut [f32], scale: f32, max: f32, levels: f32) -> f32 {
    let (scale, minus_max) = (s.splat(scale), s.splat(-max));
    let mut total = s.splat(0.0);
    let mut at = 0;
    while at + S::LANES <= x.len() {
        // SAFETY: `at + LANES ≤ x.len()`.
        unsafe {
            let place = x.as_mut_ptr().add(at);
            let v = weight(s, s.fma(s.load(place), scale, minus_max), levels);
            s.store(place, v);
            total = s.add(total, v);
        }
        at += S::LANES;
    }
    let rest = x.len() - at;
    if rest == 0 {
        return s.sum(total);
    }
    let mut tail = 0.0;
    // SAFETY: `rest < LANES` values are left.
    unsafe {
        let place = x.as_mut_ptr().add(at);
        s.store_n(place, weight(s, s.fma(s.load_n(place, rest), scale, minus_max), levels), rest);
    }
    x[at..].iter().for_each(|x| tail += x);
    s.sum(total) + tail
}

/// eˣ, or round(levels · eˣ). (No closure: one would not be compiled for the instruction set.)
#[inline(always)]
fn weight<S: Simd>(s: S, x: S::V, levels: f32) -> S::V {
    let v = exp_weight(s, x);
    if levels > 0.0 { round_small(s, s.mul(v, s.splat(levels))) } else { v }
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
