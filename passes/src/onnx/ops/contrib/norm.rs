//! Normalisations with a residual sum before them, and embeddings.

use super::*;
use crate::onnx::ops::norm::{Row, rows};
use cqc_proto::op::{Act, ConvLayout, ReduceKind};
use cqc_proto::{DType, Dim, Tensor, ValueType};

pub(super) const TABLE: Table = &[
    ("SkipLayerNormalization", |cx, c| skip_norm(cx, c, Row::Layer)),
    ("SkipSimplifiedLayerNormalization", |cx, c| skip_norm(cx, c, Row::Rms)),
    ("SimplifiedLayerNormalization", |cx, c| {
        let x = c.input(0, "X")?;
        let axis = c.axis("axis", -1, cx.ty(x)?.rank())?;
        let eps = c.float("epsilon", 1e-5)?;
        Ok(vec![rows(cx, Row::Rms, x, axis, eps, Some(c.input(1, "scale")?), None)?])
    }),
    ("GroupNorm", |cx, c| Ok(vec![group_norm(cx, c, c.input(0, "X")?)?])),
    ("SkipGroupNorm", skip_group_norm),
    ("EmbedLayerNormalization", embed_layer_norm),
];

/// The outputs are (y, mean, deviation, sum). The statistics are not computed.
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

fn layout(c: &Call) -> Result<ConvLayout, Refusal> {
    Ok(match c.flag("channels_last", true)? {
        true => ConvLayout::ChannelsLast,
        false => ConvLayout::ChannelsFirst,
    })
}

/// The axis of channels of an image.
fn channel_axis(ty: &ValueType, layout: ConvLayout) -> Result<usize, Refusal> {
    match (ty.rank(), layout) {
        (0..=2, _) => malformed(format!("the operand is {ty}, expected batch, image and channels")),
        (_, ConvLayout::ChannelsFirst) => Ok(1),
        (rank, ConvLayout::ChannelsLast) => Ok(rank - 1),
    }
}

/// Group norm, with channels last unless `channels_last` is 0. Parameters of another type than the
/// image are those of a half-precision model, whose kernels normalise in f32.
fn group_norm(cx: &mut Cx, c: &Call, x: &Item) -> Result<Item, Refusal> {
    let (ty, layout) = (cx.ty(x)?, layout(c)?);
    channel_axis(&ty, layout)?;
    let groups = c.required_int("groups")?;
    let Ok(groups) = usize::try_from(groups) else {
        return malformed(format!("`groups` is {groups}"));
    };
    let act = match c.int("activation", 0)? {
        0 => Act::None,
        1 => Act::Silu,
        n => return unsupported(format!("`activation` = {n} is not supported")),
    };
    let parameters = [c.input(1, "gamma")?, c.input(2, "beta")?];
    let mut dtype = ty.dtype;
    for p in parameters {
        if cx.ty(p)?.dtype != ty.dtype {
            dtype = DType::F32;
        }
    }
    let operands = [x, parameters[0], parameters[1]].map(|item| cx.cast(item, dtype)).into_iter();
    let operands = operands.collect::<Result<Vec<Item>, _>>()?;
    let op = Op::GroupNorm { groups, eps: c.float("epsilon", 1e-5)?, layout, act };
    let y = cx.emit(op, &operands.iter().collect::<Vec<_>>())?;
    cx.cast(&y, ty.dtype)
}

/// `s = x + skip + bias`. The outputs are (group norm of s, s).
fn skip_group_norm(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    let channels = channel_axis(&ty, layout(c)?)?;
    let skip = c.input(3, "skip")?;
    let skip = residual(cx, &ty, channels, skip)?;
    let mut sum = plus(cx, x, Some(&skip))?;
    if let Some(bias) = c.optional(4) {
        let bias = along(cx, bias, &ty, channels)?;
        sum = plus(cx, &sum, Some(&bias))?;
    }
    let y = group_norm(cx, c, &sum)?;
    Ok(vec![y, sum])
}

