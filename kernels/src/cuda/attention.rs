//! Attention.

use super::args::{AttentionArgs, RawOperand};
use super::launch::{Operands, int};
use super::{ElementType, EntryPoint, Launch, Operand, State, list};
use crate::AttentionShape;
use cqc_proto::op::SOFTMAX_BF16;

/// y = softmax(scale · q kᵀ + mask) · v per image and head, as [`crate::attention()`]; distances
/// between rows are those of the operands.
///
/// Tensor cores take heads of up to 160 columns in fp16 whose rows are [wide](Operand::is_wide);
/// anything else runs a warp per query.
///
/// # Panics
/// When an operand is too short.
pub fn attention(
    state: &State,
    shape: &AttentionShape,
    [q, k, v]: [&Operand; 3],
    mask: Option<&Operand>,
    y: &Operand,
) -> Launch {
    let s = shape;
    assert!(
        s.kv_heads > 0 && s.heads.is_multiple_of(s.kv_heads),
        "{} heads share {}",
        s.heads,
        s.kv_heads
    );
    // fp16, to which tensor cores round weights, has three bits more than bf16
    let bits = if s.softmax_bits == SOFTMAX_BF16 { 0 } else { s.softmax_bits };
    assert!(bits <= 8, "{bits} bits");
    assert!(y.element.is_float(), "y: {:?}", y.element);
    let mut operands = Operands::new(state);
    let mask = mask.map_or_else(RawOperand::default, |mask| {
        let last = s.mask_at(s.n - 1, s.heads - 1, s.lq - 1, s.lk - 1) + 1;
        operands.rows("mask", &Operand { ld: last, ..mask.clone() }, 1, last)
    });
    let kernel = kernel(s, bits, [q, k, v]);
    let args = AttentionArgs {
        state: operands.state_address(),
        q: operands.rows("q", q, s.n * s.lq, s.heads * s.d),
        k: operands.rows("k", k, s.n * s.lk, s.kv_heads * s.d),
        v: operands.rows("v", v, s.n * s.lk, s.kv_heads * s.dv),
        mask,
        y: operands.rows("y", y, s.n * s.lq, s.heads * s.dv),
        mask_strides: s.mask_strides.map(|stride| stride as i64),
        sizes: [s.n, s.heads, s.kv_heads, s.lq, s.lk, s.d, s.dv].map(int),
        causal: i32::from(s.causal),
        bits: i32::from(bits),
        scale: s.scale,
    };
    match kernel {
        Some((kernel, columns, keys)) => {
            let pitch = columns * 2 + 16;
            operands.launch(
                kernel,
                [s.lq.div_ceil(64), s.n * s.heads],
                (64 + 4 * keys) * pitch,
                args,
            )
        }
        None => {
            let queries = s.n * s.heads * s.lq;
            assert!(queries < 1 << 31, "{queries} queries of one kernel");
            operands.launch(&list::attention_direct, [queries.div_ceil(4), 1], 0, args)
        }
    }
}

/// The kernel, the columns it has room for, and the keys of its tiles.
fn kernel(
    s: &AttentionShape,
    bits: u8,
    operands: [&Operand; 3],
) -> Option<(&'static EntryPoint, usize, usize)> {
    let wide = |o: &&Operand| o.element == ElementType::F16 && o.is_wide();
    let fits = s.d.is_multiple_of(8) && s.dv.is_multiple_of(8) && s.n * s.heads < 1 << 16;
    if !fits || !operands.iter().all(wide) {
        return None;
    }
    Some(match (s.d.max(s.dv), bits) {
        (..=32, 0) => (&list::attention_32, 32, 64),
        (..=64, 0) => (&list::attention_64, 64, 64),
        (..=96, 0) => (&list::attention_96, 96, 64),
        (..=160, 0) => (&list::attention_160, 160, 32),
        (..=32, _) => (&list::attention_rounded_32, 32, 64),
        (..=64, _) => (&list::attention_rounded_64, 64, 64),
        (..=96, _) => (&list::attention_rounded_96, 96, 64),
        (..=160, _) => (&list::attention_rounded_160, 160, 32),
        _ => return None,
    })
}
