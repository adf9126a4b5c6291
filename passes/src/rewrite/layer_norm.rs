//! `fuse-layer-norm`: (x − mean) / √(var + eps), written out over the last axis → layer_norm(x);
//! layer_norm(x) · gamma + beta with constants → layer_norm(x, gamma, beta); x / √(mean(x²) + eps)
//! · gamma → rms_norm
//!
//! Exporters below opset 17 and the decompositions of dynamo write the arithmetic out: `mean, sub,
//! pow 2 | mul, mean, add eps, sqrt, div` or `… reciprocal, mul`. ONNX's own operator needs no
//! rewrite. Tests: tests/filetests/passes/fuse_layer_norm.cqt

use super::matching::{binary, channel_constant, either_order, is_square_of, unary, with_scalar};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::op::{BinaryKind, OpError, ReduceKind, UnaryKind};
use cqc_proto::{Op, Tensor};

pub const FUSE_LAYER_NORM: Pass = Pass::rule("fuse-layer-norm", fuse_layer_norm);

/// A normalisation that is written out in arithmetic.
pub struct WrittenOut {
    /// The normalised value.
    pub x: ValueId,
    /// The axes of the normalisation.
    pub axes: Vec<usize>,
    /// The number that is added to the variance.
    pub eps: f32,
    /// Whether the mean is subtracted.
    pub centred: bool,
}

fn fuse_layer_norm(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let (old, name) = (g.get(id).outputs[0], g.get(id).name.clone());
    if let Some(found) = written_out(g, old)
        && found.axes.len() == 1
        && found.axes[0] + 1 == g.shape(old).len()
    {
        let op = if found.centred {
            Op::LayerNorm { eps: found.eps }
        } else {
            Op::RmsNorm { eps: found.eps }
        };
        return Ok(Rewrite::one(old, g.op(&name, op, &[found.x])?));
    }
    affine(g, old, &name, context)
}

/// Recognises `centred / √(mean(centred²) + eps)`, as a division or as a product with the
/// reciprocal.
pub fn written_out(g: &Graph, v: ValueId) -> Option<WrittenOut> {
    let (centred, root) = match binary(g, v, BinaryKind::Div) {
        Some(pair) => pair,
        None => either_order(binary(g, v, BinaryKind::Mul)?, |c, r| {
            let inner = unary(g, r, UnaryKind::Reciprocal).or_else(|| {
                let (one, root) = binary(g, r, BinaryKind::Div)?;
                (g.scalar(one) == Some(1.0)).then_some(root)
            })?;
            Some((c, inner))
        })?,
    };
    let (variance, eps) = with_scalar(g, root_operand(g, root)?, BinaryKind::Add)?;
    let eps = eps as f32;
    let (squared, axes) = mean(g, variance)?;
    let fits = is_square_of(g, squared, centred) && eps >= 0.0 && eps.is_finite();
    if !fits {
        return None;
    }
    if let Some((x, mean_value)) = binary(g, centred, BinaryKind::Sub)
        && mean(g, mean_value) == Some((x, axes.clone()))
    {
        return Some(WrittenOut { x, axes, eps, centred: true });
    }
    Some(WrittenOut { x: centred, axes, eps, centred: false })
}

fn root_operand(g: &Graph, v: ValueId) -> Option<ValueId> {
    unary(g, v, UnaryKind::Sqrt).or_else(|| {
        let (base, exponent) = binary(g, v, BinaryKind::Pow)?;
        (g.scalar(exponent) == Some(0.5)).then_some(base)
    })
}

/// `(x, axes)` if `v` is the mean of x over axes that are kept.
fn mean(g: &Graph, v: ValueId) -> Option<(ValueId, Vec<usize>)> {
    let node = g.producer_node(v)?;
    match &node.op {
        Op::Reduce { kind: ReduceKind::Mean, axes, keep: true } => {
            Some((node.input(0)?, axes.clone()))
        }
        _ => None,
    }
}

/// norm(x) · gamma, and norm(x, gamma) + beta, with constants along the last axis.
fn affine(g: &mut Graph, old: ValueId, name: &str, context: &Context) -> Result<Rewrite, OpError> {
    for (kind, operand) in [(BinaryKind::Mul, 1), (BinaryKind::Add, 2)] {
        let Some(pair) = binary(g, old, kind) else { continue };
        let Some((norm, factor)) = either_order(pair, |n, f| is_norm(g, n).then_some((n, f)))
        else {
            continue;
        };
        let node = g.producer_node(norm).expect("is_norm").clone();
        let rms = matches!(node.op, Op::RmsNorm { .. });
        if node.input(operand).is_some()
            || node.input(2).is_some()
            || node.input(3).is_some()
            || (rms && operand == 2)
        {
            continue;
        }
        let rank = g.shape(norm).len();
        let channels = g.shape(norm)[rank - 1].clone();
        let Some(vector) = channel_constant(g, factor, rank, rank - 1, &channels) else { continue };
        if !context.single_reader(norm) {
            return Ok(Rewrite::refused("the normalised value has another reader"));
        }
        let mut inputs = vec![node.inputs[0], node.input(1)];
        if operand == 1 {
            inputs[1] = Some(vector);
        } else {
            inputs[1] = inputs[1].or_else(|| {
                let ones = vec![1.0; channels.as_const()? as usize];
                Some(g.constant(&format!("{name}/ones"), Tensor::from_f32(&[ones.len()], &ones)))
            });
            inputs.push(Some(vector));
        }
        let new = g.node(name, node.op, &inputs)?[0];
        return Ok(if g.ty(new) == g.ty(old) { Rewrite::one(old, new) } else { Rewrite::NoMatch });
    }
    Ok(Rewrite::NoMatch)
}

fn is_norm(g: &Graph, v: ValueId) -> bool {
    matches!(g.producer_node(v).map(|n| &n.op), Some(Op::LayerNorm { .. } | Op::RmsNorm { .. }))
}
