//! Compilation in stages, for callers that look at the results in between or share them, such as
//! ablations, benchmarks and tests. [`compile`](super::compile) does the same at once.

use super::conditions::{NullRows, calibration_set, check_guidance};
use super::filling::{Filling, filling};
use super::{
    Assembled, CachedLoop, CompileError, Compiled, LoopOptions, Lowered, Phase, ProgramError,
    Progress, Stages, assemble_loop, bad_weights, budget, compile_evaluation, compile_loop,
    cut_loop, targets,
};
use crate::calibrate::quantize::{Outputs, QuantizeOptions, Quantized, Select, quantize};
use crate::calibrate::{
    CachingChoice, CalibrationOptions, CorrectionFit, CorrectionPolicy, ScheduleSource, check_cut,
    choose, holdout_size,
};
use crate::identity::identity;
use crate::model::{Model, Network};
use crate::reading::{self, Reading, Verdict};
use crate::recipe::{
    self, CacheFit, Contradiction, Quant, Recipe, ScheduleSpec, SchedulerConfig, Selection,
};
use cqc_passes::cache::schedule::{Quadratic, ScheduleKind};
use cqc_passes::calib::select::Tap;
use cqc_passes::quant::QuantSpec;
use cqc_proto::Dim;
use cqc_proto::Tensor;
use cqc_proto::cq::Computed;
use cqc_proto::plan::InputRole;
use cqc_proto::sampler::{FlowSchedule, Prediction, SamplerConfig, SamplerKind, SigmaSchedule};
use cqc_runtime::artifact::label_input;
use cqc_runtime::denoise::{Denoiser, Request, label_rows};
use cqc_runtime::engine::{EngineError, EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest number of calibration samples on which all pairs of evaluations are tried.
pub(super) const OUTPUT_SAMPLES: usize = 8;

/// A model and a recipe that suits it. The stages are [`Session::decide`], [`Session::quantize`]
/// and [`Session::into_compiled`].
pub struct Session<'m> {
    pub(super) model: &'m Model,
    pub(super) recipe: Recipe,
    pub(super) options: LoopOptions,
    pub(super) reading: Reading,
    pub(super) null: NullRows,
    pub(super) filling: Filling,
    pub(super) cached: Option<CachedLoop<'m>>,
    pub(super) kernels: Option<Vec<u8>>,
    /// The calibration set, if something is calibrated.
    set: Option<Request>,
    stages: Stages,
}

