//! `fuse-epilogue`: elementwise operators after a convolution or linear layer move into it, and
//! SiLU moves into GroupNorm
//!
//! | after the product p | becomes |
//! |---|---|
//! | p + r, r one row per image (time embedding) | its `row` |
//! | act(p) | its `act` |
//! | p · g, g one row per image (adaLN gate) | its `gate` |
//! | p + x, x of p's type (residual) | its `residual` |
//!
//! The residual also moves through a reshape that keeps the last axis. The parts are taken in this
//! order, each at most once, and only if nothing else reads p. Of two products that are added, the
//! later one takes the other as its residual. The result is `residual + gate · act(p + bias +
//! row)`, which is the operator's definition. Tests: tests/filetests/passes/fuse_epilogue.cqt

use super::matching::{binary, reshape, takes};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, Node, NodeId, ValueId};
use cqc_proto::op::operand::{GATE, RESIDUAL, ROW};
use cqc_proto::op::{Act, BinaryKind, OpError, UnaryKind};
use cqc_proto::{Dim, Op};

pub const FUSE_EPILOGUE: Pass = Pass::rule("fuse-epilogue", fuse_epilogue);

fn fuse_epilogue(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id).clone();
    let old = node.outputs[0];
    match node.op {
        Op::Unary { kind } => activation(g, &node, kind, context),
        Op::Binary { kind: BinaryKind::Add } => {
            let (a, b) = binary(g, old, BinaryKind::Add).expect("verified");
            // the later product first: the other operand exists before it runs
            let order =
                if g.producer(a) > g.producer(b) { [(a, b), (b, a)] } else { [(b, a), (a, b)] };
            for (p, x) in order {
                if let Some(rewrite) = attach(g, &node, p, x, ROW, context)? {
                    return Ok(rewrite);
                }
                if let Some(rewrite) = attach(g, &node, p, x, RESIDUAL, context)? {
                    return Ok(rewrite);
                }
                if let Some(rewrite) = residual_behind_reshape(g, &node, p, x, context)? {
                    return Ok(rewrite);
                }
            }
            Ok(Rewrite::NoMatch)
        }
        Op::Binary { kind: BinaryKind::Mul } => {
            let (a, b) = binary(g, old, BinaryKind::Mul).expect("verified");
            for (p, x) in [(a, b), (b, a)] {
                if let Some(rewrite) = attach(g, &node, p, x, GATE, context)? {
                    return Ok(rewrite);
                }
            }
            Ok(Rewrite::NoMatch)
        }
        _ => Ok(Rewrite::NoMatch),
    }
}

fn activation(
    g: &mut Graph,
    node: &Node,
    kind: UnaryKind,
    context: &Context,
) -> Result<Rewrite, OpError> {
    let act = match kind {
        UnaryKind::Silu => Act::Silu,
        UnaryKind::GeluErf => Act::GeluErf,
        UnaryKind::GeluTanh => Act::GeluTanh,
        UnaryKind::QuickGelu => Act::QuickGelu,
        UnaryKind::Relu => Act::Relu,
        UnaryKind::Sigmoid => Act::Sigmoid,
        UnaryKind::Tanh => Act::Tanh,
        _ => return Ok(Rewrite::NoMatch),
    };
    let x = node.inputs[0].expect("verified");
    let Some(before) = g.producer_node(x).cloned() else { return Ok(Rewrite::NoMatch) };
    let mut op = before.op.clone();
    match &mut op {
        Op::Linear { act: slot @ Act::None }
        | Op::Conv { act: slot @ Act::None, .. }
        | Op::GroupNorm { act: slot @ Act::None, .. } => {
            *slot = act;
        }
        _ => return Ok(Rewrite::NoMatch),
    }
    let is_norm = matches!(op, Op::GroupNorm { .. });
    if !is_norm && (before.input(GATE).is_some() || before.input(RESIDUAL).is_some()) {
        return Ok(Rewrite::NoMatch);
    }
    if !context.single_reader(x) {
        return Ok(Rewrite::refused("the value before the activation has another reader"));
    }
    Ok(Rewrite::one(node.outputs[0], g.node(&node.name, op, &before.inputs)?[0]))
}

