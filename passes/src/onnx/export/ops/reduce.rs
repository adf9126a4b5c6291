//! Reductions.

use super::*;
use cqc_proto::DType;
use cqc_proto::op::ReduceKind;

/// Narrow integers as i64, for which the standard defines sums.
pub(super) fn widened(cx: &mut Cx, x: Val) -> Val {
    match cx.dtype(x) {
        DType::I8 | DType::I16 | DType::U8 | DType::U16 => cx.cast(x, DType::I64),
        _ => x,
    }
}

pub(super) fn reduce(
    cx: &mut Cx,
    c: &Call,
    kind: ReduceKind,
    axes: &[usize],
    keep: bool,
) -> ExportResult {
    let x = widened(cx, c.input(0));
    let is_log = matches!(kind, ReduceKind::LogSum | ReduceKind::LogSumExp);
    if is_log && cx.dtype(x) != cx.dtype(c.input(0)) {
        return Err(format!("logarithms of {} are not defined", c.ty().dtype));
    }
    if axes.is_empty() {
        return own_map(cx, kind, x).map(|y| cx.cast(y, c.ty().dtype));
    }
    let name = match kind {
        ReduceKind::Sum => "ReduceSum",
        ReduceKind::Mean => "ReduceMean",
        ReduceKind::Max => "ReduceMax",
        ReduceKind::Min => "ReduceMin",
        ReduceKind::Prod => "ReduceProd",
        ReduceKind::L1 => "ReduceL1",
        ReduceKind::L2 => "ReduceL2",
        ReduceKind::SumSquare => "ReduceSumSquare",
        ReduceKind::LogSum => "ReduceLogSum",
        ReduceKind::LogSumExp => "ReduceLogSumExp",
    };
    let list: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
    let (list, ty) = (cx.ints(&list), ValueType::new(cx.dtype(x), c.ty().shape));
    let y = cx.node(name, &[x, list], vec![int("keepdims", keep as i64)], ty);
    Ok(cx.cast(y, c.ty().dtype))
}

/// The map that a reduction without axes applies to each element, written as operators, because
/// runtimes disagree about it.
fn own_map(cx: &mut Cx, kind: ReduceKind, x: Val) -> ExportResult {
    match kind {
        ReduceKind::L1 | ReduceKind::L2 => cx.unary(UnaryKind::Abs, x),
        ReduceKind::SumSquare => cx.binary(BinaryKind::Mul, x, x),
        ReduceKind::LogSum if cx.dtype(x).is_float() => cx.unary(UnaryKind::Log, x),
        ReduceKind::LogSum => Err(format!("Log does not take {}", cx.dtype(x))),
        _ => Ok(x),
    }
}

pub(super) fn arg_reduce(
    cx: &mut Cx,
    c: &Call,
    largest: bool,
    axis: usize,
    keep: bool,
    last: bool,
) -> ExportResult {
    let attributes = vec![
        int("axis", axis as i64),
        int("keepdims", keep as i64),
        int("select_last_index", last as i64),
    ];
    Ok(c.as_node(cx, if largest { "ArgMax" } else { "ArgMin" }, attributes))
}
