//! The execution of each step on the CPU, and its time.

use super::kernel::{Kernel, NumberFormat};
use super::program::{PreparedProgram, PreparedStep};
use super::wiring::ResultRounding;
use super::{Engine, EngineError, EngineOptions, Weights};
use cqc_proto::plan::ProgramKind;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The way in which a step is executed on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Execution {
    /// A kernel computes in f32, or moves elements of any type.
    F32,
    /// A kernel multiplies bf16 and adds in f32.
    Bf16,
    /// A kernel multiplies integers of at most 8 bits and adds in i32.
    Int8,
    /// Nothing is left to do, because the step before it also computes its result, or because the
    /// result is already in its place.
    Fused,
    /// There is no kernel for the step, and it runs through the slow definition.
    Definition,
}

impl Execution {
    /// The name in text output: `f32`, `bf16`, `int8`, `fused` or `definition`.
    pub fn name(self) -> &'static str {
        match self {
            Execution::F32 => "f32",
            Execution::Bf16 => "bf16",
            Execution::Int8 => "int8",
            Execution::Fused => "fused",
            Execution::Definition => "definition",
        }
    }

    /// Whether it multiplies in a format with fewer bits than f32.
    pub fn is_low_precision(self) -> bool {
        match self {
            Execution::Bf16 | Execution::Int8 => true,
            Execution::F32 | Execution::Fused | Execution::Definition => false,
        }
    }

    fn of(kernel: &Kernel) -> Execution {
        match kernel {
            Kernel::Nothing => Execution::Fused,
            Kernel::Reference(_) => Execution::Definition,
            kernel => match kernel.traits().format {
                NumberFormat::F32 => Execution::F32,
                NumberFormat::Bf16 => Execution::Bf16,
                NumberFormat::Int8 => Execution::Int8,
            },
        }
    }
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The execution of one step of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepExecution {
    /// The program of the step.
    pub program: ProgramKind,
    /// Name of the step.
    pub name: String,
    /// Operator of the step.
    pub op: String,
    /// The way in which the step is executed.
    pub execution: Execution,
    /// The values that the step reads and writes when it runs, as text such as
    /// `x:u8, bias → y/rounded:u8, rounded to 8 bits`. A value is followed by the type in which it
    /// is stored if that differs from its own. Operands that the step lacks and packed weights are
    /// omitted. The text is empty for a fused step.
    pub wiring: String,
}

/// The time that one step of one program has taken since the engine was opened or
/// [`reset`](super::Engine::reset_profile).
#[derive(Clone, Debug, PartialEq)]
pub struct StepProfile {
    /// The program of the step.
    pub program: ProgramKind,
    /// Name of the step.
    pub name: String,
    /// Operator of the step.
    pub op: String,
    /// The way in which the step is executed.
    pub execution: Execution,
    /// Total time of all calls. It is zero unless the engine was opened with `profile`.
    pub total: Duration,
    /// The number of calls. It is zero unless the engine was opened with `profile`.
    pub calls: u64,
    /// The number of evaluations that one call computes. It is greater than one only in
    /// [`ProgramKind::PreludeSteps`]. The last call there may overlap the one before it.
    pub evaluations: usize,
}

impl Weights {
    /// The execution of every step of every program of the plan on this CPU, in an engine with
    /// default options. It does not depend on the batch. The call packs the weights, as opening an
    /// engine does.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn steps(self: &Arc<Weights>) -> Result<Vec<StepExecution>, EngineError> {
        let batch = self.plan().fixed_batch.unwrap_or(1);
        Ok(Engine::open(self, &EngineOptions { batch, threads: 1, ..Default::default() })?.steps())
    }
}

impl Engine {
    /// The execution of every step of every program on the CPU. A device of the engine is not
    /// considered.
    pub fn steps(&self) -> Vec<StepExecution> {
        let steps = self
            .programs
            .iter()
            .flat_map(|program| program.steps.iter().map(move |step| (program, step)));
        let described = steps.map(|(program, step)| StepExecution {
            program: program.kind,
            name: step.name.clone(),
            op: step.op.clone(),
            execution: Execution::of(&step.kernel),
            wiring: wiring(program, step),
        });
        described.collect()
    }

    /// The execution of every step of every program, with its time if the engine was opened with
    /// `profile`.
    pub fn profile(&self) -> Vec<StepProfile> {
        let programs = self.programs.iter();
        let steps = programs.flat_map(|program| {
            program.steps.iter().enumerate().map(|(i, s)| (program.kind, i, s))
        });
        let profiles = steps.map(|(program, i, step)| {
            let (total, calls) =
                self.clock.as_ref().map_or_else(Default::default, |c| c[program as usize][i]);
            let execution = Execution::of(&step.kernel);
            let evaluations = if program == ProgramKind::PreludeSteps { self.chunk } else { 1 };
            let (name, op) = (step.name.clone(), step.op.clone());
            StepProfile { program, name, op, execution, total, calls, evaluations }
        });
        profiles.collect()
    }

    /// Clears the times that have been measured so far.
    pub fn reset_profile(&mut self) {
        let entries = self.clock.iter_mut().flatten().flatten();
        entries.for_each(|entry| *entry = Default::default());
    }
}

/// The text of [`StepExecution::wiring`].
fn wiring(program: &PreparedProgram, step: &PreparedStep) -> String {
    if step.outputs.is_empty() || matches!(step.kernel, Kernel::Nothing) {
        return String::new();
    }
    let stored = |v: &usize| {
        let value = &program.values[*v];
        value
            .stored_as
            .map_or_else(|| value.name.clone(), |dtype| format!("{}:{dtype}", value.name))
    };
    let list = |values: &mut dyn Iterator<Item = &usize>| {
        values.map(stored).collect::<Vec<_>>().join(", ")
    };
    let reads = list(&mut step.inputs.iter().flatten());
    let rounding = match &step.rounding {
        Some(ResultRounding::Codes { bits, sizes, .. }) if sizes.len() > 1 => {
            format!(", rounded to {bits} bits in segments of {sizes:?}")
        }
        Some(ResultRounding::Codes { bits, .. }) => format!(", rounded to {bits} bits"),
        Some(ResultRounding::Bf16 { .. }) => ", rounded to bf16".into(),
        None => String::new(),
    };
    format!("{reads} → {}{rounding}", list(&mut step.outputs.iter()))
}
