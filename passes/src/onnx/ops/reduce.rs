//! Reductions, softmax, normalising by a norm.

use super::movement::{axes_operand, product};
use super::*;
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, ReduceKind, UnaryKind};

pub(super) const TABLE: Table = &[
    ("ReduceSum", |cx, c| reduce(cx, c, ReduceKind::Sum, 13)),
    ("ReduceMean", |cx, c| reduce(cx, c, ReduceKind::Mean, 18)),
    ("ReduceMax", |cx, c| reduce(cx, c, ReduceKind::Max, 18)),
    ("ReduceMin", |cx, c| reduce(cx, c, ReduceKind::Min, 18)),
    ("ReduceProd", |cx, c| reduce(cx, c, ReduceKind::Prod, 18)),
    ("ReduceL1", |cx, c| reduce(cx, c, ReduceKind::L1, 18)),
    ("ReduceL2", |cx, c| reduce(cx, c, ReduceKind::L2, 18)),
    ("ReduceSumSquare", |cx, c| reduce(cx, c, ReduceKind::SumSquare, 18)),
    ("ReduceLogSum", |cx, c| reduce(cx, c, ReduceKind::LogSum, 18)),
    ("ReduceLogSumExp", |cx, c| reduce(cx, c, ReduceKind::LogSumExp, 18)),
    ("ArgMax", |cx, c| arg_reduce(cx, c, true)),
    ("ArgMin", |cx, c| arg_reduce(cx, c, false)),
    ("Softmax", |cx, c| softmax(cx, c, |axis| Op::Softmax { axis })),
    ("LogSoftmax", |cx, c| softmax(cx, c, |axis| Op::LogSoftmax { axis })),
    ("Hardmax", hardmax),
    ("LpNormalization", lp_normalization),
    ("GlobalAveragePool", |cx, c| global_pool(cx, c, ReduceKind::Mean)),
    ("GlobalMaxPool", |cx, c| global_pool(cx, c, ReduceKind::Max)),
    ("GlobalLpPool", global_lp_pool),
];

/// Without axes, all axes are reduced, or none with `noop_with_empty_axes`.
fn reduce(cx: &mut Cx, c: &Call, kind: ReduceKind, operand_since: i64) -> Done {
    let x = c.input(0, "data")?;
    let rank = cx.ty(x)?.rank();
    let given = axes_operand(cx, c, operand_since)?.filter(|l| !l.is_empty());
    let list = match given {
        Some(list) => axes(&list, rank)?,
        None if c.flag("noop_with_empty_axes", false)? => vec![],
        None => (0..rank).collect(),
    };
    Ok(vec![cx.reduce(kind, list, c.flag("keepdims", true)?, x)?])
}

fn arg_reduce(cx: &mut Cx, c: &Call, largest: bool) -> Done {
    let x = c.input(0, "data")?;
    let axis = c.axis("axis", 0, cx.ty(x)?.rank())?;
    let (keep, last) = (c.flag("keepdims", true)?, c.flag("select_last_index", false)?);
    Ok(vec![cx.emit(Op::ArgReduce { largest, axis, keep, last }, &[x])?])
}

/// Since version 13 along one axis; before, over all axes from `axis` on, as one axis.
fn softmax(cx: &mut Cx, c: &Call, op: fn(usize) -> Op) -> Done {
    let x = c.input(0, "input")?;
    along_axis(cx, c, x, |cx, x, axis| cx.emit(op(axis), &[x]))
}

fn along_axis(
    cx: &mut Cx,
    c: &Call,
    x: &Item,
    emit: impl Fn(&mut Cx, &Item, usize) -> Result<Item, Refusal>,
) -> Done {
    let shape = cx.ty(x)?.shape;
    if c.opset >= 13 {
        let axis = c.axis("axis", -1, shape.len())?;
        return Ok(vec![emit(cx, x, axis)?]);
    }
    let axis = c.axis("axis", 1, shape.len().max(1))?;
    if axis + 1 == shape.len() {
        return Ok(vec![emit(cx, x, axis)?]);
    }
    let flat = [&shape[..axis], &[product(&shape[axis..])?]].concat();
    let flat = cx.reshape(x, flat)?;
    let y = emit(cx, &flat, axis)?;
    Ok(vec![cx.reshape(&y, shape)?])
}

/// 1 at the first maximum, 0 elsewhere.
fn hardmax(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    along_axis(cx, c, x, |cx, x, axis| {
        let ty = cx.ty(x)?;
        let Some(depth) = ty.shape[axis].as_const() else {
            return unsupported("the size of the axis depends on the batch");
        };
        let at = cx.emit(Op::ArgReduce { largest: true, axis, keep: false, last: false }, &[x])?;
        let values = cx.constant(crate::onnx::tensors::from_integers(ty.dtype, vec![2], &[0, 1]));
        cx.emit(Op::OneHot { axis, depth }, &[&at, &values])
    })
}

/// A vector of norm 0 stays 0.
fn lp_normalization(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let ty = cx.ty(x)?;
    let axis = c.axis("axis", -1, ty.rank())?;
    let kind = match c.int("p", 2)? {
        1 => ReduceKind::L1,
        2 => ReduceKind::L2,
        p => return malformed(format!("`p` is {p}, expected 1 or 2")),
    };
    let norm = cx.reduce(kind, vec![axis], true, x)?;
    let zero = cx.scalar(0.0, ty.dtype);
    let one = cx.scalar(1.0, ty.dtype);
    let empty = cx.binary(BinaryKind::Equal, &norm, &zero)?;
    let norm = cx.emit(Op::Where, &[&empty, &one, &norm])?;
    Ok(vec![cx.binary(BinaryKind::Div, x, &norm)?])
}

fn spatial(cx: &Cx, x: &Item) -> Result<Vec<usize>, Refusal> {
    match cx.ty(x)?.rank() {
        rank @ 3.. => Ok((2..rank).collect()),
        rank => malformed(format!(
            "the operand has {rank} axes, expected batch, channels and spatial axes"
        )),
    }
}

fn global_pool(cx: &mut Cx, c: &Call, kind: ReduceKind) -> Done {
    let x = c.input(0, "X")?;
    let axes = spatial(cx, x)?;
    Ok(vec![cx.reduce(kind, axes, true, x)?])
}

fn global_lp_pool(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let axes = spatial(cx, x)?;
    match c.int("p", 2)? {
        1 => Ok(vec![cx.reduce(ReduceKind::L1, axes, true, x)?]),
        2 => Ok(vec![cx.reduce(ReduceKind::L2, axes, true, x)?]),
        p => {
            let dtype = cx.ty(x)?.dtype;
            let (p, root) = (cx.scalar(p as f64, dtype), cx.scalar(1.0 / p as f64, dtype));
            let magnitude = cx.unary(UnaryKind::Abs, x)?;
            let powers = cx.binary(BinaryKind::Pow, &magnitude, &p)?;
            let sum = cx.reduce(ReduceKind::Sum, axes, true, &powers)?;
            Ok(vec![cx.binary(BinaryKind::Pow, &sum, &root)?])
        }
    }
}
