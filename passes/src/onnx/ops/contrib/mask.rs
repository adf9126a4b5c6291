//! Masks of `Attention` and `MultiHeadAttention`, as numbers that are added to the scores.

use super::*;
use crate::onnx::ops::attention::{Shape, lengths_column, positions};
use cqc_proto::{DType, Dim, Tensor};

/// The tensor that is added to the scores `[B, H, S, T]`: `mask_filter_value` where `padding` hides
/// a key, and `bias`. A causal rule is not part of it.
pub(super) fn additive(
    cx: &mut Cx,
    c: &Call,
    s: &Shape,
    batch: &Dim,
    dtype: DType,
    [padding, bias]: [Option<&Item>; 2],
) -> Result<Option<Item>, Refusal> {
    let filter = c.opt_float("mask_filter_value")?.unwrap_or(-10000.0);
    if filter.is_nan() || filter == f32::INFINITY {
        return malformed(format!("attribute `mask_filter_value` is {filter}"));
    }
    let mut mask = None;
    if let Some(padding) = padding {
        let visible = visible(cx, padding, s, batch)?;
        let (zero, hidden) = (cx.scalar(0.0, dtype), cx.scalar(within(filter, dtype), dtype));
        mask = Some(cx.emit(Op::Where, &[&visible, &zero, &hidden])?);
    }
    let Some(bias) = bias else { return Ok(mask) };
    let bias = cx.cast(bias, dtype)?;
    match mask {
        Some(mask) => plus(cx, &bias, Some(&mask)).map(Some),
        None => Ok(Some(bias)),
    }
}

/// A number that stays finite in the type.
fn within(value: f32, dtype: DType) -> f64 {
    let value = value as f64;
    if dtype == DType::F16 && value.is_finite() { value.clamp(-65504.0, 65504.0) } else { value }
}

/// Whether a key may be seen, as bool that broadcasts to the scores. The forms of the mask are
/// `[B]`: number of valid keys; `[2B]`: ends and starts of the valid keys; `[3B + 2]`: numbers of
/// valid keys, and sums that follow from them; `[B, T]` and `[B, S, T]`: keys; `[B, 1, M, M]`: keys
/// of a longer sequence.
fn visible(cx: &mut Cx, mask: &Item, s: &Shape, batch: &Dim) -> Result<Item, Refusal> {
    let ty = cx.ty(mask)?;
    let (queries, keys) = (&s.queries, &s.keys);
    let one = Dim::constant(1);
    let wide = match &ty.shape[..] {
        [n] => return valid_keys(cx, mask, n, s, batch),
        [b, t] if b == batch && t == keys => vec![b.clone(), one.clone(), one, t.clone()],
        [b, q, t] if b == batch && (q == queries || q.is(1)) && t == keys => {
            vec![b.clone(), one, q.clone(), t.clone()]
        }
        [b, h, m, n] if b == batch && h.is(1) && m == n => {
            let Some(first) = keys.sub(queries) else {
                return unsupported(format!("the mask {ty} over {queries} queries"));
            };
            let rows = cx.slice(mask, 2, first, keys.clone())?;
            let part = cx.slice(&rows, 3, 0.into(), keys.clone())?;
            return nonzero(cx, &part);
        }
        _ => {
            return unsupported(format!(
                "the mask is {ty}, which is none of [{batch}], [2·{batch}], [3·{batch}+2], \
                 [{batch},{keys}], [{batch},{queries},{keys}]"
            ));
        }
    };
    let mask = cx.reshape(mask, wide)?;
    nonzero(cx, &mask)
}

fn nonzero(cx: &mut Cx, mask: &Item) -> Result<Item, Refusal> {
    let dtype = cx.ty(mask)?.dtype;
    if dtype == DType::Bool {
        return Ok(mask.clone());
    }
    let zero = cx.constant(Tensor::from_i64(&[], &[0]));
    let zero = cx.cast(&zero, dtype)?;
    cx.binary(BinaryKind::Greater, mask, &zero)
}

fn valid_keys(
    cx: &mut Cx,
    mask: &Item,
    count: &Dim,
    s: &Shape,
    batch: &Dim,
) -> Result<Item, Refusal> {
    let times = |n: i64, more: i64| batch.mul(&n.into()).and_then(|d| d.add(&more.into()));
    let starts = Some(count) == times(2, 0).as_ref();
    if !starts && count != batch && Some(count) != times(3, 2).as_ref() {
        return unsupported(format!(
            "the mask has {count} entries, expected {batch}, 2·{batch} or 3·{batch}+2"
        ));
    }
    let places = positions(cx, &s.keys, 3)?;
    let ends = cx.slice(mask, 0, 0.into(), batch.clone())?;
    let ends = lengths_column(cx, &ends)?;
    let before_end = cx.binary(BinaryKind::Less, &places, &ends)?;
    if !starts {
        return Ok(before_end);
    }
    let starts = cx.slice(mask, 0, batch.clone(), count.clone())?;
    let starts = lengths_column(cx, &starts)?;
    let after_start = cx.binary(BinaryKind::GreaterOrEqual, &places, &starts)?;
    cx.binary(BinaryKind::And, &before_end, &after_start)
}
