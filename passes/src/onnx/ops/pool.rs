//! Pooling over windows.

use super::conv::{Window, list, window};
use super::*;
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, ConvLayout, PoolKind, UnaryKind};

pub(super) const TABLE: Table =
    &[("MaxPool", max_pool), ("AveragePool", average_pool), ("LpPool", lp_pool)];

fn geometry(cx: &Cx, c: &Call, x: &Item) -> Result<Window, Refusal> {
    let ty = cx.ty(x)?;
    if ty.rank() < 3 {
        return malformed(format!(
            "the operand is {ty}, expected batch, channels and spatial axes"
        ));
    }
    if c.attribute("kernel_shape").is_none() {
        return malformed("attribute `kernel_shape` is missing");
    }
    window(c, list(c, "kernel_shape", 1, ty.rank() - 2)?, &ty.shape[2..])
}

fn pool(cx: &mut Cx, c: &Call, x: &Item, kind: PoolKind, count_pad: bool) -> Result<Item, Refusal> {
    let Window { kernel, strides, dilations, pads } = geometry(cx, c, x)?;
    let ceil = c.flag("ceil_mode", false)?;
    let op = Op::Pool {
        kernel,
        strides,
        pads,
        dilations,
        ceil,
        count_pad,
        kind,
        layout: ConvLayout::ChannelsFirst,
    };
    cx.emit(op, &[x])
}

/// The second output, the positions of the maxima, is not computed.
fn max_pool(cx: &mut Cx, c: &Call) -> Done {
    Ok(vec![pool(cx, c, c.input(0, "X")?, PoolKind::Max, false)?])
}

fn average_pool(cx: &mut Cx, c: &Call) -> Done {
    let count_pad = c.flag("count_include_pad", false)?;
    Ok(vec![pool(cx, c, c.input(0, "X")?, PoolKind::Average, count_pad)?])
}

/// `(Σ |x|^p)^(1/p)` over windows, as an average that counts padding, times the size of the window.
fn lp_pool(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    if c.flag("ceil_mode", false)? {
        return unsupported("`ceil_mode` is not supported");
    }
    let (dtype, p) = (cx.ty(x)?.dtype, c.int("p", 2)?);
    let area: f64 = geometry(cx, c, x)?.kernel.iter().map(|&k| k as f64).product();
    let (power, root) = (cx.scalar(p as f64, dtype), cx.scalar(1.0 / p as f64, dtype));
    let magnitude = cx.unary(UnaryKind::Abs, x)?;
    let powers = cx.binary(BinaryKind::Pow, &magnitude, &power)?;
    let mean = pool(cx, c, &powers, PoolKind::Average, true)?;
    let area = cx.scalar(area, dtype);
    let sum = cx.binary(BinaryKind::Mul, &mean, &area)?;
    Ok(vec![cx.binary(BinaryKind::Pow, &sum, &root)?])
}
