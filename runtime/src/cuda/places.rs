//! The places and types of a program's values on the device.

use super::fuse::wire;
use crate::engine::codes::{CodeKernels, Storage, choose_storage};
use crate::engine::layout::{self, Buffer};
use crate::engine::program::{kept, lifetimes};
use crate::engine::uses::Uses;
use crate::engine::values::{Value, resolve};
use crate::engine::wiring::Wiring;
use crate::engine::{EngineError, Weights};
use cqc_kernels::arena::ALIGN;
use cqc_kernels::cuda::{self, ElementType, Filter, FilterKind, group_norm_scratch};
use cqc_proto::op::ConvLayout;
use cqc_proto::op::operand::{QKV, WEIGHTS};
use cqc_proto::plan::{Program, ProgramKind, Source, Step};
use cqc_proto::{Bindings, DType, Op};
use half::f16;

/// A program with sizes, types, fused roundings and addresses in the arena.
pub(super) struct Placed {
    pub kind: ProgramKind,
    /// The values of the symbols in sizes.
    pub bindings: Bindings,
    pub values: Vec<Value>,
    pub uses: Uses,
    /// The element type of each value on the device.
    pub types: Vec<ElementType>,
    pub wirings: Vec<Wiring>,
    /// The offset in the arena of each value's home, if the home lies there.
    pub offsets: Vec<Option<usize>>,
    /// The offset of each step's scratch memory.
    pub scratch: Vec<usize>,
    /// The number of bytes of the arena.
    pub bytes: usize,
    /// The number of multiprocessors of the device.
    multiprocessors: usize,
}

impl Placed {
    pub fn new(
        weights: &Weights,
        kind: ProgramKind,
        bindings: &Bindings,
        low_precision: bool,
        multiprocessors: usize,
    ) -> Result<Placed, EngineError> {
        let program = weights.plan().program(kind);
        let mut values = resolve(kind, program, bindings)?;
        let uses = Uses::new(program, &values);
        let kept = kept(weights, kind, &[]);
        if low_precision {
            let kernels = CodeKernels { products: &Filter::takes_codes, attention: false };
            let storage = Storage { codes: Some((DType::U8, kernels)), bf16: None };
            choose_storage(weights, kind, &mut values, &uses, &kept, storage);
        }
        let error = |step: &Step, reason: &str| EngineError::NoDeviceKernel {
            program: kind,
            step: step.name.clone(),
            op: step.op.name(),
            reason: reason.into(),
        };
        let type_of = |v: usize| element_type(kind, &values[values[v].home]);
        for step in &program.steps {
            let all = || step.inputs.iter().flatten().chain(&step.outputs);
            if let Some(&v) = all().find(|&&v| type_of(v).is_none()) {
                return Err(error(
                    step,
                    &format!("`{}` has elements of type {}", values[v].name, values[v].dtype),
                ));
            }
        }
        // values that no step uses get any type
        let types: Vec<ElementType> =
            (0..values.len()).map(|v| type_of(v).unwrap_or(ElementType::U8)).collect();
        let wirings = wire(program, &values, &uses, &kept);
        let (offsets, scratch, bytes) = (vec![], vec![], 0);
        let bindings = bindings.clone();
        let mut placed = Placed {
            kind,
            bindings,
            values,
            uses,
            types,
            wirings,
            offsets,
            scratch,
            bytes,
            multiprocessors,
        };
        placed.place(program, kept)?;
        Ok(placed)
    }

    fn place(&mut self, program: &Program, kept: Vec<usize>) -> Result<(), EngineError> {
        let lives = lifetimes(&self.values, &self.wirings, &kept);
        let mut buffers = Vec::new();
        let mut buffer_of = vec![None; self.values.len()];
        for (v, value) in self.values.iter().enumerate() {
            let Some((first, last)) = lives[v] else { continue };
            let stored = match value.source {
                Source::Step => true,
                Source::Constant(_) => false,
                // in this program the value is stacked for every evaluation
                _ => self.kind == ProgramKind::PreludeSteps,
            };
            if value.home == v && stored {
                buffer_of[v] = Some(buffers.len());
                buffers.push(Buffer { bytes: value.len() * self.types[v].size(), first, last });
            }
        }
        let of_steps = buffers.len();
        for (at, step) in program.steps.iter().enumerate() {
            buffers.push(Buffer { bytes: self.scratch_bytes(step), first: at, last: at });
        }
        let placed = layout::place(&buffers);
        let (offsets, bytes) =
            placed.ok_or(EngineError::Memory { needed: usize::MAX, limit: usize::MAX })?;
        self.offsets = self
            .values
            .iter()
            .map(|v| buffer_of[v.home].map(|buffer: usize| offsets[buffer]))
            .collect();
        self.scratch = offsets[of_steps..].to_vec();
        // kernels may read a whole chunk beyond the last row
        self.bytes = bytes + ALIGN;
        Ok(())
    }

