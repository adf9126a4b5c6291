//! Levels of the samplers that come from k-diffusion. They are those of the visited time steps,
//! spread between two ends, or given as a list.

use super::super::SamplerError;
use super::schedule::{in_training, linspace_f32};
use super::sigmas::{
    Sigmas, euler_timesteps, final_sigma, interpolate, log_levels, spread, timestep_of,
    trained_sigmas,
};
use cqc_proto::sampler::{
    Interpolation, Prediction, SamplerConfig, SamplerKind, SigmaSchedule, TimestepType,
};

impl Sigmas {
    /// The levels and time steps of `config`.
    ///
    /// # Errors
    /// [`SamplerError::TimestepOutside`].
    pub fn k_diffusion(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        let trained = trained_sigmas(config);
        let logs = log_levels(&trained);
        if let Some(list) = &config.sigmas {
            let sigmas: Vec<f32> = list.iter().map(|&sigma| sigma as f32).collect();
            let timesteps = sigmas[..steps].iter().map(|&s| timestep_of_f32(s, &logs)).collect();
            return Ok(Self { sigmas, timesteps }.told(config));
        }
        let mut timesteps: Vec<f64> = match &config.timesteps {
            Some(list) => list.iter().map(|&t| f64::from(t as f32)).collect(),
            None => euler_timesteps(config, steps),
        };
        for &t in &timesteps {
            in_training(t, config.num_train_timesteps)?;
        }
        let mut sigmas: Vec<f64> = match config.interpolation_type {
            Interpolation::Linear => timesteps.iter().map(|&t| interpolate(&trained, t)).collect(),
            Interpolation::LogLinear => {
                let (high, low) = (logs[logs.len() - 1].into(), logs[0].into());
                let levels = linspace_f32(high, low, steps + 1);
                levels.into_iter().map(|log| f64::from(f64::from(log).exp() as f32)).collect()
            }
        };
        if config.sigma_schedule != SigmaSchedule::Plain {
            let low = config.sigma_min.unwrap_or(sigmas[sigmas.len() - 1]);
            let high = config.sigma_max.unwrap_or(sigmas[0]);
            sigmas = spread(config.sigma_schedule, low, high, steps);
            let log = |sigma: f64| sigma.max(1e-10).ln();
            timesteps = sigmas.iter().map(|&s| timestep_of(log(s), &logs)).collect();
            if config.sigma_schedule == SigmaSchedule::Karras
                && matches!(config.kind, SamplerKind::Kdpm2 | SamplerKind::Kdpm2Ancestral)
            {
                timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
            }
        }
        if sigmas.len() == steps {
            sigmas.push(final_sigma(config, &trained).into());
        }
        let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        Ok(Self { sigmas, timesteps }.told(config))
    }

    /// Converts the time steps to the form that the network is told: a float32, or ¼ ln σ.
    fn told(mut self, config: &SamplerConfig) -> Self {
        let continuous = config.timestep_type == TimestepType::Continuous
            && config.prediction_type == Prediction::VPrediction;
        for (t, sigma) in self.timesteps.iter_mut().zip(&self.sigmas) {
            *t = f64::from(if continuous { 0.25 * sigma.ln() } else { *t as f32 });
        }
        self
    }
}

/// The levels halfway in ln σ between each level of `from` and the one of `to`, and their time
/// steps.
pub(in super::super) fn halfway(
    config: &SamplerConfig,
    from: &[f32],
    to: &[f32],
) -> Vec<(f32, f64)> {
    let logs = log_levels(&trained_sigmas(config));
    let middle = |(&from, &to): (&f32, &f32)| {
        // the logarithm of 0 is not finite, and diffusers uses 0 as the middle
        let sigma = if to == 0.0 { 0.0 } else { lerp_half(from.ln(), to.ln()).exp() };
        (sigma, timestep_of_f32(sigma, &logs))
    };
    from.iter().zip(to).map(middle).collect()
}

/// [`timestep_of`] in float32, for the places where diffusers computes in it.
fn timestep_of_f32(sigma: f32, logs: &[f32]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = logs.partition_point(|&trained| trained <= log).saturating_sub(1);
    let low = low.min(logs.len() - 2);
    let w = ((logs[low] - log) / (logs[low] - logs[low + 1])).clamp(0.0, 1.0);
    f64::from((f64::from(1.0 - w) * low as f64 + f64::from(w) * (low + 1) as f64) as f32)
}

/// `torch.lerp` with a weight of ½.
fn lerp_half(from: f32, to: f32) -> f32 {
    to - (to - from) * 0.5
}
