//! DEIS (arXiv:2204.13902, section 4.2, tAB-DEIS in ln ρ): the predicted noise as a polynomial in
//! the logarithm of ρ = σ, integrated exactly over ρ.

use super::super::levels::dpm::{DpmLevels, numpy_ln};
use super::super::levels::schedule::Level;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use super::dpm::{FEW_STEPS, IMAGE, noise_of_image};
use super::image_limit;
use cqc_proto::sampler::SamplerConfig;

/// The register of the predicted noise if no later step reads it.
const ONLY: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let DpmLevels { levels, timesteps } = DpmLevels::new(config, steps)?;
    let count = timesteps.len();
    let memory = config.solver_order as usize;
    let predicted = |i: usize| match memory {
        1 => ONLY,
        _ => Register::Kept((i % memory) as u8),
    };
    let mut rows = Vec::with_capacity(count);
    for (i, &t) in timesteps.iter().enumerate() {
        let mut row = Row::new(Evaluation::unscaled(t, i).of(levels[i]));
        let (x, from, to) = (Register::X, levels[i], levels[i + 1]);
        let image = from.image(config.prediction_type, x, Register::Out, IMAGE);
        row.push(image.limited(image_limit(config)));
        row.push(noise_of_image(from, predicted(i)));
        let order = order_of(config, i, count, begin);
        if order == 1 {
            let rise = (to.lambda() - from.lambda()).exp() - 1.0;
            let terms = [(x, to.signal / from.signal), (predicted(i), -(to.noise * rise))];
            row.push(Op::sum(x, &terms));
        } else {
            // the nodes of the polynomial, the newest first
            let places: Vec<f32> = (0..order).map(|back| rho(levels[i - back])).collect();
            let mut terms = vec![];
            for back in 0..order {
                let weight = integral(rho(to), back, &places) - integral(rho(from), back, &places);
                terms.push((predicted(i - back), weight));
            }
            let start = Op::sum(x, &[]).plus_quotient(x, 1.0, from.signal);
            row.push(start.plus(&terms).times(to.signal));
        }
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

fn order_of(config: &SamplerConfig, i: usize, count: usize, begin: Begin) -> usize {
    let lowers = config.lower_order_final && count < FEW_STEPS;
    let left = if lowers { count - i } else { usize::MAX };
    left.min(begin.since(i) + 1).min(config.solver_order as usize)
}

fn rho(level: Level) -> f32 {
    level.noise / level.signal
}

/// The integral up to `t` of the polynomial in ln ρ that is 1 at node `one` and 0 at the other
/// nodes. There are two or three nodes.
fn integral(t: f32, one: usize, places: &[f32]) -> f32 {
    let count = places.len();
    let ln = |n: usize| numpy_ln(places[(one + n) % count]);
    let (b, c, t_ln) = (ln(0), ln(1), numpy_ln(t));
    if count == 2 {
        return t * (-c + t_ln - 1.0) / (b - c);
    }
    let d = ln(2);
    let numerator = t * (c * (d - t_ln + 1.0) - d * t_ln + d + t_ln * t_ln - 2.0 * t_ln + 2.0);
    numerator / ((b - c) * (b - d))
}
