//! What an error at one evaluation does to the end of the trajectory.

use super::observe::restore;
use super::{CalibrateError, Progress};
use cqc_passes::cache::affine::rms;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Loop, Trajectory};

/// Evaluations at which it is tried out what an error does to the end.
pub const PROBES: usize = 8;

/// Trajectories that were led astray once, at one evaluation each, and went on with full evaluations: the network itself
/// answers to an error, by undoing it or by making it grow, which the sampler's arithmetic does not tell.
pub struct Probes {
    /// Evaluations to try.
    pub at: Vec<usize>,
    /// Evaluation, root mean square of the error made there, and the end.
    ends: Vec<(usize, f64, Vec<f32>)>,
    /// Evaluation and how far the end moved per error.
    moved: Vec<(usize, f64)>,
}

impl Probes {
    /// Evenly spread, the first evaluation left out: nothing is cached before it.
    pub fn new(evaluations: usize) -> Probes {
        let count = PROBES.min(evaluations.saturating_sub(1));
        let at = (0..count).map(|k| 1 + k * (evaluations - 2).max(1) / (count - 1).max(1)).filter(|&t| t < evaluations);
        Probes { at: at.collect(), ends: vec![], moved: vec![] }
    }

    pub fn start(
        &mut self,
        denoiser: &mut Loop,
        trajectory: &Trajectory,
        stored: &[Vec<f32>],
        answer: &[f32],
        progress: &mut Progress,
    ) -> Result<(), CalibrateError> {
        let (mut astray, t) = (trajectory.clone(), trajectory.next());
        restore(&mut astray, stored);
        denoiser.evaluate_as(ProgramKind::Cached, &mut astray)?;
        let error = rms(denoiser.output(), answer);
        denoiser.advance(&mut astray, denoiser.output());
        while astray.next() < denoiser.sampler().evaluations().len() {
            denoiser.evaluate_as(ProgramKind::Full, &mut astray)?;
            progress.step()?;
            denoiser.advance(&mut astray, denoiser.output());
        }
        self.ends.push((t, error, astray.x().to_vec()));
        Ok(())
    }

    pub fn end(&mut self, x: &[f32]) {
        let moved = self.ends.drain(..).filter(|(_, error, _)| *error > 0.0);
        self.moved = moved.map(|(t, error, end)| (t, rms(&end, x) / error)).collect();
    }

    /// The sampler's weights times what the probes found, interpolated between them in the logarithm.
    pub fn weights(&self, sampler: &[f64]) -> Vec<f64> {
        let gains: Vec<(usize, f64)> = self
            .moved
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
}
