//! Serves requests: takes inputs, runs preludes and evaluations, and returns outputs.

use super::program::constant_bytes;
use super::values::Value;
use super::watch::Watch;
use super::{
    DeviceEvaluation, DevicePreludes, Engine, EngineError, InFlight, InputSlot, RequestLayout,
};
use cqc_kernels::arena::{Arena, Span, bytes_of};
use cqc_kernels::{copy_strided, memory};
use cqc_proto::plan::{InputRole, PlanInput, ProgramKind, Source};
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Engine {
    /// Begins a request: takes the conditions and runs the preludes. The cache is empty.
    ///
    /// `conditions` holds every input except the sample and the time step, by name, at the engine's
    /// batch size. Float inputs accept any float type. A tensor without axes fills an input of any
    /// shape. Step conditions may be missing and are then set with [`Engine::set_condition`].
    /// `timesteps` has one entry per evaluation of the plan, or for a plan without tables one per
    /// evaluation that will follow.
    ///
    /// # Errors
    /// An [`EngineError`] for inputs that are missing, unknown or of another type, for a wrong
    /// number of time steps, and for a step that fails.
    pub fn begin(
        &mut self,
        conditions: &BTreeMap<String, Tensor>,
        timesteps: &[f64],
    ) -> Result<InFlight, EngineError> {
        self.begin_watched(conditions, timesteps, None)
    }

    /// Like [`Engine::begin`], and calls `watch` before and after every step of the preludes.
    ///
    /// # Errors
    /// Those of [`Engine::begin`].
    pub fn begin_watched(
        &mut self,
        conditions: &BTreeMap<String, Tensor>,
        timesteps: &[f64],
        watch: Option<&mut Watch>,
    ) -> Result<InFlight, EngineError> {
        let expected = self.plan().evaluations;
        if expected > 0 && timesteps.len() != expected {
            return Err(EngineError::Timesteps { found: timesteps.len(), expected });
        }
        self.check_names(conditions)?;
        // this was checked when the engine was opened, but a caller may begin many requests
        memory::check("a request", self.layout.bytes)?;
        let mut request = InFlight {
            memory: Arena::try_new(self.layout.bytes)?,
            layout: Arc::clone(&self.layout),
            timesteps: timesteps.to_vec(),
            stored: false,
            unset: Vec::new(),
            last: None,
            device: None,
        };
        let inputs = self.plan().inputs.iter().enumerate();
        let unset = inputs.filter(|(_, i)| {
            i.role == InputRole::StepCondition && !conditions.contains_key(&i.name)
        });
        request.unset = unset.map(|(i, _)| i).collect();
        let given = |i: &PlanInput| match i.role {
            InputRole::StepCondition => conditions.contains_key(&i.name),
            role => role == InputRole::Condition,
        };
        self.take_inputs(&mut request, conditions, given)?;
        let elsewhere =
            self.device.as_ref().map_or(DevicePreludes::NONE, |device| device.preludes());
        if watch.is_some() && elsewhere != DevicePreludes::NONE {
            return Err(EngineError::OnDevice { what: "steps cannot be watched" });
        }
        self.run_preludes(&mut request, elsewhere, watch)?;
        if let Some(device) = &self.device {
            request.device = Some(device.begin(&request.memory, &self.layout, timesteps)?);
        }
        Ok(request)
    }

    /// Sets the value of a step condition ([`InputRole::StepCondition`]) for the evaluations to
    /// come, at the engine's batch size.
    ///
    /// # Errors
    /// [`EngineError::NoStepCondition`], [`EngineError::InputType`], or
    /// [`EngineError::ForeignRequest`] for a request of another engine.
    pub fn set_condition(
        &self,
        request: &mut InFlight,
        name: &str,
        value: &Tensor,
    ) -> Result<(), EngineError> {
        if !Arc::ptr_eq(&request.layout, &self.layout) {
            return Err(EngineError::ForeignRequest);
        }
        let inputs = &self.plan().inputs;
        let varies = |i: &PlanInput| i.role == InputRole::StepCondition;
        let found = inputs.iter().position(|i| varies(i) && i.name == name);
        let i = found.ok_or_else(|| {
            let known: Vec<&str> =
                inputs.iter().filter(|i| varies(i)).map(|i| i.name.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            EngineError::NoStepCondition { name: name.into(), known }
        })?;
        let slot = &self.layout.inputs[i];
        let tensor = as_slot(&inputs[i], slot, value)?;
        request.bytes::<u8>(slot.span).copy_from_slice(tensor.bytes());
        if let (Some(device), Some(on_device)) = (&self.device, &request.device) {
            device.set_input(on_device, i, tensor.bytes())?;
        }
        request.unset.retain(|&unset| unset != i);
        Ok(())
    }

    /// Runs evaluation `e` of the request with the program that the schedule gives. `sample` is the
    /// model's sample input, and `out` receives its first output. Nothing is allocated.
    ///
    /// # Errors
    /// [`EngineError::Length`], [`EngineError::Evaluation`] if there is no such evaluation,
    /// [`EngineError::NothingCached`], [`EngineError::MissingInput`] for a step condition without a
    /// value, and [`EngineError::ForeignRequest`] for a request of another engine.
    pub fn evaluate(
        &mut self,
        request: &mut InFlight,
        e: usize,
        sample: &[f32],
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        self.evaluate_as(self.plan().program_at(e), request, e, sample, out)
    }

    /// Like [`Engine::evaluate`], but with a given program, the full or the cached step. It is
    /// meant for calibration.
    ///
    /// # Errors
    /// Those of [`Engine::evaluate`].
    ///
    /// # Panics
    /// If `kind` is a prelude.
    pub fn evaluate_as(
        &mut self,
        kind: ProgramKind,
        request: &mut InFlight,
        e: usize,
        sample: &[f32],
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        self.evaluate_watched(kind, request, e, sample, out, None)
    }

    /// Like [`Engine::evaluate_as`], and calls `watch` before and after every step.
    ///
    /// # Errors
    /// Those of [`Engine::evaluate`].
    ///
    /// # Panics
    /// If `kind` is a prelude.
    pub fn evaluate_watched(
        &mut self,
        kind: ProgramKind,
        request: &mut InFlight,
        e: usize,
        sample: &[f32],
        out: &mut [f32],
        watch: Option<&mut Watch>,
    ) -> Result<(), EngineError> {
        assert!(kind.is_step(), "{kind} is no step");
        if !Arc::ptr_eq(&request.layout, &self.layout) {
            return Err(EngineError::ForeignRequest);
        }
        if e >= request.timesteps.len() {
            return Err(EngineError::Evaluation {
                evaluation: e,
                evaluations: request.timesteps.len(),
            });
        }
        self.check_set(request)?;
        if kind == ProgramKind::Cached && !(request.stored && self.plan().cache.is_some()) {
            return Err(EngineError::NothingCached { evaluation: e });
        }
        let input = self.role(InputRole::Sample).ok_or(EngineError::NoLoop("sample"))?;
        let span = self.layout.inputs[input].span;
        check_length("the sample", sample.len(), span.bytes / size_of::<f32>())?;
        let value = self.plan().output_value(kind, 0);
        let result = &self.programs[kind as usize].values[value];
        if result.dtype != DType::F32 {
            return Err(EngineError::NoLoop("float output"));
        }
        check_length("the output", out.len(), result.len())?;
        if let Some(device) = &self.device {
            if watch.is_some() {
                return Err(EngineError::OnDevice { what: "steps cannot be watched" });
            }
            let on_device = request.device.as_ref().ok_or(EngineError::ForeignRequest)?;
            let (stored, timestep) = (request.stored, request.timesteps[e]);
            let evaluation = DeviceEvaluation {
                kind,
                request: on_device,
                evaluation: e,
                timestep,
                sample,
                stored,
            };
            device.evaluate(&evaluation, out)?;
            request.stored |= kind == ProgramKind::Full;
            request.last = Some((kind, e));
            return Ok(());
        }
        request.bytes::<u8>(span).copy_from_slice(bytes_of(sample));
        if let (0, Some(input)) = (self.plan().evaluations, self.role(InputRole::Timestep)) {
            let (slot, timestep) = (&self.layout.inputs[input], request.timesteps[e]);
            write_number(timestep, slot.dtype, request.bytes(slot.span));
        }
        self.run_step_program(kind, request, e, watch)?;
        let program = &self.programs[kind as usize];
        let (value, location) = (&program.values[value], &program.locations[value]);
        copy_rows(value, location.get(&self.arena, &request.memory, e), out);
        Ok(())
    }

    /// Runs a plan without tables once. It takes every input of the model by name and returns every
    /// output.
    ///
    /// # Errors
    /// Those of [`Engine::begin`]. A plan with tables needs [`Engine::run_at`].
    pub fn run(
        &mut self,
        inputs: &BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, EngineError> {
        let expected = self.plan().evaluations;
        if expected > 0 {
            return Err(EngineError::Timesteps { found: 0, expected });
        }
        let request = self.run_at(0, &[], inputs)?;
        Ok(self.outputs(&request))
    }

    /// Runs the full step once for evaluation `e`, with every input by name. In a plan with tables
    /// the time step comes from `timesteps`, one per evaluation of the plan, and an input for it is
    /// ignored. [`Engine::outputs`] and [`Engine::tap`] return the results.
    ///
    /// # Errors
    /// Those of [`Engine::begin`].
    pub fn run_at(
        &mut self,
        e: usize,
        timesteps: &[f64],
        inputs: &BTreeMap<String, Tensor>,
    ) -> Result<InFlight, EngineError> {
        if self.device.is_some() {
            return Err(EngineError::OnDevice { what: "it runs loops, not single evaluations" });
        }
        let evaluations = self.plan().evaluations;
        if e >= evaluations.max(1) {
            return Err(EngineError::Evaluation { evaluation: e, evaluations });
        }
        let mut request = self.begin(inputs, timesteps)?;
        self.take_inputs(&mut request, inputs, |input| match input.role {
            InputRole::Sample => true,
            InputRole::Timestep => evaluations == 0,
            InputRole::Condition | InputRole::StepCondition => false,
        })?;
        self.check_set(&request)?;
        self.run_step_program(ProgramKind::Full, &mut request, e, None)?;
        Ok(request)
    }

    /// All outputs after the last run, which must have been a run of `request`, in the model's own
    /// types. The map is empty before any run, and on a device, where [`Engine::evaluate`] returns
    /// the first output.
    pub fn outputs(&self, request: &InFlight) -> BTreeMap<String, Tensor> {
        let Some((kind, evaluation)) = request.last.filter(|_| self.device.is_none()) else {
            return BTreeMap::new();
        };
        let output = |(i, o): (usize, &cqc_proto::plan::PlanOutput)| {
            let tensor = self.value(kind, self.plan().output_value(kind, i), request, evaluation);
            let tensor = if o.ty.dtype.is_float() { tensor.to_float(o.ty.dtype) } else { tensor };
            (o.name.clone(), tensor)
        };
        self.plan().outputs.iter().enumerate().map(output).collect()
    }

    /// Runs the full or the cached step. The full step fills the cache.
    fn run_step_program(
        &mut self,
        kind: ProgramKind,
        request: &mut InFlight,
        e: usize,
        watch: Option<&mut Watch>,
    ) -> Result<(), EngineError> {
        if self.plan().evaluations > 0 && self.plan().program_at(e) != kind {
            self.check_scales(kind, e)?;
        }
        request.last = Some((kind, e));
        self.run_program(kind, e, &request.memory, watch)?;
        if let (ProgramKind::Full, Some(cache)) = (kind, &self.weights.plan().cache) {
            let spans = || cache.slots.iter().zip(&self.layout.cache);
            let stored = request.stored;
            for (slot, span) in spans().filter(|_| stored) {
                if let Some(of) = slot.previous_of {
                    request.copy(self.layout.cache[of], *span);
                }
            }
            for (slot, span) in spans().filter(|(slot, _)| slot.previous_of.is_none() || !stored) {
                self.keep(kind, slot.value, *span, request);
            }
            request.stored = true;
        }
        Ok(())
    }

    /// Checks that every step condition has a value.
    fn check_set(&self, request: &InFlight) -> Result<(), EngineError> {
        let Some(&i) = request.unset.first() else { return Ok(()) };
        let PlanInput { name, ty, .. } = &self.plan().inputs[i];
        Err(EngineError::MissingInput { name: name.clone(), expected: ty.clone() })
    }

    fn role(&self, role: InputRole) -> Option<usize> {
        self.plan().inputs.iter().position(|i| i.role == role)
    }

    fn check_names(&self, given: &BTreeMap<String, Tensor>) -> Result<(), EngineError> {
        let inputs = &self.plan().inputs;
        let Some(name) = given.keys().find(|name| inputs.iter().all(|i| i.name != **name)) else {
            return Ok(());
        };
        let known = inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
        Err(EngineError::UnknownInput { name: name.clone(), known })
    }

    /// Writes the wanted inputs into their slots.
    fn take_inputs(
        &self,
        request: &mut InFlight,
        given: &BTreeMap<String, Tensor>,
        wanted: impl Fn(&PlanInput) -> bool,
    ) -> Result<(), EngineError> {
        let inputs = self.weights.plan().inputs.iter().zip(&self.layout.inputs);
        for (input, slot) in inputs.filter(|(input, _)| wanted(input)) {
            let missing = || EngineError::MissingInput {
                name: input.name.clone(),
                expected: input.ty.clone(),
            };
            let tensor = given.get(&input.name).ok_or_else(missing)?;
            let tensor = as_slot(input, slot, tensor)?;
            request.bytes::<u8>(slot.span).copy_from_slice(tensor.bytes());
        }
        Ok(())
    }

    /// Runs the preludes, except those in `elsewhere`, which run on the device.
    fn run_preludes(
        &mut self,
        request: &mut InFlight,
        elsewhere: DevicePreludes,
        mut watch: Option<&mut Watch>,
    ) -> Result<(), EngineError> {
        if !elsewhere.prelude {
            self.run_program(ProgramKind::Prelude, 0, &request.memory, watch.as_deref_mut())?;
            self.keep_results(ProgramKind::Prelude, 0, request);
        }
        if self.layout.step_results.is_empty() || elsewhere.prelude_steps {
            return Ok(());
        }
        let (chunk, evaluations) = (self.chunk, self.plan().evaluations);
        for first in (0..evaluations).step_by(chunk) {
            // the last chunk overlaps the one before it if the number is not a multiple
            let first = first.min(evaluations - chunk);
            self.stack_operands(first, request);
            self.run_program(ProgramKind::PreludeSteps, 0, &request.memory, watch.as_deref_mut())?;
            self.keep_results(ProgramKind::PreludeSteps, first, request);
        }
        Ok(())
    }

    /// Copies results of a prelude into the request's memory. Those of `prelude_steps` are for the
    /// evaluations from `first` on.
    fn keep_results(&self, kind: ProgramKind, first: usize, request: &mut InFlight) {
        let RequestLayout { results, step_results, .. } = &*self.layout;
        let spans = if kind == ProgramKind::Prelude { results } else { step_results };
        for (&value, span) in self.plan().program(kind).results.iter().zip(spans) {
            let bytes = self.programs[kind as usize].values[value].bytes();
            self.keep(kind, value, Span::new(span.offset + first * span.bytes, bytes), request);
        }
    }

    /// Copies a value of a program that has just run into the request's memory, without gaps.
    fn keep(&self, kind: ProgramKind, value: usize, to: Span, request: &mut InFlight) {
        let program = &self.programs[kind as usize];
        let (value, location) = (&program.values[value], &program.locations[value]);
        let (row, ld) = (value.cols * value.dtype.size(), value.ld * value.dtype.size());
        let copy = |source: &[u8], target: &mut [u8]| {
            copy_strided(
                &self.pool,
                &[value.rows, row],
                source,
                0,
                &[ld as isize, 1],
                target,
                &[row, 1],
            );
        };
        match location.written() {
            Some(span) => {
                copy(self.arena.get(span).expect("the layout lies in the arena"), request.bytes(to))
            }
            None => {
                // a value that a prelude only passes on may lie in the same memory
                let source: Vec<u8> = location.get(&self.arena, &request.memory, 0).to_vec();
                copy(&source, request.bytes(to));
            }
        }
    }

    /// Writes the external operands of `prelude_steps` for a chunk of evaluations that begins with
    /// `first`.
    fn stack_operands(&mut self, first: usize, request: &InFlight) {
        let program = &self.programs[ProgramKind::PreludeSteps as usize];
        let plan = self.weights.plan();
        for (i, (value, location)) in program.values.iter().zip(&program.locations).enumerate() {
            let Some(span) = location.written().filter(|span| span.bytes > 0 && value.home == i)
            else {
                continue;
            };
            let target: &mut [u8] = self.arena.get_mut(span).expect("the layout lies in the arena");
            let kept = |span| -> &[u8] {
                request.memory.get(span).expect("the layout lies in the request's memory")
            };
            match value.source {
                Source::Input(i) if plan.inputs[i].role == InputRole::Timestep => {
                    let steps = &request.timesteps[first..first + self.chunk];
                    let part = target.len() / steps.len();
                    target
                        .chunks_exact_mut(part)
                        .zip(steps)
                        .for_each(|(t, &step)| write_number(step, value.dtype, t));
                }
                Source::Input(i) => repeat(kept(self.layout.inputs[i].span), target),
                Source::Prelude(i) => repeat(kept(self.layout.results[i]), target),
                Source::Table(i) => {
                    let bytes = constant_bytes(&self.weights, i, value.dtype);
                    let row = bytes.len() / plan.evaluations;
                    for (at, target) in target.chunks_exact_mut(row).enumerate() {
                        target.copy_from_slice(&bytes[(first + at / self.batch) * row..][..row]);
                    }
                }
                _ => {}
            }
        }
    }
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), EngineError> {
    if found == expected { Ok(()) } else { Err(EngineError::Length { what, found, expected }) }
}

/// Copies `source` into `target` as often as it fits.
fn repeat(source: &[u8], target: &mut [u8]) {
    target.chunks_exact_mut(source.len()).for_each(|target| target.copy_from_slice(source));
}

/// Sets every element to `number`.
pub(crate) fn write_number(number: f64, dtype: DType, target: &mut [u8]) {
    let (bytes, size) = number_bytes(number, dtype);
    target.chunks_exact_mut(size).for_each(|t| t.copy_from_slice(&bytes[..size]));
}

/// The bytes of a number as an element, and their count. Floats that become integers are truncated.
fn number_bytes(number: f64, dtype: DType) -> ([u8; 8], usize) {
    let mut bytes = (number as i64).to_le_bytes();
    match dtype {
        DType::F32 => bytes[..4].copy_from_slice(&(number as f32).to_le_bytes()),
        DType::F64 => bytes = number.to_le_bytes(),
        _ => {}
    }
    (bytes, dtype.size())
}

/// A given input, converted to the type that programs read.
fn as_slot(input: &PlanInput, slot: &InputSlot, given: &Tensor) -> Result<Tensor, EngineError> {
    let from = given.dtype();
    let converts = from == slot.dtype
        || (from.is_float() && slot.dtype.is_float())
        || (from.is_integer() && slot.dtype.is_integer());
    if given.shape().is_empty() && (!converts || !slot.shape.is_empty()) {
        return Ok(Tensor::full(slot.dtype, &slot.shape, given.to_f64_vec()[0])?);
    }
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
    let bytes: Vec<u8> = given
        .to_i64_vec()
        .into_iter()
        .flat_map(|v| v.to_le_bytes().into_iter().take(size))
        .collect();
    Ok(Tensor::new(slot.dtype, slot.shape.clone(), bytes)?)
}

/// Copies the elements of an f32 value without gaps.
fn copy_rows(value: &Value, values: &[f32], out: &mut [f32]) {
    for (out, row) in out.chunks_exact_mut(value.cols).zip(values.chunks(value.ld)) {
        out.copy_from_slice(&row[..value.cols]);
    }
}
