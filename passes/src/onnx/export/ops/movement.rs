//! Operators that move elements without computing on them.

use super::*;
use cqc_proto::Dim;
use cqc_proto::op::PadMode;

pub(super) fn expand(cx: &mut Cx, c: &Call, shape: &[Dim]) -> ExportResult {
    let sizes = cx.sizes(shape)?;
    Ok(cx.node("Expand", &[c.input(0), sizes], vec![], c.ty()))
}

pub(super) fn concat(cx: &mut Cx, c: &Call, axis: usize) -> Val {
    let y = c.as_node(cx, "Concat", vec![int("axis", axis as i64)]);
    cx.joined.insert(y, (axis, c.inputs.iter().copied().flatten().collect()));
    y
}

pub(super) fn slice(
    cx: &mut Cx,
    c: &Call,
    axes: &[usize],
    starts: &[Dim],
    ends: &[Dim],
    steps: &[i64],
) -> ExportResult {
    let x = c.input(0);
    let sizes: Vec<Dim> = axes.iter().map(|&a| cx.shape(x)[a].clone()).collect();
    // an end of -1 would count from the back, and the end of an axis need not be known
    let end = |(i, d): (usize, &Dim)| match d {
        d if d.is(-1) => i64::MIN.into(),
        d if steps[i] > 0 && *d == sizes[i] => i64::MAX.into(),
        d => d.clone(),
    };
    let ends: Vec<Dim> = ends.iter().enumerate().map(end).collect();
    let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
    let operands = [x, cx.sizes(starts)?, cx.sizes(&ends)?, cx.ints(&axes), cx.ints(steps)];
    Ok(cx.node("Slice", &operands, vec![], c.ty()))
}

pub(super) fn pad(
    cx: &mut Cx,
    c: &Call,
    before: &[i64],
    after: &[i64],
    mode: PadMode,
) -> ExportResult {
    let (name, x) = match mode {
        PadMode::Constant => ("constant", c.input(0)),
        PadMode::Edge => ("edge", c.input(0)),
        PadMode::Reflect => ("reflect", c.input(0)),
        PadMode::Wrap => ("wrap", c.input(0)),
    };
    let removes = before.iter().chain(after).any(|&n| n < 0);
    if removes && mode != PadMode::Constant {
        return pad_then_cut(cx, x, before, after, mode);
    }
    if mode == PadMode::Reflect || mode == PadMode::Wrap {
        let most = |k: usize| {
            cx.shape(x)[k].as_const().map_or(0, |n| n - (mode == PadMode::Reflect) as i64)
        };
        if (0..before.len()).any(|k| before[k].max(after[k]) > most(k).max(0)) {
            return Err(format!("Pad does not {name} more elements than the axis has"));
        }
    }
    let pads = cx.ints(&[before, after].concat());
    let operands = [Some(x), Some(pads), c.optional(1).filter(|_| mode == PadMode::Constant)];
    let fill = operands[2].map(|v| cx.reshape(v, vec![]));
    Ok(cx.nodes("Pad", &[operands[0], operands[1], fill], vec![string("mode", name)], c.outputs)[0])
}

/// Pads and then cuts, because the standard repeats elements of the operand as it was before any
/// removal.
fn pad_then_cut(cx: &mut Cx, x: Val, before: &[i64], after: &[i64], mode: PadMode) -> ExportResult {
    let only = |list: &[i64]| list.iter().map(|&n| n.max(0)).collect::<Vec<_>>();
    let wide = cx.emit(Op::Pad { before: only(before), after: only(after), mode }, &[x])?;
    let axes: Vec<usize> = (0..before.len()).filter(|&k| before[k] < 0 || after[k] < 0).collect();
    let cut = |n: i64| Dim::constant(n.min(0).abs());
    let size = |k: usize| cx.shape(wide)[k].sub(&cut(after[k])).ok_or("a size is too large");
    let ends = axes.iter().map(|&k| size(k)).collect::<Result<Vec<_>, _>>()?;
    let (starts, steps) = (axes.iter().map(|&k| cut(before[k])).collect(), vec![1; axes.len()]);
    cx.emit(Op::Slice { axes, starts, ends, steps }, &[wide])
}

pub(super) fn tile(cx: &mut Cx, c: &Call, repeats: &[i64]) -> ExportResult {
    let repeats = cx.ints(repeats);
    Ok(cx.node("Tile", &[c.input(0), repeats], vec![], c.ty()))
}

pub(super) fn trilu(cx: &mut Cx, c: &Call, upper: bool, k: i64) -> ExportResult {
    let k = cx.constant("diagonal", cqc_proto::Tensor::from_i64(&[], &[k]));
    Ok(cx.node("Trilu", &[c.input(0), k], vec![int("upper", upper as i64)], c.ty()))
}
