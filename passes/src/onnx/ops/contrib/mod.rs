//! Operators of the domain `com.microsoft`, which ONNX Runtime's optimizers write. They have the
//! meaning of ONNX Runtime's kernels, and become the operators that the optimizers have fused.

mod attention;
mod fused;
mod group_query;
mod mask;
mod norm;
mod rotary;

use super::*;
use cqc_proto::Op;
use cqc_proto::op::{Act, BinaryKind, UnaryKind};

/// All families of the domain.
pub(super) const TABLES: &[Table] = &[
    TABLE,
    attention::TABLE,
    fused::TABLE,
    group_query::TABLE,
    norm::TABLE,
    rotary::TABLE,
    super::qoperator::TABLE,
    super::blocks::TABLE,
];

const TABLE: Table = &[
    ("Gelu", |cx, c| activation::unary(cx, c, UnaryKind::GeluErf)),
    ("FastGelu", |cx, c| biased(cx, c, UnaryKind::GeluTanh)),
    ("BiasGelu", |cx, c| biased(cx, c, UnaryKind::GeluErf)),
    ("QuickGelu", quick_gelu),
    ("BiasSplitGelu", bias_split_gelu),
    ("BiasAdd", bias_add),
    ("BiasSoftmax", bias_softmax),
    ("BiasDropout", bias_dropout),
    ("SwiGLU", swiglu),
    ("ExpandDims", expand_dims),
    ("Trilu", |cx, c| movement::trilu(cx, c)),
    ("GatherND", gather_nd),
];

fn plus(cx: &mut Cx, x: &Item, addend: Option<&Item>) -> Result<Item, Refusal> {
    match addend {
        Some(b) => cx.binary(BinaryKind::Add, x, b),
        None => Ok(x.clone()),
    }
}

/// `f(x + bias)`.
fn biased(cx: &mut Cx, c: &Call, kind: UnaryKind) -> Done {
    let sum = plus(cx, c.input(0, "X")?, c.optional(1))?;
    Ok(vec![cx.unary(kind, &sum)?])
}

fn quick_gelu(cx: &mut Cx, c: &Call) -> Done {
    let alpha = c.float("alpha", 1.702)?;
    activation::unary(
        cx,
        c,
        if alpha == 1.702 { UnaryKind::QuickGelu } else { UnaryKind::Swish { alpha } },
    )
}

/// `softmax(x + bias)` over all axes from `axis` on, as one axis.
fn bias_softmax(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let shape = cx.ty(x)?.shape;
    let sum = plus(cx, x, Some(c.input(1, "bias")?))?;
    if cx.ty(&sum)?.shape != shape {
        return malformed(format!(
            "`bias` is {}, which widens the data",
            cx.ty(c.input(1, "bias")?)?
        ));
    }
    let axis = c.axis("axis", 1, shape.len())?;
    let flat = [&shape[..axis], &[movement::product(&shape[axis..])?]].concat();
    let flat = cx.reshape(&sum, flat)?;
    let y = cx.emit(Op::Softmax { axis }, &[&flat])?;
    Ok(vec![cx.reshape(&y, shape)?])
}

/// `x + bias + residual`. Dropout does nothing at inference.
fn bias_dropout(cx: &mut Cx, c: &Call) -> Done {
    if let Some(training) = c.optional(4)
        && cx.static_ints(training, "training_mode")?.iter().any(|&t| t != 0)
    {
        return unsupported("it is in training mode");
    }
    let sum = plus(cx, c.input(0, "data")?, Some(c.input(1, "bias")?))?;
    let sum = plus(cx, &sum, c.optional(2))?;
    Ok(vec![sum, Item::Absent("the mask of BiasDropout is not computed".into())])
}

/// `g · sigmoid(alpha · g) · (u + beta)` with gate g and linear half u. Both are clamped if there
/// is a limit.
fn swiglu(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "gate")?;
    let ty = cx.ty(x)?;
    let (mut gate, mut up) = match c.optional(1) {
        Some(up) => (x.clone(), up.clone()),
        None => {
            let last = axis(-1, ty.rank())?;
            let size = &ty.shape[last];
            let Some(half) = size.div_exact(&2.into()) else {
                return malformed(format!("the last size {size} is odd"));
            };
            let up = cx.slice(x, last, half.clone(), size.clone())?;
            (cx.slice(x, last, 0.into(), half)?, up)
        }
    };
    let (limit, beta) = (c.float("limit", 0.0)?, c.float("activation_beta", 0.0)?);
    if limit > 0.0 {
        let (high, low) = (cx.scalar(limit as f64, ty.dtype), cx.scalar(-limit as f64, ty.dtype));
        gate = cx.binary(BinaryKind::Min, &gate, &high)?;
        up = cx.binary(BinaryKind::Max, &up, &low)?;
        up = cx.binary(BinaryKind::Min, &up, &high)?;
    }
    if beta != 0.0 {
        let beta = cx.scalar(beta as f64, ty.dtype);
        up = cx.binary(BinaryKind::Add, &up, &beta)?;
    }
    let alpha = c.float("activation_alpha", 1.0)?;
    let gate = cx.unary(activation::swish_kind(alpha), &gate)?;
    Ok(vec![cx.binary(BinaryKind::Mul, &gate, &up)?])
}

fn expand_dims(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let mut shape = cx.ty(x)?.shape;
    let at = cx.static_ints(c.input(1, "axis")?, "axis")?;
    let &[at] = &at[..] else { return malformed("`axis` is no single number") };
    shape.insert(axis(at, shape.len() + 1)?, 1.into());
    Ok(vec![cx.reshape(x, shape)?])
}

fn gather_nd(cx: &mut Cx, c: &Call) -> Done {
    let operands = [c.input(0, "data")?, c.input(1, "indices")?];
    Ok(vec![cx.emit(Op::GatherNd { batch_dims: 0 }, &operands)?])
}

/// `a · gelu(b)` with `[a, b] = split(x + bias, 2)`.
fn bias_split_gelu(cx: &mut Cx, c: &Call) -> Done {
    let sum = plus(cx, c.input(0, "X")?, Some(c.input(1, "bias")?))?;
    Ok(vec![cx.emit(Op::Geglu { act: Act::GeluErf }, &[&sum])?])
}

fn bias_add(cx: &mut Cx, c: &Call) -> Done {
    let sum = plus(cx, c.input(0, "X")?, Some(c.input(1, "bias")?))?;
    Ok(vec![plus(cx, &sum, Some(c.input(2, "skip")?))?])
}
