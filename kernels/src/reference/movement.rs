//! Operators that move elements without computing on them.

use super::lane::{by_width, words};
use super::walk::{around, broadcast_strides, each, runs, strides, volume};
use super::{Call, EvalError, Output};
use cqc_proto::dim::Dim;
use cqc_proto::op::{Op, PadMode};
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Result<Tensor, EvalError> {
    if let Op::Concat { axis } = call.op {
        return Ok(concat(call, *axis));
    }
    let (x, out) = (call.input(0), call.out());
    let own = strides(x.shape());
    Ok(match call.op {
        Op::Reshape { .. } => {
            x.reshaped(out.shape.clone()).expect("the shape rule compares the element counts")
        }
        Op::Transpose { perm } => {
            strided(x, 0, &perm.iter().map(|&p| own[p]).collect::<Vec<_>>(), out)
        }
        Op::Expand { .. } => strided(x, 0, &broadcast_strides(x.shape(), &out.shape), out),
        Op::Slice { axes, starts, steps, .. } => {
            let mut first = 0;
            let mut by = own.clone();
            for ((&axis, start), &step) in axes.iter().zip(starts).zip(steps) {
                first += known(call, start)? as isize * own[axis];
                // wraps only where the step is never taken
                by[axis] = own[axis].wrapping_mul(step as isize);
            }
            strided(x, first, &by, out)
        }
        Op::Tile { .. } => tile(x, &own, out),
        Op::Pad { before, mode, .. } => by_width!(x.dtype(), W => pad::<W>(call, before, *mode)),
        Op::Trilu { upper, k } => by_width!(x.dtype(), W => triangle::<W>(x, *upper, *k, out)),
        _ => unreachable!("dispatched by reference::eval"),
    })
}

fn known(call: &Call, size: &Dim) -> Result<i64, EvalError> {
    size.as_const()
        .ok_or_else(|| EvalError::Symbolic { op: call.op.name(), size: size.to_string() })
}

/// Element `i` of the result is element `first + Σ i[k] · by[k]` of x.
fn strided(x: &Tensor, first: isize, by: &[isize], out: &Output) -> Tensor {
    by_width!(out.dtype, W => {
        let words = words::<W>(x);
        let mut y: Vec<W> = Vec::with_capacity(out.len());
        runs(&out.shape, [by], |[at], n, [step]| {
            let start = first + at;
            match step {
                1 => y.extend_from_slice(&words[start as usize..][..n]),
                _ => y.extend((0..n as isize).map(|k| words[(start + k * step) as usize])),
            }
        });
        out.of_words(&y)
    })
}

/// Every axis becomes two: the repetition, which stays in place in x, and the axis itself.
fn tile(x: &Tensor, own: &[isize], out: &Output) -> Tensor {
    let mut shape = Vec::new();
    let mut by = Vec::new();
    for (axis, &size) in x.shape().iter().enumerate() {
        shape.extend([out.shape[axis] / size, size]); // no size is 0: the result has elements
        by.extend([0, own[axis]]);
    }
    let split = Output { dtype: out.dtype, shape };
    strided(x, 0, &by, &split)
        .reshaped(out.shape.clone())
        .expect("the split axes have the same product")
}

fn concat(call: &Call, axis: usize) -> Tensor {
    let out = call.out();
    let (outer, ..) = around(&out.shape, axis);
    let parts: Vec<&Tensor> = call.inputs.iter().flatten().copied().collect();
    let mut bytes = Vec::with_capacity(out.len() * out.dtype.size());
    for i in 0..outer {
        for part in &parts {
            let chunk = part.bytes().len() / outer;
            bytes.extend_from_slice(&part.bytes()[i * chunk..(i + 1) * chunk]);
        }
    }
    out.of_bytes(bytes)
}

fn pad<W: bytemuck::Pod>(call: &Call, before: &[i64], mode: PadMode) -> Tensor {
    let (x, out) = (call.input(0), call.out());
    let fill = call.optional(1).map_or(W::zeroed(), |t| words::<W>(t)[0]);
    let maps: Vec<Vec<Option<usize>>> = (0..out.shape.len())
        .map(|axis| {
            (0..out.shape[axis])
                .map(|i| source(i as i64 - before[axis], x.shape()[axis], mode))
                .collect()
        })
        .collect();
    out.of_words(&remapped(&words::<W>(x), x.shape(), &maps, fill))
}

/// The element of an axis of `size` elements that a padded position repeats; `None` = the fill
/// value.
fn source(at: i64, size: usize, mode: PadMode) -> Option<usize> {
    let n = size as i64;
    if (0..n).contains(&at) {
        return Some(at as usize);
    }
    let inside = match mode {
        PadMode::Constant => return None,
        PadMode::Edge => at.clamp(0, n - 1),
        PadMode::Wrap => at.rem_euclid(n),
        PadMode::Reflect if n == 1 => 0,
        PadMode::Reflect => {
            let m = at.rem_euclid(2 * (n - 1));
            m.min(2 * (n - 1) - m)
        }
    };
    Some(inside as usize)
}

/// Element `i` of the result is element `maps[0][i[0]], maps[1][i[1]], …` of x, or `fill` where one
/// of them is `None`.
pub(super) fn remapped<W: Copy>(
    x: &[W],
    shape: &[usize],
    maps: &[Vec<Option<usize>>],
    fill: W,
) -> Vec<W> {
    let Some((last, outer)) = maps.split_last() else {
        return x.to_vec();
    };
    let by = strides(shape);
    let sizes: Vec<usize> = outer.iter().map(Vec::len).collect();
    let mut y = Vec::with_capacity(volume(&sizes).saturating_mul(last.len()));
    let unit: Vec<isize> = strides(&sizes);
    each(&sizes, [&unit], |[row]| {
        let start = outer.iter().enumerate().try_fold(0, |at, (axis, map)| {
            let i = row / unit[axis] % sizes[axis] as isize;
            Some(at + map[i as usize]? * by[axis] as usize)
        });
        match start {
            Some(start) => y.extend(last.iter().map(|i| i.map_or(fill, |i| x[start + i]))),
            None => y.extend(std::iter::repeat_n(fill, last.len())),
        }
    });
    y
}

fn triangle<W: bytemuck::Pod>(x: &Tensor, upper: bool, k: i64, out: &Output) -> Tensor {
    let (rows, columns) = (out.shape[out.shape.len() - 2], out.shape[out.shape.len() - 1]);
    let mut y = words::<W>(x).into_owned();
    for (i, row) in y.chunks_exact_mut(columns).enumerate() {
        let diagonal = ((i % rows) as i64).saturating_add(k);
        // kept: columns ≥ diagonal, or columns ≤ diagonal
        let split = diagonal.saturating_add(!upper as i64).clamp(0, columns as i64) as usize;
        row[if upper { 0..split } else { split..columns }].fill(W::zeroed());
    }
    out.of_words(&y)
}
