//! `Attention` and `MultiHeadAttention`.

use super::*;
use crate::onnx::ops::attention::{Shape, merge_heads, split_heads};
use cqc_proto::{Dim, ValueType};

pub(super) const TABLE: Table =
    &[("Attention", attention), ("MultiHeadAttention", multi_head_attention)];

/// Queries, keys and values as `[B, length, heads · channels]`, and the other operands of the
/// scores.
pub(super) struct Operands<'a> {
    pub heads: usize,
    pub q: Item,
    pub k: Item,
    pub v: Item,
    /// Number of keys before the first query.
    pub past: Dim,
    /// The keys that may be seen, in one of the forms of `mask.rs`.
    pub padding: Option<&'a Item>,
    /// A tensor that is added to the scores.
    pub bias: Option<&'a Item>,
}

pub(super) fn heads(c: &Call, attribute: &str) -> Result<usize, Refusal> {
    let heads = c.required_int(attribute)?;
    match usize::try_from(heads) {
        Ok(n @ 1..=65536) => Ok(n),
        _ => malformed(format!("`{attribute}` is {heads}")),
    }
}

/// The type of an operand with three axes, or a refusal that names the operand.
pub(super) fn three(cx: &Cx, item: &Item, what: &str) -> Result<ValueType, Refusal> {
    let ty = cx.ty(item)?;
    if ty.rank() != 3 {
        return malformed(format!("`{what}` is {ty}, expected three axes"));
    }
    Ok(ty)
}

/// `scale`, or 1/√(channels per head) if it is absent or 0.
pub(super) fn scale(cx: &Cx, c: &Call, q: &Item, heads: usize) -> Result<f32, Refusal> {
    match c.float("scale", 0.0)? {
        0.0 => {}
        given => return Ok(given),
    }
    match cx.ty(q)?.shape[2].as_const().map(|w| w / heads as i64) {
        Some(d @ 1..) => Ok((1.0 / (d as f64).sqrt()) as f32),
        _ => unsupported("the channels per head are not known"),
    }
}

fn attend(cx: &mut Cx, c: &Call, o: Operands) -> Result<Item, Refusal> {
    let (qt, kt) = (three(cx, &o.q, "query")?, three(cx, &o.k, "key")?);
    three(cx, &o.v, "value")?;
    let shape = Shape {
        heads: o.heads,
        kv_heads: o.heads,
        queries: qt.shape[1].clone(),
        keys: kt.shape[1].clone(),
        past: o.past,
    };
    let causal = c.flag("unidirectional", false)?;
    if causal && shape.past.add(&shape.queries).as_ref() != Some(&shape.keys) {
        return unsupported(format!(
            "`unidirectional` with {} queries over {} keys",
            shape.queries, shape.keys
        ));
    }
    let mask = mask::additive(cx, c, &shape, &qt.shape[0], qt.dtype, [o.padding, o.bias])?;
    let scale = scale(cx, c, &o.q, o.heads)?;
    let op = Op::Attention {
        heads: o.heads,
        kv_heads: o.heads,
        scale,
        causal,
        softcap: 0.0,
        softmax_bits: 0,
    };
    let mut operands = vec![Some(o.q), Some(o.k), Some(o.v)];
    operands.extend(mask.map(Some));
    Ok(cx.emit_all(op, &operands)?.swap_remove(0))
}

/// Appends keys or values to those of the past, `[B, H, past, D]`. The result is `[B, length, H ·
/// D]`, and also `[B, H, length, D]` if that is wanted.
fn behind(
    cx: &mut Cx,
    x: &Item,
    past: Option<&Item>,
    heads: usize,
    present: bool,
) -> Result<(Item, Option<Item>), Refusal> {
    if past.is_none() && !present {
        return Ok((x.clone(), None));
    }
    let mut split = split_heads(cx, x, heads)?;
    let Some(past) = past else { return Ok((x.clone(), Some(split))) };
    split = cx.emit(Op::Concat { axis: 2 }, &[past, &split])?;
    Ok((merge_heads(cx, &split)?, Some(split)))
}

fn length_of(cx: &Cx, past: &Item) -> Result<Dim, Refusal> {
    let ty = cx.ty(past)?;
    if ty.rank() != 4 {
        return malformed(format!("the past is {ty}, expected four axes"));
    }
    Ok(ty.shape[2].clone())
}

