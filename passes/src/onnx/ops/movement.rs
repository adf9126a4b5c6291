//! Reshapes, transpositions, padding, joining.

use super::*;
use cqc_proto::op::PadMode;
use cqc_proto::types::MAX_RANK;
use cqc_proto::{Dim, Op};

pub(super) const TABLE: Table = &[
    ("Reshape", reshape),
    ("Flatten", flatten),
    ("Squeeze", squeeze),
    ("Unsqueeze", unsqueeze),
    ("Transpose", transpose),
    ("Expand", expand),
    ("Concat", concat),
    ("Tile", tile),
    ("Pad", pad),
    ("Trilu", trilu),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", space_to_depth),
    ("CenterCropPad", center_crop_pad),
];

/// Product of sizes.
pub(super) fn product(sizes: &[Dim]) -> Result<Dim, Refusal> {
    match sizes.iter().try_fold(Dim::constant(1), |n, d| n.mul(d)) {
        Some(n) => Ok(n),
        None => unsupported(format!(
            "the product of the sizes {} is no multiple of the batch",
            shape::shown_shape(sizes)
        )),
    }
}

fn reshape(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let from = cx.ty(x)?.shape;
    let target = cx.static_sizes(c.input(1, "shape")?, "shape")?;
    let keep_zero = c.flag("allowzero", false)?;
    if target.len() > MAX_RANK {
        return unsupported(format!(
            "the result has {} axes, at most {MAX_RANK} are supported",
            target.len()
        ));
    }
    let mut shape = Vec::new();
    let mut open = None;
    for (i, d) in target.into_iter().enumerate() {
        match d.as_const() {
            Some(-1) if open.replace(i).is_some() => return malformed("`shape` holds -1 twice"),
            Some(-1) => shape.push(Dim::constant(1)),
            Some(0) if !keep_zero => match from.get(i) {
                Some(d) => shape.push(d.clone()),
                None => {
                    return malformed(format!(
                        "`shape` copies axis {i}, which the operand does not have"
                    ));
                }
            },
            Some(v) if v < 0 => return malformed(format!("`shape` holds {v}")),
            _ => shape.push(d),
        }
    }
    if let Some(i) = open {
        shape[i] = rest(&from, &shape)?;
    }
    Ok(vec![cx.emit(Op::Reshape { shape }, &[x])?])
}

/// The size with which `shape` (with 1 in its place) has as many elements as `from`.
fn rest(from: &[Dim], shape: &[Dim]) -> Result<Dim, Refusal> {
    // sizes on both sides cancel, so that products need not be affine
    let mut over = from.to_vec();
    let mut under = Vec::new();
    for d in shape {
        match over.iter().position(|o| o == d && !d.is(0)) {
            Some(i) => drop(over.swap_remove(i)),
            None => under.push(d.clone()),
        }
    }
    let (over, under) = (product(&over)?, product(&under)?);
    match over.div_exact(&under) {
        Some(d) => Ok(d),
        None if under.is(0) && over.is(0) => Ok(0.into()),
        None => {
            let (from, shape) = (shape::shown_shape(from), shape::shown_shape(shape));
            unsupported(format!("[{from}] does not divide into [{shape}] with -1 in place of a 1"))
        }
    }
}

fn flatten(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let from = cx.ty(x)?.shape;
    let at = match c.int("axis", 1)? {
        a if a == from.len() as i64 => from.len(),
        a => axis(a, from.len())?,
    };
    let shape = vec![product(&from[..at])?, product(&from[at..])?];
    Ok(vec![cx.reshape(x, shape)?])
}

/// Axes as an attribute (before version 13) or as operand 1.
pub(super) fn axes_operand(
    cx: &mut Cx,
    c: &Call,
    operand_since: i64,
) -> Result<Option<Vec<i64>>, Refusal> {
    if c.opset < operand_since {
        return c.ints("axes");
    }
    c.optional(1).map(|item| cx.static_ints(item, "axes")).transpose()
}

fn squeeze(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let mut shape = cx.ty(x)?.shape;
    // ONNX Runtime treats an empty list as an absent one
    match axes_operand(cx, c, 13)?.filter(|list| !list.is_empty()) {
        None => shape.retain(|d| !d.is(1)),
        Some(list) => {
            for a in axes(&list, shape.len())?.into_iter().rev() {
                let d = shape.remove(a);
                if !d.is(1) {
                    return unsupported(format!("axis {a} has the size {d}, expected 1"));
                }
            }
        }
    }
    Ok(vec![cx.reshape(x, shape)?])
}

