//! Functions of one or two numbers, in f64.

use crate::{Act, Binary, Unary};
use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

/// The error function, to about 1e-15: its series below 2.5, the continued fraction of erfc above.
pub fn erf(x: f64) -> f64 {
    let t = x.abs();
    if t.is_nan() {
        t
    } else if t < 2.5 {
        erf_series(x)
    } else {
        (1.0 - erfc_fraction(t)).copysign(x)
    }
}

/// 2/√π · Σ (−1)^k x^(2k+1) / (k! (2k+1))
fn erf_series(x: f64) -> f64 {
    let (mut power, mut sum) = (x, x);
    for k in 1..80 {
        power *= -x * x / f64::from(k);
        sum += power / f64::from(2 * k + 1);
    }
    FRAC_2_SQRT_PI * sum
}

/// 1 − erf(t) for t ≥ 2.5.
fn erfc_fraction(t: f64) -> f64 {
    if t > 30.0 {
        return 0.0;
    }
    let tail = (1..=120).rev().fold(t, |tail, k| t + f64::from(k) / 2.0 / tail);
    (-t * t).exp() / tail / PI.sqrt()
}

/// 1 + erf(x), also where erf(x) is close to −1.
fn one_plus_erf(x: f64) -> f64 {
    if x < -2.5 { erfc_fraction(-x) } else { 1.0 + erf(x) }
}

/// An activation.
pub fn act(act: Act, x: f32) -> f32 {
    let x = f64::from(x);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let y = match act {
        Act::None => x,
        Act::Silu => x * sigmoid(x),
        Act::GeluErf => 0.5 * x * one_plus_erf(x / SQRT_2),
        // 1 + tanh(u) = 2 sigmoid(2u), which keeps its digits where tanh is close to −1.
        Act::GeluTanh => x * sigmoid(2.0 * (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)),
        Act::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Act::Sigmoid => sigmoid(x),
        Act::Tanh => x.tanh(),
        Act::QuickGelu => x * sigmoid(1.702 * x),
    };
    y as f32
}

/// An operation on one number.
pub fn unary(op: Unary, x: f32) -> f32 {
    let wide = f64::from(x);
    match op {
        Unary::Act(a) => act(a, x),
        Unary::Exp => wide.exp() as f32,
        Unary::Log => wide.ln() as f32,
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Erf => erf(wide) as f32,
        Unary::Sin => wide.sin() as f32,
        Unary::Cos => wide.cos() as f32,
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
    }
}

/// An operation on two numbers.
pub fn binary(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max if a > b => a,
        Binary::Min if a < b => a,
        Binary::Max | Binary::Min => b,
        Binary::Pow => f64::from(a).powf(f64::from(b)) as f32,
    }
}
