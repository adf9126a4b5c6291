//! Prepared programs, with kernels, addresses and lifetimes.

use super::EngineError;
use super::codes::{self, CodeKernels, Storage};
use super::kernel::Kernel;
use super::layout::{self, Buffer};
use super::pairs;
use super::prepare::Preparer;
use super::uses::Uses;
use super::values::{Value, resolve};
use super::weights::Weights;
use super::wiring::{self, ResultRounding, Wiring};
use bytes::Bytes;
use cqc_kernels::Isa;
use cqc_kernels::arena::{Arena, Pod, Reader, Span, cast};
use cqc_proto::plan::{ProgramKind, Source, Step};
use cqc_proto::{Bindings, DType};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The memory in which a value lies.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// In the engine's arena.
    Memory { span: Span },
    /// In the memory of the request. Each evaluation is `step` bytes after the previous one.
    Request { span: Span, step: usize },
    /// In the weights, the same for all evaluations.
    Constant(Bytes),
    /// In the weights, with `row` bytes for each evaluation.
    Table { bytes: Bytes, row: usize },
}

impl Location {
    /// The place in the arena to which the program writes the value, if it does.
    pub fn written(&self) -> Option<Span> {
        match self {
            Location::Memory { span } => Some(*span),
            _ => None,
        }
    }

    /// The elements, while other parts of the arena are written.
    pub fn read<'a, T: Pod, const W: usize>(
        &'a self,
        reads: Reader<'a, W>,
        request: &'a Arena,
        evaluation: usize,
    ) -> &'a [T] {
        match self {
            Location::Memory { span } => reads
                .get(*span)
                .expect("the layout keeps what a step reads apart from what it writes"),
            other => other.outside(request, evaluation),
        }
    }

    /// The elements, while nothing is written.
    pub fn get<'a, T: Pod>(
        &'a self,
        arena: &'a Arena,
        request: &'a Arena,
        evaluation: usize,
    ) -> &'a [T] {
        match self {
            Location::Memory { span } => arena.get(*span).expect("the layout lies in the arena"),
            other => other.outside(request, evaluation),
        }
    }

    fn outside<'a, T: Pod>(&'a self, request: &'a Arena, evaluation: usize) -> &'a [T] {
        match self {
            Location::Memory { .. } => unreachable!("handled by the callers"),
            Location::Request { span, step } => request
                .get(Span::new(span.offset + evaluation * step, span.bytes))
                .expect("the layout lies in the request's memory"),
            Location::Constant(bytes) => cast(bytes),
            Location::Table { bytes, row } => cast(&bytes[evaluation * row..][..*row]),
        }
    }
}

/// A step that is ready to run.
#[derive(Debug)]
pub(crate) struct PreparedStep {
    pub name: String,
    pub op: String,
    pub kernel: Kernel,
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<usize>,
    /// The rounding of the result before it is stored.
    pub rounding: Option<ResultRounding>,
    pub scratch: Span,
}

/// A program that is ready to run.
#[derive(Debug)]
pub(crate) struct PreparedProgram {
    pub kind: ProgramKind,
    pub values: Vec<Value>,
    pub locations: Vec<Location>,
    pub steps: Vec<PreparedStep>,
    /// Size of its buffers in bytes.
    pub bytes: usize,
}

/// A program with sizes and kernels, but without addresses.
pub(crate) struct Draft {
    pub kind: ProgramKind,
    pub values: Vec<Value>,
    kernels: Vec<Kernel>,
    wirings: Vec<Wiring>,
    buffers: Vec<Buffer>,
    /// The buffer of each value that is a home and is stored by the program itself.
    buffer_of: Vec<Option<usize>>,
    /// Values that are read after the last step.
    kept: Vec<usize>,
    /// The offset of each buffer in the engine's arena.
    offsets: Vec<usize>,
    /// Size of all buffers in bytes.
    pub bytes: usize,
}

/// The options with which a program is prepared.
pub(crate) struct ProgramOptions<'a> {
    pub isa: Isa,
    pub threads: usize,
    /// Quantized layers multiply codes, and roundings and GEGLUs are fused with the steps before
    /// them.
    pub low_precision: bool,
    /// Products of bf16 are computed in bf16.
    pub bf16: bool,
    pub reference: bool,
    /// Values whose storage is not shared until the end of the program.
    pub keep: &'a [usize],
    /// The maximum size of a single value in bytes.
    pub max_memory: usize,
    /// The program runs on a device: its values have sizes, but its steps have no kernels.
    pub elsewhere: bool,
}

