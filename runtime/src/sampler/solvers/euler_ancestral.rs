//! Euler steps with new noise in every step, the ancestral sampling of k-diffusion. The division of
//! a step is the posterior of DDPM over σ (arXiv:2006.11239, equation 7).

use super::super::SamplerError;
use super::super::levels::sigmas::{Sigmas, initial_scale};
use super::super::table::{Op, Register, Row, Table};
use super::k_diffusion::{SLOPE, down_and_up, evaluation, slope};
use cqc_proto::sampler::SamplerConfig;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::k_diffusion(config, steps)?;
    let mut rows = Vec::with_capacity(steps);
    for (step, (&timestep, &sigma)) in timesteps.iter().zip(&sigmas).enumerate() {
        let (down, up) = down_and_up(sigma, sigmas[step + 1]);
        let mut row = Row::new(evaluation(timestep, sigma, step));
        slope(config, sigma, &mut row);
        let terms = [(Register::X, 1.0), (SLOPE, down - sigma), (Register::Noise, up)];
        row.push(Op::sum(Register::X, &terms));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}
