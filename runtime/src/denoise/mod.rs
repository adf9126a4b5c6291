//! The denoising loop: noise in, samples out.

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

/// A plan and a sampler, ready to serve requests: all of one with [`Denoiser::sample`], or several
/// side by side, step by step, as [`Trajectory`]s.
///
/// [`crate::Artifact::denoiser`] opens one as an artifact says. A denoiser can be sent to another
/// thread; denoisers of one artifact share its packed weights.
pub struct Denoiser {
    engine: Engine,
    /// Requests of the engine per trajectory: two, unconditional first, if guidance cannot join its
    /// halves in one batch.
    halves: usize,
    sampler: Sampler,
    timesteps: Vec<f64>,
    guided: bool,
    /// Samples at once.
    width: usize,
    /// Sizes of one sample.
    shape: Vec<usize>,
    input: Vec<f32>,
    output: Vec<f32>,
    compensation: Option<Compensation>,
    /// What requests get that do not say it.
    defaults: Defaults,
    /// Computes the halves of guidance apart, for requests that need one of them only at some
    /// evaluations.
    apart: Option<Box<Denoiser>>,
    /// Whether rows of tables are not those of the plan.
    overwritten: bool,
    /// Whether a device moves the samples of [`Denoiser::sample`].
    moves: bool,
    off_schedule: OffSchedule,
}

impl Denoiser {
    /// Opens an engine for `options.batch` samples at once (a plan of fixed batch decides itself),
    /// twice as many rows if `guided`.
    ///
    /// # Errors
    /// A plan that is no denoiser or has tables for another sampler; whatever [`Engine::open`]
    /// reports.
    pub fn open(
        weights: &Arc<Weights>,
        sampler: Sampler,
        guided: bool,
        options: &EngineOptions,
    ) -> Result<Denoiser, DenoiseError> {
        let split = split(weights.plan(), options.batch, guided);
        Denoiser::open_split(weights, sampler, guided, split, options)
    }

    /// [`Denoiser::open`] for both halves of guidance, each a request of its own to the engine:
    /// evaluations that need one half only cost half as much.
    ///
    /// # Errors
    /// As [`Denoiser::open`].
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

    /// `split`: samples at once, batch of the engine, number of requests.
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

