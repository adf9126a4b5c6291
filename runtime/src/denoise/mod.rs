//! The denoising loop, which turns noise into samples.

mod caller;
mod check;
mod error;
mod full;
mod guided;
mod request;
mod start;
mod steps;
mod trajectory;

pub use check::{check_condition, check_request, label_rows};
pub use error::DenoiseError;
pub(crate) use guided::Defaults;
pub use guided::{GuidanceError, fill_value};
pub use request::{Request, rows_at};
pub use start::{Beginning, Course, StartError};
pub use trajectory::{Compensation, Moment, Trajectory};

use crate::engine::{DeviceSampling, Engine, EngineError, EngineOptions, InFlight, Watch, Weights};
use crate::noise::Noise;
use crate::sampler::{Sampler, State};
use bytes::Bytes;
use cqc_kernels::arena::{Arena, Span};
use cqc_kernels::memory;
use cqc_proto::plan::{InputRole, Plan, PlanInput, ProgramKind};
use cqc_proto::{DType, Tensor};
use full::OffSchedule;
use request::{gather, is_batched, joined_at, row_of_number};
use start::Started;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// A compiled loop that can serve requests: a whole request with [`Denoiser::sample`], or several
/// requests side by side, one evaluation at a time, as [`Trajectory`]s.
///
/// [`crate::Artifact::denoiser`] opens one with the settings of an artifact. A denoiser can be sent
/// to another thread. All denoisers of an artifact share its packed weights.
pub struct Denoiser {
    engine: Engine,
    /// Number of engine requests per trajectory. It is 2, the unconditional one first, if the
    /// halves of guidance cannot share a batch.
    halves: usize,
    sampler: Sampler,
    timesteps: Vec<f64>,
    guided: bool,
    /// The number of samples that are computed at once.
    width: usize,
    /// The shape of one sample.
    shape: Vec<usize>,
    input: Vec<f32>,
    output: Vec<f32>,
    compensation: Option<Compensation>,
    defaults: Defaults,
    /// A denoiser that computes the halves of guidance apart. It serves requests that need only one
    /// of them at some evaluations.
    apart: Option<Box<Denoiser>>,
    /// Whether rows of tables have been overwritten, so that they differ from the plan.
    overwritten: bool,
    /// Whether the device moves the samples of [`Denoiser::sample`].
    moves: bool,
    off_schedule: OffSchedule,
}

impl Denoiser {
    /// Opens a denoiser that computes `options.batch` samples at once. A plan with a fixed batch
    /// ignores that number. With `guided`, both halves are computed, if possible in one batch of
    /// twice the size.
    ///
    /// # Errors
    /// [`DenoiseError::Evaluations`] if the plan's tables are for another sampler,
    /// [`DenoiseError::NoDenoiser`] if the plan is not a denoiser, and the errors of
    /// [`Engine::open`].
    pub fn open(
        weights: &Arc<Weights>,
        sampler: Sampler,
        guided: bool,
        options: &EngineOptions,
    ) -> Result<Denoiser, DenoiseError> {
        let split = split(weights.plan(), options.batch, guided);
        Denoiser::open_split(weights, sampler, guided, split, options)
    }

    /// Opens a denoiser with guidance whose halves are separate requests to the engine. An
    /// evaluation that needs only one half then does half of the work.
    ///
    /// # Errors
    /// Those of [`Denoiser::open`].
    pub fn open_apart(
        weights: &Arc<Weights>,
        sampler: Sampler,
        options: &EngineOptions,
    ) -> Result<Denoiser, DenoiseError> {
        let batch = match &weights.plan().batch_symbol {
            Some(_) => options.batch,
            None => weights.plan().fixed_batch.unwrap_or(1),
        };
        Denoiser::open_split(weights, sampler, true, (batch, batch, 2), options)
    }

