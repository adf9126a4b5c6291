//! What can go wrong between a plan and its outputs.

use cqc_kernels::IsaError;
use cqc_kernels::arena::NoArena;
use cqc_kernels::memory::NoMemory;
use cqc_proto::plan::{PlanError, ProgramKind};
use cqc_proto::tensor::TensorSizeError;
use cqc_proto::{DType, ValueType};

/// Why an engine cannot be opened or a request cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The plan is broken.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// `CQC_ISA` names no instruction set of this CPU.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A batch that the plan cannot run with.
    #[error("the plan runs with a batch of {allowed}, asked for {asked}")]
    Batch {
        /// As asked for.
        asked: usize,
        /// What would work, in words.
        allowed: String,
    },
    /// A value has no valid size for this batch.
    #[error("`{name}` of program {program} has type {ty}, which has no valid size at this batch")]
    Size {
        /// The program.
        program: ProgramKind,
        /// The value's name.
        name: String,
        /// Its type.
        ty: ValueType,
    },
    /// A step breaks its operator's rule at this batch.
    #[error("step `{step}` of program {program}: {reason}")]
    Step {
        /// The program.
        program: ProgramKind,
        /// The step's name.
        step: String,
        /// What was expected and what was seen.
        reason: String,
    },
    /// The activations do not fit the allowed memory ([`EngineOptions::max_memory`]).
    ///
    /// [`EngineOptions::max_memory`]: super::EngineOptions::max_memory
    #[error("needs {needed} bytes of activations, {limit} are allowed")]
    Memory {
        /// Bytes needed.
        needed: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// There is not as much memory.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
    /// The system refuses a block of memory.
    #[error(transparent)]
    NoArena(#[from] NoArena),
    /// A value to keep does not exist.
    #[error("there is no value `{name}` in the plan")]
    NoValue {
        /// As asked for.
        name: String,
    },
    /// An input is missing from a request.
    #[error("input `{name}` {expected} is missing")]
    MissingInput {
        /// Its name.
        name: String,
        /// Its type.
        expected: ValueType,
    },
    /// A request names an input that the model does not have.
    #[error("the model has no input `{name}` (it has {known})")]
    UnknownInput {
        /// As given.
        name: String,
        /// The names it has.
        known: String,
    },
    /// A value for one evaluation, and the input has one for all of them.
    #[error("`{name}` is no input with a value per evaluation (those are: {known})")]
    NoStepCondition {
        /// As given.
        name: String,
        /// The names of such inputs.
        known: String,
    },
    /// An input has the wrong type.
    #[error("input `{name}` is {dtype} {shape:?}, expected {expected}")]
    InputType {
        /// Its name.
        name: String,
        /// Element type given.
        dtype: DType,
        /// Shape given.
        shape: Vec<usize>,
        /// Type expected.
        expected: String,
    },
    /// A slice has the wrong length.
    #[error("{what} has {found} values, expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it should have.
        expected: usize,
    },
    /// A scale of 0 lets an activation pass, but this engine stores it as codes.
    #[error(
        "table `{constant}` scales codes and cannot hold 0: open the engine with `low_precision: false`"
    )]
    Codes {
        /// The table.
        constant: String,
    },
    /// The wrong number of time steps.
    #[error("{found} time steps, the plan is made for {expected}")]
    Timesteps {
        /// How many were given.
        found: usize,
        /// How many the plan has.
        expected: usize,
    },
    /// An evaluation beyond the last.
    #[error("evaluation {evaluation} of {evaluations}")]
    Evaluation {
        /// As asked for.
        evaluation: usize,
        /// How many there are.
        evaluations: usize,
    },
    /// A request goes on with another engine than it began with.
    #[error("the request was begun by another engine")]
    ForeignRequest,
    /// A cached evaluation before any full one, or of a plan without a cache.
    #[error("evaluation {evaluation} reads the cache, and nothing is stored there")]
    NothingCached {
        /// As asked for.
        evaluation: usize,
    },
    /// `evaluate` needs a float sample as input and a float output.
    #[error("the plan has no {0} to run a loop with")]
    NoLoop(&'static str),
    /// Something that an engine on a device does not do.
    #[error("an engine on a device: {what}")]
    OnDevice {
        /// What.
        what: &'static str,
    },
    /// A step that the device has no kernel for.
    #[error("program {program}: step `{step}` ({op}) has no kernel on the device: {reason}")]
    NoDeviceKernel {
        /// The program.
        program: ProgramKind,
        /// The step's name.
        step: String,
        /// Its operator.
        op: String,
        /// What is missing.
        reason: String,
    },
    /// A program met numbers on the device that it cannot go on with.
    #[error("program {program} failed on the device: {fault}")]
    Fault {
        /// The program.
        program: ProgramKind,
        /// What happened.
        fault: String,
    },
    /// All slots of requests are taken.
    #[error("the engine serves {slots} requests at once")]
    NoSlot {
        /// How many there are.
        slots: usize,
    },
    /// The device reports an error.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
    /// A step failed on the data it got.
    #[error("step `{step}` of program {program} failed: {reason}")]
    Execution {
        /// The program.
        program: ProgramKind,
        /// The step's name.
        step: String,
        /// What was expected and what was seen.
        reason: String,
    },
    /// A tensor's bytes do not fit its shape.
    #[error(transparent)]
    Tensor(#[from] TensorSizeError),
}
