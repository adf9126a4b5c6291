//! PNDM (arXiv:2202.09778, algorithm 2): three Runge-Kutta steps of four evaluations each, then
//! PLMS with their predictions (diffusers' `PNDMScheduler` without `skip_prk_steps`).

use super::super::levels::schedule::{alphas_cumprod, in_training, timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::plms::{MIXED, START, step};
use cqc_proto::sampler::SamplerConfig;

/// The number of Runge-Kutta steps at the start.
const RUNGE_KUTTA: usize = 3;
/// The smallest number of steps, which leaves one step for PLMS.
pub const MIN_STEPS: usize = RUNGE_KUTTA + 1;

/// The weighted sum of the outputs of a Runge-Kutta step. Registers 0 to 3 hold outputs, as in
/// PLMS.
const SUM: Register = Register::Kept(5);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let alphas = alphas_cumprod(config);
    let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
    let alpha = |t: Option<usize>| t.map_or(last, |t| alphas[t]);
    let (stride, half) = (alphas.len() / steps, alphas.len() / steps / 2);
    let visited = timesteps(config, steps)?;
    let (x, out) = (Register::X, Register::Out);
    let mut rows = Vec::new();
    for i in 0..RUNGE_KUTTA.min(visited.len()) {
        let from = visited[i];
        let end = visited.get(i + 1).copied().unwrap_or(0);
        let middle = in_training((end + half) as f64, config.num_train_timesteps)?;
        // the time steps of the four evaluations, and those to which their steps lead
        let looks = [from, middle, middle, end];
        let leads = [from.checked_sub(half), Some(middle), middle.checked_sub(half), Some(end)];
        for (part, (t, to)) in looks.into_iter().zip(leads).enumerate() {
            let mut row = Row::new(Evaluation::unscaled(t as f64, i));
            let weight = if part == 0 || part == 3 { 1.0 / 6.0 } else { 1.0 / 3.0 };
            if part == 0 {
                row.push(Op::sum(START, &[(x, 1.0)]));
                row.push(Op::sum(Register::Kept(i as u8), &[(out, 1.0)]));
                row.push(Op::sum(SUM, &[(out, weight)]));
            } else if part < 3 {
                row.push(Op::sum(SUM, &[(SUM, 1.0), (out, weight)]));
            }
            row.push(match part {
                3 => Op::sum(MIXED, &[(SUM, 1.0), (out, weight)]),
                _ => Op::sum(MIXED, &[(out, 1.0)]),
            });
            step(config, alphas[from], alpha(to), START, &mut row);
            rows.push(row);
        }
    }
    for (i, &t) in visited.iter().enumerate().skip(RUNGE_KUTTA) {
        let mut row = Row::new(Evaluation::unscaled(t as f64, i));
        let old = |back: usize| Register::Kept(((i - back) % 4) as u8);
        row.push(Op::sum(old(0), &[(out, 1.0)]));
        let terms = [(out, 55.0), (old(1), -59.0), (old(2), 37.0), (old(3), -9.0)];
        row.push(Op::sum(MIXED, &terms).times(1.0 / 24.0));
        step(config, alphas[t], alpha(t.checked_sub(stride)), x, &mut row);
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}
