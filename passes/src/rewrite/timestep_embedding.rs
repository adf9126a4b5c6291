//! `timestep-embedding`: concat(sin(t·f), cos(t·f)) with constant frequencies f →
//! timestep_embedding(t)
//!
//! The sinusoidal embedding of diffusers' `Timesteps` is exported as `unsqueeze, cast, mul, [mul
//! scale], sin, cos, concat`, followed by another slice and concat if cosines come first
//! (`flip_sin_to_cos`). The frequencies stay the numbers of the source model: at t = 999, an error
//! of one unit in their last place would already show in the sixth digit of the sine. Tests:
//! tests/filetests/passes/timestep_embedding.cqt

use super::matching::{binary, either_order, reshape, unary, with_scalar};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::op::{BinaryKind, OpError, UnaryKind};
use cqc_proto::{DType, Op, Tensor};

pub const TIMESTEP_EMBEDDING: Pass = Pass::rule("timestep-embedding", timestep_embedding);

fn timestep_embedding(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id);
    let (old, name) = (node.outputs[0], node.name.clone());
    if let Some((operands, op)) = flipped(g, id) {
        return Ok(Rewrite::one(old, g.op(&name, op, &operands)?));
    }
    let (Op::Concat { axis }, [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else {
        return Ok(Rewrite::NoMatch);
    };
    if *axis != 1 || g.shape(old).len() != 2 {
        return Ok(Rewrite::NoMatch);
    }
    let (angle, cos_first) = match (unary(g, *a, UnaryKind::Sin), unary(g, *b, UnaryKind::Cos)) {
        (Some(x), Some(y)) if x == y => (x, false),
        _ => match (unary(g, *a, UnaryKind::Cos), unary(g, *b, UnaryKind::Sin)) {
            (Some(x), Some(y)) if x == y => (x, true),
            _ => return Ok(Rewrite::NoMatch),
        },
    };
    let Some((t, frequencies)) = angle_of(g, angle) else { return Ok(Rewrite::NoMatch) };
    let f = g.constant(
        &format!("{name}/frequencies"),
        Tensor::from_f32(&[frequencies.len()], &frequencies),
    );
    let t = reshape(g, &name, t, vec![g.shape(old)[0].clone()])?;
    let made = g.op(&name, Op::TimestepEmbedding { cos_first }, &[t, f])?;
    if g.ty(made) != g.ty(old) {
        return Ok(Rewrite::NoMatch);
    }
    Ok(Rewrite::one(old, made))
}

/// The concatenation of both halves of an embedding in the other order.
fn flipped(g: &Graph, id: NodeId) -> Option<([ValueId; 2], Op)> {
    let node = g.get(id);
    let (Op::Concat { axis: 1 }, [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else {
        return None;
    };
    let (x, start_a) = slice_of(g, *a)?;
    let (y, start_b) = slice_of(g, *b)?;
    let embedding = g.producer_node(x)?;
    let Op::TimestepEmbedding { cos_first } = embedding.op else { return None };
    let half = g.shape(x)[1].as_const()? / 2;
    let whole = x == y
        && start_a == half
        && start_b == 0
        && g.shape(*a)[1].is(half)
        && g.shape(*b)[1].is(half);
    let op = Op::TimestepEmbedding { cos_first: !cos_first };
    whole.then(|| Some(([embedding.input(0)?, embedding.input(1)?], op))).flatten()
}

fn slice_of(g: &Graph, v: ValueId) -> Option<(ValueId, i64)> {
    let node = g.producer_node(v)?;
    match &node.op {
        Op::Slice { axes, starts, steps, .. } if axes == &[1] && steps == &[1] => {
            Some((node.input(0)?, starts[0].as_const()?))
        }
        _ => None,
    }
}

/// `(t, f)` if `v` = t[:, None] · f, possibly times a number, which is multiplied into f. `t` has N
/// elements in any shape.
fn angle_of(g: &Graph, v: ValueId) -> Option<(ValueId, Vec<f32>)> {
    if let Some((inner, factor)) = with_scalar(g, v, BinaryKind::Mul)
        && let Some((t, f)) = angle_of(g, inner)
    {
        return Some((t, f.into_iter().map(|f| f * factor as f32).collect()));
    }
    either_order(binary(g, v, BinaryKind::Mul)?, |column, row| {
        let f = g.tensor(row)?;
        let [_, one] = g.shape(column) else { return None };
        if !one.is(1) || f.len() < 2 || !g.shape(row).last()?.is(f.len() as i64) {
            return None;
        }
        Some((behind_reshapes(g, column), f.to_f32_vec()))
    })
}

/// The value under reshapes and casts.
fn behind_reshapes(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(node) = g.producer_node(v)
        && matches!(node.op, Op::Reshape { .. } | Op::Cast { .. })
        && let Some(x) = node.input(0)
        && g.ty(x).dtype != DType::Bool
    {
        v = x;
    }
    v
}
