//! exp, tanh, erf, sigmoid and the activations, on vectors.
//!
//! Largest relative error, measured by `tests/math.rs`: exp, tanh, erf and sigmoid 3e-7 over all
//! f32 whose result is a normal number; activations 3e-6 from x = −5 on (gelu by erf: from −1 on)
//! and 3e-7 absolute below. ±∞, NaN and denormals give what [`crate::reference`] gives, to 1e-37.

use crate::epilogue::Act;
use crate::simd::Arithmetic;

/// Horner's rule: the highest coefficient first.
#[inline(always)]
fn polynomial<S: Arithmetic, const N: usize>(s: S, x: S::V, coefficients: [f32; N]) -> S::V {
    let mut y = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        y = s.fma(y, x, s.splat(c));
    }
    y
}

/// Adding it rounds to whole numbers: 1.5 · 2^23.
const MAGIC: f32 = 12_582_912.0;

/// e^r for |r| ≤ ln 2 / 2: the polynomial of the least relative error, 9e-8, among those that are 1
/// at 0.
const EXP: [f32; 6] =
    [8.290_306e-3, 4.189_797_5e-2, 1.666_763_7e-1, 4.999_915e-1, 9.999_997e-1, 1.0];
/// 2^r for |r| ≤ 1/2: e^(r · ln 2).
const EXP2: [f32; 6] = {
    let (mut out, mut power, mut i) = ([0.0; 6], 1.0, 6);
    while i > 0 {
        i -= 1;
        out[i] = (EXP[i] as f64 * power) as f32;
        power *= std::f64::consts::LN_2;
    }
    out
};
/// e^−r: odd powers have the other sign.
const EXP_MINUS: [f32; 6] = [-EXP[0], EXP[1], -EXP[2], EXP[3], -EXP[4], EXP[5]];

/// x = n · ln 2 + r with whole n and |r| ≤ ln 2 / 2: n + [`MAGIC`], and e^r.
#[inline(always)]
fn exp_parts<S: Arithmetic>(s: S, x: S::V) -> (S::V, S::V) {
    let shifted = s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(MAGIC));
    let n = s.sub(shifted, s.splat(MAGIC));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    (shifted, polynomial(s, r, EXP))
}

/// e^x
#[inline(always)]
pub(crate) fn exp<S: Arithmetic>(s: S, x: S::V) -> S::V {
    // Beyond these the result is 0 and ∞ anyway. NaN passes, being second.
    let x = s.min(s.splat(90.0), s.max(s.splat(-105.0), x));
    let (shifted, y) = exp_parts(s, x);
    s.scale2(y, s.sub(shifted, s.splat(MAGIC)))
}

/// e^x for x ≤ 0, for softmax: below −87 (also at −∞) it is e^−87 ≈ 1.6e-38 instead of less.
#[inline(always)]
pub(crate) fn exp_weight<S: Arithmetic>(s: S, x: S::V) -> S::V {
    let (shifted, y) = exp_parts(s, s.max(s.splat(-87.0), x));
    s.add_exponent(y, shifted)
}

/// 2^x for x ≤ 8, for softmax: below −126 (also at −∞) it is 2^−126 instead of less.
#[inline(always)]
pub(crate) fn exp2_weight<S: Arithmetic>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-126.0), x);
    let shifted = s.add(x, s.splat(MAGIC));
    let r = s.sub(x, s.sub(shifted, s.splat(MAGIC)));
    s.add_exponent(polynomial(s, r, EXP2), shifted)
}

/// 1 + e^−x, up to ∞; below x = 60 digits of e^−x no longer count.
///
/// With n + 1 in place of n the exponent of what is added to 1 stays that of a normal number.
#[inline(always)]
fn one_plus_exp_minus<S: Arithmetic>(s: S, x: S::V) -> S::V {
    // NaN passes, being second
    let x = s.min(s.splat(60.0), s.max(s.splat(-89.0), x));
    let shifted = s.fma(x, s.splat(-std::f32::consts::LOG2_E), s.splat(MAGIC - 1.0));
    let n = s.sub(shifted, s.splat(MAGIC - 1.0));
    // −x = n · ln 2 − r
    let r = s.fma(n, s.splat(0.693_359_4), x);
    let r = s.fma(n, s.splat(-2.121_944_4e-4), r);
    let half = s.add_exponent(polynomial(s, r, EXP_MINUS), shifted);
    s.fma(half, s.splat(2.0), s.splat(1.0))
}

/// 1 / (1 + e^−x)
#[inline(always)]
pub(crate) fn sigmoid<S: Arithmetic>(s: S, x: S::V) -> S::V {
    s.div_by_large(s.splat(1.0), one_plus_exp_minus(s, x))
}

/// x · sigmoid(a · x), given a · x.
#[inline(always)]
fn gated<S: Arithmetic>(s: S, x: S::V, gate: S::V) -> S::V {
    s.div_by_large(x, one_plus_exp_minus(s, gate))
}

