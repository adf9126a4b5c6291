//! Noise levels of flow matching: x = (1 − σ)·image + σ·noise, σ from 1 down to 0.
//!
//! diffusers computes the levels in float32 (numpy); they are rounded here where it rounds them.

use super::super::SamplerError;
use super::schedule::linspace;
use super::sigmas::spread;
use cqc_proto::sampler::{FlowTime, SamplerConfig, SigmaSchedule};

/// One level per evaluation and the one after the last, and what the network is told of each.
pub(in super::super) struct FlowLevels {
    pub sigmas: Vec<f32>,
    pub timesteps: Vec<f64>,
}

impl FlowLevels {
    /// The levels of `FlowMatchEulerDiscreteScheduler`: evenly spaced time steps, moved by the
    /// shift, stretched to the terminal level, or spread in another way between the two ends.
    ///
    /// # Errors
    /// [`SamplerError::NoShift`] where the shift depends on a number of tokens that is not known.
    pub fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        let train = f64::from(config.num_train_timesteps);
        // the ends of training, moved by the static shift
        let shift = if config.dynamic_shift.is_some() { 1.0 } else { config.flow_shift };
        let moved = |sigma: f64| shift * sigma / (1.0 + (shift - 1.0) * sigma);
        let round = |sigma: f64| f64::from(sigma as f32);
        let (low, high) = (round(moved(1.0 / train)), round(moved(1.0)));
        let mut sigmas: Vec<f64> = match (&config.sigmas, &config.timesteps) {
            (Some(sigmas), _) => sigmas.iter().map(|&s| round(s)).collect(),
            (None, Some(timesteps)) => timesteps.iter().map(|&t| round(t / train)).collect(),
            (None, None) if steps == 1 => vec![high],
            (None, None) => linspace(high * train, low * train, steps)
                .map(|t| round(t) / train)
                .map(round)
                .collect(),
        };
        match &config.dynamic_shift {
            Some(dynamic) => {
                let mu = dynamic.mu.ok_or(SamplerError::NoShift)?;
                let mu = if dynamic.linear { mu } else { mu.exp() };
                sigmas.iter_mut().for_each(|s| *s = round(mu / (mu + (1.0 / *s - 1.0))));
            }
            None => sigmas.iter_mut().for_each(|s| *s = round(moved(*s))),
        }
        if let Some(terminal) = config.shift_terminal {
            let scale = (1.0 - sigmas[sigmas.len() - 1]) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|s| *s = round(1.0 - (1.0 - *s) / scale));
        }
        if config.sigma_schedule != SigmaSchedule::Plain {
            let (first, last) = (sigmas[0], sigmas[sigmas.len() - 1]);
            sigmas = spread(config.sigma_schedule, last, first, sigmas.len());
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|s| s as f32).collect();
        let mut end = 0.0;
        if config.invert_sigmas {
            sigmas.iter_mut().for_each(|s| *s = 1.0 - *s);
            end = 1.0;
        }
        let timesteps = sigmas.iter().enumerate().map(|(i, &s)| time(config, i, s)).collect();
        sigmas.push(end);
        Ok(Self { sigmas, timesteps })
    }
}

/// What the network is told of the level σ at evaluation `i`.
fn time(config: &SamplerConfig, i: usize, sigma: f32) -> f64 {
    let train = config.num_train_timesteps as f32;
    match config.flow_time {
        FlowTime::Scaled => f64::from(sigma * train),
        FlowTime::Sigma => f64::from(sigma),
        FlowTime::OneMinusSigma => f64::from(1.0 - sigma),
        FlowTime::ScaledReversed => f64::from(train - sigma * train),
        FlowTime::Index => i as f64,
    }
}
