//! The plan, which is the result of the compiler and the input of the runtime.
//!
//! A plan is the denoising loop divided by binding time. Its programs are lists of operators over
//! numbered values, in execution order and without branches. The runtime assigns addresses for the
//! batch with which a plan is opened, and then runs the programs without searching, inferring or
//! allocating.
//!
//! | program | runs | value of the batch symbol |
//! |---|---|---|
//! | `prelude` | once per request | batch |
//! | `prelude_steps` | once per request for all evaluations, in evaluation-major order (with a fixed batch it may also run once per evaluation) | evaluations · batch |
//! | `full` | at every evaluation, or with a cache at the full evaluations | batch |
//! | `cached` | at the other evaluations; it reads the values that the last `full` stored | batch |
//!
//! With guidance the batch holds both halves: twice the samples, the unconditional half first.

use crate::dim::Dim;
use crate::dtype::DType;
use crate::op::Op;
use crate::types::{ValueType, element_count};

mod codes;
mod text;
mod validate;

pub use codes::WeightCodes;
pub use validate::{MAX_INPUTS, PlanError, validate};

use serde::{Deserialize, Serialize};

/// A compiled loop without the bytes of its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The symbol for the batch in every shape, or `None` if the model has a fixed batch.
    pub batch_symbol: Option<String>,
    /// The batch size of a model with a fixed batch.
    #[serde(default)]
    pub fixed_batch: Option<usize>,
    /// The inputs of the source model, in its order.
    pub inputs: Vec<PlanInput>,
    /// The outputs of the source model, in its order.
    pub outputs: Vec<PlanOutput>,
    /// The number of evaluations for which the tables were made. It is 0 if the time step is an
    /// ordinary input.
    pub evaluations: usize,
    /// The constants. Their bytes are in the weight section of the artifact.
    pub constants: Vec<Constant>,
    /// The program that runs once per request and computes the values that depend on conditions
    /// only. It may have no steps.
    pub prelude: Program,
    /// The program that runs once per request for all evaluations and computes the values that
    /// depend on conditions and the time step. It may have no steps.
    pub prelude_steps: Program,
    /// The full step, which is one evaluation of the whole network.
    pub full: Program,
    /// The cache and the cached step. With `None`, every evaluation runs the full step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// The program that computes tables of the time step. With `None`, only the rows of the
    /// compiled time steps are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<TimeTables>,
}

/// The part of the network that depends on the time step alone. With it, a loop can run at other
/// time steps than those for which it was compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimeTables {
    /// A program that reads constants and the time step, in the model's type. Its results, for a
    /// batch of one, are rows of tables.
    pub program: Program,
    /// The table of each result, `Plan::constants[i]`.
    pub tables: Vec<usize>,
}

/// The reuse of values between evaluations (DeepCache, arXiv:2312.00858). Full evaluations run
/// `full` and store some of its values. The others run `cached`, which reads the stored values
/// instead of computing them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// The values that full evaluations store.
    pub slots: Vec<CacheSlot>,
    /// The cached step, which reads the slots. Its `results` are the model's outputs in the order
    /// of `Plan::outputs`.
    pub cached: Program,
    /// The evaluations that run `full`, in ascending order. The first is 0.
    pub full_evaluations: Vec<usize>,
}

/// One value that full evaluations store and cached ones read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheSlot {
    /// Name for messages, which is that of the tensor in the source model.
    pub name: String,
    /// The value of `full` that is stored after it has run. Its type is the type of the slot.
    pub value: usize,
    /// If set, the slot holds the previous content of slot `i`: the value of the full evaluation
    /// before the last one, or of the first one as long as there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_of: Option<usize>,
}

/// One of the programs of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramKind {
    /// The program [`Plan::prelude`], which runs once per request.
    Prelude,
    /// The program [`Plan::prelude_steps`], which runs once per request for all evaluations.
    PreludeSteps,
    /// The full step, [`Plan::full`].
    Full,
    /// The cached step, [`Cache::cached`].
    Cached,
}

impl ProgramKind {
    /// All programs, in the order in which they run.
    pub const ALL: [ProgramKind; 4] =
        [ProgramKind::Prelude, ProgramKind::PreludeSteps, ProgramKind::Full, ProgramKind::Cached];

