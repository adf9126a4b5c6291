//! The numeric kernels of cqc: functions from slices to slices, for its runtime and for anyone who
//! executes networks of the same kind.
//!
//! * [`mod@reference`] defines every operator, for every element type, in plain loops. It is what
//!   constants are folded with and what all other kernels are tested against.
//! * The functions of this page are the fast CPU kernels: convolutions and matrix products over
//!   f32, [bf16](PackedBf16) and [8-bit codes](PackedCodes), attention, normalisations,
//!   element-wise operators. Each takes the instruction set to run on ([`Isa::detect`]) and the
//!   threads ([`Pool`]).
//! * `cuda` (features `cuda`, `cuda-sim`) has the CUDA kernels and the only way to launch them.
//!
//! ```
//! use cqc_kernels::{Act, Epilogue, Isa, PackedMatrix, Pool, linear};
//!
//! let (isa, pool) = (Isa::detect()?, Pool::new(2));
//! // y = relu(x · w + bias) for two rows x of three values.
//! let w = PackedMatrix::from_kn(isa, 3, 2, &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
//! let x = [1.0, 2.0, 3.0, -1.0, -2.0, -3.0];
//! let epilogue = Epilogue { act: Act::Relu, ..Epilogue::bias(&[0.5, 0.5]) };
//! let mut y = [0.0; 4];
//! linear(isa, &pool, 2, 3, 2, &x, 3, &w, &epilogue, &mut y[..], 2);
//! assert_eq!(y, [1.5, 2.5, 0.0, 0.0]);
//! # Ok::<(), cqc_kernels::IsaError>(())
//! ```
//!
//! Images are NHWC, so that everything is a matrix of rows (pixels, tokens) and columns (channels).
//! A row may be followed by a gap: `ldx` and `ldy` are the distances between the starts of two
//! rows, in elements, so that a kernel can write straight into a channel range of a concatenation.
//! Weights are packed once for an instruction set ([`PackedMatrix`]); a [`Conv`] holds what depends
//! on the shape alone.
//!
//! No sum is split across threads, so results do not depend on their number. They may differ in the
//! last bits between instruction sets.
//!
//! A slice that is too short for its shape is a bug of the caller: the kernel panics with both
//! sizes and has written nothing. All `unsafe` code of the project is in this crate, behind such
//! checks.

// a kernel's arguments are its shape and the strides of its operands
#![allow(clippy::too_many_arguments)]
// a register tile indexes several arrays by one range of constant length
#![allow(clippy::needless_range_loop)]

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
pub mod memory;
pub mod norm;
pub mod pack;
pub mod pool;
pub mod reference;

#[cfg(target_arch = "x86_64")]
mod amx;
mod depthwise;
mod dot;
mod fake_quant;
mod gemm;
mod math;
mod output;
mod rows;
mod scratch;
mod shared;
mod simd;

pub use attention::{AttentionShape, attention, attention_scratch_len};
pub use bf16::{PackedBf16, attention_bf16, attention_bf16_scratch_len, linear_bf16, round_bf16};
pub use conv::{Conv, ConvShape, ShapeError};
pub use copy::copy_strided;
pub use elementwise::{Affine, Binary, BroadcastOperand, Unary, affine, binary, geglu, unary};
pub use epilogue::{Act, Epilogue, PerImage};
pub use fake_quant::{FakeQuant, fake_quant, quantize};
pub use gemm::PAIRED_COLUMNS;
pub use group_norm::{GroupNorm, group_norm};
pub use integer::{
    Activations, PackedCodes, attention_codes, attention_codes_scratch_len, linear_codes,
};
pub use isa::{Isa, IsaError};
pub use mapped::{Mapped, map_file};
pub use matmul::{MatmulShape, linear, matmul_batched, matmul_scratch_len};
pub use norm::{LayerNorm, layer_norm, rms_norm, softmax};
pub use output::Output;
pub use pack::{PackedMatrix, packing};
pub use pool::{Executor, Pool};
