//! Trajectory consistency distillation (arXiv:2402.19159, algorithm 4): a step of DDIM to a level
//! below the next one, s = ⌊(1 − γ)·t′⌋, and new noise that leads up to the next one. γ is `eta`;
//! with 0 no noise is added.

use super::super::levels::schedule::{Level, alphas_cumprod, distilled_timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use cqc_proto::sampler::SamplerConfig;

const IMAGE: Register = Register::Temp(0);
const EPSILON: Register = Register::Temp(1);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let alphas = alphas_cumprod(config);
    let timesteps = distilled_timesteps(config, steps)?;
    let row = |(i, &t): (usize, &usize)| {
        let next = timesteps.get(i + 1).copied();
        // in float32, as torch multiplies integers by a float
        let below = ((1.0 - config.eta) as f32 * next.unwrap_or(0) as f32) as usize;
        let (level, to) = (Level::of_alpha(alphas[t]), Level::of_alpha(alphas[below]));
        let mut row = Row::new(Evaluation::unscaled(t as f64, i).of(level));
        let (prediction, x, out) = (config.prediction_type, Register::X, Register::Out);
        row.push(level.image(prediction, x, out, IMAGE));
        row.push(level.epsilon(prediction, x, out, EPSILON));
        row.push(Op::sum(x, &[(IMAGE, to.signal), (EPSILON, to.noise)]));
        if let Some(next) = next.filter(|_| config.eta > 0.0) {
            let back = Level::of_alpha(alphas[next] / alphas[below]);
            row.push(Op::sum(x, &[(x, back.signal), (Register::Noise, back.noise)]));
        }
        row
    };
    Ok(Table { rows: timesteps.iter().enumerate().map(row).collect(), initial_scale: 1.0 })
}
