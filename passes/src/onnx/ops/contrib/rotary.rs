//! `RotaryEmbedding` of this domain, whose operands are in another order than the standard's.

use super::*;
use crate::onnx::ops::attention::rotate;
use cqc_proto::{DType, Dim, Tensor};

pub(super) const TABLE: Table = &[("RotaryEmbedding", rotary)];

/// Positions per image and place, `[B or 1, L]`. A single number is the position of the first
/// place.
fn places(cx: &mut Cx, positions: &Item, length: &Dim) -> Result<Item, Refusal> {
    let ty = cx.ty(positions)?;
    match &ty.shape[..] {
        [_, l] if l == length => Ok(positions.clone()),
        [one] if one.is(1) => {
            let counted = counted(cx, length)?;
            let first = cx.cast(positions, DType::I64)?;
            cx.binary(BinaryKind::Add, &counted, &first)
        }
        _ => malformed(format!("`position_ids` is {ty}, expected [1] or [batch, {length}]")),
    }
}

/// `[[0, 1, 2 …]]`
fn counted(cx: &Cx, length: &Dim) -> Result<Item, Refusal> {
    let Some(n @ 0..=1_048_576) = length.as_const() else {
        return unsupported(format!("a rotation of {length} places"));
    };
    Ok(cx.constant(Tensor::from_i64(&[1, n as usize], &(0..n).collect::<Vec<_>>())))
}

/// A table of cosines or sines at the positions, as `[B or 1, L, 1, half]`.
fn angles(cx: &mut Cx, table: &Item, places: &Item) -> Result<Item, Refusal> {
    let ty = cx.ty(table)?;
    if ty.rank() != 2 {
        return malformed(format!("a table of angles is {ty}, expected two axes"));
    }
    let rows = cx.emit(Op::Gather { axis: 0 }, &[table, places])?;
    let mut shape = cx.ty(&rows)?.shape;
    shape.insert(2, 1.into());
    cx.reshape(&rows, shape)
}

/// Rotates `x: [B, L, H, D]`. The size of the tables is the number of channels of a head that are
/// turned.
pub(super) fn turned(
    cx: &mut Cx,
    x: &Item,
    positions: Option<&Item>,
    tables: [&Item; 2],
    interleaved: bool,
) -> Result<Item, Refusal> {
    let s = cx.ty(x)?.shape;
    let width = cx.ty(tables[0])?.shape.last().and_then(Dim::as_const);
    let turned = match (width.and_then(|w| w.checked_mul(2)), s[3].as_const()) {
        (Some(turned), Some(own)) if turned <= own => turned,
        _ => {
            return malformed(format!(
                "{width:?} angles per place turn heads of {} channels",
                s[3]
            ));
        }
    };
    let places = match positions {
        Some(positions) => places(cx, positions, &s[1])?,
        None => counted(cx, &s[1])?,
    };
    let (cos, sin) = (angles(cx, tables[0], &places)?, angles(cx, tables[1], &places)?);
    rotate(cx, x, turned, [&cos, &sin], interleaved)
}

fn rotary(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "input")?;
    let ty = cx.ty(x)?;
    if c.float("scale", 1.0)? != 1.0 {
        return unsupported("`scale` other than 1 is not supported");
    }
    let tables = [c.input(2, "cos_cache")?, c.input(3, "sin_cache")?];
    let half = cx.ty(tables[0])?.shape.last().and_then(Dim::as_const).unwrap_or(0);
    let dim = c.int("rotary_embedding_dim", 0)?;
    if dim != 0 && Some(dim) != half.checked_mul(2) {
        return malformed(format!(
            "`rotary_embedding_dim` is {dim}, the tables have {half} columns"
        ));
    }
    let wide = match &ty.shape[..] {
        [_, _, _, _] => cx.transpose(x, vec![0, 2, 1, 3])?,
        [batch, length, channels] => {
            let width = match c.int("num_heads", 0)? {
                0 => half.checked_mul(2).map(Dim::constant),
                n => channels.div_exact(&n.into()),
            };
            let count = width.as_ref().and_then(|w| channels.div_exact(w));
            let (Some(width), Some(count)) = (width, count) else {
                return malformed(format!("{channels} channels do not divide into heads"));
            };
            cx.reshape(x, vec![batch.clone(), length.clone(), count, width])?
        }
        _ => return malformed(format!("the input is {ty}, expected three or four axes")),
    };
    let positions = c.input(1, "position_ids")?;
    let y = turned(cx, &wide, Some(positions), tables, c.flag("interleaved", false)?)?;
    Ok(vec![match ty.rank() {
        4 => cx.transpose(&y, vec![0, 2, 1, 3])?,
        _ => cx.reshape(&y, ty.shape)?,
    }])
}
