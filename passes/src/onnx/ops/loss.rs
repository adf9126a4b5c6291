//! Losses.

use super::*;
use cqc_proto::op::{BinaryKind, ReduceKind, UnaryKind};
use cqc_proto::{DType, Op};

pub(super) const TABLE: Table = &[
    ("NegativeLogLikelihoodLoss", |cx, c| Ok(vec![likelihood(cx, c, c.input(0, "input")?)?])),
    ("SoftmaxCrossEntropyLoss", cross_entropy),
];

/// The outputs are (loss, logarithms of the probabilities).
fn cross_entropy(cx: &mut Cx, c: &Call) -> Done {
    let logs = cx.emit(Op::LogSoftmax { axis: 1 }, &[c.input(0, "scores")?])?;
    let loss = likelihood(cx, c, &logs)?;
    Ok(vec![loss, logs])
}

/// `−input[n, target[n, …], …] · weight[target]`, reduced. Places whose target is `ignore_index`
/// have weight 0.
fn likelihood(cx: &mut Cx, c: &Call, input: &Item) -> Result<Item, Refusal> {
    let ty = cx.ty(input)?;
    let target = cx.cast(c.input(1, "target")?, DType::I64)?;
    let mut column = cx.ty(&target)?.shape;
    if ty.rank() < 2 || column.len() + 1 != ty.rank() {
        return malformed(format!("the input is {ty}, the target {}", cx.ty(&target)?));
    }
    let places = column.clone();
    column.insert(1, 1.into());
    let ignored = match c.opt_int("ignore_index")? {
        Some(index) => {
            let index = cx.constant(cqc_proto::Tensor::from_i64(&[], &[index]));
            Some(cx.binary(BinaryKind::Equal, &target, &index)?)
        }
        None => None,
    };
    let class = match &ignored {
        Some(ignored) => {
            let zero = cx.constant(cqc_proto::Tensor::from_i64(&[], &[0]));
            cx.emit(Op::Where, &[ignored, &zero, &target])?
        }
        None => target,
    };
    let at = cx.reshape(&class, column)?;
    let picked = cx.emit(Op::GatherElements { axis: 1 }, &[input, &at])?;
    let picked = cx.reshape(&picked, places)?;
    let mut loss = cx.unary(UnaryKind::Neg, &picked)?;
    let mut weight = match c.optional(2) {
        Some(w) => Some(cx.emit(Op::Gather { axis: 0 }, &[w, &class])?),
        None => None,
    };
    if let Some(ignored) = &ignored {
        let (zero, one) = (cx.scalar(0.0, ty.dtype), cx.scalar(1.0, ty.dtype));
        weight = Some(cx.emit(Op::Where, &[ignored, &zero, weight.as_ref().unwrap_or(&one)])?);
    }
    if let Some(weight) = &weight {
        loss = cx.binary(BinaryKind::Mul, &loss, weight)?;
    }
    let all: Vec<usize> = (0..ty.rank() - 1).collect();
    match (c.string("reduction", "mean")?, weight) {
        ("none", _) => Ok(loss),
        ("sum", _) => cx.reduce(ReduceKind::Sum, all, false, &loss),
        ("mean", None) => cx.reduce(ReduceKind::Mean, all, false, &loss),
        ("mean", Some(weight)) => {
            let sum = cx.reduce(ReduceKind::Sum, all.clone(), false, &loss)?;
            let weight = cx.reduce(ReduceKind::Sum, all, false, &weight)?;
            cx.binary(BinaryKind::Div, &sum, &weight)
        }
        (other, _) => c.unknown("reduction", other),
    }
}
