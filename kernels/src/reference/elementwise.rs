//! Operators that work element by element.

use super::lane::{Lane, by_float, by_lane, by_width, words};
use super::walk::{broadcast_strides, runs};
use super::{Call, EvalError};
use cqc_proto::dtype::DType;
use cqc_proto::op::{Act, BinaryKind, Op, UnaryKind};
use cqc_proto::tensor::Tensor;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

pub(super) fn eval(call: &Call) -> Result<Tensor, EvalError> {
    match call.op {
        Op::Unary { kind } => Ok(unary(call, *kind)),
        Op::Binary { kind } => binary(call, *kind),
        Op::Where => Ok(by_width!(call.out().dtype, W => select::<W>(call))),
        Op::Cast { .. } => {
            Ok(by_lane!(call.input(0).dtype(), T => call.out().of(&T::load(call.input(0)))))
        }
        _ => unreachable!("dispatched by reference::eval"),
    }
}

fn map<T: Copy, R>(values: &[T], f: impl Fn(T) -> R) -> Vec<R> {
    values.iter().map(|&v| f(v)).collect()
}

fn unary(call: &Call, kind: UnaryKind) -> Tensor {
    let (x, out) = (call.input(0), call.out());
    match kind {
        _ if x.dtype() == DType::U64 || x.dtype() == DType::Bool => {
            out.of(&map(&u64::load(x), |v| of_integer(kind, v)))
        }
        _ if !x.dtype().is_float() => out.of(&map(&i64::load(x), |v| of_integer(kind, v))),
        UnaryKind::IsNan => {
            by_float!(x.dtype(), T => out.of(&map(&T::load(x), |v| v.is_nan() as u64)))
        }
        UnaryKind::IsInf { negative, positive } => {
            let test =
                |v: f64| (negative && v == f64::NEG_INFINITY) || (positive && v == f64::INFINITY);
            by_float!(x.dtype(), T => out.of(&map(&T::load(x), |v| test(v.to_f64()) as u64)))
        }
        _ => {
            by_float!(x.dtype(), T => out.of(&map(&T::load(x), |v| T::from_f64(of_float(kind, v.to_f64())))))
        }
    }
}

/// The functions that take integers or bool.
fn of_integer<T: Lane>(kind: UnaryKind, x: T) -> T {
    use UnaryKind::*;
    match kind {
        Neg => T::ZERO.sub(x),
        Abs => x.abs(),
        Sign if x == T::ZERO => x,
        Sign if x < T::ZERO => T::ZERO.sub(T::ONE),
        Sign => T::ONE,
        Relu => x.max(T::ZERO),
        Not => T::ONE.sub(x),
        BitwiseNot => T::ZERO.sub(T::ONE).sub(x),
        Shrink { .. } => T::from_f64(of_float(kind, x.to_f64())),
        _ => x, // Floor, Ceil, Round
    }
}

/// Every function of a float, evaluated in f64.
#[inline]
pub(super) fn of_float(kind: UnaryKind, x: f64) -> f64 {
    use UnaryKind::*;
    match kind {
        Neg => -x,
        Abs => x.abs(),
        Sign if x == 0.0 || x.is_nan() => x,
        Sign => 1f64.copysign(x),
        Exp => libm::exp(x),
        Log => libm::log(x),
        Sqrt => x.sqrt(),
        Reciprocal => 1.0 / x,
        Floor => x.floor(),
        Ceil => x.ceil(),
        Round => x.round_ties_even(),
        Sin => libm::sin(x),
        Cos => libm::cos(x),
        Tan => libm::tan(x),
        Asin => libm::asin(x),
        Acos => libm::acos(x),
        Atan => libm::atan(x),
        Sinh => libm::sinh(x),
        Cosh => libm::cosh(x),
        Asinh => libm::asinh(x),
        Acosh => libm::acosh(x),
        Atanh => libm::atanh(x),
        Tanh => libm::tanh(x),
        Sigmoid => sigmoid(x),
        Erf => libm::erf(x),
        Relu => x.max_nan(0.0),
        Softplus => softplus(x),
        Softsign => x / (1.0 + x.abs()),
        Silu => x * sigmoid(x),
        GeluErf => 0.5 * x * libm::erfc(-x * FRAC_1_SQRT_2),
        GeluTanh => 0.5 * x * (1.0 + libm::tanh(FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x))),
        QuickGelu => x * sigmoid(1.702 * x),
        Mish => x * libm::tanh(softplus(x)),
        HardSwish => x * (x / 6.0 + 0.5).max_nan(0.0).min_nan(1.0),
        LeakyRelu { alpha } => {
            if x < 0.0 {
                alpha as f64 * x
            } else {
                x
            }
        }
        Elu { alpha } => elu(x, alpha as f64),
        Celu { alpha } => {
            x.max_nan(0.0) + (alpha as f64 * libm::expm1(x / alpha as f64)).min_nan(0.0)
        }
        Selu { alpha, gamma } => gamma as f64 * elu(x, alpha as f64),
        HardSigmoid { alpha, beta } => (alpha as f64 * x + beta as f64).max_nan(0.0).min_nan(1.0),
        ThresholdedRelu { alpha } => {
            if x > alpha as f64 {
                x
            } else {
                0.0
            }
        }
        Shrink { bias, lambd } => shrink(x, bias as f64, lambd as f64),
        Swish { alpha } => x * sigmoid(alpha as f64 * x),
        Not | BitwiseNot | IsNan | IsInf { .. } => {
            unreachable!("not a function from float to float")
        }
    }
}

