//! DPM-Solver-2 over σ (arXiv:2206.00927, algorithm 1; arXiv:2206.00364, table 1). An Euler step
//! leads to the middle of the step in ln σ, and the step is then taken along the slope there. The
//! last step, to σ = 0, is an Euler step. The ancestral form goes to a lower level and returns by
//! new noise.

use super::super::SamplerError;
use super::super::levels::k_diffusion::halfway;
use super::super::levels::sigmas::{Sigmas, initial_scale};
use super::super::table::{Op, Register, Row, Table};
use super::k_diffusion::{SLOPE, down_and_up, evaluation, slope};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};

/// The sample at the beginning of the step.
const START: Register = Register::Kept(0);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::k_diffusion(config, steps)?;
    let is_ancestral = config.kind == SamplerKind::Kdpm2Ancestral;
    // the level at which each step ends, and the noise that is then added
    let ends: Vec<(f32, f32)> = sigmas
        .windows(2)
        .map(|pair| if is_ancestral { down_and_up(pair[0], pair[1]) } else { (pair[1], 0.0) })
        .collect();
    let downs: Vec<f32> = ends.iter().map(|end| end.0).collect();
    let middles = match is_ancestral {
        true => halfway(config, &sigmas[..steps], &downs),
        // diffusers interpolates from the end of the step
        false => halfway(config, &sigmas[1..], &sigmas[..steps]),
    };
    let x = Register::X;
    let mut rows = Vec::with_capacity(2 * steps - 1);
    for (step, &timestep) in timesteps.iter().enumerate() {
        let (sigma, (down, up), (middle, time)) = (sigmas[step], ends[step], middles[step]);
        let is_last = step + 1 == steps;
        let mut row = Row::new(evaluation(timestep, sigma, step));
        slope(config, sigma, &mut row);
        if !is_last {
            row.push(Op::sum(START, &[(x, 1.0)]));
        }
        let to = if is_last { sigmas[steps] } else { middle };
        row.push(Op::sum(x, &[(x, 1.0), (SLOPE, to - sigma)]));
        rows.push(row);
        if is_last {
            break;
        }
        let mut row = Row::new(evaluation(time, middle, step));
        slope(config, middle, &mut row);
        let mut terms = vec![(START, 1.0), (SLOPE, down - sigma)];
        if is_ancestral {
            terms.push((Register::Noise, up));
        }
        row.push(Op::sum(x, &terms));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}
