//! Samples that stay on the device: the sampler there, behind every evaluation.
//!
//! Per slot the device keeps the samples, what the sampler remembers, noise that was drawn for the evaluation at work, and the
//! scale of guidance, all in f32; for all slots a table of the sampler's constants. The sampler writes what the network sees next to where the
//! network reads it, and counts the evaluation, so that nothing goes up or down in between but noise.

use super::{CudaEngine, CudaRequest, Program};
use crate::denoise::Compensation;
use crate::engine::EngineError;
use crate::sampler::Table;
use cqc_kernels::arena::bytes_of;
use cqc_kernels::cuda::{
    Device, ElementType, Memory, Operand, Recorded, SAMPLER_CONSTANTS, SamplerStep, count_step, sampler_step,
};
use cqc_proto::plan::ProgramKind;
use std::sync::Arc;

/// What samples there are on a device, and how they move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moves<'a> {
    pub table: &'a Table,
    /// Samples, elements of one, and its channels.
    pub sizes: [usize; 3],
    /// Elements of a sample's output.
    pub width: usize,
    /// Whether the batch has two halves, the unconditional one first.
    pub guided: bool,
    pub compensation: Option<&'a Compensation>,
}

/// The sampler behind each program.
pub(super) struct Mover {
    memory: Arc<Memory>,
    place: Place,
    behind_full: Box<dyn Recorded>,
    behind_cached: Option<Box<dyn Recorded>>,
}

/// Where a slot keeps what, in bytes.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Elements of all samples, which begin the slot.
    count: usize,
    noise: usize,
    guidance: usize,
    kept: usize,
    bytes: usize,
}

impl Place {
    fn new(moves: &Moves) -> Place {
        let count = moves.sizes[0] * moves.sizes[1];
        let samples = (count * size_of::<f32>()).next_multiple_of(256);
        let (noise, guidance) = (samples, if moves.table.is_noisy { 2 * samples } else { samples });
        let kept = guidance + 256;
        let bytes = kept + (moves.table.rule.kept() * count * size_of::<f32>()).next_multiple_of(256);
        Place { count, noise, guidance, kept, bytes }
    }
}

impl Mover {
    fn new(engine: &CudaEngine, moves: &Moves) -> Result<Mover, EngineError> {
        let (device, place) = (&engine.device, Place::new(moves));
        let memory = device.allocate(place.bytes * engine.state.slots())?;
        let constants = upload(device, moves.table.rows.as_flattened(), SAMPLER_CONSTANTS)?;
        let compensation = match moves.compensation {
            Some(c) => Some([upload(device, &c.scale, moves.sizes[2])?, upload(device, &c.shift, moves.sizes[2])?]),
            None => None,
        };
        let behind = |program: &Program| {
            let of_slot = |offset: usize| Operand {
                per_slot: place.bytes,
                ..Operand::new(&memory, offset, ElementType::F32, place.count)
            };
            let input = engine.sample.ok_or(EngineError::NoLoop("sample"))?;
            let input = Operand {
                per_slot: engine.layout.bytes,
                ..Operand::new(&engine.requests, engine.layout.inputs[input].offset, ElementType::F32, place.count)
            };
            let [noise, guidance, kept] = [place.noise, place.guidance, place.kept].map(of_slot);
            let step = SamplerStep {
                rule: moves.table.rule,
                predicted: moves.table.predicted,
                sizes: moves.sizes,
                width: moves.width,
                x: &of_slot(0),
                output: (&program.output, program.cols),
                constants: &constants,
                noise: moves.table.is_noisy.then_some(&noise),
                guidance: moves.guided.then_some(&guidance),
                kept: (moves.table.rule.kept() > 0).then_some(&kept),
                input: &input,
                correction: compensation.as_ref().map(|[scale, shift]| [scale, shift]),
                clip: moves.table.clip,
            };
            let launches = vec![sampler_step(&engine.state, &step), count_step(&engine.state)];
            Ok::<_, EngineError>(device.record(launches)?)
        };
        let behind_full = behind(&engine.full)?;
        let behind_cached = engine.cached.as_ref().map(behind).transpose()?;
        Ok(Mover { memory, place, behind_full, behind_cached })
    }
}

