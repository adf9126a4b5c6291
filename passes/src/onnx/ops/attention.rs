//! `Attention` and `RotaryEmbedding`.

use super::*;
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{DType, Dim, Op, Tensor, ValueType};

pub(super) const TABLE: Table = &[("Attention", attention), ("RotaryEmbedding", rotary)];

/// Sizes of one attention. Lengths may be symbolic only where no mask has to be built.
pub(super) struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub queries: Dim,
    pub keys: Dim,
    /// Number of keys before the first query.
    pub past: Dim,
}

/// `[B, H, L, D]` → `[B, L, H·D]`.
pub(super) fn merge_heads(cx: &mut Cx, x: &Item) -> Result<Item, Refusal> {
    let ty = cx.ty(x)?;
    if ty.rank() != 4 {
        return malformed(format!("an operand is {ty}, expected four axes"));
    }
    let moved = cx.transpose(x, vec![0, 2, 1, 3])?;
    let s = cx.ty(&moved)?.shape;
    let width = movement::product(&s[2..])?;
    cx.reshape(&moved, vec![s[0].clone(), s[1].clone(), width])
}

/// `[B, L, H·D]` → `[B, H, L, D]`.
pub(super) fn split_heads(cx: &mut Cx, x: &Item, heads: usize) -> Result<Item, Refusal> {
    let ty = cx.ty(x)?;
    if ty.rank() != 3 {
        return malformed(format!("an operand is {ty}, expected three axes"));
    }
    let s = ty.shape;
    let heads = Dim::constant(heads as i64);
    let Some(d) = s[2].div_exact(&heads) else {
        return malformed(format!("{heads} heads do not divide {} channels", s[2]));
    };
    let split = cx.reshape(x, vec![s[0].clone(), s[1].clone(), heads, d])?;
    cx.transpose(&split, vec![0, 2, 1, 3])
}

/// Number of heads of an operand: from its shape if it has four axes, else from the attribute.
fn head_count(c: &Call, ty: &ValueType, attribute: &str) -> Result<usize, Refusal> {
    let heads = match ty.rank() {
        4 => ty.shape[1].as_const().unwrap_or(0),
        3 => c.required_int(attribute)?,
        _ => return malformed(format!("an operand is {ty}, expected three or four axes")),
    };
    match usize::try_from(heads) {
        Ok(n @ 1..) => Ok(n),
        _ => malformed(format!("it has {heads} heads")),
    }
}

fn attention(cx: &mut Cx, c: &Call) -> Done {
    let (q, mut k, mut v) =
        (c.input(0, "Q")?.clone(), c.input(1, "K")?.clone(), c.input(2, "V")?.clone());
    let (qt, kt) = (cx.ty(&q)?, cx.ty(&k)?);
    let (heads, kv_heads) =
        (head_count(c, &qt, "q_num_heads")?, head_count(c, &kt, "kv_num_heads")?);
    head_count(c, &cx.ty(&v)?, "kv_num_heads")?;
    let four = qt.rank() == 4;
    let mut past = Dim::constant(0);
    let mut present = vec![];
    if c.optional(4).is_some() || c.wants(1) || c.wants(2) {
        for (i, item) in [(4, &mut k), (5, &mut v)] {
            let wide = if cx.ty(item)?.rank() == 4 {
                item.clone()
            } else {
                split_heads(cx, item, kv_heads)?
            };
            *item = match c.optional(i) {
                Some(before) => {
                    past = cx.ty(before)?.shape.get(2).cloned().unwrap_or_default();
                    cx.emit(Op::Concat { axis: 2 }, &[before, &wide])?
                }
                None => wide,
            };
            present.push(item.clone());
        }
    }
    let [q, k, v] =
        [q, k, v].map(|x| if cx.ty(&x)?.rank() == 4 { merge_heads(cx, &x) } else { Ok(x) });
    let (q, k, v) = (q?, k?, v?);
    let (queries, keys) = (cx.ty(&q)?.shape[1].clone(), cx.ty(&k)?.shape[1].clone());
    let shape = Shape { heads, kv_heads, queries, keys, past };
    let scale = scale(cx, c, &q, heads)?;
    let softcap = c.float("softcap", 0.0)?;
    let (mask, causal) = mask(cx, c, &shape, cx.ty(&q)?.dtype)?;
    let mut operands = vec![Some(q.clone()), Some(k.clone()), Some(v)];
    operands.extend(mask.clone().map(Some));
    let y = cx
        .emit_all(
            Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits: 0 },
            &operands,
        )?
        .swap_remove(0);
    let y = if four { split_heads(cx, &y, heads)? } else { y };
    if present.is_empty() && c.wants(3) {
        present = vec![
            Item::Absent("it is not computed".into()),
            Item::Absent("it is not computed".into()),
        ];
    }
    let mut results = vec![y];
    results.extend(present);
    if c.wants(3) {
        let bound = if causal { causal_mask(cx, &shape)? } else { None };
        let explicit = join(cx, mask, bound)?;
        let scoring = Scoring { scale, softcap, mask: explicit };
        results.push(scores(cx, c, [&q, &k], &shape, scoring)?);
    }
    Ok(results)
}

