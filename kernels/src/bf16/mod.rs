//! Products of bf16 by bf16, accumulated in f32.
//!
//! Both operands are rounded to the nearest bf16 before they come here: activations by whoever
//! stores them ([`Output::Bf16`](crate::Output), or [`round_bf16`]), weights when they are
//! compiled. A product of two bf16 is exact in f32, so a kernel differs from the f32 one on the
//! same rounded operands by the order of additions alone, and by numbers below 2⁻¹²⁶, which AVX-512
//! BF16 takes for zero.
//!
//! [`PackedBf16`] holds weights, [`linear_bf16`] and [`Conv::run_bf16`](crate::Conv::run_bf16)
//! multiply, [`attention_bf16`] attends. AMX and AVX-512 BF16 have instructions for it; anywhere
//! else the same products run as plain Rust: slow, and what tests compare. Where [`Isa::has_bf16`]
//! is false, whoever wants speed multiplies the rounded values in f32.

mod attention;
mod dot;
mod pack;
mod product;
mod round;

pub use attention::{attention_bf16, attention_bf16_scratch_len};
pub use pack::PackedBf16;
pub(crate) use pack::columns;
pub(crate) use product::Bf16Product;
pub use product::linear_bf16;
pub use round::round_bf16;

use crate::Isa;
use crate::pack::DOT_COLUMNS;

impl Isa {
    /// Whether products of bf16 run on an instruction for them that is faster than the ones for
    /// f32: AMX, or AVX-512 BF16 but for Intel's, which start one in two cycles and four fused
    /// multiply-adds of f32 (measured on Emerald Rapids: 42 GMAC/s against 81).
    pub fn has_bf16(self) -> bool {
        match self.bf16_instruction() {
            dot::Instruction::Portable => false,
            dot::Instruction::Avx512 => !dot::is_intel(),
            dot::Instruction::Amx => true,
        }
    }

    /// Whether a product of so many channels per tap and columns is worth the kernels for bf16:
    /// those for f32 have others for few of them.
    pub fn suits_bf16(self, channels: usize, columns: usize) -> bool {
        channels >= 16 && columns > DOT_COLUMNS
    }
}
