//! The parts that the solvers of DPM's family share: the predicted image or noise, and one step,
//! integrated exactly over the half log-SNR λ.

use super::super::levels::schedule::Level;
use super::super::table::{Limit, Op, Register, Row};
use super::image_limit;
use cqc_proto::sampler::{Algorithm, SamplerConfig, SolverType};

/// The register of the limited image from which the noise is computed.
pub const IMAGE: Register = Register::Temp(6);

/// The number of steps below which `lower_order_final` takes effect.
pub const FEW_STEPS: usize = 15;

/// `to` = the image or the noise, whichever is integrated, that follows from the network's output.
pub fn predict(config: &SamplerConfig, level: Level, to: Register, row: &mut Row) {
    let (prediction, limit) = (config.prediction_type, image_limit(config));
    let (x, out) = (Register::X, Register::Out);
    if config.integrates_image() {
        return row.push(level.image(prediction, x, out, to).limited(limit));
    }
    row.push(level.epsilon(prediction, x, out, to));
    if limit != Limit::None {
        let image = Op::sum(IMAGE, &[(x, 1.0), (to, -level.noise)]).over(level.signal);
        row.push(image.limited(limit));
        row.push(noise_of_image(level, to));
    }
}

/// `to` = the noise in the sample for the image in [`IMAGE`].
pub fn noise_of_image(level: Level, to: Register) -> Op {
    Op::sum(to, &[(Register::X, 1.0), (IMAGE, -level.signal)]).over(level.noise)
}

/// Factors of a step from one level to another: x′ = `x`·x + `value`·D0 + …. D0 is the integrated
/// prediction; D1 and D2 are its first and second derivative, multiplied by the width of the step
/// and by its square (arXiv:2206.00927, section 3.2; arXiv:2211.01095, section 4).
pub struct Integral {
    /// λ at the end minus λ at the start.
    pub width: f32,
    pub x: f32,
    pub value: f32,
    /// Factor of D1 in the midpoint rule.
    pub midpoint: f32,
    /// Exact factor of D1.
    pub slope: f32,
    /// Exact factor of D2.
    pub curvature: f32,
    /// Factor of new noise, if the equation is stochastic.
    pub noise: Option<f32>,
}

impl Integral {
    pub fn new(algorithm: Algorithm, from: Level, to: Level) -> Self {
        let h = to.lambda() - from.lambda();
        match algorithm {
            Algorithm::DpmSolverPp => {
                let fall = (-h).exp() - 1.0;
                Self {
                    width: h,
                    x: to.noise / from.noise,
                    value: -(to.signal * fall),
                    midpoint: -0.5 * (to.signal * fall),
                    slope: to.signal * (fall / h + 1.0),
                    curvature: -(to.signal * ((fall + h) / (h * h) - 0.5)),
                    noise: None,
                }
            }
            Algorithm::DpmSolver => {
                let rise = h.exp() - 1.0;
                Self {
                    width: h,
                    x: to.signal / from.signal,
                    value: -(to.noise * rise),
                    midpoint: -0.5 * (to.noise * rise),
                    slope: -(to.noise * (rise / h - 1.0)),
                    curvature: -(to.noise * ((rise - h) / (h * h) - 0.5)),
                    noise: None,
                }
            }
            Algorithm::SdeDpmSolverPp => {
                let (twice, fall) = (2.0 * h, (-2.0 * h).exp());
                let gain = 1.0 - fall;
                Self {
                    width: h,
                    x: to.noise / from.noise * (-h).exp(),
                    value: to.signal * gain,
                    midpoint: 0.5 * (to.signal * gain),
                    slope: to.signal * (gain / -twice + 1.0),
                    curvature: to.signal * ((gain - twice) / (twice * twice) - 0.5),
                    noise: Some(to.noise * gain.sqrt()),
                }
            }
            Algorithm::SdeDpmSolver => {
                let rise = h.exp() - 1.0;
                Self {
                    width: h,
                    x: to.signal / from.signal,
                    value: -2.0 * (to.noise * rise),
                    midpoint: -(to.noise * rise),
                    slope: -2.0 * (to.noise * (rise / h - 1.0)),
                    curvature: f32::NAN, // refused by `SamplerConfig::validate`
                    noise: Some(to.noise * ((2.0 * h).exp() - 1.0).sqrt()),
                }
            }
        }
    }

    /// The factor of D1 in a step of second order.
    pub fn second(&self, solver: SolverType) -> f32 {
        if solver == SolverType::Heun { self.slope } else { self.midpoint }
    }

    /// x = `start` moved by D0 = `value`, by the `further` terms, and by noise.
    pub fn step(&self, start: Register, value: Register, further: &[(Register, f32)]) -> Op {
        let mut terms = vec![(start, self.x), (value, self.value)];
        terms.extend(further);
        terms.extend(self.noise.map(|factor| (Register::Noise, factor)));
        Op::sum(Register::X, &terms)
    }
}
