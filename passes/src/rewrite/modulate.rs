//! `fuse-modulate`: layer_norm(x) · (1 + scale) + shift with one row per image → layer_norm(x,
//! gamma, beta, scale, shift)
//!
//! This is the adaLN of DiT. `scale` and `shift` are [N, 1, C] (or [1, 1, C]). Both must be
//! present, because the operator applies both. Tests:
//! tests/filetests/passes/fuse_modulate.cqt

use super::matching::{binary, either_order, is_scalar, refusal};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, OpError};

pub const FUSE_MODULATE: Pass = Pass::rule("fuse-modulate", fuse_modulate);

fn fuse_modulate(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let (old, name) = (g.get(id).outputs[0], g.get(id).name.clone());
    let Some(sum) = binary(g, old, BinaryKind::Add) else { return Ok(Rewrite::NoMatch) };
    let found = either_order(sum, |product, shift| {
        either_order(binary(g, product, BinaryKind::Mul)?, |norm, factor| {
            let node = g.producer_node(norm)?;
            let plain = matches!(node.op, Op::LayerNorm { .. })
                && node.input(3).is_none()
                && node.input(4).is_none();
            let scale = either_order(binary(g, factor, BinaryKind::Add)?, |s, one| {
                is_scalar(g, one, 1.0).then_some(s)
            })?;
            plain.then_some((norm, product, scale, shift))
        })
    });
    let Some((norm, product, scale, shift)) = found else { return Ok(Rewrite::NoMatch) };
    if !context.single_reader(norm) || !context.single_reader(product) {
        return Ok(Rewrite::refused("the normalised value has another reader"));
    }
    let node = g.producer_node(norm).expect("matched above").clone();
    let rows = [per_image(g, &name, scale, norm)?, per_image(g, &name, shift, norm)?];
    let inputs = [node.inputs[0], node.input(1), node.input(2), Some(rows[0]), Some(rows[1])];
    match refusal(g, &node.op, &inputs) {
        None => Ok(Rewrite::one(old, g.node(&name, node.op, &inputs)?[0])),
        Some(reason) => Ok(Rewrite::refused(reason)),
    }
}

/// `v` with front axes of size 1 added up to the rank of `like`.
fn per_image(g: &mut Graph, name: &str, v: ValueId, like: ValueId) -> Result<ValueId, OpError> {
    let missing = g.shape(like).len().saturating_sub(g.shape(v).len());
    let mut shape = vec![1.into(); missing];
    shape.extend(g.shape(v).iter().cloned());
    super::matching::reshape(g, name, v, shape)
}