/// Makes `x` operand `slot` of the product `p`; `None` if `p` is no product or has that operand
/// already, or if `x` does not fit.
fn attach(
    g: &mut Graph,
    node: &Node,
    p: ValueId,
    x: ValueId,
    slot: usize,
    context: &Context,
) -> Result<Option<Rewrite>, OpError> {
    let Some(product) = g.producer_node(p).cloned() else { return Ok(None) };
    let act = match &product.op {
        Op::Linear { act } | Op::Conv { act, .. } => *act,
        _ => return Ok(None),
    };
    let taken =
        (slot..=RESIDUAL).any(|i| product.input(i).is_some()) || (slot == ROW && act != Act::None);
    if taken || g.ty(p) != g.ty(node.outputs[0]) || p == x {
        return Ok(None);
    }
    if !context.single_reader(p) {
        return Ok(None);
    }
    let operand = if slot == RESIDUAL {
        (g.ty(x) == g.ty(p)).then_some(x)
    } else {
        per_image(g, &node.name, x, p, &product.op)?
    };
    let Some(operand) = operand else { return Ok(None) };
    let mut inputs = product.inputs.clone();
    inputs.resize(RESIDUAL + 1, None);
    inputs[slot] = Some(operand);
    if !takes(g, &product.op, &inputs) {
        return Ok(None);
    }
    Ok(Some(Rewrite::one(node.outputs[0], g.node(&node.name, product.op, &inputs)?[0])))
}

/// reshape(linear) + x with an unchanged last axis: the residual moves before the reshape (pixels
/// of DDPM's attention).
fn residual_behind_reshape(
    g: &mut Graph,
    node: &Node,
    p: ValueId,
    x: ValueId,
    context: &Context,
) -> Result<Option<Rewrite>, OpError> {
    let Some(inner) = super::matching::reshaped(g, p) else { return Ok(None) };
    let Some(product) = g.producer_node(inner).cloned() else { return Ok(None) };
    let linear = matches!(product.op, Op::Linear { .. }) && product.input(RESIDUAL).is_none();
    let fits = g.ty(p) == g.ty(x)
        && g.ty(x) == g.ty(node.outputs[0])
        && g.shape(inner).last() == g.shape(p).last();
    if !linear || !fits || !context.single_reader(p) || !context.single_reader(inner) {
        return Ok(None);
    }
    let (narrow, wide) = (g.shape(inner).to_vec(), g.shape(p).to_vec());
    let mut inputs = product.inputs.clone();
    inputs.resize(RESIDUAL + 1, None);
    inputs[RESIDUAL] = Some(reshape(g, &node.name, x, narrow)?);
    let y = g.node(&node.name, product.op, &inputs)?[0];
    Ok(Some(Rewrite::one(node.outputs[0], reshape(g, &node.name, y, wide)?)))
}

/// `x` with the rank of `p` if it is one row of channels per image, or one for all images.
fn per_image(
    g: &mut Graph,
    name: &str,
    x: ValueId,
    p: ValueId,
    op: &Op,
) -> Result<Option<ValueId>, OpError> {
    let rank = g.shape(p).len();
    let channel = match op {
        Op::Conv { layout, .. } => layout.channel_axis(rank),
        _ => rank - 1,
    };
    if g.shape(x).len() > rank {
        return Ok(None);
    }
    let mut shape = vec![Dim::constant(1); rank - g.shape(x).len()];
    shape.extend(g.shape(x).iter().cloned());
    let target = g.shape(p);
    let fits = shape.iter().enumerate().all(|(i, d)| {
        if i == channel { *d == target[i] } else { d.is(1) || (i == 0 && *d == target[0]) }
    });
    // with one token per image, a full tensor is no row
    if !fits
        || (g.shape(x) == target && !(1..rank).filter(|&i| i != channel).all(|i| target[i].is(1)))
    {
        return Ok(None);
    }
    Ok(Some(reshape(g, name, x, shape)?))
}
