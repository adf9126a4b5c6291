//! `fuse-gelu`: x · (1 + erf(x / √2)) · ½ → gelu_erf(x); x · (1 + tanh(√(2/π) (x + 0.044715 x³))) ·
//! ½ → gelu_tanh(x)
//!
//! The factors may be in any order, and the ½ may be on either factor or after the product. The
//! rule collects all scalar factors of the product and matches the rest. Tests:
//! tests/filetests/passes/fuse_gelu.cqt

use super::matching::{
    binary, either_order, is_square_of, peel_scales, roughly, unary, with_scalar,
};
use super::{Context, Pass, Rewrite};
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, OpError, UnaryKind};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub const FUSE_GELU: Pass = Pass::rule("fuse-gelu", fuse_gelu);

fn fuse_gelu(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
    let old = g.get(id).outputs[0];
    let (product, outer) = peel_scales(g, old);
    let Some(pair) = binary(g, product, BinaryKind::Mul) else { return Ok(Rewrite::NoMatch) };
    let found = either_order(pair, |a, b| {
        let (x, fa) = peel_scales(g, a);
        let (sum, fb) = peel_scales(g, b);
        if !roughly(outer * fa * fb, 0.5) {
            return None;
        }
        let (gate, one) = with_scalar(g, sum, BinaryKind::Add)?;
        roughly(one, 1.0).then(|| Some((x, gate_kind(g, gate, x)?))).flatten()
    });
    let Some((x, kind)) = found else { return Ok(Rewrite::NoMatch) };
    let name = g.get(id).name.clone();
    Ok(Rewrite::one(old, g.op(&name, Op::unary(kind), &[x])?))
}

fn gate_kind(g: &Graph, gate: ValueId, x: ValueId) -> Option<UnaryKind> {
    if let Some(inner) = unary(g, gate, UnaryKind::Erf) {
        let (base, factor) = peel_scales(g, inner);
        return (base == x && roughly(factor, FRAC_1_SQRT_2)).then_some(UnaryKind::GeluErf);
    }
    let (sum, factor) = peel_scales(g, unary(g, gate, UnaryKind::Tanh)?);
    if !roughly(factor, (2.0 / PI).sqrt()) {
        return None;
    }
    if let Some(pair) = binary(g, sum, BinaryKind::Add) {
        return either_order(pair, |a, b| {
            let (cube, factor) = peel_scales(g, b);
            (a == x && roughly(factor, 0.044715) && is_cube_of(g, cube, x))
                .then_some(UnaryKind::GeluTanh)
        });
    }
    // x · (1 + 0.044715 x²)
    either_order(binary(g, sum, BinaryKind::Mul)?, |a, b| {
        let (square, one) = with_scalar(g, b, BinaryKind::Add)?;
        let (square, factor) = peel_scales(g, square);
        let fits =
            a == x && roughly(one, 1.0) && roughly(factor, 0.044715) && is_square_of(g, square, x);
        fits.then_some(UnaryKind::GeluTanh)
    })
}

fn is_cube_of(g: &Graph, v: ValueId, x: ValueId) -> bool {
    if let Some((base, exponent)) = binary(g, v, BinaryKind::Pow) {
        return base == x && g.scalar(exponent) == Some(3.0);
    }
    binary(g, v, BinaryKind::Mul)
        .and_then(|pair| either_order(pair, |a, b| (a == x && is_square_of(g, b, x)).then_some(())))
        .is_some()
}
