//! Compiles exported diffusion and flow-matching denoisers into artifacts that run the whole
//! sampling loop several times faster, without retraining.
//!
//! [`Model::load`] reads an ONNX file, a [`Recipe`] says what the artifact is to become,
//! [`compile()`] finds what can be cached, calibrates on the loop that will really run, quantizes,
//! and lowers; the result is written as one `.cq` file. [`runtime`] opens it and samples, and can
//! be used without this crate.
//!
//! ```no_run
//! use cachequant::{Model, ModelOptions, Overwrite, Recipe, compile};
//!
//! let model = Model::load("unet.onnx".as_ref(), &ModelOptions::default(), |_, _| {})?;
//! let recipe = Recipe { steps: Some(20), ..Recipe::default() };
//! let compiled = compile(&model, &recipe, &mut ())?;
//! compiled.write("unet.cq".as_ref(), Overwrite::Refuse)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`calibrate`], [`eval`], [`export`] and [`report`] are the parts that tools need: fitting on a
//! trajectory, quality figures, ONNX out, and the data of a compilation's report.

pub mod calibrate;
pub mod compile;
pub mod eval;
pub mod export;
pub mod identity;
pub mod io;
pub mod model;
pub mod pipeline;
pub mod reading;
pub mod recipe;
pub mod report;
pub mod sizes;

pub use compile::{CompileError, Compiled, Phase, Progress, compile};
/// The runtime that opens artifacts and samples from them.
pub use cqc_runtime as runtime;
pub use io::Overwrite;
pub use model::{Model, ModelOptions};
pub use recipe::Recipe;