/// Rows of `width` numbers, one per evaluation.
fn upload(device: &Arc<dyn Device>, rows: &[f32], width: usize) -> Result<Operand, EngineError> {
    let memory = device.allocate(size_of_val(rows))?;
    device.write(&memory, 0, bytes_of(rows))?;
    let row = Operand::new(&memory, 0, ElementType::F32, width);
    Ok(Operand { per_step: width * size_of::<f32>(), ..row })
}

impl CudaEngine {
    /// Lets the device move samples from now on; what was on their way is lost.
    pub(crate) fn move_samples(&mut self, moves: &Moves) -> Result<(), EngineError> {
        self.mover = None;
        self.mover = Some(Mover::new(self, moves)?);
        Ok(())
    }

    fn mover(&self, request: &CudaRequest) -> Result<&Mover, EngineError> {
        if !self.slots.owns(request) {
            return Err(EngineError::ForeignRequest);
        }
        self.mover.as_ref().ok_or(EngineError::OnDevice { what: "it does not move these samples" })
    }

    /// Begins a trajectory: the samples `x`, and what the network sees of them first.
    pub(crate) fn put_samples(
        &self,
        request: &CudaRequest,
        x: &[f32],
        input: &[f32],
        guidance: f32,
    ) -> Result<(), EngineError> {
        let mover = self.mover(request)?;
        let begin = request.index() * mover.place.bytes;
        let network = self.layout.inputs[self.sample.ok_or(EngineError::NoLoop("sample"))?].offset;
        self.device.write(&mover.memory, begin, bytes_of(x))?;
        self.device.write(&mover.memory, begin + mover.place.guidance, &guidance.to_le_bytes())?;
        self.device.write(&self.requests, request.index() * self.layout.bytes + network, bytes_of(input))?;
        Ok(self.state.set(&*self.device, 0, request.index())?)
    }

    /// Runs the program of the evaluation that the device has counted to.
    pub(crate) fn replay(
        &self,
        kind: ProgramKind,
        request: &CudaRequest,
        e: usize,
        stored: bool,
    ) -> Result<(), EngineError> {
        self.mover(request)?;
        self.run(kind, e, stored).map(|_| ())
    }

    /// Moves the samples behind that program, with noise if the sampler adds some here, and counts on.
    pub(crate) fn advance(
        &self,
        kind: ProgramKind,
        request: &CudaRequest,
        noise: Option<&[f32]>,
    ) -> Result<(), EngineError> {
        let mover = self.mover(request)?;
        if let Some(noise) = noise {
            let to = request.index() * mover.place.bytes + mover.place.noise;
            self.device.write(&mover.memory, to, bytes_of(noise))?;
        }
        let behind = match kind {
            ProgramKind::Cached => mover.behind_cached.as_ref().expect("the program has run"),
            _ => &mover.behind_full,
        };
        Ok(behind.replay()?)
    }

    /// The samples as they are now.
    pub(crate) fn get_samples(&self, request: &CudaRequest, x: &mut [f32]) -> Result<(), EngineError> {
        let mover = self.mover(request)?;
        let mut bytes = vec![0; size_of_val(x)];
        self.device.read(&mover.memory, request.index() * mover.place.bytes, &mut bytes)?;
        super::places::widen(ElementType::F32, &bytes, x);
        let programs = [(ProgramKind::Full, Some(&self.full)), (ProgramKind::Cached, self.cached.as_ref())];
        let may_fail = programs.iter().find(|(_, program)| program.is_some_and(|p| p.may_fail));
        may_fail.map_or(Ok(()), |(kind, _)| self.check(*kind))
    }

    /// Waits for all that runs.
    pub(crate) fn wait(&self) -> Result<(), EngineError> {
        Ok(self.device.wait()?)
    }
}

impl std::fmt::Debug for Mover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mover").field("place", &self.place).finish_non_exhaustive()
    }
}
