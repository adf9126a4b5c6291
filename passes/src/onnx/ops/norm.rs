//! Normalisations.

use super::movement::product;
use super::*;
use cqc_proto::op::{Act, BinaryKind, ConvLayout, PoolKind, ReduceKind, UnaryKind};
use cqc_proto::{DType, Dim, Op};

pub(super) const TABLE: Table = &[
    ("LayerNormalization", layer_norm),
    ("RMSNormalization", rms_norm),
    ("SimplifiedLayerNormalization", rms_norm),
    ("GroupNormalization", group_norm),
    ("InstanceNormalization", instance_norm),
    ("BatchNormalization", batch_norm),
    ("MeanVarianceNormalization", mean_variance),
    ("LRN", local_response),
];

/// A function of the trailing axes.
#[derive(Clone, Copy)]
pub(super) enum Row {
    Layer,
    Rms,
}

/// Normalises over all axes from `axis` on. `gamma` and `beta` broadcast to x.
pub(super) fn rows(
    cx: &mut Cx,
    kind: Row,
    x: &Item,
    axis: usize,
    eps: f32,
    gamma: Option<&Item>,
    beta: Option<&Item>,
) -> Result<Item, Refusal> {
    let ty = cx.ty(x)?;
    let channels = product(&ty.shape[axis..])?;
    let mut fused = vec![];
    for parameter in [gamma, beta] {
        fused.push(match parameter {
            Some(p) if cx.ty(p)?.shape == ty.shape[axis..] && cx.ty(p)?.dtype == ty.dtype => {
                Some(cx.reshape(p, vec![channels.clone()])?)
            }
            _ => None,
        });
    }
    if gamma.is_some() && fused[0].is_none() {
        fused[1] = None;
    }
    let (rest_gamma, rest_beta) =
        (gamma.filter(|_| fused[0].is_none()), beta.filter(|_| fused[1].is_none()));
    let flat = cx.reshape(x, [&ty.shape[..axis], &[channels]].concat())?;
    let op = match kind {
        Row::Layer => Op::LayerNorm { eps },
        Row::Rms => Op::RmsNorm { eps },
    };
    let mut operands = vec![Some(flat)];
    operands.extend(fused);
    while operands.last().is_some_and(Option::is_none) {
        operands.pop();
    }
    let y = cx.emit_all(op, &operands)?.swap_remove(0);
    let mut y = cx.reshape(&y, ty.shape)?;
    for (parameter, kind) in [(rest_gamma, BinaryKind::Mul), (rest_beta, BinaryKind::Add)] {
        if let Some(p) = parameter {
            let p = cx.cast(p, ty.dtype)?;
            y = cx.binary(kind, &y, &p)?;
        }
    }
    Ok(y)
}

fn layer_norm(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let axis = c.axis("axis", -1, cx.ty(x)?.rank())?;
    let eps = c.float("epsilon", 1e-5)?;
    let y = rows(cx, Row::Layer, x, axis, eps, Some(c.input(1, "Scale")?), c.optional(2))?;
    if !c.wants(1) && !c.wants(2) {
        return Ok(vec![y]);
    }
    let mut results = vec![y];
    results.extend(statistics(cx, x, axis, eps)?);
    Ok(results)
}

/// Mean and 1/√(variance + eps) in f32, with size 1 on the reduced axes.
fn statistics(cx: &mut Cx, x: &Item, axis: usize, eps: f32) -> Result<[Item; 2], Refusal> {
    let axes: Vec<usize> = (axis..cx.ty(x)?.rank()).collect();
    let x = cx.cast(x, DType::F32)?;
    let mean = cx.reduce(ReduceKind::Mean, axes.clone(), true, &x)?;
    let centred = cx.binary(BinaryKind::Sub, &x, &mean)?;
    let squares = cx.binary(BinaryKind::Mul, &centred, &centred)?;
    let variance = cx.reduce(ReduceKind::Mean, axes, true, &squares)?;
    let eps = cx.scalar(eps as f64, DType::F32);
    let variance = cx.binary(BinaryKind::Add, &variance, &eps)?;
    let deviation = cx.unary(UnaryKind::Sqrt, &variance)?;
    Ok([mean, cx.unary(UnaryKind::Reciprocal, &deviation)?])
}

fn rms_norm(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let axis = c.axis("axis", -1, cx.ty(x)?.rank())?;
    let eps = c.float("epsilon", 1e-5)?;
    Ok(vec![rows(cx, Row::Rms, x, axis, eps, Some(c.input(1, "scale")?), None)?])
}

/// `scale` and `bias` are per group before version 21, and per channel since.
fn group_norm(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    let groups = c.required_int("num_groups")?;
    let Some(channels) = ty.shape.get(1).filter(|_| groups > 0) else {
        return malformed(format!("the operand is {ty}, in {groups} groups"));
    };
    let mut operands = vec![Some(x.clone())];
    for (i, what) in [(1, "scale"), (2, "bias")] {
        let p = c.input(i, what)?;
        let p = if c.opset < 21 { per_channel(cx, p, groups, channels)? } else { p.clone() };
        operands.push(Some(cx.cast(&p, ty.dtype)?));
    }
    let groups = groups as usize;
    let op = Op::GroupNorm {
        groups,
        eps: c.float("epsilon", 1e-5)?,
        layout: ConvLayout::ChannelsFirst,
        act: Act::None,
    };
    cx.emit_all(op, &operands)
}