impl Draft {
    pub fn new(
        weights: &Weights,
        kind: ProgramKind,
        bindings: &Bindings,
        options: &ProgramOptions,
    ) -> Result<Draft, EngineError> {
        let program = weights.plan().program(kind);
        let mut values = resolve(kind, program, bindings)?;
        let uses = Uses::new(program, &values);
        let kept = kept(weights, kind, options.keep);
        if !options.elsewhere {
            let isa = weights.isa();
            let products = |taps: usize, segments: &[usize]| isa.multiplies_codes(taps, segments);
            let multiplies_bf16 =
                |channels: usize, columns: usize| isa.suits_bf16(channels, columns);
            let kernels = CodeKernels { products: &products, attention: true };
            let storage = Storage {
                codes: options.low_precision.then_some((isa.code_type(), kernels)),
                bf16: options.bf16.then_some(&multiplies_bf16 as _),
            };
            codes::choose_storage(weights, kind, &mut values, &uses, &kept, storage);
        }
        let limit = options.max_memory;
        if let Some(needed) = values.iter().map(Value::bytes).find(|&bytes| bytes > limit) {
            return Err(EngineError::Memory { needed, limit });
        }
        if options.elsewhere {
            return Ok(Draft::of_values(kind, values, program.steps.len()));
        }
        let fuses = options.low_precision;
        let pairs =
            if fuses { pairs::find(program, &values, &uses, &kept) } else { HashMap::new() };
        let (uses, pairs, reference) = (&uses, &pairs, options.reference);
        let prepare = |values: &[Value], at: usize| {
            Preparer { weights, kind, values, uses, pairs, bindings, reference }
                .prepare(&program.steps[at])
        };
        let mut kernels = (0..program.steps.len())
            .map(|at| prepare(&values, at))
            .collect::<Result<Vec<_>, _>>()?;
        let mut open: BTreeSet<usize> = (0..kernels.len()).collect();
        while let Some(at) = open.pop_first() {
            let Some(v) = codes::without_kernel(&program.steps[at], &values, &kernels[at]) else {
                continue;
            };
            // the value is stored as f32, and the kernels of all its steps are chosen again
            values[v].stored_as = None;
            for at in uses.maker(v).into_iter().chain(uses.readers(v).iter().copied()) {
                kernels[at] = prepare(&values, at)?;
                open.insert(at);
            }
        }
        let wirings = wiring::wire(program, &values, &mut kernels, uses, pairs, &kept, fuses);
        let (buffers, buffer_of, offsets) = (vec![], vec![], vec![]);
        let mut draft =
            Draft { kind, values, kernels, wirings, buffers, buffer_of, kept, offsets, bytes: 0 };
        draft.find_buffers(options);
        let placed = layout::place(&draft.buffers);
        (draft.offsets, draft.bytes) =
            placed.ok_or(EngineError::Memory { needed: usize::MAX, limit: usize::MAX })?;
        Ok(draft)
    }

    /// A program with sizes, but without kernels.
    fn of_values(kind: ProgramKind, values: Vec<Value>, steps: usize) -> Draft {
        let kernels = (0..steps).map(|_| Kernel::Nothing).collect();
        let buffers = vec![Buffer { bytes: 0, first: 0, last: 0 }; steps];
        let (wirings, buffer_of, offsets) =
            (vec![Wiring::default(); steps], vec![None; values.len()], vec![0; steps]);
        Draft {
            kind,
            values,
            kernels,
            wirings,
            buffers,
            buffer_of,
            kept: vec![],
            offsets,
            bytes: 0,
        }
    }

    /// Collects the storage of the program's own values, and the scratch memory of its steps.
    fn find_buffers(&mut self, options: &ProgramOptions) {
        let lives = lifetimes(&self.values, &self.wirings, &self.kept);
        self.buffer_of = vec![None; self.values.len()];
        for (i, value) in self.values.iter().enumerate() {
            let Some((first, last)) = lives[i] else { continue };
            if value.home == i && self.is_stored(value) {
                self.buffer_of[i] = Some(self.buffers.len());
                self.buffers.push(Buffer { bytes: value.bytes(), first, last });
            }
        }
        for (step, kernel) in self.kernels.iter().enumerate() {
            let bytes = kernel.scratch(options.isa, options.threads) * size_of::<f32>();
            self.buffers.push(Buffer { bytes, first: step, last: step });
        }
    }

    /// Whether the value lies in the program's part of the arena. In `prelude_steps`, that includes
    /// values that are repeated for every evaluation.
    fn is_stored(&self, value: &Value) -> bool {
        match value.source {
            Source::Step => true,
            Source::Constant(_) => false,
            _ => self.kind == ProgramKind::PreludeSteps,
        }
    }

