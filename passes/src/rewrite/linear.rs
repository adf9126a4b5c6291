//! `fuse-linear`: matmul(x, constant [K, N]) → linear; linear(x) + constant [N] → its bias;
//! channels-last 1x1 convolution → linear
//!
//! Every product with stored weights becomes one operator, because packing, quantization and
//! epilogues are the same. Tests: tests/filetests/passes/fuse_linear.cqt

use super::matching::{binary, channel_constant, either_order};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_kernels::reference;
use cqc_proto::op::{Act, BinaryKind, ConvLayout, OpError};
use cqc_proto::{Op, Tensor};

pub const FUSE_LINEAR: Pass = Pass::rule("fuse-linear", fuse_linear);

fn fuse_linear(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id).clone();
    let old = node.outputs[0];
    match node.op {
        Op::MatMul => {
            let (Some(x), Some(w)) = (node.input(0), node.input(1)) else {
                return Ok(Rewrite::NoMatch);
            };
            if g.tensor(w).is_none()
                || g.shape(w).len() != 2
                || g.shape(x).is_empty()
                || !g.ty(x).dtype.is_float()
            {
                return Ok(Rewrite::NoMatch);
            }
            Ok(Rewrite::one(old, g.op(&node.name, Op::Linear { act: Act::None }, &[x, w])?))
        }
        Op::Binary { kind: BinaryKind::Add } => bias(g, old, &node.name, context),
        Op::Conv { .. } => pointwise(g, id),
        _ => Ok(Rewrite::NoMatch),
    }
}

/// Adds a constant vector as bias to a linear layer or convolution that has no epilogue yet.
fn bias(g: &mut Graph, old: ValueId, name: &str, context: &Context) -> Result<Rewrite, OpError> {
    let pair = binary(g, old, BinaryKind::Add).expect("the caller saw an addition");
    let found = either_order(pair, |product, b| {
        let node = g.producer_node(product)?;
        let plain =
            matches!(node.op, Op::Linear { act: Act::None } | Op::Conv { act: Act::None, .. })
                && node.inputs.iter().skip(2).all(Option::is_none);
        (plain && g.tensor(b).is_some()).then_some((product, b))
    });
    let Some((product, b)) = found else { return Ok(Rewrite::NoMatch) };
    if !context.single_reader(product) {
        return Ok(Rewrite::refused("the product has another reader"));
    }
    let node = g.producer_node(product).expect("matched above").clone();
    let rank = g.shape(product).len();
    let axis = match node.op {
        Op::Conv { layout, .. } => layout.channel_axis(rank),
        _ => rank - 1,
    };
    let channels = g.shape(product)[axis].clone();
    let Some(vector) = channel_constant(g, b, rank, axis, &channels) else {
        return Ok(Rewrite::NoMatch);
    };
    let new = g.node(name, node.op, &[node.inputs[0], node.inputs[1], Some(vector)])?[0];
    Ok(if g.ty(new) == g.ty(old) { Rewrite::one(old, new) } else { Rewrite::NoMatch })
}

/// A channels-last convolution with a 1x1 window, stride 1 and no padding is a linear layer per
/// pixel.
fn pointwise(g: &mut Graph, id: NodeId) -> Result<Rewrite, OpError> {
    let node = g.get(id).clone();
    let Op::Conv {
        strides,
        pads,
        groups: 1,
        layout: ConvLayout::ChannelsLast,
        upsample: 1,
        act,
        ..
    } = &node.op
    else {
        return Ok(Rewrite::NoMatch);
    };
    let w = node.inputs[1].expect("verified");
    let window_is_one = g.shape(w)[2..].iter().all(|d| d.is(1));
    let plain = window_is_one && strides.iter().all(|&s| s == 1) && pads.iter().all(|&p| p == 0);
    let (true, Some(tensor)) = (plain, g.tensor(w)) else { return Ok(Rewrite::NoMatch) };
    let (o, i) = (tensor.shape()[0], tensor.shape()[1]);
    let flat = tensor.reshaped(vec![o, i]).expect("the window has one element");
    let transposed = transpose(&flat);
    let w_name = g.value(w).name.clone();
    let w = g.constant(&w_name, transposed);
    let mut inputs = node.inputs.clone();
    inputs[1] = Some(w);
    let new = g.node(&node.name, Op::Linear { act: *act }, &inputs)?[0];
    Ok(Rewrite::one(node.outputs[0], new))
}

fn transpose(matrix: &Tensor) -> Tensor {
    let op = Op::Transpose { perm: vec![1, 0] };
    reference::eval(&op, &[Some(matrix)]).expect("a matrix transposes").remove(0)
}
