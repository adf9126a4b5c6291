//! Euler's method on the probability-flow ODE over σ (arXiv:2206.00364, algorithm 1 without churn).
//!
//! The sample is image + σ·ε and is not scaled to unit variance. The network sees it divided by
//! √(σ² + 1).

use super::super::SamplerError;
use super::super::levels::sigmas::{Sigmas, initial_scale};
use super::super::table::{Op, Register, Row, Table};
use super::k_diffusion::{SLOPE, evaluation, slope};
use cqc_proto::sampler::SamplerConfig;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::k_diffusion(config, steps)?;
    let mut rows = Vec::with_capacity(steps);
    for (step, (&timestep, &sigma)) in timesteps.iter().zip(&sigmas).enumerate() {
        let mut row = Row::new(evaluation(timestep, sigma, step));
        slope(config, sigma, &mut row);
        row.push(Op::sum(Register::X, &[(Register::X, 1.0), (SLOPE, sigmas[step + 1] - sigma)]));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}
