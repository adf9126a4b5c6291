//! Weights in few bits.

mod cholesky;
pub mod gptq;
mod gram;
mod grid;
