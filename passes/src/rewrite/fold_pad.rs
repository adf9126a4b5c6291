//! `fold-pad`:  conv(pad(x))  →  conv(x) with larger pads
//!
//! The downsampling of diffusers pads one row and one column at the end before a convolution
//! without padding. Zeros on spatial axes equal the padding of the convolution. Tests:
//! tests/filetests/passes/fold_pad.cqt

use super::matching::refusal;
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId};
use cqc_proto::Op;
use cqc_proto::op::{OpError, PadMode};

pub const FOLD_PAD: Pass = Pass::rule("fold-pad", fold_pad);

fn fold_pad(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id).clone();
    let Op::Conv { pads, layout, upsample: 1, .. } = &node.op else { return Ok(Rewrite::NoMatch) };
    let Some(pad) = node.input(0).and_then(|x| g.producer_node(x)) else {
        return Ok(Rewrite::NoMatch);
    };
    let Op::Pad { before, after, mode: PadMode::Constant } = &pad.op else {
        return Ok(Rewrite::NoMatch);
    };
    if pad.input(1).is_some_and(|fill| g.scalar(fill) != Some(0.0)) {
        return Ok(Rewrite::refused("the padding is not zero"));
    }
    let spatial = layout.spatial_axes(before.len());
    let outside = (0..before.len()).filter(|axis| !spatial.contains(axis));
    if outside.into_iter().any(|axis| before[axis] != 0 || after[axis] != 0)
        || before.iter().chain(after).any(|&p| p < 0)
    {
        return Ok(Rewrite::refused("it pads more than the spatial axes, or crops"));
    }
    let added = before[spatial.clone()].iter().chain(&after[spatial]);
    let sum: Vec<usize> = pads.iter().zip(added).map(|(&p, &a)| p + a as usize).collect();
    let mut op = node.op.clone();
    if let Op::Conv { pads, .. } = &mut op {
        *pads = sum;
    }
    let mut inputs = node.inputs.clone();
    inputs[0] = pad.input(0);
    // the attributes of an operator have limits that the sizes of a tensor do not have
    if let Some(reason) = refusal(g, &op, &inputs) {
        return Ok(Rewrite::refused(reason));
    }
    Ok(Rewrite::one(node.outputs[0], g.node(&node.name, op, &inputs)?[0]))
}
