//! Brings channels to the front again, which reverses `rewrite/layout.rs`.
//!
//! Standard operators have channels on axis 1, a plan has them on the last axis. Operators with
//! channels take the channels-first view of their operands and give the channels-last view of their
//! result. Operators for which the position of the channels makes no difference are written
//! channels first if an operand is available in this form. Views that meet cancel.

use super::cx::{Cx, ExportResult, Val};
use super::ops;
use crate::rewrite::layout::{permuted, to_last};
use crate::rewrite::matching::inverse;
use cqc_proto::op::{ConvLayout, Op};
use cqc_proto::{Dim, ValueType};

/// Writes an operator channels first if the operator or an operand needs that; `None` if it does
/// not.
pub(super) fn export_op(
    cx: &mut Cx,
    op: &Op,
    inputs: &[Option<Val>],
    outputs: &[ValueType],
) -> Option<ExportResult<Vec<Val>>> {
    let rank = outputs[0].rank();
    if rank < 3 || outputs.len() != 1 {
        return None;
    }
    let mut first = op.clone();
    match &mut first {
        Op::GroupNorm { layout, .. } | Op::Pool { layout, .. }
            if *layout == ConvLayout::ChannelsLast =>
        {
            *layout = ConvLayout::ChannelsFirst;
            let mut inputs = inputs.to_vec();
            inputs[0] = inputs[0].map(|x| cx.first(x));
            Some(back(cx, &first, &inputs))
        }
        _ => sink(cx, op, inputs, rank),
    }
}

/// Writes an operator whose operands have been moved. It must not be moved again: with three axes,
/// moving channels first twice is moving them last.
fn back(cx: &mut Cx, op: &Op, inputs: &[Option<Val>]) -> ExportResult<Vec<Val>> {
    let types: Vec<Option<&ValueType>> = inputs.iter().map(|v| v.map(|v| cx.ty(v))).collect();
    let outputs = op.infer(&types).map_err(|e| e.reason)?;
    let results = ops::as_it_is(cx, op, inputs, &outputs)?;
    Ok(results.into_iter().map(|y| cx.last(y)).collect())
}

fn sink(
    cx: &mut Cx,
    op: &Op,
    inputs: &[Option<Val>],
    rank: usize,
) -> Option<ExportResult<Vec<Val>>> {
    let here = |cx: &Cx, v: &Val| cx.rank(*v) == rank && cx.is_first(*v);
    if !inputs.iter().flatten().any(|v| here(cx, v)) {
        return None;
    }
    let moved = permuted(op, &inverse(&to_last(rank)))?;
    let operand = |cx: &mut Cx, v: Val| {
        let own = cx.rank(v);
        if own == 0 || (matches!(op, Op::Pad { .. }) && own != rank) {
            return v; // one number
        }
        let mut shape = vec![Dim::constant(1); rank - own];
        shape.extend(cx.shape(v).iter().cloned());
        let full = cx.reshape(v, shape);
        cx.first(full)
    };
    let inputs: Vec<Option<Val>> = inputs.iter().map(|v| v.map(|v| operand(cx, v))).collect();
    Some(back(cx, &moved, &inputs))
}
