//! Gather, scatter and the other operators with index operands.

use super::*;
use cqc_proto::op::ScatterReduction;
use cqc_proto::{DType, Op};

pub(super) const TABLE: Table = &[
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("ScatterND", scatter_nd),
    ("ScatterElements", scatter_elements),
    ("Scatter", scatter_elements),
    ("OneHot", one_hot),
    ("TopK", top_k),
    ("CumSum", cum_sum),
];

fn gather(cx: &mut Cx, c: &Call) -> Done {
    let (data, indices) = (c.input(0, "data")?, c.input(1, "indices")?);
    let axis = c.axis("axis", 0, cx.ty(data)?.rank())?;
    Ok(vec![cx.emit(Op::Gather { axis }, &[data, indices])?])
}

fn gather_elements(cx: &mut Cx, c: &Call) -> Done {
    let (data, indices) = (c.input(0, "data")?, c.input(1, "indices")?);
    let axis = c.axis("axis", 0, cx.ty(data)?.rank())?;
    Ok(vec![cx.emit(Op::GatherElements { axis }, &[data, indices])?])
}

fn gather_nd(cx: &mut Cx, c: &Call) -> Done {
    let batch_dims = c.int("batch_dims", 0)?;
    let Ok(batch_dims) = usize::try_from(batch_dims) else {
        return malformed(format!("`batch_dims` is {batch_dims}"));
    };
    let rank = cx.ty(c.input(0, "data")?)?.rank();
    if batch_dims >= rank.max(1) {
        return malformed(format!("`batch_dims` is {batch_dims} for {rank} axes"));
    }
    Ok(vec![cx.emit(Op::GatherNd { batch_dims }, &[c.input(0, "data")?, c.input(1, "indices")?])?])
}

fn reduction(c: &Call) -> Result<ScatterReduction, Refusal> {
    Ok(match c.string("reduction", "none")? {
        "none" => ScatterReduction::None,
        "add" => ScatterReduction::Add,
        "mul" => ScatterReduction::Mul,
        "min" => ScatterReduction::Min,
        "max" => ScatterReduction::Max,
        other => return c.unknown("reduction", other),
    })
}

fn scatter_nd(cx: &mut Cx, c: &Call) -> Done {
    let operands = [c.input(0, "data")?, c.input(1, "indices")?, c.input(2, "updates")?];
    Ok(vec![cx.emit(Op::ScatterNd { reduction: reduction(c)? }, &operands)?])
}

fn scatter_elements(cx: &mut Cx, c: &Call) -> Done {
    let operands = [c.input(0, "data")?, c.input(1, "indices")?, c.input(2, "updates")?];
    let axis = c.axis("axis", 0, cx.ty(operands[0])?.rank())?;
    Ok(vec![cx.emit(Op::ScatterElements { axis, reduction: reduction(c)? }, &operands)?])
}

fn one_hot(cx: &mut Cx, c: &Call) -> Done {
    let indices = c.input(0, "indices")?;
    let ty = cx.ty(indices)?;
    let depth = cx.static_ints(c.input(1, "depth")?, "depth")?;
    let &[depth] = &depth[..] else { return malformed("`depth` is no scalar") };
    let axis = c.axis("axis", -1, ty.rank() + 1)?;
    let indices = if ty.dtype.is_float() { cx.cast(indices, DType::I64)? } else { indices.clone() };
    Ok(vec![cx.emit(Op::OneHot { axis, depth }, &[&indices, c.input(2, "values")?])?])
}

fn top_k(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let axis = c.axis("axis", -1, cx.ty(x)?.rank())?;
    // `k` is an attribute before version 10
    let k = match c.opset < 10 {
        true => vec![c.required_int("k")?],
        false => cx.static_ints(c.input(1, "K")?, "K")?,
    };
    let &[k] = &k[..] else { return malformed("`K` is no single number") };
    cx.emit_all(Op::TopK { axis, k, largest: c.flag("largest", true)? }, &[Some(x.clone())])
}

fn cum_sum(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "x")?;
    let at = cx.static_ints(c.input(1, "axis")?, "axis")?;
    let &[at] = &at[..] else { return malformed("`axis` is no scalar") };
    let axis = axis(at, cx.ty(x)?.rank())?;
    let (exclusive, reverse) = (c.flag("exclusive", false)?, c.flag("reverse", false)?);
    Ok(vec![cx.emit(Op::CumSum { axis, exclusive, reverse }, &[x])?])
}
