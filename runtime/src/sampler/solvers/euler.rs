//! Euler's method on the probability-flow ODE over σ (arXiv:2206.00364, algorithm 1 without churn).
//!
//! Its sample is image + σ·ε, not scaled to variance 1; the network sees it divided by √(σ² + 1).

use super::super::levels::sigmas::{Sigmas, image_over_sigma, initial_scale, input_scale};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use cqc_proto::sampler::SamplerConfig;

const IMAGE: Register = Register::Temp(0);
const SLOPE: Register = Register::Temp(1);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::new(config, steps)?;
    let mut rows = Vec::with_capacity(steps);
    for (step, (&timestep, &sigma)) in timesteps.iter().zip(&sigmas).enumerate() {
        let scaled =
            Evaluation { input_scale: input_scale(sigma), ..Evaluation::unscaled(timestep, step) };
        let mut row = Row::new(scaled.at(1.0, sigma));
        let x = Register::X;
        row.push(image_over_sigma(config.prediction_type, sigma, x, Register::Out, IMAGE));
        row.push(Op::sum(SLOPE, &[(x, 1.0), (IMAGE, -1.0)]).over(sigma));
        row.push(Op::sum(x, &[(x, 1.0), (SLOPE, sigmas[step + 1] - sigma)]));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}
