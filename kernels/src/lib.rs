//! Numeric kernels of cqc: slices in, slices out.
//!
//! Tensors are NHWC or `[rows, columns]` f32. A row (pixel, token) may be followed by a gap: `ldx`, `ldy` are the
//! distances between the begins of two rows, in values, so a producer can write straight into a channel range of a
//! concatenation. Weights are packed once ([`PackedMatrix`]); plans ([`Conv`]) hold what depends only on shapes.
//!
//! Every kernel takes the instruction set to run on ([`Isa`], usually [`Isa::detect`]) and the threads
//! ([`pool::Pool`]). No sum is ever split across tasks, so results do not depend on the number of threads; they may
//! differ in the last bits between instruction sets. [`scalar`] holds the definitions.
//!
//! A slice too short for its shape is a bug of the caller and panics with both sizes; nothing is written before.

#![allow(clippy::needless_range_loop)] // a register tile indexes several arrays by one range of constant length

pub mod arena;
pub mod attention;
pub mod bf16;
pub mod conv;
pub mod copy;
#[cfg(any(feature = "cuda", feature = "cuda-sim"))]
pub mod cuda;
pub mod elementwise;
pub mod epilogue;
pub mod group_norm;
pub mod integer;
pub mod isa;
pub mod mapped;
pub mod matmul;
pub mod norm;
pub mod pack;
pub mod pool;
pub mod reference;
pub mod scalar;

#[cfg(target_arch = "x86_64")]
mod amx;
mod depthwise;
mod dot;
mod fake_quant;
mod gemm;
mod math;
mod rows;
mod scratch;
mod shared;
mod simd;
mod target;

pub use attention::{AttentionShape, attention, attention_scratch_len};
pub use bf16::{PackedBf16, attention_bf16, attention_bf16_scratch_len, linear_bf16, round_bf16};
pub use conv::{Conv, ConvShape, ShapeError};
pub use copy::copy_strided;
pub use elementwise::{Affine, Binary, Operand, Unary, affine, binary, geglu, unary};
pub use epilogue::{Act, Epilogue, Rows};
pub use fake_quant::{FakeQuant, fake_quant, quantize};
pub use gemm::PAIRED_COLUMNS;
pub use group_norm::{GroupNorm, group_norm};
pub use integer::{Activations, PackedCodes, attention_codes, attention_codes_scratch_len, linear_codes};
pub use isa::Isa;
pub use mapped::{Mapped, map_file};
pub use matmul::{MatmulShape, linear, matmul_batched, matmul_scratch_len};
pub use norm::{LayerNorm, layer_norm, rms_norm, softmax};
pub use pack::{PackedMatrix, packing};
pub use pool::{Executor, Pool};
pub use target::Target;