fn no_shared_buffer(c: &Call) -> Result<(), Refusal> {
    if c.flag("past_present_share_buffer", false)? {
        return unsupported("a buffer shared by past and present is not supported");
    }
    Ok(())
}

/// Widths of queries, keys and values, which are side by side.
fn widths(cx: &Cx, c: &Call, weights: &Item) -> Result<[Dim; 3], Refusal> {
    let ty = cx.ty(weights)?;
    if ty.rank() != 2 {
        return malformed(format!("`weights` is {ty}, expected two axes"));
    }
    let total = &ty.shape[1];
    let Some(given) = c.ints("qkv_hidden_sizes")? else {
        return match total.div_exact(&3.into()) {
            Some(width) => Ok([width.clone(), width.clone(), width]),
            None => malformed(format!("`weights` has {total} columns, no multiple of 3")),
        };
    };
    match given[..] {
        [q, k, v]
            if q > 0
                && q == k
                && v > 0
                && q.checked_add(k).and_then(|n| n.checked_add(v)) == total.as_const() =>
        {
            Ok([q.into(), k.into(), v.into()])
        }
        _ => malformed(format!("`qkv_hidden_sizes` is {given:?} for {total} columns of weights")),
    }
}

/// The parts of the last axis that have these widths.
fn parts<const N: usize>(cx: &mut Cx, x: &Item, widths: &[Dim; N]) -> Result<[Item; N], Refusal> {
    let last = axis(-1, cx.ty(x)?.rank())?;
    let mut start = Dim::constant(0);
    let mut parts = Vec::new();
    for width in widths {
        let Some(end) = start.add(width) else { return malformed("a width is too large") };
        parts.push(cx.slice(x, last, start, end.clone())?);
        start = end;
    }
    Ok(parts.try_into().expect("one part per width"))
}

/// `x + bias`. A bias of zeros, which the optimizer writes where there is none, adds nothing.
fn biased(cx: &mut Cx, x: &Item, bias: Option<&Item>) -> Result<Item, Refusal> {
    let zeros = |t: &cqc_proto::Tensor| t.to_f64_vec().iter().all(|&v| v == 0.0);
    plus(cx, x, bias.filter(|b| !b.tensor().is_some_and(zeros)))
}

/// Queries, keys and values are products of one input with weights that are side by side.
fn attention(cx: &mut Cx, c: &Call) -> Done {
    let heads = heads(c, "num_heads")?;
    no_shared_buffer(c)?;
    if c.flag("do_rotary", false)? {
        return unsupported("`do_rotary` is not supported");
    }
    let (x, weights) = (c.input(0, "input")?, c.input(1, "weights")?);
    three(cx, x, "input")?;
    let widths = widths(cx, c, weights)?;
    let weights = parts(cx, weights, &widths)?;
    let biases = c.optional(2).map(|bias| parts(cx, bias, &widths)).transpose()?;
    let mut projected = Vec::new();
    for (i, w) in weights.iter().enumerate() {
        let product = cx.emit(Op::MatMul, &[x, w])?;
        projected.push(biased(cx, &product, biases.as_ref().map(|b| &b[i]))?);
    }
    let [q, mut k, mut v]: [Item; 3] = projected.try_into().expect("three products");
    let past = match c.optional(4) {
        Some(past) => Some(halves(cx, past)?),
        None => None,
    };
    let length = past.as_ref().map(|p| length_of(cx, &p[0])).transpose()?.unwrap_or_default();
    let mut present = Vec::new();
    for (i, item) in [&mut k, &mut v].into_iter().enumerate() {
        let (whole, split) = behind(cx, item, past.as_ref().map(|p| &p[i]), heads, c.wants(1))?;
        *item = whole;
        present.extend(split);
    }
    let operands =
        Operands { heads, q, k, v, past: length, padding: c.optional(3), bias: c.optional(5) };
    let mut results = vec![attend(cx, c, operands)?];
    if c.wants(1) {
        let mut both = Vec::new();
        for item in &present {
            let mut shape = cx.ty(item)?.shape;
            shape.insert(0, 1.into());
            both.push(cx.reshape(item, shape)?);
        }
        results.push(cx.emit(Op::Concat { axis: 0 }, &both.iter().collect::<Vec<_>>())?);
    }
    Ok(results)
}

