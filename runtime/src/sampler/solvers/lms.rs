//! Linear multistep over σ. The polynomial through the slopes of up to four evaluations is
//! integrated to the next level (Adams-Bashforth with steps of different widths).

use super::super::levels::sigmas::{Sigmas, initial_scale};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, SamplerError};
use super::k_diffusion::{SLOPE, evaluation, slope};
use cqc_proto::sampler::SamplerConfig;

const ORDER: usize = 4;
const MOVE: Register = Register::Temp(2);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::k_diffusion(config, steps)?;
    let mut rows = Vec::with_capacity(steps);
    for (step, &timestep) in timesteps.iter().enumerate() {
        let mut row = Row::new(evaluation(timestep, sigmas[step], step));
        slope(config, sigmas[step], &mut row);
        // the registers of the last ORDER slopes, used in turn
        let kept = |back: usize| Register::Kept(((step - back) % ORDER) as u8);
        row.push(Op::sum(kept(0), &[(SLOPE, 1.0)]));
        let order = ORDER.min(step + 1);
        let levels: Vec<f64> = (0..order).map(|back| sigmas[step - back].into()).collect();
        let weights = weights(&levels, sigmas[step].into(), sigmas[step + 1].into());
        // a loop that begins in the middle uses the first weights of the full order, as diffusers
        // does
        let seen = weights.into_iter().take(begin.since(step) + 1);
        let terms: Vec<_> = seen.enumerate().map(|(back, w)| (kept(back), w as f32)).collect();
        row.push(Op::sum(MOVE, &terms));
        row.push(Op::sum(Register::X, &[(Register::X, 1.0), (MOVE, 1.0)]));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: initial_scale(config, &sigmas) })
}

/// For each of `levels`, the integral from `from` to `to` of the Lagrange polynomial that is 1 at
/// that level and 0 at the others.
fn weights(levels: &[f64], from: f64, to: f64) -> Vec<f64> {
    let weight = |(i, &level): (usize, &f64)| {
        // coefficients in u = σ − `from`, the lowest power first
        let mut polynomial = vec![1.0];
        for (_, &other) in levels.iter().enumerate().filter(|&(j, _)| j != i) {
            let root = other - from;
            let mut next = vec![0.0; polynomial.len() + 1];
            for (power, c) in polynomial.iter().enumerate() {
                next[power + 1] += c / (level - other);
                next[power] -= c * root / (level - other);
            }
            polynomial = next;
        }
        let width = to - from;
        let integral = |(power, c): (usize, &f64)| {
            let degree = power as i32 + 1;
            c * width.powi(degree) / f64::from(degree)
        };
        polynomial.iter().enumerate().map(integral).sum()
    };
    levels.iter().enumerate().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_integrate_every_cubic_exactly() {
        let levels = [2.0, 3.5, 5.0, 9.0];
        let (from, to) = (2.0, 1.25);
        let weights = weights(&levels, from, to);
        for power in 0..4 {
            let seen: f64 = weights.iter().zip(levels).map(|(w, s)| w * s.powi(power)).sum();
            let degree = power + 1;
            let exact = (to.powi(degree) - from.powi(degree)) / f64::from(degree);
            assert!((seen - exact).abs() < 1e-12 * exact.abs(), "σ^{power}: {seen}, not {exact}");
        }
    }
}
