//! Serves requests: inputs in, preludes, evaluations, outputs out.

use super::execute::read_tensor;
use super::program::{Place, constant_bytes};
use super::values::Value;
use super::{Engine, EngineError, Slot};
use cqc_kernels::arena::{Arena, Span, bytes_of};
use cqc_proto::plan::{InputRole, PlanInput, ProgramKind, Source};
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;

impl Engine {
    /// Begins a request: takes the conditions and runs the preludes.
    ///
    /// `conditions` holds every input but sample and time step, by name, at the engine's batch; floats of any float type.
    /// `timesteps` has one entry per evaluation of the plan; for a plan without tables, one per evaluation to come.
    ///
    /// # Errors
    /// Missing, unknown or misshapen inputs; a wrong number of time steps; whatever a step reports.
    pub fn begin(&mut self, conditions: &BTreeMap<String, Tensor>, timesteps: &[f64]) -> Result<(), EngineError> {
        self.begun = false;
        let expected = self.plan().evaluations;
        if expected > 0 && timesteps.len() != expected {
            return Err(EngineError::Timesteps { found: timesteps.len(), expected });
        }
        self.check_names(conditions)?;
        self.take_inputs(conditions, |role| role == InputRole::Condition)?;
        self.timesteps.clear();
        self.timesteps.extend_from_slice(timesteps);
        self.run_preludes()?;
        self.begun = true;
        Ok(())
    }

    /// Runs `full` for evaluation `e` of the request: `sample` as the model's sample input, `out` its first output.
    /// Nothing is allocated.
    ///
    /// # Errors
    /// Wrong lengths, no such evaluation, [`EngineError::NotBegun`].
    pub fn evaluate(&mut self, e: usize, sample: &[f32], out: &mut [f32]) -> Result<(), EngineError> {
        if !self.begun {
            return Err(EngineError::NotBegun);
        }
        if e >= self.timesteps.len() {
            return Err(EngineError::Evaluation { evaluation: e, evaluations: self.timesteps.len() });
        }
        let input = self.role(InputRole::Sample).ok_or(EngineError::NoLoop("sample"))?;
        let span = self.inputs[input].span;
        check_length("the sample", sample.len(), span.bytes / size_of::<f32>())?;
        let value = self.plan().outputs[0].value;
        let result = &self.full().values[value];
        if result.dtype != DType::F32 {
            return Err(EngineError::NoLoop("float output"));
        }
        check_length("the output", out.len(), result.len())?;
        self.memory(span).copy_from_slice(bytes_of(sample));
        if let (0, Some(input)) = (self.plan().evaluations, self.role(InputRole::Timestep)) {
            fill_number(self.timesteps[e], &self.inputs[input], &mut self.arena);
        }
        self.last = e;
        self.run_program(ProgramKind::Full, e)?;
        let full = self.full();
        read_rows(&full.values[value], &full.places[value], &self.arena, e, out);
        Ok(())
    }

