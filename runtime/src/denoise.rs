//! The denoising loop: noise in, samples out.

use crate::engine::{DeviceSampling, Engine, EngineError, EngineOptions, InFlight, Watch, Weights};
use crate::noise::Noise;
use crate::sampler::{Sampler, State, guide};
use cqc_proto::plan::{InputRole, Plan, ProgramKind};
use cqc_proto::tensor::TensorSizeError;
use cqc_proto::{DType, Tensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Why no samples came out.
#[derive(Debug, thiserror::Error)]
pub enum DenoiseError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The plan's tables were made for another number of evaluations.
    #[error("the plan has tables for {plan} evaluations, the sampler makes {sampler}")]
    Evaluations {
        /// Of the plan.
        plan: usize,
        /// Of the sampler.
        sampler: usize,
    },
    /// The model is no denoiser.
    #[error("the model cannot be run in a loop: {reason}")]
    NoDenoiser {
        /// What was expected and what was seen.
        reason: String,
    },
    /// Guidance needs conditioning for its unconditional half.
    #[error("guidance needs what the unconditional half gets (a null label or null conditioning)")]
    NoNull,
    /// A condition or the initial noise has neither one row nor one per sample.
    #[error("`{name}` has shape {shape:?}, expected 1 or {samples} rows of {row:?}")]
    Rows {
        /// Its name; `noise` for the initial noise.
        name: String,
        /// As given.
        shape: Vec<usize>,
        /// Samples asked for.
        samples: usize,
        /// Sizes of a row.
        row: Vec<usize>,
    },
    /// The observer broke off.
    #[error("interrupted")]
    Interrupted,
    /// A tensor's bytes do not fit its shape.
    #[error(transparent)]
    Tensor(#[from] TensorSizeError),
}

/// What to sample.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// How many samples.
    pub samples: usize,
    /// Seed of all noise.
    pub seed: u64,
    /// Number of the first sample: the seed's stream of sample `i` is `first + i`.
    pub first: u64,
    /// Initial noise of unit variance `[samples, ...]` instead of the seed's; noise added later still comes from the seed.
    pub noise: Option<Tensor>,
    /// Every input but sample and time step, by name, one row per sample, or one for all.
    pub conditions: BTreeMap<String, Tensor>,
    /// What the unconditional half gets, one row per sample, or one for all; inputs that are missing here get their condition.
    pub unconditional: BTreeMap<String, Tensor>,
    /// Guidance scale; read only by a guided loop.
    pub guidance: f32,
}

/// What an observer sees after each evaluation.
pub struct Moment<'a> {
    /// The evaluation just made.
    pub evaluation: usize,
    /// How many there are.
    pub evaluations: usize,
    /// The first sample at work, counted from 0 in this request, and how many.
    pub samples: std::ops::Range<usize>,
    /// The samples after this evaluation; none: they are on the device.
    x: Option<&'a [f32]>,
    /// How many elements they have.
    len: usize,
    /// The engine.
    pub engine: &'a Engine,
    /// The request that ran last: that of the conditional half if a guided loop is split.
    pub request: &'a InFlight,
}

impl<'a> Moment<'a> {
    /// The samples after this evaluation, padding included. Where a device moves them they come from there at this call.
    ///
    /// # Errors
    /// What the device says.
    pub fn x(&self) -> Result<Cow<'a, [f32]>, EngineError> {
        if let Some(x) = self.x {
            return Ok(Cow::Borrowed(x));
        }
        let mut x = vec![0.0; self.len];
        self.engine.get_samples(self.request, &mut x)?;
        Ok(Cow::Owned(x))
    }

    /// A kept value of the evaluation; `None` if the program that ran does not have it.
    pub fn tap(&self, name: &str) -> Option<Tensor> {
        self.engine.tap(self.request, name)
    }
}

/// A plan and a sampler, ready to serve requests: all of one with [`Loop::sample`], or several side by side, step by step, as
/// [`Trajectory`]s.
pub struct Loop {
    engine: Engine,
    /// Requests of the engine per trajectory: two, unconditional first, if guidance cannot join its halves in one batch.
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
    /// Whether a device moves the samples of [`Loop::sample`].
    moves: bool,
}

/// Q&C's correction of the samples (section 3): behind every evaluation, `x · scale + shift` per channel of the sample.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Compensation {
    /// `[evaluations · channels]`, channels being the first axis of a sample.
    pub scale: Vec<f32>,
    /// Likewise.
    pub shift: Vec<f32>,
}

