//! Errors of pipelines.

use cqc_runtime::artifact::ArtifactError;
use cqc_runtime::engine::EngineError;

/// A part of a pipeline cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A network of the pipeline is not a valid artifact.
    #[error("the {part} of the pipeline: {source}")]
    Part {
        /// Which network.
        part: String,
        /// What is wrong with it.
        source: ArtifactError,
    },
    /// A tokenizer cannot be read, or a text cannot be split.
    #[error("the tokenizer of text encoder {encoder}: {reason}")]
    Tokenizer {
        /// Index of the text encoder.
        encoder: usize,
        /// The message of the library.
        reason: String,
    },
    /// A network cannot be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The parts do not fit together.
    #[error("{0}")]
    Mismatch(String),
}
