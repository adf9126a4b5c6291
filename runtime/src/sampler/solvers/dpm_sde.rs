//! DPM-Solver++ of second order as a stochastic one-step rule (arXiv:2206.00927, algorithm 1, and
//! arXiv:2211.01095, section 6; diffusers' `DPMSolverSDEScheduler`). Each step first goes to its
//! middle in ln σ, and then from its start along the image that is predicted at the middle. The
//! last step, to σ = 0, is an Euler step.
//!
//! Both halves of a step depend on the same path of a Brownian motion W over σ. The step to the
//! middle uses the increment of W there, the whole step uses the increment over its whole width.
//! diffusers draws W from a tree. Here the two increments are made from one new noise each, which
//! gives them the same joint distribution.

use super::super::SamplerError;
use super::super::levels::k_diffusion::halfway;
use super::super::levels::sigmas::{Sigmas, initial_scale};
use super::super::table::{Op, Register, Row, Table};
use super::k_diffusion::{IMAGE, SLOPE, down_and_up, evaluation, slope};
use cqc_proto::sampler::SamplerConfig;

/// The sample at the beginning of the step.
const START: Register = Register::Kept(0);
/// The noise of the first half.
const FIRST_NOISE: Register = Register::Kept(1);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::k_diffusion(config, steps)?;
    let middles = halfway(config, &sigmas[..steps], &sigmas[1..]);
    let (x, noise) = (Register::X, Register::Noise);
    let mut rows = Vec::with_capacity(2 * steps - 1);
    for (step, &timestep) in timesteps.iter().enumerate() {
        let (sigma, next, (middle, time)) = (sigmas[step], sigmas[step + 1], middles[step]);
        let mut row = Row::new(evaluation(timestep, sigma, step));
        slope(config, sigma, &mut row);
        if step + 1 == steps {
            row.push(Op::sum(x, &[(x, 1.0), (SLOPE, next - sigma)]));
            rows.push(row);
            break;
        }
        row.push(Op::sum(START, &[(x, 1.0)]));
        row.push(Op::sum(FIRST_NOISE, &[(noise, 1.0)]));
        let half = Half::new(sigma, middle);
        row.push(Op::sum(x, &[(x, half.keep), (IMAGE, half.image), (noise, half.noise)]));
        rows.push(row);

        let mut row = Row::new(evaluation(time, middle, step));
        slope(config, middle, &mut row);
        let whole = Half::new(sigma, next);
        let share = |from: f32, to: f32| whole.noise * ((from - to) / (sigma - next)).sqrt();
        row.push(Op::sum(
            x,
            &[
                (START, whole.keep),
                (IMAGE, whole.image),
                (FIRST_NOISE, share(sigma, middle)),
                (noise, share(middle, next)),
            ],
        ));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}

/// x′ = `keep`·x + `image`·image + `noise`·ε.
struct Half {
    keep: f32,
    image: f32,
    noise: f32,
}

impl Half {
    fn new(from: f32, to: f32) -> Self {
        let (_, up) = down_and_up(from, to);
        let up = up.min(to);
        let down = (to * to - up * up).sqrt();
        Self { keep: down / from, image: -(down.ln() - from.ln()).exp_m1(), noise: up }
    }
}