/// The scale: 1/√(channels per head) unless it is given.
fn scale(cx: &Cx, c: &Call, q: &Item, heads: usize) -> Result<f32, Refusal> {
    if let Some(scale) = c.opt_float("scale")? {
        return Ok(scale);
    }
    match cx.ty(q)?.shape[2].as_const().map(|w| w / heads as i64) {
        Some(d @ 1..) => Ok((1.0 / (d as f64).sqrt()) as f32),
        _ => unsupported("the channels per head are not known"),
    }
}

/// The mask that remains, and whether the operator's own causal rule applies in addition.
fn mask(cx: &mut Cx, c: &Call, s: &Shape, dtype: DType) -> Result<(Option<Item>, bool), Refusal> {
    let mut mask = match c.optional(3) {
        Some(given) => Some(padded_mask(cx, given, s, dtype)?),
        None => None,
    };
    let causal = c.flag("is_causal", false)?;
    let lengths = c.optional(6);
    let aligned = s.past.add(&s.queries).as_ref() == Some(&s.keys);
    let own = causal && aligned && lengths.is_none();
    let mut bounds = vec![];
    if causal && !own {
        bounds.push((BinaryKind::LessOrEqual, 0));
    }
    if let w @ 0.. = c.int("right_window_size", -1)? {
        bounds.push((BinaryKind::LessOrEqual, w));
    }
    if let w @ 0.. = c.int("left_window_size", -1)? {
        bounds.push((BinaryKind::GreaterOrEqual, -w.min(1 << 40)));
    }
    if let Some(lengths) = lengths {
        let column = lengths_column(cx, lengths)?;
        let positions = positions(cx, &s.keys, 3)?;
        let inside = cx.binary(BinaryKind::Less, &positions, &column)?;
        mask = join(cx, mask, Some(inside))?;
    }
    for (kind, distance) in bounds {
        let bound = distance_mask(cx, s, lengths, kind, distance)?;
        mask = join(cx, mask, Some(bound))?;
    }
    Ok((mask, own))
}

/// `0, 1, 2 …` along axis 2 (queries) or 3 (keys) of the scores.
pub(super) fn positions(cx: &mut Cx, count: &Dim, axis: usize) -> Result<Item, Refusal> {
    let Some(n @ 0..=1_048_576) = count.as_const() else {
        return unsupported(format!("a mask over {count} positions"));
    };
    let mut shape = vec![1, 1, 1, 1];
    shape[axis] = n as usize;
    Ok(cx.constant(Tensor::from_i64(&shape, &(0..n).collect::<Vec<_>>())))
}

/// Number of valid keys per image, `[B, 1, 1, 1]`.
pub(super) fn lengths_column(cx: &mut Cx, lengths: &Item) -> Result<Item, Refusal> {
    let batch = cx.ty(lengths)?.shape.first().cloned().unwrap_or(1.into());
    let lengths = cx.cast(lengths, DType::I64)?;
    cx.reshape(&lengths, vec![batch, 1.into(), 1.into(), 1.into()])
}

/// Whether `key - (query + past) ⋛ distance`; `past` is a size, or the valid keys less the queries.
pub(super) fn distance_mask(
    cx: &mut Cx,
    s: &Shape,
    lengths: Option<&Item>,
    kind: BinaryKind,
    distance: i64,
) -> Result<Item, Refusal> {
    let (rows, columns) = (positions(cx, &s.queries, 2)?, positions(cx, &s.keys, 3)?);
    let past = match lengths {
        Some(lengths) => {
            let column = lengths_column(cx, lengths)?;
            let queries = cx.constant(Tensor::from_i64(&[], &[s.queries.as_const().unwrap_or(0)]));
            cx.binary(BinaryKind::Sub, &column, &queries)?
        }
        None => match s.past.as_const() {
            Some(past) => cx.constant(Tensor::from_i64(&[], &[past])),
            None => return unsupported("the length of the past depends on the batch"),
        },
    };
    let places = cx.binary(BinaryKind::Add, &rows, &past)?;
    let difference = cx.binary(BinaryKind::Sub, &columns, &places)?;
    let limit = cx.constant(Tensor::from_i64(&[], &[distance]));
    cx.binary(kind, &difference, &limit)
}

