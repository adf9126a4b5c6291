//! PLMS: DDIM's direction with the predicted noise of up to four evaluations mixed
//! (arXiv:2202.09778 without its Runge-Kutta start; diffusers' `PNDMScheduler` with
//! `skip_prk_steps`).
//!
//! The first step is done twice: evaluation 0 tries it, evaluation 1 looks at where it led, and the
//! step is then taken from the start with the mean of both. So there is one evaluation more than
//! there are steps (unless there is only one step).

use super::schedule::{Level, alphas_cumprod, in_training, timesteps};
use super::table::Row;
use super::{Evaluation, Output, SamplerError, check_finite};
use cqc_proto::sampler::{Prediction, SamplerConfig};

/// Outputs that are kept, and the sample before the first step.
pub(super) const KEPT: usize = 5;
const START: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Plms {
    prediction: Prediction,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    level: Level,
    x: f32,
    /// ᾱ′ − ᾱ.
    rise: f32,
    divisor: f32,
}

impl Plms {
    pub fn new(
        config: &SamplerConfig,
        steps: usize,
    ) -> Result<(Self, Vec<Evaluation>), SamplerError> {
        let alphas = alphas_cumprod(config);
        let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
        let stride = alphas.len() / steps;
        let mut timesteps = timesteps(config, steps)?;
        if let Some(&second) = timesteps.get(1) {
            timesteps.insert(1, second);
        }
        let mut plan = Self { prediction: config.prediction_type, steps: Vec::new() };
        for (i, &t) in timesteps.iter().enumerate() {
            let (from, to) = match i {
                1 => (in_training((t + stride) as f64, config.num_train_timesteps)?, Some(t)),
                _ => (t, t.checked_sub(stride)),
            };
            let step = Step::new(alphas[from], to.map_or(last, |t| alphas[t]));
            check_finite(i, t as f64, &[step.x, step.rise, step.divisor.recip()])?;
            plan.steps.push(step);
        }
        let evaluation =
            |(i, &t): (usize, &usize)| Evaluation::unscaled(t as f64, i.saturating_sub(1));
        Ok((plan, timesteps.iter().enumerate().map(evaluation).collect()))
    }

    /// Per evaluation: signal, noise, factor of the sample, rise and divisor.
    pub fn rows(&self) -> Vec<Row> {
        let row = |s: &Step| [1.0, s.level.signal, s.level.noise, s.x, s.rise, s.divisor, 0.0, 0.0];
        self.steps.iter().map(row).collect()
    }

    /// `kept` has [`KEPT`] rows as long as `x`.
    pub fn advance(&self, i: usize, x: &mut [f32], output: Output, kept: &mut [Vec<f32>]) {
        let step = &self.steps[i];
        // evaluation 1 is not remembered
        let entry = i.saturating_sub(1);
        output.mean_onto(x, |j, x, out| {
            if i != 1 {
                kept[entry % 4][j] = out;
            }
            if i == 0 {
                kept[START][j] = x;
            }
            let old = |back: usize| kept[(entry - back) % 4][j];
            let (x, out) = match i {
                0 => (x, out),
                1 => (kept[START][j], (out + old(0)) / 2.0),
                2 => (x, (3.0 * out - old(1)) / 2.0),
                3 => (x, (23.0 * out - 16.0 * old(1) + 5.0 * old(2)) / 12.0),
                _ => {
                    (x, (55.0 * out - 59.0 * old(1) + 37.0 * old(2) - 9.0 * old(3)) * (1.0 / 24.0))
                }
            };
            let epsilon = step.level.epsilon(self.prediction, x, out);
            step.x * x - step.rise * epsilon / step.divisor
        });
    }
}

impl Step {
    fn new(alpha: f32, next: f32) -> Self {
        Self {
            level: Level::of_alpha(alpha),
            x: (next / alpha).sqrt(),
            rise: next - alpha,
            divisor: alpha * (1.0 - next).sqrt() + (alpha * (1.0 - alpha) * next).sqrt(),
        }
    }
}
