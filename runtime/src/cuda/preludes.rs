//! The preludes on the device. They compute in f32, except for the operands of products, and store
//! their results in fp16 in the slot.
//!
//! `prelude_steps` computes a chunk of evaluations at once. Its external operands are first stacked
//! in the arena, evaluation by evaluation: conditions and results of `prelude` are repeated, and
//! rows of tables and time steps follow each other.

use super::constants::Constants;
use super::lower::{Lowered, Spaces};
use super::places::{Placed, element_of};
use crate::engine::request::write_number;
use crate::engine::{EngineError, Weights};
use cqc_kernels::cuda::{
    self, Device, ElementOp, ElementType, Launch, Memory, Operand, Recorded, State,
};
use cqc_proto::DType;
use cqc_proto::plan::{InputRole, ProgramKind, Source};
use std::sync::Arc;

/// A prelude on the device.
pub(super) struct Prelude {
    kind: ProgramKind,
    /// The recorded launches of each chunk.
    parts: Vec<Box<dyn Recorded>>,
    /// The time steps of a request, if the prelude reads them.
    times: Option<(Arc<Memory>, DType)>,
    pub may_fail: bool,
}

/// The number of evaluations in a chunk, the number of all evaluations, and the batch size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    pub chunk: usize,
    pub evaluations: usize,
    pub batch: usize,
}

impl Prelude {
    pub fn new(
        weights: &Weights,
        device: &Arc<dyn Device>,
        state: &State,
        spaces: &Spaces,
        constants: &mut Constants,
        placed: &Placed,
        chunks: Chunks,
    ) -> Result<Prelude, EngineError> {
        let mut lowered = Lowered::new(weights, device, state, spaces, constants, placed)?;
        let launches = std::mem::take(&mut lowered.launches);
        let times = times(weights, device, placed, chunks.evaluations)?;
        let may_fail = launches.iter().any(|launch| launch.kernel().may_fail());
        let mut parts = Vec::new();
        for first in (0..chunks.evaluations).step_by(chunks.chunk) {
            // the last chunk overlaps the one before it if the number is not a multiple
            let first = first.min(chunks.evaluations - chunks.chunk);
            let chunk = ChunkLowering { weights, spaces, state, placed, chunks, first };
            let mut part = chunk.stack(&lowered, constants, times.as_ref())?;
            part.extend(launches.iter().cloned());
            part.extend(chunk.results(&mut lowered, constants)?);
            parts.push(device.record(part)?);
        }
        Ok(Prelude { kind: placed.kind, parts, times, may_fail })
    }

    /// Runs the prelude for the slot that is set in the state.
    pub fn run(&self, device: &dyn Device, timesteps: &[f64]) -> Result<(), EngineError> {
        if let Some((memory, dtype)) = &self.times {
            let mut bytes = vec![0; memory.len()];
            let size = dtype.size();
            bytes
                .chunks_exact_mut(size)
                .zip(timesteps)
                .for_each(|(to, &t)| write_number(t, *dtype, to));
            device.write(memory, 0, &bytes)?;
        }
        for part in &self.parts {
            part.replay()?;
        }
        Ok(())
    }

    pub fn kind(&self) -> ProgramKind {
        self.kind
    }
}

/// Allocates memory for the time steps, in the type in which the program reads them.
fn times(
    weights: &Weights,
    device: &Arc<dyn Device>,
    placed: &Placed,
    evaluations: usize,
) -> Result<Option<(Arc<Memory>, DType)>, EngineError> {
    let is_time = |source: Source| match source {
        Source::Input(i) => weights.plan().inputs[i].role == InputRole::Timestep,
        _ => false,
    };
    let mut values = placed
        .values
        .iter()
        .enumerate()
        .filter(|(v, value)| value.home == *v && is_time(value.source));
    let Some((_, first)) = values.next() else { return Ok(None) };
    if let Some((_, other)) = values.find(|(_, value)| value.dtype != first.dtype) {
        return Err(EngineError::NoDeviceKernel {
            program: placed.kind,
            step: other.name.clone(),
            op: "input".into(),
            reason: format!("time steps as {} and {}", first.dtype, other.dtype),
        });
    }
    Ok(Some((device.allocate(evaluations * first.dtype.size())?, first.dtype)))
}