fn causal_mask(cx: &mut Cx, s: &Shape) -> Result<Option<Item>, Refusal> {
    distance_mask(cx, s, None, BinaryKind::LessOrEqual, 0).map(Some)
}

/// Joins two masks, the second of which is bool.
pub(super) fn join(cx: &mut Cx, a: Option<Item>, b: Option<Item>) -> Result<Option<Item>, Refusal> {
    let (Some(a), Some(b)) = (a.clone(), b.clone()) else { return Ok(a.or(b)) };
    let dtype = cx.ty(&a)?.dtype;
    if dtype == DType::Bool {
        return cx.binary(BinaryKind::And, &a, &b).map(Some);
    }
    let hidden = cx.scalar(f64::NEG_INFINITY, dtype);
    cx.emit(Op::Where, &[&b, &a, &hidden]).map(Some)
}

/// The given mask in the type of the queries. A mask that covers fewer keys hides the others.
fn padded_mask(cx: &mut Cx, mask: &Item, s: &Shape, dtype: DType) -> Result<Item, Refusal> {
    let ty = cx.ty(mask)?;
    let mask = if ty.dtype == DType::Bool { mask.clone() } else { cx.cast(mask, dtype)? };
    let Some(last) = ty.shape.last() else { return Ok(mask) };
    let missing = s.keys.sub(last).and_then(|d| d.as_const()).unwrap_or(0);
    if missing <= 0 || last.is(1) {
        return Ok(mask);
    }
    let fill = match ty.dtype {
        DType::Bool => cx.constant(Tensor::from_bool(&[], &[false])),
        _ => cx.scalar(f64::NEG_INFINITY, dtype),
    };
    let (before, mut after) = (vec![0; ty.rank()], vec![0; ty.rank()]);
    after[ty.rank() - 1] = missing;
    cx.emit(Op::Pad { before, after, mode: Default::default() }, &[&mask, &fill])
}

/// The operations on the products of queries and keys before the softmax.
struct Scoring {
    scale: f32,
    /// 0 means none.
    softcap: f32,
    mask: Option<Item>,
}

/// The fourth output: the scores at the stage of `qk_matmul_output_mode`, `[B, H, Lq, Lk]`.
fn scores(
    cx: &mut Cx,
    c: &Call,
    [q, k]: [&Item; 2],
    s: &Shape,
    scoring: Scoring,
) -> Result<Item, Refusal> {
    let Scoring { scale, softcap, mask } = scoring;
    let mode = c.int("qk_matmul_output_mode", 0)?;
    let dtype = cx.ty(q)?.dtype;
    let q = split_heads(cx, q, s.heads)?;
    let mut k = split_heads(cx, k, s.kv_heads)?;
    if s.heads != s.kv_heads {
        let head = |h: usize| (h * s.kv_heads / s.heads) as i64;
        let order = Tensor::from_i64(&[s.heads], &(0..s.heads).map(head).collect::<Vec<_>>());
        k = cx.emit(Op::Gather { axis: 1 }, &[&k, &cx.constant(order)])?;
    }
    let k = cx.transpose(&k, vec![0, 1, 3, 2])?;
    let raw = cx.emit(Op::MatMul, &[&q, &k])?;
    let factor = cx.scalar(scale as f64, dtype);
    let mut y = cx.binary(BinaryKind::Mul, &raw, &factor)?;
    if mode >= 1 && softcap != 0.0 {
        let cap = cx.scalar(softcap as f64, dtype);
        let inner = cx.binary(BinaryKind::Div, &y, &cap)?;
        let inner = cx.unary(UnaryKind::Tanh, &inner)?;
        y = cx.binary(BinaryKind::Mul, &inner, &cap)?;
    }
    if let Some(mask) = mask.filter(|_| mode >= 2) {
        y = match cx.ty(&mask)?.dtype {
            DType::Bool => {
                let hidden = cx.scalar(f64::NEG_INFINITY, dtype);
                cx.emit(Op::Where, &[&mask, &y, &hidden])?
            }
            _ => cx.binary(BinaryKind::Add, &y, &mask)?,
        };
    }
    if mode < 3 {
        return Ok(y);
    }
    // a row that sees no key is 0, not NaN
    let y = cx.emit(Op::Softmax { axis: 3 }, &[&y])?;
    let nan = cx.unary(UnaryKind::IsNan, &y)?;
    let zero = cx.scalar(0.0, dtype);
    cx.emit(Op::Where, &[&nan, &zero, &y])
}

