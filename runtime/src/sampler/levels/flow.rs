//! Noise levels of flow matching: x = (1 − σ)·image + σ·noise, with σ from 1 down to 0.
//!
//! diffusers computes its own schedules in float64 and given lists in float32 (numpy). The values
//! here are rounded where diffusers rounds them.

use super::super::SamplerError;
use super::schedule::linspace;
use super::sigmas::spread;
use cqc_proto::sampler::{FlowSchedule, FlowTime, SamplerConfig, SigmaSchedule};
use std::f64::consts::FRAC_PI_2;

/// The level of each evaluation and the one after the last, and the time step that the network is
/// told at each evaluation.
pub(in super::super) struct FlowLevels {
    pub sigmas: Vec<f32>,
    pub timesteps: Vec<f64>,
}

impl FlowLevels {
    /// The levels of `FlowMatchEulerDiscreteScheduler`: evenly spaced time steps, shifted,
    /// stretched to the terminal level, or spread by another schedule between the two ends.
    ///
    /// # Errors
    /// [`SamplerError::NoShift`] if the shift depends on an unknown number of tokens.
    pub fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        let given = config.sigmas.is_some() || config.timesteps.is_some();
        let round = |sigma: f64| if given { f64::from(sigma as f32) } else { sigma };
        let train = f64::from(config.num_train_timesteps);
        // the ends of training, moved by the static shift
        let shift = if config.dynamic_shift.is_some() { 1.0 } else { config.flow_shift };
        let moved = |sigma: f64| round(round(shift * sigma) / round(1.0 + (shift - 1.0) * sigma));
        let mut sigmas: Vec<f64> = match (&config.sigmas, &config.timesteps) {
            (Some(sigmas), _) => sigmas.iter().map(|&s| round(s)).collect(),
            (None, Some(timesteps)) => timesteps.iter().map(|&t| round(round(t) / train)).collect(),
            (None, None) => scheduled(config.flow_schedule, train, moved, steps),
        };
        match &config.dynamic_shift {
            Some(dynamic) => {
                let mu = dynamic.mu.ok_or(SamplerError::NoShift)?;
                let mu = if dynamic.linear { mu } else { mu.exp() };
                sigmas.iter_mut().for_each(|s| *s = round(mu / round(mu + round(1.0 / *s - 1.0))));
            }
            None => sigmas.iter_mut().for_each(|s| *s = moved(*s)),
        }
        if let Some(terminal) = config.shift_terminal {
            let scale = round((1.0 - sigmas[sigmas.len() - 1]) / (1.0 - terminal));
            sigmas.iter_mut().for_each(|s| *s = round(1.0 - round(round(1.0 - *s) / scale)));
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
        let timesteps = match &config.timesteps {
            // diffusers passes the given time steps on, even if the levels have been changed
            Some(list) if config.flow_time == FlowTime::Scaled && !config.invert_sigmas => {
                list.iter().map(|&t| f64::from(t as f32)).collect()
            }
            _ => sigmas.iter().enumerate().map(|(i, &s)| time(config, i, s)).collect(),
        };
        sigmas.push(end);
        Ok(Self { sigmas, timesteps })
    }
}

/// `steps` levels, the noisiest first, before they are shifted. `moved` is the static shift.
fn scheduled(
    schedule: FlowSchedule,
    train: f64,
    moved: impl Fn(f64) -> f64,
    steps: usize,
) -> Vec<f64> {
    if schedule == FlowSchedule::Trained {
        // both ends are float32 in diffusers
        let end = |sigma: f64| f64::from(moved(sigma) as f32) * train;
        return linspace(end(1.0), end(1.0 / train), steps).map(|t| t / train).collect();
    }
    let (count, half) = (steps as f64, (steps / 2) as f64);
    let data_share = |i: usize| {
        let (i, u) = (i as f64, i as f64 / count);
        match schedule {
            FlowSchedule::Trained | FlowSchedule::Even => u,
            FlowSchedule::Sway(s) => u + s * ((FRAC_PI_2 * u).cos() - 1.0 + u),
            FlowSchedule::TimeShift(s) => s * u / (1.0 + (s - 1.0) * u),
            FlowSchedule::LinearQuadratic(threshold) if i < half => i * threshold / half,
            // a parabola that continues the line with the same slope and would reach 1 at the end
            FlowSchedule::LinearQuadratic(threshold) => {
                let (start, slope) =
                    if half > 0.0 { (threshold, threshold / half) } else { (0.0, 0.0) };
                let (rest, by) = (count - half, i - half);
                start + slope * by + (1.0 - start - slope * rest) * (by / rest).powi(2)
            }
        }
    };
    (0..steps).map(|i| 1.0 - data_share(i)).collect()
}

/// The time step that the network is told at evaluation `i` with level σ.
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
