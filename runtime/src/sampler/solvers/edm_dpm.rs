//! DPM-Solver++ multistep over σ (arXiv:2211.01095, algorithm 2 and appendix; the third order is
//! that of arXiv:2206.00927, appendix D) with the preconditioning of EDM around the network. There
//! is no α: samples are image + σ·ε, and λ = −ln σ.

use super::super::levels::edm::{image, initial_scale, input_scale};
use super::super::levels::sigmas::Sigmas;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::image_limit;
use cqc_proto::sampler::{Algorithm, FinalSigma, SamplerConfig, SolverType};

/// Below this many steps `lower_order_final` takes effect.
const FEW_STEPS: usize = 15;

/// A step over a smaller |Δλ| is of first order: what higher orders add is below its square.
const STILL: f32 = 1e-4;

/// The last images, in turn.
const HISTORY: usize = 3;

const SLOPE: Register = Register::Temp(0);
const OLD_SLOPE: Register = Register::Temp(1);
const CURVE: Register = Register::Temp(2);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::edm(config, steps);
    let rows = timesteps.iter().enumerate().map(|(step, &timestep)| {
        let input_scale = input_scale(config, sigmas[step]);
        let mut row = Row::new(Evaluation::scaled(timestep, input_scale, step));
        let predicted = image(config, sigmas[step], kept(step, 0));
        row.push(predicted.limited(image_limit(config)));
        update(config, &sigmas, step, &mut row);
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: initial_scale(config) })
}

/// The image that was predicted `back` steps before `step`.
fn kept(step: usize, back: usize) -> Register {
    Register::Kept(((step - back) % HISTORY) as u8)
}

/// The order of `step`: as many images as there are, and less at the end.
fn order(config: &SamplerConfig, steps: usize, step: usize) -> usize {
    let is_short = config.lower_order_final && steps < FEW_STEPS;
    // with σ = 0 at the end λ is infinite, and only the first-order rule has a limit
    let ends_low =
        config.euler_at_final || is_short || config.final_sigmas_type == FinalSigma::Zero;
    let most = match steps - step {
        1 if ends_low => 1,
        2 if is_short => 2,
        _ => 3,
    };
    most.min(config.solver_order as usize).min(step + 1)
}

fn update(config: &SamplerConfig, sigmas: &[f32], step: usize, row: &mut Row) {
    let (now, next) = (sigmas[step], sigmas[step + 1]);
    let lambda = |sigma: f32| -sigma.ln();
    let width = lambda(next) - lambda(now);
    // the width of an earlier step, in units of this one
    let ratio = |back: usize| {
        let (from, to) = (sigmas[step - back], sigmas[step - back + 1]);
        (lambda(to) - lambda(from)) / width
    };
    let is_stochastic = config.algorithm_type == Algorithm::SdeDpmSolverPp;
    // the stochastic form goes twice as far towards the image
    let (keep, fall) = match is_stochastic {
        true => (next / now * (-width).exp(), (-2.0 * width).exp() - 1.0),
        false => (next / now, (-width).exp() - 1.0),
    };
    let x = Register::X;
    let mut terms = vec![(x, keep), (kept(step, 0), -fall)];
    // a step that hardly moves (`sigma_min` at the end comes twice) has no room for differences
    // over it
    let is_still = width.abs() < STILL;
    let order = if is_still { 1 } else { order(config, sigmas.len() - 1, step) };
    let far = if is_stochastic { 2.0 * width } else { width };
    // dimage/dλ, times the width
    if order > 1 {
        let difference = Op::sum(SLOPE, &[(kept(step, 0), 1.0), (kept(step, 1), -1.0)]);
        row.push(difference.times(1.0 / ratio(1)));
    }
    match order {
        1 => {}
        2 => {
            let factor = match config.solver_type {
                SolverType::Heun => fall / far + 1.0,
                _ => -0.5 * fall,
            };
            terms.push((SLOPE, factor));
        }
        _ => {
            let (r0, r1) = (ratio(1), ratio(2));
            let difference = Op::sum(OLD_SLOPE, &[(kept(step, 1), 1.0), (kept(step, 2), -1.0)]);
            row.push(difference.times(1.0 / r1));
            row.push(Op::sum(CURVE, &[(SLOPE, 1.0), (OLD_SLOPE, -1.0)]));
            row.push(Op::sum(SLOPE, &[(SLOPE, 1.0), (CURVE, r0 / (r0 + r1))]));
            terms.push((SLOPE, fall / far + 1.0));
            let second = (fall + width) / (width * width) - 0.5;
            terms.push((CURVE, -second * (1.0 / (r0 + r1))));
        }
    }
    if is_stochastic {
        terms.push((Register::Noise, next * (1.0 - (-2.0 * width).exp()).sqrt()));
    }
    row.push(Op::sum(x, &terms));
}
