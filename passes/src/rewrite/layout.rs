//! `channels-last`: convolution, GroupNorm, pooling and all that lies between them → channels on
//! the last axis
//!
//! The engine's kernels need the channels of a pixel side by side. Each channels-first operator
//! becomes `transpose · channels-last operator · transpose back`. The transpose back moves after
//! every operator for which the position of the channels makes no difference (elementwise, concat,
//! slice, pad, resize, reshape of the spatial axes), until it meets the next operator's own
//! transpose and both cancel. Only the transposes at inputs and outputs remain.
//!
//! This is correct because a transposed operand and a transposed attribute give a transposed
//! result. Tests: tests/filetests/passes/channels_last.cqt

use super::matching::{inverse, product, reshape, transpose, transposed};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, Node, NodeId, ValueId};
use cqc_proto::op::{ConvLayout, OpError};
use cqc_proto::{Dim, Op};

pub const CHANNELS_LAST: Pass = Pass::rule("channels-last", channels_last);

fn channels_last(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id).clone();
    match &node.op {
        Op::Conv { layout, .. } | Op::GroupNorm { layout, .. } | Op::Pool { layout, .. }
            if *layout == ConvLayout::ChannelsFirst && g.shape(node.outputs[0]).len() >= 3 =>
        {
            wrap(g, &node)
        }
        Op::Reshape { shape } => sink_reshape(g, &node, shape),
        _ => sink(g, &node),
    }
}

/// The permutation that puts channels last.
pub(crate) fn to_last(rank: usize) -> Vec<usize> {
    [0].into_iter().chain(2..rank).chain([1]).collect()
}

/// `v` with channels last: the operand of a transpose that put them first, or a new transpose.
fn last(g: &mut Graph, name: &str, v: ValueId) -> Result<ValueId, OpError> {
    match behind(g, v) {
        Some(x) => Ok(x),
        None => transpose(g, name, v, &to_last(g.shape(v).len())),
    }
}

fn first(g: &mut Graph, name: &str, v: ValueId) -> Result<ValueId, OpError> {
    transpose(g, name, v, &inverse(&to_last(g.shape(v).len())))
}

/// Replaces the node's result by `y`, which has channels last, transposed back. `y` takes the name
/// of the source model, because the transpose is meant to vanish.
fn replace(g: &mut Graph, node: &Node, y: ValueId) -> Result<Rewrite, OpError> {
    let old = node.outputs[0];
    g.swap_names(old, y);
    Ok(Rewrite::one(old, first(g, &node.name, y)?))
}

/// The channels-last value that a transpose turned into `v`.
fn behind(g: &Graph, v: ValueId) -> Option<ValueId> {
    let (x, perm) = transposed(g, v)?;
    (perm.len() >= 3 && *perm == inverse(&to_last(perm.len()))).then_some(x)
}

/// Whether `v` is a channels-last value transposed back, so that the transpose may move after the
/// operator.
///
/// With one spatial axis, the transposes in both directions are the same permutation, so an operand
/// that the pass itself has put last would look like one to move, forever. The producer of the
/// value under the transpose decides in that case.
fn sinks(g: &Graph, v: ValueId) -> bool {
    behind(g, v).is_some_and(|x| g.shape(x).len() > 3 || is_made_last(g, x))
}

/// Number of nodes that [`is_made_last`] looks back.
const MAX_TRACE: usize = 256;

