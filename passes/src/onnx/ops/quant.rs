//! Quantization.

use super::*;
use crate::onnx::tensors;
use cqc_proto::op::{BinaryKind, ReduceKind};
use cqc_proto::{DType, Dim, Op};

pub(super) const TABLE: Table = &[
    ("QuantizeLinear", quantize),
    ("DequantizeLinear", dequantize),
    ("DynamicQuantizeLinear", dynamic_quantize),
];

/// Axis and block of a scale: one number has no axis.
fn granularity(cx: &Cx, c: &Call, rank: usize) -> Result<(Option<usize>, usize), Refusal> {
    let scale = cx.ty(c.input(1, "scale")?)?;
    let block = c.int("block_size", 0)?;
    let Ok(block) = usize::try_from(block) else {
        return malformed(format!("`block_size` is {block}"));
    };
    if block == 0 && scale.shape.iter().all(|d| d.is(1)) && scale.rank() <= 1 {
        return Ok((None, 0));
    }
    Ok((Some(c.axis("axis", 1, rank)?), block))
}

fn type_attribute(c: &Call, name: &str) -> Result<Option<DType>, Refusal> {
    match c.int(name, 0)? {
        0 => Ok(None),
        n => match tensors::dtype(i32::try_from(n).unwrap_or(0)) {
            Ok(dtype) => Ok(Some(dtype)),
            Err(name) => unsupported(format!("the element type {name} is not supported")),
        },
    }
}

/// Scale and zero point; one number may be written as a vector.
fn parameters(cx: &mut Cx, c: &Call, axis: Option<usize>) -> Result<Vec<Option<Item>>, Refusal> {
    let mut list = Vec::new();
    for item in [Some(c.input(1, "scale")?), c.optional(2)].into_iter().flatten() {
        list.push(Some(if axis.is_none() { cx.reshape(item, vec![])? } else { item.clone() }));
    }
    Ok(list)
}

fn quantize(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "x")?;
    let ty = cx.ty(x)?;
    let (axis, block) = granularity(cx, c, ty.rank())?;
    let zero = c.optional(2).map(|z| cx.ty(z)).transpose()?.map(|t| t.dtype);
    let to = zero.or(type_attribute(c, "output_dtype")?).unwrap_or(DType::U8);
    // the division is done in the scale's type unless `precision` says otherwise; mixed types
    // divide in f32
    let precision = type_attribute(c, "precision")?.unwrap_or(cx.ty(c.input(1, "scale")?)?.dtype);
    let mut operands =
        vec![Some(if ty.dtype.is_float() { cx.cast(x, precision)? } else { x.clone() })];
    operands.extend(parameters(cx, c, axis)?);
    cx.emit_all(Op::Quantize { axis, block, to }, &operands)
}

fn dequantize(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "x")?;
    let (axis, block) = granularity(cx, c, cx.ty(x)?.rank())?;
    let scale = cx.ty(c.input(1, "scale")?)?.dtype;
    let to = type_attribute(c, "output_dtype")?.unwrap_or(scale);
    let mut operands = vec![Some(x.clone())];
    operands.extend(parameters(cx, c, axis)?);
    cx.emit_all(Op::Dequantize { axis, block, to }, &operands)
}

/// `saturate(round(sums · a · b / y) + zero)`; the scales are f64 and broadcast to the sums.
pub(super) fn requantize(cx: &mut Cx, sums: &Item, [a, b, y]: [&Item; 3], zero: &Item) -> Done {
    let factor = cx.binary(BinaryKind::Mul, a, b)?;
    let factor = cx.binary(BinaryKind::Div, &factor, y)?;
    let scaled = cx.binary(BinaryKind::Mul, sums, &factor)?;
    let to = cx.ty(zero)?.dtype;
    let one = cx.scalar(1.0, DType::F64);
    if cx.ty(zero)?.elements() != Some(Dim::constant(1)) {
        return unsupported("a zero point per row is not supported");
    }
    let zero = cx.reshape(zero, vec![])?;
    Ok(vec![cx.emit(Op::Quantize { axis: None, block: 0, to }, &[&scaled, &one, &zero])?])
}

/// u8 with the range of the operand, 0 included; outputs (y, scale, zero point).
fn dynamic_quantize(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "x")?;
    let ty = cx.ty(x)?;
    let zero = cx.scalar(0.0, ty.dtype);
    let all: Vec<usize> = (0..ty.rank()).collect();
    let bound = |cx: &mut Cx, reduce: ReduceKind, kind: BinaryKind| {
        let extreme = cx.reduce(reduce, all.clone(), false, x)?;
        cx.binary(kind, &extreme, &zero)
    };
    let (low, high) = (
        bound(cx, ReduceKind::Min, BinaryKind::Min)?,
        bound(cx, ReduceKind::Max, BinaryKind::Max)?,
    );
    let span = cx.binary(BinaryKind::Sub, &high, &low)?;
    let levels = cx.scalar(255.0, ty.dtype);
    let scale = cx.binary(BinaryKind::Div, &span, &levels)?;
    let offset = cx.binary(BinaryKind::Sub, &zero, &low)?;
    let offset = cx.binary(BinaryKind::Div, &offset, &scale)?;
    let one = cx.scalar(1.0, ty.dtype);
    let u8 = |axis| Op::Quantize { axis, block: 0, to: DType::U8 };
    let zero_point = cx.emit(u8(None), &[&offset, &one])?;
    let y = cx.emit(u8(None), &[x, &scale, &zero_point])?;
    Ok(vec![y, scale, zero_point])
}
