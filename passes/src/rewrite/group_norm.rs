//! `fuse-group-norm`:  every spelling of group normalisation  →  group_norm(x, gamma, beta)
//!
//! * torch, legacy exporter and dynamo: `reshape [N,G,-1] · instance norm · reshape back · mul
//!   gamma · add beta`; instance norm arrives as a group_norm with as many groups as channels, its
//!   gamma and beta all ones and zeros.
//! * decomposed: `reshape [N,G,…] · mean · sub · square · mean · add eps · sqrt · div · reshape
//!   back`, also through reciprocal.
//! * a group_norm whose result is multiplied and shifted per channel: the affine part moves in.
//!
//! ONNX's own operator needs no rewrite. Statistics over the elements of a group are the same
//! numbers in either shape. Tests: tests/filetests/passes/fuse_group_norm.cqt

use super::matching::{binary, channel_constant, either_order, refusal, reshaped};
use super::{Context, Pass, Rewrite, layer_norm};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::op::{Act, BinaryKind, ConvLayout, OpError};
use cqc_proto::{Op, Tensor};

pub const FUSE_GROUP_NORM: Pass = Pass::rule("fuse-group-norm", fuse_group_norm);

fn fuse_group_norm(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let old = g.get(id).outputs[0];
    if g.shape(old).len() < 3 {
        return Ok(Rewrite::NoMatch);
    }
    if let Op::Reshape { .. } = g.get(id).op {
        return regroup(g, id);
    }
    affine(g, id, context)
}

/// reshape(norm(reshape(x))) to the shape of x, where the norm takes each of G groups as one
/// channel.
fn regroup(g: &mut Graph, id: NodeId) -> Result<Rewrite, OpError> {
    let (old, name) = (g.get(id).outputs[0], g.get(id).name.clone());
    let inner = g.get(id).inputs[0].expect("verified");
    let Some((grouped, eps)) = instance_norm(g, inner).or_else(|| decomposed(g, inner)) else {
        return Ok(Rewrite::NoMatch);
    };
    let Some(x) = reshaped(g, grouped) else { return Ok(Rewrite::NoMatch) };
    let groups = g.shape(grouped)[1].as_const();
    let (Some(groups), true) = (groups, g.shape(grouped)[0] == g.shape(old)[0]) else {
        return Ok(Rewrite::NoMatch);
    };
    // under the result's shape, a group is still one contiguous run of elements
    let shape = g.shape(old).to_vec();
    let x = super::matching::reshape(g, &name, x, shape)?;
    let op = Op::GroupNorm {
        groups: groups as usize,
        eps,
        layout: ConvLayout::ChannelsFirst,
        act: Act::None,
    };
    match refusal(g, &op, &[Some(x)]) {
        None => Ok(Rewrite::one(old, g.op(&name, op, &[x])?)),
        Some(reason) => Ok(Rewrite::refused(reason)),
    }
}

/// `(operand, eps)` if `v` is a group norm with one channel per group and no affine part.
fn instance_norm(g: &Graph, v: ValueId) -> Option<(ValueId, f32)> {
    let node = g.producer_node(v)?;
    let Op::GroupNorm { groups, eps, layout: ConvLayout::ChannelsFirst, act: Act::None } = node.op
    else {
        return None;
    };
    let x = node.input(0)?;
    let all = |i: usize, expected: f32| match node.input(i) {
        Some(v) => g.tensor(v).is_some_and(|t| t.to_f32_vec().iter().all(|&e| e == expected)),
        None => true,
    };
    (g.shape(x)[1].is(groups as i64) && all(1, 1.0) && all(2, 0.0)).then_some((x, eps))
}

/// The normalisation written out over all axes after the group axis.
fn decomposed(g: &Graph, v: ValueId) -> Option<(ValueId, f32)> {
    let found = layer_norm::written_out(g, v)?;
    let rank = g.shape(found.x).len();
    (rank >= 3 && found.axes == (2..rank).collect::<Vec<_>>()).then_some((found.x, found.eps))
}

/// group_norm(x) · gamma + beta with constants per channel.
fn affine(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let (old, name) = (g.get(id).outputs[0], g.get(id).name.clone());
    for (kind, operand) in [(BinaryKind::Mul, 1), (BinaryKind::Add, 2)] {
        let Some(pair) = binary(g, old, kind) else { continue };
        let Some((norm, factor)) = either_order(pair, |n, f| is_norm(g, n).then_some((n, f)))
        else {
            continue;
        };
        let node = g.producer_node(norm).expect("is_norm").clone();
        if !context.single_reader(norm) {
            return Ok(Rewrite::refused("the normalised value has another reader"));
        }
        // an existing beta would have to be multiplied, too
        if operand == 1 && node.input(2).is_some_and(|b| g.tensor(b).is_none()) {
            continue;
        }
        let rank = g.shape(norm).len();
        let channels = g.shape(norm)[1].clone();
        let Some(vector) = channel_constant(g, factor, rank, 1, &channels) else { continue };
        let mut inputs = vec![node.inputs[0], node.input(1), node.input(2)];
        if operand == 1 {
            inputs[1] = Some(combine(g, &name, inputs[1], vector, |a, b| a * b));
            inputs[2] = inputs[2].map(|b| combine(g, &name, Some(b), vector, |a, b| a * b));
        } else {
            inputs[2] = Some(combine(g, &name, inputs[2], vector, |a, b| a + b));
        }
        // the operator takes a beta only if it has a gamma
        if inputs[2].is_some() && inputs[1].is_none() {
            let ones = vec![1.0; channels.as_const().unwrap_or(0) as usize];
            inputs[1] =
                Some(g.constant(&format!("{name}/ones"), Tensor::from_f32(&[ones.len()], &ones)));
        }
        let new = g.node(&name, node.op, &inputs)?[0];
        return Ok(if g.ty(new) == g.ty(old) { Rewrite::one(old, new) } else { Rewrite::NoMatch });
    }
    Ok(Rewrite::NoMatch)
}

fn is_norm(g: &Graph, v: ValueId) -> bool {
    matches!(
        g.producer_node(v).map(|n| &n.op),
        Some(Op::GroupNorm { act: Act::None, layout: ConvLayout::ChannelsFirst, .. })
    )
}

/// `f(old, vector)` element by element, or `vector` if there is no old one.
fn combine(
    g: &mut Graph,
    name: &str,
    old: Option<ValueId>,
    vector: ValueId,
    f: impl Fn(f32, f32) -> f32,
) -> ValueId {
    let Some(old) = old else { return vector };
    let (Some(a), Some(b)) = (g.tensor(old), g.tensor(vector)) else { return vector };
    let values: Vec<f32> =
        a.to_f32_vec().into_iter().zip(b.to_f32_vec()).map(|(a, b)| f(a, b)).collect();
    g.constant(&format!("{name}/affine"), Tensor::from_f32(&[values.len()], &values))
}
