//! Shape rules of attention and the other composite operators of denoisers.

use super::*;

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    match op {
        Op::Attention { heads, kv_heads, scale, softcap, softmax_bits, .. } => {
            check(*softmax_bits <= 8 || *softmax_bits == SOFTMAX_BF16, || {
                format!(
                    "`softmax_bits` is {softmax_bits}, expected 0 to 8, or {SOFTMAX_BF16} for bf16"
                )
            })?;
            check(scale.is_finite() && softcap.is_finite() && *softcap >= 0.0, || {
                format!(
                    "`scale` is {scale} and `softcap` {softcap}, expected finite numbers, softcap ≥ 0"
                )
            })?;
            attention(*heads, *kv_heads, inputs)
        }
        Op::TimestepEmbedding { .. } => {
            at_most(inputs, 2)?;
            let (t, f) = (required(inputs, 0, "t")?, required(inputs, 1, "frequencies")?);
            check(t.rank() == 1 && t.dtype != DType::Bool, || {
                format!("t is {t}, expected numbers along one axis")
            })?;
            check(f.rank() == 1 && f.dtype == DType::F32, || {
                format!("the frequencies are {f}, expected f32[half]")
            })?;
            let width = f.shape[0].mul(&2.into()).ok_or("too many frequencies")?;
            Ok(vec![ValueType::new(DType::F32, vec![t.shape[0].clone(), width])])
        }
        Op::Geglu { act } => {
            let x = single(inputs)?;
            check(x.dtype.is_float(), || format!("x is {}, expected a float type", x.dtype))?;
            check(matches!(act, Act::GeluErf | Act::GeluTanh), || {
                format!("`act` is {act:?}, expected a GELU")
            })?;
            let mut shape = x.shape.clone();
            let last = shape.last_mut().ok_or("takes no scalar")?;
            *last =
                last.div_exact(&2.into()).ok_or_else(|| format!("the last size {last} is odd"))?;
            Ok(vec![ValueType::new(x.dtype, shape)])
        }
        _ => unreachable!("dispatched by Op::infer"),
    }
}

fn attention(heads: usize, kv_heads: usize, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 4)?;
    let (q, k, v) =
        (required(inputs, 0, "q")?, required(inputs, 1, "k")?, required(inputs, 2, "v")?);
    check(q.dtype.is_float(), || format!("q is {}, expected a float type", q.dtype))?;
    for (name, t) in [("q", q), ("k", k), ("v", v)] {
        check(t.rank() == 3, || format!("{name} is {t}, expected [batch, length, channels]"))?;
        check(t.shape[0] == q.shape[0], || {
            format!("batch of {name} is {}, of q {}", t.shape[0], q.shape[0])
        })?;
        check(t.dtype == q.dtype, || format!("{name} is {}, q is {}", t.dtype, q.dtype))?;
    }
    let counts = 1..=MAX_GROUPS;
    check(
        counts.contains(&heads) && counts.contains(&kv_heads) && heads.is_multiple_of(kv_heads),
        || format!("{heads} heads over {kv_heads} key heads"),
    )?;
    check(k.shape[1] == v.shape[1], || {
        format!("k has {} positions, v {}", k.shape[1], v.shape[1])
    })?;
    let per_head = |t: &ValueType, n: usize, name: &str| {
        t.shape[2]
            .div_exact(&Dim::constant(n as i64))
            .ok_or_else(|| format!("{n} heads do not divide {name}'s {} channels", t.shape[2]))
    };
    let (d, dk, dv) =
        (per_head(q, heads, "q")?, per_head(k, kv_heads, "k")?, per_head(v, kv_heads, "v")?);
    check(d == dk, || format!("q has {d} channels per head, k {dk}"))?;
    let scores =
        [q.shape[0].clone(), Dim::constant(heads as i64), q.shape[1].clone(), k.shape[1].clone()];
    if let Some(mask) = optional(inputs, 3) {
        check(mask.dtype == q.dtype || mask.dtype == DType::Bool, || {
            format!("the mask is {}", mask.dtype)
        })?;
        check(broadcast(&mask.shape, &scores)? == scores, || {
            format!("the mask {mask} is larger than the scores")
        })?;
    }
    let channels = dv.mul(&Dim::constant(heads as i64)).ok_or("too many channels")?;
    Ok(vec![ValueType::new(q.dtype, vec![q.shape[0].clone(), q.shape[1].clone(), channels])])
}

/// The MACs of both products: `B · Lq · Lk · heads · (D + Dv)`.
pub(super) fn macs(inputs: &InputTypes, outputs: &[ValueType]) -> Option<Dim> {
    let (q, k) = (optional(inputs, 0)?, optional(inputs, 1)?);
    let channels = q.shape[2].add(&outputs.first()?.shape[2])?;
    q.shape[0].mul(&q.shape[1])?.mul(&k.shape[1])?.mul(&channels)
}
