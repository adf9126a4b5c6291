//! The parts that the solvers over σ share: the slope of the probability-flow ODE, dx/dσ = (x −
//! image)/σ, and the division of a step by new noise.

use super::super::Evaluation;
use super::super::levels::sigmas::{image_over_sigma, input_scale};
use super::super::table::{Op, Register, Row};
use super::image_limit;
use cqc_proto::sampler::SamplerConfig;

/// The predicted image of a row.
pub const IMAGE: Register = Register::Temp(0);

/// The slope dx/dσ of a row.
pub const SLOPE: Register = Register::Temp(1);

/// The evaluation of the network at the level `sigma`.
pub fn evaluation(timestep: f64, sigma: f32, step: usize) -> Evaluation {
    Evaluation::scaled(timestep, input_scale(sigma), step).at(1.0, sigma)
}

/// Computes [`IMAGE`], limited, and [`SLOPE`] of the sample at the level `sigma`.
pub fn slope(config: &SamplerConfig, sigma: f32, row: &mut Row) {
    let x = Register::X;
    let image = image_over_sigma(config.prediction_type, sigma, x, Register::Out, IMAGE);
    row.push(image.limited(image_limit(config)));
    row.push(Op::sum(SLOPE, &[(x, 1.0), (IMAGE, -1.0)]).over(sigma));
}

/// Divides a step from `from` to `to` that adds noise. It goes down to a level below `to`, and
/// returns to `to` by new noise. The result is that level and the standard deviation of the noise.
pub fn down_and_up(from: f32, to: f32) -> (f32, f32) {
    let (from_squared, to_squared) = (from * from, to * to);
    let up = (to_squared * (from_squared - to_squared) / from_squared).sqrt();
    let down = (to_squared - up * up).sqrt();
    // the root of a difference, which is 0 in float32 if `from` is thousands of times `to`
    (if down > 0.0 { down } else { to * (to / from) }, up)
}
