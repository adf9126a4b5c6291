//! Sequences with known length and positions, which exporters write for `chunk` and `split`.

use super::*;
use crate::onnx::limits::MAX_SIZES;

pub(super) const TABLE: Table = &[
    ("SequenceConstruct", construct),
    ("SequenceEmpty", |_, _| Ok(vec![Item::List(vec![])])),
    ("SequenceInsert", insert),
    ("SequenceErase", erase),
    ("SequenceAt", at),
    ("SequenceLength", length),
    ("SplitToSequence", split),
    ("ConcatFromSequence", concat),
];

fn list<'a>(c: &'a Call) -> Result<&'a [Item], Refusal> {
    match c.input(0, "input_sequence")? {
        Item::List(items) => Ok(items),
        _ => unsupported("the operand is no sequence of known length"),
    }
}

fn at(cx: &mut Cx, c: &Call) -> Done {
    let items = list(c)?;
    let position = cx.static_ints(c.input(1, "position")?, "position")?;
    let &[position] = &position[..] else { return malformed("`position` is no scalar") };
    Ok(vec![items[axis(position, items.len())?].clone()])
}

/// A sequence holds tensors only. A sequence of sequences could grow without bound.
fn construct(cx: &mut Cx, c: &Call) -> Done {
    let items = c.all_inputs()?;
    for item in &items {
        cx.ty(item)?;
    }
    Ok(vec![Item::List(items.into_iter().cloned().collect())])
}

/// The position of an existing value, or the position at which to insert one. Without an operand it
/// is after the last value.
fn place(cx: &mut Cx, c: &Call, i: usize, places: usize) -> Result<Option<usize>, Refusal> {
    let Some(item) = c.optional(i) else { return Ok(None) };
    let position = cx.static_ints(item, "position")?;
    let &[position] = &position[..] else { return malformed("`position` is no scalar") };
    axis(position, places).map(Some)
}

fn insert(cx: &mut Cx, c: &Call) -> Done {
    let mut items = list(c)?.to_vec();
    if items.len() >= MAX_SIZES {
        return unsupported(format!("the sequence has more than {MAX_SIZES} values"));
    }
    // a negative position counts from the last existing value
    let at = match c.optional(2).map(|item| cx.static_ints(item, "position")).transpose()? {
        Some(p) if p == [items.len() as i64] => items.len(),
        _ => place(cx, c, 2, items.len())?.unwrap_or(items.len()),
    };
    let tensor = c.input(1, "tensor")?;
    cx.ty(tensor)?;
    items.insert(at, tensor.clone());
    Ok(vec![Item::List(items)])
}

fn erase(cx: &mut Cx, c: &Call) -> Done {
    let mut items = list(c)?.to_vec();
    let last = items.len().checked_sub(1);
    let Some(at) = place(cx, c, 1, items.len())?.or(last) else {
        return malformed("the sequence is empty");
    };
    items.remove(at);
    Ok(vec![Item::List(items)])
}

fn length(cx: &mut Cx, c: &Call) -> Done {
    let n = list(c)?.len() as i64;
    Ok(vec![cx.constant(cqc_proto::Tensor::from_i64(&[], &[n]))])
}

fn split(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let ty = cx.ty(x)?;
    let axis = c.axis("axis", 0, ty.rank())?;
    let Some(size) = ty.shape[axis].as_const().filter(|&s| s <= 1 << 12) else {
        return unsupported(format!(
            "the size {} of the axis is too large or depends on the batch",
            ty.shape[axis]
        ));
    };
    let lengths = match c.optional(1) {
        None => vec![1; size as usize],
        Some(item) => {
            let given = cx.static_ints(item, "split")?;
            match (cx.ty(item)?.rank(), &given[..]) {
                (0, &[n]) if n > 0 => {
                    (0..size).step_by(n as usize).map(|s| n.min(size - s)).collect()
                }
                (0, _) => return malformed("`split` is not positive"),
                _ => given,
            }
        }
    };
    if lengths.iter().any(|&l| l < 0)
        || lengths.iter().try_fold(0i64, |a, &l| a.checked_add(l)) != Some(size)
    {
        return malformed(format!("`split` does not sum to the size {size}"));
    }
    let squeeze = c.optional(1).is_none() && !c.flag("keepdims", true)?;
    let (mut start, mut parts) = (0, Vec::new());
    for length in lengths {
        let mut part = cx.slice(x, axis, start.into(), (start + length).into())?;
        if squeeze {
            let mut shape = cx.ty(&part)?.shape;
            shape.remove(axis);
            part = cx.reshape(&part, shape)?;
        }
        parts.push(part);
        start += length;
    }
    Ok(vec![Item::List(parts)])
}

fn concat(cx: &mut Cx, c: &Call) -> Done {
    let items = list(c)?.to_vec();
    let Some(first) = items.first() else { return malformed("the sequence is empty") };
    let shape = cx.ty(first)?.shape;
    if !c.flag("new_axis", false)? {
        let axis = axis(c.required_int("axis")?, shape.len())?;
        return Ok(vec![
            cx.emit(cqc_proto::Op::Concat { axis }, &items.iter().collect::<Vec<_>>())?,
        ]);
    }
    let axis = axis(c.required_int("axis")?, shape.len() + 1)?;
    let mut wide = shape;
    wide.insert(axis, 1.into());
    let parts = items.iter().map(|i| cx.reshape(i, wide.clone())).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![cx.emit(cqc_proto::Op::Concat { axis }, &parts.iter().collect::<Vec<_>>())?])
}
