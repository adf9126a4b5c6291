//! The engine executes a plan. It uses one static block of memory, chooses kernels when it is
//! opened, and allocates nothing in the loop.
//!
//! ```text
//! Weights::new(plan, bytes)         validate once; packed copies of weights live here
//!   Engine::open(weights, options)  sizes for a batch, kernels, addresses
//!     begin(conditions, timesteps)  prelude, prelude_steps: an [`InFlight`] request
//!       evaluate(request, 0 ..)     full or cached
//! ```
//!
//! The arena of the engine holds the buffers of the program that runs; all programs share it. Data
//! that outlive a program belong to the request: the model's inputs, the results of the preludes
//! and the cache. Several requests, each at its own evaluation, can therefore share an engine.

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

/// The options with which an engine is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The number of samples per evaluation. Both halves of guidance count.
    pub batch: usize,
    /// The number of threads, including the calling one.
    pub threads: usize,
    /// A thread pool to share with other engines, or one with the caller's threads
    /// ([`Pool::from_executor`]). With `None`, the engine has `threads` threads of its own.
    pub pool: Option<Arc<Pool>>,
    /// Names of values of the full step that [`Engine::tap`] can read after a run, and after a
    /// cached step if that has them too. Keeping values costs memory.
    pub keep: Vec<String>,
    /// Measures the time of every step for [`Engine::profile`].
    pub profile: bool,
    /// Multiplies integers in quantized layers, multiplies bf16 if the plan has such layers and the
    /// CPU an instruction for it, and lets steps round their results while they store them. Without
    /// it, everything is computed step by step in f32 on the rounded values. With it, a watched
    /// step ([`Engine::evaluate_watched`]) may lack operands.
    pub low_precision: bool,
    /// Multiplies bf16 even if the CPU has no instruction for it. This is very slow and meant for
    /// tests.
    pub emulate_bf16: bool,
    /// Runs every step through the definition of its operator. This is very slow and meant for
    /// comparison.
    pub reference: bool,
    /// The device that evaluates. Preludes for which it has no kernels run on the CPU. It runs
    /// loops only, and does not support `keep`, `profile` and `reference`.
    pub device: Option<Arc<dyn Backend>>,
    /// The maximum number of bytes of activations, including those of one request. The machine must
    /// have the memory in any case ([`cqc_kernels::memory`]).
    pub max_memory: usize,
    /// If the buffers of `prelude_steps` would exceed this number of bytes, it computes fewer
    /// evaluations at once.
    pub prelude_memory: usize,
}

impl Default for EngineOptions {
    /// A batch of 1, one thread per core, no limit on memory, and 64 MiB for `prelude_steps`.
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

/// A plan that is ready to run with one batch size.
pub struct Engine {
    weights: Arc<Weights>,
    pool: Arc<Pool>,
    /// The options with which it was opened.
    options: EngineOptions,
    batch: usize,
    arena: Arena,
    layout: Arc<RequestLayout>,
    /// The number of evaluations that `prelude_steps` computes at once.
    chunk: usize,
    /// The programs in the order of [`ProgramKind::ALL`].
    programs: [PreparedProgram; 4],
    /// The values that stay readable, by name: those of the full step, then those of the cached
    /// step.
    kept: [BTreeMap<String, usize>; 2],
    clock: Option<[Vec<(Duration, u64)>; 4]>,
    device: Option<Box<dyn DeviceEngine>>,
}

/// The memory that an engine needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSizes {
    /// The memory of each request.
    pub request: usize,
    /// The buffers of each program, in the order of [`ProgramKind::ALL`]. They share one block.
    pub programs: [usize; 4],
}

/// The layout of a request's memory, which holds the data that outlive a program.
#[derive(Debug)]
pub struct RequestLayout {
    pub(crate) inputs: Vec<InputSlot>,
    /// The place of each result of `prelude`.
    pub(crate) results: Vec<Span>,
    /// The place of each result of `prelude_steps` for evaluation 0. Those for the other
    /// evaluations follow it.
    pub(crate) step_results: Vec<Span>,
    /// The place of each cache slot.
    pub(crate) cache: Vec<Span>,
    /// The size of the request's memory in bytes.
    bytes: usize,
}

/// The place of an input of the model in a request's memory.
#[derive(Clone, Debug)]
pub(crate) struct InputSlot {
    pub(crate) shape: Vec<usize>,
    /// The type that programs read; all floats are f32.
    pub(crate) dtype: DType,
    pub(crate) span: Span,
}

impl Engine {
    /// Resolves all sizes, chooses kernels, packs the weights and lays out the memory.
    ///
    /// # Errors
    /// An [`EngineError`] if the plan does not run with the batch size, if a size has no valid
    /// value, or if the memory is not sufficient.
    pub fn open(weights: &Arc<Weights>, options: &EngineOptions) -> Result<Engine, EngineError> {
        open::open(weights, options)
    }

    /// The memory that an engine with these options would need on the CPU. Nothing is allocated.
    ///
    /// # Errors
    /// Those of [`Engine::open`], except that the available memory is not checked.
    pub fn sizes(
        weights: &Arc<Weights>,
        options: &EngineOptions,
    ) -> Result<EngineSizes, EngineError> {
        open::sizes(weights, options)
    }

    /// The plan that the engine runs.
    pub fn plan(&self) -> &Plan {
        self.weights.plan()
    }

    /// The weights of the engine, and options that open another engine like it on the same threads.
    pub fn recipe(&self) -> (Arc<Weights>, EngineOptions) {
        (
            self.weights.clone(),
            EngineOptions { pool: Some(self.pool.clone()), ..self.options.clone() },
        )
    }

    /// The number of samples per evaluation.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The device that evaluates, or `None` if it is the CPU.
    pub fn device(&self) -> Option<&dyn DeviceEngine> {
        self.device.as_deref()
    }

    /// The number of bytes of activations in this machine's memory, for the engine and one request.
    pub fn memory_bytes(&self) -> usize {
        self.arena.len() + self.layout.bytes
    }

    /// The number of bytes that every request needs.
    pub fn request_bytes(&self) -> usize {
        self.layout.bytes
    }

    /// The number of bytes of the buffers that a program needs.
    pub fn program_bytes(&self, kind: ProgramKind) -> usize {
        self.programs[kind as usize].bytes
    }

    /// The shape of input `i` of the plan at this batch size.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn input_shape(&self, i: usize) -> &[usize] {
        &self.layout.inputs[i].shape
    }

    /// The shape of output `i` of the plan at this batch size.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn output_shape(&self, i: usize) -> &[usize] {
        &self.full().values[self.plan().outputs[i].value].shape
    }

    fn full(&self) -> &PreparedProgram {
        &self.programs[ProgramKind::Full as usize]
    }

    /// Runs one program for a request. `evaluation` selects the rows of tables. `watch` is called
    /// before and after each step.
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

    /// A kept value or an output after the last run, which must have been a run of `request`.
    /// `None` for any other name, for a value that the program that ran does not have, and on a
    /// device.
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