    /// Whether the program runs at evaluations, and not before the loop.
    pub fn is_step(self) -> bool {
        matches!(self, ProgramKind::Full | ProgramKind::Cached)
    }
}

impl std::fmt::Display for ProgramKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ProgramKind::Prelude => "prelude",
            ProgramKind::PreludeSteps => "prelude_steps",
            ProgramKind::Full => "full",
            ProgramKind::Cached => "cached",
        })
    }
}

impl Plan {
    /// The program of that kind. It is empty if the plan has no cache and the kind is `Cached`.
    pub fn program(&self, kind: ProgramKind) -> &Program {
        static NONE: Program =
            Program { values: Vec::new(), steps: Vec::new(), results: Vec::new() };
        match kind {
            ProgramKind::Prelude => &self.prelude,
            ProgramKind::PreludeSteps => &self.prelude_steps,
            ProgramKind::Full => &self.full,
            ProgramKind::Cached => self.cache.as_ref().map_or(&NONE, |cache| &cache.cached),
        }
    }

    /// The program that evaluation `e` of the loop runs.
    pub fn program_at(&self, e: usize) -> ProgramKind {
        match &self.cache {
            Some(cache) if cache.full_evaluations.binary_search(&e).is_err() => ProgramKind::Cached,
            _ => ProgramKind::Full,
        }
    }

    /// The value that holds output number `output` of the model after `kind` (`full` or `cached`)
    /// has run.
    pub fn output_value(&self, kind: ProgramKind, output: usize) -> usize {
        match (kind, &self.cache) {
            (ProgramKind::Cached, Some(cache)) => cache.cached.results[output],
            _ => self.outputs[output].value,
        }
    }
}

impl Plan {
    /// The program of [`Plan::times`] as a plan of its own for one evaluation. Its input is the
    /// time step, and its outputs are one row of every table, in their order.
    pub fn time_plan(&self) -> Option<Plan> {
        let times = self.times.as_ref()?;
        let input = self.inputs.iter().position(|i| i.role == InputRole::Timestep)?;
        let mut full = times.program.clone();
        let results = std::mem::take(&mut full.results);
        for value in &mut full.values {
            match &mut value.source {
                Source::Input(i) if *i == input => *i = 0,
                // validation ensures that there is no other input
                Source::Input(i) => *i = usize::MAX,
                _ => {}
            }
        }
        let ty = |value: usize| {
            full.values
                .get(value)
                .map_or_else(|| ValueType::fixed(DType::F32, &[]), |v| v.ty.clone())
        };
        let output = |(i, &value): (usize, &usize)| PlanOutput {
            name: format!("table {i}"),
            ty: ty(value),
            value,
        };
        let outputs = results.iter().enumerate().map(output).collect();
        Some(Plan {
            batch_symbol: self.batch_symbol.clone(),
            fixed_batch: self.fixed_batch,
            inputs: vec![self.inputs[input].clone()],
            outputs,
            evaluations: 0,
            constants: self.constants.clone(),
            prelude: Program::default(),
            prelude_steps: Program::default(),
            full,
            cache: None,
            times: None,
        })
    }

    /// Whether `prelude_steps` of a plan with a fixed batch runs once per evaluation. Its time step
    /// then has the shape of the input and is not stacked for all evaluations.
    pub fn steps_one_by_one(&self) -> bool {
        let single = |v: &PlanValue| match v.source {
            Source::Input(i) => self.inputs.get(i).is_some_and(|input| {
                input.role == InputRole::Timestep && input.ty.shape == v.ty.shape
            }),
            _ => false,
        };
        self.batch_symbol.is_none() && self.prelude_steps.values.iter().any(single)
    }
}

/// The role of an input in the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputRole {
    /// The noisy sample, which the loop turns into the result.
    Sample,
    /// The time step. In a plan with tables, no step of `full` reads it.
    Timestep,
    /// Any other input, such as labels, text states and added embeddings. It is constant during a
    /// request.
    Condition,
    /// A condition that has another value at every evaluation, such as the residuals of a
    /// ControlNet.
    StepCondition,
}

