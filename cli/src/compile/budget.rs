//! `compile --budget`: as many calibration samples as can be afforded.

use super::caching::{self, CachingArgs, Trajectory};
use super::quantizing::QuantizingArgs;
use super::{Correct, Quant};
use crate::measure::{median, ms_since};
use crate::report::Failure;
use cachequant::calibrate::{evaluations_to_come, held_out};
use cachequant::compile::Lowered;
use cachequant::model::Model;
use cachequant::quantize;
use cachequant::stages::Stages;
use cqc_runtime::sampler::Sampler;
use std::time::{Duration, Instant};

/// Evaluations timed, after one that is not.
const TIMED: usize = 3;

/// What there is to calibrate.
pub struct Work<'a> {
    pub caching: &'a CachingArgs,
    pub quantizing: &'a QuantizingArgs,
    pub quant: Quant,
    pub correct: &'a [Correct],
}

/// Largest number of calibration samples, at most those asked for, that `budget` is enough for; 2 if it is not enough for any. `float` is the
/// loop that computes everything. Kept in `stages`, so that an interrupted compilation goes on with the same samples.
pub fn samples(
    budget: Duration,
    work: &Work,
    model: &Model,
    float: &Lowered,
    trajectory: &Trajectory,
    stages: &Stages,
) -> Result<usize, Failure> {
    let asked = trajectory.samples;
    let stages = stages.depending_on(format!("{budget:?} {asked}").as_bytes());
    let samples = stages.run("budget", || -> Result<usize, Failure> {
        let per_row = seconds_per_row(work.caching, model, float, trajectory)?;
        let fits = |samples: &usize| {
            let rows = rows(work, trajectory, *samples)?;
            Ok::<_, Failure>((per_row * rows as f64 <= budget.as_secs_f64()).then_some(*samples))
        };
        // even numbers: half of them are held out
        let mut tried = (2..=asked).rev().filter(|n| *n == asked || n.is_multiple_of(2)).map(|n| fits(&n));
        let found = tried.find_map(Result::transpose).transpose()?;
        if found.is_none() {
            let least = per_row * rows(work, trajectory, 2)? as f64;
            tracing::warn!("--budget: two calibration samples, the fewest, are estimated at {least:.0} s");
        }
        Ok(found.unwrap_or(2).min(asked))
    })?;
    if samples < asked {
        tracing::info!(
            "calibrating on {samples} samples instead of {asked}; --calib-samples {samples} makes the same file"
        );
    }
    Ok(samples)
}

/// Rows of full evaluations that calibration takes, about and rather too many: a cached evaluation counts as much as a full one.
fn rows(work: &Work, trajectory: &Trajectory, samples: usize) -> Result<usize, Failure> {
    let batch = caching::engine_options(work.caching, samples).batch;
    let sampler = Sampler::new(trajectory.sampler, trajectory.steps)?;
    let steps: Vec<usize> = sampler.evaluations().iter().map(|e| e.step).collect();
    let mut evaluations = 0;
    if work.caching.caches() {
        let wanted = caching::wanted(work.caching, steps.len())?;
        let interval = work.caching.interval as usize;
        evaluations += evaluations_to_come(&wanted, interval, &steps, samples, caching::OUTPUT_SAMPLES, batch)?;
    }
    if work.quant.weight_bits().is_some() {
        let corrects = work.correct.iter().any(|c| matches!(c, Correct::Quant | Correct::QuantAll));
        let refits = work.caching.caches() && work.correct.contains(&Correct::Cache);
        let parts = [samples - held_out(samples), if refits { held_out(samples) } else { 0 }];
        evaluations += quantize::evaluations_to_come(steps.len(), parts, batch, corrects, work.quantizing.reconstruct);
    }
    Ok(evaluations * batch)
}

fn seconds_per_row(
    args: &CachingArgs,
    model: &Model,
    float: &Lowered,
    trajectory: &Trajectory,
) -> Result<f64, Failure> {
    let request = caching::calibration_request(args, model, trajectory)?;
    let mut denoiser = caching::open_loop(args, float, trajectory, request.samples)?;
    let mut at = denoiser.begin(&request, 0)?;
    let mut ms = Vec::new();
    for _ in 0..=TIMED {
        let start = Instant::now();
        denoiser.evaluate_as(cqc_proto::plan::ProgramKind::Full, &mut at)?;
        ms.push(ms_since(start));
    }
    Ok(median(&ms[1..]) / 1e3 / denoiser.width() as f64)
}
