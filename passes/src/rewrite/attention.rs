//! `fuse-attention`:  softmax(scale · q kᵀ [+ mask]) v  →  attention(q, k, v [, mask])
//!
//! The rule matches on data flow alone, so every form in use is covered: heads on an axis of their
//! own ([N, H, L, D], with the transposes on either side), heads merged into the batch
//! ([N·H, L, D] after a reshape), one head without an axis (DDPM's 1x1-convolution form,
//! [N, L, C]), the product written from the left (v · pᵀ, latent-diffusion), and scales on q, on k,
//! on the scores or split over both. The operands are brought to [N, L, H·D]. The transposes that
//! this adds cancel with those of the exporter. The score matrix is never stored, so no other node
//! may read it. Tests: tests/filetests/passes/fuse_attention.cqt

use super::matching::{
    binary, either_order, peel_scales, product, reshape, reshaped, takes, transpose, transposed,
};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::op::{BinaryKind, OpError};
use cqc_proto::{Dim, Op};

pub const FUSE_ATTENTION: Pass = Pass::rule("fuse-attention", fuse_attention);

/// The operands of the pattern: `q: [.., Lq, D]`, `k_t: [.., D, Lk]`, `v: [.., Lk, Dv]`, with three
/// or four axes each.
struct Found {
    q: ValueId,
    k_t: ValueId,
    v: ValueId,
    mask: Option<ValueId>,
    scale: f64,
}

fn fuse_attention(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id);
    if node.op != Op::MatMul {
        return Ok(Rewrite::NoMatch);
    }
    let (old, name) = (node.outputs[0], node.name.clone());
    let (a, b) = (node.inputs[0].expect("verified"), node.inputs[1].expect("verified"));
    let rank = g.shape(old).len();
    // products of vectors are no attention
    if rank < 3 {
        return Ok(Rewrite::NoMatch);
    }
    if softmax(g, a).is_some() {
        let Some(found) = scores(g, a, b) else { return Ok(Rewrite::NoMatch) };
        if !context.single_reader(a) {
            return Ok(Rewrite::refused("the attention weights have another reader"));
        }
        return Ok(match build(g, &name, &found)? {
            Some(new) if g.ty(new) == g.ty(old) => Rewrite::one(old, new),
            _ => Rewrite::refused("its operands do not have the shapes of attention"),
        });
    }
    // v · pᵀ = (p · vᵀ)ᵀ
    let swap = swap_last(rank);
    let Some(p) = transposed(g, b)
        .filter(|(p, perm)| *perm == swap && softmax(g, *p).is_some())
        .map(|(p, _)| p)
    else {
        return Ok(Rewrite::NoMatch);
    };
    if !context.single_reader(p) || g.shape(a).len() != rank {
        return Ok(Rewrite::refused("the attention weights have another reader"));
    }
    let v = transpose(g, &name, a, &swap)?;
    let Some(found) = scores(g, p, v) else { return Ok(Rewrite::NoMatch) };
    let Some(made) = build(g, &name, &found)? else { return Ok(Rewrite::NoMatch) };
    let new = transpose(g, &name, made, &swap)?;
    Ok(if g.ty(new) == g.ty(old) { Rewrite::one(old, new) } else { Rewrite::NoMatch })
}

/// The operand of `v` if a softmax over the last axis computes `v`.
fn softmax(g: &Graph, v: ValueId) -> Option<ValueId> {
    let node = g.producer_node(v)?;
    let last = g.shape(v).len().checked_sub(1)?;
    (node.op == Op::Softmax { axis: last }).then(|| node.input(0)).flatten()
}

fn scores(g: &Graph, weights: ValueId, v: ValueId) -> Option<Found> {
    let scores = softmax(g, weights)?;
    let rank = g.shape(scores).len();
    if !(rank == 3 || rank == 4) || g.shape(v).len() != rank {
        return None;
    }
    let plain = |s: ValueId| {
        let (product, scale) = peel_scales(g, s);
        let node = g.producer_node(product).filter(|n| n.op == Op::MatMul)?;
        Some((node.input(0)?, node.input(1)?, scale))
    };
    let (q, k_t, mask, outer) = match plain(scores) {
        Some((q, k_t, scale)) => (q, k_t, None, scale),
        None => either_order(binary(g, scores, BinaryKind::Add)?, |s, mask| {
            let (q, k_t, scale) = plain(s)?;
            (g.ty(s) == g.ty(scores)).then_some((q, k_t, Some(mask), scale))
        })?,
    };
    let ((q, scale_q), (k_t, scale_k)) = (peel_scales(g, q), peel_scales(g, k_t));
    if g.shape(q).len() != rank || g.shape(k_t).len() != rank {
        return None;
    }
    Some(Found { q, k_t, v, mask, scale: outer * scale_q * scale_k })
}

fn swap_last(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    perm
}

