//! DDIM (arXiv:2010.02502): a step from the predicted image directly to the next noise level, with
//! a share `eta` of DDPM's noise.

use super::super::levels::schedule::{alphas_cumprod, timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{DdimUpdate, Evaluation, Level, SamplerError};
use super::image_limit;
use cqc_proto::sampler::{SamplerConfig, Spacing};

const IMAGE: Register = Register::Temp(0);
const EPSILON: Register = Register::Temp(1);

#[derive(Clone, Debug)]
struct Step {
    level: Level,
    /// √ᾱ of the next level.
    next_signal: f32,
    /// √(1 − ᾱ − std²) of the next level.
    direction: f32,
    /// Standard deviation of the added noise.
    std: f32,
}

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let (timesteps, steps) = trajectory(config, steps)?;
    let rows = timesteps.iter().zip(&steps).enumerate().map(|(i, (&t, step))| {
        let mut row =
            Row::new(Evaluation::unscaled(t as f64, i).at(step.level.signal, step.level.noise));
        let (prediction, x, out) = (config.prediction_type, Register::X, Register::Out);
        let image = step.level.image(prediction, x, out, IMAGE);
        row.push(image.limited(image_limit(config)));
        row.push(step.level.epsilon(prediction, x, out, EPSILON));
        row.push(Op::sum(x, &[(IMAGE, step.next_signal), (EPSILON, step.direction)]));
        if config.eta > 0.0 {
            row.push(Op::sum(x, &[(x, 1.0), (Register::Noise, step.std)]));
        }
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: 1.0 })
}

/// The constants of every step, or `None` if a step adds noise.
pub fn updates(config: &SamplerConfig, steps: usize) -> Option<Vec<DdimUpdate>> {
    let update = |s: &Step| DdimUpdate {
        signal: s.level.signal,
        noise: s.level.noise,
        next_signal: s.next_signal,
        direction: s.direction,
    };
    let (_, steps) = trajectory(config, steps).ok()?;
    steps.iter().all(|s| s.std == 0.0).then(|| steps.iter().map(update).collect())
}

fn trajectory(
    config: &SamplerConfig,
    steps: usize,
) -> Result<(Vec<usize>, Vec<Step>), SamplerError> {
    let alphas = alphas_cumprod(config);
    let timesteps = timesteps(config, steps)?;
    let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
    let stride = alphas.len() / steps;
    // diffusers steps down by a whole stride, which is not always the next time step of the list
    let next = |i: usize| match config.timestep_spacing {
        _ if config.timesteps.is_some() => timesteps.get(i + 1).copied(),
        Spacing::Quadratic => timesteps.get(i + 1).copied(),
        _ => timesteps[i].checked_sub(stride),
    };
    let step = |(i, &t): (usize, &usize)| {
        Step::new(alphas[t], next(i).map_or(last, |t| alphas[t]), config.eta as f32)
    };
    let steps = timesteps.iter().enumerate().map(step).collect();
    Ok((timesteps, steps))
}

impl Step {
    fn new(alpha: f32, next: f32, eta: f32) -> Self {
        let variance = (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        let std = eta * variance.sqrt();
        let direction = (1.0 - next - std * std).sqrt();
        Self { level: Level::of_alpha(alpha), next_signal: next.sqrt(), direction, std }
    }
}
