//! Executes a plan: one static block of memory, kernels chosen when the engine is opened, nothing
//! allocated in the loop.
//!
//! ```text
//! Weights::new(plan, bytes)         validate once; packed copies of weights live here
//!   Engine::open(weights, options)  sizes for a batch, kernels, addresses
//!     begin(conditions, timesteps)  prelude, prelude_steps: an [`InFlight`] request
//!       evaluate(request, 0 ..)     full or cached
//! ```
//!
//! The engine's arena holds the buffers of whichever program runs; all programs share it. What
//! outlives a program belongs to the request: model inputs, results of the preludes, the cache. So
//! several requests, each at its own evaluation, can share an engine.

pub(crate) mod backend;
pub(crate) mod codes;
mod error;
mod execute;
mod in_flight;
pub(crate) mod kernel;
pub(crate) mod layout;
mod movement;
mod on_device;
mod open;
mod packed_file;
mod packing;
mod pairs;
pub(crate) mod prepare;
mod profile;
pub(crate) mod program;
pub(crate) mod request;
pub(crate) mod uses;
pub(crate) mod values;
mod watch;
mod weights;
pub(crate) mod wiring;

pub use backend::{
    Backend, DeviceEngine, DeviceEvaluation, DevicePreludes, DeviceRequest, DeviceSampling,
};
pub use cqc_kernels::{Executor, Pool};
pub use error::EngineError;
pub use in_flight::InFlight;
pub use packed_file::PackCache;
pub use profile::{Execution, StepExecution, StepProfile};
pub use watch::{Watch, Watched};
pub use weights::Weights;

use cqc_kernels::arena::{Arena, Span};
use cqc_proto::plan::{Plan, ProgramKind};
use cqc_proto::{DType, Tensor};
use execute::{Run, read_tensor, run_step};
use program::PreparedProgram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Samples per evaluation, both halves of guidance counted.
    pub batch: usize,
    /// Threads, the calling one counted.
    pub threads: usize,
    /// Threads to share with other engines, or those of the caller ([`Pool::from_executor`]),
    /// instead of `threads` own ones.
    pub pool: Option<Arc<Pool>>,
    /// Values of `full` that [`Engine::tap`] can read after a run, also where `cached` has them;
    /// they cost memory.
    pub keep: Vec<String>,
    /// Measures every step for [`Engine::profile`].
    pub profile: bool,
    /// Multiplies integers where the plan has quantized layers, and bf16 where it has such and this
    /// CPU an instruction for them, and lets steps round their results at once; without it
    /// everything is computed in f32, rounded to what these stand for, step by step. With it a step
    /// that is watched ([`Engine::evaluate_watched`]) may lack operands.
    pub low_precision: bool,
    /// Multiplies bf16 also where the CPU has no instruction for it: very slow, for tests.
    pub emulate_bf16: bool,
    /// Runs every step through its definition: very slow, for comparison.
    pub reference: bool,
    /// Evaluates there; preludes that the device has no kernels for run on the CPU. Only loops,
    /// without `keep`, `profile` and `reference`.
    pub device: Option<Arc<dyn Backend>>,
    /// Most bytes of activations, those of one request included. There must be as much memory in
    /// any case ([`cqc_kernels::memory`]).
    pub max_memory: usize,
    /// `prelude_steps` computes fewer evaluations at once if its buffers would take more bytes than
    /// this.
    pub prelude_memory: usize,
}

impl Default for EngineOptions {
    /// Batch 1, a thread per core, as much memory as there is, of which 64 MiB for `prelude_steps`.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (keep, max_memory, prelude_memory) = (Vec::new(), usize::MAX, 64 << 20);
        EngineOptions {
            batch: 1,
            threads,
            pool: None,
            keep,
            profile: false,
            low_precision: true,
            emulate_bf16: false,
            reference: false,
            device: None,
            max_memory,
            prelude_memory,
        }
    }
}

/// A plan ready to run at one batch.
pub struct Engine {
    weights: Arc<Weights>,
    pool: Arc<Pool>,
    /// How it was opened.
    options: EngineOptions,
    batch: usize,
    arena: Arena,
    layout: Arc<RequestLayout>,
    /// Evaluations that `prelude_steps` computes at once.
    chunk: usize,
    /// In the order of [`ProgramKind::ALL`].
    programs: [PreparedProgram; 4],
    /// Values of `full` and `cached` that stay readable, by name, in this order.
    kept: [BTreeMap<String, usize>; 2],
    clock: Option<[Vec<(Duration, u64)>; 4]>,
    device: Option<Box<dyn DeviceEngine>>,
}

/// What an engine takes of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSizes {
    /// Of every request.
    pub request: usize,
    /// Of the buffers of each program, in the order of [`ProgramKind::ALL`]; they share one block.
    pub programs: [usize; 4],
}

/// Where a request keeps what outlives a program.
#[derive(Debug)]
pub struct RequestLayout {
    pub(crate) inputs: Vec<InputSlot>,
    /// Per result of `prelude`, where it is kept.
    pub(crate) results: Vec<Span>,
    /// Per result of `prelude_steps`, where it is kept for evaluation 0; the others follow.
    pub(crate) step_results: Vec<Span>,
    /// Per slot of the cache, where it is kept.
    pub(crate) cache: Vec<Span>,
    /// Bytes of all.
    bytes: usize,
}

