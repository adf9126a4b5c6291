//! Euler's method on the probability-flow ODE over σ (arXiv:2206.00364, algorithm 1 without churn).
//!
//! Its sample is image + σ·ε, not scaled to variance 1; the network sees it divided by √(σ² + 1).

use super::sigmas::Sigmas;
use super::table::Row;
use super::{Evaluation, Output, SamplerError, check_finite};
use cqc_proto::sampler::{Prediction, SamplerConfig, Spacing};

#[derive(Clone, Debug)]
pub(super) struct Euler {
    prediction: Prediction,
    sigmas: Vec<f32>,
}

impl Euler {
    pub fn new(
        config: &SamplerConfig,
        steps: usize,
    ) -> Result<(Self, Vec<Evaluation>), SamplerError> {
        let Sigmas { sigmas, timesteps } = Sigmas::new(config, steps)?;
        let mut evaluations = Vec::with_capacity(steps);
        for (step, (&timestep, &sigma)) in timesteps.iter().zip(&sigmas).enumerate() {
            check_finite(step, timestep, &[sigma, sigma.recip(), sigma * sigma, sigmas[step + 1]])?;
            let input_scale = (sigma * sigma + 1.0).sqrt().recip();
            evaluations.push(Evaluation { timestep, input_scale, step });
        }
        Ok((Self { prediction: config.prediction_type, sigmas }, evaluations))
    }

    /// Standard deviation of the sample before the first step.
    pub fn initial_scale(&self, spacing: Spacing) -> f32 {
        let highest = self.sigmas.iter().copied().fold(0.0, f32::max);
        match spacing {
            Spacing::Leading => (highest * highest + 1.0).sqrt(),
            _ => highest,
        }
    }

    /// σ, the next σ, σ² + 1, and the factor of a velocity.
    fn numbers(&self, i: usize) -> [f32; 4] {
        let (sigma, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let square = sigma * sigma + 1.0;
        [sigma, next, square, -sigma / square.sqrt()]
    }

    /// Per evaluation: σ, the step to the next, σ² + 1, and the factor of a velocity.
    pub fn rows(&self) -> Vec<Row> {
        let row = |i: usize| {
            let [sigma, next, square, v_scale] = self.numbers(i);
            [1.0, sigma, 0.0, next - sigma, square, v_scale, 0.0, 0.0]
        };
        (0..self.sigmas.len() - 1).map(row).collect()
    }

    pub fn advance(&self, i: usize, x: &mut [f32], output: Output) {
        let [sigma, next, square, v_scale] = self.numbers(i);
        let image = |x: f32, out: f32| match self.prediction {
            Prediction::Epsilon => x - sigma * out,
            Prediction::VPrediction => out * v_scale + x / square,
            Prediction::Sample => out,
        };
        output.mean_onto(x, |_, x, out| x + (x - image(x, out)) / sigma * (next - sigma));
    }
}
