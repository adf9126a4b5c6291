//! Convolutions.

use super::*;
use cqc_proto::op::{Act, ConvLayout};
use cqc_proto::{DType, Op};

pub(super) const TABLE: Table = &[
    ("Conv", conv),
    ("ConvTranspose", conv_transpose),
    ("ConvInteger", conv_integer),
    ("QLinearConv", qlinear_conv),
];

/// Spatial geometry of convolutions and pools.
pub(super) struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    pub pads: Vec<usize>,
}

/// A list attribute of numbers ≥ 0, one per spatial axis.
pub(super) fn list(
    c: &Call,
    name: &str,
    default: usize,
    count: usize,
) -> Result<Vec<usize>, Refusal> {
    let Some(values) = c.ints(name)? else { return Ok(vec![default; count]) };
    if values.len() != count {
        return malformed(format!("`{name}` has {} entries, expected {count}", values.len()));
    }
    let values: Result<Vec<usize>, _> = values.iter().map(|&v| usize::try_from(v)).collect();
    match values {
        Ok(values) if values.iter().all(|&v| v < 1 << 20) => Ok(values),
        _ => unsupported(format!("`{name}` is out of range")),
    }
}

/// The geometry that the attributes give. `sizes` are those of the spatial axes.
pub(super) fn window(
    c: &Call,
    kernel: Vec<usize>,
    sizes: &[cqc_proto::Dim],
) -> Result<Window, Refusal> {
    let n = kernel.len();
    let (strides, dilations) = (list(c, "strides", 1, n)?, list(c, "dilations", 1, n)?);
    if strides.contains(&0)
        || dilations.contains(&0)
        || kernel.contains(&0)
        || kernel.iter().any(|&k| k >= 1 << 20)
    {
        return malformed("a window, stride or dilation is out of range");
    }
    let pads = match c.string("auto_pad", "NOTSET")? {
        "NOTSET" | "" => list(c, "pads", 0, 2 * n)?,
        "VALID" => vec![0; 2 * n],
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            let total = (0..n)
                .map(|i| same(&sizes[i], kernel[i], strides[i], dilations[i]))
                .collect::<Result<Vec<_>, _>>()?;
            let small = total.iter().map(|t| t / 2);
            let large = total.iter().map(|t| t - t / 2);
            if mode == "SAME_UPPER" {
                small.chain(large).collect()
            } else {
                large.chain(small).collect()
            }
        }
        other => return c.unknown("auto_pad", other),
    };
    Ok(Window { kernel, strides, dilations, pads })
}

/// The padding that makes ⌈size / stride⌉ windows.
fn same(
    size: &cqc_proto::Dim,
    kernel: usize,
    stride: usize,
    dilation: usize,
) -> Result<usize, Refusal> {
    let span = (kernel - 1) * dilation + 1;
    match size.as_const().and_then(|s| usize::try_from(s).ok()) {
        Some(size) => {
            Ok(((size.div_ceil(stride)).saturating_sub(1) * stride + span).saturating_sub(size))
        }
        None if stride == 1 => Ok(span - 1),
        None => unsupported("`auto_pad` needs spatial sizes that do not depend on the batch"),
    }
}

/// Kernel sizes of a weight tensor, checked against `kernel_shape`.
fn kernel(cx: &Cx, c: &Call, w: &Item) -> Result<Vec<usize>, Refusal> {
    let ty = cx.ty(w)?;
    let Some(fixed) = ty.fixed_shape().filter(|s| s.len() >= 3) else {
        return malformed(format!("the weights are {ty}, expected at least three known sizes"));
    };
    let own = fixed[2..].to_vec();
    let given = list(c, "kernel_shape", 0, own.len())?;
    if c.attribute("kernel_shape").is_some() && given != own {
        return malformed(format!("`kernel_shape` is {given:?}, the weights are {ty}"));
    }
    Ok(own)
}

fn groups(c: &Call) -> Result<usize, Refusal> {
    let groups = c.int("group", 1)?;
    usize::try_from(groups).or_else(|_| malformed(format!("`group` is {groups}")))
}

fn conv(cx: &mut Cx, c: &Call) -> Done {
    let (x, w) = (c.input(0, "X")?, c.input(1, "W")?);
    convolve(cx, c, x, w, c.optional(2))
}

pub(super) fn convolve(cx: &mut Cx, c: &Call, x: &Item, w: &Item, bias: Option<&Item>) -> Done {
    let ty = cx.ty(x)?;
    let kernel = kernel(cx, c, w)?;
    if ty.rank() != kernel.len() + 2 {
        return malformed(format!("the operand is {ty}, the weights are {}", cx.ty(w)?));
    }
    let Window { strides, dilations, pads, .. } = window(c, kernel, &ty.shape[2..])?;
    let (groups, layout) = (groups(c)?, ConvLayout::ChannelsFirst);
    let op = Op::Conv { strides, pads, dilations, groups, layout, upsample: 1, act: Act::None };
    let mut operands = vec![Some(x.clone()), Some(w.clone())];
    operands.extend(bias.map(|b| Some(b.clone())));
    cx.emit_all(op, &operands)
}

