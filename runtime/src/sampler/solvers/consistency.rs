//! Consistency models (arXiv:2303.01469, algorithm 1). At the lowest level the predicted image is
//! the sample itself (section 3, equation 5 with the coefficients of appendix C). New noise leads
//! from the image to the next level.

use super::super::levels::edm::input_scale;
use super::super::levels::schedule::leading;
use super::super::levels::sigmas::karras;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::image_limit;
use super::k_diffusion::IMAGE;
use cqc_proto::sampler::SamplerConfig;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let (low, high) = (config.sigma_min.unwrap_or(1.0), config.sigma_max.unwrap_or(1.0));
    let train = config.num_train_timesteps;
    // indices of levels in training; 0 is the highest
    let mut visited = match &config.timesteps {
        Some(list) => list.clone(),
        None => leading(train, steps, 0),
    };
    visited.sort_by(f64::total_cmp);
    let ramp = visited.into_iter().map(|t| t / f64::from(train - 1));
    let exact: Vec<f64> = karras(low, high, config.rho, ramp).collect();
    let sigmas: Vec<f32> = exact.iter().map(|&sigma| sigma as f32).chain([low as f32]).collect();
    let (low, high) = (low as f32, high as f32);
    let rows = exact.iter().enumerate().map(|(step, exact)| {
        let (sigma, next) = (sigmas[step], sigmas[step + 1].clamp(low, high));
        let timestep = f64::from((250.0 * exact.ln()) as f32);
        let input_scale = input_scale(config, sigma);
        let mut row = Row::new(Evaluation::scaled(timestep, input_scale, step).at(1.0, sigma));
        let (skip, out) = boundary(config, sigma, low);
        let denoised = Op::sum(IMAGE, &[(Register::Out, out), (Register::X, skip)]);
        row.push(denoised.limited(image_limit(config)));
        let mut terms = vec![(IMAGE, 1.0)];
        if steps > 1 {
            let std = (next * next - low * low).sqrt();
            terms.push((Register::Noise, config.s_noise as f32 * std));
        }
        row.push(Op::sum(Register::X, &terms));
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: high })
}

/// c_skip and c_out, which are 1 and 0 at the level `low`.
fn boundary(config: &SamplerConfig, sigma: f32, low: f32) -> (f32, f32) {
    let variance = (config.sigma_data * config.sigma_data) as f32;
    let above = sigma - low;
    let skip = variance / (above * above + variance);
    (skip, above * config.sigma_data as f32 / (sigma * sigma + variance).sqrt())
}
