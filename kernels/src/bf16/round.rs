//! Rows rounded to bf16 that nothing rounds on the way to memory.

use crate::fake_quant::store;
use crate::output::Output;
use crate::{Isa, Pool};

/// y = the nearest bf16 of x over `[rows, c]`: `y` is [`Output::Bf16`] or [`Output::RoundedBf16`].
///
/// # Panics
/// When a slice is too short, or the output has another format.
pub fn round_bf16(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    c: usize,
    x: &[f32],
    ldx: usize,
    y: Output,
    ldy: usize,
) {
    assert!(matches!(y, Output::Bf16(_) | Output::RoundedBf16(_)), "no rounding to bf16: {y:?}");
    store(isa, pool, rows, c, x, ldx, y, ldy);
}
