//! The CUDA kernels: their sources, and a safe way to launch them on a device, which is a GPU or
//! its stand-in on the CPU.
//!
//! A kernel takes one struct. The functions of this module check every operand against the memory
//! it lies in and return a [`Launch`]; whatever a [`Device`] is given to run has passed them.
//! Operands may move with the evaluation and with the slot of a request, two numbers in device
//! memory ([`State`]), so that a recorded list of launches serves all of them.
//!
//! Between kernels floats are fp16, sums and tables f32. Shapes have fewer than 2³¹ results.
//!
//! `simulator` (feature `cuda-sim`) compiles the sources as C++ and runs them on a CPU; `driver`
//! (feature `cuda`) runs them on a GPU through the CUDA driver, which is looked for when it is
//! needed; `nvrtc` compiles them for a GPU, on any machine.

mod args;
mod attention;
mod conv;
mod elementwise;
mod error;
mod filter;
mod launch;
mod list;
mod memory;
mod norm;
mod peak;
mod sampler;
mod selftest;

#[cfg(feature = "cuda")]
pub mod cubin;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(feature = "cuda")]
pub mod nvrtc;
#[cfg(feature = "cuda-sim")]
pub mod simulator;

pub use args::MAX_SEGMENTS;
pub use attention::attention;
pub use conv::{Epilogue, Output, PerImage, Rounding, Tile, conv, matmul, split_bytes, splits};
pub use elementwise::{
    ElementOp, affine, elementwise, gated, gather, quantize, timestep_embedding,
};
pub use error::CudaError;
pub use filter::{Filter, FilterKind};
pub use launch::{Device, Launch, Recorded};
pub use list::{EntryPoint, KERNELS};
pub use memory::{ElementType, Fault, Memory, Operand, State};
pub use norm::{group_norm, group_norm_scratch, layer_norm, softmax};
pub use peak::{PEAK_IN, PEAK_OUT, PeakOf, mma_peak};
pub use sampler::{
    SAMPLER_HEAD, SAMPLER_OP, SAMPLER_TEMPS, SAMPLER_TERMS, SamplerOp, SamplerRegister,
    SamplerStep, count_step, sampler_step,
};
pub use selftest::{
    SELFTEST_IN, SELFTEST_OUT, check_selftest, selftest, selftest_hashes, selftest_input, verify,
};

/// Names of the sources.
pub const SOURCES: &[&str] =
    &["conv", "norm", "attention", "elementwise", "sampler", "selftest", "peak"];

/// The whole text of a source, headers in place: what NVRTC compiles.
///
/// # Panics
/// For a name that is not in [`SOURCES`].
pub fn source(name: &str) -> String {
    let body = match name {
        "conv" => include_str!("../../cuda/conv.cu"),
        "norm" => include_str!("../../cuda/norm.cu"),
        "attention" => include_str!("../../cuda/attention.cu"),
        "elementwise" => include_str!("../../cuda/elementwise.cu"),
        "sampler" => include_str!("../../cuda/sampler.cu"),
        "selftest" => include_str!("../../cuda/selftest.cu"),
        "peak" => include_str!("../../cuda/peak.cu"),
        _ => panic!("there is no source `{name}`"),
    };
    let headers = [include_str!("../../cuda/prims.cuh"), include_str!("../../cuda/operands.cuh")];
    let is_code =
        |line: &&str| !(line.starts_with("#include \"") || line.starts_with("#pragma once"));
    let lines = headers.into_iter().chain([body]).flat_map(|text| text.lines().filter(is_code));
    lines.flat_map(|line| [line, "\n"]).collect()
}