    /// Runs a plan without tables once: every input of the model, by name, and every output.
    ///
    /// # Errors
    /// As [`Engine::begin`]; a plan with tables needs [`Engine::run_at`].
    pub fn run(&mut self, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, EngineError> {
        let expected = self.plan().evaluations;
        if expected > 0 {
            return Err(EngineError::Timesteps { found: 0, expected });
        }
        self.run_at(0, &[], inputs)
    }

    /// Runs evaluation `e` once: every input by name, and every output. With tables the time step comes from `timesteps`, one
    /// per evaluation of the plan, and an input for it is ignored.
    ///
    /// # Errors
    /// As [`Engine::begin`].
    pub fn run_at(
        &mut self,
        e: usize,
        timesteps: &[f64],
        inputs: &BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, EngineError> {
        let evaluations = self.plan().evaluations;
        if e >= evaluations.max(1) {
            return Err(EngineError::Evaluation { evaluation: e, evaluations });
        }
        self.begin(inputs, timesteps)?;
        self.take_inputs(inputs, |role| match role {
            InputRole::Sample => true,
            InputRole::Timestep => evaluations == 0,
            InputRole::Condition => false,
        })?;
        self.last = e;
        self.run_program(ProgramKind::Full, e)?;
        Ok(self.outputs())
    }

    /// All outputs of the last run, in the model's own types.
    pub fn outputs(&self) -> BTreeMap<String, Tensor> {
        let full = self.full();
        let output = |o: &cqc_proto::plan::PlanOutput| {
            let tensor = read_tensor(&full.values[o.value], &full.places[o.value], &self.arena, self.last);
            let tensor = if o.ty.dtype.is_float() { tensor.to_float(o.ty.dtype) } else { tensor };
            (o.name.clone(), tensor)
        };
        self.plan().outputs.iter().map(output).collect()
    }

    fn role(&self, role: InputRole) -> Option<usize> {
        self.plan().inputs.iter().position(|i| i.role == role)
    }

    fn memory(&mut self, span: Span) -> &mut [u8] {
        self.arena.get_mut(span).expect("the layout lies in the arena")
    }

    fn check_names(&self, given: &BTreeMap<String, Tensor>) -> Result<(), EngineError> {
        let inputs = &self.plan().inputs;
        let Some(name) = given.keys().find(|name| inputs.iter().all(|i| i.name != **name)) else { return Ok(()) };
        let known = inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
        Err(EngineError::UnknownInput { name: name.clone(), known })
    }

    /// Writes the inputs of the wanted roles into their slots.
    fn take_inputs(
        &mut self,
        given: &BTreeMap<String, Tensor>,
        wanted: impl Fn(InputRole) -> bool,
    ) -> Result<(), EngineError> {
        let inputs = self.weights.plan().inputs.iter().zip(&self.inputs);
        for (input, slot) in inputs.filter(|(input, _)| wanted(input.role)) {
            let missing = || EngineError::MissingInput { name: input.name.clone(), expected: input.ty.clone() };
            let tensor = given.get(&input.name).ok_or_else(missing)?;
            let tensor = as_slot(input, slot, tensor)?;
            let target: &mut [u8] = self.arena.get_mut(slot.span).expect("the layout lies in the arena");
            target.copy_from_slice(tensor.bytes());
        }
        Ok(())
    }

    fn run_preludes(&mut self) -> Result<(), EngineError> {
        self.run_program(ProgramKind::Prelude, 0)?;
        self.keep_results(ProgramKind::Prelude, 0);
        if self.step_results.is_empty() {
            return Ok(());
        }
        let (chunk, evaluations) = (self.chunk, self.plan().evaluations);
        for first in (0..evaluations).step_by(chunk) {
            // The last chunk overlaps the one before it, if need be.
            let first = first.min(evaluations - chunk);
            self.stack_operands(first)?;
            self.run_program(ProgramKind::PreludeSteps, 0)?;
            self.keep_results(ProgramKind::PreludeSteps, first);
        }
        Ok(())
    }

    /// Copies results to where they outlive their program, those for all evaluations beginning at `first`.
    fn keep_results(&mut self, kind: ProgramKind, first: usize) {
        let ready = &self.programs[kind as usize];
        let spans = if kind == ProgramKind::Prelude { &self.results } else { &self.step_results };
        for (&value, span) in self.weights.plan().program(kind).results.iter().zip(spans) {
            let (value, place) = (&ready.values[value], &ready.places[value]);
            let target = Span::new(span.offset + first * span.bytes, value.bytes());
            let (reads, [target]) = self.arena.split([target]).expect("the layout lies in the arena");
            let source: &[u8] = place.read(reads, 0);
            let (row, ld) = (value.cols * value.dtype.size(), value.ld * value.dtype.size());
            for (target, source) in target.chunks_exact_mut(row).zip(source.chunks(ld)) {
                target.copy_from_slice(&source[..row]);
            }
        }
    }

    /// Writes what `prelude_steps` reads from outside for a chunk of evaluations that begins with `first`.
    fn stack_operands(&mut self, first: usize) -> Result<(), EngineError> {
        let ready = &self.programs[ProgramKind::PreludeSteps as usize];
        for (i, (value, place)) in ready.values.iter().zip(&ready.places).enumerate() {
            let Some(target) = place.span(0).filter(|span| span.bytes > 0 && value.home == i) else { continue };
            match value.source {
                Source::Input(i) if self.plan().inputs[i].role == InputRole::Timestep => {
                    let steps = &self.timesteps[first..first + self.chunk];
                    let target: &mut [u8] = self.arena.get_mut(target).expect("the layout lies in the arena");
                    let part = target.len() / steps.len();
                    target.chunks_exact_mut(part).zip(steps).for_each(|(t, &step)| write_number(step, value.dtype, t));
                }
                Source::Input(i) => repeat(&mut self.arena, self.inputs[i].span, target),
                Source::Prelude(i) => repeat(&mut self.arena, self.results[i], target),
                Source::Table(i) => {
                    let bytes = constant_bytes(&self.weights, i, value.dtype);
                    let row = bytes.len() / self.plan().evaluations;
                    let target: &mut [u8] = self.arena.get_mut(target).expect("the layout lies in the arena");
                    for (at, target) in target.chunks_exact_mut(row).enumerate() {
                        target.copy_from_slice(&bytes[(first + at / self.batch) * row..][..row]);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), EngineError> {
    if found == expected { Ok(()) } else { Err(EngineError::Length { what, found, expected }) }
}

/// Copies `source` into `target` as often as it fits.
fn repeat(arena: &mut Arena, source: Span, target: Span) {
    let (reads, [target]) = arena.split([target]).expect("the layout lies in the arena");
    let source: &[u8] = reads.get(source).expect("the layout keeps inputs apart from buffers");
    target.chunks_exact_mut(source.len()).for_each(|target| target.copy_from_slice(source));
}

fn fill_number(number: f64, slot: &Slot, arena: &mut Arena) {
    write_number(number, slot.dtype, arena.get_mut(slot.span).expect("the layout lies in the arena"));
}

/// Sets every element to `number`.
fn write_number(number: f64, dtype: DType, target: &mut [u8]) {
    let (bytes, size) = number_bytes(number, dtype);
    target.chunks_exact_mut(size).for_each(|t| t.copy_from_slice(&bytes[..size]));
}

/// A number as an element; floats that become integers are truncated.
fn number_bytes(number: f64, dtype: DType) -> ([u8; 8], usize) {
    let mut bytes = (number as i64).to_le_bytes();
    match dtype {
        DType::F32 => bytes[..4].copy_from_slice(&(number as f32).to_le_bytes()),
        DType::F64 => bytes = number.to_le_bytes(),
        _ => {}
    }
    (bytes, dtype.size())
}

/// A given input in the type that programs see.
fn as_slot(input: &PlanInput, slot: &Slot, given: &Tensor) -> Result<Tensor, EngineError> {
    let from = given.dtype();
    let converts = from == slot.dtype
        || (from.is_float() && slot.dtype.is_float())
        || (from.is_integer() && slot.dtype.is_integer());
    if !converts || given.shape() != slot.shape {
        let expected = cqc_proto::ValueType::fixed(input.ty.dtype, &slot.shape).to_string();
        let (name, shape) = (input.name.clone(), given.shape().to_vec());
        return Err(EngineError::InputType { name, dtype: from, shape, expected });
    }
    if from == slot.dtype {
        return Ok(given.clone());
    }
    if slot.dtype.is_float() {
        return Ok(given.to_float(slot.dtype));
    }
    let size = slot.dtype.size();
    let bytes: Vec<u8> = given.to_i64_vec().into_iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect();
    Ok(Tensor::new(slot.dtype, slot.shape.clone(), bytes)?)
}

/// The elements of an f32 value without gaps.
fn read_rows(value: &Value, place: &Place, arena: &Arena, evaluation: usize, out: &mut [f32]) {
    let values: &[f32] = match (place, place.span(evaluation)) {
        (_, Some(span)) => arena.get(span).expect("the layout lies in the arena"),
        (Place::Constant(bytes), None) => cqc_kernels::arena::cast(bytes),
        (Place::Table { bytes, row }, None) => cqc_kernels::arena::cast(&bytes[evaluation * row..][..*row]),
        (Place::Memory { .. }, None) => unreachable!("memory has a span"),
    };
    for (out, row) in out.chunks_exact_mut(value.cols).zip(values.chunks(value.ld)) {
        out.copy_from_slice(&row[..value.cols]);
    }
}
