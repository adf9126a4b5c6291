//! Whole pipelines: the directory of an exported pipeline becomes one artifact.
//!
//! [`Directory`] finds the parts as optimum and Olive write them. [`Parts::compile`] compiles the
//! text encoders and the autoencoder, and packs the tokenizers. [`Parts::prepare`] then encodes the
//! calibration prompts and puts them, and the guidance of the pipeline, into the recipe of the
//! denoiser, which is compiled like any other model. [`Compiled::write_with`] writes all of it.
//!
//! [`Compiled::write_with`]: crate::compile::Compiled::write_with

mod class;
mod directory;
mod parts;
mod tokenizer;

pub use directory::Directory;
pub use parts::{PartOptions, Parts, load_denoiser};

use crate::compile::ProgramError;
use crate::io::FileError;
use crate::model::ModelError;
use cqc_pipeline::PipelineError;
use std::path::PathBuf;

/// The prompts that calibration uses where none are given: a few dozen captions of varied subjects,
/// lengths and styles.
pub const PROMPTS: &str = include_str!("prompts.txt");

/// A directory cannot become the artifact of a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A configuration or a tokenizer cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A configuration has not the expected form.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What was expected.
        reason: String,
    },
    /// The class of the pipeline is not known.
    #[error("{}: pipelines of the class {class} are not known; known are {}", path.display(), class::KNOWN.join(", "))]
    Class {
        /// `model_index.json`.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A network cannot be read.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// A network cannot be compiled.
    #[error("{}: {source}", path.display())]
    Program {
        /// The network's file.
        path: PathBuf,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A part cannot be run.
    #[error(transparent)]
    Pipeline(Box<PipelineError>),
    /// A part cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Encode {
        /// The network's file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl From<ModelError> for DirectoryError {
    fn from(e: ModelError) -> DirectoryError {
        DirectoryError::Model(Box::new(e))
    }
}

impl From<PipelineError> for DirectoryError {
    fn from(e: PipelineError) -> DirectoryError {
        DirectoryError::Pipeline(Box::new(e))
    }
}
