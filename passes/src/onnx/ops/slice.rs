//! Slices and splits.

use super::*;
use crate::onnx::partial::{least, nonnegative};
use cqc_proto::{Dim, Op};

pub(super) const TABLE: Table = &[("Slice", slice), ("Split", split)];

/// The slice of one axis.
struct Piece {
    axis: usize,
    start: Dim,
    end: Dim,
    step: i64,
}

fn slice(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let shape = cx.ty(x)?.shape;
    // the positions are attributes before version 10
    let position = |cx: &mut Cx, i: usize, what: &str| match c.opset < 10 {
        true => Ok(c.ints(what)?.unwrap_or_default().into_iter().map(position).collect()),
        false => bounds(cx, c.input(i, what)?, what),
    };
    let (starts, ends) = (position(cx, 1, "starts")?, position(cx, 2, "ends")?);
    // an empty tensor stands for an absent operand
    let given = |cx: &mut Cx, i: usize, what: &str| match (c.opset < 10, c.optional(i)) {
        (true, _) => c.ints(what),
        (false, Some(item)) => Ok(Some(cx.static_ints(item, what)?).filter(|l| !l.is_empty())),
        (false, None) => Ok(None),
    };
    let on = given(cx, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = given(cx, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), on.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return malformed("`starts`, `ends`, `axes` and `steps` have different lengths");
    }
    axes(&on, shape.len())?;
    let mut pieces = Vec::new();
    for (i, &a) in on.iter().enumerate() {
        let axis = axis(a, shape.len())?;
        pieces.extend(piece(axis, &shape[axis], &starts[i], &ends[i], steps[i])?);
    }
    if pieces.is_empty() {
        return Ok(vec![x.clone()]);
    }
    pieces.sort_by_key(|p| p.axis);
    let op = Op::Slice {
        axes: pieces.iter().map(|p| p.axis).collect(),
        starts: pieces.iter().map(|p| p.start.clone()).collect(),
        ends: pieces.iter().map(|p| p.end.clone()).collect(),
        steps: pieces.iter().map(|p| p.step).collect(),
    };
    Ok(vec![cx.emit(op, &[x])?])
}

/// Slice positions: sizes, or numbers so large that they mean "to the end".
fn bounds(cx: &mut Cx, item: &Item, what: &str) -> Result<Vec<Dim>, Refusal> {
    if matches!(item, Item::Sizes(_)) {
        return cx.static_sizes(item, what);
    }
    Ok(cx.static_ints(item, what)?.into_iter().map(position).collect())
}

fn position(v: i64) -> Dim {
    let limit = cqc_proto::dim::MAX_DIM;
    Dim::constant(v.clamp(-limit, limit))
}

/// The slice within the axis; `None` if it is the whole axis.
fn piece(
    axis: usize,
    size: &Dim,
    start: &Dim,
    end: &Dim,
    step: i64,
) -> Result<Option<Piece>, Refusal> {
    if step == 0 || step == i64::MIN {
        return malformed(format!("a step is {step}"));
    }
    let last = size.add(&Dim::constant(-1)).unwrap_or_default();
    // As in numpy, positions are moved into the axis. A slice that runs backwards may end before
    // the first element, at -1.
    let (low, high) =
        if step > 0 { (Dim::constant(0), size.clone()) } else { (Dim::constant(-1), last.clone()) };
    let first = if step > 0 { Dim::constant(0) } else { Dim::constant(-1) };
    let start = clamp(start, size, &first, &high)?;
    let end = clamp(end, size, &low, &high)?;
    if step == 1 && start.is(0) && end == *size {
        return Ok(None);
    }
    // an empty slice: the operator requires start ≤ end
    let empty = match step > 0 {
        true => less_or_equal(&end, &start),
        false => less_or_equal(&start, &end),
    };
    let end = if empty == Some(true) { start.clone() } else { end };
    Ok(Some(Piece { axis, start, end, step }))
}

fn less_or_equal(a: &Dim, b: &Dim) -> Option<bool> {
    b.sub(a).filter(nonnegative).map(|_| true)
}

/// A position counted from the front, limited to `low` and `high`.
fn clamp(position: &Dim, size: &Dim, low: &Dim, high: &Dim) -> Result<Dim, Refusal> {
    let undecided = || {
        let reason = format!(
            "whether the position {position} lies within an axis of size {size} depends on the batch"
        );
        Refusal::Unsupported(reason)
    };
    let limit = cqc_proto::dim::MAX_DIM;
    if position.is(limit) {
        return Ok(high.clone());
    }
    if position.is(-limit) {
        return Ok(low.clone());
    }
    let from_front = match position.as_const() {
        Some(v) if v >= 0 => position.clone(),
        None if nonnegative(position) => position.clone(),
        Some(_) => position.add(size).ok_or_else(undecided)?,
        None if Dim::constant(-1).sub(position).is_some_and(|d| nonnegative(&d)) => {
            position.add(size).ok_or_else(undecided)?
        }
        None => return Err(undecided()),
    };
    let at_most = least(&from_front, high).ok_or_else(undecided)?;
    let smaller = least(&at_most, low).ok_or_else(undecided)?;
    Ok(if smaller == at_most { low.clone() } else { at_most })
}

fn split(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let ty = cx.ty(x)?;
    let axis = c.axis("axis", 0, ty.rank())?;
    let size = &ty.shape[axis];
    let given = match (c.opset < 13, c.optional(1)) {
        (true, _) => c.ints("split")?.map(|l| l.into_iter().map(Dim::constant).collect()),
        (false, Some(item)) => Some(cx.static_sizes(item, "split")?).filter(|l| !l.is_empty()),
        (false, None) => None,
    };
    let lengths: Vec<Dim> = match given {
        Some(lengths) => lengths,
        None => equal_parts(size, c)?,
    };
    if lengths.len() < c.outputs.len()
        || lengths.iter().any(|l| l.as_const().is_some_and(|v| v < 0))
    {
        return malformed(format!(
            "`split` is {} for {} outputs",
            shape::shown_shape(&lengths),
            c.outputs.len()
        ));
    }
    let sum = lengths.iter().try_fold(Dim::constant(0), |sum, l| sum.add(l));
    if sum.as_ref() != Some(size) {
        return malformed(format!(
            "`split` {} does not sum to the size {size}",
            shape::shown_shape(&lengths)
        ));
    }
    let mut start = Dim::constant(0);
    let mut parts = Vec::new();
    for length in lengths.iter().take(c.outputs.len()) {
        let end = start.add(length).unwrap_or_default();
        parts.push(cx.slice(x, axis, start, end.clone())?);
        start = end;
    }
    Ok(parts)
}

/// Parts of equal size; the last one is smaller if necessary.
fn equal_parts(size: &Dim, c: &Call) -> Result<Vec<Dim>, Refusal> {
    let count = c.int("num_outputs", c.outputs.len() as i64)?;
    if !(1..=1 << 16).contains(&count) {
        return malformed(format!("it splits into {count} parts"));
    }
    if let Some(part) = size.div_exact(&Dim::constant(count)) {
        return Ok(vec![part; count as usize]);
    }
    let Some(size) = size.as_const() else {
        return unsupported(format!("the size {size} does not split into {count} equal parts"));
    };
    let part = (size + count - 1) / count;
    let length = |i: i64| Dim::constant((size - i * part).clamp(0, part));
    Ok((0..count).map(length).collect())
}
