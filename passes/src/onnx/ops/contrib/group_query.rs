//! `GroupQueryAttention` without a past: the first pass over a sequence.

use super::attention::{heads, scale, three};
use super::*;
use crate::onnx::ops::attention::{
    Shape, distance_mask, join, lengths_column, positions, split_heads,
};
use cqc_proto::{DType, Dim};

pub(super) const TABLE: Table = &[("GroupQueryAttention", group_query)];

/// Refuses operands and attributes that ask for more than one pass over a sequence of floats.
fn refuse_other_forms(cx: &Cx, c: &Call) -> Result<(), Refusal> {
    for i in [3, 4] {
        if let Some(past) = c.optional(i)
            && !cx.ty(past)?.shape.iter().any(|d| d.is(0))
        {
            return unsupported("keys and values of a past are not supported");
        }
    }
    for (i, what) in [(11, "head_sink"), (14, "q_norm_weight"), (15, "k_norm_weight")] {
        if c.optional(i).is_some() {
            return unsupported(format!("the operand `{what}` is not supported"));
        }
    }
    for (what, usual) in [("smooth_softmax", [-1, 0]), ("qk_output", [0, 0])] {
        let value = c.int(what, usual[0])?;
        if !usual.contains(&value) {
            return unsupported(format!("`{what}` = {value} is not supported"));
        }
    }
    if c.optional(16).is_some() || c.flag("sliding_window_cache", false)? {
        return unsupported("a cache of keys and values is not supported");
    }
    Ok(())
}

/// Queries, keys and values, each `[B, L, heads · D]`. They are packed side by side if there is no
/// key.
fn separate(cx: &mut Cx, c: &Call, counts: [usize; 3]) -> Result<[Item; 3], Refusal> {
    let query = c.input(0, "query")?;
    let ty = three(cx, query, "query")?;
    if let Some(key) = c.optional(1) {
        return Ok([query.clone(), key.clone(), c.input(2, "value")?.clone()]);
    }
    let all: usize = counts.iter().sum();
    let Some(width) = ty.shape[2].div_exact(&(all as i64).into()).and_then(|w| w.as_const()) else {
        return malformed(format!("`query` is {ty}, in {all} heads"));
    };
    let mut start = 0;
    let mut parts = Vec::new();
    for count in counts {
        let end = start + count as i64 * width;
        parts.push(cx.slice(query, 2, start.into(), end.into())?);
        start = end;
    }
    Ok(parts.try_into().expect("three parts"))
}

/// `[B, L, heads · D]`, rotated.
fn rotated(cx: &mut Cx, c: &Call, x: &Item, heads: usize) -> Result<Item, Refusal> {
    let ty = three(cx, x, "an operand")?;
    let count = Dim::constant(heads as i64);
    let Some(width) = ty.shape[2].div_exact(&count) else {
        return malformed(format!("{heads} heads do not divide {} channels", ty.shape[2]));
    };
    let wide = vec![ty.shape[0].clone(), ty.shape[1].clone(), count, width];
    let wide = cx.reshape(x, wide)?;
    let tables = [c.input(7, "cos_cache")?, c.input(8, "sin_cache")?];
    let interleaved = c.flag("rotary_interleaved", false)?;
    // of the positions of a first pass, the kernel reads only the first one
    let first = match c.optional(9) {
        Some(ids) => {
            let flat = movement::product(&cx.ty(ids)?.shape)?;
            let flat = cx.reshape(ids, vec![flat])?;
            Some(cx.slice(&flat, 0, 0.into(), 1.into())?)
        }
        None => None,
    };
    let y = rotary::turned(cx, &wide, first.as_ref(), tables, interleaved)?;
    cx.reshape(&y, ty.shape)
}

fn group_query(cx: &mut Cx, c: &Call) -> Done {
    refuse_other_forms(cx, c)?;
    let (heads, kv_heads) = (heads(c, "num_heads")?, heads(c, "kv_num_heads")?);
    let [mut q, mut k, v] = separate(cx, c, [heads, kv_heads, kv_heads])?;
    if c.flag("do_rotary", false)? {
        q = rotated(cx, c, &q, heads)?;
        k = rotated(cx, c, &k, kv_heads)?;
    }
    let (qt, kt) = (three(cx, &q, "query")?, three(cx, &k, "key")?);
    let (queries, keys) = (qt.shape[1].clone(), kt.shape[1].clone());
    let causal = c.flag("causal", true)?;
    if causal && queries != keys {
        return unsupported(format!("{queries} causal queries over {keys} keys"));
    }
    let shape = Shape { heads, kv_heads, queries, keys, past: Dim::constant(0) };
    let mask = mask(cx, c, &shape, qt.dtype, causal)?;
    let (scale, softcap) = (scale(cx, c, &q, heads)?, c.float("softcap", 0.0)?.max(0.0));
    let op = Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits: 0 };
    let mut operands = vec![Some(q), Some(k.clone()), Some(v.clone())];
    operands.extend(mask.map(Some));
    let mut results = cx.emit_all(op, &operands)?;
    for (i, item) in [k, v].iter().enumerate() {
        results.push(match c.wants(i + 1) {
            true => split_heads(cx, item, kv_heads)?,
            false => Item::Absent("it is not computed".into()),
        });
    }
    Ok(results)
}

/// The given bias, and a mask for the keys that are hidden besides the causal rule: a window, or
/// the ends of sequences where later keys may be seen.
fn mask(
    cx: &mut Cx,
    c: &Call,
    s: &Shape,
    dtype: DType,
    causal: bool,
) -> Result<Option<Item>, Refusal> {
    let mut mask = match c.optional(10) {
        Some(bias) => Some(cx.cast(bias, dtype)?),
        None => None,
    };
    let window = c.int("local_window_size", -1)?;
    if window >= 0 && !causal {
        return malformed(format!("`local_window_size` is {window} where `causal` is 0"));
    }
    if window > 0 {
        let first = 1 - window.min(1 << 40);
        let inside = distance_mask(cx, s, None, BinaryKind::GreaterOrEqual, first)?;
        mask = join(cx, mask, Some(inside))?;
    }
    if !causal {
        let last = lengths_column(cx, c.input(5, "seqlens_k")?)?;
        let places = positions(cx, &s.keys, 3)?;
        let inside = cx.binary(BinaryKind::LessOrEqual, &places, &last)?;
        mask = join(cx, mask, Some(inside))?;
    }
    Ok(mask)
}
