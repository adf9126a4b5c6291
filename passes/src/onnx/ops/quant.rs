//! Quantization.

use super::*;
use crate::onnx::narrow::{Narrow, dequantized};
use crate::onnx::tensors::{self, from_floats, from_integers};
use cqc_proto::op::{BinaryKind, ReduceKind};
use cqc_proto::{DType, Dim, Op};

pub(super) const TABLE: Table = &[
    ("QuantizeLinear", quantize),
    ("DequantizeLinear", dequantize),
    ("DynamicQuantizeLinear", dynamic_quantize),
];

/// The assignment of scales to elements: the axis, unless there is one scale, and the number of
/// elements of a block along it (0 for one scale per position).
#[derive(Clone, Copy)]
pub(super) struct Granularity {
    pub axis: Option<usize>,
    pub block: usize,
}

impl Granularity {
    pub const TENSOR: Granularity = Granularity { axis: None, block: 0 };
}

fn granularity(cx: &Cx, c: &Call, rank: usize) -> Result<Granularity, Refusal> {
    let scale = cx.ty(c.input(1, "scale")?)?;
    let block = c.int("block_size", 0)?;
    let Ok(block) = usize::try_from(block) else {
        return malformed(format!("`block_size` is {block}"));
    };
    if block == 0 && scale.shape.iter().all(|d| d.is(1)) && scale.rank() <= 1 {
        return Ok(Granularity::TENSOR);
    }
    Ok(Granularity { axis: Some(c.axis("axis", 1, rank)?), block })
}

/// An element type: the type that holds the numbers, and the ONNX type if that is another one.
type Element = (DType, Option<Narrow>);

fn type_attribute(c: &Call, name: &str) -> Result<Option<Element>, Refusal> {
    match c.int(name, 0)? {
        0 => Ok(None),
        n => match tensors::element(i32::try_from(n).unwrap_or(0)) {
            Ok(element) => Ok(Some(element)),
            Err(name) => unsupported(format!("the element type {name} is not supported")),
        },
    }
}

/// The name of a type for messages.
fn shown_element((dtype, narrow): Element) -> String {
    narrow.map_or_else(|| dtype.to_string(), |n| n.to_string())
}

fn quantize(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "x")?;
    let ty = cx.ty(x)?;
    let how = granularity(cx, c, ty.rank())?;
    let scale = c.input(1, "scale")?;
    let zero = c.optional(2);
    let of_zero = zero.map(|z| Ok((cx.ty(z)?.dtype, cx.narrow(z)))).transpose()?;
    let to = of_zero.or(type_attribute(c, "output_dtype")?).unwrap_or((DType::U8, None));
    // The division is done in the scale's type unless `precision` says otherwise. Mixed types
    // divide in f32.
    let precision = type_attribute(c, "precision")?.map_or(cx.ty(scale)?.dtype, |(d, _)| d);
    let x = if ty.dtype.is_float() { cx.cast(x, precision)? } else { x.clone() };
    if x.tensor().is_none() {
        cx.quantized.rounded(shown_element(to));
    }
    if let Some(narrow @ (Narrow::Float(_) | Narrow::E8M0)) = to.1 {
        let zero = zero.map(|z| cx.static_tensor(z, "zero point")).transpose()?;
        if zero.is_some_and(|z| !all_zero(&z)) {
            return unsupported("a zero point of small floats that is not 0 is not supported");
        }
        let scale = spread(cx, scale, how, &ty.shape)?;
        let scale = cx.cast(&scale, cx.ty(&x)?.dtype)?;
        let y = cx.binary(BinaryKind::Div, &x, &scale)?;
        return Ok(vec![cx.cast_narrow(&y, narrow, c.flag("saturate", true)?)?]);
    }
    let y = rounded(cx, &x, scale, zero, how, to.0)?;
    Ok(vec![bounded(cx, y, to.1)?])
}

