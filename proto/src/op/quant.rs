//! Shape rules of quantization.

use super::*;

/// The possible numbers of bits of the codes of [`Op::DequantizeWeight`]. Each has a packed form
/// ([`WeightCodes`](crate::plan::WeightCodes)).
pub const WEIGHT_BITS: [u8; 2] = [4, 8];

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    match op {
        Op::Quantize { .. } | Op::Dequantize { .. } => infer_standard(op, inputs),
        _ => infer_fake(op, inputs),
    }
}

/// The operators that ONNX defines.
fn infer_standard(op: &Op, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 3)?;
    let (x, scale) = (required(inputs, 0, "x")?, required(inputs, 1, "scale")?);
    check(scale.dtype.is_float(), || {
        format!("the scale is {}, expected a float type", scale.dtype)
    })?;
    let (axis, block, to) = match op {
        Op::Quantize { axis, block, to } => {
            check(x.dtype.is_float() || x.dtype == DType::I32, || {
                format!("x is {}, expected a float type or i32", x.dtype)
            })?;
            check(is_code(*to), || format!("does not quantize to {to}"))?;
            check_zero_point(inputs, scale, *to)?;
            (*axis, *block, *to)
        }
        Op::Dequantize { axis, block, to } => {
            check(is_code(x.dtype) || x.dtype == DType::I32, || {
                format!("x is {}, expected a quantized type", x.dtype)
            })?;
            check(to.is_float(), || format!("does not dequantize to {to}"))?;
            check_zero_point(inputs, scale, x.dtype)?;
            (*axis, *block, *to)
        }
        _ => unreachable!("dispatched by Op::infer"),
    };
    check_scale(x, scale, axis, block)?;
    Ok(vec![ValueType::new(to, x.shape.clone())])
}

/// Whether the type holds quantized values.
fn is_code(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::U16)
}

fn check_zero_point(inputs: &InputTypes, scale: &ValueType, dtype: DType) -> Result<(), String> {
    let Some(zero) = optional(inputs, 2) else { return Ok(()) };
    check(zero.dtype == dtype && zero.shape == scale.shape, || {
        format!("the zero point is {zero}, expected {}", ValueType::new(dtype, scale.shape.clone()))
    })
}

/// Checks that the scale is one number (without an axis), a vector along the axis, or blocked: x's
/// shape with ⌈size / block⌉ along the axis.
fn check_scale(
    x: &ValueType,
    scale: &ValueType,
    axis: Option<usize>,
    block: usize,
) -> Result<(), String> {
    let Some(axis) = axis else {
        check(block == 0, || "`block` needs an `axis`".into())?;
        let one = scale.rank() <= 1 && scale.shape.iter().all(|d| d.is(1));
        return check(one, || format!("the scale is {scale}, expected one number"));
    };
    check_axis(axis, x)?;
    let size = &x.shape[axis];
    if block == 0 {
        return check(scale.shape == [size.clone()], || {
            format!("the scale is {scale}, expected {}[{size}]", scale.dtype)
        });
    }
    check(block as u64 <= MAX_DIM as u64, || format!("`block` is {block}"))?;
    let block = block as i64;
    let blocks = match size.as_const() {
        Some(n) => Some(Dim::constant(n / block + (n % block != 0) as i64)),
        None => size.div_exact(&block.into()),
    };
    let mut expected = x.shape.clone();
    expected[axis] = blocks.ok_or_else(|| format!("blocks of {block} do not divide {size}"))?;
    check(scale.shape == expected, || {
        format!("the scale is {scale}, expected {}", ValueType::new(scale.dtype, expected))
    })
}

/// The maximum number of segments of an axis.
const MAX_SEGMENTS: usize = 64;

/// The number of segments of an axis of that size.
fn count_segments(segments: &[usize], size: &Dim) -> Result<usize, String> {
    check(segments.len() <= MAX_SEGMENTS && !segments.contains(&0), || {
        format!("the segments are {segments:?}")
    })?;
    let sum = segments
        .iter()
        .try_fold(0usize, |sum, &n| sum.checked_add(n))
        .and_then(|sum| i64::try_from(sum).ok());
    check(segments.is_empty() || sum.is_some_and(|sum| size.is(sum)), || {
        format!("segments of {segments:?} do not add up to {size}")
    })?;
    Ok(segments.len().max(1))
}

fn infer_fake(op: &Op, inputs: &InputTypes) -> Inferred {
    match op {
        Op::FakeQuant { bits, segments } => {
            at_most(inputs, 3)?;
            let x = required(inputs, 0, "x")?;
            check(x.dtype == DType::F32 && x.rank() >= 1, || {
                format!("x is {x}, expected f32[..., C]")
            })?;
            check((2..=8).contains(bits), || format!("`bits` is {bits}, expected 2 to 8"))?;
            let count = count_segments(segments, &x.shape[x.rank() - 1])?;
            let row = ValueType::fixed(DType::F32, &[count]);
            for (i, name) in [(1, "scale"), (2, "zero_point")] {
                let t = required(inputs, i, name)?;
                check(*t == row, || format!("{name} is {t}, expected {row}"))?;
            }
            Ok(vec![x.clone()])
        }
        Op::RoundBf16 => {
            at_most(inputs, 1)?;
            let x = required(inputs, 0, "x")?;
            check(x.dtype == DType::F32, || format!("x is {x}, expected f32"))?;
            Ok(vec![x.clone()])
        }
        Op::DequantizeWeight { bits, output_axis, segments } => {
            at_most(inputs, 2)?;
            check(WEIGHT_BITS.contains(bits), || {
                format!("`bits` is {bits}, expected one of {WEIGHT_BITS:?}")
            })?;
            let (codes, scale) = (required(inputs, 0, "codes")?, required(inputs, 1, "scale")?);
            check(codes.dtype == DType::I8 && codes.rank() >= 2, || {
                format!("codes is {codes}, expected i8 of rank ≥ 2")
            })?;
            check(*output_axis < 2, || format!("`output_axis` is {output_axis}, expected 0 or 1"))?;
            let count = count_segments(segments, &codes.shape[1 - output_axis])?;
            let expected = ValueType::new(
                DType::F32,
                vec![codes.shape[*output_axis].clone(), (count as i64).into()],
            );
            check(*scale == expected, || format!("scale is {scale}, expected {expected}"))?;
            Ok(vec![ValueType::new(DType::F32, codes.shape.clone())])
        }
        _ => unreachable!("dispatched by Op::infer"),
    }
}
