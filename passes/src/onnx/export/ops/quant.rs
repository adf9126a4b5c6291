//! Quantization.

use super::*;
use cqc_proto::onnx::AttributeProto;
use cqc_proto::{DType, Dim};

/// The scale in f32, as a scalar if it is one number.
fn scale(cx: &mut Cx, c: &Call, axis: Option<usize>) -> ExportResult {
    let scale = c.input(1);
    if cx.dtype(scale) == DType::F64 {
        return Err("QuantizeLinear and DequantizeLinear take no f64".into());
    }
    let scale = cx.cast(scale, DType::F32);
    Ok(if axis.is_none() { cx.reshape(scale, vec![]) } else { scale })
}

fn zero_point(cx: &mut Cx, c: &Call, axis: Option<usize>) -> Option<Val> {
    c.optional(2).map(|z| if axis.is_none() { cx.reshape(z, vec![]) } else { z })
}

fn granularity(axis: Option<usize>, block: usize) -> Vec<AttributeProto> {
    let axis = axis.map(|a| int("axis", a as i64));
    axis.into_iter().chain((block != 0).then(|| int("block_size", block as i64))).collect()
}

pub(super) fn quantize(
    cx: &mut Cx,
    c: &Call,
    axis: Option<usize>,
    block: usize,
    to: DType,
) -> ExportResult {
    if cx.dtype(c.input(0)) == DType::F64 {
        return Err("QuantizeLinear takes no f64".into());
    }
    let (x, s) = (cx.cast(c.input(0), DType::F32), scale(cx, c, axis)?);
    let zero = zero_point(cx, c, axis);
    let mut attributes = granularity(axis, block);
    if zero.is_none() {
        attributes.push(int("output_dtype", number(to).into()));
    }
    Ok(cx.nodes("QuantizeLinear", &[Some(x), Some(s), zero], attributes, c.outputs)[0])
}

pub(super) fn dequantize(
    cx: &mut Cx,
    c: &Call,
    axis: Option<usize>,
    block: usize,
    to: DType,
) -> ExportResult {
    let x = c.input(0);
    let (s, zero) = (scale(cx, c, axis)?, zero_point(cx, c, axis));
    if cx.dtype(x) == DType::I32 && zero.is_some() {
        return Err("DequantizeLinear of i32 takes no zero point".into());
    }
    let ty = ValueType::new(DType::F32, cx.shape(x));
    let y =
        cx.nodes("DequantizeLinear", &[Some(x), Some(s), zero], granularity(axis, block), &[ty])[0];
    Ok(cx.cast(y, to))
}

/// Entry `i` of a vector, a scalar.
fn entry(cx: &mut Cx, v: Val, i: usize) -> ExportResult {
    let v = if cx.ty(v).elements().is_some_and(|n| n.is(1)) { v } else { part(cx, v, 0, i, 1)? };
    Ok(cx.reshape(v, vec![]))
}

/// `size` elements along an axis, from `start` on.
pub(in super::super) fn part(
    cx: &mut Cx,
    v: Val,
    axis: usize,
    start: usize,
    size: usize,
) -> ExportResult {
    let [start, end] = [start, start + size].map(|n| Dim::constant(n as i64));
    cx.emit(
        Op::Slice { axes: vec![axis], starts: vec![start], ends: vec![end], steps: vec![1] },
        &[v],
    )
}

/// QuantizeLinear and DequantizeLinear for each segment.
pub(super) fn fake_quant(cx: &mut Cx, c: &Call, bits: u8, segments: &[usize]) -> ExportResult {
    if bits != 8 {
        return Err(format!("activations of {bits} bits, ONNX has 8"));
    }
    let (x, axis) = (c.input(0), c.ty().rank() - 1);
    let zeros = cx.cast(c.input(2), DType::U8);
    let mut parts = Vec::new();
    let mut start = 0;
    for (i, size) in segments
        .iter()
        .enumerate()
        .map(|(i, &n)| (i, Some(n)))
        .chain(segments.is_empty().then_some((0, None)))
    {
        let x = match size {
            Some(size) => part(cx, x, axis, start, size)?,
            None => x,
        };
        let (scale, zero) = (entry(cx, c.input(1), i)?, entry(cx, zeros, i)?);
        let q = cx.emit(Op::Quantize { axis: None, block: 0, to: DType::U8 }, &[x, scale, zero])?;
        parts.push(
            cx.emit(Op::Dequantize { axis: None, block: 0, to: DType::F32 }, &[q, scale, zero])?,
        );
        start += size.unwrap_or(0);
    }
    if parts.len() == 1 { Ok(parts[0]) } else { cx.emit(Op::Concat { axis }, &parts) }
}

/// To bfloat16 and back.
pub(super) fn round_bf16(cx: &mut Cx, c: &Call) -> ExportResult {
    let half = cx.cast(c.input(0), DType::BF16);
    Ok(cx.cast(half, DType::F32))
}

/// DequantizeLinear along the axis of outputs, for each segment of inputs.
pub(super) fn dequantize_weight(
    cx: &mut Cx,
    c: &Call,
    output_axis: usize,
    segments: &[usize],
) -> ExportResult {
    let (codes, scale) = (c.input(0), c.input(1));
    let outputs = cx.shape(codes)[output_axis].clone();
    let op = Op::Dequantize { axis: Some(output_axis), block: 0, to: DType::F32 };
    if segments.is_empty() {
        let scale = cx.reshape(scale, vec![outputs]);
        return cx.emit(op, &[codes, scale]);
    }
    let (mut parts, mut start) = (Vec::new(), 0);
    for (i, &size) in segments.iter().enumerate() {
        let codes = part(cx, codes, 1 - output_axis, start, size)?;
        let scale = part(cx, scale, 1, i, 1)?;
        let scale = cx.reshape(scale, vec![outputs.clone()]);
        parts.push(cx.emit(op.clone(), &[codes, scale])?);
        start += size;
    }
    cx.emit(Op::Concat { axis: 1 - output_axis }, &parts)
}
