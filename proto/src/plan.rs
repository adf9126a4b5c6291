//! The Plan: what the compiler hands to the runtime.
//!
//! A plan is the denoising loop cut by binding time. Programs are straight-line lists of operators
//! over numbered values, already in execution order; the runtime decides addresses for the batch it
//! is opened with and runs them without searching, inferring or allocating.
//!
//! | program | runs | its batch symbol is worth |
//! |---|---|---|
//! | `prelude` | once per request | batch |
//! | `prelude_steps` | once per request, for all evaluations at once, evaluation-major (fixed batch: may also run once per evaluation) | evaluations · batch |
//! | `full` | every evaluation, or those that compute what is cached | batch |
//! | `cached` | the other evaluations: reads what the last `full` stored | batch |
//!
//! With guidance the batch holds both halves: twice the samples, unconditional first.

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

/// A compiled loop without its constants' bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Symbol that stands for the batch in every shape; `None` when the model's batch is fixed.
    pub batch_symbol: Option<String>,
    /// The batch of a model with a fixed one.
    #[serde(default)]
    pub fixed_batch: Option<usize>,
    /// Inputs of the source model, in its order.
    pub inputs: Vec<PlanInput>,
    /// Outputs of the source model, in its order.
    pub outputs: Vec<PlanOutput>,
    /// Number of network evaluations the tables are made for; 0 when the time step is an ordinary
    /// input.
    pub evaluations: usize,
    /// Constants; their bytes are in the artifact's weight section.
    pub constants: Vec<Constant>,
    /// Once per request, batch as it is: values that depend on conditioning only. May have no
    /// steps.
    pub prelude: Program,
    /// Once per request for all evaluations: values that depend on conditioning and time step. May
    /// have no steps.
    pub prelude_steps: Program,
    /// One network evaluation.
    pub full: Program,
    /// What is kept from one evaluation for later ones; `None`: every evaluation runs `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// How tables of the time step are computed; `None`: only the rows of the compiled time steps
    /// are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<TimeTables>,
}

/// The part of the network that depends on the time step alone, so that a loop can be run at other
/// time steps than it was compiled for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimeTables {
    /// Reads constants and the time step, as the model takes it. Its results, for a batch of one,
    /// are rows of tables.
    pub program: Program,
    /// Per result, its table: `Plan::constants[i]`.
    pub tables: Vec<usize>,
}

/// What evaluations reuse of earlier ones (DeepCache, arXiv:2312.00858): some run `full` and store
/// a few of its values, the others run `cached`, which reads them instead of computing what they
/// stand for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// What is kept.
    pub slots: Vec<CacheSlot>,
    /// The evaluation that reads the slots. Its `results` are the model's outputs, in the order of
    /// `Plan::outputs`.
    pub cached: Program,
    /// Evaluations that run `full`, ascending; the first is 0.
    pub full_evaluations: Vec<usize>,
}

/// One stored value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheSlot {
    /// Name for people: that of the source model's tensor.
    pub name: String,
    /// The value of `full` that is stored when it has run; its type is the slot's.
    pub value: usize,
    /// The slot holds what slot `i` held before: the value of the full evaluation before the last
    /// one; of the first one while there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_of: Option<usize>,
}

/// Which of a plan's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramKind {
    /// [`Plan::prelude`].
    Prelude,
    /// [`Plan::prelude_steps`].
    PreludeSteps,
    /// [`Plan::full`].
    Full,
    /// [`Cache::cached`].
    Cached,
}

impl ProgramKind {
    /// All of them, in the order in which they run.
    pub const ALL: [ProgramKind; 4] =
        [ProgramKind::Prelude, ProgramKind::PreludeSteps, ProgramKind::Full, ProgramKind::Cached];

