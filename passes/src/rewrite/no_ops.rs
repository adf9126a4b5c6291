//! `remove-no-ops`: operators that change nothing are removed, and chains of reshapes, transposes
//! and casts become one
//!
//! | matches | becomes |
//! |---|---|
//! | reshape, expand, tile, slice, pad, cast, concat, resize, reduce that return their operand | the operand |
//! | reshape(reshape(x)) | reshape(x) |
//! | reshape(transpose(reshape(x))) that merges two axes, swaps the others and splits again | transpose(x) |
//! | transpose(transpose(x)) | transpose(x) or x |
//! | transpose that moves axes of size 1 only | reshape |
//! | x + 0, x − 0, x · 1, x / 1, x ^ 1 | x |
//! | expand read by an operator that broadcasts | its operand |
//!
//! Tests: tests/filetests/passes/remove_no_ops.cqt

use super::matching::{reshaped, transposed};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::op::{BinaryKind, OpError};
use cqc_proto::{Dim, Op};

pub const REMOVE_NO_OPS: Pass = Pass::rule("remove-no-ops", remove_no_ops);

fn remove_no_ops(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id);
    let old = node.outputs[0];
    let Some(x) = node.input(0) else { return Ok(Rewrite::NoMatch) };
    if returns_operand(g, id, x) {
        return Ok(Rewrite::one(old, x));
    }
    let name = node.name.clone();
    match node.op.clone() {
        Op::Reshape { shape } => match reshaped(g, x) {
            Some(inner) => Ok(Rewrite::one(old, super::matching::reshape(g, &name, inner, shape)?)),
            None => swapped_behind_merge(g, old, x, &name),
        },
        Op::Transpose { perm } => transpose(g, old, x, &perm, &name),
        Op::Binary { kind } => neutral(g, id, kind),
        _ => Ok(Rewrite::NoMatch),
    }
}

fn returns_operand(g: &Graph, id: NodeId, x: ValueId) -> bool {
    let node = g.get(id);
    let same_type = g.ty(x) == g.ty(node.outputs[0]);
    same_type
        && match &node.op {
            Op::Reshape { .. } | Op::Expand { .. } | Op::Tile { .. } | Op::Cast { .. } => true,
            Op::Slice { steps, .. } => steps.iter().all(|&s| s > 0),
            Op::Pad { before, after, .. } => before.iter().chain(after).all(|&p| p == 0),
            Op::Concat { .. } => node.inputs.len() == 1,
            Op::Transpose { perm } => perm.iter().enumerate().all(|(i, &p)| i == p),
            _ => false,
        }
}

/// [A, B, C, D] → [A·B, C, D] → [A·B, D, C] → [A, B, D, C]: heads merged into the batch around a
/// transpose.
fn swapped_behind_merge(
    g: &mut Graph,
    old: ValueId,
    x: ValueId,
    name: &str,
) -> Result<Rewrite, OpError> {
    let Some((merged, [0, 2, 1])) = transposed(g, x) else { return Ok(Rewrite::NoMatch) };
    let Some(inner) = reshaped(g, merged) else { return Ok(Rewrite::NoMatch) };
    let (from, to) = (g.shape(inner), g.shape(old));
    let merges = from.len() == 4 && from[2..] == g.shape(merged)[1..];
    if !merges || to.len() != 4 || to[..2] != from[..2] || to[2] != from[3] || to[3] != from[2] {
        return Ok(Rewrite::NoMatch);
    }
    Ok(Rewrite::one(old, super::matching::transpose(g, name, inner, &[0, 1, 3, 2])?))
}

fn transpose(
    g: &mut Graph,
    old: ValueId,
    x: ValueId,
    perm: &[usize],
    name: &str,
) -> Result<Rewrite, OpError> {
    if let Some((inner, first)) = transposed(g, x) {
        let both: Vec<usize> = perm.iter().map(|&p| first[p]).collect();
        return Ok(Rewrite::one(old, super::matching::transpose(g, name, inner, &both)?));
    }
    let moved: Vec<usize> = perm.iter().copied().filter(|&p| !g.shape(x)[p].is(1)).collect();
    if moved.is_sorted() {
        let shape = g.shape(old).to_vec();
        return Ok(Rewrite::one(old, g.op(name, Op::Reshape { shape }, &[x])?));
    }
    Ok(Rewrite::NoMatch)
}

/// Arithmetic with the neutral element. An operand of the result's own shape must remain.
fn neutral(g: &mut Graph, id: NodeId, kind: BinaryKind) -> Result<Rewrite, OpError> {
    use BinaryKind::*;
    let node = g.get(id);
    let old = node.outputs[0];
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Ok(Rewrite::NoMatch) };
    let element = match kind {
        Add | Sub => 0.0,
        Mul | Div | Pow => 1.0,
        _ => return Ok(Rewrite::NoMatch),
    };
    let neutral = |v: ValueId| all_equal(g, v, element);
    if neutral(b) && g.ty(a) == g.ty(old) {
        return Ok(Rewrite::one(old, a));
    }
    if matches!(kind, Add | Mul) && neutral(a) && g.ty(b) == g.ty(old) {
        return Ok(Rewrite::one(old, b));
    }
    // an operand that was expanded only for this operator
    for (i, v) in [(0, a), (1, b)] {
        let Some(Op::Expand { .. }) = g.producer_node(v).map(|n| &n.op) else { continue };
        let inner = g.producer_node(v).and_then(|n| n.input(0)).expect("verified");
        let mut operands = [a, b];
        operands[i] = inner;
        let shape = cqc_proto::op::broadcast(g.shape(operands[0]), g.shape(operands[1]));
        if shape.is_ok_and(|shape| shape == g.shape(old)) {
            let name = g.get(id).name.clone();
            return Ok(Rewrite::one(old, g.op(&name, Op::binary(kind), &operands)?));
        }
    }
    Ok(Rewrite::NoMatch)
}

/// Whether every element of a constant is `expected`. Large constants are not looked at, because no
/// model adds a megabyte of zeros.
fn all_equal(g: &Graph, v: ValueId, expected: f64) -> bool {
    g.tensor(v).is_some_and(|t| {
        !t.is_empty() && t.len() <= 1 << 16 && t.to_f64_vec().iter().all(|&e| e == expected)
    }) && g.shape(v).iter().all(|d: &Dim| d.as_const().is_some())
}