/// Adds the operator, and the reshapes and transposes of its operands and result; `None` if the
/// shapes do not fit.
fn build(g: &mut Graph, name: &str, found: &Found) -> Result<Option<ValueId>, OpError> {
    let k = transpose(g, name, found.k_t, &swap_last(g.shape(found.k_t).len()))?;
    if g.shape(found.q).len() == 4 {
        return heads(g, name, found.q, k, found.v, found);
    }
    let lifted =
        (split_batch(g, name, found.q)?, split_batch(g, name, k)?, split_batch(g, name, found.v)?);
    if let (Some(q), Some(k), Some(v)) = lifted
        && mask_ignores_batch(g, found)
        && let Some(y) = heads(g, name, q, k, v, found)?
    {
        let [n, h, l, d] = g.shape(y) else { return Ok(None) };
        let Some(batch) = n.mul(h) else { return Ok(None) };
        let shape = vec![batch, l.clone(), d.clone()];
        return Ok(Some(reshape(g, name, y, shape)?));
    }
    let op = attention(found, 1);
    // a mask of [N, Lq, Lk] lacks the axis of heads
    let mask = match found.mask {
        Some(m) if g.shape(m).len() == 3 => {
            let mut shape = g.shape(m).to_vec();
            shape.insert(1, Dim::constant(1));
            Some(reshape(g, name, m, shape)?)
        }
        other => other,
    };
    attend(g, name, op, &[Some(found.q), Some(k), Some(found.v), mask])
}

/// The operator, if it takes these operands. A product of matrices broadcasts batches and adds
/// masks of any shape, attention does not.
fn attend(
    g: &mut Graph,
    name: &str,
    op: Op,
    operands: &[Option<ValueId>],
) -> Result<Option<ValueId>, OpError> {
    if !takes(g, &op, operands) {
        return Ok(None);
    }
    Ok(Some(g.node(name, op, operands)?[0]))
}

fn attention(found: &Found, heads: usize) -> Op {
    Op::Attention {
        heads,
        kv_heads: heads,
        scale: found.scale as f32,
        causal: false,
        softcap: 0.0,
        softmax_bits: 0,
    }
}

/// A mask that is the same for all of [N·H] can be used for [N, H], too.
fn mask_ignores_batch(g: &Graph, found: &Found) -> bool {
    found.mask.is_none_or(|m| g.shape(m).len() <= 2 || g.shape(m)[0].is(1))
}

/// Attention over [N, H, L, D] operands.
fn heads(
    g: &mut Graph,
    name: &str,
    q: ValueId,
    k: ValueId,
    v: ValueId,
    found: &Found,
) -> Result<Option<ValueId>, OpError> {
    let Some(count) = g.shape(q)[1].as_const() else { return Ok(None) };
    if g.shape(k)[1] != g.shape(q)[1] || g.shape(v)[1] != g.shape(q)[1] {
        return Ok(None);
    }
    let (n, lq, dv) = (g.shape(q)[0].clone(), g.shape(q)[2].clone(), g.shape(v)[3].clone());
    let mut operands = Vec::new();
    for x in [q, k, v] {
        let by_position = transpose(g, name, x, &[0, 2, 1, 3])?;
        let [n, l, h, d] = g.shape(by_position) else { return Ok(None) };
        let Some(channels) = h.mul(d) else { return Ok(None) };
        let shape = vec![n.clone(), l.clone(), channels];
        operands.push(Some(reshape(g, name, by_position, shape)?));
    }
    operands.push(found.mask);
    let Some(y) = attend(g, name, attention(found, count as usize), &operands)? else {
        return Ok(None);
    };
    let split = reshape(g, name, y, vec![n, lq, Dim::constant(count), dv])?;
    Ok(Some(transpose(g, name, split, &[0, 2, 1, 3])?))
}

/// The [N, H, L, D] value that a reshape merged into `v: [N·H, L, D]`, also under a transpose of
/// the last two axes.
fn split_batch(g: &mut Graph, name: &str, v: ValueId) -> Result<Option<ValueId>, OpError> {
    let lifted = |g: &Graph, v: ValueId| {
        let x = reshaped(g, v)?;
        let (s, t) = (g.shape(x), g.shape(v));
        (s.len() == 4 && s[2..] == t[1..] && product(&s[..2]).as_ref() == Some(&t[0])).then_some(x)
    };
    if let Some(x) = lifted(g, v) {
        return Ok(Some(x));
    }
    // through transposes of the last two axes
    let mut inner = v;
    let mut swaps = 0;
    while let Some((x, perm)) = transposed(g, inner) {
        if *perm != [0, 2, 1] {
            return Ok(None);
        }
        inner = x;
        swaps += 1;
    }
    match lifted(g, inner) {
        Some(x) if swaps % 2 == 1 => Ok(Some(transpose(g, name, x, &[0, 1, 3, 2])?)),
        other => Ok(other),
    }
}
