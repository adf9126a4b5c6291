//! Quantization.

use super::*;
use cqc_proto::DType;
use cqc_proto::onnx::AttributeProto;

/// Scale in f32, as [] where it is one number.
fn scale(cx: &mut Cx, c: &Call, axis: Option<usize>) -> Spelled {
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

pub(super) fn quantize(cx: &mut Cx, c: &Call, axis: Option<usize>, block: usize, to: DType) -> Spelled {
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

pub(super) fn dequantize(cx: &mut Cx, c: &Call, axis: Option<usize>, block: usize, to: DType) -> Spelled {
    let x = c.input(0);
    let (s, zero) = (scale(cx, c, axis)?, zero_point(cx, c, axis));
    if cx.dtype(x) == DType::I32 && zero.is_some() {
        return Err("DequantizeLinear of i32 takes no zero point".into());
    }
    let ty = ValueType::new(DType::F32, cx.shape(x));
    let y = cx.nodes("DequantizeLinear", &[Some(x), Some(s), zero], granularity(axis, block), &[ty])[0];
    Ok(cx.cast(y, to))
}