/// Whether the value comes from a channels-last operator through operators for which the position
/// of the channels makes no difference.
fn is_made_last(g: &Graph, v: ValueId) -> bool {
    let mut at = v;
    for _ in 0..MAX_TRACE {
        let Some(node) = g.producer_node(at) else { return false };
        match &node.op {
            Op::Conv { layout, .. } | Op::GroupNorm { layout, .. } | Op::Pool { layout, .. } => {
                return *layout == ConvLayout::ChannelsLast;
            }
            Op::Reshape { .. } => {}
            op if permuted(op, &to_last(g.shape(at).len())).is_some() => {}
            _ => return false,
        }
        // an operand that was put last for the same operator tells nothing
        let tells = |v: &ValueId| {
            let rank = g.shape(*v).len();
            let node = g.producer_node(*v);
            rank >= 3 && node.is_some_and(|n| !matches!(n.op, Op::Transpose { .. }))
        };
        match node.inputs.iter().flatten().copied().find(tells) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

fn wrap(g: &mut Graph, node: &Node) -> Result<Rewrite, OpError> {
    let mut op = node.op.clone();
    if let Op::Conv { layout, .. } | Op::GroupNorm { layout, .. } | Op::Pool { layout, .. } =
        &mut op
    {
        *layout = ConvLayout::ChannelsLast;
    }
    let mut inputs = node.inputs.clone();
    // x, and for convolutions row, gate and residual; weights, gamma and beta stay
    let moved: &[usize] = if matches!(op, Op::Conv { .. }) { &[0, 3, 4, 5] } else { &[0] };
    for &i in moved {
        if let Some(v) = node.input(i) {
            inputs[i] = Some(last(g, &node.name, v)?);
        }
    }
    let y = g.node(&node.name, op, &inputs)?[0];
    replace(g, node, y)
}

/// Moves the transposes of the operands after an operator that works in the same way on permuted
/// axes.
fn sink(g: &mut Graph, node: &Node) -> Result<Rewrite, OpError> {
    let old = node.outputs[0];
    let rank = g.shape(old).len();
    let movable = node.outputs.len() == 1
        && rank >= 3
        && node.inputs.iter().flatten().any(|&v| sinks(g, v) && g.shape(v).len() == rank);
    let Some(op) = movable.then(|| permuted(&node.op, &to_last(rank))).flatten() else {
        return Ok(Rewrite::NoMatch);
    };
    let mut inputs = Vec::new();
    for v in &node.inputs {
        let moved = match v {
            // the fill value
            Some(v) if matches!(op, Op::Pad { .. }) && g.shape(*v).len() != rank => Some(*v),
            Some(v) if g.shape(*v).is_empty() => Some(*v),
            Some(v) => {
                let mut shape = vec![Dim::constant(1); rank.saturating_sub(g.shape(*v).len())];
                shape.extend(g.shape(*v).iter().cloned());
                let full = reshape(g, &node.name, *v, shape)?;
                Some(last(g, &node.name, full)?)
            }
            None => None,
        };
        inputs.push(moved);
    }
    let y = g.node(&node.name, op, &inputs)?[0];
    replace(g, node, y)
}

/// The operator for operands and results whose axis `k` was axis `perm[k]`; `None` for operators
/// that cannot move.
pub(crate) fn permuted(op: &Op, perm: &[usize]) -> Option<Op> {
    let place = inverse(perm); // old axis → new axis
    let list = |v: &[i64]| perm.iter().map(|&p| v[p]).collect::<Vec<_>>();
    Some(match op {
        Op::Unary { .. } | Op::Binary { .. } | Op::Where | Op::Cast { .. } | Op::RoundBf16 => {
            op.clone()
        }
        Op::Concat { axis } => Op::Concat { axis: place[*axis] },
        Op::Pad { before, after, mode } => {
            Op::Pad { before: list(before), after: list(after), mode: *mode }
        }
        Op::Tile { repeats } => Op::Tile { repeats: list(repeats) },
        Op::Expand { shape } => {
            Op::Expand { shape: perm.iter().map(|&p| shape[p].clone()).collect() }
        }
        Op::Slice { axes, starts, ends, steps } => {
            let mut entries: Vec<_> = (0..axes.len()).map(|i| (place[axes[i]], i)).collect();
            entries.sort();
            Op::Slice {
                axes: entries.iter().map(|e| e.0).collect(),
                starts: entries.iter().map(|e| starts[e.1].clone()).collect(),
                ends: entries.iter().map(|e| ends[e.1].clone()).collect(),
                steps: entries.iter().map(|e| steps[e.1]).collect(),
            }
        }
        Op::Resize {
            sizes,
            scales,
            mode,
            coordinates,
            nearest,
            cubic_a,
            exclude_outside,
            antialias,
        } => Op::Resize {
            sizes: perm.iter().map(|&p| sizes[p].clone()).collect(),
            scales: if scales.is_empty() {
                vec![]
            } else {
                perm.iter().map(|&p| scales[p]).collect()
            },
            mode: *mode,
            coordinates: *coordinates,
            nearest: *nearest,
            cubic_a: *cubic_a,
            exclude_outside: *exclude_outside,
            antialias: *antialias,
        },
        Op::Reduce { kind, axes, keep: true } => {
            let mut axes: Vec<usize> = axes.iter().map(|&a| place[a]).collect();
            axes.sort_unstable();
            Op::Reduce { kind: *kind, axes, keep: true }
        }
        Op::Softmax { axis } => Op::Softmax { axis: place[*axis] },
        _ => return None,
    })
}

/// [N, C, spatial…] → [N, C, other spatial…]: the same reshape with channels last.
fn sink_reshape(g: &mut Graph, node: &Node, shape: &[Dim]) -> Result<Rewrite, OpError> {
    let x = node.inputs[0].expect("verified");
    let Some(inner) = behind(g, x) else { return Ok(Rewrite::NoMatch) };
    let from = g.shape(x).to_vec();
    let keeps_channels =
        shape.len() >= 3 && shape[..2] == from[..2] && product(&shape[2..]) == product(&from[2..]);
    if !keeps_channels {
        return Ok(Rewrite::NoMatch);
    }
    let shape: Vec<Dim> = to_last(shape.len()).iter().map(|&p| shape[p].clone()).collect();
    let y = reshape(g, &node.name, inner, shape)?;
    replace(g, node, y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::run;

    #[test]
    fn a_transpose_of_three_axes_does_not_turn_in_circles() {
        let text = "graph(%x: f32[N,4,6], %b: f32[N,6,4]) {
  %t = transpose(%x) perm=[0,2,1]
  %y = add(%t, %b)
  return %y
}";
        let mut g = crate::ir::parse(text).unwrap();
        let report = run(&mut g, &[CHANNELS_LAST], |_, _| {}).unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert_eq!(g.nodes().count(), 2);
    }
}
