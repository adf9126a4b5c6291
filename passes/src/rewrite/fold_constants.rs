//! `fold-constants`:  f(constants)  →  constant
//!
//! Evaluated by the scalar definitions. A result much larger than its operands (a broadcast) stays a node: storing it would
//! trade a copy for megabytes.
//! Tests: tests/filetests/passes/fold_constants.cqt

use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_kernels::reference;
use cqc_proto::op::OpError;

pub const FOLD_CONSTANTS: Pass = Pass::rule("fold-constants", fold_constants);

/// A result this large (bytes) must not exceed its operands.
const FREE_GROWTH: usize = 1 << 20;

fn fold_constants(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id);
    let tensors: Option<Vec<_>> = node.inputs.iter().map(|v| v.map_or(Some(None), |v| g.tensor(v).map(Some))).collect();
    let Some(tensors) = tensors.filter(|t| t.iter().any(Option::is_some)) else { return Ok(Rewrite::NoMatch) };
    let read: usize = tensors.iter().flatten().map(|t| t.bytes().len()).sum();
    let bytes = |v: &ValueId| {
        let ty = g.ty(*v);
        Some(ty.elements()?.as_const()? as usize * ty.dtype.size())
    };
    // a result whose size is known only at run time stays
    let Some(written) = node.outputs.iter().map(bytes).sum::<Option<usize>>() else { return Ok(Rewrite::NoMatch) };
    if written > FREE_GROWTH && written > read {
        return Ok(Rewrite::refused(format!("the constant would grow from {read} to {written} bytes")));
    }
    let results = match reference::eval(&node.op, &tensors) {
        Ok(results) => results,
        Err(e) => return Ok(Rewrite::refused(format!("cannot be evaluated: {e}"))),
    };
    let (name, outputs) = (node.name.clone(), node.outputs.clone());
    Ok(Rewrite::Replace(outputs.into_iter().zip(results).map(|(old, t)| (old, g.constant(&name, t))).collect()))
}
