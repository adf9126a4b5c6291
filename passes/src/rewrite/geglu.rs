//! `fuse-geglu`:  a · gelu(b) with a, b the halves of x along the last axis  →  geglu(x)
//!
//! This is the feed-forward gate of Stable Diffusion's transformer blocks. It becomes one pass over
//! memory instead of four. Tests: tests/filetests/passes/fuse_geglu.cqt

use super::matching::{binary, either_order};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::op::{Act, BinaryKind, OpError, UnaryKind};
use cqc_proto::{Dim, Op};

pub const FUSE_GEGLU: Pass = Pass::rule("fuse-geglu", fuse_geglu);

fn fuse_geglu(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let old = g.get(id).outputs[0];
    let Some(pair) = binary(g, old, BinaryKind::Mul) else { return Ok(Rewrite::NoMatch) };
    let found = either_order(pair, |a, gate| {
        let node = g.producer_node(gate)?;
        let act = match node.op {
            Op::Unary { kind: UnaryKind::GeluErf } => Act::GeluErf,
            Op::Unary { kind: UnaryKind::GeluTanh } => Act::GeluTanh,
            _ => return None,
        };
        let (x, second) = half(g, node.input(0)?)?;
        (half(g, a)? == (x, false) && second).then_some((x, act))
    });
    let Some((x, act)) = found else { return Ok(Rewrite::NoMatch) };
    let name = g.get(id).name.clone();
    Ok(Rewrite::one(old, g.op(&name, Op::Geglu { act }, &[x])?))
}

/// `(x, is second)` if `v` is a half of x along the last axis.
fn half(g: &Graph, v: ValueId) -> Option<(ValueId, bool)> {
    let node = g.producer_node(v)?;
    let Op::Slice { axes, starts, steps, .. } = &node.op else { return None };
    let x = node.input(0)?;
    let last = g.shape(x).last()?.as_const()?;
    let fits = axes == &[g.shape(x).len() - 1]
        && steps == &[1]
        && g.shape(v).last()?.is(last / 2)
        && last % 2 == 0;
    let second = match &starts[..] {
        [s] if s.is(0) => false,
        [s] if *s == Dim::constant(last / 2) => true,
        _ => return None,
    };
    fits.then_some((x, second))
}
