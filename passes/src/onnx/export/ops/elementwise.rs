//! Functions of one and two elements.

use super::*;
use cqc_proto::DType;
use cqc_proto::onnx::AttributeProto;

pub(super) fn unary(cx: &mut Cx, c: &Call, kind: UnaryKind) -> ExportResult {
    use UnaryKind::*;
    let (x, ty) = (c.input(0), c.ty());
    let name = match kind {
        Floor | Ceil | Round if !ty.dtype.is_float() => return Ok(x),
        Relu if is_unsigned(ty.dtype) => return Ok(x),
        Neg if is_unsigned(ty.dtype) => {
            let zero = cx.scalar(0.0, ty.dtype);
            return cx.binary(BinaryKind::Sub, zero, x);
        }
        Silu => return gated(cx, x, 1.0),
        QuickGelu => return gated(cx, x, 1.702),
        Swish { alpha } => return gated(cx, x, alpha),
        IsNan => "IsNaN",
        IsInf { .. } => "IsInf",
        GeluErf | GeluTanh => "Gelu",
        Neg => "Neg",
        Abs => "Abs",
        Sign => "Sign",
        Exp => "Exp",
        Log => "Log",
        Sqrt => "Sqrt",
        Reciprocal => "Reciprocal",
        Floor => "Floor",
        Ceil => "Ceil",
        Round => "Round",
        Sin => "Sin",
        Cos => "Cos",
        Tan => "Tan",
        Asin => "Asin",
        Acos => "Acos",
        Atan => "Atan",
        Sinh => "Sinh",
        Cosh => "Cosh",
        Asinh => "Asinh",
        Acosh => "Acosh",
        Atanh => "Atanh",
        Tanh => "Tanh",
        Sigmoid => "Sigmoid",
        Erf => "Erf",
        Relu => "Relu",
        Softplus => "Softplus",
        Softsign => "Softsign",
        Mish => "Mish",
        HardSwish => "HardSwish",
        Not => "Not",
        BitwiseNot => "BitwiseNot",
        LeakyRelu { .. } => "LeakyRelu",
        Elu { .. } => "Elu",
        Celu { .. } => "Celu",
        Selu { .. } => "Selu",
        HardSigmoid { .. } => "HardSigmoid",
        ThresholdedRelu { .. } => "ThresholdedRelu",
        Shrink { .. } => "Shrink",
    };
    Ok(c.as_node(cx, name, parameters(kind)))
}

fn parameters(kind: UnaryKind) -> Vec<AttributeProto> {
    use UnaryKind::*;
    match kind {
        GeluTanh => vec![string("approximate", "tanh")],
        IsInf { negative, positive } => {
            vec![int("detect_negative", negative as i64), int("detect_positive", positive as i64)]
        }
        LeakyRelu { alpha } | Elu { alpha } | Celu { alpha } | ThresholdedRelu { alpha } => {
            vec![float("alpha", alpha)]
        }
        Selu { alpha, gamma } => vec![float("alpha", alpha), float("gamma", gamma)],
        HardSigmoid { alpha, beta } => vec![float("alpha", alpha), float("beta", beta)],
        Shrink { bias, lambd } => vec![float("bias", bias), float("lambd", lambd)],
        _ => vec![],
    }
}

fn is_unsigned(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::U16 | DType::U32 | DType::U64)
}

/// `x · sigmoid(alpha x)`.
fn gated(cx: &mut Cx, x: Val, alpha: f32) -> ExportResult {
    let mut inner = x;
    if alpha != 1.0 {
        let factor = cx.scalar(alpha as f64, cx.dtype(x));
        inner = cx.binary(BinaryKind::Mul, x, factor)?;
    }
    let gate = cx.unary(UnaryKind::Sigmoid, inner)?;
    cx.binary(BinaryKind::Mul, x, gate)
}

pub(super) fn binary(cx: &mut Cx, c: &Call, kind: BinaryKind) -> ExportResult {
    use BinaryKind::*;
    let dtype = cx.dtype(c.input(0));
    let mut attributes = vec![];
    let name = match kind {
        Mod if dtype.is_float() => return modulo(cx, c.input(0), c.input(1)),
        Prelu => return prelu(cx, c),
        ShiftLeft | ShiftRight if !is_unsigned(dtype) => {
            return Err(format!("BitShift does not take {dtype}"));
        }
        Pow if !dtype.is_float() && !matches!(dtype, DType::I32 | DType::I64) => {
            return Err(format!("Pow does not take {dtype}"));
        }
        Add => "Add",
        Sub => "Sub",
        Mul => "Mul",
        Div => "Div",
        Pow => "Pow",
        Mod => "Mod",
        Fmod => {
            attributes.push(int("fmod", 1));
            "Mod"
        }
        Min => "Min",
        Max => "Max",
        And => "And",
        Or => "Or",
        Xor => "Xor",
        BitwiseAnd => "BitwiseAnd",
        BitwiseOr => "BitwiseOr",
        BitwiseXor => "BitwiseXor",
        ShiftLeft | ShiftRight => {
            attributes.push(string("direction", if kind == ShiftLeft { "LEFT" } else { "RIGHT" }));
            "BitShift"
        }
        Equal => "Equal",
        Less => "Less",
        LessOrEqual => "LessOrEqual",
        Greater => "Greater",
        GreaterOrEqual => "GreaterOrEqual",
    };
    Ok(c.as_node(cx, name, attributes))
}

/// The `Mod` of the standard has the sign of the dividend for floats. The result is moved by the
/// divisor where the signs differ.
fn modulo(cx: &mut Cx, a: Val, b: Val) -> ExportResult {
    let rest = cx.binary(BinaryKind::Fmod, a, b)?;
    let zero = cx.scalar(0.0, cx.dtype(a));
    let below = cx.binary(BinaryKind::Less, rest, zero)?;
    let above = cx.binary(BinaryKind::Greater, rest, zero)?;
    let (b_above, b_below) =
        (cx.binary(BinaryKind::Greater, b, zero)?, cx.binary(BinaryKind::Less, b, zero)?);
    let (one, other) =
        (cx.binary(BinaryKind::And, below, b_above)?, cx.binary(BinaryKind::And, above, b_below)?);
    let differs = cx.binary(BinaryKind::Or, one, other)?;
    let moved = cx.binary(BinaryKind::Add, rest, b)?;
    cx.emit(Op::Where, &[differs, moved, rest])
}

/// The `PRelu` of the standard does not broadcast its first operand.
fn prelu(cx: &mut Cx, c: &Call) -> ExportResult {
    let (a, b) = (c.input(0), c.input(1));
    if *cx.ty(a) == c.ty() && c.ty().dtype.is_float() {
        return Ok(c.as_node(cx, "PRelu", vec![]));
    }
    let zero = cx.scalar(0.0, cx.dtype(a));
    let below = cx.binary(BinaryKind::Less, a, zero)?;
    let scaled = cx.binary(BinaryKind::Mul, a, b)?;
    cx.emit(Op::Where, &[below, scaled, a])
}