fn conv_transpose(cx: &mut Cx, c: &Call) -> Done {
    let (x, w) = (c.input(0, "X")?, c.input(1, "W")?);
    let ty = cx.ty(x)?;
    let kernel = kernel(cx, c, w)?;
    let n = kernel.len();
    if ty.rank() != n + 2 {
        return malformed(format!("the operand is {ty}, the weights are {}", cx.ty(w)?));
    }
    let (strides, dilations) = (list(c, "strides", 1, n)?, list(c, "dilations", 1, n)?);
    let mut output_padding = list(c, "output_padding", 0, n)?;
    let mode = c.string("auto_pad", "NOTSET")?;
    let mut pads = list(c, "pads", 0, 2 * n)?;
    let output = c.ints("output_shape")?;
    for i in 0..n {
        let target = match (&output, mode) {
            (Some(shape), _) => shape.get(shape.len().wrapping_sub(n - i)).copied(),
            (None, "SAME_UPPER" | "SAME_LOWER") => {
                ty.shape[i + 2].as_const().and_then(|s| s.checked_mul(strides[i] as i64))
            }
            (None, "NOTSET" | "VALID" | "") => continue,
            (None, other) => return c.unknown("auto_pad", other),
        };
        let Some((size, target)) = ty.shape[i + 2].as_const().zip(target).filter(|(s, _)| *s > 0)
        else {
            return unsupported("its output size is not known");
        };
        let span = ((kernel[i].max(1) - 1) * dilations[i] + 1 + output_padding[i]) as i128;
        let total = (size as i128 - 1) * strides[i] as i128 + span - target as i128;
        if total.abs() >= 1 << 20 {
            return malformed(format!("its output size {target} is out of range"));
        }
        // a result that is larger than the windows reach is padded at its end
        output_padding[i] += (-total).max(0) as usize;
        let total = total.max(0) as usize;
        let (front, back) = if mode == "SAME_UPPER" {
            (total / 2, total - total / 2)
        } else {
            (total - total / 2, total / 2)
        };
        (pads[i], pads[n + i]) = (front, back);
    }
    let op = Op::ConvTranspose { strides, pads, dilations, output_padding, groups: groups(c)? };
    let mut operands = vec![Some(x.clone()), Some(w.clone())];
    operands.extend(c.optional(2).map(|b| Some(b.clone())));
    cx.emit_all(op, &operands)
}

/// Integers up to 2^24 are exact in f32. Sums are kept in f64, in which they are exact beyond that.
fn conv_integer(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("ConvInteger");
    let x = centred(cx, c.input(0, "x")?, c.optional(2), None, DType::F64)?;
    let w = centred(cx, c.input(1, "w")?, c.optional(3), Some(0), DType::F64)?;
    let y = convolve(cx, c, &x, &w, None)?.swap_remove(0);
    Ok(vec![cx.cast(&y, DType::I32)?])
}

/// `x - zero_point` in another type. A vector of zero points belongs to `axis`.
pub(super) fn centred(
    cx: &mut Cx,
    x: &Item,
    zero: Option<&Item>,
    axis: Option<usize>,
    to: DType,
) -> Result<Item, Refusal> {
    let rank = cx.ty(x)?.rank();
    if x.tensor().is_some() {
        cx.quantized.constant(cx.ty(x)?.dtype.to_string());
    }
    let x = cx.cast(x, to)?;
    let Some(zero) = zero else { return Ok(x) };
    let zero = along(cx, zero, axis, rank)?;
    let zero = cx.cast(&zero, to)?;
    cx.binary(cqc_proto::op::BinaryKind::Sub, &x, &zero)
}

/// A vector placed along `axis` of a tensor of this rank. One element becomes a scalar; a tensor of
/// another rank is not changed.
pub(super) fn along(
    cx: &mut Cx,
    v: &Item,
    axis: Option<usize>,
    rank: usize,
) -> Result<Item, Refusal> {
    let shape = cx.ty(v)?.shape;
    match (shape.as_slice(), axis) {
        ([one], _) if one.is(1) => cx.reshape(v, vec![]),
        ([size], Some(axis)) => {
            if axis >= rank {
                return malformed(format!("{size} numbers along axis {axis} of {rank} axes"));
            }
            let mut wide = vec![cqc_proto::Dim::constant(1); rank];
            wide[axis] = size.clone();
            cx.reshape(v, wide)
        }
        _ => Ok(v.clone()),
    }
}

fn qlinear_conv(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("QLinearConv");
    let scale = |cx: &mut Cx, s: &Item, axis, rank| {
        let s = along(cx, s, axis, rank)?;
        cx.cast(&s, DType::F64)
    };
    let rank = cx.ty(c.input(0, "x")?)?.rank();
    let x = centred(cx, c.input(0, "x")?, c.optional(2), None, DType::F64)?;
    let w = centred(cx, c.input(3, "w")?, c.optional(5), Some(0), DType::F64)?;
    let bias = c.optional(8).map(|b| cx.cast(b, DType::F64)).transpose()?;
    let sums = convolve(cx, c, &x, &w, bias.as_ref())?.swap_remove(0);
    let (xs, ws) = (
        scale(cx, c.input(1, "x_scale")?, None, rank)?,
        scale(cx, c.input(4, "w_scale")?, Some(1), rank)?,
    );
    let ys = scale(cx, c.input(6, "y_scale")?, None, rank)?;
    quant::requantize(cx, &sums, [&xs, &ws, &ys], c.input(7, "y_zero_point")?)
}
