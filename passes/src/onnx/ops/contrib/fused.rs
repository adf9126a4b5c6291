//! Convolutions and products that ONNX Runtime fuses with the operators after them.

use super::*;
use crate::onnx::ops::conv::convolve;
use crate::onnx::ops::product::{gemm, scaled};

pub(super) const TABLE: Table = &[
    ("FusedConv", fused_conv),
    ("NhwcConv", nhwc_conv),
    ("NhwcFusedConv", nhwc_fused_conv),
    ("FusedMatMul", |cx, c| Ok(vec![fused_matmul(cx, c)?])),
    ("TransposeMatMul", |cx, c| Ok(vec![fused_matmul(cx, c)?])),
    ("FusedMatMulActivation", fused_matmul_activation),
    ("FusedGemm", fused_gemm),
    ("GemmFastGelu", gemm_fast_gelu),
];

/// The permutation that moves the channels of an image to the end, or back.
fn channels_moved(rank: usize, to_last: bool) -> Vec<usize> {
    match (rank, to_last) {
        (0..=2, _) => (0..rank).collect(),
        (_, true) => [0].into_iter().chain(2..rank).chain([1]).collect(),
        (_, false) => [0, rank - 1].into_iter().chain(1..rank - 1).collect(),
    }
}

/// `[N, C, …]` → `[N, …, C]`.
pub(super) fn to_last(cx: &mut Cx, x: &Item) -> Result<Item, Refusal> {
    let rank = cx.ty(x)?.rank();
    cx.transpose(x, channels_moved(rank, true))
}

/// `[N, …, C]` → `[N, C, …]`.
pub(super) fn to_first(cx: &mut Cx, x: &Item) -> Result<Item, Refusal> {
    let rank = cx.ty(x)?.rank();
    cx.transpose(x, channels_moved(rank, false))
}

/// `act(conv(x, w, bias) + z)`.
fn fused_conv(cx: &mut Cx, c: &Call) -> Done {
    let (x, w) = (c.input(0, "X")?, c.input(1, "W")?);
    let sum = convolve(cx, c, x, w, c.optional(2))?.swap_remove(0);
    let sum = plus(cx, &sum, c.optional(3))?;
    Ok(vec![conv_activation(cx, c, &sum)?])
}

/// The same as [`fused_conv`] with channels last in x, z and the result. The weights stay `OIHW`.
fn nhwc_fused_conv(cx: &mut Cx, c: &Call) -> Done {
    let x = to_first(cx, c.input(0, "X")?)?;
    let sum = convolve(cx, c, &x, c.input(1, "W")?, c.optional(2))?.swap_remove(0);
    let sum = to_last(cx, &sum)?;
    let sum = plus(cx, &sum, c.optional(3))?;
    Ok(vec![conv_activation(cx, c, &sum)?])
}

/// Channels last in x and the result, and weights `OHWI`, as in ONNX Runtime's kernel and its
/// optimizer. The text of the schema says `OIHW`.
fn nhwc_conv(cx: &mut Cx, c: &Call) -> Done {
    let x = to_first(cx, c.input(0, "X")?)?;
    let w = to_first(cx, c.input(1, "W")?)?;
    let y = convolve(cx, c, &x, &w, c.optional(2))?.swap_remove(0);
    Ok(vec![to_last(cx, &y)?])
}

/// The activation `activation`, whose numbers are in the list `activation_params`.
fn conv_activation(cx: &mut Cx, c: &Call, x: &Item) -> Result<Item, Refusal> {
    let name = c.string("activation", "")?;
    let given = c.floats("activation_params")?.unwrap_or(&[]);
    if let Some(v) = given.iter().find(|v| v.is_nan()) {
        return malformed(format!("attribute `activation_params` holds {v}"));
    }
    let number = |i: usize| match given.get(i) {
        Some(&v) => Ok(v),
        None => malformed(format!("attribute `activation_params` has no number {i} for {name}")),
    };
    let kind = match name {
        "LeakyRelu" => UnaryKind::LeakyRelu { alpha: number(0)? },
        "HardSigmoid" => UnaryKind::HardSigmoid { alpha: number(0)?, beta: number(1)? },
        "Clip" => {
            let dtype = cx.ty(x)?.dtype;
            let (low, high) = (number(0)?, number(1)?);
            let mut y = x.clone();
            for (bound, kind) in [(low, BinaryKind::Max), (high, BinaryKind::Min)] {
                let bound = cx.scalar(bound as f64, dtype);
                y = cx.binary(kind, &y, &bound)?;
            }
            return Ok(y);
        }
        other => return activate(cx, c, x, other),
    };
    cx.unary(kind, x)
}

