//! DDPM (arXiv:2006.11239): the posterior mean of the next level, plus noise in every step but the
//! one at time step 0.

use super::super::levels::schedule::{alphas_cumprod, timesteps};
use super::super::table::{LearnedStd, Op, Register, Row, Table};
use super::super::{Evaluation, Level, SamplerError};
use super::image_limit;
use cqc_proto::sampler::{SamplerConfig, Variance};

const IMAGE: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let alphas = alphas_cumprod(config);
    let timesteps = timesteps(config, steps)?;
    let rows = timesteps.iter().enumerate().map(|(i, &t)| {
        let (alpha, next) = (alphas[t], timesteps.get(i + 1).map_or(1.0, |&t| alphas[t]));
        let (step_alpha, noise, next_noise) = (alpha / next, 1.0 - alpha, 1.0 - next);
        let beta = 1.0 - step_alpha;
        let (of_image, of_x) = (next.sqrt() * beta / noise, step_alpha.sqrt() * next_noise / noise);
        let mut row = Row::new(Evaluation::unscaled(t as f64, i).of(Level::of_alpha(alpha)));
        let x = Register::X;
        let image = Level::of_alpha(alpha).image(config.prediction_type, x, Register::Out, IMAGE);
        row.push(image.limited(image_limit(config)));
        row.push(Op::sum(x, &[(IMAGE, of_image), (x, of_x)]));
        if t > 0 {
            row.push(noise_op(config.variance_type, beta, next_noise / noise * beta));
        }
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: 1.0 })
}

fn noise_op(kind: Variance, beta: f32, posterior: f32) -> Op {
    let posterior = posterior.max(1e-20);
    let fixed = |std| Op::sum(Register::X, &[(Register::X, 1.0), (Register::Noise, std)]);
    match kind {
        Variance::FixedSmall => fixed(posterior.sqrt()),
        Variance::FixedSmallLog => fixed((0.5 * posterior.ln()).exp()),
        Variance::FixedLarge => fixed(beta.sqrt()),
        Variance::Learned => Op::LearnedNoise(LearnedStd::Variance),
        Variance::LearnedRange => {
            Op::LearnedNoise(LearnedStd::Range { low: posterior.ln(), high: beta.ln() })
        }
    }
}
