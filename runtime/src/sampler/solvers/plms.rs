//! PLMS: DDIM's direction with a mixture of the noises predicted by up to four evaluations
//! (arXiv:2202.09778 without its Runge-Kutta start; diffusers' `PNDMScheduler` with
//! `skip_prk_steps`).
//!
//! The first step has two evaluations. Evaluation 0 makes a trial step, evaluation 1 is made at its
//! end, and the step is then taken from the start with the mean of both. So there is one evaluation
//! more than there are steps, unless there is only one step.

use super::super::levels::schedule::{alphas_cumprod, in_training, timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, Level, SamplerError};
use cqc_proto::sampler::SamplerConfig;

/// The sample before the first step. Registers 0 to 3 hold outputs.
pub(super) const START: Register = Register::Kept(4);
pub(super) const MIXED: Register = Register::Temp(0);
const EPSILON: Register = Register::Temp(1);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let alphas = alphas_cumprod(config);
    let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
    let stride = alphas.len() / steps;
    let mut timesteps = timesteps(config, steps)?;
    if let Some(&second) = timesteps.get(1) {
        timesteps.insert(1, second);
    }
    let mut rows = Vec::new();
    for (i, &t) in timesteps.iter().enumerate() {
        let (from, to) = match begin.since(i) {
            1 => (in_training((t + stride) as f64, config.num_train_timesteps)?, Some(t)),
            _ => (t, t.checked_sub(stride)),
        };
        let Level { signal, noise } = Level::of_alpha(alphas[t]);
        let evaluation = Evaluation::unscaled(t as f64, i.saturating_sub(1)).at(signal, noise);
        let mut row = Row::new(evaluation);
        let x = mix(begin.since(i), &mut row);
        step(config, alphas[from], to.map_or(last, |t| alphas[t]), x, &mut row);
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

/// Computes [`MIXED`], a mixture of the outputs of up to four evaluations. Returns the register of
/// the sample from which the step starts.
fn mix(i: usize, row: &mut Row) -> Register {
    // evaluation 1 is not kept
    let entry = i.saturating_sub(1);
    let old = |back: usize| Register::Kept(((entry - back) % 4) as u8);
    let out = Register::Out;
    if i != 1 {
        row.push(Op::sum(old(0), &[(out, 1.0)]));
    }
    if i == 0 {
        row.push(Op::sum(START, &[(Register::X, 1.0)]));
    }
    row.push(match i {
        0 => Op::sum(MIXED, &[(out, 1.0)]),
        1 => Op::sum(MIXED, &[(out, 1.0), (old(0), 1.0)]).over(2.0),
        2 => Op::sum(MIXED, &[(out, 3.0), (old(1), -1.0)]).over(2.0),
        3 => Op::sum(MIXED, &[(out, 23.0), (old(1), -16.0), (old(2), 5.0)]).over(12.0),
        _ => Op::sum(MIXED, &[(out, 55.0), (old(1), -59.0), (old(2), 37.0), (old(3), -9.0)])
            .times(1.0 / 24.0),
    });
    if i == 1 { START } else { Register::X }
}

/// A step from `x` at the level ᾱ = `alpha` to the level ᾱ = `next`, along [`MIXED`].
pub(super) fn step(config: &SamplerConfig, alpha: f32, next: f32, x: Register, row: &mut Row) {
    let divisor = alpha * (1.0 - next).sqrt() + (alpha * (1.0 - alpha) * next).sqrt();
    row.push(Level::of_alpha(alpha).epsilon(config.prediction_type, x, MIXED, EPSILON));
    let moved = Op::sum(Register::X, &[(x, (next / alpha).sqrt())]);
    row.push(moved.plus_quotient(EPSILON, -(next - alpha), divisor));
}
