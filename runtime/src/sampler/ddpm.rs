//! DDPM (arXiv:2006.11239): the posterior mean of the next level, plus noise in every step but the
//! one at time step 0.

use super::ddim::clip_limit;
use super::schedule::{Level, alphas_cumprod, timesteps};
use super::table::Row;
use super::{Evaluation, Output, SamplerError, check_finite};
use cqc_proto::sampler::{Prediction, SamplerConfig, Variance};

#[derive(Clone, Debug)]
pub(super) struct Ddpm {
    prediction: Prediction,
    clip: f32,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    level: Level,
    image: f32,
    x: f32,
    noise: Noise,
}

/// Standard deviation of the added noise.
#[derive(Clone, Copy, Debug)]
enum Noise {
    None,
    Fixed(f32),
    /// √ of the network's second half.
    Variance,
    /// The second half, in [-1, 1], chooses between the logarithms of two variances.
    Range {
        low: f32,
        high: f32,
    },
}

impl Ddpm {
    pub fn new(
        config: &SamplerConfig,
        steps: usize,
    ) -> Result<(Self, Vec<Evaluation>), SamplerError> {
        let alphas = alphas_cumprod(config);
        let timesteps = timesteps(config, steps)?;
        let mut plan = Self {
            prediction: config.prediction_type,
            clip: clip_limit(config),
            steps: Vec::new(),
        };
        for (i, &t) in timesteps.iter().enumerate() {
            let next = timesteps.get(i + 1).map_or(1.0, |&t| alphas[t]);
            let mut step = Step::new(alphas[t], next, config.variance_type);
            if t == 0 {
                step.noise = Noise::None;
            }
            let divisor = step.level.inverse_divisor(config.prediction_type);
            check_finite(i, t as f64, &[divisor, step.image, step.x])?;
            check_finite(i, t as f64, &step.noise.numbers())?;
            plan.steps.push(step);
        }
        Ok((plan, Evaluation::one_per_step(&timesteps)))
    }

    pub fn adds_noise(&self, i: usize) -> bool {
        !matches!(self.steps[i].noise, Noise::None)
    }

    /// The largest magnitude of a predicted image.
    pub fn clip(&self) -> f32 {
        self.clip
    }

    /// Per evaluation: signal, noise, factors of image and sample, two numbers of the added noise
    /// and its kind.
    pub fn rows(&self) -> Vec<Row> {
        let row = |s: &Step| {
            let [first, second] = s.noise.numbers();
            [1.0, s.level.signal, s.level.noise, s.image, s.x, first, second, s.noise.kind()]
        };
        self.steps.iter().map(row).collect()
    }

    pub fn advance(&self, i: usize, x: &mut [f32], output: Output, noise: &[f32]) {
        let step = &self.steps[i];
        output.mean_onto(x, |_, x, out| {
            let image = step.level.image(self.prediction, x, out).clamp(-self.clip, self.clip);
            step.image * image + step.x * x
        });
        match step.noise {
            Noise::None => {}
            Noise::Fixed(std) => x.iter_mut().zip(noise).for_each(|(x, noise)| *x += std * noise),
            Noise::Variance => {
                output.variance_onto(x, |j, x, variance| x + variance.sqrt() * noise[j])
            }
            Noise::Range { low, high } => output.variance_onto(x, |j, x, share| {
                let share = (share + 1.0) / 2.0;
                let log = share * high + (1.0 - share) * low;
                x + (0.5 * log).exp() * noise[j]
            }),
        }
    }
}

impl Step {
    fn new(alpha: f32, next: f32, kind: Variance) -> Self {
        let (step_alpha, noise, next_noise) = (alpha / next, 1.0 - alpha, 1.0 - next);
        let beta = 1.0 - step_alpha;
        let variance = (next_noise / noise * beta).max(1e-20);
        Self {
            level: Level::of_alpha(alpha),
            image: next.sqrt() * beta / noise,
            x: step_alpha.sqrt() * next_noise / noise,
            noise: match kind {
                Variance::FixedSmall => Noise::Fixed(variance.sqrt()),
                Variance::FixedSmallLog => Noise::Fixed((0.5 * variance.ln()).exp()),
                Variance::FixedLarge => Noise::Fixed(beta.sqrt()),
                Variance::Learned => Noise::Variance,
                Variance::LearnedRange => Noise::Range { low: variance.ln(), high: beta.ln() },
            },
        }
    }
}

impl Noise {
    /// As the device counts them.
    fn kind(self) -> f32 {
        match self {
            Noise::None => 0.0,
            Noise::Fixed(_) => 1.0,
            Noise::Variance => 2.0,
            Noise::Range { .. } => 3.0,
        }
    }

    fn numbers(self) -> [f32; 2] {
        match self {
            Noise::None | Noise::Variance => [0.0; 2],
            Noise::Fixed(std) => [std, 0.0],
            Noise::Range { low, high } => [low, high],
        }
    }
}