/// `[groups]` → `[channels]`, each repeated.
fn per_channel(cx: &mut Cx, p: &Item, groups: i64, channels: &Dim) -> Result<Item, Refusal> {
    let Some(each) = channels.div_exact(&groups.into()) else {
        return malformed(format!("{groups} groups do not divide {channels} channels"));
    };
    let column = cx.reshape(p, vec![groups.into(), 1.into()])?;
    let wide = cx.emit(Op::Expand { shape: vec![groups.into(), each] }, &[&column])?;
    cx.reshape(&wide, vec![channels.clone()])
}

/// One group per channel.
fn instance_norm(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let ty = cx.ty(x)?;
    let Some(groups) = ty.shape.get(1).and_then(Dim::as_const) else {
        return unsupported(format!(
            "the operand is {ty}: the number of channels depends on the batch"
        ));
    };
    let eps = c.float("epsilon", 1e-5)?;
    let op = Op::GroupNorm {
        groups: groups as usize,
        eps,
        layout: ConvLayout::ChannelsFirst,
        act: Act::None,
    };
    Ok(vec![cx.emit(op, &[x, c.input(1, "scale")?, c.input(2, "B")?])?])
}

/// `x · s + t` with `s = scale / √(var + eps)`, `t = bias - mean · s`, computed in f32.
fn batch_norm(cx: &mut Cx, c: &Call) -> Done {
    if c.flag("training_mode", false)? {
        return unsupported("it is in training mode");
    }
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    if ty.rank() < 2 {
        return malformed(format!("the operand is {ty}, expected batch and channels"));
    }
    let wide = if ty.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let mut parameters = Vec::new();
    for (i, what) in [(1, "scale"), (2, "B"), (3, "input_mean"), (4, "input_var")] {
        parameters.push(cx.cast(c.input(i, what)?, wide)?);
    }
    let [scale, bias, mean, variance] = &parameters[..] else {
        return malformed("an operand is missing");
    };
    let eps = cx.scalar(c.float("epsilon", 1e-5)? as f64, wide);
    let variance = cx.binary(BinaryKind::Add, variance, &eps)?;
    let deviation = cx.unary(UnaryKind::Sqrt, &variance)?;
    let factor = cx.binary(BinaryKind::Div, scale, &deviation)?;
    let shift = cx.binary(BinaryKind::Mul, mean, &factor)?;
    let shift = cx.binary(BinaryKind::Sub, bias, &shift)?;
    let mut shape = vec![Dim::constant(1); ty.rank() - 1];
    shape[0] = ty.shape[1].clone();
    let mut y = x.clone();
    for (p, kind) in [(factor, BinaryKind::Mul), (shift, BinaryKind::Add)] {
        let p = cx.reshape(&p, shape.clone())?;
        let p = cx.cast(&p, ty.dtype)?;
        y = cx.binary(kind, &y, &p)?;
    }
    Ok(vec![y])
}

fn mean_variance(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    let axes = axes(&c.ints("axes")?.unwrap_or(vec![0, 2, 3]), ty.rank())?;
    let mean = cx.reduce(ReduceKind::Mean, axes.clone(), true, x)?;
    let centred = cx.binary(BinaryKind::Sub, x, &mean)?;
    let squares = cx.binary(BinaryKind::Mul, &centred, &centred)?;
    let variance = cx.reduce(ReduceKind::Mean, axes, true, &squares)?;
    let deviation = cx.unary(UnaryKind::Sqrt, &variance)?;
    // the guard of the standard against division by 0
    let guard = cx.scalar(1e-9, ty.dtype);
    let deviation = cx.binary(BinaryKind::Add, &deviation, &guard)?;
    Ok(vec![cx.binary(BinaryKind::Div, &centred, &deviation)?])
}

/// `x / (bias + alpha · mean of the neighbouring channels' x²)^beta`.
fn local_response(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    let Ok(size @ 1..=65536) = usize::try_from(c.required_int("size")?) else {
        return malformed("`size` is out of range");
    };
    if ty.rank() < 2 {
        return malformed(format!("the operand is {ty}, expected batch and channels"));
    }
    let squares = cx.binary(BinaryKind::Mul, x, x)?;
    let flat = vec![ty.shape[0].clone(), 1.into(), ty.shape[1].clone(), product(&ty.shape[2..])?];
    let flat = cx.reshape(&squares, flat)?;
    let (front, back) = ((size - 1) / 2, size / 2);
    let pool = Op::Pool {
        kind: PoolKind::Average,
        kernel: vec![size, 1],
        strides: vec![1, 1],
        pads: vec![front, 0, back, 0],
        dilations: vec![1, 1],
        ceil: false,
        count_pad: true,
        layout: ConvLayout::ChannelsFirst,
    };
    let mean = cx.emit(pool, &[&flat])?;
    let mean = cx.reshape(&mean, ty.shape)?;
    let [alpha, bias, beta] =
        [c.float("alpha", 1e-4)?, c.float("bias", 1.0)?, c.float("beta", 0.75)?]
            .map(|v| cx.scalar(v as f64, ty.dtype));
    let scaled = cx.binary(BinaryKind::Mul, &mean, &alpha)?;
    let sum = cx.binary(BinaryKind::Add, &scaled, &bias)?;
    let power = cx.binary(BinaryKind::Pow, &sum, &beta)?;
    Ok(vec![cx.binary(BinaryKind::Div, x, &power)?])
}
