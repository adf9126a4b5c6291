//! Attention and the other composite operators of denoisers.

use super::*;
use crate::onnx::export::Qdq;
use cqc_proto::op::{ReduceKind, SOFTMAX_BF16};
use cqc_proto::{DType, Dim, Tensor};
use std::f64::consts::{LN_2, LOG2_E};

pub(super) fn attention(cx: &mut Cx, c: &Call, op: &Op) -> ExportResult {
    let Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits } = op else {
        unreachable!("dispatched by `one`")
    };
    let [(q, round_q), (k, round_k), (v, round_v)] =
        [0, 1, 2].map(|i| cx.split_rounding(c.input(i)));
    let dtype = cx.dtype(q);
    let (queries, keys) = (cx.shape(q)[1].clone(), cx.shape(k)[1].clone());
    let mut q = split(cx, q, *heads)?;
    let factor = (*scale != 1.0).then(|| cx.scalar(*scale as f64, dtype));
    // no operator may be between rounding and the product
    if let (Some(factor), None) = (factor, &round_q) {
        q = cx.binary(BinaryKind::Mul, q, factor)?;
    }
    let (mut k, mut v) = (split(cx, k, *kv_heads)?, split(cx, v, *kv_heads)?);
    if heads != kv_heads {
        let order: Vec<i64> = (0..*heads).map(|h| (h / (heads / kv_heads)) as i64).collect();
        let order = cx.ints(&order);
        (k, v) = (
            cx.emit(Op::Gather { axis: 1 }, &[k, order])?,
            cx.emit(Op::Gather { axis: 1 }, &[v, order])?,
        );
    }
    let k = cx.transpose(k, &[0, 1, 3, 2]);
    let (q, k, v) = (
        cx.round(q, round_q.as_ref())?,
        cx.round(k, round_k.as_ref())?,
        cx.round(v, round_v.as_ref())?,
    );
    let mut scores = cx.emit(Op::MatMul, &[q, k])?;
    if let (Some(factor), Some(_)) = (factor, &round_q) {
        scores = cx.binary(BinaryKind::Mul, scores, factor)?;
    }
    if *softcap != 0.0 {
        let cap = cx.scalar(*softcap as f64, dtype);
        let inner = cx.binary(BinaryKind::Div, scores, cap)?;
        let inner = cx.unary(UnaryKind::Tanh, inner)?;
        scores = cx.binary(BinaryKind::Mul, inner, cap)?;
    }
    if let Some(mask) = c.optional(3) {
        scores = masked(cx, scores, mask)?;
    }
    if *causal {
        let mask = causal_mask(cx, &queries, &keys)?;
        scores = masked(cx, scores, mask)?;
    }
    if *softmax_bits > 0 && cx.qdq != Qdq::None {
        return rounded(cx, c, scores, v, *softmax_bits);
    }
    let mut weights = cx.emit(Op::Softmax { axis: 3 }, &[scores])?;
    let all_see = keys.sub(&queries).and_then(|d| d.as_const()).is_some_and(|past| past >= 0);
    if c.optional(3).is_some() || (*causal && !all_see) {
        // a query that sees no key gives zeros, not NaN
        let (nan, zero) = (cx.unary(UnaryKind::IsNan, weights)?, cx.scalar(0.0, dtype));
        weights = cx.emit(Op::Where, &[nan, zero, weights])?;
    }
    let sums = cx.emit(Op::MatMul, &[weights, v])?;
    let sums = cx.transpose(sums, &[0, 2, 1, 3]);
    Ok(cx.reshape(sums, c.ty().shape))
}