/// Keys and values of a past `[2, B, H, length, D]`.
fn halves(cx: &mut Cx, past: &Item) -> Result<[Item; 2], Refusal> {
    let ty = cx.ty(past)?;
    if ty.rank() != 5 || !ty.shape[0].is(2) {
        return malformed(format!("`past` is {ty}, expected five axes, the first of size 2"));
    }
    let mut half = |i: i64| {
        let part = cx.slice(past, 0, i.into(), (i + 1).into())?;
        cx.reshape(&part, ty.shape[1..].to_vec())
    };
    Ok([half(0)?, half(1)?])
}

/// The parts of `[B, L, H, N, D]`, each as `[B, L, H · D]`.
fn unpacked<const N: usize>(
    cx: &mut Cx,
    x: &Item,
    heads: usize,
    what: &str,
) -> Result<[Item; N], Refusal> {
    let ty = cx.ty(x)?;
    let [batch, length, own, count, width] = &ty.shape[..] else {
        return malformed(format!("`{what}` is {ty}, expected five axes"));
    };
    if !own.is(heads as i64) || !count.is(N as i64) {
        return malformed(format!("`{what}` is {ty}, expected [batch, length, {heads}, {N}, …]"));
    }
    let Some(channels) = own.mul(width) else { return malformed("it has too many channels") };
    let mut packed = Vec::new();
    for i in 0..N as i64 {
        let part = cx.slice(x, 3, i.into(), (i + 1).into())?;
        packed.push(cx.reshape(&part, vec![batch.clone(), length.clone(), channels.clone()])?);
    }
    Ok(packed.try_into().expect("one part each"))
}

/// Queries, keys and values are separate, or packed in one or two operands. Keys and values with
/// four axes, `[B, H, length, D]`, need no further step.
fn multi_head_attention(cx: &mut Cx, c: &Call) -> Done {
    let heads = heads(c, "num_heads")?;
    if c.optional(8).is_some() || c.optional(9).is_some() {
        return unsupported("a buffer shared by past and present is not supported");
    }
    let query = c.input(0, "query")?;
    let bias = c.optional(3);
    let (key, value) = (c.optional(1), c.optional(2));
    let key_rank = key.map(|k| cx.ty(k)).transpose()?.map(|t| t.rank());
    let [q, mut k, mut v] = match (key, key_rank) {
        (None, _) => unpacked::<3>(cx, query, heads, "query")?,
        (Some(key), Some(5)) => {
            let [k, v] = unpacked::<2>(cx, key, heads, "key")?;
            [query.clone(), k, v]
        }
        (Some(key), Some(4)) => {
            let value = c.input(2, "value")?;
            if cx.ty(value)?.rank() != 4 || bias.is_some() {
                return malformed("a key with four axes wants a value with four axes and no bias");
            }
            [query.clone(), merge_heads(cx, key)?, merge_heads(cx, value)?]
        }
        (Some(key), _) => [query.clone(), key.clone(), c.input(2, "value")?.clone()],
    };
    if value.is_some() && !matches!(key_rank, Some(3 | 4)) {
        return malformed("there is a `value` beside packed keys and values");
    }
    let mut widths = Vec::new();
    for (item, what) in [(&q, "query"), (&k, "key"), (&v, "value")] {
        widths.push(three(cx, item, what)?.shape[2].clone());
    }
    let widths: [Dim; 3] = widths.try_into().expect("three operands");
    let mut q = q;
    if let Some(bias) = bias {
        let biases = parts(cx, bias, &widths)?;
        for (item, bias) in [&mut q, &mut k, &mut v].into_iter().zip(&biases) {
            *item = biased(cx, item, Some(bias))?;
        }
    }
    let pasts = [c.optional(6), c.optional(7)];
    let length = pasts[0].map(|p| length_of(cx, p)).transpose()?.unwrap_or_default();
    let mut present = Vec::new();
    for (i, item) in [&mut k, &mut v].into_iter().enumerate() {
        let (whole, split) = behind(cx, item, pasts[i], heads, c.wants(i + 1))?;
        *item = whole;
        let absent = || Item::Absent("it is not computed".into());
        present.push(split.unwrap_or_else(absent));
    }
    let operands =
        Operands { heads, q, k, v, past: length, padding: c.optional(4), bias: c.optional(5) };
    let mut results = vec![attend(cx, c, operands)?];
    results.extend(present);
    Ok(results)
}
