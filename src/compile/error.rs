//! The error of a compilation.

use super::{BadWeight, ConditionError, ProgramError};
use crate::calibrate::CalibrateError;
use crate::calibrate::quantize::QuantizeError;
use crate::io::FileError;
use crate::recipe::Contradiction;
use cqc_proto::sampler::SamplerConfigError;
use cqc_runtime::artifact::ArtifactError;
use cqc_runtime::denoise::DenoiseError;
use cqc_runtime::engine::EngineError;
use cqc_runtime::sampler::SamplerError;
use std::path::PathBuf;

/// Why a model cannot be compiled as the recipe says.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Options contradict each other, have no effect with the others, or have values out of range.
    #[error("{}", .0.iter().map(Contradiction::to_string).collect::<Vec<_>>().join("; "))]
    Recipe(Vec<Contradiction>),
    /// The scheduler configuration asks for something that no sampler does, or is invalid.
    #[error("{}{source}", path.as_ref().map_or(String::new(), |path| format!("{}: ", path.display())))]
    SchedulerConfig {
        /// Path of the file, if the configuration is in a file.
        path: Option<PathBuf>,
        /// The error in the configuration.
        source: SamplerConfigError,
    },
    /// The file of the key `schedule` does not hold a schedule.
    #[error("{}: {reason}", path.display())]
    ScheduleFile {
        /// Path of the file.
        path: PathBuf,
        /// The expected form, or the error in the file.
        reason: String,
    },
    /// The conditions of the recipe do not suit the model.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    /// The network does not predict what the sampler expects.
    #[error("{0}")]
    Misread(Box<crate::reading::Misread>),
    /// The model has weights that are infinite or NaN.
    #[error("the model has weights that are not finite: {}", super::weights::list(.0))]
    Weights(Vec<BadWeight>),
    /// `keep-float` names a node that the model does not have after the passes.
    #[error("keep-float: the model has no node `{name}` after the passes")]
    UnknownNode {
        /// The name that was given.
        name: String,
    },
    /// The model cannot be bound, cut or lowered.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The sampler cannot make the trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// No schedule or correction could be decided on the calibration set.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The quantized loop could not be fitted.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// The loop could not be run.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// A program could not be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The artifact could not be opened.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A file of the recipe cannot be read, or the result of a stage cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
    /// Kernels for a GPU cannot be compiled.
    #[error("target: {reason}")]
    Target {
        /// The message of the compiler.
        reason: String,
    },
}

impl CompileError {
    /// Whether the progress callback ended the compilation.
    pub fn is_interrupted(&self) -> bool {
        let denoise = match self {
            CompileError::Denoise(e)
            | CompileError::Calibrate(CalibrateError::Denoise(e))
            | CompileError::Quantize(
                QuantizeError::Denoise(e) | QuantizeError::Calibrate(CalibrateError::Denoise(e)),
            ) => e,
            _ => return false,
        };
        matches!(denoise, DenoiseError::Interrupted)
    }
}
