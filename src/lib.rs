//! Compiles exported diffusion and flow-matching denoisers into artifacts that run the whole
//! sampling loop several times faster, without retraining.
//!
//! [`Model::load`] reads an ONNX file. A [`Recipe`] says what the artifact is to become.
//! [`compile()`] finds out what can be cached, calibrates on the loop that the artifact will run,
//! quantizes, and lowers the loop to a plan. The result is written as one `.cq` file. The crate
//! [`runtime`] opens such a file and makes samples, and it can be used without this crate.
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
//! Tools need further parts: [`calibrate`] fits on trajectories, [`eval`] computes quality figures,
//! [`export`] writes ONNX, and [`report`] holds the data of a compilation's report.

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
