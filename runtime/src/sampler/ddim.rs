//! DDIM (arXiv:2010.02502): from the predicted image straight to the next noise level, with a share
//! `eta` of DDPM's noise.

use super::schedule::{Level, alphas_cumprod, timesteps};
use super::table::Row;
use super::{DdimUpdate, Evaluation, Output, SamplerError, check_finite};
use cqc_proto::sampler::{Prediction, SamplerConfig, Spacing};

#[derive(Clone, Debug)]
pub(super) struct Ddim {
    prediction: Prediction,
    clip: f32,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    level: Level,
    /// √ᾱ of the next level.
    next_signal: f32,
    /// √(1 − ᾱ − std²) of the next level.
    direction: f32,
    /// Standard deviation of the added noise; 0 adds none.
    std: f32,
}

impl Ddim {
    pub fn new(
        config: &SamplerConfig,
        steps: usize,
    ) -> Result<(Self, Vec<Evaluation>), SamplerError> {
        let alphas = alphas_cumprod(config);
        let timesteps = timesteps(config, steps)?;
        let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
        let stride = alphas.len() / steps;
        // diffusers steps down by a whole stride, which is not always the next time step of the
        // list
        let next = |i: usize| match config.timestep_spacing {
            Spacing::Quadratic => timesteps.get(i + 1).copied(),
            _ => timesteps[i].checked_sub(stride),
        };
        let mut plan = Self {
            prediction: config.prediction_type,
            clip: clip_limit(config),
            steps: Vec::new(),
        };
        for (i, &t) in timesteps.iter().enumerate() {
            let step = Step::new(alphas[t], next(i).map_or(last, |t| alphas[t]), config.eta as f32);
            let divisor = step.level.inverse_divisor(config.prediction_type);
            check_finite(i, t as f64, &[divisor, step.next_signal, step.direction, step.std])?;
            plan.steps.push(step);
        }
        Ok((plan, Evaluation::one_per_step(&timesteps)))
    }

    /// The constants of every step, if none adds noise.
    pub fn updates(&self) -> Option<Vec<DdimUpdate>> {
        let update = |s: &Step| DdimUpdate {
            signal: s.level.signal,
            noise: s.level.noise,
            next_signal: s.next_signal,
            direction: s.direction,
        };
        self.steps.iter().all(|s| s.std == 0.0).then(|| self.steps.iter().map(update).collect())
    }

    /// The largest magnitude of a predicted image.
    pub fn clip(&self) -> f32 {
        self.clip
    }

    /// Per evaluation: signal, noise, next signal, direction, deviation, and whether noise is
    /// added.
    pub fn rows(&self, noisy: bool) -> Vec<Row> {
        let kind = if noisy { 1.0 } else { 0.0 };
        let row = |s: &Step| {
            [1.0, s.level.signal, s.level.noise, s.next_signal, s.direction, s.std, 0.0, kind]
        };
        self.steps.iter().map(row).collect()
    }

    pub fn advance(&self, i: usize, x: &mut [f32], output: Output, noise: &[f32]) {
        let step = &self.steps[i];
        output.mean_onto(x, |_, x, out| {
            let image = step.level.image(self.prediction, x, out).clamp(-self.clip, self.clip);
            step.next_signal * image + step.direction * step.level.epsilon(self.prediction, x, out)
        });
        for (x, noise) in x.iter_mut().zip(noise) {
            *x += step.std * noise;
        }
    }
}

impl Step {
    fn new(alpha: f32, next: f32, eta: f32) -> Self {
        let variance = (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        let std = eta * variance.sqrt();
        let direction = (1.0 - next - std * std).sqrt();
        Self { level: Level::of_alpha(alpha), next_signal: next.sqrt(), direction, std }
    }
}

/// The largest magnitude of a predicted image.
pub(super) fn clip_limit(config: &SamplerConfig) -> f32 {
    if config.clip_sample { config.clip_sample_range } else { f32::INFINITY }
}