    /// Whether it runs at every evaluation, or may.
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
    /// One of the programs; that of a cache that is not there is empty.
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
    /// The program of [`Plan::times`] as a plan for one evaluation: the time step goes in, a row of
    /// every table comes out, in their order.
    pub fn time_plan(&self) -> Option<Plan> {
        let times = self.times.as_ref()?;
        let input = self.inputs.iter().position(|i| i.role == InputRole::Timestep)?;
        let mut full = times.program.clone();
        let results = std::mem::take(&mut full.results);
        for value in &mut full.values {
            match &mut value.source {
                Source::Input(i) if *i == input => *i = 0,
                // no other input is there: validation says so
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

    /// Whether `prelude_steps` of a plan with a fixed batch runs once per evaluation: its time step
    /// is as long as the input, not stacked for all evaluations.
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

/// What an input means to the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputRole {
    /// The noisy sample.
    Sample,
    /// The time step; in a plan with tables nothing in `full` reads it.
    Timestep,
    /// Anything else: labels, text states, added embeddings. Constant during a request.
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

/// A model input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanInput {
    /// Name in the source model.
    pub name: String,
    /// Type in the source model: what callers give.
    pub ty: ValueType,
    /// What it means to the loop.
    pub role: InputRole,
}

/// A model output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanOutput {
    /// Name in the source model.
    pub name: String,
    /// Type in the source model: what callers get.
    pub ty: ValueType,
    /// The value of `full` that holds it (possibly in a wider float type).
    pub value: usize,
}

/// A constant tensor; for a table, axis 0 is the evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constant {
    /// Name in the source model, or a made-up one.
    pub name: String,
    /// Type, sizes all known.
    pub ty: ValueType,
    /// First byte in the weight section, a multiple of 64.
    pub offset: u64,
    /// How the bytes stand for the values, if not as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<WeightCodes>,
}

impl Constant {
    /// Bytes it takes in the weight section; `None` if its sizes are not known or too large.
    pub fn stored_bytes(&self) -> Option<usize> {
        let elements = element_count(&self.ty.fixed_shape()?)?;
        match &self.codes {
            None => elements.checked_mul(self.ty.dtype.size()),
            Some(codes) => Some((elements * usize::from(codes.bits)).div_ceil(8)),
        }
    }
}

/// Operators in execution order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Values, inputs and constants included.
    pub values: Vec<PlanValue>,
    /// Operators.
    pub steps: Vec<Step>,
    /// For a prelude: the values that `full` reads, in the order of [`Source::Prelude`] /
    /// [`Source::PreludeSteps`]. For `cached`: the model's outputs.
    pub results: Vec<usize>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Written by a step.
    Step,
    /// `Plan::inputs[i]`, floats widened to f32. In `prelude_steps` a condition is repeated for
    /// every evaluation, and the time step may be a vector `[evaluations · batch]` whatever its
    /// type in the model is.
    Input(usize),
    /// `Plan::constants[i]`.
    Constant(usize),
    /// Row `evaluation` of `Plan::constants[i]`, whose axis 0 is the evaluation. In
    /// `prelude_steps`: all rows, each repeated for the batch, so that the value is `[evaluations ·
    /// batch, ...]` for a table `[evaluations, ...]` or `[evaluations, 1, ...]`.
    Table(usize),
    /// Result `i` of `prelude`. `full` and `prelude_steps` read it, the latter as it reads a
    /// condition.
    Prelude(usize),
    /// Rows of this evaluation in result `i` of `prelude_steps`, whose axis 0 is evaluations ·
    /// batch.
    PreludeSteps(usize),
    /// Slot `i` of the cache; only `cached` reads it.
    Cache(usize),
}

/// A value of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanValue {
    /// Name for people: that of the source model where it has one.
    pub name: String,
    /// Type; floats are f32.
    pub ty: ValueType,
    /// Where it comes from.
    pub source: Source,
    /// Storage shared with another value of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
}

/// How a value lies inside another one. The other value comes from a step and is not itself an
/// alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alias {
    /// The same elements (a reshape). No step needs to write it: it is there when the other value
    /// is.
    Same {
        /// Index of the other value.
        of: usize,
    },
    /// Columns `offset..` of the other value's last axis; all axes before have the same number of
    /// rows. Concats written in place by their producers use it.
    Columns {
        /// Index of the other value.
        of: usize,
        /// First column.
        offset: Dim,
    },
}

/// One operator application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Operator and attributes.
    pub op: Op,
    /// Values read; `None` where an optional input is absent.
    pub inputs: Vec<Option<usize>>,
    /// Values written.
    pub outputs: Vec<usize>,
    /// Name of the node for people and profiles.
    pub name: String,
}
