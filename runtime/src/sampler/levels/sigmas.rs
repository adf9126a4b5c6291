//! Noise levels σ = √((1−ᾱ)/ᾱ) and their time steps, for the kinds that integrate over σ (Euler).
//!
//! They are rounded as in diffusers: training levels in float32, computations with them in float64,
//! results in float32.
//! result in float32.

use super::super::table::{Op, Register};
use super::schedule::{alphas_cumprod, leading, linspace, stride, trailing};
use cqc_proto::sampler::{
    FinalSigma, Prediction, SamplerConfig, SamplerKind, SigmaSchedule, Spacing,
};

/// The level of each evaluation and the one after the last, and the time step of each evaluation.
pub(in super::super) struct Sigmas {
    pub sigmas: Vec<f32>,
    pub timesteps: Vec<f64>,
}

/// The factor of the network's input, 1/√(σ² + 1), for a sample image + σ·ε.
pub(in super::super) fn input_scale(sigma: f32) -> f32 {
    (sigma * sigma + 1.0).sqrt().recip()
}

/// Standard deviation of a sample image + σ·ε before the first step.
pub(in super::super) fn initial_scale(config: &SamplerConfig, sigmas: &[f32]) -> f32 {
    let highest = sigmas.iter().copied().fold(0.0, f32::max);
    match config.timestep_spacing {
        Spacing::Leading => (highest * highest + 1.0).sqrt(),
        _ => highest,
    }
}

/// `to` = the image that follows from the network's output `out` at `x` = image + `sigma`·ε.
pub(in super::super) fn image_over_sigma(
    prediction: Prediction,
    sigma: f32,
    x: Register,
    out: Register,
    to: Register,
) -> Op {
    let square = sigma * sigma + 1.0;
    match prediction {
        Prediction::Epsilon => Op::sum(to, &[(x, 1.0), (out, -sigma)]),
        Prediction::VPrediction => {
            Op::sum(to, &[(out, -sigma / square.sqrt())]).plus_quotient(x, 1.0, square)
        }
        Prediction::Sample => Op::sum(to, &[(out, 1.0)]),
        // `SamplerConfig::validate` refuses these; the levels of a straight path are of another
        // kind
        Prediction::Flow | Prediction::FlowToData => Op::sum(to, &[(out, f32::NAN)]),
    }
}

/// The level after the last step.
pub(super) fn final_sigma(config: &SamplerConfig, trained: &[f32]) -> f32 {
    match config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => trained[0],
    }
}

/// The level of every training step.
pub(super) fn trained_sigmas(config: &SamplerConfig) -> Vec<f32> {
    let mut alphas = alphas_cumprod(config);
    if config.rescale_betas_zero_snr {
        let last = alphas.len() - 1;
        alphas[last] = 2f32.powi(-24); // pure noise would be σ = ∞
    }
    alphas.into_iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// The visited time steps, the noisiest first. With `linspace` they may be fractions.
pub(super) fn euler_timesteps(config: &SamplerConfig, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    // diffusers' class for this kind does not round them
    let is_rounded = config.kind != SamplerKind::DpmSde;
    let round = |t: f64| if is_rounded { f64::from(t as f32) } else { t };
    let mut ascending = match config.timestep_spacing {
        Spacing::Leading => leading(train, steps, config.steps_offset),
        Spacing::Trailing => trailing(train.into(), stride(train, steps), steps),
        _ => linspace(0.0, f64::from(train - 1), steps).map(round).collect(),
    };
    ascending.reverse();
    ascending
}

/// The level at `t`, interpolated between two training steps. `t` is from 0 to the last index.
pub(super) fn interpolate(trained: &[f32], t: f64) -> f64 {
    let low = t as usize;
    let Some(&high) = trained.get(low + 1) else { return trained[low].into() };
    let (from, to) = (f64::from(trained[low]), f64::from(high));
    (to - from) * (t - low as f64) + from
}

/// `steps` levels from `high` down to `low`, spread by `schedule`.
///
/// # Panics
/// For [`SigmaSchedule::Plain`] and the schedules that do not lie between given ends.
pub(in super::super) fn spread(
    schedule: SigmaSchedule,
    low: f64,
    high: f64,
    steps: usize,
) -> Vec<f64> {
    match schedule {
        SigmaSchedule::Karras => karras(low, high, 7.0, linspace(0.0, 1.0, steps)).collect(),
        SigmaSchedule::Exponential => linspace(high.ln(), low.ln(), steps).map(f64::exp).collect(),
        SigmaSchedule::Beta => beta(low, high, steps),
        SigmaSchedule::Plain
        | SigmaSchedule::LuLambdas
        | SigmaSchedule::Flow
        | SigmaSchedule::KarrasFlow => {
            unreachable!("decided before")
        }
    }
}

/// Levels evenly spaced in σ^(1/ρ), from `high` for a `ramp` of 0 to `low` for a `ramp` of 1
/// (arXiv:2206.00364, equation 5).
pub(in super::super) fn karras(
    low: f64,
    high: f64,
    rho: f64,
    ramp: impl Iterator<Item = f64>,
) -> impl Iterator<Item = f64> {
    let (low, high) = (low.powf(1.0 / rho), high.powf(1.0 / rho));
    ramp.map(move |ramp| (high + ramp * (low - high)).powf(rho))
}

/// Levels at the quantiles of a beta distribution with α = β = 0.6, the highest first
/// (arXiv:2407.12173).
fn beta(low: f64, high: f64, steps: usize) -> Vec<f64> {
    let quantile = |t: f64| match t {
        0.0 | 1.0 => t,
        _ => quantile_of_beta(t),
    };
    linspace(0.0, 1.0, steps).map(|t| low + quantile(1.0 - t) * (high - low)).collect()
}

/// The inverse of the regularised incomplete beta function I(x; 0.6, 0.6), found by bisection to
/// the last few bits.
fn quantile_of_beta(p: f64) -> f64 {
    use special::Beta;
    let ln_beta = 0.6_f64.ln_beta(0.6);
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if middle.inc_beta(0.6, 0.6, ln_beta) < p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// ln σ of every training step.
pub(super) fn log_levels(trained: &[f32]) -> Vec<f32> {
    trained.iter().map(|&sigma| f64::from(sigma).ln() as f32).collect()
}

/// The time step, possibly a fraction, of the level with the logarithm `log`. `logs` are those of
/// the training levels.
pub(super) fn timestep_of(log: f64, logs: &[f32]) -> f64 {
    let low = logs
        .partition_point(|&trained| f64::from(trained) <= log)
        .saturating_sub(1)
        .min(logs.len() - 2);
    let width = f64::from(logs[low] - logs[low + 1]);
    let w = ((f64::from(logs[low]) - log) / width).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * (low + 1) as f64
}
