//! Convolutions and pooling windows.

use super::*;
use crate::onnx::export::quantized::Operands;
use cqc_proto::DType;
use cqc_proto::Dim;
use cqc_proto::op::{ConvLayout, CoordinateMode, NearestMode, PoolKind, ResizeMode};

pub(super) fn conv(cx: &mut Cx, c: &Call, op: &Op) -> ExportResult {
    let Op::Conv { strides, pads, dilations, groups, layout, upsample, act } = op else {
        unreachable!("dispatched by `one`")
    };
    let last = *layout == ConvLayout::ChannelsLast;
    let plain = Op::Conv {
        strides: strides.clone(),
        pads: pads.clone(),
        dilations: dilations.clone(),
        groups: *groups,
        layout: ConvLayout::ChannelsFirst,
        upsample: 1,
        act: Act::None,
    };
    let scale = c.optional(6);
    let mut parts = vec![];
    for Operands { mut x, rounding, w } in cx.operands(c.input(0), c.input(1))? {
        if last {
            x = cx.first(x);
        }
        if *upsample != 1 {
            x = enlarged(cx, x, *upsample)?;
        }
        let x = cx.round(x, rounding.as_ref())?;
        let mut attributes = windows(strides, pads, dilations, &kernel(cx, w));
        attributes.push(int("group", *groups as i64));
        let types = plain.infer(&[Some(cx.ty(x)), Some(cx.ty(w))]).map_err(|e| e.reason)?;
        // a bias that is a table is added afterwards, and that of a sum of products once
        let bias = c.optional(2).filter(|_| scale.is_none() && parts.is_empty());
        parts.push(cx.nodes("Conv", &[Some(x), Some(w), bias], attributes, &types)[0]);
    }
    let y = cx.sum(&parts)?;
    let mut y = if last { cx.last(y) } else { y };
    if let Some(scale) = scale {
        for (kind, v) in [(BinaryKind::Mul, Some(scale)), (BinaryKind::Add, c.optional(2))] {
            let Some(v) = v else { continue };
            let v = if last { v } else { column(cx, v, &y) };
            y = cx.binary(kind, y, v)?;
        }
    }
    epilogue(cx, c, y, *act)
}

/// One value per channel, in a shape that broadcasts over channels-first values.
fn column(cx: &mut Cx, v: Val, y: &Val) -> Val {
    let mut shape = vec![cx.shape(*y)[1].clone()];
    shape.resize(cx.rank(*y) - 1, 1.into());
    cx.reshape(v, shape)
}

/// Repeats every element along the spatial axes of a channels-first value.
fn enlarged(cx: &mut Cx, x: Val, times: usize) -> ExportResult {
    let times = Dim::constant(times as i64);
    let size = |(k, d): (usize, &Dim)| if k < 2 { Some(d.clone()) } else { d.mul(&times) };
    let sizes = cx
        .shape(x)
        .iter()
        .enumerate()
        .map(size)
        .collect::<Option<Vec<_>>>()
        .ok_or("a size is too large")?;
    let op = Op::Resize {
        sizes,
        scales: vec![],
        mode: ResizeMode::Nearest,
        coordinates: CoordinateMode::Asymmetric,
        nearest: NearestMode::Floor,
        cubic_a: -0.75,
        exclude_outside: false,
        antialias: false,
    };
    cx.emit(op, &[x])
}

fn kernel(cx: &Cx, w: Val) -> Vec<i64> {
    cx.shape(w)[2..]
        .iter()
        .map(|d| d.as_const().expect("the shape rule wants known weights"))
        .collect()
}

fn windows<T: Copy + TryInto<i64>>(
    strides: &[usize],
    pads: &[usize],
    dilations: &[usize],
    kernel: &[T],
) -> Vec<cqc_proto::onnx::AttributeProto> {
    vec![
        ints("kernel_shape", kernel),
        ints("strides", strides),
        ints("pads", pads),
        ints("dilations", dilations),
    ]
}

pub(super) fn conv_transpose(cx: &mut Cx, c: &Call, op: &Op) -> ExportResult {
    let Op::ConvTranspose { strides, pads, dilations, output_padding, groups } = op else {
        unreachable!("dispatched by `one`")
    };
    let mut attributes = windows(strides, pads, dilations, &kernel(cx, c.input(1)));
    attributes.extend([ints("output_padding", output_padding), int("group", *groups as i64)]);
    Ok(c.as_node(cx, "ConvTranspose", attributes))
}

/// Writes a pooling operator, channels first.
pub(super) fn pool(cx: &mut Cx, c: &Call, op: &Op) -> ExportResult {
    let Op::Pool { kind, kernel, strides, pads, dilations, ceil, count_pad, .. } = op else {
        unreachable!("dispatched by `one`")
    };
    let mut attributes = windows(strides, pads, dilations, kernel);
    attributes.push(int("ceil_mode", *ceil as i64));
    if *kind == PoolKind::Average {
        attributes.push(int("count_include_pad", *count_pad as i64));
        return Ok(c.as_node(cx, "AveragePool", attributes));
    }
    let dtype = c.ty().dtype;
    if !dtype.is_float() && !matches!(dtype, DType::I8 | DType::U8) {
        return Err(format!("MaxPool does not take {dtype}"));
    }
    Ok(c.as_node(cx, "MaxPool", attributes))
}
