//! Functions of one element.

use super::*;
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, UnaryKind};

pub(super) const TABLE: Table = &[
    ("Neg", |cx, c| unary(cx, c, UnaryKind::Neg)),
    ("Abs", |cx, c| unary(cx, c, UnaryKind::Abs)),
    ("Sign", |cx, c| unary(cx, c, UnaryKind::Sign)),
    ("Exp", |cx, c| unary(cx, c, UnaryKind::Exp)),
    ("Log", |cx, c| unary(cx, c, UnaryKind::Log)),
    ("Sqrt", |cx, c| unary(cx, c, UnaryKind::Sqrt)),
    ("Reciprocal", |cx, c| unary(cx, c, UnaryKind::Reciprocal)),
    ("Floor", |cx, c| unary(cx, c, UnaryKind::Floor)),
    ("Ceil", |cx, c| unary(cx, c, UnaryKind::Ceil)),
    ("Round", |cx, c| unary(cx, c, UnaryKind::Round)),
    ("Sin", |cx, c| unary(cx, c, UnaryKind::Sin)),
    ("Cos", |cx, c| unary(cx, c, UnaryKind::Cos)),
    ("Tan", |cx, c| unary(cx, c, UnaryKind::Tan)),
    ("Asin", |cx, c| unary(cx, c, UnaryKind::Asin)),
    ("Acos", |cx, c| unary(cx, c, UnaryKind::Acos)),
    ("Atan", |cx, c| unary(cx, c, UnaryKind::Atan)),
    ("Sinh", |cx, c| unary(cx, c, UnaryKind::Sinh)),
    ("Cosh", |cx, c| unary(cx, c, UnaryKind::Cosh)),
    ("Asinh", |cx, c| unary(cx, c, UnaryKind::Asinh)),
    ("Acosh", |cx, c| unary(cx, c, UnaryKind::Acosh)),
    ("Atanh", |cx, c| unary(cx, c, UnaryKind::Atanh)),
    ("Tanh", |cx, c| unary(cx, c, UnaryKind::Tanh)),
    ("Sigmoid", |cx, c| unary(cx, c, UnaryKind::Sigmoid)),
    ("Erf", |cx, c| unary(cx, c, UnaryKind::Erf)),
    ("Relu", |cx, c| unary(cx, c, UnaryKind::Relu)),
    ("Softplus", |cx, c| unary(cx, c, UnaryKind::Softplus)),
    ("Softsign", |cx, c| unary(cx, c, UnaryKind::Softsign)),
    ("Mish", |cx, c| unary(cx, c, UnaryKind::Mish)),
    ("HardSwish", |cx, c| unary(cx, c, UnaryKind::HardSwish)),
    ("Not", |cx, c| unary(cx, c, UnaryKind::Not)),
    ("BitwiseNot", |cx, c| unary(cx, c, UnaryKind::BitwiseNot)),
    ("IsNaN", |cx, c| unary(cx, c, UnaryKind::IsNan)),
    ("IsInf", is_inf),
    ("LeakyRelu", |cx, c| unary(cx, c, UnaryKind::LeakyRelu { alpha: c.float("alpha", 0.01)? })),
    ("Elu", |cx, c| unary(cx, c, UnaryKind::Elu { alpha: c.float("alpha", 1.0)? })),
    ("Celu", |cx, c| unary(cx, c, UnaryKind::Celu { alpha: c.float("alpha", 1.0)? })),
    ("Selu", selu),
    ("HardSigmoid", hard_sigmoid),
    ("ThresholdedRelu", |cx, c| {
        unary(cx, c, UnaryKind::ThresholdedRelu { alpha: c.float("alpha", 1.0)? })
    }),
    ("Shrink", shrink),
    ("Swish", swish),
    ("Gelu", gelu),
    ("SwiGLU", swiglu),
];

pub(super) fn unary(cx: &mut Cx, c: &Call, kind: UnaryKind) -> Done {
    Ok(vec![cx.emit(Op::unary(kind), &[c.input(0, "x")?])?])
}

fn is_inf(cx: &mut Cx, c: &Call) -> Done {
    let kind = UnaryKind::IsInf {
        negative: c.flag("detect_negative", true)?,
        positive: c.flag("detect_positive", true)?,
    };
    unary(cx, c, kind)
}

fn selu(cx: &mut Cx, c: &Call) -> Done {
    let alpha = c.float("alpha", 1.673_263_2)?;
    unary(cx, c, UnaryKind::Selu { alpha, gamma: c.float("gamma", 1.050_701)? })
}

fn hard_sigmoid(cx: &mut Cx, c: &Call) -> Done {
    let alpha = c.float("alpha", 0.2)?;
    unary(cx, c, UnaryKind::HardSigmoid { alpha, beta: c.float("beta", 0.5)? })
}

fn shrink(cx: &mut Cx, c: &Call) -> Done {
    let bias = c.float("bias", 0.0)?;
    unary(cx, c, UnaryKind::Shrink { bias, lambd: c.float("lambd", 0.5)? })
}

fn swish(cx: &mut Cx, c: &Call) -> Done {
    let alpha = c.float("alpha", 1.0)?;
    unary(cx, c, swish_kind(alpha))
}

pub(super) fn swish_kind(alpha: f32) -> UnaryKind {
    if alpha == 1.0 { UnaryKind::Silu } else { UnaryKind::Swish { alpha } }
}

fn gelu(cx: &mut Cx, c: &Call) -> Done {
    match c.string("approximate", "none")? {
        "none" => unary(cx, c, UnaryKind::GeluErf),
        "tanh" => unary(cx, c, UnaryKind::GeluTanh),
        other => c.unknown("approximate", other),
    }
}

/// `swish(a; alpha) · b`.
fn swiglu(cx: &mut Cx, c: &Call) -> Done {
    let gate = cx.unary(swish_kind(c.float("alpha", 1.0)?), c.input(0, "A")?)?;
    Ok(vec![cx.binary(BinaryKind::Mul, &gate, c.input(1, "B")?)?])
}
