//! Placeholder until merged.
pub mod compensate;
pub mod histogram;
pub mod range;