/// `saturate(round(x / scale) + zero)`.
pub(super) fn rounded(
    cx: &mut Cx,
    x: &Item,
    scale: &Item,
    zero: Option<&Item>,
    how: Granularity,
    to: DType,
) -> Result<Item, Refusal> {
    let mut operands = vec![Some(x.clone())];
    operands.extend(parameters(cx, scale, zero, how)?);
    let op = Op::Quantize { axis: how.axis, block: how.block, to };
    Ok(cx.emit_all(op, &operands)?.swap_remove(0))
}

/// Scale and zero point. A single number may be given as a vector.
fn parameters(
    cx: &mut Cx,
    scale: &Item,
    zero: Option<&Item>,
    how: Granularity,
) -> Result<Vec<Option<Item>>, Refusal> {
    let mut list = Vec::new();
    for item in [Some(scale), zero].into_iter().flatten() {
        list.push(Some(match how.axis {
            None => cx.reshape(item, vec![])?,
            Some(_) => item.clone(),
        }));
    }
    Ok(list)
}

/// Codes saturated to an integer type with fewer bits.
fn bounded(cx: &mut Cx, y: Item, narrow: Option<Narrow>) -> Result<Item, Refusal> {
    let Some((narrow, (low, high))) = narrow.and_then(|n| Some((n, n.limits()?))) else {
        return Ok(y);
    };
    let dtype = cx.ty(&y)?.dtype;
    let low = cx.constant(from_integers(dtype, vec![], &[low]));
    let high = cx.constant(from_integers(dtype, vec![], &[high]));
    let y = cx.binary(BinaryKind::Max, &y, &low)?;
    let y = cx.binary(BinaryKind::Min, &y, &high)?;
    Ok(cx.mark(y, narrow))
}

/// Scales as a tensor that broadcasts to `shape`.
fn spread(cx: &mut Cx, scale: &Item, how: Granularity, shape: &[Dim]) -> Result<Item, Refusal> {
    let Some(axis) = how.axis else { return cx.reshape(scale, vec![]) };
    if how.block == 0 {
        return conv::along(cx, scale, Some(axis), shape.len());
    }
    let mut blocks = cx.ty(scale)?.shape;
    if blocks.len() != shape.len() {
        return malformed(format!("the scale has {} axes, x has {}", blocks.len(), shape.len()));
    }
    let block = Dim::constant(how.block as i64);
    let Some(whole) = blocks[axis].mul(&block) else {
        return malformed(format!("`block_size` is {block}"));
    };
    blocks.insert(axis + 1, 1.into());
    let scale = cx.reshape(scale, blocks.clone())?;
    blocks[axis + 1] = block;
    let scale = cx.emit(Op::Expand { shape: blocks.clone() }, &[&scale])?;
    blocks.remove(axis + 1);
    blocks[axis] = whole;
    let scale = cx.reshape(&scale, blocks)?;
    cx.slice(&scale, axis, 0.into(), shape[axis].clone())
}

fn dequantize(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "x")?;
    let how = granularity(cx, c, cx.ty(x)?.rank())?;
    let scale = c.input(1, "scale")?;
    let to = type_attribute(c, "output_dtype")?.map_or(cx.ty(scale)?.dtype, |(d, _)| d);
    Ok(vec![to_float(cx, x, scale, c.optional(2), how, to)?])
}

/// `(x − zero) · scale`. It is counted if x is a constant.
pub(super) fn to_float(
    cx: &mut Cx,
    x: &Item,
    scale: &Item,
    zero: Option<&Item>,
    how: Granularity,
    to: DType,
) -> Result<Item, Refusal> {
    let ty = cx.ty(x)?;
    if x.tensor().is_some() {
        cx.quantized.constant(shown_element((ty.dtype, cx.narrow(x))));
    }
    if ty.dtype.is_float() {
        return small_floats(cx, x, scale, zero, how, to);
    }
    let mut operands = vec![Some(x.clone())];
    operands.extend(parameters(cx, scale, zero, how)?);
    let op = Op::Dequantize { axis: how.axis, block: how.block, to };
    Ok(cx.emit_all(op, &operands)?.swap_remove(0))
}

