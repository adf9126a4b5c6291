//! Measures the effect of an error at one evaluation on the end of the trajectory.

use super::observe::{Snapshot, restore, snapshot};
use super::{CalibrateError, EvaluationCounter, PartialBatches};
use cqc_passes::cache::affine::rms;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request, Trajectory};
use std::collections::VecDeque;

/// Number of evaluations at which the effect is measured.
pub const PROBES: usize = 8;

/// Number of samples on which it is measured.
pub const PROBED_SAMPLES: usize = 2;

/// The weights of errors by evaluation: the sampler's own weights, times a factor that is measured.
/// To measure it, one trajectory per probe is perturbed once, at one evaluation, by the cache of
/// `age` evaluations before, and continued with full evaluations. The network itself reacts to an
/// error, by undoing it or by amplifying it, which the sampler's arithmetic does not show.
///
/// `denoiser` runs a plan with a cache, on the first samples of the request. `count` counts its
/// evaluations.
pub fn probe(
    denoiser: &mut Denoiser,
    request: &Request,
    age: usize,
    mut count: PartialBatches,
    progress: &mut EvaluationCounter,
) -> Result<Vec<f64>, CalibrateError> {
    let sampler = denoiser.sampler().output_weights();
    let at = probed(sampler.len());
    // evaluation, root mean square of the error made there, and the end
    let mut ends: Vec<(usize, f64, Vec<f32>)> = Vec::new();
    let mut trajectory = denoiser.begin(request, 0)?;
    let mut ring: VecDeque<Snapshot> = VecDeque::with_capacity(age + 1);
    for t in 0..sampler.len() {
        denoiser.evaluate_as(ProgramKind::Full, &mut trajectory)?;
        count.step(progress)?;
        let answer = denoiser.output().to_vec();
        let now = snapshot(&trajectory);
        if let (true, Some(stored)) = (at.contains(&t), ring.front()) {
            let mut astray = trajectory.clone();
            restore(&mut astray, stored);
            denoiser.evaluate_as(ProgramKind::Cached, &mut astray)?;
            let error = rms(denoiser.output(), &answer);
            denoiser.advance(&mut astray, denoiser.output());
            ends.push((t, error, run_on(denoiser, astray, &mut count, progress)?));
        }
        denoiser.advance(&mut trajectory, &answer);
        ring.push_back(now);
        if ring.len() > age {
            ring.pop_front();
        }
    }
    let moved = ends.iter().filter(|(_, error, _)| *error > 0.0);
    let moved: Vec<(usize, f64)> =
        moved.map(|(t, error, end)| (*t, rms(end, trajectory.x()) / error)).collect();
    Ok(weights(&sampler, &moved))
}

/// Evaluations that are evenly spread. The first is left out, because nothing is cached before it.
fn probed(evaluations: usize) -> Vec<usize> {
    let count = PROBES.min(evaluations.saturating_sub(1));
    let at = (0..count).map(|k| 1 + k * (evaluations - 2).max(1) / (count - 1).max(1));
    at.filter(|&t| t < evaluations).collect()
}

fn run_on(
    denoiser: &mut Denoiser,
    mut trajectory: Trajectory,
    count: &mut PartialBatches,
    progress: &mut EvaluationCounter,
) -> Result<Vec<f32>, CalibrateError> {
    while trajectory.next() < denoiser.sampler().evaluations().len() {
        denoiser.evaluate_as(ProgramKind::Full, &mut trajectory)?;
        count.step(progress)?;
        denoiser.advance(&mut trajectory, denoiser.output());
    }
    Ok(trajectory.x().to_vec())
}

/// The sampler's weights times the gains in `moved` (evaluation, and how far the end moved per
/// error), which are interpolated in the logarithm.
fn weights(sampler: &[f64], moved: &[(usize, f64)]) -> Vec<f64> {
    let gains: Vec<(usize, f64)> = moved
        .iter()
        .filter(|(t, moved)| sampler[*t] > 0.0 && *moved > 0.0)
        .map(|&(t, moved)| (t, (moved / sampler[t]).ln()))
        .collect();
    let gain = |t: usize| match gains.partition_point(|(at, _)| *at <= t) {
        0 => gains.first().map_or(0.0, |g| g.1),
        n if n == gains.len() => gains[n - 1].1,
        n => {
            let ((t0, g0), (t1, g1)) = (gains[n - 1], gains[n]);
            g0 + (g1 - g0) * (t - t0) as f64 / (t1 - t0) as f64
        }
    };
    sampler.iter().enumerate().map(|(t, weight)| weight * gain(t).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_interpolated_in_the_logarithm_and_hold_at_the_ends() {
        let found = weights(&[2.0, 1.0, 1.0, 1.0, 0.0], &[(1, 1.0), (3, 4.0)]);
        for (found, expected) in found.iter().zip([2.0, 1.0, 2.0, 4.0, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(weights(&[3.0], &[]), [3.0]);
    }

    #[test]
    fn probes_are_spread_over_the_evaluations_behind_the_first() {
        assert_eq!(probed(100), [1, 15, 29, 43, 57, 71, 85, 99]);
        assert_eq!(probed(3), [1, 2]);
        assert_eq!(probed(1), [] as [usize; 0]);
    }
}
