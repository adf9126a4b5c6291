//! Functions of several elements, casts.

use super::*;
use crate::onnx::narrow::Narrow;
use crate::onnx::tensors;
use cqc_proto::op::BinaryKind;
use cqc_proto::{DType, Op};

pub(super) const TABLE: Table = &[
    ("Add", |cx, c| binary(cx, c, BinaryKind::Add)),
    ("Sub", |cx, c| binary(cx, c, BinaryKind::Sub)),
    ("Mul", |cx, c| binary(cx, c, BinaryKind::Mul)),
    ("Div", |cx, c| binary(cx, c, BinaryKind::Div)),
    ("Pow", |cx, c| binary(cx, c, BinaryKind::Pow)),
    ("And", |cx, c| binary(cx, c, BinaryKind::And)),
    ("Or", |cx, c| binary(cx, c, BinaryKind::Or)),
    ("Xor", |cx, c| binary(cx, c, BinaryKind::Xor)),
    ("BitwiseAnd", |cx, c| binary(cx, c, BinaryKind::BitwiseAnd)),
    ("BitwiseOr", |cx, c| binary(cx, c, BinaryKind::BitwiseOr)),
    ("BitwiseXor", |cx, c| binary(cx, c, BinaryKind::BitwiseXor)),
    ("Equal", |cx, c| binary(cx, c, BinaryKind::Equal)),
    ("Less", |cx, c| binary(cx, c, BinaryKind::Less)),
    ("LessOrEqual", |cx, c| binary(cx, c, BinaryKind::LessOrEqual)),
    ("Greater", |cx, c| binary(cx, c, BinaryKind::Greater)),
    ("GreaterOrEqual", |cx, c| binary(cx, c, BinaryKind::GreaterOrEqual)),
    ("PRelu", prelu),
    ("Mod", modulo),
    ("BitShift", shift),
    ("Min", |cx, c| chain(cx, c, BinaryKind::Min)),
    ("Max", |cx, c| chain(cx, c, BinaryKind::Max)),
    ("Sum", |cx, c| chain(cx, c, BinaryKind::Add)),
    ("Mean", mean),
    ("Where", |cx, c| {
        Ok(vec![
            cx.emit(Op::Where, &[c.input(0, "condition")?, c.input(1, "X")?, c.input(2, "Y")?])?,
        ])
    }),
    ("Clip", clip),
    ("Cast", cast),
    ("CastLike", cast_like),
    ("Identity", |_, c| Ok(vec![c.input(0, "input")?.clone()])),
    ("Dropout", dropout),
];

fn binary(cx: &mut Cx, c: &Call, kind: BinaryKind) -> Done {
    Ok(vec![cx.binary(kind, c.input(0, "A")?, c.input(1, "B")?)?])
}

/// The slope broadcasts to x, and only in that direction.
fn prelu(cx: &mut Cx, c: &Call) -> Done {
    binary(cx, c, BinaryKind::Prelu)
}

fn modulo(cx: &mut Cx, c: &Call) -> Done {
    let fmod = c.flag("fmod", false)?;
    binary(cx, c, if fmod { BinaryKind::Fmod } else { BinaryKind::Mod })
}

fn shift(cx: &mut Cx, c: &Call) -> Done {
    match c.string("direction", "")? {
        "LEFT" => binary(cx, c, BinaryKind::ShiftLeft),
        "RIGHT" => binary(cx, c, BinaryKind::ShiftRight),
        other => malformed(format!("`direction` is `{other}`, expected LEFT or RIGHT")),
    }
}

fn chain(cx: &mut Cx, c: &Call, kind: BinaryKind) -> Done {
    let inputs = c.all_inputs()?;
    let mut y = inputs[0].clone();
    for x in &inputs[1..] {
        y = cx.binary(kind, &y, x)?;
    }
    Ok(vec![y])
}

fn mean(cx: &mut Cx, c: &Call) -> Done {
    let sum = chain(cx, c, BinaryKind::Add)?.swap_remove(0);
    let count = cx.scalar(c.inputs.len() as f64, cx.ty(&sum)?.dtype);
    Ok(vec![cx.binary(BinaryKind::Div, &sum, &count)?])
}

/// `min(max(x, low), high)`, either bound optional.
fn clip(cx: &mut Cx, c: &Call) -> Done {
    let mut y = c.input(0, "input")?.clone();
    let dtype = cx.ty(&y)?.dtype;
    for (i, name, kind) in [(1, "min", BinaryKind::Max), (2, "max", BinaryKind::Min)] {
        // the bounds are attributes before version 11
        let old = c.opt_float(name)?.filter(|v| c.opset < 11 && v.is_finite());
        let old = old.map(|v| cx.scalar(v.into(), dtype));
        if let Some(bound) = c.optional(i).or(old.as_ref()) {
            y = cx.binary(kind, &y, bound)?;
        }
    }
    Ok(vec![y])
}

fn element(number: i64, what: &str) -> Result<(DType, Option<Narrow>), Refusal> {
    let number = i32::try_from(number).unwrap_or(0);
    match tensors::element(number) {
        Ok(element) => Ok(element),
        Err(_) if number <= 0 => malformed(format!("`{what}` is no element type")),
        Err(name) => unsupported(format!("the element type {name} is not supported")),
    }
}

fn cast(cx: &mut Cx, c: &Call) -> Done {
    let to = element(c.required_int("to")?, "to")?;
    convert(cx, c, c.input(0, "input")?, to)
}

fn cast_like(cx: &mut Cx, c: &Call) -> Done {
    let like = c.input(1, "target_type")?;
    let to = (cx.ty(like)?.dtype, cx.narrow(like));
    convert(cx, c, c.input(0, "input")?, to)
}

fn convert(cx: &mut Cx, c: &Call, x: &Item, to: (DType, Option<Narrow>)) -> Done {
    let (dtype, narrow) = to;
    if let Some(narrow) = narrow {
        return Ok(vec![cx.cast_narrow(x, narrow, c.flag("saturate", true)?)?]);
    }
    if cx.narrow(x).is_some() && cx.ty(x)?.dtype == dtype {
        // the same numbers in another type
        return Ok(vec![cx.emit(Op::Cast { to: dtype }, &[x])?]);
    }
    Ok(vec![cx.cast(x, dtype)?])
}

/// Dropout does nothing at inference. Its mask is all true.
fn dropout(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?.clone();
    if let Some(training) = c.optional(2)
        && cx.static_ints(training, "training_mode")?.iter().any(|&t| t != 0)
    {
        let ratio = c.optional(1).map(|r| cx.static_tensor(r, "ratio")).transpose()?;
        if ratio.is_none_or(|r| r.to_f64_vec().iter().any(|&r| r != 0.0)) {
            return unsupported("it is in training mode");
        }
    }
    if !c.wants(1) {
        return Ok(vec![x]);
    }
    let yes = cx.constant(cqc_proto::Tensor::from_bool(&[], &[true]));
    let shape = cx.ty(&x)?.shape;
    let mask = cx.emit(Op::Expand { shape }, &[&yes])?;
    Ok(vec![x, mask])
}
