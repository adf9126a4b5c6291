//! `fuse-upsample`:  conv(nearest-neighbour enlargement by two, x)  →  conv(x) upsample=2
//!
//! The loader of the convolution divides its indices by two, so the enlarged tensor, which has four
//! times the size, is never written. All rounding modes agree for an exact factor of two, except
//! those that use the ceiling, which are refused. Tests:
//! tests/filetests/passes/fuse_upsample.cqt

use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId};
use cqc_proto::Op;
use cqc_proto::op::{ConvLayout, CoordinateMode, NearestMode, OpError, ResizeMode};

pub const FUSE_UPSAMPLE: Pass = Pass::rule("fuse-upsample", fuse_upsample);

fn fuse_upsample(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id).clone();
    let Op::Conv { upsample: 1, layout: ConvLayout::ChannelsLast, .. } = node.op else {
        return Ok(Rewrite::NoMatch);
    };
    let x = node.inputs[0].expect("verified");
    let Some(resize) = g.producer_node(x) else { return Ok(Rewrite::NoMatch) };
    let Op::Resize { mode: ResizeMode::Nearest, coordinates, nearest, sizes, .. } = &resize.op
    else {
        return Ok(Rewrite::NoMatch);
    };
    let inner = resize.inputs[0].expect("verified");
    let from = g.shape(inner);
    let rank = from.len();
    let doubled = (0..rank).all(|i| {
        let factor = if i == 0 || i == rank - 1 { 1 } else { 2 };
        from[i].mul(&factor.into()).as_ref() == Some(&sizes[i])
    });
    let halves_index = match coordinates {
        CoordinateMode::Asymmetric => *nearest == NearestMode::Floor,
        CoordinateMode::AlignCorners => false,
        _ => matches!(nearest, NearestMode::RoundPreferFloor | NearestMode::RoundPreferCeil),
    };
    if !doubled {
        return Ok(Rewrite::NoMatch);
    }
    if !halves_index {
        return Ok(Rewrite::refused(format!(
            "nearest mode {nearest:?} of {coordinates:?} does not repeat each pixel twice"
        )));
    }
    let mut op = node.op.clone();
    if let Op::Conv { upsample, .. } = &mut op {
        *upsample = 2;
    }
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(inner);
    Ok(Rewrite::one(node.outputs[0], g.node(&node.name, op, &inputs)?[0]))
}
