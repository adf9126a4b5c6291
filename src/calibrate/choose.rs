//! Finds candidates for schedules and corrections, and the best of them.

use super::correct::{CacheTables, CorrectionFit, sequential, teacher_forced};
use super::measure::Holdout;
use super::observe::{Observed, channels, observe};
use super::probe::{PROBED_SAMPLES, PROBES};
use super::{
    CalibrateError, CalibrationOptions, CorrectionPolicy, EvaluationCounter, ScheduleSource,
};
pub use cqc_passes::cache::schedule::Candidate;
use cqc_passes::cache::schedule::{
    self, Costs, Quadratic, ScheduleKind, full_count, group_lengths,
};
use cqc_runtime::denoise::{Denoiser, Request};
use serde::{Deserialize, Serialize};

/// The schedule and the correction of the cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CachingChoice {
    /// The full evaluations, in ascending order from 0.
    pub full: Vec<usize>,
    /// Name of the method that found the schedule.
    pub method: String,
    /// The cost that the method minimises, of this schedule and of the uniform one.
    pub cost: Option<(f64, Option<f64>)>,
    /// The correction, if it helps or was asked for.
    pub tables: Option<(CorrectionFit, CacheTables)>,
    /// Every candidate that was measured on held-out samples.
    pub measured: Vec<MeasuredCandidate>,
    /// The held-out samples. They are `None` if this choice was stored and read again.
    #[serde(skip)]
    pub held: Option<Holdout>,
}

/// A candidate and its quality on held-out samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredCandidate {
    /// Name of the method that found its schedule.
    pub method: String,
    /// The full evaluations, in ascending order from 0.
    pub full: Vec<usize>,
    /// Its correction; `None` if the cache was not corrected.
    pub correction: Option<CorrectionFit>,
    /// Mean PSNR to the ends of the ordinary loop, in dB.
    pub psnr: f64,
}

/// Number of samples that are held out of `samples`: half of them, at least 1 and at most 8.
/// Candidates are compared on the same samples, so 8 are enough to tell decibels apart.
pub fn holdout_size(samples: usize) -> usize {
    (samples / 2).clamp(1, 8)
}

/// Number of the `fit` samples on which corrections of the cache are fitted: 16 at most, because
/// each sample brings all positions of the corrected tensor. (On the trained U-Net at N = 5, 16
/// instead of 8 are worth 0.2 dB.)
fn corrected_on(fit: usize) -> usize {
    fit.min(16)
}

/// Calibration samples that have been observed. Schedules and corrections can now be found and
/// measured.
pub struct Study<'a> {
    denoiser: &'a mut Denoiser,
    request: Request,
    interval: usize,
    /// Sampler step of each evaluation.
    steps: Vec<usize>,
    /// The evaluation at which guidance begins, if it is not the first. The unconditional half has
    /// nothing cached there.
    guided_from: Option<usize>,
    /// Number of samples on which tables are fitted; the others are held out.
    fit: usize,
    observed: Observed,
    held: Holdout,
    progress: EvaluationCounter<'a>,
}

