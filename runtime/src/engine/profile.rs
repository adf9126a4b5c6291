//! How each step is executed, and how long it takes.

use super::kernel::{Kernel, NumberFormat};
use super::program::{PreparedProgram, PreparedStep};
use super::wiring::ResultRounding;
use super::{Engine, EngineError, EngineOptions, Weights};
use cqc_proto::plan::ProgramKind;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How a step is executed on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Execution {
    /// A kernel computes in f32, or moves elements of any type.
    F32,
    /// A kernel multiplies bf16 and adds in f32.
    Bf16,
    /// A kernel multiplies integers of at most 8 bits and adds in i32.
    Int8,
    /// Nothing is left to do: the step before it computes its result too, or that lies where it
    /// belongs.
    Fused,
    /// There is no kernel for it: it runs through the slow definition.
    Definition,
}

impl Execution {
    /// `f32`, `bf16`, `int8`, `fused` or `definition`.
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

/// How one step of one program is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepExecution {
    /// The program it belongs to.
    pub program: ProgramKind,
    /// The step's name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// How.
    pub execution: Execution,
    /// What it reads and writes when it runs, as text such as `x:u8, bias → y/rounded:u8, rounded
    /// to 8 bits`. Values stand with the type they are stored in where that is not their own;
    /// operands that the step lacks, and weights that were packed, are left out. Empty of a step
    /// that is fused.
    pub wiring: String,
}

/// What one step of one program has cost since the engine was opened or
/// [`reset`](super::Engine::reset_profile).
#[derive(Clone, Debug, PartialEq)]
pub struct StepProfile {
    /// The program it belongs to.
    pub program: ProgramKind,
    /// The step's name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// How it is executed.
    pub execution: Execution,
    /// Time in all calls. Zero unless the engine was opened with `profile`.
    pub total: Duration,
    /// Number of calls. Zero unless the engine was opened with `profile`.
    pub calls: u64,
    /// Evaluations that a call computes: more than one in [`ProgramKind::PreludeSteps`], where the
    /// last call may have fewer.
    pub evaluations: usize,
}

impl Weights {
    /// How every step of every program of the plan is executed on this CPU, in an engine with
    /// default options. It does not depend on the batch. Packs the weights, as opening an engine
    /// does.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn steps(self: &Arc<Weights>) -> Result<Vec<StepExecution>, EngineError> {
        let batch = self.plan().fixed_batch.unwrap_or(1);
        Ok(Engine::open(self, &EngineOptions { batch, threads: 1, ..Default::default() })?.steps())
    }
}

impl Engine {
    /// How every step of every program is executed, on the CPU: a device that the engine may have
    /// is not asked.
    pub fn steps(&self) -> Vec<StepExecution> {
        let steps = self.programs.iter().flat_map(|program| program.steps.iter().map(move |step| (program, step)));
        let described = steps.map(|(program, step)| StepExecution {
            program: program.kind,
            name: step.name.clone(),
            op: step.op.clone(),
            execution: Execution::of(&step.kernel),
            wiring: wiring(program, step),
        });
        described.collect()
    }

    /// Every step of every program: how it is executed and, if asked for at open, how long that
    /// takes.
    pub fn profile(&self) -> Vec<StepProfile> {
        let programs = self.programs.iter();
        let steps = programs.flat_map(|program| program.steps.iter().enumerate().map(|(i, s)| (program.kind, i, s)));
        let profiles = steps.map(|(program, i, step)| {
            let (total, calls) = self.clock.as_ref().map_or_else(Default::default, |c| c[program as usize][i]);
            let execution = Execution::of(&step.kernel);
            let evaluations = if program == ProgramKind::PreludeSteps { self.chunk } else { 1 };
            let (name, op) = (step.name.clone(), step.op.clone());
            StepProfile { program, name, op, execution, total, calls, evaluations }
        });
        profiles.collect()
    }

    /// Forgets the times measured so far.
    pub fn reset_profile(&mut self) {
        let entries = self.clock.iter_mut().flatten().flatten();
        entries.for_each(|entry| *entry = Default::default());
    }
}

/// [`StepExecution::wiring`].
fn wiring(program: &PreparedProgram, step: &PreparedStep) -> String {
    if step.outputs.is_empty() || matches!(step.kernel, Kernel::Nothing) {
        return String::new();
    }
    let stored = |v: &usize| {
        let value = &program.values[*v];
        value.stored_as.map_or_else(|| value.name.clone(), |dtype| format!("{}:{dtype}", value.name))
    };
    let list = |values: &mut dyn Iterator<Item = &usize>| values.map(stored).collect::<Vec<_>>().join(", ");
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
