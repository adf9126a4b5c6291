//! Heun's method on the probability-flow ODE over σ (arXiv:2206.00364, algorithm 1 without churn):
//! an Euler step, and then the same step along the mean of the slopes at its two ends. The last
//! step is an Euler step, because the slope at its end is not defined.

use super::super::SamplerError;
use super::super::levels::sigmas::{Sigmas, initial_scale};
use super::super::table::{Op, Register, Row, Table};
use super::k_diffusion::{SLOPE, evaluation, slope};
use cqc_proto::sampler::SamplerConfig;

/// The sample at the beginning of the step.
const START: Register = Register::Kept(0);
/// The slope at the beginning of the step.
const FIRST: Register = Register::Kept(1);
const MEAN: Register = Register::Temp(2);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::k_diffusion(config, steps)?;
    let x = Register::X;
    let mut rows = Vec::with_capacity(2 * steps - 1);
    for (step, &timestep) in timesteps.iter().enumerate() {
        let (sigma, next) = (sigmas[step], sigmas[step + 1]);
        let mut row = Row::new(evaluation(timestep, sigma, step));
        slope(config, sigma, &mut row);
        let is_last = step + 1 == steps;
        if !is_last {
            row.push(Op::sum(START, &[(x, 1.0)]));
            row.push(Op::sum(FIRST, &[(SLOPE, 1.0)]));
        }
        row.push(Op::sum(x, &[(x, 1.0), (SLOPE, next - sigma)]));
        rows.push(row);
        if is_last {
            break;
        }
        let mut row = Row::new(evaluation(timesteps[step + 1], next, step));
        slope(config, next, &mut row);
        row.push(Op::sum(MEAN, &[(FIRST, 1.0), (SLOPE, 1.0)]).over(2.0));
        row.push(Op::sum(x, &[(START, 1.0), (MEAN, next - sigma)]));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}