fn unsqueeze(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let mut shape = cx.ty(x)?.shape;
    let Some(list) = axes_operand(cx, c, 13)? else { return malformed("`axes` is missing") };
    if shape.len() + list.len() > MAX_RANK {
        return unsupported(format!(
            "the result has {} axes, at most {MAX_RANK} are supported",
            shape.len() + list.len()
        ));
    }
    for a in axes(&list, shape.len() + list.len())? {
        shape.insert(a, 1.into());
    }
    Ok(vec![cx.reshape(x, shape)?])
}

fn transpose(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let rank = cx.ty(x)?.rank();
    let perm = match c.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(perm) => perm.into_iter().map(|p| usize::try_from(p).unwrap_or(usize::MAX)).collect(),
    };
    Ok(vec![cx.emit(Op::Transpose { perm }, &[x])?])
}

fn expand(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let target = cx.static_sizes(c.input(1, "shape")?, "shape")?;
    let shape = match cqc_proto::op::broadcast(&cx.ty(x)?.shape, &target) {
        Ok(shape) if shape.len() <= MAX_RANK => shape,
        Ok(shape) => return unsupported(format!("the result has {} axes", shape.len())),
        Err(reason) => return unsupported(reason),
    };
    if cx.ty(x)?.shape == shape {
        return Ok(vec![x.clone()]);
    }
    Ok(vec![cx.emit(Op::Expand { shape }, &[x])?])
}

fn concat(cx: &mut Cx, c: &Call) -> Done {
    let inputs = c.all_inputs()?;
    // a part without elements adds nothing, whatever its shape
    let mut parts = Vec::new();
    for x in &inputs {
        if !cx.ty(x)?.shape.iter().any(|d| d.is(0)) {
            parts.push(*x);
        }
    }
    let parts = if parts.is_empty() { inputs } else { parts };
    let axis = axis(c.required_int("axis")?, cx.ty(parts[0])?.rank())?;
    match parts[..] {
        [one] => Ok(vec![one.clone()]),
        _ => Ok(vec![cx.emit(Op::Concat { axis }, &parts)?]),
    }
}

fn tile(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let from = cx.ty(x)?.shape;
    let repeats = cx.static_sizes(c.input(1, "repeats")?, "repeats")?;
    if repeats.len() != from.len() {
        return malformed(format!(
            "`repeats` has {} entries for {} axes",
            repeats.len(),
            from.len()
        ));
    }
    if let Some(repeats) = repeats.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
        if repeats.iter().any(|&r| r < 0) {
            return malformed(format!("`repeats` is {repeats:?}"));
        }
        return Ok(vec![cx.emit(Op::Tile { repeats }, &[x])?]);
    }
    // A symbolic count repeats an axis of size 1, which is a broadcast. The constant counts follow.
    let broadcasts = repeats.iter().zip(&from).all(|(r, d)| r.as_const().is_some() || d.is(1));
    if !broadcasts {
        return unsupported("an axis is repeated as often as the batch is large");
    }
    let shape = repeats
        .iter()
        .zip(&from)
        .map(|(r, d)| if r.as_const().is_none() { r.clone() } else { d.clone() });
    let expanded = cx.emit(Op::Expand { shape: shape.collect() }, &[x])?;
    let repeats: Vec<i64> = repeats.iter().map(|r| r.as_const().unwrap_or(1)).collect();
    Ok(vec![cx.emit(Op::Tile { repeats }, &[&expanded])?])
}

fn pad(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "data")?;
    let ty = cx.ty(x)?;
    // the pads are an attribute before version 11
    let pads = match c.opset < 11 {
        true => c.ints("pads")?.unwrap_or_default(),
        false => cx.static_ints(c.input(1, "pads")?, "pads")?,
    };
    let on = match c.optional(3) {
        Some(item) => cx
            .static_ints(item, "axes")?
            .into_iter()
            .map(|a| axis(a, ty.rank()))
            .collect::<Result<Vec<_>, _>>()?,
        None => (0..ty.rank()).collect(),
    };
    if pads.len() != 2 * on.len() {
        return malformed(format!("`pads` has {} entries for {} axes", pads.len(), on.len()));
    }
    let (mut before, mut after) = (vec![0; ty.rank()], vec![0; ty.rank()]);
    for (i, &a) in on.iter().enumerate() {
        (before[a], after[a]) = (pads[i], pads[on.len() + i]);
    }
    let mode = match c.string("mode", "constant")? {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return c.unknown("mode", other),
    };
    let old = c.opt_float("value")?.filter(|_| c.opset < 11);
    let old = old.map(|v| cx.scalar(v.into(), ty.dtype));
    let fill = match c.optional(2).or(old.as_ref()) {
        Some(value) if mode == PadMode::Constant => Some(cx.reshape(value, vec![])?),
        _ => None,
    };
    let mut inputs = vec![Some(x.clone())];
    inputs.extend(fill.map(Some));
    cx.emit_all(Op::Pad { before, after, mode }, &inputs)
}

