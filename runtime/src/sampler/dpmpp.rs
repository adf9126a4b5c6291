//! DPM-Solver++ of second order, multistep (arXiv:2211.01095, algorithm 2): a linear extrapolation
//! of the last two predicted images, integrated exactly over the half log-SNR λ.

use super::schedule::Level;
use super::sigmas::Sigmas;
use super::table::Row;
use super::{Evaluation, Output, SamplerError, check_finite};
use cqc_proto::sampler::{FinalSigma, Prediction, SamplerConfig, SolverType};

/// Predicted images that are kept: this one and the one before.
pub(super) const KEPT: usize = 2;

/// Below this many steps `lower_order_final` takes effect.
const FEW_STEPS: usize = 15;

#[derive(Clone, Debug)]
pub(super) struct DpmPp {
    prediction: Prediction,
    steps: Vec<Step>,
}

/// x′ = `x`·x + `image`·m₀ + `slope`·(`inverse_ratio`·(m₀ − m₁)), m₀ the image predicted now and m₁
/// the one before.
#[derive(Clone, Debug)]
struct Step {
    level: Level,
    x: f32,
    image: f32,
    second: Option<Second>,
}

#[derive(Clone, Debug)]
struct Second {
    slope: f32,
    inverse_ratio: f32,
}

impl DpmPp {
    pub fn new(
        config: &SamplerConfig,
        steps: usize,
    ) -> Result<(Self, Vec<Evaluation>), SamplerError> {
        let Sigmas { sigmas, timesteps } = Sigmas::new(config, steps)?;
        let levels: Vec<Level> = sigmas.iter().map(|&sigma| level_of_sigma(sigma)).collect();
        let count = timesteps.len(); // fewer than `steps` when `lambda_min_clipped` cuts `trailing` ones off
        let mut plan =
            Self { prediction: config.prediction_type, steps: Vec::with_capacity(count) };
        for (i, &t) in timesteps.iter().enumerate() {
            let first_order = i == 0 || (i + 1 == count && ends_in_first_order(config, count));
            let before = (!first_order).then(|| levels[i - 1]);
            let step = Step::new(levels[i], levels[i + 1], before, config.solver_type);
            let (slope, ratio) = step
                .second
                .as_ref()
                .map_or((0.0, 0.0), |second| (second.slope, second.inverse_ratio));
            let divisor = step.level.inverse_divisor(config.prediction_type);
            check_finite(i, t, &[divisor, step.x, step.image, slope, ratio])?;
            plan.steps.push(step);
        }
        let evaluations =
            timesteps.iter().enumerate().map(|(step, &t)| Evaluation::unscaled(t, step)).collect();
        Ok((plan, evaluations))
    }

    /// Per evaluation: signal, noise, factors of sample and image, slope and inverse ratio, and
    /// whether these two count.
    pub fn rows(&self) -> Vec<Row> {
        let row = |s: &Step| {
            let (slope, ratio) =
                s.second.as_ref().map_or((0.0, 0.0), |second| (second.slope, second.inverse_ratio));
            let kind = if s.second.is_some() { 1.0 } else { 0.0 };
            [1.0, s.level.signal, s.level.noise, s.x, s.image, slope, ratio, kind]
        };
        self.steps.iter().map(row).collect()
    }

    /// `kept` has [`KEPT`] rows as long as `x`.
    pub fn advance(&self, i: usize, x: &mut [f32], output: Output, kept: &mut [Vec<f32>]) {
        let step = &self.steps[i];
        output.mean_onto(x, |j, x, out| {
            let image = step.level.image(self.prediction, x, out);
            let before = kept[(i + 1) % KEPT][j];
            kept[i % KEPT][j] = image;
            let moved = step.x * x + step.image * image;
            match &step.second {
                Some(second) => moved + second.slope * (second.inverse_ratio * (image - before)),
                None => moved,
            }
        });
    }
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

impl Step {
    fn new(now: Level, next: Level, before: Option<Level>, solver: SolverType) -> Self {
        let width = lambda(next) - lambda(now);
        let fall = (-width).exp() - 1.0;
        let second = before.map(|before| Second {
            slope: match solver {
                SolverType::Midpoint => -0.5 * (next.signal * fall),
                SolverType::Heun => next.signal * (fall / width + 1.0),
            },
            inverse_ratio: 1.0 / ((lambda(now) - lambda(before)) / width),
        });
        Self { level: now, x: next.noise / now.noise, image: -(next.signal * fall), second }
    }
}
