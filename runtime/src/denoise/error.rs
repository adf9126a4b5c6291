//! The error of a denoiser.

use super::GuidanceError;
use super::StartError;
use crate::engine::EngineError;
use crate::retime::RetimeError;
use crate::sampler::SamplerError;
use cqc_proto::ValueType;
use cqc_proto::tensor::TensorSizeError;

/// The reason why a denoiser returned no samples.
#[derive(Debug, thiserror::Error)]
pub enum DenoiseError {
    /// The engine reported an error.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The plan's tables were made for another number of evaluations than the sampler has.
    #[error("the plan has tables for {plan} evaluations, the sampler makes {sampler}")]
    Evaluations {
        /// Number of evaluations in the plan's tables.
        plan: usize,
        /// Number of evaluations of the sampler.
        sampler: usize,
    },
    /// The model is not a denoiser.
    #[error("the model cannot be run in a loop: {reason}")]
    NoDenoiser {
        /// The expected and the actual inputs or shapes.
        reason: String,
    },
    /// The shape of the values of a step condition does not fit the loop.
    #[error(
        "the values of `{name}` per evaluation are {shape:?}; expected {evaluations} evaluations of {expected}, one row per sample or one for all"
    )]
    StepValues {
        /// Name of the input.
        name: String,
        /// Shape of the given values.
        shape: Vec<usize>,
        /// Number of evaluations of the loop.
        evaluations: usize,
        /// Type of the input at one evaluation.
        expected: ValueType,
    },
    /// The guidance scale needs both halves, but the denoiser was opened without guidance.
    #[error("a guidance scale of {scale} needs a denoiser that was opened with guidance")]
    NotGuided {
        /// The guidance scale of the request.
        scale: f32,
    },
    /// The guidance scale is negative or not finite.
    #[error("a guidance scale of {scale}; expected a finite number, 0 or more")]
    Guidance {
        /// The guidance scale of the request.
        scale: f32,
    },
    /// The interval or the rescaling of guidance is invalid. The list holds everything that is
    /// wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Guiding(Vec<GuidanceError>),
    /// The noise, the image or a condition holds an infinity or NaN.
    #[error("`{name}` holds {value} in row {row}; expected finite numbers")]
    NotFinite {
        /// Name of the input; `noise` for the initial noise, `init` for the image.
        name: String,
        /// The first value that is not finite.
        value: f32,
        /// Index of the row that holds the value.
        row: usize,
    },
    /// A label selects a row that its table does not have.
    #[error("`{name}` is {label}; expected 0 to {}: the table of `{table}` has {rows} rows", rows.saturating_sub(1))]
    Label {
        /// Name of the input.
        name: String,
        /// The label that was given.
        label: i64,
        /// Number of rows of the table.
        rows: usize,
        /// Name of the operator that reads the table.
        table: String,
    },
    /// Guidance was asked for, and there is no null condition for its unconditional half.
    #[error("guidance needs what the unconditional half gets (a null label or null conditioning)")]
    NoNull,
    /// A condition, the initial noise or the image does not have one row per sample, or one for all
    /// where that is allowed.
    #[error("`{name}` has shape {shape:?}, expected 1 or {samples} rows of {row:?}")]
    Rows {
        /// Name of the input; `noise` for the initial noise, `init` for the image.
        name: String,
        /// Shape of the given tensor.
        shape: Vec<usize>,
        /// Number of samples of the request.
        samples: usize,
        /// Shape of one row.
        row: Vec<usize>,
    },
    /// The requested beginning or end of the loop is invalid. The list holds everything that is
    /// wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Start(Vec<StartError>),
    /// The shape of the mask does not fit the samples.
    #[error(
        "the mask has shape {shape:?}, expected 1 or {samples} rows of {row:?}, or of one channel"
    )]
    Mask {
        /// Shape of the given mask.
        shape: Vec<usize>,
        /// Number of samples of the request.
        samples: usize,
        /// Shape of one sample.
        row: Vec<usize>,
    },
    /// The mask holds a value outside of 0 to 1.
    #[error("the mask holds {value}; expected 0 (keep) to 1 (repaint)")]
    MaskValue {
        /// The first such value.
        value: f32,
    },
    /// The trajectory has no evaluation left, or the loop has no such evaluation.
    #[error("all {evaluations} evaluations are done")]
    Finished {
        /// Number of evaluations of the loop, or the evaluation before which the trajectory ends.
        evaluations: usize,
    },
    /// The artifact cannot be run with that number of steps or at those time steps.
    #[error(transparent)]
    Steps(Box<RetimeError>),
    /// The sampler cannot make the trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The requested device cannot be used.
    #[error("{reason}")]
    Device {
        /// The reason why the device cannot be used.
        reason: String,
    },
    /// The observer cancelled the request.
    #[error("interrupted")]
    Interrupted,
    /// The size of a tensor's data does not fit its shape.
    #[error(transparent)]
    Tensor(#[from] TensorSizeError),
}

impl From<RetimeError> for DenoiseError {
    fn from(e: RetimeError) -> DenoiseError {
        DenoiseError::Steps(Box::new(e))
    }
}