impl<'a> Study<'a> {
    /// Observes the calibration samples on the loop of a plan with a cache and without corrections.
    ///
    /// # Errors
    /// [`CalibrateError`] if the loop cannot be run, or if there are too few samples.
    pub fn new(
        denoiser: &'a mut Denoiser,
        options: CalibrationOptions<'a>,
    ) -> Result<Study<'a>, CalibrateError> {
        let CalibrationOptions { interval, schedule, request, output_samples, progress, .. } =
            options;
        if request.samples < 2 {
            return Err(CalibrateError::Samples(request.samples));
        }
        let steps: Vec<usize> = denoiser.sampler().evaluations().iter().map(|e| e.step).collect();
        let width = width(&schedule, &steps, interval)?;
        let begins = request.guidance_interval.map(|interval| {
            let sampler = denoiser.sampler();
            sampler.evaluation_of_step(interval.steps(sampler.steps()).start)
        });
        let guided_from = begins.filter(|e| (1..steps.len()).contains(e));
        let held = request.samples - holdout_size(request.samples);
        let fit = corrected_on(held);
        let output_samples = if needs_output(&schedule) { output_samples.min(fit) } else { 0 };
        let all = evaluations_to_come(
            &schedule,
            interval,
            &steps,
            request.samples,
            output_samples,
            denoiser.width(),
        )?;
        let mut progress = EvaluationCounter { done: 0, all: all as u64, call: progress };
        let observed = observe(denoiser, &request, fit, width, output_samples, &mut progress)?;
        let held = Holdout::new(denoiser, &request, held, &mut progress)?;
        Ok(Study { denoiser, request, interval, steps, guided_from, fit, observed, held, progress })
    }

    /// The schedules that the method gives: one, or for `auto` one of each kind. The evaluation at
    /// which guidance begins is also full, unless the schedule was given.
    ///
    /// # Errors
    /// [`CalibrateError::NoSchedule`] if the method has no schedule for the interval,
    /// [`CalibrateError::Schedule`] if a given one does not fit the loop.
    pub fn candidates(&self, wanted: &ScheduleSource) -> Result<Vec<Candidate>, CalibrateError> {
        let mut found = candidates(wanted, &self.observed, &self.steps, self.interval)?;
        let begins = self.guided_from.filter(|_| matches!(wanted, ScheduleSource::Method(_)));
        for candidate in &mut found {
            candidate.full.extend(begins);
            candidate.full.sort_unstable();
            candidate.full.dedup();
        }
        Ok(found)
    }

    /// Fits the correction of the cache for a schedule.
    ///
    /// # Errors
    /// [`CalibrateError`] if the loop cannot be run.
    pub fn tables(
        &mut self,
        fit: CorrectionFit,
        full: &[usize],
    ) -> Result<CacheTables, CalibrateError> {
        match fit {
            CorrectionFit::TeacherForced => {
                Ok(teacher_forced(&self.observed, &channels(self.denoiser), full, self.steps.len()))
            }
            CorrectionFit::Sequential | CorrectionFit::Forecast => {
                let forecast = fit.uses_previous();
                sequential(
                    self.denoiser,
                    &self.request,
                    self.fit,
                    full,
                    forecast,
                    &mut self.progress,
                )
            }
        }
    }

    /// Mean PSNR of the accelerated loop on the held-out samples, in dB.
    ///
    /// # Errors
    /// [`CalibrateError`] if the loop cannot be run.
    pub fn psnr(
        &mut self,
        full: &[usize],
        tables: Option<&CacheTables>,
    ) -> Result<f64, CalibrateError> {
        self.held.psnr(self.denoiser, &self.request, full, tables, &mut self.progress)
    }
}

/// Chooses the schedule that is best on the held-out samples without correction, and then the
/// correction that is best with this schedule, or none if no correction helps.
///
/// # Errors
/// [`CalibrateError`] if the loop cannot be run, or if there is no schedule.
pub fn choose<'a>(
    denoiser: &'a mut Denoiser,
    options: CalibrationOptions<'a>,
) -> Result<CachingChoice, CalibrateError> {
    let (schedule, correct) = (options.schedule.clone(), options.correct);
    let mut study = Study::new(denoiser, options)?;
    let candidates = study.candidates(&schedule)?;
    let mut measured = Vec::new();
    let mut best: Option<(f64, usize)> = None;
    for (i, candidate) in candidates.iter().enumerate() {
        let psnr = study.psnr(&candidate.full, None)?;
        let (method, full) = (candidate.method.clone(), candidate.full.clone());
        measured.push(MeasuredCandidate { method, full, correction: None, psnr });
        if best.is_none_or(|(most, _)| psnr > most) {
            best = Some((psnr, i));
        }
    }
    let (plain, at) = best.expect("there is a candidate");
    let Candidate { method, full, cost } = candidates.into_iter().nth(at).expect("it was measured");

    let (fits, mut most) = match correct {
        CorrectionPolicy::Never => (vec![], plain),
        CorrectionPolicy::Best => {
            (vec![CorrectionFit::TeacherForced, CorrectionFit::Forecast], plain)
        }
        CorrectionPolicy::Always(fit) => (vec![fit], f64::NEG_INFINITY),
    };
    let mut tables = None;
    for fit in fits {
        let fitted = study.tables(fit, &full)?;
        let psnr = study.psnr(&full, Some(&fitted))?;
        measured.push(MeasuredCandidate {
            method: method.clone(),
            full: full.clone(),
            correction: Some(fit),
            psnr,
        });
        if psnr > most {
            (most, tables) = (psnr, Some((fit, fitted)));
        }
    }
    Ok(CachingChoice { full, method, cost, tables, measured, held: Some(study.held) })
}

