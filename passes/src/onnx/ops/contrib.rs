//! Operators of ONNX Runtime's optimiser, domain `com.microsoft`.

use super::norm::{Row, rows};
use super::*;
use cqc_proto::Op;
use cqc_proto::op::{Act, BinaryKind, ConvLayout, UnaryKind};

pub(super) const TABLE: Table = &[
    ("Gelu", |cx, c| activation::unary(cx, c, UnaryKind::GeluErf)),
    ("FastGelu", |cx, c| biased(cx, c, UnaryKind::GeluTanh)),
    ("BiasGelu", |cx, c| biased(cx, c, UnaryKind::GeluErf)),
    ("QuickGelu", quick_gelu),
    ("BiasSplitGelu", bias_split_gelu),
    ("BiasAdd", bias_add),
    ("SkipLayerNormalization", |cx, c| skip_norm(cx, c, Row::Layer)),
    ("SkipSimplifiedLayerNormalization", |cx, c| skip_norm(cx, c, Row::Rms)),
    ("SimplifiedLayerNormalization", |cx, c| {
        let x = c.input(0, "X")?;
        let axis = c.axis("axis", -1, cx.ty(x)?.rank())?;
        let eps = c.float("epsilon", 1e-5)?;
        Ok(vec![rows(cx, Row::Rms, x, axis, eps, Some(c.input(1, "scale")?), None)?])
    }),
    ("GroupNorm", group_norm),
];

fn plus(cx: &mut Cx, x: &Item, addend: Option<&Item>) -> Result<Item, Refusal> {
    match addend {
        Some(b) => cx.binary(BinaryKind::Add, x, b),
        None => Ok(x.clone()),
    }
}

/// `f(x + bias)`.
fn biased(cx: &mut Cx, c: &Call, kind: UnaryKind) -> Done {
    let sum = plus(cx, c.input(0, "X")?, c.optional(1))?;
    Ok(vec![cx.unary(kind, &sum)?])
}

fn quick_gelu(cx: &mut Cx, c: &Call) -> Done {
    let alpha = c.float("alpha", 1.702)?;
    activation::unary(
        cx,
        c,
        if alpha == 1.702 { UnaryKind::QuickGelu } else { UnaryKind::Swish { alpha } },
    )
}

/// `a · gelu(b)` with `[a, b] = split(x + bias, 2)`.
fn bias_split_gelu(cx: &mut Cx, c: &Call) -> Done {
    let sum = plus(cx, c.input(0, "X")?, Some(c.input(1, "bias")?))?;
    Ok(vec![cx.emit(Op::Geglu { act: Act::GeluErf }, &[&sum])?])
}

fn bias_add(cx: &mut Cx, c: &Call) -> Done {
    let sum = plus(cx, c.input(0, "X")?, Some(c.input(1, "bias")?))?;
    Ok(vec![plus(cx, &sum, Some(c.input(2, "skip")?))?])
}

/// Outputs (y, mean, deviation, sum); the statistics are not computed.
fn skip_norm(cx: &mut Cx, c: &Call, kind: Row) -> Done {
    let (beta, bias) = match kind {
        Row::Layer => (c.optional(3), c.optional(4)),
        Row::Rms => (None, c.optional(3)),
    };
    let sum = plus(cx, c.input(0, "input")?, Some(c.input(1, "skip")?))?;
    let sum = plus(cx, &sum, bias)?;
    let rank = cx.ty(&sum)?.rank();
    let last = axis(-1, rank)?;
    let eps = c.float("epsilon", 1e-12)?;
    let y = rows(cx, kind, &sum, last, eps, Some(c.input(2, "gamma")?), beta)?;
    let absent = || Item::Absent("statistics of SkipLayerNormalization are not computed".into());
    Ok(vec![y, absent(), absent(), sum])
}

/// Channels last unless told otherwise.
fn group_norm(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    let layout = if c.flag("channels_last", true)? {
        ConvLayout::ChannelsLast
    } else {
        ConvLayout::ChannelsFirst
    };
    let groups = c.required_int("groups")?;
    let Ok(groups) = usize::try_from(groups) else {
        return malformed(format!("`groups` is {groups}"));
    };
    let act = match c.int("activation", 0)? {
        0 => Act::None,
        1 => Act::Silu,
        n => return unsupported(format!("`activation` = {n} is not supported")),
    };
    let mut operands = vec![Some(x.clone())];
    for (i, what) in [(1, "gamma"), (2, "beta")] {
        operands.push(Some(cx.cast(c.input(i, what)?, ty.dtype)?));
    }
    cx.emit_all(Op::GroupNorm { groups, eps: c.float("epsilon", 1e-5)?, layout, act }, &operands)
}
