//! The training noise schedule ᾱ, and the visited time steps.
//!
//! diffusers computes ᾱ in float32 and then differences such as 1 − ᾱ and 1 − ᾱ/ᾱ′, in which the
//! rounding of ᾱ shows in the fourth digit. To arrive at the same image, the scalars here are
//! rounded where diffusers (torch and numpy) rounds them.

pub(in super::super) use super::super::Level;
use super::super::SamplerError;
use super::super::table::{Op, Register};
use cqc_proto::sampler::{Betas, Prediction, SamplerConfig, Spacing};
use std::f64::consts::FRAC_PI_2;

/// ᾱ of every training step.
pub(in super::super) fn alphas_cumprod(config: &SamplerConfig) -> Vec<f32> {
    let mut betas = betas(config);
    if config.rescale_betas_zero_snr {
        betas = rescaled_to_zero_snr(&betas);
    }
    products(&betas)
}

/// Running product of 1 − β, computed in f64, with each result rounded to f32.
fn products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0;
    let next = |&beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// β of every training step, before any rescaling.
pub(in super::super) fn betas(config: &SamplerConfig) -> Vec<f32> {
    let count = config.num_train_timesteps as usize;
    match config.betas {
        Betas::Linear { start, end } => linspace_f32(start, end, count),
        Betas::ScaledLinear { start, end } => linspace_f32(start.sqrt(), end.sqrt(), count)
            .into_iter()
            .map(|root| root * root)
            .collect(),
        Betas::SquaredcosCapV2 => {
            let alpha = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
            capped(count, alpha)
        }
        Betas::Exp => capped(count, |t| (t * -12.0).exp()),
        Betas::Sigmoid { start, end } => linspace_f32(-6.0, 6.0, count)
            .into_iter()
            .map(|x| 1.0 / (1.0 + (-x).exp()) * (end - start) as f32 + start as f32)
            .collect(),
        Betas::Laplace => capped(count, laplace_alpha),
        Betas::Trained(ref betas) => betas.clone(),
    }
}

fn laplace_alpha(t: f64) -> f64 {
    let log_snr = -0.5 * (0.5 - t).signum() * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
    let snr = log_snr.exp();
    (snr / (1.0 + snr)).sqrt()
}

/// The β of an ᾱ that is a function of time from 0 to 1. Each is at most 0.999.
fn capped(count: usize, alpha: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha(i as f64 / count as f64);
    (0..count).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
}

/// `torch.linspace` in f32: counted from the nearer end, with fused multiply-adds.
pub(in super::super) fn linspace_f32(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    let at = |i: usize| match i < count / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((count - 1 - i) as f32, end),
    };
    (0..count).map(at).collect()
}

/// Rescales √ᾱ so that the last value is 0 and the first one does not change (arXiv:2305.08891,
/// algorithm 1), and returns the corresponding β.
fn rescaled_to_zero_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let squares = roots.iter().map(|root| (root - last) * scale).map(|root| root * root);
    let mut before = 1.0;
    let beta = |square: f32| 1.0 - square / std::mem::replace(&mut before, square);
    squares.map(beta).collect()
}

/// The visited time steps, the noisiest first, for the kinds that step from one ᾱ to another.
///
/// # Errors
/// [`SamplerError::TimestepOutside`], for example if `steps_offset` leads beyond the training
/// steps.
pub(in super::super) fn timesteps(
    config: &SamplerConfig,
    steps: usize,
) -> Result<Vec<usize>, SamplerError> {
    let train = config.num_train_timesteps;
    if let Some(list) = &config.timesteps {
        return list.iter().map(|&t| in_training(t, train)).collect();
    }
    let ascending: Vec<f64> = match config.timestep_spacing {
        Spacing::Leading => leading(train, steps, config.steps_offset),
        Spacing::Trailing => trailing(train.into(), stride(train, steps), steps),
        Spacing::Linspace => {
            linspace(0.0, f64::from(train - 1), steps).map(f64::round_ties_even).collect()
        }
        Spacing::Quadratic => linspace(0.0, (f64::from(train) * 0.8).sqrt(), steps)
            .map(|root| (root * root).floor())
            .collect(),
    };
    ascending.into_iter().rev().map(|t| in_training(t, train)).collect()
}

/// Time steps of a distilled model, the noisiest first: an evenly spread subset of those with which
/// it was distilled.
///
/// # Errors
/// [`SamplerError::TimestepOutside`] if a listed time step is outside of training.
pub(in super::super) fn distilled_timesteps(
    config: &SamplerConfig,
    steps: usize,
) -> Result<Vec<usize>, SamplerError> {
    if config.timesteps.is_some() {
        return timesteps(config, steps);
    }
    let original = config.original_inference_steps as usize;
    let stride = config.num_train_timesteps as usize / original;
    let spacing = original as f64 / steps as f64;
    // the i-th of `original`, counted from the noisiest
    let at = |i: usize| (original - (i as f64 * spacing) as usize) * stride - 1;
    Ok((0..steps).map(at).collect())
}

