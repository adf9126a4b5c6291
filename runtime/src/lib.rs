//! See ARCHITECTURE.md.

#[cfg(any(feature = "cuda", feature = "cuda-sim"))]
pub mod cuda;
pub mod denoise;
pub mod engine;
pub mod noise;
pub mod retime;
pub mod sampler;