    /// The number of bytes of scratch memory of a step.
    fn scratch_bytes(&self, step: &Step) -> usize {
        let copies = |count: usize| -> usize {
            let operands = step.inputs[..count.min(step.inputs.len())].iter().flatten();
            operands.filter(|&&v| self.needs_copy(v)).map(|&v| copy_bytes(&self.values[v])).sum()
        };
        match &step.op {
            Op::Conv { .. } | Op::Linear { .. } | Op::MatMul => copies(1) + self.shared_bytes(step),
            Op::Attention { .. } => copies(QKV.len()),
            Op::GroupNorm { groups, layout, .. } => {
                let Some(x) = step.inputs[0].map(|v| &self.values[v]) else { return 0 };
                let channels_last = *layout == ConvLayout::ChannelsLast || x.shape.len() == 2;
                if channels_last {
                    group_norm_scratch(x.shape[0], x.rows / x.shape[0], *groups)
                } else {
                    0
                }
            }
            _ => 0,
        }
    }

    /// The number of parts into which the depth of a product is divided.
    pub fn splits(&self, step: &Step, kind: FilterKind) -> usize {
        let Some(w) = step.inputs.get(WEIGHTS).copied().flatten() else { return 1 };
        let (w, y) = (&self.values[w], &self.values[step.outputs[0]]);
        let depth = w.len().checked_div(y.cols).unwrap_or(0);
        cuda::splits(y.rows, y.cols, depth, kind, self.multiprocessors)
    }

    /// The number of bytes for the sums of these parts, for the kind of weights with the most
    /// parts.
    fn shared_bytes(&self, step: &Step) -> usize {
        let y = &self.values[step.outputs[0]];
        let bytes = |kind| cuda::split_bytes(y.rows, y.cols, self.splits(step, kind));
        bytes(FilterKind::Codes).max(bytes(FilterKind::Halves))
    }

    /// Whether tensor cores cannot read the value in its place: it is not fp16, or its rows are not
    /// multiples of aligned 16 bytes.
    pub fn needs_copy(&self, v: usize) -> bool {
        let (value, element) = (&self.values[v], self.types[v]);
        match element {
            ElementType::F16 => !(value.ld.is_multiple_of(8) && value.column.is_multiple_of(8)),
            ElementType::F32 => true,
            _ => false,
        }
    }
}

/// The number of bytes of a dense fp16 copy.
pub(super) fn copy_bytes(value: &Value) -> usize {
    (value.len() * 2).next_multiple_of(ALIGN)
}

/// The element type on the device of the content of a home, or `None` if kernels do not support it.
fn element_type(kind: ProgramKind, home: &Value) -> Option<ElementType> {
    if home.stored_as.is_some() {
        return Some(ElementType::U8);
    }
    match (home.dtype, home.source) {
        // preludes run only once, so their values can stay in f32
        (DType::F32, Source::Step) if !kind.is_step() => Some(ElementType::F32),
        (
            DType::F32,
            Source::Step | Source::Prelude(_) | Source::PreludeSteps(_) | Source::Cache(_),
        ) => Some(ElementType::F16),
        (dtype, _) => element_of(dtype),
    }
}

/// The element type that keeps all bits of a type, or `None` if kernels do not support it.
pub(super) fn element_of(dtype: DType) -> Option<ElementType> {
    Some(match dtype {
        DType::F32 => ElementType::F32,
        DType::I32 => ElementType::I32,
        DType::I64 => ElementType::I64,
        DType::Bool => ElementType::U8,
        _ => return None,
    })
}

/// Converts floats of an element type to f32.
pub(super) fn widen(element: ElementType, bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(element.size())) {
        *out = match element {
            ElementType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
    }
}
