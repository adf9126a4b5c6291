//! Quantization.

use super::*;

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 3)?;
    let (x, scale) = (required(inputs, 0, "x")?, required(inputs, 1, "scale")?);
    check(scale.dtype.is_float(), || format!("the scale is {}, expected a float type", scale.dtype))?;
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

/// Types that hold quantized values.
fn is_code(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::U16)
}

fn check_zero_point(inputs: &InputTypes, scale: &ValueType, dtype: DType) -> Result<(), String> {
    let Some(zero) = optional(inputs, 2) else { return Ok(()) };
    check(zero.dtype == dtype && zero.shape == scale.shape, || {
        format!("the zero point is {zero}, expected {}", ValueType::new(dtype, scale.shape.clone()))
    })
}

/// The scale is one number (no axis), a vector along the axis, or blocked: x's shape with ⌈size / block⌉ along the axis.
fn check_scale(x: &ValueType, scale: &ValueType, axis: Option<usize>, block: usize) -> Result<(), String> {
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
