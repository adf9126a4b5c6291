//! A time budget: uses as many calibration samples as fit into it.

use super::session::OUTPUT_SAMPLES;
use super::{CompileError, Session};
use crate::calibrate::{evaluations_to_come, holdout_size, quantize};
use crate::recipe::Correct;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::sampler::Sampler;
use std::time::Instant;

/// Number of evaluations that are timed, after one that is not.
const TIMED: usize = 3;

/// The largest number of calibration samples, at most that of the recipe, that `seconds` suffice
/// for; 2 if they do not suffice for any. The result is kept among the session's stages, so that an
/// interrupted compilation continues with the same samples.
pub(super) fn samples(session: &Session, seconds: f64) -> Result<usize, CompileError> {
    let asked = session.recipe.calib_samples();
    let stages = session.stages().depending_on(format!("{seconds:?} {asked}").as_bytes());
    let samples = stages.run("budget", || -> Result<usize, CompileError> {
        let per_row = seconds_per_row(session, asked)?;
        let fits = |samples: &usize| {
            let rows = rows(session, *samples)?;
            Ok::<_, CompileError>((per_row * rows as f64 <= seconds).then_some(*samples))
        };
        // even numbers, because half of the samples are held out
        let mut tried =
            (2..=asked).rev().filter(|n| *n == asked || n.is_multiple_of(2)).map(|n| fits(&n));
        let found = tried.find_map(Result::transpose).transpose()?;
        if found.is_none() {
            let least = per_row * rows(session, 2)? as f64;
            tracing::warn!(
                "budget: two calibration samples, the fewest, are estimated at {least:.0} s"
            );
        }
        Ok(found.unwrap_or(2).min(asked))
    })?;
    if samples < asked {
        tracing::info!(
            "calibrating on {samples} samples instead of {asked}; calib-samples {samples} makes the same file"
        );
    }
    Ok(samples)
}

/// Number of rows of full evaluations that calibration takes. The estimate is rather too high,
/// because a cached evaluation counts as much as a full one.
fn rows(session: &Session, samples: usize) -> Result<usize, CompileError> {
    let (recipe, options) = (&session.recipe, &session.options);
    let batch = session.engine_options(samples).batch;
    let sampler = Sampler::new(&options.sampler, options.steps)?;
    let steps: Vec<usize> = sampler.evaluations().iter().map(|e| e.step).collect();
    let mut evaluations = 0;
    if recipe.caches() {
        let (schedule, interval) = (session.schedule()?, recipe.interval());
        evaluations +=
            evaluations_to_come(&schedule, interval, &steps, samples, OUTPUT_SAMPLES, batch)?;
    }
    if recipe.quant().weight_bits().is_some() {
        let corrects = recipe.corrects(Correct::Quant) || recipe.corrects(Correct::QuantAll);
        let refits = recipe.caches() && recipe.corrects(Correct::Cache);
        let parts =
            [samples - holdout_size(samples), if refits { holdout_size(samples) } else { 0 }];
        evaluations +=
            quantize::evaluations_to_come(steps.len(), parts, batch, corrects, recipe.reconstruct);
    }
    Ok(evaluations * batch)
}

fn seconds_per_row(session: &Session, samples: usize) -> Result<f64, CompileError> {
    let request = session.calibration_set_of(samples)?;
    let mut denoiser = session.open(&session.uncached()?, request.samples)?;
    let mut at = denoiser.begin(&request, 0)?;
    let mut times = Vec::new();
    for _ in 0..=TIMED {
        let start = Instant::now();
        denoiser.evaluate_as(ProgramKind::Full, &mut at)?;
        times.push(start.elapsed().as_secs_f64());
    }
    let timed = &mut times[1..];
    timed.sort_by(f64::total_cmp);
    Ok(timed[TIMED / 2] / denoiser.width() as f64)
}
