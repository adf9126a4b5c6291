//! Turns the steps of a program into kernel launches.

mod elements;
mod maps;
mod products;

use super::constants::Constants;
use super::fuse::{Rounding, rounding};
use super::places::{Placed, copy_bytes};
use super::slots::SlotLayout;
use crate::engine::prepare::Preparer;
use crate::engine::values::{Value, bind};
use crate::engine::{EngineError, Weights};
use cqc_kernels::cuda::{self, Device, ElementOp, ElementType, Launch, Memory, Operand, State};
use cqc_proto::Op;
use cqc_proto::plan::{Plan, ProgramKind, Source, Step};
use std::collections::HashMap;
use std::sync::Arc;

/// The memory that programs share.
pub(super) struct Spaces<'a> {
    pub arena: Arc<Memory>,
    pub requests: Arc<Memory>,
    pub slot: &'a SlotLayout,
}

/// A program as a list of launches.
pub(super) struct Lowered<'a> {
    placed: &'a Placed,
    state: &'a State,
    spaces: &'a Spaces<'a>,
    /// The operand of each value, or `None` if no step uses the value.
    operands: Vec<Option<Operand>>,
    pub launches: Vec<Launch>,
}

/// The reason why a step has no launch.
enum Refusal {
    /// There is no kernel for the step.
    Missing(String),
    Engine(EngineError),
}

impl From<EngineError> for Refusal {
    fn from(e: EngineError) -> Refusal {
        Refusal::Engine(e)
    }
}

fn missing(reason: impl Into<String>) -> Refusal {
    Refusal::Missing(reason.into())
}

type Outcome = Result<(), Refusal>;

