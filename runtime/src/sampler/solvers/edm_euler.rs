//! Euler's method over σ with the preconditioning of EDM around the network (arXiv:2206.00364,
//! algorithm 1 without churn).

use super::super::levels::edm::{image, initial_scale, input_scale};
use super::super::levels::sigmas::Sigmas;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::k_diffusion::{IMAGE, SLOPE};
use cqc_proto::sampler::SamplerConfig;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::edm(config, steps);
    let x = Register::X;
    let rows = timesteps.iter().enumerate().map(|(step, &timestep)| {
        let (sigma, next) = (sigmas[step], sigmas[step + 1]);
        let input_scale = input_scale(config, sigma);
        let mut row = Row::new(Evaluation::scaled(timestep, input_scale, step).at(1.0, sigma));
        row.push(image(config, sigma, IMAGE));
        row.push(Op::sum(SLOPE, &[(x, 1.0), (IMAGE, -1.0)]).over(sigma));
        row.push(Op::sum(x, &[(x, 1.0), (SLOPE, next - sigma)]));
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: initial_scale(config) })
}