/// Computes weights exp(score − max) in steps of 1/255 (1/127 if codes have a sign), or in bf16
/// relative to a power of two, multiplies them by the values, and divides by the sum of the
/// weights.
fn rounded(cx: &mut Cx, c: &Call, scores: Val, v: Val, bits: u8) -> ExportResult {
    if ![8, SOFTMAX_BF16].contains(&bits) {
        return Err(format!("weights of {bits} bits, ONNX has 8"));
    }
    let reduce = |kind| Op::Reduce { kind, axes: vec![3], keep: true };
    let max = cx.emit(reduce(ReduceKind::Max), &[scores])?;
    // a query that sees no key: exp(-inf - 0) = 0 for all of them
    let lowest = cx.scalar(f64::from(f32::MIN) / 2.0, DType::F32);
    let mut max = cx.binary(BinaryKind::Max, max, lowest)?;
    if bits == SOFTMAX_BF16 {
        let (log2_e, ln_2) = (cx.scalar(LOG2_E, DType::F32), cx.scalar(LN_2, DType::F32));
        max = cx.binary(BinaryKind::Mul, max, log2_e)?;
        max = cx.unary(UnaryKind::Ceil, max)?;
        max = cx.binary(BinaryKind::Mul, max, ln_2)?;
    }
    let weights = cx.binary(BinaryKind::Sub, scores, max)?;
    let weights = cx.unary(UnaryKind::Exp, weights)?;
    if bits == SOFTMAX_BF16 {
        let weights = cx.cast(weights, DType::BF16);
        let weights = cx.cast(weights, DType::F32);
        let total = cx.emit(reduce(ReduceKind::Sum), &[weights])?;
        let least = cx.scalar(f64::from(f32::MIN_POSITIVE), DType::F32);
        return weighed(cx, c, weights, v, [total, least]);
    }
    let (most, to) = if cx.qdq == Qdq::Trt { (127.0, DType::I8) } else { (255.0, DType::U8) };
    let (step, zero) = (cx.scalar(1.0 / most, DType::F32), cx.scalar(0.0, to));
    let weights = cx.emit(Op::Quantize { axis: None, block: 0, to }, &[weights, step, zero])?;
    let weights =
        cx.emit(Op::Dequantize { axis: None, block: 0, to: DType::F32 }, &[weights, step, zero])?;
    let total = cx.emit(reduce(ReduceKind::Sum), &[weights])?;
    let least = cx.scalar(1.0 / most, DType::F32);
    weighed(cx, c, weights, v, [total, least])
}

/// The weighted sums of values, divided by the sum of the weights, which is limited to the least
/// that it can be where there are any weights.
fn weighed(cx: &mut Cx, c: &Call, weights: Val, v: Val, [total, least]: [Val; 2]) -> ExportResult {
    let total = cx.binary(BinaryKind::Max, total, least)?;
    let sums = cx.emit(Op::MatMul, &[weights, v])?;
    let sums = cx.binary(BinaryKind::Div, sums, total)?;
    let sums = cx.transpose(sums, &[0, 2, 1, 3]);
    Ok(cx.reshape(sums, c.ty().shape))
}

/// `[B, L, H·D]` → `[B, H, L, D]`.
fn split(cx: &mut Cx, x: Val, heads: usize) -> ExportResult {
    let s = cx.shape(x).to_vec();
    let heads = Dim::constant(heads as i64);
    let width = s[2].div_exact(&heads).expect("the shape rule wants whole heads");
    let x = cx.reshape(x, vec![s[0].clone(), s[1].clone(), heads, width]);
    Ok(cx.transpose(x, &[0, 2, 1, 3]))
}

/// Adds a float mask. A bool mask is true for keys that are kept.
fn masked(cx: &mut Cx, scores: Val, mask: Val) -> ExportResult {
    if cx.dtype(mask) != DType::Bool {
        return cx.binary(BinaryKind::Add, scores, mask);
    }
    let hidden = cx.scalar(f64::NEG_INFINITY, cx.dtype(scores));
    cx.emit(Op::Where, &[mask, scores, hidden])
}

/// Whether query i sees key j: `j ≤ i + (keys - queries)`.
fn causal_mask(cx: &mut Cx, queries: &Dim, keys: &Dim) -> ExportResult {
    let (Some(queries), Some(keys)) = (queries.as_const(), keys.as_const()) else {
        return Err(format!("a causal mask of {queries} queries and {keys} keys"));
    };
    let last: Vec<i64> = (0..queries).map(|i| i + keys - queries).collect();
    let last = cx.constant("last_seen", Tensor::from_i64(&[last.len(), 1], &last));
    let keys = cx.ints(&(0..keys).collect::<Vec<_>>());
    cx.binary(BinaryKind::LessOrEqual, keys, last)
}

pub(super) fn timestep_embedding(cx: &mut Cx, c: &Call, cos_first: bool) -> ExportResult {
    let (t, f) = (cx.cast(c.input(0), DType::F32), c.input(1));
    let t = cx.reshape(t, vec![cx.shape(t)[0].clone(), 1.into()]);
    let angles = cx.binary(BinaryKind::Mul, t, f)?;
    let (sin, cos) = (cx.unary(UnaryKind::Sin, angles)?, cx.unary(UnaryKind::Cos, angles)?);
    let parts = if cos_first { [cos, sin] } else { [sin, cos] };
    cx.emit(Op::Concat { axis: 1 }, &parts)
}

pub(super) fn geglu(cx: &mut Cx, c: &Call, act: Act) -> ExportResult {
    let half = c.ty();
    let attributes = vec![int("axis", -1), int("num_outputs", 2)];
    let halves = cx.nodes("Split", &[c.optional(0)], attributes, &[half.clone(), half]);
    let gate = activate(cx, act, halves[1])?;
    cx.binary(BinaryKind::Mul, halves[0], gate)
}