impl<'m> Session<'m> {
    /// Checks the recipe against the model, tests the reading of the network, cuts the loop, and
    /// reads or draws the calibration set.
    ///
    /// # Errors
    /// [`CompileError`]. [`CompileError::Recipe`] has all contradictions at once.
    pub fn new(model: &'m Model, recipe: &Recipe) -> Result<Session<'m>, CompileError> {
        Session::begin(model, recipe, true)
    }

    /// Does the same as [`Session::new`] without the test of the reading, which runs the network.
    /// It finds everything else that a compilation would refuse.
    ///
    /// # Errors
    /// As [`Session::new`], without [`CompileError::Misread`].
    pub fn untested(model: &'m Model, recipe: &Recipe) -> Result<Session<'m>, CompileError> {
        Session::begin(model, recipe, false)
    }

    fn begin(model: &'m Model, recipe: &Recipe, tested: bool) -> Result<Session<'m>, CompileError> {
        let contradictions = recipe.check();
        if !contradictions.is_empty() {
            return Err(CompileError::Recipe(contradictions));
        }
        let bad = bad_weights(&model.graph);
        if !bad.is_empty() {
            return Err(CompileError::Weights(bad));
        }
        let kernels = targets::compile_kernels(&recipe.target)?;
        let network = model.network().map_err(ProgramError::from)?;
        let stated = sampler_config(recipe, network)?;
        let (filling, recipe) = filling(recipe, network)?;
        let recipe = &recipe;
        check_guidance(recipe, network)?;
        let recipe = &with_labels(recipe, model, network)?;
        let bf16 =
            (recipe.quant() == Quant::Bf16).then(|| quant_spec(recipe, model, 16)).transpose()?;
        let null = NullRows::new(recipe, network)?;
        let (sampler, reading) = match tested {
            true => read(model, recipe, network, &null, &filling.values, stated)?,
            false => {
                let verdict = Verdict::Untested { reason: "not asked for".into() };
                let reading = Reading { name: reading::name(&stated), verdict };
                (stated, reading)
            }
        };
        let options =
            LoopOptions { sampler, steps: recipe.steps(), any_steps: recipe.any_steps, bf16 };
        let cached =
            recipe.caches().then(|| cut_loop(model, &options, &recipe.cut())).transpose()?;
        let stages = stages(recipe, model, &options)?;
        let recipe = recipe.clone();
        let mut session = Session {
            model,
            recipe,
            options,
            reading,
            null,
            filling,
            cached,
            kernels,
            set: None,
            stages,
        };
        if session.recipe.calibrates() {
            let samples = match session.recipe.budget {
                Some(seconds) => budget::samples(&session, seconds)?,
                None => session.recipe.calib_samples(),
            };
            session.set = Some(session.calibration_set_of(samples)?);
        }
        Ok(session)
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The loop that is compiled: sampler, steps, bf16.
    pub fn options(&self) -> &LoopOptions {
        &self.options
    }

    /// The meaning of the network's output, and the result of its test.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// The cut loop; `None` if nothing is cached.
    pub fn cached(&self) -> Option<&CachedLoop<'m>> {
        self.cached.as_ref()
    }

    /// The calibration set, whose last samples are the holdout; `None` if nothing is calibrated.
    pub fn calibration_set(&self) -> Option<&Request> {
        self.set.as_ref()
    }

    /// A calibration set with `samples` samples, or with as many as the recipe gives noise for.
    pub(super) fn calibration_set_of(&self, samples: usize) -> Result<Request, CompileError> {
        let network = self.model.network().map_err(ProgramError::from)?;
        calibration_set(&self.recipe, network, &self.null, &self.filling.values, samples)
    }

    fn expect_set(&self) -> &Request {
        self.set.as_ref().expect("a recipe that calibrates has a calibration set")
    }

    /// Options of the engines that calibrate on a set of `samples` samples.
    pub(super) fn engine_options(&self, samples: usize) -> EngineOptions {
        let batch = batch(self.recipe.calib_batch.unwrap_or(8), samples);
        EngineOptions { batch, threads: self.recipe.threads(), ..EngineOptions::default() }
    }

    /// The loop in which every evaluation is full and float, or rounded to bf16 if the recipe says
    /// so.
    ///
    /// # Errors
    /// [`CompileError::Program`] if it cannot be compiled.
    pub fn uncached(&self) -> Result<Lowered, CompileError> {
        Ok(match &self.cached {
            Some(cached) => cached.uncorrected()?,
            None => compile_loop(self.model, &self.options)?,
        })
    }

    /// Opens a program of this loop for a calibration set of `samples` samples.
    ///
    /// # Errors
    /// [`CompileError`] if it cannot be opened.
    pub fn open(&self, lowered: &Lowered, samples: usize) -> Result<Denoiser, CompileError> {
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
        let sampler = Sampler::new(&self.options.sampler, self.options.steps)?;
        let guided = self.recipe.guidance() != 1.0;
        Ok(Denoiser::open(&weights, sampler, guided, &self.engine_options(samples))?)
    }

    /// Decides which evaluations are full, and fits the correction of the cache; `None` if nothing
    /// is cached.
    ///
    /// # Errors
    /// [`CompileError`] if the loop cannot be run or no schedule is possible.
    pub fn decide(
        &self,
        progress: &mut dyn Progress,
    ) -> Result<Option<CachingChoice>, CompileError> {
        let Some(cached) = &self.cached else { return Ok(None) };
        let (recipe, request) = (&self.recipe, self.expect_set());
        let schedule = self.schedule()?;
        let mut denoiser = self.open(&cached.uncorrected()?, request.samples)?;
        check_cut(&denoiser, request)?;
        let correct = match (recipe.corrects(recipe::Correct::Cache), recipe.cache_fit) {
            (false, _) => CorrectionPolicy::Never,
            (true, Some(CacheFit::TeacherForced)) => {
                CorrectionPolicy::Always(CorrectionFit::TeacherForced)
            }
            (true, Some(CacheFit::Sequential)) => {
                CorrectionPolicy::Always(CorrectionFit::Sequential)
            }
            (true, Some(CacheFit::Forecast)) => CorrectionPolicy::Always(CorrectionFit::Forecast),
            (true, Some(CacheFit::Auto) | None) => CorrectionPolicy::Best,
        };
        let stages = self.stages.depending_on(&self.calibration_key(request));
        let stages =
            stages.depending_on(format!("{} {schedule:?} {correct:?}", cached.cut_name).as_bytes());
        let choice = stages.run("schedule", || {
            let options = CalibrationOptions {
                interval: recipe.interval(),
                schedule,
                correct,
                request: request.clone(),
                output_samples: OUTPUT_SAMPLES,
                progress: &mut |done, total| progress.update(Phase::Calibrating, done, total),
            };
            choose(&mut denoiser, options).map_err(CompileError::from)
        })?;
        Ok(Some(choice))
    }

    /// Fits the quantized loop; `None` if nothing is quantized to integers. `choice` is the result
    /// of [`Session::decide`].
    ///
    /// # Errors
    /// [`CompileError`] if the loop cannot be run or fitted.
    pub fn quantize(
        &self,
        choice: Option<&CachingChoice>,
        progress: &mut dyn Progress,
    ) -> Result<Option<Quantized>, CompileError> {
        let recipe = &self.recipe;
        let Some(bits) = recipe.quant().weight_bits() else { return Ok(None) };
        let request = self.expect_set();
        let tables = choice.and_then(|choice| choice.tables.as_ref()).map(|(_, tables)| tables);
        let assembled = self.assemble(choice, None)?;
        let float = self.uncached()?;
        let full = float.plan.cache.as_ref().map(|_| assembled.full_evaluations());
        let stages = self.stages.depending_on(&self.calibration_key(request));
        let stages = &stages
            .depending_on(format!("{full:?} {tables:?} {}", self.quantization_key()).as_bytes());
        let mut float = self.open(&float, request.samples)?;
        let quantized = quantize(
            &assembled,
            tables,
            &mut float,
            QuantizeOptions {
                spec: quant_spec(recipe, self.model, bits)?,
                target_psnr: recipe
                    .keeps_float_by_error()
                    .then_some(recipe.target_psnr.unwrap_or(35.0)),
                small_stays_exact: recipe.quant() == Quant::W8a8
                    && recipe.float_work.is_none()
                    && recipe.keep_float.is_empty(),
                float_work: recipe.float_work(),
                migrate: recipe.migrate.unwrap_or_default(),
                grouping: recipe.share_ranges.unwrap_or(recipe::Grouping::PerEvaluation),
                outputs: self.outputs(),
                refit_cache: recipe.corrects(recipe::Correct::Cache)
                    && recipe.refit_cache.unwrap_or(true),
                compensation: recipe.variance_compensation,
                reconstruct: recipe.reconstruct,
                select: self.select(),
                request: request.clone(),
                held: choice.and_then(|choice| choice.held.clone()),
                stages,
                fit: request.samples - holdout_size(request.samples),
                engine: self.engine_options(request.samples),
                progress: &mut |done, total| progress.update(Phase::Quantizing, done, total),
            },
        )?;
        Ok(Some(quantized))
    }

    /// The artifact in memory, with the schedule from [`Session::decide`] and the quantized layers
    /// from [`Session::quantize`]. Without the latter the layers stay float, whatever the recipe
    /// says.
    ///
    /// # Errors
    /// [`CompileError::Program`] if the loop cannot be lowered.
    pub fn into_compiled(
        self,
        choice: Option<CachingChoice>,
        quantized: Option<Quantized>,
    ) -> Result<Compiled<'m>, CompileError> {
        Compiled::new(self, choice, quantized)
    }

    /// The graphs of the loop with the chosen schedule and the correction of the cache that was
    /// fitted last.
    pub(super) fn assemble(
        &self,
        choice: Option<&CachingChoice>,
        quantized: Option<&Quantized>,
    ) -> Result<Assembled<'_>, CompileError> {
        Ok(match (&self.cached, choice) {
            (Some(cached), Some(choice)) => {
                let refitted = quantized.and_then(|quantized| quantized.fitted.cache.as_ref());
                let tables = refitted.or(choice.tables.as_ref().map(|(_, tables)| tables));
                cached.assemble(&choice.full, tables)?
            }
            _ => assemble_loop(self.model, &self.options)?,
        })
    }

    /// The samples on which quantization ranges are found.
    pub(super) fn select(&self) -> Select {
        let tap = Tap { seed: self.recipe.seed(), ..Tap::default() };
        match self.recipe.calib_select.unwrap_or(Selection::All) {
            Selection::All => Select::All,
            Selection::First(count) => Select::First(count),
            Selection::Tap(total) => Select::Tap(Tap { total: total.unwrap_or(tap.total), ..tap }),
            Selection::Tdac(total) => Select::Tdac(total.unwrap_or(tap.total)),
        }
    }

    fn outputs(&self) -> Outputs {
        if self.recipe.corrects(recipe::Correct::QuantAll) {
            Outputs::All
        } else if self.recipe.corrects(recipe::Correct::Quant) {
            Outputs::Cut
        } else {
            Outputs::None
        }
    }

    /// The schedule of a recipe that caches.
    pub(super) fn schedule(&self) -> Result<ScheduleSource, CompileError> {
        let evaluations = || {
            Sampler::new(&self.options.sampler, self.options.steps).map(|s| s.evaluations().len())
        };
        Ok(match self.recipe.schedule() {
            ScheduleSpec::None => unreachable!("nothing would be cached"),
            ScheduleSpec::Auto => ScheduleSource::Method(ScheduleKind::Auto),
            ScheduleSpec::Quadratic => {
                ScheduleSource::Method(ScheduleKind::Quadratic(Quadratic::around(evaluations()?)))
            }
            ScheduleSpec::Method(kind) => ScheduleSource::Method(kind),
            ScheduleSpec::File(path) => ScheduleSource::Given(read_schedule(&path)?),
            ScheduleSpec::Given(full) => ScheduleSource::Given(full),
        })
    }

    pub(super) fn stages(&self) -> &Stages {
        &self.stages
    }

    /// The inputs of calibration besides the loop: the samples, and the number that is computed at
    /// once.
    fn calibration_key(&self, request: &Request) -> Vec<u8> {
        let Request { samples, seed, first, guidance, .. } = request;
        let batch = self.engine_options(*samples).batch;
        let mut text =
            format!("{} {batch} {samples} {seed} {first} {guidance:?}", self.recipe.interval());
        let (rescale, interval) = (request.guidance_rescale, request.guidance_interval);
        if rescale.is_some() || interval.is_some() {
            text += &format!(" {rescale:?} {interval:?}");
        }
        let mut key = text.into_bytes();
        for (what, tensor) in request.tensors() {
            key.extend(format!(" {what} {} ", tensor.value_type()).bytes());
            key.extend_from_slice(tensor.bytes());
        }
        key
    }

    /// Every option that decides how the loop is quantized.
    fn quantization_key(&self) -> String {
        let r = &self.recipe;
        let of = Recipe {
            quant: r.quant,
            keep_float: r.keep_float.clone(),
            target_psnr: r.target_psnr,
            float_work: r.float_work,
            migrate: r.migrate,
            share_ranges: r.share_ranges,
            variance_compensation: r.variance_compensation,
            calib_select: r.calib_select,
            reconstruct: r.reconstruct,
            split_inputs: r.split_inputs,
            refit_cache: r.refit_cache,
            correct: r.correct.clone(),
            ..Recipe::default()
        };
        serde_json::to_string(&of).expect("a recipe is plain data")
    }
}

/// The directory for the results of calibration of this model and loop.
fn stages(recipe: &Recipe, model: &Model, options: &LoopOptions) -> Result<Stages, CompileError> {
    let Some(directory) = &recipe.work_dir else { return Ok(Stages::none()) };
    let network = model.network().map_err(ProgramError::from)?;
    // the roles of inputs belong to the loop
    let shapes: Vec<String> =
        network.inputs.iter().map(|i| format!("{} {:?} {}", i.name, i.role, i.ty)).collect();
    let sampler =
        serde_json::to_vec(&options.sampler).expect("a sampler's configuration is plain data");
    // another build may compute other results, and so may another instruction set
    let Computed { build, isa } = identity().map_err(EngineError::from)?;
    let text = format!("{build} {isa} {} {shapes:?} {:?}", options.steps, options.bf16);
    let stages =
        Stages::new(directory)?.depending_on(model.blake3.as_bytes()).depending_on(&sampler);
    Ok(stages.depending_on(text.as_bytes()))
}

/// The recipe with labels for the calibration set. Where it has none and the model takes labels,
/// these are all labels of the model's table.
fn with_labels(recipe: &Recipe, model: &Model, network: &Network) -> Result<Recipe, CompileError> {
    let mut recipe = recipe.clone();
    let input = label_input(&network.inputs);
    let is_open = recipe.labels.is_empty() && recipe.null_label.is_none();
    if let Some(input) = input.filter(|i| is_open && !recipe.cond.contains_key(&i.name)) {
        let plan = compile_evaluation(model)?.plan;
        if let Some(rows) = label_rows(&plan, &input.name) {
            recipe.labels = (0..rows as i64).collect();
        }
    }
    Ok(recipe)
}

/// The sampler, and the reading of the network.
fn read(
    model: &Model,
    recipe: &Recipe,
    network: &Network,
    null: &NullRows,
    filled: &BTreeMap<String, Tensor>,
    stated: SamplerConfig,
) -> Result<(SamplerConfig, Reading), CompileError> {
    let sample = network.inputs.iter().find(|i| i.role == InputRole::Sample);
    let sizes = sample.and_then(|i| i.ty.shape[1..].iter().map(Dim::as_const).collect());
    let sizes: Vec<i64> = sizes.unwrap_or_default();
    let len = sizes.iter().product::<i64>().max(1) as usize;
    let samples = reading::samples(len);
    // given arrays have as many rows as the calibration set has samples
    let is_given = !recipe.cond.is_empty() || recipe.calib_noise.is_some();
    let drawn = if is_given { recipe.calib_samples() } else { samples };
    match calibration_set(recipe, network, null, filled, drawn) {
        Ok(request) => reading::read(
            model,
            recipe,
            stated,
            &request.part(0..samples.min(request.samples)),
            len,
        ),
        // a loop that is not calibrated needs no conditions
        Err(CompileError::Condition(missing)) if !recipe.calibrates() => {
            let verdict = Verdict::Untested { reason: missing.to_string() };
            let name = reading::name(&stated);
            Ok((stated, Reading { name, verdict }))
        }
        Err(e) => Err(e),
    }
}

/// The sampler configuration: that of the scheduler configuration, changed by the recipe's options.
fn sampler_config(recipe: &Recipe, network: &Network) -> Result<SamplerConfig, CompileError> {
    let parse = |text: &str, path: Option<&Path>| {
        let path: Option<PathBuf> = path.map(Path::to_path_buf);
        let read = SamplerConfig::from_diffusers_json(text, recipe.sampler);
        read.map_err(|source| CompileError::SchedulerConfig { path, source })
    };
    let mut config = match &recipe.scheduler_config {
        None => SamplerConfig::of_kind(recipe.sampler.unwrap_or(default_sampler(recipe))),
        Some(SchedulerConfig::Json(map)) => {
            parse(&serde_json::Value::from(map.clone()).to_string(), None)?
        }
        Some(SchedulerConfig::File(path)) => {
            let text = crate::io::read_text(path)?;
            parse(&text, Some(path))?
        }
    };
    config.prediction_type = recipe.prediction.unwrap_or(config.prediction_type);
    config.flow_time = recipe.flow_time.unwrap_or(config.flow_time);
    // without a configuration of diffusers the levels are even, as rectified flow is described
    let spread = match &recipe.scheduler_config {
        Some(_) => config.flow_schedule,
        None if config.kind.is_flow() => FlowSchedule::Even,
        None => config.flow_schedule,
    };
    config.flow_schedule = recipe.flow_schedule.unwrap_or(spread);
    if let Some(shift) = recipe.flow_shift {
        (config.flow_shift, config.dynamic_shift) = (shift, None);
    }
    if let Some(dynamic) = &mut config.dynamic_shift {
        let tokens = tokens(network);
        dynamic.mu = recipe.flow_mu.or(tokens.map(|tokens| dynamic.mu_of(tokens)));
    }
    refuse_flow_options(recipe, &config)?;
    let given = |list: &Vec<f64>| (!list.is_empty()).then(|| list.clone());
    (config.sigmas, config.timesteps) = (given(&recipe.sigmas), given(&recipe.timesteps));
    if let Some(eta) = recipe.eta {
        if !config.kind.reads_eta() {
            let kind = config.kind;
            let reason = format!("the sampler {kind} has none (ddim, tcd, flow-euler-ancestral)");
            return Err(CompileError::Recipe(vec![Contradiction::new("eta", None, reason)]));
        }
        config.eta = eta;
    }
    if let Err(e) = config.validate() {
        return Err(CompileError::Recipe(vec![Contradiction::new("sampler", None, e.to_string())]));
    }
    Ok(config)
}

/// Refuses options of flow matching for other samplers, and `flow-mu` without dynamic shifting.
fn refuse_flow_options(recipe: &Recipe, config: &SamplerConfig) -> Result<(), CompileError> {
    let is_flow = config.kind.is_flow() || config.sigma_schedule == SigmaSchedule::Flow;
    let of_flow = [
        ("flow-time", recipe.flow_time.is_some()),
        ("flow-shift", recipe.flow_shift.is_some()),
        ("flow-schedule", recipe.flow_schedule.is_some()),
        ("flow-mu", recipe.flow_mu.is_some()),
    ];
    let reason = format!("it is an option of flow matching, and the sampler is {}", config.kind);
    let mut refused: Vec<Contradiction> = of_flow
        .into_iter()
        .filter(|(_, given)| *given && !is_flow)
        .map(|(option, _)| Contradiction::new(option, None, reason.clone()))
        .collect();
    if is_flow && recipe.flow_mu.is_some() && config.dynamic_shift.is_none() {
        let reason = "the scheduler configuration has no use_dynamic_shifting";
        refused.push(Contradiction::new("flow-mu", None, reason));
    }
    if refused.is_empty() { Ok(()) } else { Err(CompileError::Recipe(refused)) }
}

/// The sampler of a recipe that has neither a sampler nor a scheduler configuration.
fn default_sampler(recipe: &Recipe) -> SamplerKind {
    match recipe.prediction {
        Some(Prediction::Flow | Prediction::FlowToData) => SamplerKind::FlowEuler,
        _ if recipe.flow_time.is_some() || recipe.flow_shift.is_some() => SamplerKind::FlowEuler,
        _ if recipe.flow_schedule.is_some() => SamplerKind::FlowEuler,
        _ => SamplerKind::Ddim,
    }
}

/// Number of tokens of a sample: its rows if it is a sequence, else its patches of 2 x 2.
fn tokens(network: &Network) -> Option<usize> {
    let sample = network.inputs.iter().find(|i| i.role == InputRole::Sample)?;
    let sizes: Option<Vec<i64>> = sample.ty.shape[1..].iter().map(Dim::as_const).collect();
    match sizes?[..] {
        [tokens, _] => Some(tokens as usize),
        [_, .., height, width] => Some((height / 2 * (width / 2)) as usize),
        _ => None,
    }
}

/// The layers that are quantized, with weights of `bits` bits, or bf16 if `bits` is 16.
fn quant_spec(recipe: &Recipe, model: &Model, bits: u8) -> Result<QuantSpec, CompileError> {
    let known = |name: &str| model.graph.nodes().any(|(_, node)| node.name == name);
    if let Some(name) = recipe.float_nodes().find(|name| !known(name)) {
        return Err(CompileError::UnknownNode { name: name.to_string() });
    }
    let keep_float = recipe.float_nodes().map(str::to_string).collect();
    let split = recipe.split_inputs.unwrap_or(true);
    Ok(QuantSpec {
        keep_float,
        split,
        narrow_float: !recipe.quantizes_all(),
        ..QuantSpec::new(bits)
    })
}

/// The batch size: at most `most`, or a little less if then all batches of fitted and held-out
/// samples are full.
fn batch(most: usize, samples: usize) -> usize {
    let held = holdout_size(samples);
    let most = most.min(held).max(1);
    let even = |b: &usize| held.is_multiple_of(*b) && (samples - held).is_multiple_of(*b);
    (most / 2 + 1..=most).rev().find(even).unwrap_or(most)
}

/// The full evaluations that a JSON file lists.
fn read_schedule(path: &Path) -> Result<Vec<usize>, CompileError> {
    let text = crate::io::read_text(path)?;
    let invalid = |reason: String| CompileError::ScheduleFile { path: path.to_path_buf(), reason };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| invalid(format!("it is not valid JSON: {e}")))?;
    // the output of `inspect --json` is understood as well
    let list = [Some(&value), value.get("full_steps"), value.pointer("/schedule/full_steps")];
    let list = list.into_iter().flatten().find_map(|v| serde_json::from_value(v.clone()).ok());
    let expected =
        "expected a list of the full evaluations, such as [0, 4, 9], alone or as `full_steps`";
    list.ok_or_else(|| invalid(expected.into()))
}
