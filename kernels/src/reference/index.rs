//! Gather, scatter and the other operators with index operands.

use super::lane::{Lane, by_lane, by_width, words};
use super::walk::{around, each, strides, volume};
use super::{Call, EvalError};
use cqc_proto::dtype::DType;
use cqc_proto::op::{Op, ScatterReduction};
use cqc_proto::tensor::Tensor;
use std::cmp::Ordering;

pub(super) fn eval(call: &Call) -> Result<Vec<Tensor>, EvalError> {
    let one = |t| Ok(vec![t]);
    match call.op {
        Op::Gather { axis } => one(gather(call, *axis)?),
        Op::GatherElements { axis } => {
            one(by_width!(call.out().dtype, W => gather_elements::<W>(call, *axis))?)
        }
        Op::GatherNd { batch_dims } => one(gather_nd(call, *batch_dims)?),
        Op::ScatterNd { reduction } => {
            let data = call.input(0).shape();
            let k = *call.input(1).shape().last().expect("the shape rule refuses scalar indices");
            let places = tuples(call, data, k)?;
            one(scatter(call, &places, volume(&data[k..]), *reduction))
        }
        Op::ScatterElements { axis, reduction } => {
            one(scatter(call, &element_places(call, *axis)?, 1, *reduction))
        }
        Op::OneHot { axis, depth } => {
            one(by_width!(call.out().dtype, W => one_hot::<W>(call, *axis, *depth)))
        }
        Op::TopK { axis, k, largest } => {
            Ok(by_lane!(call.out().dtype, T => top_k::<T>(call, *axis, *k as usize, *largest)))
        }
        Op::CumSum { axis, exclusive, reverse } => one(match call.out().dtype.is_float() {
            true => running_sum::<f64>(call, *axis, *exclusive, *reverse),
            false => running_sum::<i64>(call, *axis, *exclusive, *reverse),
        }),
        _ => unreachable!("dispatched by reference::eval"),
    }
}

/// The index operand; u64 beyond i64 saturates, which no axis reaches.
fn indices(t: &Tensor) -> Vec<i64> {
    match t.dtype() {
        DType::U64 => u64::load(t).iter().map(|&v| i64::try_from(v).unwrap_or(i64::MAX)).collect(),
        _ => t.to_i64_vec(),
    }
}

fn gather(call: &Call, axis: usize) -> Result<Tensor, EvalError> {
    let (data, out) = (call.input(0), call.out());
    let (outer, n, inner) = around(data.shape(), axis);
    let chunk = inner * out.dtype.size();
    let indices = indices(call.input(1));
    let places = indices.iter().map(|&i| call.place(i, n)).collect::<Result<Vec<_>, _>>()?;
    let mut bytes = Vec::with_capacity(out.len() * out.dtype.size());
    for o in 0..outer {
        for place in &places {
            bytes.extend_from_slice(&data.bytes()[(o * n + place) * chunk..][..chunk]);
        }
    }
    Ok(out.of_bytes(bytes))
}

/// For each element of the index operand (input 1), the position in data (input 0) that it
/// addresses along the axis.
fn element_places(call: &Call, axis: usize) -> Result<Vec<usize>, EvalError> {
    let (data, operand) = (call.input(0).shape(), call.input(1));
    let own = strides(data);
    let mut beside = own.clone();
    beside[axis] = 0;
    let indices = indices(operand);
    let mut places = Vec::with_capacity(indices.len());
    let mut failed = None;
    each(operand.shape(), [&beside], |[at]| match call.place(indices[places.len()], data[axis]) {
        Ok(place) => places.push(at as usize + place * own[axis] as usize),
        Err(e) => {
            failed.get_or_insert(e);
            places.push(0);
        }
    });
    failed.map_or(Ok(places), Err)
}

fn gather_elements<W: bytemuck::Pod>(call: &Call, axis: usize) -> Result<Tensor, EvalError> {
    let data = words::<W>(call.input(0));
    let values: Vec<W> = element_places(call, axis)?.into_iter().map(|at| data[at]).collect();
    Ok(call.out().of_words(&values))
}

/// For each tuple of `k` indices along the last axis of input 1, the position of the element or
/// slice of a `shape` that it addresses.
fn tuples(call: &Call, shape: &[usize], k: usize) -> Result<Vec<usize>, EvalError> {
    let own = strides(shape);
    let address = |tuple: &[i64]| {
        tuple
            .iter()
            .enumerate()
            .try_fold(0, |at, (axis, &i)| Ok(at + call.place(i, shape[axis])? * own[axis] as usize))
    };
    indices(call.input(1)).chunks_exact(k).map(address).collect()
}

