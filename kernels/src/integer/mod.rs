//! Products of 8-bit integers: unsigned activations times signed weights, accumulated in i32,
//! turned into f32 on the way out.
//!
//! An activation stands for `(code − zero_point) · scale`, a weight for `code · scale` of its
//! output column; both scales may differ between segments of the input channels.
//! [`quantize`](crate::quantize) makes codes, [`PackedCodes`] holds weights, [`linear_codes`] and
//! [`Conv::run_codes`](crate::Conv::run_codes) multiply; [`attention_codes`] multiplies activations
//! with one another. Within a segment sums are exact, so results do not depend on the instruction
//! set but for the last bits of the additions in f32 that follow.

mod attention;
mod dot;
mod pack;
mod pack_attention;
mod product;
mod tile;

pub use attention::{attention_codes, attention_codes_scratch_len};
pub use pack::PackedCodes;
pub(crate) use pack::columns_and_group;
pub use product::{Activations, linear_codes};
pub(crate) use product::{IntProduct, Pixels};

use crate::Isa;
use cqc_proto::DType;

impl Isa {
    /// How codes of activations are stored: bytes, or twice as wide where the fastest instruction
    /// multiplies 16 bits (AVX2 without VNNI).
    pub fn code_type(self) -> DType {
        if self.dot_instruction().group() == 2 { DType::I16 } else { DType::U8 }
    }

    /// Whether products over segments of these sizes have a kernel: whole groups of what one
    /// instruction multiplies, sums that fit.
    pub fn multiplies_codes(self, taps: usize, segments: &[usize]) -> bool {
        let group = dot::GROUP_MAX;
        let fits = |&depth: &usize| {
            depth > 0 && depth.is_multiple_of(group) && depth.saturating_mul(taps) <= MAX_DEPTH
        };
        !segments.is_empty() && segments.iter().all(fits)
    }
}

/// Products that i32 can add up: 255 · 128 · 65536 < 2³¹.
const MAX_DEPTH: usize = 65536;
