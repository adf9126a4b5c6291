//! Levels and preconditioning of EDM (arXiv:2206.00364, table 1). The solver does around the
//! network what a model of EDM does inside: D(x) = c_skip·x + c_out·F(c_in·x, c_noise).

use super::super::table::{Op, Register};
use super::schedule::{linspace, linspace_f32};
use super::sigmas::{Sigmas, karras};
use cqc_proto::sampler::{FinalSigma, Prediction, SamplerConfig, SamplerKind, SigmaSchedule};
use std::f32::consts::PI;

impl Sigmas {
    /// Levels between the two ends of the configuration, and the time steps that the network is
    /// told: ¼ ln σ, or 2/π·atan σ for `cosine-dpm`.
    pub fn edm(config: &SamplerConfig, steps: usize) -> Self {
        let (low, high) = (config.sigma_min.unwrap_or(1.0), config.sigma_max.unwrap_or(1.0));
        let is_euler = config.kind == SamplerKind::EdmEuler;
        let mut sigmas: Vec<f32> = match config.sigma_schedule {
            SigmaSchedule::Exponential => exponential_f32(low, high, steps),
            _ if is_euler => {
                let ramp = linspace(0.0, 1.0, steps);
                karras(low, high, config.rho, ramp).map(|sigma| sigma as f32).collect()
            }
            _ => karras_f32(low, high, config.rho, steps),
        };
        let timesteps = sigmas.iter().map(|sigma| match config.kind {
            SamplerKind::CosineDpm => f64::from(sigma.atan() / PI * 2.0),
            _ => f64::from(0.25 * sigma.ln()),
        });
        let timesteps = timesteps.collect();
        sigmas.push(match config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin if is_euler => sigmas[steps - 1],
            FinalSigma::SigmaMin => low as f32,
        });
        Self { sigmas, timesteps }
    }
}

/// Levels evenly spaced in ln σ. A single level is the lowest one, because `torch.linspace` counts
/// from there.
fn exponential_f32(low: f64, high: f64, steps: usize) -> Vec<f32> {
    let ascending = linspace_f32(low.ln(), high.ln(), steps);
    ascending.into_iter().rev().map(|log| f64::from(log).exp() as f32).collect()
}

/// Levels evenly spaced in σ^(1/ρ), in float32.
fn karras_f32(low: f64, high: f64, rho: f64, steps: usize) -> Vec<f32> {
    let (low, high) = (low.powf(1.0 / rho), high.powf(1.0 / rho));
    let ramp = linspace_f32(0.0, 1.0, steps);
    let root = |ramp: f32| high as f32 + ramp * (low - high) as f32;
    ramp.into_iter().map(|ramp| f64::from(root(ramp)).powf(rho) as f32).collect()
}

/// The factor of the network's input, 1/√(σ² + data²), for a sample image + σ·ε.
pub(in super::super) fn input_scale(config: &SamplerConfig, sigma: f32) -> f32 {
    (sigma * sigma + variance(config)).sqrt().recip()
}

/// `to` = the image that follows from the network's output at x = image + `sigma`·ε.
pub(in super::super) fn image(config: &SamplerConfig, sigma: f32, to: Register) -> Op {
    let (data, sum) = (config.sigma_data as f32, sigma * sigma + variance(config));
    let sign = if config.prediction_type == Prediction::VPrediction { -1.0 } else { 1.0 };
    let (skip, out) = (variance(config) / sum, sign * sigma * data / sum.sqrt());
    Op::sum(to, &[(Register::X, skip), (Register::Out, out)])
}

fn variance(config: &SamplerConfig) -> f32 {
    (config.sigma_data * config.sigma_data) as f32
}

/// Standard deviation of the sample before the first step.
pub(in super::super) fn initial_scale(config: &SamplerConfig) -> f32 {
    let highest = config.sigma_max.unwrap_or(1.0);
    (highest * highest + 1.0).sqrt() as f32
}
