//! Samples that stay on the device, and the sampler that moves them after every evaluation.
//!
//! For each slot the device stores, all in f32, the samples, the kept registers of the sampler, the
//! noise of the present evaluation and the guidance scale. A table with the sampler's constants
//! serves all slots. The sampler writes the network's next input to the place where the network
//! reads it, and counts the evaluation. Between evaluations, only noise is transferred.
//! it, and counts the evaluation, so that nothing goes up or down in between but noise.

use super::{CudaEngine, RecordedProgram};
use crate::engine::{DeviceRequest, DeviceSampling, EngineError};
use crate::sampler::{LearnedStd, Limit, MAX_REGISTERS, MAX_TERMS, Op, Register, Table};
use cqc_kernels::arena::bytes_of;
use cqc_kernels::cuda::{
    Device, ElementType, Memory, Operand, Recorded, SAMPLER_HEAD, SAMPLER_OP, SAMPLER_TEMPS,
    SAMPLER_TERMS, SamplerOp, SamplerRegister, SamplerStep, count_step, sampler_step,
};
use cqc_proto::plan::ProgramKind;
use std::sync::Arc;

/// The capacities of `kernels/cuda/sampler.cu` equal those of a table.
const _: () = assert!(MAX_TERMS == SAMPLER_TERMS && MAX_REGISTERS == SAMPLER_TEMPS);

/// A table in the form that the device reads: rows of equal length, where missing operations are
/// empty.
struct Encoded {
    rows: Vec<f32>,
    /// The number of operations per row.
    ops: usize,
    width: usize,
}

impl Encoded {
    fn new(table: &Table) -> Encoded {
        let ops = table.rows.iter().map(|row| row.ops.len()).max().unwrap_or(0);
        let width = SAMPLER_HEAD + ops * SAMPLER_OP;
        let mut rows = vec![0.0; table.rows.len() * width];
        for (i, row) in table.rows.iter().enumerate() {
            let to = &mut rows[i * width..(i + 1) * width];
            to[0] = table.rows.get(i + 1).map_or(1.0, |next| next.evaluation.input_scale);
            for (op, to) in row.ops.iter().zip(to[SAMPLER_HEAD..].chunks_exact_mut(SAMPLER_OP)) {
                encode(op, to);
            }
        }
        Encoded { rows, ops, width }
    }
}

fn encode(op: &Op, to: &mut [f32]) {
    match op {
        Op::Combine { to: register, terms, factor, divisor, limit } => {
            let (what, high) = match limit {
                Limit::Clip(limit) => (SamplerOp::Clip, *limit),
                // thresholds are not moved to the device
                Limit::None | Limit::Threshold { .. } => (SamplerOp::Combine, 0.0),
            };
            let [kind, number] = register_numbers(*register);
            let count = terms.len() as f32;
            to[..8].copy_from_slice(&[
                what as u8 as f32,
                kind,
                number,
                count,
                *factor,
                *divisor,
                0.0,
                high,
            ]);
            for (term, to) in terms.iter().zip(to[8..].chunks_exact_mut(4)) {
                let [kind, number] = register_numbers(term.register);
                to.copy_from_slice(&[kind, number, term.factor, term.divisor]);
            }
        }
        Op::LearnedNoise(LearnedStd::Variance) => to[0] = SamplerOp::Variance as u8 as f32,
        Op::LearnedNoise(LearnedStd::Range { low, high }) => {
            to[0] = SamplerOp::Range as u8 as f32;
            to[6..8].copy_from_slice(&[*low, *high]);
        }
    }
}

fn register_numbers(register: Register) -> [f32; 2] {
    let (kind, number) = match register {
        Register::X => (SamplerRegister::X, 0),
        Register::Out => (SamplerRegister::Out, 0),
        Register::Noise => (SamplerRegister::Noise, 0),
        Register::Temp(n) => (SamplerRegister::Temp, n),
        Register::Kept(n) => (SamplerRegister::Kept, n),
    };
    [kind as u8 as f32, f32::from(number)]
}

fn reads_variance(table: &Table) -> bool {
    let mut ops = table.rows.iter().flat_map(|row| &row.ops);
    ops.any(|op| matches!(op, Op::LearnedNoise(_)))
}

/// The launches of the sampler after each program.
pub(super) struct SamplerLaunches {
    memory: Arc<Memory>,
    offsets: SlotOffsets,
    after_full: Box<dyn Recorded>,
    after_cached: Option<Box<dyn Recorded>>,
}

/// The offsets in a slot, in bytes.
#[derive(Clone, Copy, Debug)]
struct SlotOffsets {
    /// The number of elements of all samples, which are at the beginning of the slot.
    count: usize,
    noise: usize,
    guidance: usize,
    kept: usize,
    bytes: usize,
}

impl SlotOffsets {
    fn new(sampling: &DeviceSampling) -> SlotOffsets {
        let count = sampling.sizes[0] * sampling.sizes[1];
        let samples = (count * size_of::<f32>()).next_multiple_of(256);
        let (noise, guidance) =
            (samples, if sampling.table.is_stochastic() { 2 * samples } else { samples });
        let kept = guidance + 256;
        let bytes = kept + (sampling.table.kept() * count * size_of::<f32>()).next_multiple_of(256);
        SlotOffsets { count, noise, guidance, kept, bytes }
    }
}

