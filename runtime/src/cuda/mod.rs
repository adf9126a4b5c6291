//! Evaluates plans on a CUDA device or on its simulator.
//!
//! A prelude runs on the device, once per request, if there are kernels for all its steps
//! (`preludes`), and otherwise on the CPU. The results of the preludes, the conditions and the
//! cache lie in the request's slot on the device. `full` and `cached` are lists of launches that
//! are recorded when the engine is opened (on a GPU as two CUDA graphs). They are the same for all
//! evaluations and slots: the numbers of the evaluation and of the slot are in device memory. If
//! nobody looks at the samples between evaluations, the device also moves them (`sampler`) and
//! counts the evaluations itself.
//!
//! Between kernels, floats are fp16. Tables and constants are f32. Rounded activations are codes if
//! the plan multiplies integers.

mod constants;
mod fuse;
mod lower;
mod places;
mod preludes;
mod sampler;
mod slots;

use crate::engine::{
    Backend, DeviceEngine, DeviceEvaluation, DevicePreludes, DeviceRequest, DeviceSampling,
    EngineError, EngineOptions, RequestLayout, Weights,
};
use constants::Constants;
use cqc_kernels::arena::{Arena, bytes_of};
use cqc_kernels::cuda::{CudaError, Device, Memory, Operand, Recorded, State};
use cqc_proto::plan::{InputRole, ProgramKind};
use cqc_proto::{Bindings, DType};
use lower::Lowered;
use places::Placed;
use preludes::{Chunks, Prelude};
use sampler::SamplerLaunches;
use slots::{SlotLayout, Slots};
use std::fmt;
use std::sync::Arc;

/// The backend for CUDA devices.
#[derive(Clone)]
pub struct CudaBackend {
    /// The device, a GPU or the simulator.
    pub device: Arc<dyn Device>,
    /// The number of requests that an engine serves at once. Each has a slot of memory.
    pub slots: usize,
}

impl Backend for CudaBackend {
    fn prelude_bytes(
        &self,
        weights: &Weights,
        kind: ProgramKind,
        bindings: &Bindings,
    ) -> Result<usize, EngineError> {
        Ok(Placed::new(weights, kind, bindings, false, self.device.multiprocessors())?.bytes)
    }

    fn open(
        &self,
        weights: &Arc<Weights>,
        options: &EngineOptions,
        layout: &RequestLayout,
        preludes: DevicePreludes,
        chunk: usize,
    ) -> Result<Box<dyn DeviceEngine>, EngineError> {
        Ok(Box::new(CudaEngine::open(weights, self, options, layout, preludes, chunk)?))
    }
}

impl fmt::Debug for CudaBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaBackend")
            .field("device", &self.device.name())
            .field("slots", &self.slots)
            .finish()
    }
}

impl From<CudaError> for EngineError {
    fn from(error: CudaError) -> EngineError {
        EngineError::Device(Box::new(error))
    }
}

/// The programs of a plan on a device.
struct CudaEngine {
    device: Arc<dyn Device>,
    state: State,
    evaluations: usize,
    /// The memory of the requests, and its layout.
    requests: Arc<Memory>,
    layout: SlotLayout,
    slots: Arc<Slots>,
    sample: Option<usize>,
    timestep: Option<(usize, DType)>,
    full: RecordedProgram,
    cached: Option<RecordedProgram>,
    /// The launches that fill the cache after the first full evaluation, and after later ones.
    keeps: [Box<dyn Recorded>; 2],
    /// The preludes in the order in which they run.
    preludes: Vec<Prelude>,
    sampler: Option<SamplerLaunches>,
    bytes: usize,
}

/// A recorded program and its first output.
struct RecordedProgram {
    recorded: Box<dyn Recorded>,
    output: Operand,
    rows: usize,
    cols: usize,
    /// Whether one of its kernels may report a fault.
    may_fail: bool,
}

