//! Finds weights that are not finite.

use cqc_passes::ir::{Graph, Node};
use cqc_proto::op::Quantization;
use cqc_proto::op::operand::{BETA, BIAS, GAMMA, WEIGHTS};
use cqc_proto::{DType, Op, Tensor};
use std::fmt;

/// Largest number of tensors that are listed.
const LISTED: usize = 20;

/// A weight with infinities or NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct BadWeight {
    /// Name of the tensor.
    pub tensor: String,
    /// Name of a node that reads it.
    pub node: String,
    /// The operator of that node.
    pub op: String,
    /// Number of its elements that are not finite.
    pub count: usize,
    /// The first of these elements, and its position.
    pub first: (f32, usize),
}

impl fmt::Display for BadWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadWeight { tensor, node, op, count, first: (value, at) } = self;
        write!(f, "`{tensor}` of `{node}` ({op}): {count} not finite, the first is {value} at {at}")
    }
}

/// Weights, biases and gains of products and norms that are not finite, in the order of execution,
/// 20 at most. Other constants may be infinite: masks, bounds of a Clip, values of a Pad.
pub fn bad_weights(g: &Graph) -> Vec<BadWeight> {
    let mut found: Vec<BadWeight> = Vec::new();
    for (_, node) in g.nodes() {
        for v in weights(node).iter().filter_map(|&i| node.input(i)) {
            let Some(tensor) = g.tensor(v) else { continue };
            let name = &g.value(v).name;
            // a bias may come from an addition, and the addend of a product may be a mask
            let may_mask = matches!(node.op, Op::Linear { .. }) && node.input(BIAS) == Some(v);
            if found.len() < LISTED
                && !found.iter().any(|bad| bad.tensor == *name)
                && let Some((count, first)) = not_finite(tensor, may_mask)
            {
                let (tensor, op) = (name.clone(), node.op.name());
                found.push(BadWeight { tensor, node: node.name.clone(), op, count, first });
            }
        }
    }
    found
}

/// Indices of the operands that are weights.
fn weights(node: &Node) -> &'static [usize] {
    match &node.op {
        Op::GroupNorm { .. } | Op::LayerNorm { .. } | Op::RmsNorm { .. } => &[GAMMA, BETA],
        Op::MatMul => &[0, WEIGHTS],
        op => match op.traits().quantization {
            Quantization::Product { .. } | Quantization::FloatProduct => &[WEIGHTS, BIAS],
            Quantization::Attention | Quantization::KeepsChannels | Quantization::MixesChannels => {
                &[]
            }
        },
    }
}

/// Number of elements that are not finite, and the first of them. −∞ does not count in a tensor
/// that may be a mask.
fn not_finite(tensor: &Tensor, may_mask: bool) -> Option<(usize, (f32, usize))> {
    if !tensor.dtype().is_float() {
        return None;
    }
    let wrong = |x: f32| !(x.is_finite() || (may_mask && x == f32::NEG_INFINITY));
    let mut found: Option<(usize, (f32, usize))> = None;
    let mut look = |(at, x): (usize, f32)| {
        if wrong(x) {
            let first = found.map_or((x, at), |found| found.1);
            found = Some((found.map_or(0, |found| found.0) + 1, first));
        }
    };
    match tensor.dtype() {
        // f32 is read without a copy, because most weights are f32
        DType::F32 => tensor
            .bytes()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .enumerate()
            .for_each(&mut look),
        _ => tensor.to_f32_vec().into_iter().enumerate().for_each(&mut look),
    }
    found
}

/// All of them as one text.
pub(super) fn list(bad: &[BadWeight]) -> String {
    let lines: Vec<String> = bad.iter().map(BadWeight::to_string).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cqc_proto::ValueType;
    use cqc_proto::op::{Act, BinaryKind};

    #[test]
    fn weights_are_named_and_masks_are_not() {
        let mut g = Graph::new("g");
        let x = g.input("x", ValueType::fixed(DType::F32, &[2, 2]));
        let w = g.constant("w", Tensor::from_f32(&[2, 2], &[1.0, f32::INFINITY, 0.0, f32::NAN]));
        let b = g.constant("b", Tensor::from_f32(&[2], &[f32::NEG_INFINITY, 0.0]));
        let y = g.op("product", Op::Linear { act: Act::None }, &[x, w, b]).unwrap();
        let mask = g.constant("mask", Tensor::from_f32(&[2], &[f32::NEG_INFINITY, 0.0]));
        let y = g.op("masked", Op::binary(BinaryKind::Add), &[y, mask]).unwrap();
        let gain = g.constant("gain", Tensor::from_f32(&[2], &[f32::NAN, 1.0]));
        let y = g.op("norm", Op::LayerNorm { eps: 1e-5 }, &[y, gain]).unwrap();
        g.outputs.push(("y".into(), y));
        let found: Vec<(String, String, usize, usize)> = bad_weights(&g)
            .into_iter()
            .map(|bad| (bad.tensor, bad.node, bad.count, bad.first.1))
            .collect();
        let expected = [("w", "product", 2, 1), ("gain", "norm", 1, 0)];
        let expected = expected.map(|(t, n, count, at)| (t.to_string(), n.to_string(), count, at));
        assert_eq!(found, expected);
    }
}