impl<'a> Lowered<'a> {
    pub fn new(
        weights: &Weights,
        device: &Arc<dyn Device>,
        state: &'a State,
        spaces: &'a Spaces,
        constants: &mut Constants,
        placed: &'a Placed,
    ) -> Result<Lowered<'a>, EngineError> {
        let program = weights.plan().program(placed.kind);
        let mut lowered = Lowered {
            placed,
            state,
            spaces,
            operands: vec![None; placed.values.len()],
            launches: vec![],
        };
        for (at, step) in program.steps.iter().enumerate() {
            let error = |reason: String| EngineError::NoDeviceKernel {
                program: placed.kind,
                step: step.name.clone(),
                op: step.op.name(),
                reason,
            };
            let op = bind(&step.op, &placed.bindings)
                .ok_or_else(|| error("a size of it is not known".into()))?;
            let Some(&output) = placed.wirings[at].outputs.first() else { continue };
            let multiprocessors = device.multiprocessors();
            let mut lowering = StepLowering {
                lowered: &mut lowered,
                weights,
                constants,
                step,
                at,
                output,
                scratch: 0,
                rounds: false,
                multiprocessors,
            };
            lowering.lower(&op).map_err(|refusal| match refusal {
                Refusal::Missing(reason) => error(reason),
                Refusal::Engine(e) => e,
            })?;
            let is_rounded = lowering.rounds || placed.wirings[at].rounding.is_none();
            assert!(
                is_rounded,
                "a rounding was fused into `{}`, whose kernel does not round",
                step.name
            );
        }
        Ok(lowered)
    }

    /// The operand of a value that some step computes, such as the program's output, with its rows
    /// and columns.
    pub fn output(&self, v: usize) -> (Operand, usize, usize) {
        let value = &self.placed.values[v];
        let operand = self.operands[v]
            .clone()
            .or_else(|| self.in_arena(v))
            .expect("an output is computed by some step");
        (operand, value.rows, value.cols)
    }

    /// The launches that fill the cache: when it is empty, and when it has been filled before.
    pub fn keeps(&self, plan: &Plan) -> [Vec<Launch>; 2] {
        let [mut first, mut shifts, mut later] = [vec![], vec![], vec![]];
        for (i, slot) in plan.cache.iter().flat_map(|cache| &cache.slots).enumerate() {
            let (from, rows, cols) = self.output(slot.value);
            let to = self.slot_operand(i, cols);
            let shape = [rows, cols];
            let copy = |from: &Operand, ld: usize| {
                let reads = [(from, &[ld, 1][..])];
                cuda::elementwise(self.state, ElementOp::Copy, &shape, &reads, (&to, &[cols, 1]))
            };
            first.push(copy(&from, from.ld));
            match slot.previous_of {
                // the other slot must be copied before it is overwritten
                Some(of) => shifts.push(copy(&self.slot_operand(of, cols), cols)),
                None => later.push(copy(&from, from.ld)),
            }
        }
        shifts.extend(later);
        [first, shifts]
    }

    fn slot_operand(&self, i: usize, cols: usize) -> Operand {
        self.of_request(self.spaces.slot.cache[i].offset, ElementType::F16, cols, 0)
    }

    pub fn of_request(
        &self,
        offset: usize,
        element: ElementType,
        ld: usize,
        per_step: usize,
    ) -> Operand {
        let memory = Operand::new(&self.spaces.requests, offset, element, ld);
        Operand { per_step, per_slot: self.spaces.slot.bytes, ..memory }
    }

    /// The operand of a value, or `None` if nothing writes the value.
    pub fn place(
        &mut self,
        v: usize,
        constants: &mut Constants,
    ) -> Result<Option<Operand>, EngineError> {
        if let Some(known) = &self.operands[v] {
            return Ok(Some(known.clone()));
        }
        let (value, element) = (&self.placed.values[v], self.placed.types[v]);
        let home = &self.placed.values[value.home];
        let column = value.column * element.size();
        let slot = self.spaces.slot;
        let stacked = self.placed.kind == ProgramKind::PreludeSteps;
        let operand = match home.source {
            Source::Constant(c) => {
                Operand::new(&constants.plain(c, home.dtype)?, column, element, value.ld)
            }
            _ if stacked || home.source == Source::Step => return Ok(self.in_arena(v)),
            Source::Step => unreachable!("seen above"),
            Source::Input(i) => {
                self.of_request(slot.inputs[i].offset + column, element, value.ld, 0)
            }
            Source::Prelude(i) => {
                self.of_request(slot.results[i].offset + column, element, value.ld, 0)
            }
            Source::PreludeSteps(i) => {
                let span = slot.step_results[i];
                self.of_request(span.offset + column, element, value.ld, span.bytes)
            }
            Source::Cache(i) => {
                self.of_request(slot.cache[i].offset + column, element, value.ld, 0)
            }
            Source::Table(c) => {
                let all = Operand::new(&constants.plain(c, home.dtype)?, column, element, value.ld);
                Operand { per_step: home.len() * element.size(), ..all }
            }
        };
        self.operands[v] = Some(operand.clone());
        Ok(Some(operand))
    }

    /// The operand of a value that lies in the program's own memory.
    pub fn in_arena(&self, v: usize) -> Option<Operand> {
        let (value, element) = (&self.placed.values[v], self.placed.types[v]);
        let offset = self.placed.offsets[v]? + value.column * element.size();
        Some(Operand::new(&self.spaces.arena, offset, element, value.ld))
    }
}

/// A step while it is lowered.
struct StepLowering<'l, 'a, 'c, 'w> {
    lowered: &'l mut Lowered<'a>,
    weights: &'l Weights,
    constants: &'c mut Constants<'w>,
    step: &'l Step,
    at: usize,
    /// The value that the step writes, rounded or not.
    output: usize,
    /// The number of bytes of scratch memory in use.
    scratch: usize,
    /// Whether the rounding of the result was passed to the kernel.
    rounds: bool,
    multiprocessors: usize,
}

