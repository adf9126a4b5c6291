//! Why a model cannot be compiled.

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
    /// Options contradict each other, or have no effect with the others.
    #[error("{}", .0.iter().map(Contradiction::to_string).collect::<Vec<_>>().join("; "))]
    Recipe(Vec<Contradiction>),
    /// The scheduler configuration says something that no sampler does.
    #[error("{}{source}", path.as_ref().map_or(String::new(), |path| format!("{}: ", path.display())))]
    SchedulerConfig {
        /// Its file, if it is one.
        path: Option<PathBuf>,
        /// What is wrong.
        source: SamplerConfigError,
    },
    /// The file of the schedule holds none.
    #[error("{}: {reason}", path.display())]
    ScheduleFile {
        /// The file.
        path: PathBuf,
        /// What was expected or seen.
        reason: String,
    },
    /// The model does not take the conditions.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    /// The network is no denoiser of the kind that was asked for.
    #[error("{0}")]
    Misread(Box<crate::reading::Misread>),
    /// Weights that are infinite or NaN: nothing could be computed with them.
    #[error("weights are not finite: {}", super::weights::list(.0))]
    Weights(Vec<BadWeight>),
    /// `keep-float` names a node that the model does not have after the passes.
    #[error("keep-float: the model has no node `{name}` after the passes")]
    UnknownNode {
        /// As given.
        name: String,
    },
    /// The model cannot be bound, cut or lowered.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The sampler has no such trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Nothing could be decided on the calibration set.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// Nothing could be fitted for the quantized loop.
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
    /// A file of the recipe cannot be read, or a stage cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
    /// Kernels for a GPU cannot be compiled.
    #[error("target: {reason}")]
    Target {
        /// What the compiler says.
        reason: String,
    },
}

impl CompileError {
    /// Whether the progress callback broke off.
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