impl CudaEngine {
    /// Chooses kernels, uploads weights, lays out memory, and records the step programs and the
    /// `preludes`. `prelude_steps` computes `chunk` evaluations at once.
    fn open(
        weights: &Arc<Weights>,
        on: &CudaBackend,
        options: &EngineOptions,
        request: &RequestLayout,
        preludes: DevicePreludes,
        chunk: usize,
    ) -> Result<CudaEngine, EngineError> {
        let (plan, device) = (weights.plan(), &on.device);
        let state = State::new(&**device, plan.evaluations, on.slots)?;
        let layout = SlotLayout::new(plan, request)?;
        let requests = device.allocate(layout.bytes.saturating_mul(state.slots()))?;
        let bind = |rows: usize| -> Bindings {
            plan.batch_symbol.iter().map(|s| (s.as_str().into(), rows as i64)).collect()
        };
        let bindings = bind(options.batch);
        let mut constants = Constants::new(weights, device);
        let multiprocessors = device.multiprocessors();
        let kinds = [ProgramKind::Full, ProgramKind::Cached];
        let drafts = kinds[..if plan.cache.is_some() { 2 } else { 1 }].iter();
        let drafts = drafts.map(|&kind| {
            Placed::new(weights, kind, &bindings, options.low_precision, multiprocessors)
        });
        let drafts = drafts.collect::<Result<Vec<_>, _>>()?;
        let of_prelude = [
            (ProgramKind::Prelude, Chunks { chunk: 1, evaluations: 1, batch: options.batch }),
            (
                ProgramKind::PreludeSteps,
                Chunks { chunk, evaluations: plan.evaluations, batch: options.batch },
            ),
        ];
        let begins = of_prelude.into_iter().filter(|(kind, _)| {
            let is_empty =
                plan.program(*kind).steps.is_empty() && plan.program(*kind).results.is_empty();
            preludes.contains(*kind) && !is_empty
        });
        let begins = begins.map(|(kind, chunks)| {
            let bindings = bind(chunks.chunk * chunks.batch);
            Ok((Placed::new(weights, kind, &bindings, false, multiprocessors)?, chunks))
        });
        let begins = begins.collect::<Result<Vec<_>, EngineError>>()?;
        let all = drafts.iter().chain(begins.iter().map(|(placed, _)| placed));
        let arena_bytes = all.map(|d| d.bytes).max().unwrap_or(0);
        if arena_bytes > options.max_memory {
            return Err(EngineError::Memory { needed: arena_bytes, limit: options.max_memory });
        }
        let memory = lower::Spaces {
            arena: device.allocate(arena_bytes)?,
            requests: Arc::clone(&requests),
            slot: &layout,
        };
        // preludes come first, so that little work is lost if one is refused and moves to the CPU
        let mut preludes = Vec::new();
        for (placed, chunks) in &begins {
            preludes.push(Prelude::new(
                weights,
                device,
                &state,
                &memory,
                &mut constants,
                placed,
                *chunks,
            )?);
        }
        let mut programs = Vec::new();
        let mut keeps = [vec![], vec![]];
        for draft in &drafts {
            let lowered = Lowered::new(weights, device, &state, &memory, &mut constants, draft)?;
            if draft.kind == ProgramKind::Full {
                keeps = lowered.keeps(plan);
            }
            let (output, rows, cols) = lowered.output(plan.output_value(draft.kind, 0));
            let may_fail = lowered.launches.iter().any(|launch| launch.kernel().may_fail());
            programs.push(RecordedProgram {
                recorded: device.record(lowered.launches)?,
                output,
                rows,
                cols,
                may_fail,
            });
        }
        let bytes = arena_bytes + requests.len() + constants.bytes();
        let role = |role: InputRole| plan.inputs.iter().position(|i| i.role == role);
        let timestep = role(InputRole::Timestep)
            .filter(|_| plan.evaluations == 0)
            .map(|i| (i, request.inputs[i].dtype));
        let mut programs = programs.into_iter();
        let [first, later] = keeps;
        Ok(CudaEngine {
            full: programs.next().expect("a plan has a full program"),
            cached: programs.next(),
            keeps: [device.record(first)?, device.record(later)?],
            device: Arc::clone(device),
            evaluations: plan.evaluations,
            sample: role(InputRole::Sample),
            timestep,
            slots: Slots::new(state.slots()),
            state,
            requests,
            layout,
            preludes,
            sampler: None,
            bytes,
        })
    }

    /// Runs a program, and fills the cache after `full`.
    fn run(
        &self,
        kind: ProgramKind,
        e: usize,
        stored: bool,
    ) -> Result<&RecordedProgram, EngineError> {
        let program = match kind {
            ProgramKind::Cached => {
                self.cached.as_ref().ok_or(EngineError::NothingCached { evaluation: e })?
            }
            _ => &self.full,
        };
        program.recorded.replay()?;
        if kind == ProgramKind::Full {
            self.keeps[usize::from(stored)].replay()?;
        }
        Ok(program)
    }

    /// Returns the fault that a kernel has reported, if there is one.
    fn check(&self, program: ProgramKind) -> Result<(), EngineError> {
        match self.state.take_fault(&*self.device)? {
            Some(fault) => Err(EngineError::Fault { program, fault: fault.to_string() }),
            None => Ok(()),
        }
    }