pub(super) fn trilu(cx: &mut Cx, c: &Call) -> Done {
    let k = match c.optional(1) {
        Some(item) => cx.static_ints(item, "k")?,
        None => vec![0],
    };
    let &[k] = &k[..] else { return malformed("`k` is no scalar") };
    Ok(vec![cx.emit(Op::Trilu { upper: c.flag("upper", true)?, k }, &[c.input(0, "input")?])?])
}

/// Batch, channels, height, width and the block size of a shuffle.
fn shuffle(cx: &mut Cx, c: &Call) -> Result<([Dim; 4], Dim), Refusal> {
    let ty = cx.ty(c.input(0, "input")?)?;
    let block = c.required_int("blocksize")?;
    match <[Dim; 4]>::try_from(ty.shape.clone()) {
        Ok(sizes) if (1..1 << 20).contains(&block) => Ok((sizes, Dim::constant(block))),
        Ok(_) => malformed(format!("`blocksize` is {block}")),
        Err(_) => malformed(format!("the operand is {ty}, expected four axes")),
    }
}

fn times(a: &Dim, b: &Dim) -> Result<Dim, Refusal> {
    product(&[a.clone(), b.clone()])
}

fn over(a: &Dim, b: &Dim) -> Result<Dim, Refusal> {
    a.div_exact(b)
        .map_or_else(|| malformed(format!("`blocksize` {b} does not divide the size {a}")), Ok)
}

fn depth_to_space(cx: &mut Cx, c: &Call) -> Done {
    let ([n, ch, h, w], b) = shuffle(cx, c)?;
    let depth = over(&ch, &times(&b, &b)?)?;
    let (split, perm) = match c.string("mode", "DCR")? {
        "DCR" => ([&n, &b, &b, &depth, &h, &w], vec![0, 3, 4, 1, 5, 2]),
        "CRD" => ([&n, &depth, &b, &b, &h, &w], vec![0, 1, 4, 2, 5, 3]),
        other => return c.unknown("mode", other),
    };
    let split = cx.reshape(c.input(0, "input")?, split.map(Dim::clone).to_vec())?;
    let moved = cx.transpose(&split, perm)?;
    Ok(vec![cx.reshape(&moved, vec![n, depth, times(&h, &b)?, times(&w, &b)?])?])
}

fn space_to_depth(cx: &mut Cx, c: &Call) -> Done {
    let ([n, ch, h, w], b) = shuffle(cx, c)?;
    let (rows, columns) = (over(&h, &b)?, over(&w, &b)?);
    let split = [&n, &ch, &rows, &b, &columns, &b].map(Dim::clone).to_vec();
    let split = cx.reshape(c.input(0, "input")?, split)?;
    let perm = match c.string("mode", "DCR")? {
        "DCR" => vec![0, 3, 5, 1, 2, 4],
        "CRD" => vec![0, 1, 3, 5, 2, 4],
        other => return c.unknown("mode", other),
    };
    let moved = cx.transpose(&split, perm)?;
    Ok(vec![cx.reshape(&moved, vec![n, times(&ch, &times(&b, &b)?)?, rows, columns])?])
}

/// Crops or pads around the middle. If the difference is odd, the smaller half is at the front.
fn center_crop_pad(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input_data")?;
    let ty = cx.ty(x)?;
    let target = cx.static_ints(c.input(1, "shape")?, "shape")?;
    let on = match c.ints("axes")? {
        Some(list) => {
            list.into_iter().map(|a| axis(a, ty.rank())).collect::<Result<Vec<_>, _>>()?
        }
        None => (0..ty.rank()).collect(),
    };
    if target.len() != on.len() {
        return malformed(format!("`shape` has {} entries for {} axes", target.len(), on.len()));
    }
    let (mut before, mut after) = (vec![0; ty.rank()], vec![0; ty.rank()]);
    for (&a, &t) in on.iter().zip(&target) {
        let Some(size) = ty.shape[a].as_const() else {
            return unsupported("a size depends on the batch");
        };
        // negative: cropped
        let difference = t.saturating_sub(size);
        before[a] = difference / 2;
        after[a] = difference - before[a];
    }
    Ok(vec![cx.emit(Op::Pad { before, after, mode: PadMode::Constant }, &[x])?])
}
