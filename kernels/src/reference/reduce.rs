//! Reductions and softmax.

use super::Call;
use super::lane::{Lane, by_float, by_lane};
use super::walk::{around, runs, strides, volume};
use cqc_proto::dtype::DType;
use cqc_proto::op::{Op, ReduceKind};
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Tensor {
    let dtype = call.input(0).dtype();
    match call.op {
        Op::Reduce { kind: kind @ (ReduceKind::Max | ReduceKind::Min), axes, .. } => {
            by_lane!(dtype, T => extreme::<T>(call, *kind == ReduceKind::Max, axes))
        }
        Op::Reduce { kind, axes, .. } => match kind {
            ReduceKind::L2 | ReduceKind::LogSum | ReduceKind::LogSumExp => {
                in_f64(call, *kind, axes)
            }
            _ if dtype.is_float() => in_f64(call, *kind, axes),
            _ if dtype == DType::U64 => of_integers::<u64>(call, *kind, axes),
            _ => of_integers::<i64>(call, *kind, axes),
        },
        Op::ArgReduce { largest, axis, last, .. } => {
            by_lane!(dtype, T => arg_reduce::<T>(call, *largest, *axis, *last))
        }
        Op::Softmax { axis } => by_float!(dtype, T => softmax::<T>(call, *axis, false)),
        Op::LogSoftmax { axis } => by_float!(dtype, T => softmax::<T>(call, *axis, true)),
        _ => unreachable!("dispatched by reference::eval"),
    }
}

/// Folds every element into the result's element that it belongs to.
fn fold<T: Copy, A: Copy>(
    x: &[T],
    shape: &[usize],
    axes: &[usize],
    mut into: Vec<A>,
    f: impl Fn(A, T) -> A,
) -> Vec<A> {
    let kept: Vec<usize> =
        shape.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    let mut to = strides(&kept);
    axes.iter().for_each(|&axis| to[axis] = 0);
    runs(shape, [&strides(shape), &to], |[i, o], n, [_, step]| {
        let (run, o) = (&x[i as usize..][..n], o as usize);
        match step {
            0 => into[o] = run.iter().fold(into[o], |a, &v| f(a, v)),
            _ => into[o..].iter_mut().zip(run).for_each(|(a, &v)| *a = f(*a, v)),
        }
    });
    into
}

/// How many elements each result is made of.
fn count(call: &Call, axes: &[usize]) -> usize {
    axes.iter().map(|&a| call.input(0).shape()[a]).fold(1, usize::saturating_mul)
}

fn in_f64(call: &Call, kind: ReduceKind, axes: &[usize]) -> Tensor {
    let (x, out) = (call.input(0), call.out());
    let values = f64::load(x);
    let sum = |f: fn(f64, f64) -> f64, first: f64| {
        fold(&values, x.shape(), axes, vec![first; out.len()], f)
    };
    let then = |mut sums: Vec<f64>, f: &dyn Fn(f64) -> f64| {
        sums.iter_mut().for_each(|v| *v = f(*v));
        sums
    };
    out.of(&match kind {
        ReduceKind::Mean => then(sum(|a, v| a + v, 0.0), &|v| v / count(call, axes) as f64),
        ReduceKind::Prod => sum(|a, v| a * v, 1.0),
        ReduceKind::L1 => sum(|a, v| a + v.abs(), 0.0),
        ReduceKind::L2 => then(sum(|a, v| a + v * v, 0.0), &f64::sqrt),
        ReduceKind::SumSquare => sum(|a, v| a + v * v, 0.0),
        ReduceKind::LogSum => then(sum(|a, v| a + v, 0.0), &libm::log),
        ReduceKind::LogSumExp => log_sum_exp(&values, x.shape(), axes, out.len()),
        _ => sum(|a, v| a + v, 0.0), // Max and Min have been taken apart by `eval`
    })
}