    /// Copies the first output to the CPU as f32.
    fn read(&self, program: &RecordedProgram, out: &mut [f32]) -> Result<(), EngineError> {
        let (operand, size) = (&program.output, program.output.element.size());
        let mut bytes = vec![0; ((program.rows - 1) * operand.ld + program.cols) * size];
        self.device.read(&operand.memory, operand.offset, &mut bytes)?;
        for (out, row) in out.chunks_exact_mut(program.cols).zip(bytes.chunks(operand.ld * size)) {
            places::widen(operand.element, &row[..program.cols * size], out);
        }
        Ok(())
    }
}

impl DeviceEngine for CudaEngine {
    fn name(&self) -> String {
        self.device.name()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn launches(&self) -> [usize; 2] {
        [self.full.recorded.len(), self.cached.as_ref().map_or(0, |p| p.recorded.len())]
    }

    fn preludes(&self) -> DevicePreludes {
        let runs = |kind| self.preludes.iter().any(|p| p.kind() == kind);
        DevicePreludes {
            prelude: runs(ProgramKind::Prelude),
            prelude_steps: runs(ProgramKind::PreludeSteps),
        }
    }

    fn begin(
        &self,
        memory: &Arena,
        layout: &RequestLayout,
        timesteps: &[f64],
    ) -> Result<DeviceRequest, EngineError> {
        let request = self.slots.take().ok_or(EngineError::NoSlot { slots: self.state.slots() })?;
        let slot = self.slots.index(&request).expect("it was taken just now");
        for (offset, bytes) in self.layout.upload(memory, layout, self.preludes()) {
            self.device.write(&self.requests, slot * self.layout.bytes + offset, &bytes)?;
        }
        self.state.set(&*self.device, 0, slot)?;
        for prelude in &self.preludes {
            prelude.run(&*self.device, timesteps)?;
            if prelude.may_fail {
                self.check(prelude.kind())?;
            }
        }
        Ok(request)
    }

    fn evaluate(&self, evaluation: &DeviceEvaluation, out: &mut [f32]) -> Result<(), EngineError> {
        let DeviceEvaluation { kind, request, evaluation: e, timestep, sample, stored } =
            *evaluation;
        let slot = self.slots.index(request).ok_or(EngineError::ForeignRequest)?;
        let base = slot * self.layout.bytes;
        self.state.set(&*self.device, if self.evaluations == 0 { 0 } else { e }, slot)?;
        let input = self.sample.ok_or(EngineError::NoLoop("sample"))?;
        self.device.write(
            &self.requests,
            base + self.layout.inputs[input].offset,
            bytes_of(sample),
        )?;
        if let Some((input, dtype)) = self.timestep {
            let mut bytes = vec![0; self.layout.inputs[input].bytes];
            crate::engine::request::write_number(timestep, dtype, &mut bytes);
            self.device.write(&self.requests, base + self.layout.inputs[input].offset, &bytes)?;
        }
        let program = self.run(kind, e, stored)?;
        self.read(program, out)?;
        match program.may_fail {
            true => self.check(kind),
            false => Ok(()),
        }
    }

    fn set_input(
        &self,
        request: &DeviceRequest,
        input: usize,
        bytes: &[u8],
    ) -> Result<(), EngineError> {
        let slot = self.slots.index(request).ok_or(EngineError::ForeignRequest)?;
        let offset = slot * self.layout.bytes + self.layout.inputs[input].offset;
        Ok(self.device.write(&self.requests, offset, bytes)?)
    }

    fn set_sampling(&mut self, sampling: &DeviceSampling) -> Result<(), EngineError> {
        self.launch_sampler(sampling)
    }

    fn put_samples(
        &self,
        request: &DeviceRequest,
        x: &[f32],
        input: &[f32],
        guidance: f32,
    ) -> Result<(), EngineError> {
        self.put(request, x, input, guidance)
    }

    fn replay(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        e: usize,
        stored: bool,
    ) -> Result<(), EngineError> {
        self.run_counted(kind, request, e, stored)
    }

    fn advance(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        noise: Option<&[f32]>,
    ) -> Result<(), EngineError> {
        self.run_sampler(kind, request, noise)
    }

    fn get_samples(&self, request: &DeviceRequest, x: &mut [f32]) -> Result<(), EngineError> {
        self.get(request, x)
    }

    fn wait(&self) -> Result<(), EngineError> {
        Ok(self.device.wait()?)
    }
}

impl fmt::Debug for CudaEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaEngine")
            .field("device", &self.name())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