/// Samples on their way from noise, [`Loop::width`] of them. A clone goes its own way from here.
#[derive(Clone)]
pub struct Trajectory {
    /// The engine's requests: one, or one for each half of guidance, unconditional first.
    pub requests: Vec<InFlight>,
    /// The samples now, `[width, ...]`.
    x: Vec<f32>,
    state: State,
    noise: Noise,
    guidance: f32,
    /// The evaluation to come.
    next: usize,
    /// Samples at once.
    width: usize,
}

impl Trajectory {
    /// `x · scale + shift` per channel, the first axis of a sample; as many as there are factors.
    ///
    /// # Panics
    /// When the samples cannot be cut into that many channels.
    pub fn map_channels(&mut self, scale: &[f32], shift: &[f32]) {
        let samples = self.width;
        let plane = self.x.len() / samples / scale.len();
        assert_eq!(plane * samples * scale.len(), self.x.len(), "{} channels", scale.len());
        for (i, plane) in self.x.chunks_exact_mut(plane).enumerate() {
            let (a, b) = (scale[i % scale.len()], shift[i % scale.len()]);
            plane.iter_mut().for_each(|x| *x = a.mul_add(*x, b));
        }
    }

    /// The samples now, `[width, ...]`.
    pub fn x(&self) -> &[f32] {
        &self.x
    }

    /// The evaluation to come; the number of evaluations when all are done.
    pub fn next(&self) -> usize {
        self.next
    }
}