/// `max` and `min` that keep NaN, unlike std's.
trait KeepNan {
    fn max_nan(self, other: f64) -> f64;
    fn min_nan(self, other: f64) -> f64;
}

impl KeepNan for f64 {
    fn max_nan(self, other: f64) -> f64 {
        Lane::max(self, other)
    }
    fn min_nan(self, other: f64) -> f64 {
        Lane::min(self, other)
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn softplus(x: f64) -> f64 {
    x.max_nan(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn elu(x: f64, alpha: f64) -> f64 {
    if x < 0.0 { alpha * libm::expm1(x) } else { x }
}

fn shrink(x: f64, bias: f64, lambd: f64) -> f64 {
    match x {
        _ if x < -lambd => x + bias,
        _ if x > lambd => x - bias,
        _ => 0.0,
    }
}

/// The activation of fused operators.
#[inline]
pub(super) fn activate(act: Act, x: f64) -> f64 {
    match act {
        Act::None => x,
        Act::Silu => of_float(UnaryKind::Silu, x),
        Act::GeluErf => of_float(UnaryKind::GeluErf, x),
        Act::GeluTanh => of_float(UnaryKind::GeluTanh, x),
        Act::QuickGelu => of_float(UnaryKind::QuickGelu, x),
        Act::Relu => of_float(UnaryKind::Relu, x),
        Act::Sigmoid => of_float(UnaryKind::Sigmoid, x),
        Act::Tanh => of_float(UnaryKind::Tanh, x),
    }
}

/// `f` of two tensors broadcast to `shape`.
fn zip<A: Copy, B: Copy, R: Clone>(
    (a, shape_a): (&[A], &[usize]),
    (b, shape_b): (&[B], &[usize]),
    shape: &[usize],
    f: impl Fn(A, B) -> R,
) -> Vec<R> {
    let (steps_a, steps_b) = (broadcast_strides(shape_a, shape), broadcast_strides(shape_b, shape));
    let mut out = Vec::with_capacity(super::volume(shape));
    runs(shape, [&steps_a, &steps_b], |[i, j], n, steps| {
        let (i, j) = (i as usize, j as usize);
        match steps {
            [1, 1] => out.extend(a[i..i + n].iter().zip(&b[j..j + n]).map(|(&a, &b)| f(a, b))),
            [1, 0] => out.extend(a[i..i + n].iter().map(|&a| f(a, b[j]))),
            [0, 1] => out.extend(b[j..j + n].iter().map(|&b| f(a[i], b))),
            [s, t] => out.extend((0..n).map(|k| f(a[i + k * s as usize], b[j + k * t as usize]))),
        }
    });
    out
}

fn binary(call: &Call, kind: BinaryKind) -> Result<Tensor, EvalError> {
    use BinaryKind::*;
    let dtype = call.input(0).dtype();
    match kind {
        Pow => Ok(power(call)),
        Equal | Less | LessOrEqual | Greater | GreaterOrEqual => {
            by_lane!(dtype, T => compare::<T>(call, kind))
        }
        And | Or | Xor | BitwiseAnd | BitwiseOr | BitwiseXor | ShiftLeft | ShiftRight => {
            bitwise(call, kind)
        }
        Div | Mod | Fmod if !dtype.is_float() && call.input(1).to_i64_vec().contains(&0) => {
            Err(EvalError::DivisionByZero { op: call.op.name() })
        }
        _ => by_lane!(dtype, T => arithmetic::<T>(call, kind)),
    }
}

/// `f` of both inputs, in one lane.
fn zip_inputs<T: Lane, R: Lane>(call: &Call, f: impl Fn(T, T) -> R) -> Result<Tensor, EvalError> {
    let (a, b) = (call.input(0), call.input(1));
    Ok(call.out().of(&zip(
        (&T::load(a), a.shape()),
        (&T::load(b), b.shape()),
        &call.out().shape,
        f,
    )))
}

fn arithmetic<T: Lane>(call: &Call, kind: BinaryKind) -> Result<Tensor, EvalError> {
    match kind {
        BinaryKind::Add => zip_inputs(call, T::add),
        BinaryKind::Sub => zip_inputs(call, T::sub),
        BinaryKind::Mul => zip_inputs(call, T::mul),
        BinaryKind::Div => zip_inputs(call, T::div),
        BinaryKind::Mod => zip_inputs(call, T::modulo),
        BinaryKind::Fmod => zip_inputs(call, T::rem),
        BinaryKind::Min => zip_inputs(call, <T as Lane>::min),
        BinaryKind::Max => zip_inputs(call, <T as Lane>::max),
        BinaryKind::Prelu => zip_inputs(call, |a: T, b| if a < T::ZERO { a.mul(b) } else { a }),
        _ => unreachable!("dispatched by `binary`"),
    }
}

fn compare<T: Lane>(call: &Call, kind: BinaryKind) -> Result<Tensor, EvalError> {
    match kind {
        BinaryKind::Less => zip_inputs(call, |a: T, b| (a < b) as u64),
        BinaryKind::LessOrEqual => zip_inputs(call, |a: T, b| (a <= b) as u64),
        BinaryKind::Greater => zip_inputs(call, |a: T, b| (a > b) as u64),
        BinaryKind::GreaterOrEqual => zip_inputs(call, |a: T, b| (a >= b) as u64),
        _ => zip_inputs(call, |a: T, b| (a == b) as u64),
    }
}

/// Logic and shifts on the bits as i64: sign-extended for signed types, u64 as it is, bool 0 or 1.
fn bitwise(call: &Call, kind: BinaryKind) -> Result<Tensor, EvalError> {
    let dtype = call.input(0).dtype();
    let width = 8 * dtype.size() as u64;
    let shift = |b: i64| ((b as u64) < width).then_some(b as u32);
    match kind {
        BinaryKind::And | BinaryKind::BitwiseAnd => zip_inputs(call, |a: i64, b: i64| a & b),
        BinaryKind::Or | BinaryKind::BitwiseOr => zip_inputs(call, |a: i64, b: i64| a | b),
        BinaryKind::Xor | BinaryKind::BitwiseXor => zip_inputs(call, |a: i64, b: i64| a ^ b),
        BinaryKind::ShiftLeft => zip_inputs(call, |a: i64, b| shift(b).map_or(0, |b| a << b)),
        _ if dtype == DType::U64 => {
            zip_inputs(call, |a: u64, b| shift(b as i64).map_or(0, |b| a >> b))
        }
        _ => zip_inputs(call, |a: i64, b| a >> shift(b).unwrap_or(63)),
    }
}

fn power(call: &Call) -> Tensor {
    let (a, b, out) = (call.input(0), call.input(1), call.out());
    let (base, exponent) = (a.dtype(), b.dtype());
    if base.is_float() {
        let e = b.to_f64_vec();
        return by_float!(base, T => {
            let f = |x: T, e| if e == 2.0 { x.mul(x) } else { T::from_f64(libm::pow(x.to_f64(), e)) };
            out.of(&zip((&T::load(a), a.shape()), (&e, b.shape()), &out.shape, f))
        });
    }
    if exponent.is_float() {
        let e = b.to_f64_vec();
        return by_lane!(base, T => {
            let f = |x: T, e| T::from_f64(libm::pow(x.to_f64(), e));
            out.of(&zip((&T::load(a), a.shape()), (&e, b.shape()), &out.shape, f))
        });
    }
    let signed_exponent = exponent != DType::U64;
    let signed_base = base != DType::U64;
    let f = |x: i64, e: i64| {
        if signed_exponent && e < 0 {
            inverse_power(x, e, signed_base)
        } else {
            wrapping_power(x, e as u64)
        }
    };
    out.of(&zip((&a.to_i64_vec(), a.shape()), (&b.to_i64_vec(), b.shape()), &out.shape, f))
}

/// x to a power ≥ 0 by squaring; the low 64 bits are those of signed and unsigned x alike.
fn wrapping_power(mut x: i64, mut e: u64) -> i64 {
    let mut out = 1i64;
    while e > 0 {
        if e & 1 == 1 {
            out = out.wrapping_mul(x);
        }
        x = x.wrapping_mul(x);
        e >>= 1;
    }
    out
}

/// 1 / x^|e| truncated, 0 for x = 0.
fn inverse_power(x: i64, e: i64, signed: bool) -> i64 {
    match x {
        1 => 1,
        -1 if signed => {
            if e % 2 == 0 {
                1
            } else {
                -1
            }
        }
        _ => 0,
    }
}

fn select<W: bytemuck::Pod>(call: &Call) -> Tensor {
    let (condition, a, b, out) = (call.input(0), call.input(1), call.input(2), call.out());
    let steps = [condition, a, b].map(|t| broadcast_strides(t.shape(), &out.shape));
    let (c, a, b) = (condition.bytes(), words::<W>(a), words::<W>(b));
    let mut y = Vec::with_capacity(out.len());
    runs(&out.shape, [&steps[0], &steps[1], &steps[2]], |[i, j, k], n, [di, dj, dk]| {
        let at = |start: isize, step: isize, m: usize| start as usize + m * step as usize;
        y.extend(
            (0..n).map(|m| if c[at(i, di, m)] != 0 { a[at(j, dj, m)] } else { b[at(k, dk, m)] }),
        );
    });
    out.of_words(&y)
}
