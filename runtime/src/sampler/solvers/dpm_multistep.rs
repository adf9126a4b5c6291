//! DPM-Solver++ of second order, multistep (arXiv:2211.01095, algorithm 2): a linear extrapolation
//! of the last two predicted images, integrated exactly over the half log-SNR λ.

use super::super::levels::sigmas::Sigmas;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, Level, SamplerError};
use super::image_limit;
use cqc_proto::sampler::{FinalSigma, SamplerConfig, SolverType};

const SLOPE: Register = Register::Temp(0);

/// Below this many steps `lower_order_final` takes effect.
const FEW_STEPS: usize = 15;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let Sigmas { sigmas, timesteps } = Sigmas::new(config, steps)?;
    let levels: Vec<Level> = sigmas.iter().map(|&sigma| level_of_sigma(sigma)).collect();
    // fewer than `steps` when `lambda_min_clipped` cuts `trailing` ones off
    let count = timesteps.len();
    let mut rows = Vec::with_capacity(count);
    for (i, &t) in timesteps.iter().enumerate() {
        let (now, next) = (levels[i], levels[i + 1]);
        let mut row = Row::new(Evaluation::unscaled(t, i).at(now.signal, now.noise));
        // the image predicted now and the one before
        let [image, before] = [i % 2, (i + 1) % 2].map(|n| Register::Kept(n as u8));
        let x = Register::X;
        let of_x = now.image(config.prediction_type, x, Register::Out, image);
        row.push(of_x.limited(image_limit(config)));
        let width = lambda(next) - lambda(now);
        let fall = (-width).exp() - 1.0;
        let mut terms = vec![(x, next.noise / now.noise), (image, -(next.signal * fall))];
        if i > 0 && !(i + 1 == count && ends_in_first_order(config, count)) {
            let ratio = (lambda(now) - lambda(levels[i - 1])) / width;
            row.push(Op::sum(SLOPE, &[(image, 1.0), (before, -1.0)]).times(1.0 / ratio));
            let factor = match config.solver_type {
                SolverType::Heun => next.signal * (fall / width + 1.0),
                _ => -0.5 * (next.signal * fall),
            };
            terms.push((SLOPE, factor));
        }
        row.push(Op::sum(x, &terms));
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

fn ends_in_first_order(config: &SamplerConfig, steps: usize) -> bool {
    // with σ = 0 at the end λ is infinite, and only the first-order rule has a limit
    config.final_sigmas_type == FinalSigma::Zero
        || config.euler_at_final
        || (config.lower_order_final && steps < FEW_STEPS)
}

fn level_of_sigma(sigma: f32) -> Level {
    let signal = (sigma * sigma + 1.0).sqrt().recip();
    Level { signal, noise: sigma * signal }
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(level: Level) -> f32 {
    level.signal.ln() - level.noise.ln()
}
