//! See ARCHITECTURE.md.

pub mod cuda;
pub mod denoise;
pub mod engine;
pub mod noise;
pub mod retime;
pub mod sampler;