    /// Lets a device move samples where it can: in one request, by the rows of tables.
    fn move_on_device(&mut self) -> Result<(), DenoiseError> {
        // a threshold looks at a whole sample, an element of a device at itself
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

    /// A loop like this one, on the same weights and threads, for `samples` samples at once. Tables
    /// that were overwritten are as in the plan again.
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

    /// Sets what requests get that do not say it.
    pub(crate) fn set_defaults(&mut self, defaults: Defaults) {
        (self.defaults, self.apart) = (defaults, None);
    }

    /// Whether the batch holds both halves of guidance.
    pub fn is_guided(&self) -> bool {
        self.guided
    }

    /// The sampler of the loop: its evaluations with their time steps, and its arithmetic.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The engine that evaluates the network: its plan, memory, profile and device.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Forgets the times measured so far: see [`Engine::reset_profile`].
    pub fn reset_profile(&mut self) {
        self.engine.reset_profile();
    }

    /// Overwrites one row of a table: see [`Engine::set_table_row`]. Requests with an interval of
    /// guidance then compute both halves at every evaluation, unless they do so apart.
    ///
    /// # Errors
    /// As there.
    pub fn set_table_row(
        &mut self,
        constant: usize,
        e: usize,
        row: &[f32],
    ) -> Result<(), DenoiseError> {
        self.overwritten = true;
        Ok(self.engine.set_table_row(constant, e, row)?)
    }

    /// Corrects samples from now on, or no longer.
    ///
    /// # Errors
    /// [`EngineError::Length`] unless there is an entry for every evaluation and channel.
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

    /// Channels of a sample: its first axis.
    pub fn channels(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Requests that the engine serves for one trajectory: two if a fixed batch or an interval of
    /// guidance keeps its halves apart.
    pub fn halves(&self) -> usize {
        self.halves
    }

    /// Evaluations of the network in one loop.
    pub fn evaluations(&self) -> usize {
        self.timesteps.len()
    }

    /// Samples that are computed at once: the batch, without the second half of guidance.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Sizes of one sample, without the batch: channels first, then spatial axes.
    pub fn sample_shape(&self) -> &[usize] {
        &self.shape
    }

    /// Samples `[samples, ...]`; `observe` is called after each evaluation and may break off.
    ///
    /// Every sample depends on its own noise and conditions alone, not on how many are computed at
    /// once.
    ///
    /// # Errors
    /// Conditions that do not fit, [`DenoiseError::NoNull`], [`DenoiseError::Interrupted`].
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

    /// Memory for so many samples, unless there is not as much.
    fn block(&self, samples: usize) -> Result<Arena, EngineError> {
        let len: usize = self.shape.iter().product();
        let bytes = samples.saturating_mul(len).saturating_mul(size_of::<f32>());
        memory::check(format_args!("the result, {samples} samples of {:?},", self.shape), bytes)?;
        Ok(Arena::try_new(bytes)?)
    }

    /// Begins samples `first ..` of a request, as many as are computed at once, the last one
    /// repeated where there are fewer.
    ///
    /// # Errors
    /// Conditions or noise that do not fit, [`DenoiseError::NoNull`].
    pub fn begin(&mut self, request: &Request, first: usize) -> Result<Trajectory, DenoiseError> {
        self.begin_watched(request, first, None)
    }

    /// [`Denoiser::begin`], with a look at every step of the preludes.
    ///
    /// # Errors
    /// As [`Denoiser::begin`].
    pub fn begin_watched(
        &mut self,
        request: &Request,
        first: usize,
        watch: Option<&mut Watch>,
    ) -> Result<Trajectory, DenoiseError> {
        let course = self.course(request)?;
        let guidance = self.guidance(request, &course)?;
        // the later batches of a request bring nothing new
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

    /// One evaluation, with the program that the plan says, and what the sampler makes of it.
    ///
    /// # Errors
    /// Whatever [`Engine::evaluate`] reports.
    ///
    /// # Panics
    /// When all evaluations are done.
    pub fn step(&mut self, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        let kind = self.program_of(trajectory);
        self.evaluate_as(kind, trajectory)?;
        self.advance(trajectory, self.output());
        Ok(())
    }

    /// Hands samples that have just begun to the device.
    fn put_on_device(&mut self, trajectory: &Trajectory) -> Result<(), DenoiseError> {
        self.scale_input(trajectory);
        Ok(self.engine.put_samples(
            &trajectory.requests[0],
            &trajectory.x,
            &self.input,
            trajectory.guidance.scale,
        )?)
    }

    /// [`Denoiser::step`] of samples on the device; the trajectory's own stay behind. The device is
    /// done when this returns.
    fn replay(&mut self, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        let Trajectory { requests, state, noise, next, .. } = trajectory;
        let noisy = self.sampler.adds_noise(*next);
        self.engine
            .replay(&mut requests[0], *next, || noisy.then(|| state.draw(|out| noise.fill(out))))?;
        *next += 1;
        Ok(self.engine.wait()?)
    }

    /// What the network sees of the samples, for every half of the batch.
    fn scale_input(&mut self, trajectory: &Trajectory) {
        let (input, rest) = self.input.split_at_mut(trajectory.x.len());
        self.sampler.scale_input(trajectory.next, &trajectory.x, input);
        rest.chunks_exact_mut(input.len()).for_each(|half| half.copy_from_slice(input));
    }

    /// The network's answer to the present samples by a given program, guidance applied:
    /// [`Denoiser::output`]. The trajectory stays where it is.
    ///
    /// # Errors
    /// Whatever [`Engine::evaluate_as`] reports.
    pub fn evaluate_as(
        &mut self,
        kind: ProgramKind,
        trajectory: &mut Trajectory,
    ) -> Result<(), DenoiseError> {
        self.evaluate_watched(kind, trajectory, None)
    }

    /// [`Denoiser::evaluate_as`], with a look at every step; where the halves of guidance are
    /// apart, of one after the other.
    ///
    /// # Errors
    /// As [`Denoiser::evaluate_as`].
    pub fn evaluate_watched(
        &mut self,
        kind: ProgramKind,
        trajectory: &mut Trajectory,
        watch: Option<&mut Watch>,
    ) -> Result<(), DenoiseError> {
        self.scale_input(trajectory);
        self.evaluate_input(kind, trajectory, watch)
    }

    /// One evaluation for a caller with a sampler of its own: what the network answers to `input`
    /// `[width, ...]`, guidance applied. The input is what the network sees, so the caller has
    /// scaled it; the trajectory keeps the cache and counts the evaluations, and its own samples
    /// stay what they were.
    ///
    /// # Errors
    /// [`EngineError::Length`] for an input of another length, [`DenoiseError::Finished`] when all
    /// evaluations are done, and whatever [`Engine::evaluate`] reports.
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

    /// What the network answers to `input` `[width, ...]` at any evaluation, whatever the trajectory
    /// has seen before: [`Denoiser::predict`] there. The trajectory goes on after it. For plans that
    /// cache nothing.
    ///
    /// # Errors
    /// As [`Denoiser::predict`].
    pub fn predict_at(
        &mut self,
        trajectory: &mut Trajectory,
        evaluation: usize,
        input: &[f32],
    ) -> Result<&[f32], DenoiseError> {
        trajectory.next = evaluation;
        self.predict(trajectory, input)
    }

    /// Corrects samples `[width, ...]` after evaluation `evaluation`, where the artifact says so:
    /// for a caller with a sampler of its own ([`Denoiser::step`] does it by itself).
    ///
    /// # Panics
    /// When there is no such evaluation.
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

    /// The last evaluation's output `[width, ...]`, guidance applied; where the network also gives
    /// a variance, per sample behind the prediction.
    pub fn output(&self) -> &[f32] {
        &self.output[..self.output.len() / if self.guided { 2 } else { 1 }]
    }

    /// Moves the samples by the evaluation's output, which is [`Denoiser::output`] or as long as
    /// that.
    ///
    /// # Panics
    /// When all evaluations are done, or the output has another length.
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

    /// Rows of the conditions for the samples `indices`; where there are null conditions and
    /// `null`, those.
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

/// Samples at once, batch of the engine, number of requests.
fn split(plan: &Plan, asked: usize, guided: bool) -> (usize, usize, usize) {
    match (&plan.batch_symbol, plan.fixed_batch.unwrap_or(1), guided) {
        (Some(_), _, true) => (asked, asked.saturating_mul(2), 1),
        (Some(_), _, false) => (asked, asked, 1),
        (None, fixed, true) if fixed.is_multiple_of(2) => (fixed / 2, fixed, 1),
        (None, fixed, true) => (fixed, fixed, 2),
        (None, fixed, false) => (fixed, fixed, 1),
    }
}

/// Sizes of one sample, and elements of one sample's output.
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
