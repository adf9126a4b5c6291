//! The definitions: plain loops, sums in f64. Every fast kernel is tested against these.
//!
//! Nothing here is fast, and nothing here knows about threads or vector instructions.

mod math;
mod nn;

pub use math::{act, binary, erf, unary};
pub use nn::{
    affine, attention, conv, copy_strided, fake_quant, fake_quant_one, finish, geglu, group_norm, layer_norm, linear,
    matmul_batched, rms_norm, round_bf16, softmax,
};
