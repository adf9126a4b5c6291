//! Measures the denoising loop of an artifact.

use super::model_bench::synthetic;
use super::{BenchArgs, Measured, profiled};
use crate::artifact;
use crate::measure::{backend, median, ms_since, peak_rss_mb};
use crate::report::Failure;
use crate::request::shape_at;
use crate::term::ProgressBar;
use cqc_proto::Tensor;
use cqc_proto::plan::{InputRole, Plan, ProgramKind};
use cqc_runtime::DenoiserOptions;
use cqc_runtime::denoise::{DenoiseError, Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Execution};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Without --repeat, loops run until this much time has passed, at most [`MOST`] of them.
const BUDGET: Duration = Duration::from_secs(4);
const MOST: usize = 20;

/// Number of evaluations of the warm-up.
const WARM_UP: usize = 2;

pub fn measure(args: &BenchArgs, quiet: bool) -> Result<Measured, Failure> {
    if args.inputs.is_some() || args.output.is_some() || !args.reading.is_default() {
        return Err(Failure::usage(
            "--inputs, --output and the options that say how a model is read are for models, not for a .cq",
        ));
    }
    let begun = Instant::now();
    let artifact = artifact::open_cached(&args.model, &args.cache)?;
    let manifest = artifact.manifest();
    let (plan, guidance) = (&manifest.plan, manifest.classifier_free_scale());
    let batch = args.batch.map_or(plan.fixed_batch.unwrap_or(1), |b| b as usize);
    let options = EngineOptions {
        batch,
        threads: args.threads.count(),
        profile: args.profile,
        ..Default::default()
    };
    let threads = options.threads;
    let options = DenoiserOptions { engine: options, ..DenoiserOptions::default() };
    let mut denoiser = args.device.open(&artifact, options)?;
    let open_ms = begun.elapsed().as_secs_f64() * 1e3;
    artifact::keep_packed(&artifact);
    let conditions = conditions(plan, denoiser.width())?;
    let request = request(&denoiser, conditions, guidance);

    match denoiser.sample(&request, &mut |m| {
        if m.evaluation + 1 < WARM_UP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }) {
        Ok(_) | Err(DenoiseError::Interrupted) => {}
        Err(e) => return Err(e.into()),
    }
    let timed = time(&mut denoiser, &request, args.repeat.map(|n| n as usize), quiet)?;
    let engine = denoiser.engine();
    let memory = engine.memory_bytes() + (denoiser.halves() - 1) * engine.request_bytes();
    let weights = artifact.weight_bytes().max(artifact.weights().packed_bytes() as u64);
    let cached = plan.cache.as_ref();
    Ok(Measured {
        threads,
        batch: denoiser.width(),
        backend: engine.device().map_or_else(|| backend(artifact.weights().isa()), |d| d.name()),
        dtype: if engine.device().is_some() {
            if manifest.quant.has_integers() { "int8" } else { "f16" }
        } else if engine.profile().iter().any(|step| step.execution == Execution::Int8) {
            "int8"
        } else if engine.profile().iter().any(|step| step.execution == Execution::Bf16) {
            "bf16"
        } else {
            "f32"
        },
        full_step_ms: median(&timed.full),
        cached_step_ms: cached.map(|_| median(&timed.cached)),
        loop_ms: median(&timed.loops),
        open_ms,
        steps: plan.evaluations,
        full_steps: cached.map_or(plan.evaluations, |cache| cache.full_evaluations.len()),
        ms: timed.full,
        macs_full: artifact::macs(&artifact, &plan.full),
        macs_prelude: artifact::macs(&artifact, &plan.prelude)
            + artifact::macs(&artifact, &plan.prelude_steps) * plan.evaluations as i64,
        macs_cached: cached.map(|cache| artifact::macs(&artifact, &cache.cached)),
        peak_memory_bytes: memory as u64 + weights,
        device_memory_bytes: engine.device().map(|d| d.bytes()),
        peak_rss_mb: peak_rss_mb(),
        output: None,
        profile: if args.profile { profiled(plan, engine.profile()) } else { vec![] },
        rows: engine.batch() * denoiser.halves(),
        isa: Some(artifact.weights().isa()),
    })
}

/// A request for one batch of samples. It begins with an empty image if the sampler needs an image.
pub fn request(
    denoiser: &Denoiser,
    conditions: BTreeMap<String, Tensor>,
    guidance: f32,
) -> Request {
    let shape = [&[1], denoiser.sample_shape()].concat();
    let empty = || Tensor::from_f32(&shape, &vec![0.0; shape.iter().product()]);
    Request {
        samples: denoiser.width(),
        init: denoiser.sampler().needs_image().then(empty),
        unconditional: conditions.clone(),
        conditions,
        guidance: Some(guidance),
        ..Default::default()
    }
}

/// Milliseconds of every loop and of its steps.
#[derive(Default)]
struct Timed {
    loops: Vec<f64>,
    /// Full steps, without the first of a loop, which includes the preludes, unless it is the only
    /// one.
    full: Vec<f64>,
    cached: Vec<f64>,
}

fn time(
    denoiser: &mut Denoiser,
    request: &Request,
    repeat: Option<usize>,
    quiet: bool,
) -> Result<Timed, Failure> {
    let evaluations = denoiser.sampler().evaluations().len();
    let plan = denoiser.engine().plan();
    let programs: Vec<ProgramKind> = (0..evaluations).map(|e| plan.program_at(e)).collect();
    let lone = programs.iter().filter(|&&p| p == ProgramKind::Full).count() == 1;
    let mut progress =
        ProgressBar::new("timing", (repeat.unwrap_or(1) * evaluations) as u64, quiet);
    let mut timed = Timed::default();
    let begun = Instant::now();
    let more = |loops: usize| match repeat {
        Some(repeat) => loops < repeat,
        None => loops == 0 || (loops < MOST && begun.elapsed() < BUDGET),
    };
    while more(timed.loops.len()) {
        // the number of loops that fit into the time is not known in advance
        progress.set_total((repeat.unwrap_or(timed.loops.len() + 1) * evaluations) as u64);
        let start = Instant::now();
        let mut last = start;
        denoiser.sample(request, &mut |moment| {
            let ms = ms_since(last);
            match programs[moment.evaluation] {
                ProgramKind::Cached => timed.cached.push(ms),
                _ if moment.evaluation > 0 || lone => timed.full.push(ms),
                _ => {}
            }
            progress.step();
            last = Instant::now();
            ControlFlow::Continue(())
        })?;
        timed.loops.push(ms_since(start));
    }
    Ok(timed)
}

/// Noise or zeros for every condition.
pub fn conditions(plan: &Plan, samples: usize) -> Result<BTreeMap<String, Tensor>, Failure> {
    let conditions = plan.inputs.iter().filter(|i| i.role == InputRole::Condition);
    let tensor = |input: &cqc_proto::plan::PlanInput| {
        let shape = shape_at(&input.ty, plan.batch_symbol.as_deref(), samples);
        let mut shape = shape.ok_or_else(|| {
            Failure::usage(format!("input `{}` has no size at {samples} samples", input.name))
        })?;
        if shape.first().is_some_and(|&rows| Some(rows) == plan.fixed_batch) {
            shape[0] = samples; // of a fixed batch, guidance takes a part
        }
        Ok((input.name.clone(), synthetic(input, &shape)))
    };
    conditions.map(tensor).collect()
}
