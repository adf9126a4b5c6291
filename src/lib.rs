//! Compiles exported diffusion denoisers and runs them: the facade over the compiler and the runtime. See README.md.
//!
//! [`model::Model::load`] imports and rewrites, [`compile`] binds and lowers, [`cqc_runtime`] runs.

pub mod calibrate;
pub mod compile;
pub mod eval;
pub mod export;
pub mod io;
pub mod model;
pub mod quantize;
pub mod report;
pub mod stages;