impl<'a> StepLowering<'_, 'a, '_, '_> {
    fn lower(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Conv { .. } => self.conv(op),
            Op::Linear { act } => self.linear(*act),
            Op::MatMul => self.matmul(),
            Op::Unary { kind } => self.unary(*kind),
            Op::Binary { kind } => self.binary(*kind),
            Op::Where => self.broadcast(ElementOp::Where, 3),
            Op::Cast { .. } => self.broadcast(ElementOp::Copy, 1),
            Op::TimestepEmbedding { cos_first } => self.timestep_embedding(*cos_first),
            Op::Geglu { act } => self.geglu(*act),
            Op::FakeQuant { .. } => self.fake_quant(),
            Op::RoundBf16 => self.broadcast(ElementOp::RoundBf16, 1),
            _ => self.prepared(),
        }
    }

    /// Lowers a step through the kernel that the CPU would choose. Its shapes and distances apply
    /// to the device as well.
    fn prepared(&mut self) -> Outcome {
        let (kind, values) = (self.kind(), &self.lowered.placed.values);
        let preparer = Preparer {
            weights: self.weights,
            kind,
            values,
            uses: &self.lowered.placed.uses,
            pairs: &HashMap::new(),
            bindings: &self.lowered.placed.bindings,
            reference: false,
        };
        let kernel = preparer.prepare(self.step)?;
        self.kernel(&kernel)
    }

    fn kind(&self) -> ProgramKind {
        self.lowered.placed.kind
    }

    fn value(&self, v: usize) -> &'a Value {
        &self.lowered.placed.values[v]
    }

    /// Input `i` of the step.
    fn input(&self, i: usize) -> Option<usize> {
        self.step.inputs.get(i).copied().flatten()
    }

    fn need(&self, i: usize) -> Result<usize, Refusal> {
        self.input(i).ok_or_else(|| missing("an input is absent"))
    }

    fn launch(&mut self, launch: Launch) {
        self.lowered.launches.push(launch);
    }

    /// The operand of a value.
    fn operand(&mut self, v: usize) -> Result<Operand, Refusal> {
        let place = self.lowered.place(v, self.constants)?;
        place.ok_or_else(|| missing("a value is read that nothing writes"))
    }

    /// The operand of input `i`, if it is present.
    fn maybe(&mut self, i: usize) -> Result<Option<Operand>, Refusal> {
        self.input(i).map(|v| self.operand(v)).transpose()
    }

    /// Input `i`, which must have no gaps between its rows.
    fn dense(&mut self, i: usize) -> Result<Option<Operand>, Refusal> {
        match self.input(i) {
            Some(v) if !self.value(v).is_dense() => {
                Err(missing(format!("input {i} has gaps between its rows")))
            }
            _ => self.maybe(i),
        }
    }

    /// Scratch memory of this step.
    fn scratch(&mut self, bytes: usize, element: ElementType, ld: usize) -> Operand {
        let offset = self.lowered.placed.scratch[self.at] + self.scratch;
        self.scratch += bytes;
        Operand::new(&self.lowered.spaces.arena, offset, element, ld)
    }

    /// Input `i` in the form that tensor cores read: its own operand, or a copy in fp16.
    fn wide(&mut self, i: usize) -> Result<Operand, Refusal> {
        let v = self.need(i)?;
        let from = self.operand(v)?;
        if !self.lowered.placed.needs_copy(v) {
            return Ok(from);
        }
        let value = self.value(v);
        let to = self.scratch(copy_bytes(value), ElementType::F16, value.cols);
        let (shape, reads) = ([value.rows, value.cols], [(&from, &[value.ld, 1][..])]);
        let launch = cuda::elementwise(
            self.lowered.state,
            ElementOp::Copy,
            &shape,
            &reads,
            (&to, &[value.cols, 1]),
        );
        self.launch(launch);
        Ok(to)
    }

    /// The result with its rounding.
    fn target(&mut self) -> Result<ResultOperand, Refusal> {
        let y = self.operand(self.output)?;
        self.rounds = true;
        let rounding = match rounding(&self.lowered.placed.wirings[self.at]) {
            Some(how) => Some((self.operand(how.scale)?, self.operand(how.zero_point)?, how)),
            None => None,
        };
        Ok(ResultOperand { y, rounding })
    }
}

/// The operand of a result, and its rounding to codes.
struct ResultOperand {
    y: Operand,
    rounding: Option<(Operand, Operand, Rounding)>,
}

impl ResultOperand {
    fn output(&self) -> Result<cuda::Output<'_>, Refusal> {
        let Some((scale, zero_point, how)) = &self.rounding else {
            return Ok(cuda::Output::plain(&self.y));
        };
        if how.segments.len() > cuda::MAX_SEGMENTS {
            return Err(missing(format!("a result in {} segments", how.segments.len())));
        }
        let rounding =
            cuda::Rounding { bits: how.bits, segments: &how.segments, scale, zero_point };
        Ok(cuda::Output { y: &self.y, rounding: Some(rounding) })
    }
}