fn log_sum_exp(x: &[f64], shape: &[usize], axes: &[usize], len: usize) -> Vec<f64> {
    let largest = fold(x, shape, axes, vec![f64::NEG_INFINITY; len], <f64 as Lane>::max);
    // inf - inf would be NaN: around an infinite maximum the plain exponentials already say what
    // the result is
    let start = largest.into_iter().map(|m| (if m.is_finite() { m } else { 0.0 }, 0.0)).collect();
    let sums = fold(x, shape, axes, start, |(m, sum), v| (m, sum + libm::exp(v - m)));
    sums.into_iter().map(|(m, sum)| m + libm::log(sum)).collect()
}

fn of_integers<T: Lane>(call: &Call, kind: ReduceKind, axes: &[usize]) -> Tensor {
    let (x, out) = (call.input(0), call.out());
    let values = T::load(x);
    let sum =
        |f: fn(T, T) -> T, first: T| fold(&values, x.shape(), axes, vec![first; out.len()], f);
    out.of(&match kind {
        ReduceKind::Prod => sum(T::mul, T::ONE),
        ReduceKind::L1 => sum(|a, v| a.add(v.abs()), T::ZERO),
        ReduceKind::SumSquare => sum(|a, v| a.add(v.mul(v)), T::ZERO),
        ReduceKind::Mean => {
            let n = T::from_f64(count(call, axes).max(1) as f64);
            sum(T::add, T::ZERO).into_iter().map(|v| v.div(n)).collect()
        }
        _ => sum(T::add, T::ZERO),
    })
}

fn extreme<T: Lane>(call: &Call, largest: bool, axes: &[usize]) -> Tensor {
    let (x, out) = (call.input(0), call.out());
    let (lowest, highest) = limits(out.dtype);
    let start = vec![if largest { lowest } else { highest }; out.len()];
    let f = if largest { <T as Lane>::max } else { <T as Lane>::min };
    out.of(&fold(&T::load(x), x.shape(), axes, start, f))
}

/// Smallest and largest value of an element type, infinite for floats.
pub(super) fn limits<T: Lane>(dtype: DType) -> (T, T) {
    let bits = 8 * dtype.size() as i32;
    match dtype {
        DType::Bool => (T::ZERO, T::ONE),
        DType::I8 | DType::I16 | DType::I32 => {
            let limit = 2f64.powi(bits - 1);
            (T::from_f64(-limit), T::from_f64(limit - 1.0))
        }
        DType::U8 | DType::U16 | DType::U32 => (T::ZERO, T::from_f64(2f64.powi(bits) - 1.0)),
        _ => (T::LOWEST, T::HIGHEST),
    }
}

fn arg_reduce<T: Lane>(call: &Call, largest: bool, axis: usize, last: bool) -> Tensor {
    let x = T::load(call.input(0));
    let (outer, n, inner) = around(call.input(0).shape(), axis);
    let beats = |v: T, best: T| match (v.is_nan(), best.is_nan()) {
        (true, false) => true,
        (a, b) if a || b => a && last,
        _ if v == best => last,
        _ => (v > best) == largest,
    };
    let place = |(o, i): (usize, usize)| {
        let at = |j: usize| x[(o * n + j) * inner + i];
        (1..n).fold(0, |best, j| if beats(at(j), at(best)) { j } else { best }) as i64
    };
    let places: Vec<i64> =
        (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))).map(place).collect();
    call.out().of(&places)
}

fn softmax<T: Lane>(call: &Call, axis: usize, log: bool) -> Tensor {
    let x = T::load(call.input(0));
    let (outer, n, inner) = around(&call.out().shape, axis);
    let mut y = vec![T::ZERO; volume(&call.out().shape)];
    let mut line = vec![0.0; n];
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let at = |j: usize| (o * n + j) * inner + i;
        let largest = (0..n).fold(f64::NEG_INFINITY, |m, j| Lane::max(m, x[at(j)].to_f64()));
        let mut sum = 0.0;
        for (j, e) in line.iter_mut().enumerate() {
            let d = x[at(j)].to_f64() - largest;
            let exp = libm::exp(d);
            sum += exp;
            *e = if log { d } else { exp };
        }
        let log_sum = libm::log(sum);
        for (j, &e) in line.iter().enumerate() {
            y[at(j)] = T::from_f64(if log { e - log_sum } else { e / sum });
        }
    }
    call.out().of(&y)
}
