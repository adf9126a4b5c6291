//! Gather, scatter and the other operators with index operands.

use super::*;
use cqc_proto::onnx::AttributeProto;
use cqc_proto::op::ScatterReduction;
use cqc_proto::{DType, Tensor};

/// Indices in a type that the standard allows.
fn indices(cx: &mut Cx, v: Val) -> Val {
    if cx.dtype(v) == DType::I32 { v } else { cx.cast(v, DType::I64) }
}

pub(super) fn gather(
    cx: &mut Cx,
    c: &Call,
    name: &str,
    attributes: Vec<AttributeProto>,
) -> ExportResult {
    let i =
        if name == "GatherND" { cx.cast(c.input(1), DType::I64) } else { indices(cx, c.input(1)) };
    Ok(cx.node(name, &[c.input(0), i], attributes, c.ty()))
}

fn reduction_name(reduction: ScatterReduction) -> AttributeProto {
    string(
        "reduction",
        match reduction {
            ScatterReduction::None => "none",
            ScatterReduction::Add => "add",
            ScatterReduction::Mul => "mul",
            ScatterReduction::Min => "min",
            ScatterReduction::Max => "max",
        },
    )
}

pub(super) fn scatter_nd(cx: &mut Cx, c: &Call, reduction: ScatterReduction) -> ExportResult {
    let i = cx.cast(c.input(1), DType::I64);
    Ok(cx.node("ScatterND", &[c.input(0), i, c.input(2)], vec![reduction_name(reduction)], c.ty()))
}

pub(super) fn scatter_elements(
    cx: &mut Cx,
    c: &Call,
    axis: usize,
    reduction: ScatterReduction,
) -> ExportResult {
    let i = indices(cx, c.input(1));
    let attributes = vec![int("axis", axis as i64), reduction_name(reduction)];
    Ok(cx.node("ScatterElements", &[c.input(0), i, c.input(2)], attributes, c.ty()))
}

pub(super) fn one_hot(cx: &mut Cx, c: &Call, axis: usize, depth: i64) -> ExportResult {
    let (i, depth) =
        (indices(cx, c.input(0)), cx.constant("depth", Tensor::from_i64(&[], &[depth])));
    Ok(cx.node("OneHot", &[i, depth, c.input(1)], vec![int("axis", axis as i64)], c.ty()))
}

pub(super) fn top_k(
    cx: &mut Cx,
    c: &Call,
    axis: usize,
    k: i64,
    largest: bool,
) -> ExportResult<Vec<Val>> {
    let k = cx.ints(&[k]);
    let attributes = vec![int("axis", axis as i64), int("largest", largest as i64)];
    Ok(cx.nodes("TopK", &[Some(c.input(0)), Some(k)], attributes, c.outputs))
}

pub(super) fn cum_sum(
    cx: &mut Cx,
    c: &Call,
    axis: usize,
    exclusive: bool,
    reverse: bool,
) -> ExportResult {
    let x = c.input(0);
    let wide = reduce::widened(cx, x);
    let axis = cx.constant("axis", Tensor::from_i64(&[], &[axis as i64]));
    let attributes = vec![int("exclusive", exclusive as i64), int("reverse", reverse as i64)];
    let y = cx.node("CumSum", &[wide, axis], attributes, cx.ty(wide).clone());
    Ok(cx.cast(y, c.ty().dtype))
}