impl InputRole {
    /// Whether the input is neither the sample nor the time step.
    pub fn is_condition(self) -> bool {
        matches!(self, InputRole::Condition | InputRole::StepCondition)
    }
}

/// An input of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanInput {
    /// Name in the source model.
    pub name: String,
    /// Type in the source model, which callers give.
    pub ty: ValueType,
    /// Role in the loop.
    pub role: InputRole,
}

/// An output of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanOutput {
    /// Name in the source model.
    pub name: String,
    /// Type in the source model, which callers get.
    pub ty: ValueType,
    /// The value of `full` that holds the output, possibly in a wider float type.
    pub value: usize,
}

/// A constant tensor. Axis 0 of a table is the evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constant {
    /// Name in the source model, or a generated name.
    pub name: String,
    /// Type, with all sizes known.
    pub ty: ValueType,
    /// Offset of the first byte in the weight section, a multiple of 64.
    pub offset: u64,
    /// The encoding of a quantized constant. `None` if the bytes are the values themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<WeightCodes>,
}

impl Constant {
    /// The number of bytes in the weight section, or `None` if the sizes are unknown or too large.
    pub fn stored_bytes(&self) -> Option<usize> {
        let elements = element_count(&self.ty.fixed_shape()?)?;
        match &self.codes {
            None => elements.checked_mul(self.ty.dtype.size()),
            Some(codes) => Some((elements * usize::from(codes.bits)).div_ceil(8)),
        }
    }
}

/// A list of operators in execution order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The values, including inputs and constants.
    pub values: Vec<PlanValue>,
    /// The applications of operators, in execution order.
    pub steps: Vec<Step>,
    /// In a prelude, the values that `full` reads, in the order of [`Source::Prelude`] or
    /// [`Source::PreludeSteps`]. In `cached`, the model's outputs.
    pub results: Vec<usize>,
}

/// The origin of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A step writes it.
    Step,
    /// It is `Plan::inputs[i]`, with floats widened to f32. In `prelude_steps` a condition is
    /// repeated for every evaluation, and the time step may be a vector `[evaluations · batch]`
    /// whatever its type in the model is.
    Input(usize),
    /// It is `Plan::constants[i]`, possibly with floats widened to f32.
    Constant(usize),
    /// It is the row of this evaluation in `Plan::constants[i]`, whose axis 0 is the evaluation. In
    /// `prelude_steps` it is all rows, each repeated for the batch: `[evaluations · batch, ...]`
    /// for a table `[evaluations, ...]` or `[evaluations, 1, ...]`.
    Table(usize),
    /// It is result `i` of `prelude`. `full` and `prelude_steps` read it; in the latter it is
    /// repeated like a condition.
    Prelude(usize),
    /// It is the rows of this evaluation in result `i` of `prelude_steps`, whose axis 0 has the
    /// size evaluations · batch.
    PreludeSteps(usize),
    /// It is slot `i` of the cache. Only `cached` reads it.
    Cache(usize),
}

/// A value of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanValue {
    /// Name for messages, which is that in the source model if it has one.
    pub name: String,
    /// Type; floats are f32.
    pub ty: ValueType,
    /// Origin of the value.
    pub source: Source,
    /// Storage that is shared with another value of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
}

/// The position of a value inside another one. The other value comes from a step and is not an
/// alias itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alias {
    /// The same elements, as after a reshape. No step needs to write the value, because it exists
    /// as soon as the other value does.
    Same {
        /// Index of the other value.
        of: usize,
    },
    /// The columns from `offset` on of the other value's last axis. The axes before it have the
    /// same number of rows. It is used for concatenations whose inputs are written in place.
    Columns {
        /// Index of the other value.
        of: usize,
        /// The first column in the other value.
        offset: Dim,
    },
}

/// One application of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The operator with its attributes.
    pub op: Op,
    /// The values that are read. `None` stands for an optional input that is absent.
    pub inputs: Vec<Option<usize>>,
    /// The values that are written.
    pub outputs: Vec<usize>,
    /// Name of the node, for messages and profiles.
    pub name: String,
}
