//! Normalisations, and the affine map per channel.

use super::*;
use cqc_proto::Dim;
use cqc_proto::op::ReduceKind;

/// Writes Reshape–InstanceNormalization–Reshape–Mul–Add, channels first, which runtimes know from
/// torch. Few runtimes have a kernel for GroupNormalization.
pub(super) fn group_norm(cx: &mut Cx, c: &Call, groups: usize, eps: f32, act: Act) -> ExportResult {
    let (x, ty) = (c.input(0), c.ty());
    let channels = &ty.shape[1];
    let own = Dim::constant(groups as i64);
    let in_group = channels.div_exact(&own).expect("the shape rule wants whole groups");
    let in_group = ty.shape[2..]
        .iter()
        .try_fold(in_group, |n, d| n.mul(d))
        .ok_or("the size of a group is not known")?;
    let grouped = cx.reshape(x, vec![ty.shape[0].clone(), own, in_group]);
    let (ones, zeros) = (cx.filled(1.0, ty.dtype, groups), cx.filled(0.0, ty.dtype, groups));
    let shape = cx.ty(grouped).clone();
    let y = cx.node(
        "InstanceNormalization",
        &[grouped, ones, zeros],
        vec![float("epsilon", eps)],
        shape,
    );
    let mut y = cx.reshape(y, ty.shape.clone());
    for (i, kind) in [(1, BinaryKind::Mul), (2, BinaryKind::Add)] {
        if let Some(v) = c.optional(i) {
            let mut column = vec![channels.clone()];
            column.resize(ty.rank() - 1, 1.into());
            let column = cx.reshape(v, column);
            y = cx.binary(kind, y, column)?;
        }
    }
    activate(cx, act, y)
}

pub(super) fn layer_norm(cx: &mut Cx, c: &Call, eps: f32) -> ExportResult {
    let ty = c.ty();
    let gamma = match (c.optional(1), ty.shape[ty.rank() - 1].as_const()) {
        (Some(gamma), _) => gamma,
        (None, Some(channels)) => cx.filled(1.0, ty.dtype, channels as usize),
        (None, None) => return Err("the number of channels is not known".into()),
    };
    let attributes = vec![int("axis", -1), float("epsilon", eps)];
    let operands = [Some(c.input(0)), Some(gamma), c.optional(2)];
    let mut y = cx.nodes("LayerNormalization", &operands, attributes, c.outputs)[0];
    if let Some(scale) = c.optional(3) {
        let one = cx.scalar(1.0, ty.dtype);
        let factor = cx.binary(BinaryKind::Add, scale, one)?;
        y = cx.binary(BinaryKind::Mul, y, factor)?;
    }
    match c.optional(4) {
        Some(shift) => cx.binary(BinaryKind::Add, y, shift),
        None => Ok(y),
    }
}

/// Writes the form that ONNX Runtime fuses.
pub(super) fn rms_norm(cx: &mut Cx, c: &Call, eps: f32) -> ExportResult {
    let (x, dtype) = (c.input(0), c.ty().dtype);
    let (two, eps) = (cx.scalar(2.0, dtype), cx.scalar(eps as f64, dtype));
    let squares = cx.binary(BinaryKind::Pow, x, two)?;
    let mean = Op::Reduce { kind: ReduceKind::Mean, axes: vec![c.ty().rank() - 1], keep: true };
    let mean = cx.emit(mean, &[squares])?;
    let sum = cx.binary(BinaryKind::Add, mean, eps)?;
    let root = cx.unary(UnaryKind::Sqrt, sum)?;
    let y = cx.binary(BinaryKind::Div, x, root)?;
    match c.optional(1) {
        Some(gamma) => cx.binary(BinaryKind::Mul, y, gamma),
        None => Ok(y),
    }
}

pub(super) fn affine(cx: &mut Cx, c: &Call) -> ExportResult {
    let scaled = cx.binary(BinaryKind::Mul, c.input(0), c.input(1))?;
    let mut y = cx.binary(BinaryKind::Add, scaled, c.input(2))?;
    if let (Some(previous), Some(scale)) = (c.optional(4), c.optional(5)) {
        let scaled = cx.binary(BinaryKind::Mul, previous, scale)?;
        y = cx.binary(BinaryKind::Add, y, scaled)?;
    }
    match c.optional(3) {
        Some(residual) => cx.binary(BinaryKind::Add, y, residual),
        None => Ok(y),
    }
}
