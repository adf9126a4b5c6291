//! Measures the effect of rounding each site on the end of the trajectory.

use super::TunableLoop;
use crate::calibrate::observe::{restore, snapshot};
use crate::calibrate::{CalibrateError, EvaluationCounter, PartialBatches};
use cqc_passes::quant::{QuantTables, Survey};
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request, Trajectory};
use std::ops::Range;

/// Number of full evaluations at which it is measured.
pub(crate) const PROBES: usize = 6;

/// Per site, the square of the distance by which the end of the trajectory moves when this site
/// alone is rounded. It is measured at a few of the full evaluations of one batch and at the cached
/// ones that follow each: the errors of the output are weighted by their effect through the sampler
/// ([`output_weights`](cqc_runtime::sampler::Sampler::output_weights)). A site that cached steps
/// read as well makes a new error in each of them, so squares are added. A site that only full
/// steps read is wrong in the same way until the next full step, so errors are added. Sites that
/// `wanted` refuses have no effect. The plan of `study` does not round yet; `count` counts its
/// evaluations.
pub(crate) fn sensitivity(
    study: &mut TunableLoop,
    survey: &Survey,
    tables: &QuantTables,
    request: &Request,
    wanted: &dyn Fn(usize) -> bool,
    mut count: PartialBatches,
    progress: &mut EvaluationCounter,
) -> Result<Vec<f64>, CalibrateError> {
    let TunableLoop { denoiser, places } = study;
    let weights = denoiser.sampler().output_weights();
    let groups = groups(denoiser, weights.len());
    let mut effects = vec![0.0; survey.sites.len()];
    let is_live = |site: usize| {
        survey.layers.iter().any(|layer| layer.is_live && layer.sites.contains(&site))
    };
    let mut trajectory = denoiser.begin(request, 0)?;
    for t in 0..weights.len() {
        if let Some(group) = groups.iter().find(|group| group.start == t) {
            let (states, answers) = walk(denoiser, trajectory.clone(), group.clone())?;
            let squares: f64 = group.clone().map(|s| weights[s].powi(2)).sum();
            let read = |site: &usize| wanted(*site) && places.is_read(*site, ProgramKind::Full);
            for site in (0..effects.len()).filter(read) {
                places.set_site(denoiser, tables, site, t)?;
                let mut rounded = states[0].clone();
                denoiser.evaluate_as(ProgramKind::Full, &mut rounded)?;
                count.step(progress)?;
                places.clear_site(denoiser, tables, site, t)?;
                let mut error = vec![0.0; answers[0].len()];
                if is_live(site) {
                    add(&mut error, 1.0, denoiser.output(), &answers[0]);
                    effects[site] += mean_square(&error) * squares;
                    continue;
                }
                add(&mut error, weights[t], denoiser.output(), &answers[0]);
                let stored = snapshot(&rounded);
                for ((state, answer), s) in states.iter().zip(&answers).zip(group.clone()).skip(1) {
                    let mut trial = state.clone();
                    restore(&mut trial, &stored);
                    denoiser.evaluate_as(ProgramKind::Cached, &mut trial)?;
                    count.step(progress)?;
                    add(&mut error, weights[s], denoiser.output(), answer);
                }
                effects[site] += mean_square(&error);
            }
        }
        if groups.last().is_some_and(|group| group.start == t) {
            break;
        }
        denoiser.evaluate_as(denoiser.engine().plan().program_at(t), &mut trajectory)?;
        count.step(progress)?;
        denoiser.advance(&mut trajectory, denoiser.output());
    }
    Ok(effects)
}

/// A few evenly spread full evaluations, each with the cached ones that follow it.
fn groups(denoiser: &Denoiser, evaluations: usize) -> Vec<Range<usize>> {
    let plan = denoiser.engine().plan();
    let full: Vec<usize> =
        (0..evaluations).filter(|&t| plan.program_at(t) == ProgramKind::Full).collect();
    let some = PROBES.min(full.len());
    let nth = |k: usize| k * (full.len() - 1) / some.saturating_sub(1).max(1);
    (0..some).map(nth).map(|i| full[i]..full.get(i + 1).copied().unwrap_or(evaluations)).collect()
}

/// The trajectory before each evaluation of a group, and the network's output there.
fn walk(
    denoiser: &mut Denoiser,
    mut trajectory: Trajectory,
    group: Range<usize>,
) -> Result<(Vec<Trajectory>, Vec<Vec<f32>>), CalibrateError> {
    let (mut states, mut answers) = (vec![], vec![]);
    for t in group {
        states.push(trajectory.clone());
        denoiser.evaluate_as(denoiser.engine().plan().program_at(t), &mut trajectory)?;
        answers.push(denoiser.output().to_vec());
        denoiser.advance(&mut trajectory, denoiser.output());
    }
    Ok((states, answers))
}

fn add(error: &mut [f64], weight: f64, found: &[f32], expected: &[f32]) {
    let differences = found.iter().zip(expected).map(|(a, b)| f64::from(a - b));
    error.iter_mut().zip(differences).for_each(|(sum, difference)| *sum += weight * difference);
}

fn mean_square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64
}