/// The activation `activation`, whose numbers are in the attributes `activation_alpha`,
/// `activation_beta` and `activation_gamma`, each with the default of the operator of that name.
fn activate(cx: &mut Cx, c: &Call, x: &Item, name: &str) -> Result<Item, Refusal> {
    let alpha = |default: f32| c.float("activation_alpha", default);
    let beta = |default: f32| c.float("activation_beta", default);
    let kind = match name {
        "" => return Ok(x.clone()),
        "Relu" => UnaryKind::Relu,
        "Sigmoid" => UnaryKind::Sigmoid,
        "Tanh" => UnaryKind::Tanh,
        "Softplus" => UnaryKind::Softplus,
        "Softsign" => UnaryKind::Softsign,
        "LeakyRelu" => UnaryKind::LeakyRelu { alpha: alpha(0.01)? },
        "Elu" => UnaryKind::Elu { alpha: alpha(1.0)? },
        "ThresholdedRelu" => UnaryKind::ThresholdedRelu { alpha: alpha(1.0)? },
        "HardSigmoid" => UnaryKind::HardSigmoid { alpha: alpha(0.2)?, beta: beta(0.5)? },
        "Selu" | "ScaledElu" => UnaryKind::Selu {
            alpha: alpha(1.673_263_2)?,
            gamma: c.float("activation_gamma", 1.050_701)?,
        },
        "Softmax" | "LogSoftmax" => {
            let axis = c.axis("activation_axis", -1, cx.ty(x)?.rank())?;
            let op = if name == "Softmax" { Op::Softmax { axis } } else { Op::LogSoftmax { axis } };
            return cx.emit(op, &[x]);
        }
        other => return c.unknown("activation", other),
    };
    cx.unary(kind, x)
}

/// `alpha · A' · B'`. A flag `transBatch` moves axis 0 to the position of the rows, before a flag
/// `trans` exchanges rows and columns.
fn fused_matmul(cx: &mut Cx, c: &Call) -> Result<Item, Refusal> {
    let mut operand = |i: usize, what: &str, flags: [&str; 2]| -> Result<Item, Refusal> {
        let x = c.input(i, what)?;
        let rank = cx.ty(x)?.rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        if c.flag(flags[0], false)? && rank > 2 {
            perm[..rank - 1].rotate_left(1);
        }
        if c.flag(flags[1], false)? && rank > 1 {
            perm.swap(rank - 2, rank - 1);
        }
        cx.transpose(x, perm)
    };
    let a = operand(0, "A", ["transBatchA", "transA"])?;
    let b = operand(1, "B", ["transBatchB", "transB"])?;
    let product = cx.emit(Op::MatMul, &[&a, &b])?;
    scaled(cx, &product, c.float("alpha", 1.0)?)
}

fn fused_matmul_activation(cx: &mut Cx, c: &Call) -> Done {
    let product = fused_matmul(cx, c)?;
    Ok(vec![activate(cx, c, &product, c.string("activation", "")?)?])
}

fn fused_gemm(cx: &mut Cx, c: &Call) -> Done {
    let y = gemm(cx, c)?.swap_remove(0);
    Ok(vec![activate(cx, c, &y, c.string("activation", "")?)?])
}

/// `gelu(X · W + bias)` with the approximation by tanh.
fn gemm_fast_gelu(cx: &mut Cx, c: &Call) -> Done {
    let product = cx.emit(Op::MatMul, &[c.input(0, "X")?, c.input(1, "W")?])?;
    let sum = plus(cx, &product, c.optional(2))?;
    Ok(vec![cx.unary(UnaryKind::GeluTanh, &sum)?])
}