/// A model input in the arena.
#[derive(Clone, Debug)]
pub(crate) struct InputSlot {
    pub(crate) shape: Vec<usize>,
    /// As programs see it: floats are f32.
    pub(crate) dtype: DType,
    pub(crate) span: Span,
}

impl Engine {
    /// Resolves all sizes, chooses kernels, packs weights and lays out memory.
    ///
    /// # Errors
    /// A batch the plan does not run with, sizes without a value, too much memory.
    pub fn open(weights: &Arc<Weights>, options: &EngineOptions) -> Result<Engine, EngineError> {
        open::open(weights, options)
    }

    /// What an engine so opened would take, without taking it.
    ///
    /// # Errors
    /// As [`Engine::open`], but for memory that is not there.
    pub fn sizes(
        weights: &Arc<Weights>,
        options: &EngineOptions,
    ) -> Result<EngineSizes, EngineError> {
        open::sizes(weights, options)
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Plan {
        self.weights.plan()
    }

    /// The weights it runs on, and options that open another engine like it, on the same threads.
    pub fn recipe(&self) -> (Arc<Weights>, EngineOptions) {
        (
            self.weights.clone(),
            EngineOptions { pool: Some(self.pool.clone()), ..self.options.clone() },
        )
    }

    /// Samples per evaluation.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What it evaluates on, if not on the CPU.
    pub fn device(&self) -> Option<&dyn DeviceEngine> {
        self.device.as_deref()
    }

    /// Bytes of activations in this machine's memory: those of the engine, and of one request.
    pub fn memory_bytes(&self) -> usize {
        self.arena.len() + self.layout.bytes
    }

    /// Bytes that every request takes.
    pub fn request_bytes(&self) -> usize {
        self.layout.bytes
    }

    /// Bytes of the buffers that a program needs.
    pub fn program_bytes(&self, kind: ProgramKind) -> usize {
        self.programs[kind as usize].bytes
    }

    /// Sizes of input `i` of the plan at this batch.
    ///
    /// # Panics
    /// When there is no such input.
    pub fn input_shape(&self, i: usize) -> &[usize] {
        &self.layout.inputs[i].shape
    }

    /// Sizes of output `i` of the plan at this batch.
    ///
    /// # Panics
    /// When there is no such output.
    pub fn output_shape(&self, i: usize) -> &[usize] {
        &self.full().values[self.plan().outputs[i].value].shape
    }

    fn full(&self) -> &PreparedProgram {
        &self.programs[ProgramKind::Full as usize]
    }

    /// Runs one program for a request. `evaluation` selects rows of tables; `watch` is called
    /// around each step.
    fn run_program(
        &mut self,
        kind: ProgramKind,
        evaluation: usize,
        request: &Arena,
        mut watch: Option<&mut Watch>,
    ) -> Result<(), EngineError> {
        let program = &self.programs[kind as usize];
        let run = Run { isa: self.weights.isa(), pool: &self.pool, request, evaluation };
        for (index, step) in program.steps.iter().enumerate() {
            if let Some(watch) = &mut watch {
                let arena = &self.arena;
                watch(&Watched {
                    program,
                    arena,
                    request,
                    evaluation,
                    kind,
                    step: index,
                    done: false,
                });
            }
            let start = self.clock.is_some().then(Instant::now);
            run_step(program, index, &mut self.arena, run).map_err(|reason| {
                EngineError::Execution { program: kind, step: step.name.clone(), reason }
            })?;
            if let (Some(clock), Some(start)) = (&mut self.clock, start) {
                let (total, calls) = &mut clock[kind as usize][index];
                *total += start.elapsed();
                *calls += 1;
            }
            if let Some(watch) = &mut watch {
                let arena = &self.arena;
                watch(&Watched {
                    program,
                    arena,
                    request,
                    evaluation,
                    kind,
                    step: index,
                    done: true,
                });
            }
        }
        Ok(())
    }

    /// A kept value or an output after the last run, which must have been one of `request`; `None`
    /// for any other name, for a value that the program that ran does not have, and on a device.
    pub fn tap(&self, request: &InFlight, name: &str) -> Option<Tensor> {
        let (kind, evaluation) = request.last.filter(|_| self.device.is_none())?;
        let v = *self.kept[(kind == ProgramKind::Cached) as usize].get(name)?;
        Some(self.value(kind, v, request, evaluation))
    }

    fn value(&self, kind: ProgramKind, v: usize, request: &InFlight, evaluation: usize) -> Tensor {
        let program = &self.programs[kind as usize];
        read_tensor(
            &program.values[v],
            &program.locations[v],
            &self.arena,
            &request.memory,
            evaluation,
        )
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (batch, memory) = (self.batch, self.memory_bytes());
        f.debug_struct("Engine")
            .field("batch", &batch)
            .field("memory", &memory)
            .finish_non_exhaustive()
    }
}