impl SamplerLaunches {
    fn new(engine: &CudaEngine, sampling: &DeviceSampling) -> Result<SamplerLaunches, EngineError> {
        let (device, offsets) = (&engine.device, SlotOffsets::new(sampling));
        let memory = device.allocate(offsets.bytes * engine.state.slots())?;
        let (encoded, keeps) = (Encoded::new(sampling.table), sampling.table.kept());
        let constants = upload(device, &encoded.rows, encoded.width)?;
        let compensation = match sampling.compensation {
            Some([scale, shift]) => Some([
                upload(device, scale, sampling.sizes[2])?,
                upload(device, shift, sampling.sizes[2])?,
            ]),
            None => None,
        };
        let after = |program: &RecordedProgram| {
            let of_slot = |offset: usize| Operand {
                per_slot: offsets.bytes,
                ..Operand::new(&memory, offset, ElementType::F32, offsets.count)
            };
            let input = engine.sample.ok_or(EngineError::NoLoop("sample"))?;
            let input = Operand {
                per_slot: engine.layout.bytes,
                ..Operand::new(
                    &engine.requests,
                    engine.layout.inputs[input].offset,
                    ElementType::F32,
                    offsets.count,
                )
            };
            let [noise, guidance, kept] =
                [offsets.noise, offsets.guidance, offsets.kept].map(of_slot);
            let step = SamplerStep {
                ops: encoded.ops,
                keeps,
                learned: reads_variance(sampling.table),
                sizes: sampling.sizes,
                width: sampling.width,
                x: &of_slot(0),
                output: (&program.output, program.cols),
                constants: &constants,
                noise: sampling.table.is_stochastic().then_some(&noise),
                guidance: sampling.guided.then_some(&guidance),
                kept: (keeps > 0).then_some(&kept),
                input: &input,
                correction: compensation.as_ref().map(|[scale, shift]| [scale, shift]),
            };
            let launches = vec![sampler_step(&engine.state, &step), count_step(&engine.state)];
            Ok::<_, EngineError>(device.record(launches)?)
        };
        let after_full = after(&engine.full)?;
        let after_cached = engine.cached.as_ref().map(after).transpose()?;
        Ok(SamplerLaunches { memory, offsets, after_full, after_cached })
    }
}

/// Uploads rows of `width` numbers, one per evaluation.
fn upload(device: &Arc<dyn Device>, rows: &[f32], width: usize) -> Result<Operand, EngineError> {
    let memory = device.allocate(size_of_val(rows))?;
    device.write(&memory, 0, bytes_of(rows))?;
    let row = Operand::new(&memory, 0, ElementType::F32, width);
    Ok(Operand { per_step: width * size_of::<f32>(), ..row })
}

impl CudaEngine {
    pub(super) fn launch_sampler(&mut self, sampling: &DeviceSampling) -> Result<(), EngineError> {
        self.sampler = None;
        self.sampler = Some(SamplerLaunches::new(self, sampling)?);
        Ok(())
    }

    /// The sampler, and the index of the request's slot.
    fn sampled(&self, request: &DeviceRequest) -> Result<(&SamplerLaunches, usize), EngineError> {
        let slot = self.slots.index(request).ok_or(EngineError::ForeignRequest)?;
        let what = "it does not move these samples";
        Ok((self.sampler.as_ref().ok_or(EngineError::OnDevice { what })?, slot))
    }

    pub(super) fn put(
        &self,
        request: &DeviceRequest,
        x: &[f32],
        input: &[f32],
        guidance: f32,
    ) -> Result<(), EngineError> {
        let (sampler, slot) = self.sampled(request)?;
        let begin = slot * sampler.offsets.bytes;
        let network = self.layout.inputs[self.sample.ok_or(EngineError::NoLoop("sample"))?].offset;
        self.device.write(&sampler.memory, begin, bytes_of(x))?;
        self.device.write(
            &sampler.memory,
            begin + sampler.offsets.guidance,
            &guidance.to_le_bytes(),
        )?;
        self.device.write(&self.requests, slot * self.layout.bytes + network, bytes_of(input))?;
        Ok(self.state.set(&*self.device, 0, slot)?)
    }

    pub(super) fn run_counted(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        e: usize,
        stored: bool,
    ) -> Result<(), EngineError> {
        self.sampled(request)?;
        self.run(kind, e, stored).map(|_| ())
    }

    pub(super) fn run_sampler(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        noise: Option<&[f32]>,
    ) -> Result<(), EngineError> {
        let (sampler, slot) = self.sampled(request)?;
        if let Some(noise) = noise {
            let to = slot * sampler.offsets.bytes + sampler.offsets.noise;
            self.device.write(&sampler.memory, to, bytes_of(noise))?;
        }
        let after = match kind {
            ProgramKind::Cached => sampler.after_cached.as_ref().expect("the program has run"),
            _ => &sampler.after_full,
        };
        Ok(after.replay()?)
    }

    pub(super) fn get(&self, request: &DeviceRequest, x: &mut [f32]) -> Result<(), EngineError> {
        let (sampler, slot) = self.sampled(request)?;
        let mut bytes = vec![0; size_of_val(x)];
        self.device.read(&sampler.memory, slot * sampler.offsets.bytes, &mut bytes)?;
        super::places::widen(ElementType::F32, &bytes, x);
        let programs =
            [(ProgramKind::Full, Some(&self.full)), (ProgramKind::Cached, self.cached.as_ref())];
        let may_fail = programs.iter().find(|(_, program)| program.is_some_and(|p| p.may_fail));
        may_fail.map_or(Ok(()), |(kind, _)| self.check(*kind))
    }
}

impl std::fmt::Debug for SamplerLaunches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SamplerLaunches").field("offsets", &self.offsets).finish_non_exhaustive()
    }
}