/// A skip of the image's shape, or one that all pixels share: `[N, C]` or `[N, 1, 1, C]`, the
/// latter in both layouts.
fn residual(cx: &mut Cx, ty: &ValueType, channels: usize, skip: &Item) -> Result<Item, Refusal> {
    let shape = cx.ty(skip)?.shape;
    if shape == ty.shape {
        return Ok(skip.clone());
    }
    let mut wide = vec![Dim::constant(1); ty.rank()];
    (wide[0], wide[channels]) = (ty.shape[0].clone(), ty.shape[channels].clone());
    let mut last = vec![Dim::constant(1); ty.rank()];
    (last[0], last[ty.rank() - 1]) = (ty.shape[0].clone(), ty.shape[channels].clone());
    let flat = [ty.shape[0].clone(), ty.shape[channels].clone()];
    if shape == wide || shape == last || shape == flat {
        return cx.reshape(skip, wide);
    }
    malformed(format!("`skip` is {} beside an image {ty}", cx.ty(skip)?))
}

/// A vector of channels in the shape in which it broadcasts to the image.
fn along(cx: &mut Cx, v: &Item, ty: &ValueType, channels: usize) -> Result<Item, Refusal> {
    let shape = cx.ty(v)?.shape;
    if shape != [ty.shape[channels].clone()] {
        return malformed(format!("`bias` is {} beside an image {ty}", cx.ty(v)?));
    }
    let mut wide = vec![Dim::constant(1); ty.rank() - channels];
    wide[0] = shape[0].clone();
    cx.reshape(v, wide)
}

/// The sum of word, position and segment embeddings, and its layer norm. The outputs are (y, number
/// of ones per row of the mask, sum).
fn embed_layer_norm(cx: &mut Cx, c: &Call) -> Done {
    let ids = c.input(0, "input_ids")?;
    let ty = cx.ty(ids)?;
    let [batch, length] = &ty.shape[..] else {
        return malformed(format!("`input_ids` is {ty}, expected two axes"));
    };
    let words = cx.emit(Op::Gather { axis: 0 }, &[c.input(2, "word_embedding")?, ids])?;
    let table = c.input(3, "position_embedding")?;
    let positions = match c.optional(8) {
        Some(positions) => cx.emit(Op::Gather { axis: 0 }, &[table, positions])?,
        None => {
            if cx.ty(table)?.rank() != 2 {
                return malformed(format!("`position_embedding` is {}", cx.ty(table)?));
            }
            cx.slice(table, 0, 0.into(), length.clone())?
        }
    };
    let mut sum = plus(cx, &words, Some(&positions))?;
    if let (Some(segments), Some(table)) = (c.optional(1), c.optional(4)) {
        let segments = cx.emit(Op::Gather { axis: 0 }, &[table, segments])?;
        sum = plus(cx, &sum, Some(&segments))?;
    }
    let last = axis(-1, cx.ty(&sum)?.rank())?;
    let (gamma, beta) = (c.input(5, "gamma")?, c.input(6, "beta")?);
    let eps = c.float("epsilon", 1e-12)?;
    let y = rows(cx, Row::Layer, &sum, last, eps, Some(gamma), Some(beta))?;
    let lengths = match c.optional(7) {
        _ if !c.wants(1) => Item::Absent("it is not computed".into()),
        Some(mask) => {
            let one = cx.constant(Tensor::from_i64(&[], &[1]));
            let one = cx.cast(&one, cx.ty(mask)?.dtype)?;
            let ones = cx.binary(BinaryKind::Equal, mask, &one)?;
            let ones = cx.cast(&ones, DType::I32)?;
            let last = axis(-1, cx.ty(mask)?.rank())?;
            cx.reduce(ReduceKind::Sum, vec![last], false, &ones)?
        }
        None => {
            let zero = cx.constant(Tensor::from_i64(&[], &[0]));
            let zero = cx.cast(&zero, DType::I32)?;
            cx.emit(Op::Expand { shape: vec![batch.clone()] }, &[&zero])?
        }
    };
    Ok(vec![y, lengths, sum])
}
