//! DDIM from an image to its noise (arXiv:2010.02502, section 4.3). Each step goes to the level of
//! its time step, from the level one stride before it.

use super::super::levels::schedule::{Level, alphas_cumprod, timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::image_limit;
use cqc_proto::sampler::SamplerConfig;

const IMAGE: Register = Register::Temp(0);
const EPSILON: Register = Register::Temp(1);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let alphas = alphas_cumprod(config);
    let first = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
    let stride = alphas.len() / steps;
    let visited = timesteps(config, steps)?;
    let rows = visited.iter().rev().enumerate().map(|(i, &t)| {
        let from = Level::of_alpha(t.checked_sub(stride).map_or(first, |t| alphas[t]));
        let to = Level::of_alpha(alphas[t]);
        let mut row = Row::new(Evaluation::unscaled(t as f64, i));
        let (prediction, x, out) = (config.prediction_type, Register::X, Register::Out);
        let image = from.image(prediction, x, out, IMAGE);
        row.push(image.limited(image_limit(config)));
        row.push(from.epsilon(prediction, x, out, EPSILON));
        row.push(Op::sum(x, &[(IMAGE, to.signal), (EPSILON, to.noise)]));
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: 1.0 })
}
