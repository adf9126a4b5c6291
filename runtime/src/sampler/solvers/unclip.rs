//! DDPM of unCLIP (arXiv:2204.06125; diffusers' `UnCLIPScheduler`): time steps are spread from the
//! first to the last of training, and the step from time step 0 adds no noise.

use super::super::levels::schedule::{Level, alphas_cumprod, betas, linspace};
use super::super::table::{LearnedStd, Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::image_limit;
use cqc_proto::sampler::{SamplerConfig, Variance};

const IMAGE: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let (alphas, betas) = (alphas_cumprod(config), betas(config));
    let mut timesteps: Vec<usize> = linspace(0.0, (alphas.len() - 1) as f64, steps)
        .map(|t| t.round_ties_even() as usize)
        .collect();
    timesteps.reverse();
    if steps == 1 {
        timesteps[0] = alphas.len() - 1;
    }
    let row = |(i, &t): (usize, &usize)| {
        let (alpha, next) = (alphas[t], timesteps.get(i + 1).map_or(1.0, |&t| alphas[t]));
        let (noise, next_noise) = (1.0 - alpha, 1.0 - next);
        // a step of one training step uses its β, because the quotient would be rounded
        let is_single = timesteps.get(i + 1).map_or(t == 0, |&next| next + 1 == t);
        let beta = if is_single { betas[t] } else { 1.0 - alpha / next };
        let mut row = Row::new(Evaluation::unscaled(t as f64, i).of(Level::of_alpha(alpha)));
        let x = Register::X;
        let image = Level::of_alpha(alpha).image(config.prediction_type, x, Register::Out, IMAGE);
        row.push(image.limited(image_limit(config)));
        let of_image = next.sqrt() * beta / noise;
        let of_x = (1.0 - beta).sqrt() * next_noise / noise;
        row.push(Op::sum(x, &[(IMAGE, of_image), (x, of_x)]));
        let variance = next_noise / noise * beta;
        if t > 0 {
            row.push(match config.variance_type {
                Variance::LearnedRange => {
                    Op::LearnedNoise(LearnedStd::Range { low: variance.ln(), high: beta.ln() })
                }
                _ => {
                    let std = (0.5 * variance.max(1e-20).ln()).exp();
                    Op::sum(x, &[(x, 1.0), (Register::Noise, std)])
                }
            });
        }
        row
    };
    Ok(Table { rows: timesteps.iter().enumerate().map(row).collect(), initial_scale: 1.0 })
}