/// tanh x: an odd polynomial below 0.55, 1 − 2 / (e^2|x| + 1) above.
#[inline(always)]
pub(crate) fn tanh<S: Arithmetic>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let t = s.abs(x);
    let square = s.mul(x, x);
    let p = polynomial(s, square, [1.573_944e-2, -5.230_255_8e-2, 1.331_526_6e-1, -3.333_276_8e-1]);
    let small = s.fma(s.mul(p, square), x, x);
    let e = exp(s, s.add(t, t));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.if_less(s.splat(0.55), t, s.with_sign(s.abs(large), x), small)
}

/// ln erfc |x| for |x| > 0.9277, after N. Juffa's erff.
#[inline(always)]
fn log_erfc<S: Arithmetic>(s: S, t: S::V) -> S::V {
    let square = s.mul(t, t);
    let r = s.fma(s.splat(-1.728_534_7e-5), t, s.splat(3.831_97e-4));
    let u = s.fma(s.splat(-3.883_964_4e-3), t, s.splat(2.425_462_2e-2));
    let r = s.fma(r, square, u);
    let r = s.fma(r, t, s.splat(-1.067_778_8e-1));
    let r = s.fma(r, t, s.splat(-6.348_467e-1));
    let r = s.fma(r, t, s.splat(-1.287_175_1e-1));
    s.fma(r, t, s.sub(s.splat(0.0), t))
}

/// erf x for |x| ≤ 0.9277, after N. Juffa's erff.
#[inline(always)]
fn erf_small<S: Arithmetic>(s: S, x: S::V) -> S::V {
    let p = polynomial(
        s,
        s.mul(x, x),
        [
            -5.967_617e-4,
            4.991_194e-3,
            -2.676_813_5e-2,
            1.128_199_3e-1,
            -3.761_253_4e-1,
            1.283_791_7e-1,
        ],
    );
    s.fma(p, x, x)
}

const ERF_SPLIT: f32 = 0.927_734_4;

/// erf x
#[inline(always)]
pub(crate) fn erf<S: Arithmetic>(s: S, x: S::V) -> S::V {
    let t = s.abs(x);
    let large = s.sub(s.splat(1.0), exp(s, log_erfc(s, t)));
    s.if_less(s.splat(ERF_SPLIT), t, s.with_sign(large, x), erf_small(s, x))
}

/// x/2 · (1 + erf(x/√2)); for x ≪ 0 by erfc itself, which keeps the digits.
#[inline(always)]
fn gelu_erf<S: Arithmetic>(s: S, x: S::V) -> S::V {
    let u = s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.abs(u);
    let tail = exp(s, log_erfc(s, t));
    let large = s.if_less(u, s.splat(0.0), tail, s.sub(s.splat(2.0), tail));
    let small = s.add(s.splat(1.0), erf_small(s, u));
    s.mul(s.mul(x, s.splat(0.5)), s.if_less(s.splat(ERF_SPLIT), t, large, small))
}

/// x/2 · (1 + tanh u) = x · sigmoid(2u)
#[inline(always)]
fn gelu_tanh<S: Arithmetic>(s: S, x: S::V) -> S::V {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    let cubic = s.mul(s.mul(x, x), s.mul(x, s.splat(0.044_715 * TWO_SQRT_2_OVER_PI)));
    gated(s, x, s.fma(x, s.splat(TWO_SQRT_2_OVER_PI), cubic))
}

/// An activation.
#[inline(always)]
pub(crate) fn activate<S: Arithmetic>(s: S, act: Act, x: S::V) -> S::V {
    match act {
        Act::None => x,
        Act::Silu => gated(s, x, x),
        Act::GeluErf => gelu_erf(s, x),
        Act::GeluTanh => gelu_tanh(s, x),
        Act::Relu => s.max(s.splat(0.0), x),
        Act::Sigmoid => sigmoid(s, x),
        Act::Tanh => tanh(s, x),
        Act::QuickGelu => gated(s, x, s.mul(x, s.splat(1.702))),
    }
}

/// An activation that a kernel knows when it is compiled, or any.
pub(crate) trait ActivationFunction: Copy {
    /// Of a vector.
    fn apply<S: Arithmetic>(self, s: S, x: S::V) -> S::V;
}

impl ActivationFunction for Act {
    #[inline(always)]
    fn apply<S: Arithmetic>(self, s: S, x: S::V) -> S::V {
        activate(s, self, x)
    }
}

/// [`Act::None`]
#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl ActivationFunction for Identity {
    #[inline(always)]
    fn apply<S: Arithmetic>(self, _: S, x: S::V) -> S::V {
        x
    }
}

/// [`Act::Silu`]
#[derive(Clone, Copy)]
pub(crate) struct Silu;

impl ActivationFunction for Silu {
    #[inline(always)]
    fn apply<S: Arithmetic>(self, s: S, x: S::V) -> S::V {
        activate(s, Act::Silu, x)
    }
}

/// The nearest whole number, half to even, of |v| < 2^22.
#[inline(always)]
pub(crate) fn round_small<S: Arithmetic>(s: S, v: S::V) -> S::V {
    // above 2^23 the last bit is worth 1
    let magic = s.splat(12_582_912.0);
    s.sub(s.add(v, magic), magic)
}