/// Rotates pairs of channels by angles per position.
fn rotary(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let ty = cx.ty(x)?;
    let x = match ty.rank() {
        4 => cx.transpose(x, vec![0, 2, 1, 3])?,
        _ => {
            let heads = head_count(c, &ty, "num_heads")?;
            let split = split_heads(cx, x, heads)?;
            cx.transpose(&split, vec![0, 2, 1, 3])?
        }
    };
    let s = cx.ty(&x)?.shape;
    let Some(width) = s[3].as_const() else {
        return unsupported("the channels per head are not known");
    };
    let turned = match c.int("rotary_embedding_dim", 0)? {
        0 => width,
        d if (0..=width).contains(&d) && d % 2 == 0 => d,
        d => return malformed(format!("`rotary_embedding_dim` is {d} of {width} channels")),
    };
    let [cos, sin] = [(1, "cos_cache"), (2, "sin_cache")].map(|(i, what)| angles(cx, c, i, what));
    let whole = rotate(cx, &x, turned, [&cos?, &sin?], c.flag("interleaved", false)?)?;
    let back = if ty.rank() == 4 {
        cx.transpose(&whole, vec![0, 2, 1, 3])?
    } else {
        cx.reshape(&whole, ty.shape)?
    };
    Ok(vec![back])
}

/// Turns the first `turned` channels of each head of `x: [B, L, H, D]`; cosines and sines are
/// `[B or 1, L, 1, turned / 2]`.
pub(super) fn rotate(
    cx: &mut Cx,
    x: &Item,
    turned: i64,
    [cos, sin]: [&Item; 2],
    interleaved: bool,
) -> Result<Item, Refusal> {
    let width = cx.ty(x)?.shape[3].clone();
    let part = cx.slice(x, 3, 0.into(), turned.into())?;
    let part = turn(cx, &part, cos, sin, interleaved)?;
    if width.is(turned) {
        return Ok(part);
    }
    let rest = cx.slice(x, 3, turned.into(), width)?;
    cx.emit(Op::Concat { axis: 3 }, &[&part, &rest])
}

/// Cosines or sines as `[B, L, 1, half]`.
fn angles(cx: &mut Cx, c: &Call, i: usize, what: &str) -> Result<Item, Refusal> {
    let table = c.input(i, what)?;
    let table = match c.optional(3) {
        Some(positions) => cx.emit(Op::Gather { axis: 0 }, &[table, positions])?,
        None => table.clone(),
    };
    let mut shape = cx.ty(&table)?.shape;
    if shape.len() != 3 {
        return malformed(format!("`{what}` is {}", cx.ty(&table)?));
    }
    shape.insert(2, 1.into());
    cx.reshape(&table, shape)
}

/// `(a cos - b sin, a sin + b cos)` for pairs (a, b), which are neighbours if interleaved, else
/// elements of the two halves.
fn turn(cx: &mut Cx, x: &Item, cos: &Item, sin: &Item, interleaved: bool) -> Result<Item, Refusal> {
    let shape = cx.ty(x)?.shape;
    let Some(half) = shape[3].div_exact(&2.into()) else {
        return malformed(format!("{} channels are turned", shape[3]));
    };
    let pairs = [
        &shape[..3],
        &if interleaved { [half.clone(), 2.into()] } else { [2.into(), half.clone()] },
    ]
    .concat();
    let axis = if interleaved { 4 } else { 3 };
    let pairs = cx.reshape(x, pairs)?;
    let mut half_of = |i: i64| -> Result<Item, Refusal> {
        let part = cx.slice(&pairs, axis, i.into(), (i + 1).into())?;
        cx.reshape(&part, [&shape[..3], std::slice::from_ref(&half)].concat())
    };
    let (a, b) = (half_of(0)?, half_of(1)?);
    let mut product = |x: &Item, y: &Item| cx.binary(BinaryKind::Mul, x, y);
    let (ac, bs, asin, bc) =
        (product(&a, cos)?, product(&b, sin)?, product(&a, sin)?, product(&b, cos)?);
    let real = cx.binary(BinaryKind::Sub, &ac, &bs)?;
    let imaginary = cx.binary(BinaryKind::Add, &asin, &bc)?;
    let mut narrow = cx.ty(&real)?.shape;
    narrow.insert(axis, 1.into());
    let (real, imaginary) = (cx.reshape(&real, narrow.clone())?, cx.reshape(&imaginary, narrow)?);
    let joined = cx.emit(Op::Concat { axis }, &[&real, &imaginary])?;
    cx.reshape(&joined, shape)
}