    /// Opens a denoiser. `split` holds the number of samples computed at once, the batch of the
    /// engine and the number of engine requests.
    fn open_split(
        weights: &Arc<Weights>,
        sampler: Sampler,
        guided: bool,
        split: (usize, usize, usize),
        options: &EngineOptions,
    ) -> Result<Denoiser, DenoiseError> {
        let plan = weights.plan();
        let evaluations = sampler.evaluations().len();
        if plan.evaluations != 0 && plan.evaluations != evaluations {
            return Err(DenoiseError::Evaluations { plan: plan.evaluations, sampler: evaluations });
        }
        let (width, batch, halves) = split;
        let engine = Engine::open(weights, &EngineOptions { batch, ..options.clone() })?;
        let (shape, out_len) = sample_shape(plan, &engine, sampler.reads_variance())?;
        let len: usize = shape.iter().product();
        let mut denoise = Denoiser {
            timesteps: sampler.evaluations().iter().map(|e| e.timestep).collect(),
            input: vec![0.0; batch * len],
            output: vec![0.0; batch * halves * out_len],
            engine,
            compensation: None,
            defaults: Defaults::default(),
            apart: None,
            overwritten: false,
            moves: false,
            off_schedule: OffSchedule::default(),
            halves,
            sampler,
            guided,
            width,
            shape,
        };
        denoise.move_on_device()?;
        Ok(denoise)
    }

    /// Lets the device move the samples, if there is a device, one engine request serves both
    /// halves and the rows of the sampler table allow it.
    fn move_on_device(&mut self) -> Result<(), DenoiseError> {
        // a threshold needs the whole sample, and a device computes each element by itself
        let varies = |i: &PlanInput| i.role == InputRole::StepCondition;
        let here = self.halves != 1
            || self.sampler.table().has_thresholds()
            || self.engine.plan().inputs.iter().any(varies);
        if self.engine.device().is_none() || here {
            return Ok(());
        }
        let len: usize = self.shape.iter().product();
        let rows = if self.guided { 2 * self.width } else { self.width };
        let sampling = DeviceSampling {
            table: self.sampler.table(),
            sizes: [self.width, len, self.channels()],
            width: self.output.len() / rows,
            guided: self.guided,
            compensation: self.compensation.as_ref().map(|c| [&c.scale[..], &c.shift[..]]),
        };
        self.moves = self.engine.sample_on_device(&sampling)?;
        Ok(())
    }

    /// Opens a denoiser like this one for `samples` samples at once, on the same weights and
    /// threads. Table rows that were overwritten are those of the plan again.
    ///
    /// # Errors
    /// Those of [`Denoiser::open`].
    pub fn of_width(&self, samples: usize) -> Result<Denoiser, DenoiseError> {
        let (weights, options) = self.engine.recipe();
        let options = EngineOptions { batch: samples, ..options };
        match self.halves {
            2 => Denoiser::open_apart(&weights, self.sampler.clone(), &options),
            _ => Denoiser::open(&weights, self.sampler.clone(), self.guided, &options),
        }
    }

    pub(crate) fn set_defaults(&mut self, defaults: Defaults) {
        (self.defaults, self.apart) = (defaults, None);
    }

    /// Whether the denoiser was opened with guidance and computes both halves.
    pub fn is_guided(&self) -> bool {
        self.guided
    }

    /// The sampler of the loop, with its evaluations and their time steps.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The engine that evaluates the network. It gives access to the plan, the memory, the profile
    /// and the device.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Clears the times that have been measured so far: see [`Engine::reset_profile`].
    pub fn reset_profile(&mut self) {
        self.engine.reset_profile();
    }

    /// Overwrites one row of a table: see [`Engine::set_table_row`]. Afterwards, requests with an
    /// interval of guidance compute both halves at every evaluation, unless this denoiser computes
    /// them apart.
    ///
    /// # Errors
    /// Those of [`Engine::set_table_row`].
    pub fn set_table_row(
        &mut self,
        constant: usize,
        e: usize,
        row: &[f32],
    ) -> Result<(), DenoiseError> {
        self.overwritten = true;
        Ok(self.engine.set_table_row(constant, e, row)?)
    }

    /// Sets or removes the sample compensation.
    ///
    /// # Errors
    /// [`EngineError::Length`] unless there is one entry per evaluation and channel.
    pub fn set_compensation(
        &mut self,
        compensation: Option<Compensation>,
    ) -> Result<(), DenoiseError> {
        let expected = self.timesteps.len() * self.channels();
        for part in compensation.iter().flat_map(|c| [&c.scale, &c.shift]) {
            if part.len() != expected {
                let what = "the compensation";
                return Err(EngineError::Length { what, found: part.len(), expected }.into());
            }
        }
        (self.compensation, self.apart) = (compensation, None);
        self.move_on_device()
    }

