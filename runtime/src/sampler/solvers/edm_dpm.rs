//! The multistep form of DPM-Solver++ over σ (arXiv:2211.01095, algorithm 2) with the
//! preconditioning of EDM around the network. Samples are image + σ·ε, so every level has a signal
//! of 1, and λ = −ln σ.

use super::super::levels::edm::{image, initial_scale, input_scale};
use super::super::levels::schedule::Level;
use super::super::levels::sigmas::Sigmas;
use super::super::table::{Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use super::dpm_multistep::{advance, order_of};
use super::image_limit;
use cqc_proto::sampler::SamplerConfig;

/// A step over a smaller |Δλ| is of first order. Higher orders would add less than its square.
const STILL: f32 = 1e-4;

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::edm(config, steps);
    let level = |&sigma: &f32| Level { signal: 1.0, noise: sigma };
    let levels: Vec<Level> = sigmas.iter().map(level).collect();
    // the registers of the last three images, used in turn
    let predicted = |step: usize| Register::Kept((step % 3) as u8);
    let rows = timesteps.iter().enumerate().map(|(step, &timestep)| {
        let sigma = sigmas[step];
        let input_scale = input_scale(config, sigma);
        let mut row = Row::new(Evaluation::scaled(timestep, input_scale, step).at(1.0, sigma));
        row.push(image(config, sigma, predicted(step)).limited(image_limit(config)));
        // with `sigma_min` at the end the last level occurs twice, and the last step has no width
        // for differences
        let is_still = (levels[step + 1].lambda() - levels[step].lambda()).abs() < STILL;
        let order = if is_still { 1 } else { order_of(config, step, steps, begin) };
        advance(config, &levels, step, order, predicted, &mut row);
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: initial_scale(config) })
}
