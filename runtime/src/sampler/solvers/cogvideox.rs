//! The two samplers of CogVideoX (arXiv:2408.06072): DDIM, and the stochastic DPM-Solver++ of
//! second order (arXiv:2211.01095, appendix B). Both use noise levels whose signal-to-noise ratio
//! is divided by `snr_shift_scale` (the schedule shift of arXiv:2312.16145).
//!
//! In diffusers the scalars are float64 if β is `scaled_linear`, and float32 otherwise.

use super::super::levels::schedule::{Level, alphas_cumprod, timesteps};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use cqc_proto::sampler::{Betas, SamplerConfig};

const IMAGE: Register = Register::Temp(0);

/// A step of DDIM, written with the sample instead of the predicted noise.
pub fn ddim(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let trajectory = Trajectory::new(config, steps)?;
    let row = |i: usize| {
        let (mut row, [now, next]) = trajectory.row(config, i, IMAGE);
        let of_x = ((1.0 - next) / (1.0 - now)).sqrt();
        let of_image = next.sqrt() - now.sqrt() * of_x;
        let x = Register::X;
        row.push(Op::sum(x, &[(x, of_x as f32), (IMAGE, of_image as f32)]));
        row
    };
    let rows = (0..trajectory.timesteps.len()).map(row).collect();
    Ok(Table { rows, initial_scale: 1.0 })
}

/// The image of a step is extrapolated from the last two predictions. The first step, and the one
/// that reaches the data, use the last prediction alone.
pub fn dpm(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let trajectory = Trajectory::new(config, steps)?;
    let row = |i: usize| {
        let [image, before] = [i % 2, (i + 1) % 2].map(|n| Register::Kept(n as u8));
        let (mut row, [now, next]) = trajectory.row(config, i, image);
        let width = lambda(next) - lambda(now);
        let of_x = ((1.0 - next) / (1.0 - now)).sqrt() * (-width).exp();
        let of_image = -(-2.0 * width).exp_m1() * next.sqrt();
        let std = (1.0 - next).sqrt() * (1.0 - (-2.0 * width).exp()).sqrt();
        let mut mixed = image;
        if begin.since(i) > 0 && trajectory.next(i).is_some() {
            let half = width / (2.0 * (lambda(now) - lambda(trajectory.alpha(i - 1))));
            mixed = IMAGE;
            row.push(Op::sum(IMAGE, &[(image, (1.0 + half) as f32), (before, -half as f32)]));
        }
        let x = Register::X;
        let terms = [(x, of_x as f32), (mixed, of_image as f32), (Register::Noise, std as f32)];
        row.push(Op::sum(x, &terms));
        row
    };
    let rows = (0..trajectory.timesteps.len()).map(row).collect();
    Ok(Table { rows, initial_scale: 1.0 })
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(alpha: f64) -> f64 {
    0.5 * (alpha / (1.0 - alpha)).ln()
}

struct Trajectory {
    alphas: Vec<f64>,
    timesteps: Vec<usize>,
    stride: usize,
    /// ᾱ after the last step.
    last: f64,
}

impl Trajectory {
    fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        let alphas = shifted_alphas(config);
        let last = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
        let stride = alphas.len() / steps;
        Ok(Self { timesteps: timesteps(config, steps)?, stride, last, alphas })
    }

    fn alpha(&self, i: usize) -> f64 {
        self.alphas[self.timesteps[i]]
    }

    /// The time step at which step `i` ends, or `None` if it ends at the data.
    fn next(&self, i: usize) -> Option<usize> {
        self.timesteps[i].checked_sub(self.stride)
    }

    /// Begins row `i` with the prediction of the image into `image`, and returns it with the
    /// present and the next ᾱ.
    fn row(&self, config: &SamplerConfig, i: usize, image: Register) -> (Row, [f64; 2]) {
        let now = self.alpha(i);
        let level = Level { signal: now.sqrt() as f32, noise: (1.0 - now).sqrt() as f32 };
        let mut row = Row::new(
            Evaluation::unscaled(self.timesteps[i] as f64, i).of(Level::of_alpha(now as f32)),
        );
        row.push(level.image(config.prediction_type, Register::X, Register::Out, image));
        (row, [now, self.next(i).map_or(self.last, |t| self.alphas[t])])
    }
}

/// The shifted ᾱ of every training step, optionally rescaled so that the last step is pure noise.
fn shifted_alphas(config: &SamplerConfig) -> Vec<f64> {
    let scale = config.snr_shift_scale;
    let (mut alphas, single): (Vec<f64>, bool) = match config.betas {
        Betas::ScaledLinear { start, end } => {
            let count = config.num_train_timesteps as usize;
            let width = (end.sqrt() - start.sqrt()) / (count - 1) as f64;
            let mut product = 1.0;
            let next = |i: usize| {
                product *= 1.0 - (start.sqrt() + i as f64 * width).powi(2);
                product
            };
            ((0..count).map(next).collect(), false)
        }
        _ => {
            let plain = SamplerConfig { rescale_betas_zero_snr: false, ..config.clone() };
            (alphas_cumprod(&plain).into_iter().map(f64::from).collect(), true)
        }
    };
    let round = |x: f64| if single { f64::from(x as f32) } else { x };
    for alpha in &mut alphas {
        *alpha = round(*alpha / round(scale + round((1.0 - scale) * *alpha)));
    }
    if config.rescale_betas_zero_snr {
        let (first, last) = (round(alphas[0].sqrt()), round(alphas[alphas.len() - 1].sqrt()));
        for alpha in &mut alphas {
            let root = round(round(round(alpha.sqrt()) - last) * round(first / (first - last)));
            *alpha = round(root * root);
        }
    }
    alphas
}