fn gather_nd(call: &Call, batch_dims: usize) -> Result<Tensor, EvalError> {
    let (data, operand, out) = (call.input(0), call.input(1).shape(), call.out());
    let k = operand[operand.len() - 1];
    let places = tuples(call, &data.shape()[batch_dims..], k)?;
    let per_batch = volume(&operand[batch_dims..operand.len() - 1]);
    let batch = volume(&data.shape()[batch_dims..]);
    let (size, chunk) = (out.dtype.size(), volume(&data.shape()[batch_dims + k..]));
    let mut bytes = Vec::with_capacity(out.len() * size);
    for (i, place) in places.into_iter().enumerate() {
        let start = (i / per_batch * batch + place) * size;
        bytes.extend_from_slice(&data.bytes()[start..][..chunk * size]);
    }
    Ok(out.of_bytes(bytes))
}

/// Copy of input 0 with the chunks of input 2 written at `places`, in order.
fn scatter(call: &Call, places: &[usize], chunk: usize, reduction: ScatterReduction) -> Tensor {
    let (data, updates, out) = (call.input(0), call.input(2), call.out());
    if reduction == ScatterReduction::None {
        return by_width!(out.dtype, W => {
            let mut y = words::<W>(data).into_owned();
            write(&mut y, &words::<W>(updates), places, chunk, |_, new| new);
            out.of_words(&y)
        });
    }
    by_lane!(out.dtype, T => {
        let mut y = T::load(data).into_owned();
        let updates = T::load(updates);
        match reduction {
            ScatterReduction::Add => write(&mut y, &updates, places, chunk, T::add),
            ScatterReduction::Mul => write(&mut y, &updates, places, chunk, T::mul),
            ScatterReduction::Min => write(&mut y, &updates, places, chunk, <T as Lane>::min),
            _ => write(&mut y, &updates, places, chunk, <T as Lane>::max),
        }
        out.of(&y)
    })
}

fn write<T: Copy>(
    y: &mut [T],
    updates: &[T],
    places: &[usize],
    chunk: usize,
    f: impl Fn(T, T) -> T,
) {
    if chunk == 0 {
        return;
    }
    for (update, &place) in updates.chunks_exact(chunk).zip(places) {
        y[place..][..chunk].iter_mut().zip(update).for_each(|(y, &u)| *y = f(*y, u));
    }
}

fn one_hot<W: bytemuck::Pod>(call: &Call, axis: usize, depth: i64) -> Tensor {
    let (values, out) = (words::<W>(call.input(1)), call.out());
    let (_, depth_size, inner) = around(&out.shape, axis);
    let mut y = vec![values[0]; out.len()];
    for (i, index) in indices(call.input(0)).into_iter().enumerate() {
        let place = if index < 0 { index.saturating_add(depth) } else { index };
        if (0..depth).contains(&place) {
            y[(i / inner * depth_size + place as usize) * inner + i % inner] = values[1];
        }
    }
    out.of_words(&y)
}

fn top_k<T: Lane>(call: &Call, axis: usize, k: usize, largest: bool) -> Vec<Tensor> {
    let x = T::load(call.input(0));
    let (outer, n, inner) = around(call.input(0).shape(), axis);
    let mut values = vec![T::ZERO; outer * k * inner];
    let mut places = vec![0i64; values.len()];
    let mut order: Vec<usize> = Vec::with_capacity(n);
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let at = |j: usize| x[(o * n + j) * inner + i];
        order.clear();
        order.extend(0..n);
        order.sort_by(|&a, &b| if largest { rank(at(b), at(a)) } else { rank(at(a), at(b)) });
        for (slot, &j) in order[..k].iter().enumerate() {
            let to = (o * k + slot) * inner + i;
            (values[to], places[to]) = (at(j), j as i64);
        }
    }
    vec![call.out().of(&values), call.outputs[1].of(&places)]
}

/// Ascending, NaN last.
fn rank<T: Lane>(a: T, b: T) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn running_sum<T: Lane>(call: &Call, axis: usize, exclusive: bool, reverse: bool) -> Tensor {
    let x = T::load(call.input(0));
    let (outer, n, inner) = around(&call.out().shape, axis);
    let mut y = vec![T::ZERO; x.len()];
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let mut sum = T::ZERO;
        for j in 0..n {
            let at = (o * n + if reverse { n - 1 - j } else { j }) * inner + i;
            let with = sum.add(x[at]);
            y[at] = if exclusive { sum } else { with };
            sum = with;
        }
    }
    call.out().of(&y)
}
