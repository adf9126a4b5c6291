//! The denoising loop of an artifact.

use super::model_bench::synthetic;
use super::{BenchArgs, Measured, profiled};
use crate::cli::artifact;
use crate::cli::measure::{backend, median, ms_since, peak_rss_mb};
use crate::cli::report::Failure;
use crate::cli::request::shape_at;
use crate::cli::term::Progress;
use cqc_proto::Tensor;
use cqc_proto::plan::{InputRole, Plan};
use cqc_runtime::denoise::{DenoiseError, Loop, Request};
use cqc_runtime::engine::EngineOptions;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Without --repeat: loops until this much time has passed, at most [`MOST`].
const BUDGET: Duration = Duration::from_secs(4);
const MOST: usize = 20;

/// Evaluations of the warm-up.
const WARM_UP: usize = 2;

pub fn measure(args: &BenchArgs, quiet: bool) -> Result<Measured, Failure> {
    if args.inputs.is_some() || args.output.is_some() || !args.sizes.shape.is_empty() || !args.sizes.dim.is_empty() {
        return Err(Failure::usage("--inputs, --output, --shape and --dim are for models, not for a .cq"));
    }
    let artifact = artifact::open(&args.model)?;
    let plan = artifact.weights.plan();
    let guidance = artifact.manifest.guidance;
    let batch = args.batch.map_or(plan.fixed_batch.unwrap_or(1), |b| b as usize);
    let options = EngineOptions { batch, threads: args.threads.count(), profile: args.profile, ..Default::default() };
    let mut denoiser = Loop::open(&artifact.weights, artifact.sampler()?, guidance != 1.0, &options)?;
    let conditions = conditions(plan, denoiser.width())?;
    let request = Request {
        samples: denoiser.width(),
        unconditional: conditions.clone(),
        conditions,
        guidance,
        ..Default::default()
    };

    match denoiser.sample(&request, &mut |m| {
        if m.evaluation + 1 < WARM_UP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }) {
        Ok(_) | Err(DenoiseError::Interrupted) => {}
        Err(e) => return Err(e.into()),
    }
    let (loops, ms) = time(&mut denoiser, &request, args.repeat.map(|n| n as usize), quiet)?;
    let engines = denoiser.engines();
    let memory: usize = engines.iter().map(|e| e.memory_bytes()).sum();
    let weights = artifact.weight_bytes().max(artifact.weights.packed_bytes() as u64);
    let steps = artifact.manifest.steps;
    Ok(Measured {
        threads: options.threads,
        batch: denoiser.width(),
        backend: backend(artifact.weights.isa()),
        dtype: "f32",
        full_step_ms: median(&ms),
        cached_step_ms: None,
        loop_ms: median(&loops),
        steps,
        full_steps: steps,
        ms,
        macs_full: artifact.macs(&plan.full),
        macs_cached: None,
        peak_memory_bytes: memory as u64 + weights,
        peak_rss_mb: peak_rss_mb(),
        output: None,
        profile: if args.profile { engines.iter().flat_map(|e| profiled(e.profile())).collect() } else { vec![] },
        rows: engines.iter().map(|e| e.batch()).sum(),
        isa: Some(artifact.weights.isa()),
    })
}

/// Milliseconds of every loop, and of every step but the first of a loop, which includes the preludes.
fn time(
    denoiser: &mut Loop,
    request: &Request,
    repeat: Option<usize>,
    quiet: bool,
) -> Result<(Vec<f64>, Vec<f64>), Failure> {
    let evaluations = denoiser.sampler().evaluations().len();
    let mut progress = Progress::new("timing", (repeat.unwrap_or(1) * evaluations) as u64, quiet);
    let (mut loops, mut steps) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while loops.len() < repeat.unwrap_or(MOST) && (repeat.is_some() || loops.is_empty() || begun.elapsed() < BUDGET) {
        let start = Instant::now();
        let mut last = start;
        denoiser.sample(request, &mut |moment| {
            if moment.evaluation > 0 || evaluations == 1 {
                steps.push(ms_since(last));
            }
            progress.step();
            last = Instant::now();
            ControlFlow::Continue(())
        })?;
        loops.push(ms_since(start));
    }
    Ok((loops, steps))
}

/// Noise and zeros for every condition.
fn conditions(plan: &Plan, samples: usize) -> Result<BTreeMap<String, Tensor>, Failure> {
    let conditions = plan.inputs.iter().filter(|i| i.role == InputRole::Condition);
    let tensor = |input: &cqc_proto::plan::PlanInput| {
        let shape = shape_at(&input.ty, plan.batch_symbol.as_deref(), samples);
        let mut shape =
            shape.ok_or_else(|| Failure::usage(format!("input `{}` has no size at {samples} samples", input.name)))?;
        if shape.first().is_some_and(|&rows| Some(rows) == plan.fixed_batch) {
            shape[0] = samples; // of a fixed batch, guidance takes a part
        }
        Ok((input.name.clone(), synthetic(input, &shape)))
    };
    conditions.map(tensor).collect()
}
