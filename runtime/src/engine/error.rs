//! The error of an engine.

use cqc_kernels::IsaError;
use cqc_kernels::arena::NoArena;
use cqc_kernels::memory::NoMemory;
use cqc_proto::plan::{PlanError, ProgramKind};
use cqc_proto::tensor::TensorSizeError;
use cqc_proto::{DType, ValueType};

/// The reason why an engine cannot be opened or a request cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The plan is not valid.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// `CQC_ISA` names no instruction set of this CPU.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The plan cannot run with this batch size.
    #[error("the plan runs with a batch of {allowed}, asked for {asked}")]
    Batch {
        /// The requested batch size.
        asked: usize,
        /// The possible batch sizes, in words.
        allowed: String,
    },
    /// A value has no valid size with this batch.
    #[error("`{name}` of program {program} has type {ty}, which has no valid size at this batch")]
    Size {
        /// The program of the value.
        program: ProgramKind,
        /// Name of the value.
        name: String,
        /// Type of the value.
        ty: ValueType,
    },
    /// A step breaks the rule of its operator with this batch.
    #[error("step `{step}` of program {program}: {reason}")]
    Step {
        /// The program of the step.
        program: ProgramKind,
        /// Name of the step.
        step: String,
        /// The expected and the actual types.
        reason: String,
    },
    /// The activations exceed the allowed memory ([`EngineOptions::max_memory`]).
    ///
    /// [`EngineOptions::max_memory`]: super::EngineOptions::max_memory
    #[error("needs {needed} bytes of activations, {limit} are allowed")]
    Memory {
        /// The number of bytes that are needed.
        needed: usize,
        /// The number of bytes that are allowed.
        limit: usize,
    },
    /// The machine does not have enough memory, or the limit of the process is too low.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
    /// The operating system refused a block of memory.
    #[error(transparent)]
    NoArena(#[from] NoArena),
    /// There is no value of that name to keep.
    #[error("there is no value `{name}` in the plan")]
    NoValue {
        /// The name that was asked for.
        name: String,
    },
    /// An input is missing from a request.
    #[error("input `{name}` {expected} is missing")]
    MissingInput {
        /// Name of the input.
        name: String,
        /// Type of the input.
        expected: ValueType,
    },
    /// A request names an input that the model does not have.
    #[error("the model has no input `{name}` (it has {known})")]
    UnknownInput {
        /// The name in the request.
        name: String,
        /// The names of the model's inputs.
        known: String,
    },
    /// A value for one evaluation was given to an input that is not a step condition.
    #[error("`{name}` is no input with a value per evaluation (those are: {known})")]
    NoStepCondition {
        /// The name that was given.
        name: String,
        /// The names of the step conditions.
        known: String,
    },
    /// An input has the wrong type or shape.
    #[error("input `{name}` is {dtype} {shape:?}, expected {expected}")]
    InputType {
        /// Name of the input.
        name: String,
        /// Element type of the given tensor.
        dtype: DType,
        /// Shape of the given tensor.
        shape: Vec<usize>,
        /// The expected type and shape, as text.
        expected: String,
    },
    /// A slice has the wrong length.
    #[error("{what} has {found} values, expected {expected}")]
    Length {
        /// The slice, in words.
        what: &'static str,
        /// The number of given values.
        found: usize,
        /// The expected number of values.
        expected: usize,
    },
    /// A scale of 0, which leaves an activation unrounded, was given to an engine that stores the
    /// activation as codes.
    #[error(
        "table `{constant}` scales codes and cannot hold 0: open the engine with `low_precision: false`"
    )]
    Codes {
        /// Name of the table.
        constant: String,
    },
    /// The number of time steps is wrong.
    #[error("{found} time steps, the plan is made for {expected}")]
    Timesteps {
        /// The number of given time steps.
        found: usize,
        /// The number of evaluations of the plan.
        expected: usize,
    },
    /// The evaluation does not exist.
    #[error("evaluation {evaluation} of {evaluations}")]
    Evaluation {
        /// Index of the requested evaluation.
        evaluation: usize,
        /// The number of evaluations.
        evaluations: usize,
    },
    /// The request was begun by another engine.
    #[error("the request was begun by another engine")]
    ForeignRequest,
    /// A cached step was asked for before any full step, or of a plan without a cache.
    #[error("evaluation {evaluation} reads the cache, and nothing is stored there")]
    NothingCached {
        /// Index of the requested evaluation.
        evaluation: usize,
    },
    /// The plan has no float sample input or no float output, which a loop needs.
    #[error("the plan has no {0} to run a loop with")]
    NoLoop(&'static str),
    /// An engine on a device does not support the operation.
    #[error("an engine on a device: {what}")]
    OnDevice {
        /// The operation, in words.
        what: &'static str,
    },
    /// The device has no kernel for a step.
    #[error("program {program}: step `{step}` ({op}) has no kernel on the device: {reason}")]
    NoDeviceKernel {
        /// The program of the step.
        program: ProgramKind,
        /// Name of the step.
        step: String,
        /// Operator of the step.
        op: String,
        /// The property of the step that no kernel supports.
        reason: String,
    },
    /// A program stopped on the device because of invalid numbers in its data.
    #[error("program {program} failed on the device: {fault}")]
    Fault {
        /// The program that stopped.
        program: ProgramKind,
        /// The error, in words.
        fault: String,
    },
    /// All request slots of the engine are in use.
    #[error("the engine serves {slots} requests at once")]
    NoSlot {
        /// The number of slots.
        slots: usize,
    },
    /// The device reported an error.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
    /// A step failed on its data.
    #[error("step `{step}` of program {program} failed: {reason}")]
    Execution {
        /// The program of the step.
        program: ProgramKind,
        /// Name of the step.
        step: String,
        /// The data error, in words.
        reason: String,
    },
    /// The size of a tensor's data does not fit its shape.
    #[error(transparent)]
    Tensor(#[from] TensorSizeError),
}
