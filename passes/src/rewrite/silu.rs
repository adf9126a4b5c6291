//! `fuse-silu`: x · sigmoid(x) → silu(x); x · sigmoid(1.702 x) → quick_gelu(x); swish with alpha 1
//! → silu
//!
//! Exporters write SiLU as two nodes. Every later fusion looks for one node, so this pass runs
//! early. A sigmoid that another node reads is still computed for that node, because computing it
//! twice costs less than keeping the form with two nodes. Tests:
//! tests/filetests/passes/fuse_silu.cqt

use super::matching::{binary, either_order, scaled, unary};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId};
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, OpError, UnaryKind};

pub const FUSE_SILU: Pass = Pass::rule("fuse-silu", fuse_silu);

fn fuse_silu(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let old = g.get(id).outputs[0];
    let name = g.get(id).name.clone();
    if let Op::Unary { kind: UnaryKind::Swish { alpha: 1.0 } } = g.get(id).op {
        let x = g.get(id).inputs[0].expect("verified");
        return Ok(Rewrite::one(old, g.op(&name, Op::unary(UnaryKind::Silu), &[x])?));
    }
    let Some(pair) = binary(g, old, BinaryKind::Mul) else { return Ok(Rewrite::NoMatch) };
    let found = either_order(pair, |x, gate| {
        let inner = unary(g, gate, UnaryKind::Sigmoid)?;
        if inner == x {
            return Some((x, UnaryKind::Silu));
        }
        let (scaled_x, factor) = scaled(g, inner)?;
        (scaled_x == x && (factor - 1.702).abs() < 1e-3).then_some((x, UnaryKind::QuickGelu))
    });
    let Some((x, kind)) = found else { return Ok(Rewrite::NoMatch) };
    Ok(Rewrite::one(old, g.op(&name, Op::unary(kind), &[x])?))
}