impl Loop {
    /// Opens an engine for `options.batch` samples at once (a plan of fixed batch decides itself), twice as many rows if `guided`.
    ///
    /// # Errors
    /// A plan that is no denoiser or has tables for another sampler; whatever [`Engine::open`] reports.
    pub fn open(
        weights: &Arc<Weights>,
        sampler: Sampler,
        guided: bool,
        options: &EngineOptions,
    ) -> Result<Loop, DenoiseError> {
        let plan = weights.plan();
        let evaluations = sampler.evaluations().len();
        if plan.evaluations != 0 && plan.evaluations != evaluations {
            return Err(DenoiseError::Evaluations { plan: plan.evaluations, sampler: evaluations });
        }
        let (width, batch, halves) = split(plan, options.batch, guided);
        let engine = Engine::open(weights, &EngineOptions { batch, ..options.clone() })?;
        let (shape, out_len) = sample_shape(plan, &engine, sampler.reads_variance())?;
        let len: usize = shape.iter().product();
        let mut denoise = Loop {
            timesteps: sampler.evaluations().iter().map(|e| e.timestep).collect(),
            input: vec![0.0; batch * len],
            output: vec![0.0; batch * halves * out_len],
            engine,
            compensation: None,
            moves: false,
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
        if self.engine.device().is_none() || self.halves != 1 {
            return Ok(());
        }
        let len: usize = self.shape.iter().product();
        let rows = if self.guided { 2 * self.width } else { self.width };
        let sampling = DeviceSampling {
            table: &self.sampler.table(),
            sizes: [self.width, len, self.channels()],
            width: self.output.len() / rows,
            guided: self.guided,
            compensation: self.compensation.as_ref().map(|c| [&c.scale[..], &c.shift[..]]),
        };
        self.moves = self.engine.sample_on_device(&sampling)?;
        Ok(())
    }

    /// A loop like this one, on the same weights and threads, for `samples` samples at once. Tables that were overwritten are as in the plan again.
    ///
    /// # Errors
    /// Those of [`Loop::open`].
    pub fn of_width(&self, samples: usize) -> Result<Loop, DenoiseError> {
        let (weights, options) = self.engine.recipe();
        Loop::open(&weights, self.sampler.clone(), self.guided, &EngineOptions { batch: samples, ..options })
    }

    /// Whether the batch holds both halves of guidance.
    pub fn is_guided(&self) -> bool {
        self.guided
    }

    /// The sampler.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Forgets the times measured so far: see [`Engine::reset_profile`].
    pub fn reset_profile(&mut self) {
        self.engine.reset_profile();
    }

    /// Overwrites one row of a table: see [`Engine::set_table_row`].
    ///
    /// # Errors
    /// As there.
    pub fn set_table_row(&mut self, constant: usize, e: usize, row: &[f32]) -> Result<(), DenoiseError> {
        Ok(self.engine.set_table_row(constant, e, row)?)
    }

    /// Corrects samples from now on, or no longer.
    ///
    /// # Errors
    /// [`EngineError::Length`] unless there is an entry for every evaluation and channel.
    pub fn set_compensation(&mut self, compensation: Option<Compensation>) -> Result<(), DenoiseError> {
        let expected = self.timesteps.len() * self.channels();
        for part in compensation.iter().flat_map(|c| [&c.scale, &c.shift]) {
            if part.len() != expected {
                let what = "the compensation";
                return Err(EngineError::Length { what, found: part.len(), expected }.into());
            }
        }
        self.compensation = compensation;
        self.move_on_device()
    }

    /// Channels of a sample: its first axis.
    pub fn channels(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Requests that the engine serves for one trajectory: two if a fixed batch keeps the halves of guidance apart.
    pub fn halves(&self) -> usize {
        self.halves
    }

    /// Samples computed at once.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Sizes of one sample.
    pub fn sample_shape(&self) -> &[usize] {
        &self.shape
    }

    /// Samples `[samples, ...]`; `observe` is called after each evaluation and may break off.
    ///
    /// Every sample depends on its own noise and conditions alone, not on how many are computed at once.
    ///
    /// # Errors
    /// Conditions that do not fit, [`DenoiseError::NoNull`], [`DenoiseError::Interrupted`].
    pub fn sample(
        &mut self,
        request: &Request,
        observe: &mut dyn FnMut(&Moment) -> ControlFlow<()>,
    ) -> Result<Tensor, DenoiseError> {
        let len: usize = self.shape.iter().product();
        let mut shape = vec![request.samples];
        shape.extend(&self.shape);
        let mut all = Vec::with_capacity(request.samples * len);
        let evaluations = self.timesteps.len();
        for first in (0..request.samples).step_by(self.width) {
            let samples = first..request.samples.min(first + self.width);
            let mut trajectory = self.begin(request, first)?;
            if self.moves {
                self.put_on_device(&trajectory)?;
            }
            while trajectory.next < evaluations {
                if self.moves {
                    self.replay(&mut trajectory)?
                } else {
                    self.step(&mut trajectory)?
                }
                let (engine, request) = (&self.engine, trajectory.requests.last().expect("it has one"));
                let (samples, evaluation) = (samples.clone(), trajectory.next - 1);
                let (x, len) = ((!self.moves).then_some(&trajectory.x[..]), trajectory.x.len());
                if observe(&Moment { evaluation, evaluations, samples, x, len, engine, request }).is_break() {
                    return Err(DenoiseError::Interrupted);
                }
            }
            if self.moves {
                self.engine.get_samples(&trajectory.requests[0], &mut trajectory.x)?;
            }
            all.extend_from_slice(&trajectory.x[..samples.len() * len]);
        }
        Ok(Tensor::new(DType::F32, shape, cqc_kernels::arena::bytes_of(&all).to_vec())?)
    }

    /// Begins samples `first ..` of a request, as many as are computed at once, the last one repeated where there are fewer.
    ///
    /// # Errors
    /// Conditions or noise that do not fit, [`DenoiseError::NoNull`].
    pub fn begin(&mut self, request: &Request, first: usize) -> Result<Trajectory, DenoiseError> {
        self.begin_watched(request, first, None)
    }

    /// [`Loop::begin`], with a look at every step of the preludes.
    ///
    /// # Errors
    /// As [`Loop::begin`].
    pub fn begin_watched(
        &mut self,
        request: &Request,
        first: usize,
        watch: Option<&mut Watch>,
    ) -> Result<Trajectory, DenoiseError> {
        if self.guided && request.unconditional.is_empty() {
            return Err(DenoiseError::NoNull);
        }
        let requests = self.begin_requests(request, first, watch)?;
        let len: usize = self.shape.iter().product();
        let mut noise = Noise::new(request.seed, request.first.wrapping_add(first as u64), self.width);
        let mut x = vec![0.0; self.width * len];
        noise.fill(&mut x);
        if let Some(given) = &request.noise {
            self.take_noise(given, request.samples, first, &mut x)?;
        }
        let scale = self.sampler.initial_scale();
        x.iter_mut().for_each(|x| *x *= scale);
        let state = State::new(&self.sampler, self.width, len);
        Ok(Trajectory { requests, x, state, noise, guidance: request.guidance, next: 0, width: self.width })
    }

    /// One evaluation, with the program that the plan says, and what the sampler makes of it.
    ///
    /// # Errors
    /// Whatever [`Engine::evaluate`] reports.
    ///
    /// # Panics
    /// When all evaluations are done.
    pub fn step(&mut self, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        let kind = self.engine.plan().program_at(trajectory.next);
        self.evaluate_as(kind, trajectory)?;
        self.advance(trajectory, self.output());
        Ok(())
    }

    /// Hands samples that have just begun to the device.
    fn put_on_device(&mut self, trajectory: &Trajectory) -> Result<(), DenoiseError> {
        self.scale_input(trajectory);
        Ok(self.engine.put_samples(&trajectory.requests[0], &trajectory.x, &self.input, trajectory.guidance)?)
    }

    /// [`Loop::step`] of samples on the device; the trajectory's own stay behind. The device is done when this returns.
    fn replay(&mut self, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        let Trajectory { requests, state, noise, next, .. } = trajectory;
        let noisy = self.sampler.adds_noise(*next);
        self.engine.replay(&mut requests[0], *next, || noisy.then(|| state.draw(|out| noise.fill(out))))?;
        *next += 1;
        Ok(self.engine.wait()?)
    }

    /// What the network sees of the samples, for every half of the batch.
    fn scale_input(&mut self, trajectory: &Trajectory) {
        let (input, rest) = self.input.split_at_mut(trajectory.x.len());
        self.sampler.scale_input(trajectory.next, &trajectory.x, input);
        rest.chunks_exact_mut(input.len()).for_each(|half| half.copy_from_slice(input));
    }

    /// The network's answer to the present samples by a given program, guidance applied: [`Loop::output`]. The trajectory stays
    /// where it is.
    ///
    /// # Errors
    /// Whatever [`Engine::evaluate_as`] reports.
    pub fn evaluate_as(&mut self, kind: ProgramKind, trajectory: &mut Trajectory) -> Result<(), DenoiseError> {
        self.evaluate_watched(kind, trajectory, None)
    }

    /// [`Loop::evaluate_as`], with a look at every step; where the halves of guidance are apart, of one after the other.
    ///
    /// # Errors
    /// As [`Loop::evaluate_as`].
    pub fn evaluate_watched(
        &mut self,
        kind: ProgramKind,
        trajectory: &mut Trajectory,
        mut watch: Option<&mut Watch>,
    ) -> Result<(), DenoiseError> {
        let len = trajectory.x.len();
        self.scale_input(trajectory);
        let part = self.output.len() / self.halves;
        for (request, output) in trajectory.requests.iter_mut().zip(self.output.chunks_exact_mut(part)) {
            let watch = watch.as_deref_mut();
            self.engine.evaluate_watched(kind, request, trajectory.next, &self.input, output, watch)?;
        }
        if self.guided {
            guide(&mut self.output, self.width, len / self.width, trajectory.guidance);
        }
        Ok(())
    }

    /// The last evaluation's output `[width, ...]`, guidance applied; where the network also gives a variance, per sample behind
    /// the prediction.
    pub fn output(&self) -> &[f32] {
        &self.output[..self.output.len() / if self.guided { 2 } else { 1 }]
    }

    /// Moves the samples by the evaluation's output, which is [`Loop::output`] or as long as that.
    ///
    /// # Panics
    /// When all evaluations are done, or the output has another length.
    pub fn advance(&self, trajectory: &mut Trajectory, output: &[f32]) {
        let Trajectory { x, state, noise, next, .. } = trajectory;
        self.sampler.advance(state, *next, x, output, |out| noise.fill(out));
        *next += 1;
        if let Some(Compensation { scale, shift }) = &self.compensation {
            let rows = (trajectory.next - 1) * self.channels()..trajectory.next * self.channels();
            trajectory.map_channels(&scale[rows.clone()], &shift[rows]);
        }
    }

    fn begin_requests(
        &mut self,
        request: &Request,
        first: usize,
        mut watch: Option<&mut Watch>,
    ) -> Result<Vec<InFlight>, DenoiseError> {
        let last = request.samples.saturating_sub(1);
        let indices: Vec<usize> = (first..first + self.width).map(|i| i.min(last)).collect();
        let conditional = self.conditions(request, &indices, false)?;
        if !self.guided {
            return Ok(vec![self.engine.begin_watched(&conditional, &self.timesteps, watch)?]);
        }
        let unconditional = self.conditions(request, &indices, true)?;
        if self.halves == 2 {
            let halves = [unconditional, conditional];
            let mut begin = |half| Ok(self.engine.begin_watched(half, &self.timesteps, watch.as_deref_mut())?);
            return halves.iter().map(&mut begin).collect();
        }
        let plan = self.engine.plan();
        let joined = conditional.into_iter().map(|(name, c)| {
            let t = if is_batched(plan, &name) { joined(&unconditional[&name], &c)? } else { c };
            Ok((name, t))
        });
        let joined = joined.collect::<Result<BTreeMap<_, _>, DenoiseError>>()?;
        Ok(vec![self.engine.begin_watched(&joined, &self.timesteps, watch)?])
    }

    /// Rows of the conditions for the samples `indices`; where there are null conditions and `null`, those.
    fn conditions(
        &self,
        request: &Request,
        indices: &[usize],
        null: bool,
    ) -> Result<BTreeMap<String, Tensor>, DenoiseError> {
        let plan = self.engine.plan();
        let known = |name: &String| plan.inputs.iter().any(|i| i.name == *name);
        let stray = request.unconditional.keys().find(|name| !known(name) || !request.conditions.contains_key(*name));
        if let (true, Some(name)) = (null, stray) {
            let known = request.conditions.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(EngineError::UnknownInput { name: name.clone(), known }.into());
        }
        let rows = |(name, condition): (&String, &Tensor)| {
            let given = if null { request.unconditional.get(name).unwrap_or(condition) } else { condition };
            let t = if is_batched(plan, name) { gather(name, given, indices, request.samples)? } else { given.clone() };
            Ok((name.clone(), t))
        };
        request.conditions.iter().map(rows).collect()
    }

    fn take_noise(&self, given: &Tensor, samples: usize, first: usize, x: &mut [f32]) -> Result<(), DenoiseError> {
        let (shape, row) = (given.shape().to_vec(), self.shape.clone());
        if shape.first() != Some(&samples) || shape[1..] != row || !given.dtype().is_float() {
            return Err(DenoiseError::Rows { name: "noise".into(), shape, samples, row });
        }
        let indices: Vec<usize> = (first..first + self.width).map(|i| i.min(samples.saturating_sub(1))).collect();
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
fn sample_shape(plan: &Plan, engine: &Engine, reads_variance: bool) -> Result<(Vec<usize>, usize), DenoiseError> {
    let no_denoiser = |reason: String| DenoiseError::NoDenoiser { reason };
    let input = plan.inputs.iter().position(|i| i.role == InputRole::Sample);
    let input = input.ok_or_else(|| no_denoiser("no input is the sample".into()))?;
    let (shape, out) = (engine.input_shape(input), engine.output_shape(0));
    let batch = engine.batch();
    if shape.first() != Some(&batch) || out.first() != Some(&batch) {
        return Err(no_denoiser(format!("sample {shape:?} and output {out:?} do not begin with the batch of {batch}")));
    }
    let (len, out_len): (usize, usize) = (shape[1..].iter().product(), out[1..].iter().product());
    if !(out_len == 2 * len || (out_len == len && !reads_variance)) {
        return Err(no_denoiser(format!("the sample is {shape:?}, the output {out:?}")));
    }
    Ok((shape[1..].to_vec(), out_len))
}

/// Whether the input's first axis is the batch.
fn is_batched(plan: &Plan, name: &str) -> bool {
    let Some(input) = plan.inputs.iter().find(|i| i.name == name) else { return true };
    let first = input.ty.shape.first();
    match (&plan.batch_symbol, plan.fixed_batch) {
        (Some(symbol), _) => first.is_some_and(|d| d.as_symbol() == Some(symbol)),
        (None, fixed) => first.is_some_and(|d| d.is(fixed.unwrap_or(1) as i64)),
    }
}

/// Rows `indices` of a tensor that has `samples` rows, or one for all.
fn gather(name: &str, t: &Tensor, indices: &[usize], samples: usize) -> Result<Tensor, DenoiseError> {
    let count = t.shape().first().copied().unwrap_or(0);
    if count == 0 || (count != samples && count != 1) {
        let row = t.shape().get(1..).unwrap_or_default().to_vec();
        return Err(DenoiseError::Rows { name: name.into(), shape: t.shape().to_vec(), samples, row });
    }
    let row = t.bytes().len() / count;
    let at = |&i: &usize| if count == 1 { 0 } else { i };
    let bytes: Vec<u8> = indices.iter().map(at).flat_map(|i| &t.bytes()[i * row..][..row]).copied().collect();
    let mut shape = t.shape().to_vec();
    shape[0] = indices.len();
    Ok(Tensor::new(t.dtype(), shape, bytes)?)
}

/// The rows of both, one after the other.
fn joined(u: &Tensor, c: &Tensor) -> Result<Tensor, DenoiseError> {
    let mut shape = c.shape().to_vec();
    shape[0] += u.shape()[0];
    Ok(Tensor::new(c.dtype(), shape, [&u.bytes()[..], &c.bytes()[..]].concat())?)
}