/// Whether the schedule is found by the effect of older caches on the output.
fn needs_output(schedule: &ScheduleSource) -> bool {
    matches!(schedule, ScheduleSource::Method(kind) if kind.needs_output())
}

/// About how many evaluations, full and cached, of `batch` samples at once [`choose`] makes.
/// `steps` has the sampler step of each evaluation of the loop.
///
/// # Errors
/// [`CalibrateError::Schedule`] for a given schedule that does not fit the loop.
pub fn evaluations_to_come(
    schedule: &ScheduleSource,
    interval: usize,
    steps: &[usize],
    samples: usize,
    output_samples: usize,
    batch: usize,
) -> Result<usize, CalibrateError> {
    let (evaluations, width) = (steps.len(), width(schedule, steps, interval)?);
    let held = holdout_size(samples);
    let fit = corrected_on(samples - held);
    let batches = |samples: usize| samples.div_ceil(batch);
    let pairs: usize = (0..evaluations).map(|t| t.min(width - 1)).sum();
    let searched = match needs_output(schedule) {
        true => {
            batches(output_samples.min(fit)) * pairs
                + (PROBES + 2) * evaluations / 2 * PROBED_SAMPLES / batch
        }
        false => 0,
    };
    let measured =
        if matches!(schedule, ScheduleSource::Method(ScheduleKind::Auto)) { 7 } else { 4 };
    Ok(evaluations * (batches(fit) * 3 + batches(held) * measured) + searched)
}

/// Longest group of evaluations that is observed.
fn width(
    schedule: &ScheduleSource,
    steps: &[usize],
    interval: usize,
) -> Result<usize, CalibrateError> {
    let evaluations = steps.len();
    let sampler_steps = steps.last().map_or(1, |s| s + 1);
    let mut width = *group_lengths(evaluations, sampler_steps, interval).end();
    let mut cover = |full: &[usize]| {
        let ends = full.iter().skip(1).copied().chain([evaluations]);
        width = full.iter().zip(ends).map(|(&i, end)| end - i).fold(width, usize::max);
    };
    match schedule {
        ScheduleSource::Given(full) => {
            schedule::check(full, evaluations).map_err(CalibrateError::Schedule)?;
            cover(full);
        }
        ScheduleSource::Method(kind) => {
            cover(&schedule::uniform(steps, interval));
            let form = if let ScheduleKind::Quadratic(form) = kind {
                *form
            } else {
                Quadratic::around(evaluations)
            };
            form.schedule(evaluations, full_count(sampler_steps, interval))
                .iter()
                .for_each(|full| cover(full));
        }
    }
    Ok(width)
}

fn candidates(
    wanted: &ScheduleSource,
    observed: &Observed,
    steps: &[usize],
    interval: usize,
) -> Result<Vec<Candidate>, CalibrateError> {
    let kind = match wanted {
        ScheduleSource::Given(full) => {
            return Ok(vec![Candidate { method: "file".into(), full: full.clone(), cost: None }]);
        }
        ScheduleSource::Method(kind) => kind,
    };
    let residuals = || observed.residuals();
    let Observed { features, output, .. } = observed;
    let found =
        kind.candidates(&Costs { steps, features, residuals: &residuals, output }, interval);
    if found.is_empty() {
        let full = full_count(steps.last().map_or(1, |s| s + 1), interval);
        return Err(CalibrateError::NoSchedule {
            kind: kind.clone(),
            full,
            evaluations: steps.len(),
        });
    }
    Ok(found)
}
