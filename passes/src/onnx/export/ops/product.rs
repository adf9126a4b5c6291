//! Matrix products and linear layers.

use super::*;
use crate::onnx::export::quantized::Operands;

pub(super) fn matmul(cx: &mut Cx, c: &Call) -> ExportResult {
    let (a, b) = (reduce::widened(cx, c.input(0)), reduce::widened(cx, c.input(1)));
    let ty = ValueType::new(cx.dtype(a), c.ty().shape);
    let y = cx.node("MatMul", &[a, b], vec![], ty);
    Ok(cx.cast(y, c.ty().dtype))
}

pub(super) fn linear(cx: &mut Cx, c: &Call, act: Act) -> ExportResult {
    let mut parts = vec![];
    for Operands { x, rounding, w } in cx.operands(c.input(0), c.input(1))? {
        let x = cx.round(x, rounding.as_ref())?;
        parts.push(cx.emit(Op::MatMul, &[x, w])?);
    }
    let mut y = cx.sum(&parts)?;
    if let Some(scale) = c.optional(6) {
        y = cx.binary(BinaryKind::Mul, y, scale)?;
    }
    if let Some(bias) = c.optional(2) {
        y = cx.binary(BinaryKind::Add, y, bias)?;
    }
    epilogue(cx, c, y, act)
}

pub(super) fn einsum(cx: &mut Cx, c: &Call, equation: &str) -> ExportResult {
    let mut attribute = string("equation", "");
    attribute.s = Some(equation.to_string().into());
    Ok(c.as_node(cx, "Einsum", vec![attribute]))
}
