//! Latent consistency models (arXiv:2310.04378, algorithm 3). A step predicts the image, blends it
//! with the sample at the boundary (section 4.1, c_skip and c_out of arXiv:2303.01469, appendix C),
//! and adds new noise of the next level.

use super::super::levels::schedule::{Level, alphas_cumprod, distilled_timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::image_limit;
use cqc_proto::sampler::SamplerConfig;

const IMAGE: Register = Register::Temp(0);

/// Standard deviation of the data, which is fixed in diffusers.
const SIGMA_DATA: f64 = 0.5;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let alphas = alphas_cumprod(config);
    let timesteps = distilled_timesteps(config, steps)?;
    let row = |(i, &t): (usize, &usize)| {
        let level = Level::of_alpha(alphas[t]);
        let mut row = Row::new(Evaluation::unscaled(t as f64, i).of(level));
        let x = Register::X;
        let image = level.image(config.prediction_type, x, Register::Out, IMAGE);
        row.push(image.limited(image_limit(config)));
        let scaled = t as f64 * config.timestep_scaling;
        let square = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / square, scaled / square.sqrt());
        row.push(Op::sum(x, &[(IMAGE, out as f32), (x, skip as f32)]));
        if let Some(&next) = timesteps.get(i + 1) {
            let next = Level::of_alpha(alphas[next]);
            row.push(Op::sum(x, &[(x, next.signal), (Register::Noise, next.noise)]));
        }
        row
    };
    Ok(Table { rows: timesteps.iter().enumerate().map(row).collect(), initial_scale: 1.0 })
}