/// Floats of 4 and 8 bits, held in f32.
fn small_floats(
    cx: &mut Cx,
    x: &Item,
    scale: &Item,
    zero: Option<&Item>,
    how: Granularity,
    to: DType,
) -> Result<Item, Refusal> {
    let shape = cx.ty(x)?.shape;
    let zero = match zero {
        Some(z) => Some(spread(cx, z, how, &shape)?),
        None => None,
    };
    if let (Some(x), Some(s), Some(fixed)) = (x.tensor(), scale.tensor(), cx.ty(x)?.fixed_shape())
        && zero.as_ref().is_none_or(|z| z.tensor().is_some_and(all_zero))
        && let Some(place) = places(&fixed, s.shape(), how)
    {
        // at once, because scales per block would be expanded to x's size
        cx.spend(8 * x.len() as i64)?;
        let values = dequantized(x, s, None, place);
        return Ok(cx.constant(from_floats(to, fixed, &values)));
    }
    let mut x = cx.cast(x, DType::F32)?;
    if let Some(zero) = zero {
        let zero = cx.cast(&zero, DType::F32)?;
        x = cx.binary(BinaryKind::Sub, &x, &zero)?;
    }
    let scale = spread(cx, scale, how, &shape)?;
    let scale = cx.cast(&scale, DType::F32)?;
    let y = cx.binary(BinaryKind::Mul, &x, &scale)?;
    cx.cast(&y, to)
}

fn all_zero(t: &cqc_proto::Tensor) -> bool {
    t.to_f64_vec().iter().all(|v| *v == 0.0)
}

/// The index of the scale of each element; `None` if the shapes do not fit.
fn places(
    shape: &[usize],
    scales: &[usize],
    how: Granularity,
) -> Option<impl Fn(usize) -> usize + use<>> {
    let axis = how.axis.unwrap_or(0);
    let (inner, size) = match how.axis {
        None => (1, 1),
        Some(_) => (shape[axis + 1..].iter().product::<usize>(), shape[axis]),
    };
    let count = size.div_ceil(how.block.max(1));
    let expected = match how {
        Granularity { axis: None, .. } => vec![],
        Granularity { block: 0, .. } => vec![size],
        _ => {
            let mut expected = shape.to_vec();
            expected[axis] = count;
            expected
        }
    };
    let one = how.axis.is_none() && scales.iter().all(|&n| n == 1);
    (one || scales == expected).then_some(move |i: usize| match how {
        Granularity { axis: None, .. } => 0,
        Granularity { block: 0, .. } => i / inner % size,
        Granularity { block, .. } => {
            (i / inner / size * count + i / inner % size / block) * inner + i % inner
        }
    })
}

/// `saturate(round(sums · a · b / y) + zero)`. The scales are f64 and broadcast to the sums.
pub(super) fn requantize(cx: &mut Cx, sums: &Item, [a, b, y]: [&Item; 3], zero: &Item) -> Done {
    let factor = cx.binary(BinaryKind::Mul, a, b)?;
    let factor = cx.binary(BinaryKind::Div, &factor, y)?;
    let scaled = cx.binary(BinaryKind::Mul, sums, &factor)?;
    let to = cx.ty(zero)?.dtype;
    let one = cx.scalar(1.0, DType::F64);
    if cx.ty(zero)?.elements() != Some(Dim::constant(1)) {
        return unsupported("a zero point per row is not supported");
    }
    Ok(vec![rounded(cx, &scaled, &one, Some(zero), Granularity::TENSOR, to)?])
}

fn dynamic_quantize(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.rounded("u8");
    let [y, scale, zero] = by_its_range(cx, c.input(0, "x")?)?;
    Ok(vec![y, scale, zero])
}

/// Rounds to u8 over the range of the operand, including 0. The results are y, scale and zero
/// point.
pub(super) fn by_its_range(cx: &mut Cx, x: &Item) -> Result<[Item; 3], Refusal> {
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
    let zero_point = rounded(cx, &offset, &one, None, Granularity::TENSOR, DType::U8)?;
    let y = rounded(cx, x, &scale, Some(&zero_point), Granularity::TENSOR, DType::U8)?;
    Ok([y, scale, zero_point])
}