/// Converts `t` to an index into the training steps.
pub(in super::super) fn in_training(t: f64, train: u32) -> Result<usize, SamplerError> {
    if (0.0..f64::from(train)).contains(&t) {
        Ok(t as usize)
    } else {
        Err(SamplerError::TimestepOutside { timestep: t, train })
    }
}

/// The number of training steps per sampler step, as a real number.
pub(in super::super) fn stride(train: u32, steps: usize) -> f64 {
    f64::from(train) / steps as f64
}

/// `count` multiples of ⌊`train` / `count`⌋, plus `offset`, in ascending order.
pub(in super::super) fn leading(train: u32, count: usize, offset: u32) -> Vec<f64> {
    let stride = train as usize / count;
    (0..count).map(|i| (i * stride) as f64 + f64::from(offset)).collect()
}

/// The numbers from `last` down in steps of `stride`, rounded, minus one. They are in ascending
/// order, and at most `limit`.
///
/// diffusers lets `numpy.arange` find the end. For some numbers of steps (61 of 1000), rounding
/// makes it return one time step too many, −1, which `limit` cuts off.
pub(in super::super) fn trailing(last: f64, stride: f64, limit: usize) -> Vec<f64> {
    let count = ((last / stride).ceil() as usize).min(limit);
    let stride = (last - stride) - last; // arange measures its stride between the first two values
    (0..count).rev().map(|i| (last + i as f64 * stride).round_ties_even() - 1.0).collect()
}

/// `numpy.linspace`.
pub(in super::super) fn linspace(start: f64, end: f64, count: usize) -> impl Iterator<Item = f64> {
    let step = (end - start) / (count - 1) as f64;
    (0..count).map(move |i| match i {
        0 => start,
        _ if i + 1 == count => end,
        _ => i as f64 * step + start,
    })
}

impl Level {
    pub(in super::super) fn of_alpha(alpha_cumprod: f32) -> Self {
        Self { signal: alpha_cumprod.sqrt(), noise: (1.0 - alpha_cumprod).sqrt() }
    }

    /// `to` = the image that follows from the network's output `out` at `x`.
    pub(in super::super) fn image(
        self,
        prediction: Prediction,
        x: Register,
        out: Register,
        to: Register,
    ) -> Op {
        match prediction {
            Prediction::Epsilon => Op::sum(to, &[(x, 1.0), (out, -self.noise)]).over(self.signal),
            Prediction::VPrediction => Op::sum(to, &[(x, self.signal), (out, -self.noise)]),
            Prediction::Sample => Op::sum(to, &[(out, 1.0)]),
            Prediction::Flow => Op::sum(to, &[(x, 1.0), (out, -self.noise)]),
            Prediction::FlowToData => Op::sum(to, &[(x, 1.0), (out, self.noise)]),
        }
    }

    /// `to` = the noise that follows from the network's output `out` at `x`.
    pub(in super::super) fn epsilon(
        self,
        prediction: Prediction,
        x: Register,
        out: Register,
        to: Register,
    ) -> Op {
        match prediction {
            Prediction::Epsilon => Op::sum(to, &[(out, 1.0)]),
            Prediction::VPrediction => Op::sum(to, &[(out, self.signal), (x, self.noise)]),
            Prediction::Sample => Op::sum(to, &[(x, 1.0), (out, -self.signal)]).over(self.noise),
            Prediction::Flow => Op::sum(to, &[(x, 1.0), (out, self.signal)]),
            Prediction::FlowToData => Op::sum(to, &[(x, 1.0), (out, -self.signal)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadratic_subset_is_dense_near_the_image_and_repeats() {
        let config =
            SamplerConfig { timestep_spacing: Spacing::Quadratic, ..SamplerConfig::default() };
        assert_eq!(timesteps(&config, 5).unwrap(), [800, 450, 200, 50, 0]);
        let many = timesteps(&config, 100).unwrap();
        assert_eq!((many[0], &many[95..]), (800, &[1, 0, 0, 0, 0][..]));
    }

    #[test]
    fn trailing_never_reaches_below_zero() {
        let config =
            SamplerConfig { timestep_spacing: Spacing::Trailing, ..SamplerConfig::default() };
        for steps in 1..=1000 {
            let steps_found = timesteps(&config, steps).unwrap();
            assert_eq!((steps_found.len(), steps_found[0]), (steps, 999));
        }
    }

    #[test]
    fn an_offset_beyond_training_is_refused() {
        let config = SamplerConfig { steps_offset: 1, ..SamplerConfig::default() };
        let error = timesteps(&config, 1000).unwrap_err();
        assert!(matches!(error, SamplerError::TimestepOutside { timestep: 1000.0, train: 1000 }));
    }
}
