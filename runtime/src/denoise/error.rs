//! Why no samples came out.

use super::GuidanceError;
use super::StartError;
use crate::engine::EngineError;
use crate::retime::RetimeError;
use crate::sampler::SamplerError;
use cqc_proto::ValueType;
use cqc_proto::tensor::TensorSizeError;

/// Why no samples came out.
#[derive(Debug, thiserror::Error)]
pub enum DenoiseError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The plan's tables were made for another number of evaluations.
    #[error("the plan has tables for {plan} evaluations, the sampler makes {sampler}")]
    Evaluations {
        /// Of the plan.
        plan: usize,
        /// Of the sampler.
        sampler: usize,
    },
    /// The model is no denoiser.
    #[error("the model cannot be run in a loop: {reason}")]
    NoDenoiser {
        /// What was expected and what was seen.
        reason: String,
    },
    /// Values per evaluation of other sizes than the loop has.
    #[error(
        "the values of `{name}` per evaluation are {shape:?}; expected {evaluations} evaluations of {expected}, one row per sample or one for all"
    )]
    StepValues {
        /// The input.
        name: String,
        /// Sizes of the values.
        shape: Vec<usize>,
        /// Evaluations of the loop.
        evaluations: usize,
        /// Type of the input.
        expected: ValueType,
    },
    /// A scale of guidance needs both halves, and the denoiser was opened for one.
    #[error("a guidance scale of {scale} needs a denoiser that was opened with guidance")]
    NotGuided {
        /// Asked for.
        scale: f32,
    },
    /// A scale of guidance that is none.
    #[error("a guidance scale of {scale}; expected a finite number, 0 or more")]
    Guidance {
        /// Asked for.
        scale: f32,
    },
    /// An interval or a rescale of guidance: everything that is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Guiding(Vec<GuidanceError>),
    /// Noise or a condition holds infinities or NaN.
    #[error("`{name}` holds {value} in row {row}; expected finite numbers")]
    NotFinite {
        /// Its name; `noise` for the initial noise.
        name: String,
        /// The first such value.
        value: f32,
        /// The row that it is in.
        row: usize,
    },
    /// A label chooses a row that its table does not have.
    #[error("`{name}` is {label}; expected 0 to {}: the table of `{table}` has {rows} rows", rows.saturating_sub(1))]
    Label {
        /// The input.
        name: String,
        /// As given.
        label: i64,
        /// Rows of the table.
        rows: usize,
        /// The operator that reads the table.
        table: String,
    },
    /// Guidance needs conditioning for its unconditional half.
    #[error("guidance needs what the unconditional half gets (a null label or null conditioning)")]
    NoNull,
    /// A condition or the initial noise has neither one row nor one per sample.
    #[error("`{name}` has shape {shape:?}, expected 1 or {samples} rows of {row:?}")]
    Rows {
        /// Its name; `noise` for the initial noise.
        name: String,
        /// As given.
        shape: Vec<usize>,
        /// Samples asked for.
        samples: usize,
        /// Sizes of a row.
        row: Vec<usize>,
    },
    /// The beginning or the end that a request asks for: everything that is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Start(Vec<StartError>),
    /// A mask that does not lie over the samples.
    #[error(
        "the mask has shape {shape:?}, expected 1 or {samples} rows of {row:?}, or of one channel"
    )]
    Mask {
        /// As given.
        shape: Vec<usize>,
        /// Samples asked for.
        samples: usize,
        /// Sizes of one sample.
        row: Vec<usize>,
    },
    /// A mask is a share.
    #[error("the mask holds {value}; expected 0 (keep) to 1 (repaint)")]
    MaskValue {
        /// The first value outside.
        value: f32,
    },
    /// All evaluations of the trajectory are done.
    #[error("all {evaluations} evaluations are done")]
    Finished {
        /// How many there are.
        evaluations: usize,
    },
    /// The artifact cannot be run with another number of steps.
    #[error(transparent)]
    Steps(Box<RetimeError>),
    /// The sampler has no such trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The device that was asked for cannot be used.
    #[error("{reason}")]
    Device {
        /// What is in the way.
        reason: String,
    },
    /// The observer broke off.
    #[error("interrupted")]
    Interrupted,
    /// A tensor's bytes do not fit its shape.
    #[error(transparent)]
    Tensor(#[from] TensorSizeError),
}

impl From<RetimeError> for DenoiseError {
    fn from(e: RetimeError) -> DenoiseError {
        DenoiseError::Steps(Box::new(e))
    }
}