/// A chunk while it is lowered.
struct ChunkLowering<'a> {
    weights: &'a Weights,
    spaces: &'a Spaces<'a>,
    state: &'a State,
    placed: &'a Placed,
    chunks: Chunks,
    /// The first evaluation of the chunk.
    first: usize,
}

impl ChunkLowering<'_> {
    fn copy(&self, shape: &[usize], from: &Operand, strides: &[usize], to: &Operand) -> Launch {
        let mut dense = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            dense[axis - 1] = dense[axis] * shape[axis];
        }
        cuda::elementwise(self.state, ElementOp::Copy, shape, &[(from, strides)], (to, &dense))
    }

    /// The launches that write the external operands of the chunk.
    fn stack(
        &self,
        lowered: &Lowered,
        constants: &mut Constants,
        times: Option<&(Arc<Memory>, DType)>,
    ) -> Result<Vec<Launch>, EngineError> {
        let mut launches = Vec::new();
        if self.placed.kind != ProgramKind::PreludeSteps {
            return Ok(launches);
        }
        let (plan, slot) = (self.weights.plan(), self.spaces.slot);
        for (v, value) in
            self.placed.values.iter().enumerate().filter(|(v, value)| value.home == *v)
        {
            let Some(to) = lowered.in_arena(v) else { continue };
            let element = to.element;
            let of_request = |offset: usize| lowered.of_request(offset, element, 1, 0);
            let repeated =
                |bytes: usize| [value.len() * element.size() / bytes, bytes / element.size()];
            match value.source {
                Source::Input(i) if plan.inputs[i].role == InputRole::Timestep => {
                    let (memory, dtype) = times.expect("made for it");
                    let from = Operand::new(memory, self.first * dtype.size(), element, 1);
                    let shape = [self.chunks.chunk, value.len() / self.chunks.chunk];
                    launches.push(self.copy(&shape, &from, &[1, 0], &to));
                }
                Source::Input(i) => {
                    let span = slot.inputs[i];
                    launches.push(self.copy(
                        &repeated(span.bytes),
                        &of_request(span.offset),
                        &[0, 1],
                        &to,
                    ));
                }
                Source::Prelude(i) => {
                    let span = slot.results[i];
                    launches.push(self.copy(
                        &repeated(span.bytes),
                        &of_request(span.offset),
                        &[0, 1],
                        &to,
                    ));
                }
                Source::Table(c) => {
                    let memory = constants.plain(c, value.dtype)?;
                    let row = memory.len() / element.size() / plan.evaluations;
                    let from = Operand::new(&memory, self.first * row * element.size(), element, 1);
                    let shape = [value.len() / row / self.chunks.batch, self.chunks.batch, row];
                    launches.push(self.copy(&shape, &from, &[row, 0, 1], &to));
                }
                _ => {}
            }
        }
        Ok(launches)
    }

    /// The launches that copy the results into the slot.
    fn results(
        &self,
        lowered: &mut Lowered,
        constants: &mut Constants,
    ) -> Result<Vec<Launch>, EngineError> {
        let (slot, kind) = (self.spaces.slot, self.placed.kind);
        let spans = if kind == ProgramKind::Prelude { &slot.results } else { &slot.step_results };
        let results = self.weights.plan().program(kind).results.iter().zip(spans);
        let mut launches = Vec::new();
        for (&v, span) in results {
            let value = &self.placed.values[v];
            let from = lowered.place(v, constants)?.ok_or_else(|| EngineError::NoDeviceKernel {
                program: kind,
                step: value.name.clone(),
                op: "result".into(),
                reason: "nothing writes it".into(),
            })?;
            let element = match value.dtype {
                DType::F32 => ElementType::F16,
                dtype => element_of(dtype).expect("other types were refused"),
            };
            let to =
                lowered.of_request(span.offset + self.first * span.bytes, element, value.cols, 0);
            launches.push(self.copy(&[value.rows, value.cols], &from, &[value.ld, 1], &to));
        }
        Ok(launches)
    }
}