    /// The number of channels, which is the size of the first axis of a sample.
    pub fn channels(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The number of engine requests for one trajectory. It is 2 if the halves of guidance are
    /// computed apart, because of a fixed batch or an interval of guidance.
    pub fn halves(&self) -> usize {
        self.halves
    }

    /// The number of evaluations in the whole loop.
    pub fn evaluations(&self) -> usize {
        self.timesteps.len()
    }

    /// The number of samples that are computed at once. With guidance, the batch of the network is
    /// twice as large.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The shape of one sample without the batch: channels first, then the spatial axes.
    pub fn sample_shape(&self) -> &[usize] {
        &self.shape
    }

    /// Serves a request and returns its samples, `[samples, ...]` in f32. `observe` is called after
    /// each evaluation and may cancel the request.
    ///
    /// A sample depends only on its own noise and conditions, not on the number of samples that are
    /// computed at once.
    ///
    /// # Errors
    /// [`DenoiseError::Interrupted`] if `observe` cancels, and the errors of [`Denoiser::begin`]
    /// and [`Denoiser::step`].
    pub fn sample(
        &mut self,
        request: &Request,
        observe: &mut dyn FnMut(&Moment) -> ControlFlow<()>,
    ) -> Result<Tensor, DenoiseError> {
        if let Some(apart) = self.apart(request)? {
            return apart.sample(request, observe);
        }
        let len: usize = self.shape.iter().product();
        let mut shape = vec![request.samples];
        shape.extend(&self.shape);
        let mut all = self.block(request.samples)?;
        let evaluations = self.course(request)?.evaluations.end;
        for first in (0..request.samples).step_by(self.width) {
            let samples = first..request.samples.min(first + self.width);
            let mut trajectory = self.begin(request, first)?;
            let moves = self.moves && trajectory.is_plain();
            if moves {
                self.put_on_device(&trajectory)?;
            }
            while trajectory.next < trajectory.end {
                if moves {
                    self.replay(&mut trajectory)?
                } else {
                    self.step(&mut trajectory)?
                }
                let (engine, request) =
                    (&self.engine, trajectory.requests.last().expect("it has one"));
                let (samples, evaluation) = (samples.clone(), trajectory.next - 1);
                let (x, len) = ((!moves).then_some(&trajectory.x[..]), trajectory.x.len());
                if observe(&Moment { evaluation, evaluations, samples, x, len, engine, request })
                    .is_break()
                {
                    return Err(DenoiseError::Interrupted);
                }
            }
            if moves {
                self.engine.get_samples(&trajectory.requests[0], &mut trajectory.x)?;
            }
            let size = len * size_of::<f32>();
            let span = Span::new(samples.start * size, samples.len() * size);
            let rows = all.get_mut(span).expect("it was made for all samples");
            rows.copy_from_slice(&trajectory.x[..samples.len() * len]);
        }
        Ok(Tensor::new(DType::F32, shape, Bytes::from_owner(all))?)
    }

    /// Allocates memory for the result, after a check against the memory limit.
    fn block(&self, samples: usize) -> Result<Arena, EngineError> {
        let len: usize = self.shape.iter().product();
        let bytes = samples.saturating_mul(len).saturating_mul(size_of::<f32>());
        memory::check(format_args!("the result, {samples} samples of {:?},", self.shape), bytes)?;
        Ok(Arena::try_new(bytes)?)
    }

    /// Begins samples `first ..` of a request, as many as [`Denoiser::width`]. If fewer are left,
    /// the last one is repeated.
    ///
    /// # Errors
    /// [`DenoiseError::NoNull`] if guidance has no null condition, [`DenoiseError::Start`] and
    /// [`DenoiseError::Guiding`] for invalid options, and the errors of [`check_request`] and of
    /// tensors whose shape does not fit.
    pub fn begin(&mut self, request: &Request, first: usize) -> Result<Trajectory, DenoiseError> {
        self.begin_watched(request, first, None)
    }

    /// Like [`Denoiser::begin`], and calls `watch` before and after every step of the preludes.
    ///
    /// # Errors
    /// Those of [`Denoiser::begin`].
    pub fn begin_watched(
        &mut self,
        request: &Request,
        first: usize,
        watch: Option<&mut Watch>,
    ) -> Result<Trajectory, DenoiseError> {
        let course = self.course(request)?;
        let guidance = self.guidance(request, &course)?;
        // the whole request is checked with its first batch
        if first == 0 {
            check_request(self.engine.plan(), request)?;
        }
        if self.guided && request.unconditional.is_empty() && self.defaults.null.is_empty() {
            return Err(DenoiseError::NoNull);
        }
        let requests = self.begin_requests(request, first, watch)?;
        self.prepare_outage(&guidance, &course.evaluations)?;
        let mut noise =
            Noise::new(request.seed, request.first.wrapping_add(first as u64), self.width);
        let Started { x, repaint, sampler } = self.start(request, &course, first, &mut noise)?;
        let len: usize = self.shape.iter().product();
        let state = State::new(sampler.as_ref().unwrap_or(&self.sampler), self.width, len);
        let Range { start: next, end } = course.evaluations;
        let full_until = self.full_until(next)?;
        let steps = self.steps_of(request, &self.indices(request.samples, first))?;
        let (sampler, width) = (sampler.map(Arc::new), self.width);
        Ok(Trajectory {
            requests,
            x,
            state,
            noise,
            steps,
            guidance,
            next,
            end,
            full_until,
            sampler,
            repaint,
            width,
        })
    }

    /// Runs the next evaluation with the program that the schedule gives, and moves the samples.
    ///
    /// # Errors
    /// Those of [`Engine::evaluate`].
    ///
    /// # Panics
    /// If all evaluations are done.
    pub fn step(&mut self, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        let kind = self.program_of(trajectory);
        self.evaluate_as(kind, trajectory)?;
        self.advance(trajectory, self.output());
        Ok(())
    }

    /// Copies the samples of a trajectory that has just begun to the device.
    fn put_on_device(&mut self, trajectory: &Trajectory) -> Result<(), DenoiseError> {
        self.scale_input(trajectory);
        Ok(self.engine.put_samples(
            &trajectory.requests[0],
            &trajectory.x,
            &self.input,
            trajectory.guidance.scale,
        )?)
    }

    /// Does what [`Denoiser::step`] does for samples on the device, and waits for the device. The
    /// trajectory's own copy of the samples is not updated.
    fn replay(&mut self, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        let Trajectory { requests, state, noise, next, .. } = trajectory;
        let noisy = self.sampler.adds_noise(*next);
        self.engine
            .replay(&mut requests[0], *next, || noisy.then(|| state.draw(|out| noise.fill(out))))?;
        *next += 1;
        Ok(self.engine.wait()?)
    }

    /// Computes the scaled network input from the samples and copies it for every half of the
    /// batch.
    fn scale_input(&mut self, trajectory: &Trajectory) {
        let (input, rest) = self.input.split_at_mut(trajectory.x.len());
        self.sampler.scale_input(trajectory.next, &trajectory.x, input);
        rest.chunks_exact_mut(input.len()).for_each(|half| half.copy_from_slice(input));
    }

    /// Evaluates the network on the present samples with the given program and applies guidance.
    /// The result is in [`Denoiser::output`]. The trajectory does not advance.
    ///
    /// # Errors
    /// Those of [`Engine::evaluate_as`].
    pub fn evaluate_as(
        &mut self,
        kind: ProgramKind,
        trajectory: &mut Trajectory,
    ) -> Result<(), DenoiseError> {
        self.evaluate_watched(kind, trajectory, None)
    }

    /// Like [`Denoiser::evaluate_as`], and calls `watch` before and after every step. If the halves
    /// of guidance are apart, it sees the steps of one after those of the other.
    ///
    /// # Errors
    /// Those of [`Denoiser::evaluate_as`].
    pub fn evaluate_watched(
        &mut self,
        kind: ProgramKind,
        trajectory: &mut Trajectory,
        watch: Option<&mut Watch>,
    ) -> Result<(), DenoiseError> {
        self.scale_input(trajectory);
        self.evaluate_input(kind, trajectory, watch)
    }

    /// Runs one evaluation for a caller with a sampler of its own, and returns the prediction for
    /// `input` `[width, ...]` after guidance. The caller must have scaled the input for this
    /// evaluation. The trajectory holds the cache and advances by one evaluation. Its own samples
    /// do not change.
    ///
    /// # Errors
    /// [`EngineError::Length`] if the input has another length, [`DenoiseError::Finished`] if all
    /// evaluations are done, and the errors of [`Engine::evaluate`].
    pub fn predict(
        &mut self,
        trajectory: &mut Trajectory,
        input: &[f32],
    ) -> Result<&[f32], DenoiseError> {
        let (expected, evaluations) = (trajectory.x.len(), trajectory.end);
        if trajectory.next >= evaluations {
            return Err(DenoiseError::Finished { evaluations });
        }
        if input.len() != expected {
            return Err(
                EngineError::Length { what: "the input", found: input.len(), expected }.into()
            );
        }
        self.input.chunks_exact_mut(expected).for_each(|half| half.copy_from_slice(input));
        let kind = self.program_of(trajectory);
        self.evaluate_input(kind, trajectory, None)?;
        trajectory.next += 1;
        Ok(self.output())
    }

    /// Like [`Denoiser::predict`], but at any evaluation, regardless of those that the trajectory
    /// has run before. The trajectory continues with the evaluation after it. Use it only with
    /// plans that do not cache.
    ///
    /// # Errors
    /// Those of [`Denoiser::predict`].
    pub fn predict_at(
        &mut self,
        trajectory: &mut Trajectory,
        evaluation: usize,
        input: &[f32],
    ) -> Result<&[f32], DenoiseError> {
        trajectory.next = evaluation;
        self.predict(trajectory, input)
    }

    /// Applies the sample compensation of evaluation `evaluation` to samples `[width, ...]`, if
    /// there is one. It is meant for callers with a sampler of their own; [`Denoiser::step`] does
    /// it by itself.
    ///
    /// # Panics
    /// If there is no such evaluation.
    pub fn compensate(&self, evaluation: usize, x: &mut [f32]) {
        if let Some(Compensation { scale, shift }) = &self.compensation {
            let rows = evaluation * self.channels()..(evaluation + 1) * self.channels();
            trajectory::map_channels(x, self.width, &scale[rows.clone()], &shift[rows]);
        }
    }

    fn evaluate_input(
        &mut self,
        kind: ProgramKind,
        trajectory: &mut Trajectory,
        mut watch: Option<&mut Watch>,
    ) -> Result<(), DenoiseError> {
        let len = trajectory.x.len();
        let part = self.output.len() / self.halves;
        self.put_steps(&mut trajectory.requests, &trajectory.steps, trajectory.next)?;
        let (e, mixed) = (trajectory.next, trajectory.is_guided_at(trajectory.next));
        let apart = self.halves == 2;
        for (i, (request, output)) in
            trajectory.requests.iter_mut().zip(self.output.chunks_exact_mut(part)).enumerate()
        {
            let null = apart && i == 0;
            if null && !mixed {
                continue;
            }
            let kind = if null { trajectory.guidance.program_of_null(kind, e) } else { kind };
            let watch = watch.as_deref_mut();
            self.engine.evaluate_watched(kind, request, e, &self.input, output, watch)?;
        }
        if self.guided {
            self.mix(&trajectory.guidance, e, len);
            if mixed {
                trajectory.guidance.ready_for = e + 1;
            }
        }
        Ok(())
    }

    /// The output of the last evaluation after guidance, `[width, ...]`. If the network also
    /// predicts a variance, it follows the prediction of each sample.
    pub fn output(&self) -> &[f32] {
        &self.output[..self.output.len() / if self.guided { 2 } else { 1 }]
    }

    /// Moves the samples by `output`, which is [`Denoiser::output`] or has the same length.
    ///
    /// # Panics
    /// If all evaluations are done, or if the output has another length.
    pub fn advance(&self, trajectory: &mut Trajectory, output: &[f32]) {
        let Trajectory { x, state, noise, next, sampler, .. } = trajectory;
        let sampler = sampler.as_deref().unwrap_or(&self.sampler);
        sampler.advance(state, *next, x, output, |out| noise.fill(out));
        *next += 1;
        self.compensate(trajectory.next - 1, &mut trajectory.x);
        if let Some(repaint) = &trajectory.repaint {
            repaint.put_back(self.sampler.level_after(trajectory.next - 1), &mut trajectory.x);
        }
    }

    fn begin_requests(
        &mut self,
        request: &Request,
        first: usize,
        mut watch: Option<&mut Watch>,
    ) -> Result<Vec<InFlight>, DenoiseError> {
        let indices = self.indices(request.samples, first);
        let request = &self.filled(request)?;
        let conditional = self.conditions(request, &indices, false)?;
        if !self.guided {
            return Ok(vec![self.engine.begin_watched(&conditional, &self.timesteps, watch)?]);
        }
        let unconditional = self.conditions(request, &indices, true)?;
        if self.halves == 2 {
            let halves = [unconditional, conditional];
            let mut begin = |half| {
                Ok(self.engine.begin_watched(half, &self.timesteps, watch.as_deref_mut())?)
            };
            return halves.iter().map(&mut begin).collect();
        }
        let plan = self.engine.plan();
        let joined = conditional.into_iter().map(|(name, c)| {
            let batched = is_batched(plan, &name);
            let t = if batched { joined_at(0, &unconditional[&name], &c)? } else { c };
            Ok((name, t))
        });
        let joined = joined.collect::<Result<BTreeMap<_, _>, DenoiseError>>()?;
        Ok(vec![self.engine.begin_watched(&joined, &self.timesteps, watch)?])
    }

    /// The conditions of the samples `indices` by input name. With `null`, null conditions replace
    /// those of the request, where there are any.
    fn conditions(
        &self,
        request: &Request,
        indices: &[usize],
        null: bool,
    ) -> Result<BTreeMap<String, Tensor>, DenoiseError> {
        let plan = self.engine.plan();
        let known = |name: &String| plan.inputs.iter().any(|i| i.name == *name);
        let stray = request
            .unconditional
            .keys()
            .find(|name| !known(name) || !request.conditions.contains_key(*name));
        if let (true, Some(name)) = (null, stray) {
            let known =
                request.conditions.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(EngineError::UnknownInput { name: name.clone(), known }.into());
        }
        let rows = |(name, condition): (&String, &Tensor)| {
            let unconditional = || request.unconditional.get(name).or(self.defaults.null.get(name));
            let given = if null { unconditional().unwrap_or(condition) } else { condition };
            let t = if is_batched(plan, name) {
                gather(name, &row_of_number(plan, name, given)?, indices, request.samples)?
            } else {
                given.clone()
            };
            Ok((name.clone(), t))
        };
        request.conditions.iter().map(rows).collect()
    }

    fn take_noise(
        &self,
        given: &Tensor,
        samples: usize,
        first: usize,
        x: &mut [f32],
    ) -> Result<(), DenoiseError> {
        let (shape, row) = (given.shape().to_vec(), self.shape.clone());
        if shape.first() != Some(&samples) || shape[1..] != row || !given.dtype().is_float() {
            return Err(DenoiseError::Rows { name: "noise".into(), shape, samples, row });
        }
        let indices: Vec<usize> =
            (first..first + self.width).map(|i| i.min(samples.saturating_sub(1))).collect();
        x.copy_from_slice(&gather("noise", given, &indices, samples)?.to_f32_vec());
        Ok(())
    }
}

/// The number of samples computed at once, the batch of the engine and the number of engine
/// requests.
fn split(plan: &Plan, asked: usize, guided: bool) -> (usize, usize, usize) {
    match (&plan.batch_symbol, plan.fixed_batch.unwrap_or(1), guided) {
        (Some(_), _, true) => (asked, asked.saturating_mul(2), 1),
        (Some(_), _, false) => (asked, asked, 1),
        (None, fixed, true) if fixed.is_multiple_of(2) => (fixed / 2, fixed, 1),
        (None, fixed, true) => (fixed, fixed, 2),
        (None, fixed, false) => (fixed, fixed, 1),
    }
}

/// The shape of one sample, and the number of elements in the output for one sample.
fn sample_shape(
    plan: &Plan,
    engine: &Engine,
    reads_variance: bool,
) -> Result<(Vec<usize>, usize), DenoiseError> {
    let no_denoiser = |reason: String| DenoiseError::NoDenoiser { reason };
    let input = plan.inputs.iter().position(|i| i.role == InputRole::Sample);
    let input = input.ok_or_else(|| no_denoiser("no input is the sample".into()))?;
    let (shape, out) = (engine.input_shape(input), engine.output_shape(0));
    let batch = engine.batch();
    if shape.first() != Some(&batch) || out.first() != Some(&batch) {
        return Err(no_denoiser(format!(
            "sample {shape:?} and output {out:?} do not begin with the batch of {batch}"
        )));
    }
    let (len, out_len): (usize, usize) = (shape[1..].iter().product(), out[1..].iter().product());
    if !(out_len == 2 * len || (out_len == len && !reads_variance)) {
        return Err(no_denoiser(format!("the sample is {shape:?}, the output {out:?}")));
    }
    Ok((shape[1..].to_vec(), out_len))
}