    /// Assigns the address of every value. `outside` gives the locations of values that a request
    /// holds.
    pub fn place(self, weights: &Weights, outside: &dyn Fn(&Value) -> Location) -> PreparedProgram {
        let stored = self.buffers.len() - self.kernels.len();
        let span = |buffer: usize| Span::new(self.offsets[buffer], self.buffers[buffer].bytes);
        let read = self.wirings.iter().flat_map(|wiring| wiring.inputs.iter().flatten());
        let read: HashSet<usize> = read.chain(&self.kept).map(|&v| self.values[v].home).collect();
        let homes: HashMap<usize, Location> = (0..self.values.len())
            .filter(|&i| self.values[i].home == i)
            .map(|i| match self.buffer_of[i] {
                Some(buffer) => (i, Location::Memory { span: span(buffer) }),
                None => (i, self.outside_location(weights, i, read.contains(&i), outside)),
            })
            .collect();
        let locations = self.values.iter().map(|v| within(&homes[&v.home], v)).collect();
        let scratches: Vec<Span> = (stored..self.buffers.len()).map(span).collect();
        let kernels = self.kernels.into_iter().zip(self.wirings);
        let steps = weights.plan().program(self.kind).steps.iter().zip(kernels).zip(scratches);
        let steps = steps
            .map(|((step, (kernel, wiring)), scratch)| prepared(step, kernel, wiring, scratch))
            .collect();
        PreparedProgram {
            kind: self.kind,
            values: self.values,
            locations,
            steps,
            bytes: self.bytes,
        }
    }

    fn outside_location(
        &self,
        weights: &Weights,
        i: usize,
        read: bool,
        outside: &dyn Fn(&Value) -> Location,
    ) -> Location {
        let value = &self.values[i];
        match value.source {
            // weights that have been packed are not read
            Source::Constant(_) if !read => Location::Memory { span: Span::new(0, 0) },
            Source::Constant(c) => Location::Constant(constant_bytes(weights, c, value.dtype)),
            Source::Table(c) if self.kind.is_step() => Location::Table {
                bytes: constant_bytes(weights, c, value.dtype),
                row: value.bytes(),
            },
            // the value is never read, so it has no buffer
            _ if self.kind == ProgramKind::PreludeSteps => {
                Location::Memory { span: Span::new(0, 0) }
            }
            _ => outside(value),
        }
    }
}

/// Values that are read after the last step.
pub(crate) fn kept(weights: &Weights, kind: ProgramKind, keep: &[usize]) -> Vec<usize> {
    let plan = weights.plan();
    let mut kept = keep.to_vec();
    kept.extend(&plan.program(kind).results);
    if kind == ProgramKind::Full {
        kept.extend(plan.outputs.iter().map(|o| o.value));
        kept.extend(plan.cache.iter().flat_map(|cache| &cache.slots).map(|slot| slot.value));
    }
    kept
}

fn prepared(step: &Step, kernel: Kernel, wiring: Wiring, scratch: Span) -> PreparedStep {
    let Wiring { inputs, outputs, rounding } = wiring;
    PreparedStep {
        name: step.name.clone(),
        op: step.op.name(),
        kernel,
        inputs,
        outputs,
        rounding,
        scratch,
    }
}

/// The bytes of a constant in the type that a program reads.
pub(crate) fn constant_bytes(weights: &Weights, i: usize, dtype: DType) -> Bytes {
    let constant = &weights.plan().constants[i];
    if constant.codes.is_none() && constant.ty.dtype == dtype {
        weights.stored(i)
    } else {
        weights.constant(i)
    }
}

/// The location of a value within that of its home.
fn within(home: &Location, value: &Value) -> Location {
    let (start, len) = value.range();
    match home {
        Location::Memory { span } if span.bytes > 0 => {
            Location::Memory { span: Span::new(span.offset + start, len) }
        }
        Location::Request { span, step } => {
            Location::Request { span: Span::new(span.offset + start, len), step: *step }
        }
        Location::Constant(bytes) => Location::Constant(bytes.slice(start..start + len)),
        other => other.clone(),
    }
}

/// The first and the last step that use the storage of each home, or `None` if no step does.
pub(crate) fn lifetimes(
    values: &[Value],
    steps: &[Wiring],
    kept: &[usize],
) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; values.len()];
    let mut touch = |value: usize, at: usize| {
        let life = &mut lives[values[value].home];
        *life = Some(life.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
    };
    for (at, step) in steps.iter().enumerate() {
        step.outputs.iter().chain(step.inputs.iter().flatten()).for_each(|&v| touch(v, at));
    }
    kept.iter().for_each(|&v| touch(v, steps.len()));
    // values that no step writes exist from the beginning
    for (value, life) in values.iter().zip(&mut lives) {
        if let (false, Some((first, _))) = (value.source == Source::Step, life) {
            *first = 0;
        }
    }
    lives
}
