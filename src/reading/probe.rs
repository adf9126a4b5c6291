//! Scores a reading.

use crate::compile::{CompileError, LoopOptions, compile_loop};
use crate::model::Model;
use cqc_proto::sampler::{Prediction, SamplerConfig};
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use cqc_runtime::sampler::{Level, Sampler};
use serde::Serialize;
use std::fmt;
use std::ops::ControlFlow;

/// Number of steps of the loop that makes the samples of the test.
const STEPS: usize = 20;

/// Ratios of noise to signal at which the network is tested.
const RATIOS: [f32; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];

/// Largest |ln gain| of a reading that fits. Right readings were measured at 0.01, wrong ones at
/// 0.13 and more (`docs/concepts.md`, "How the reading is tested").
const GAIN: f64 = 0.05;

/// Smallest correlation, over all levels, of a reading that fits.
const CORRELATION: f64 = 0.5;

/// A network whose output correlates with its input by less than this at every level is not
/// trained. Two networks with random weights were measured at 0.35 and 0.91.
pub const FOLLOWS: f64 = 0.95;

/// A model whose samples have fewer elements is not refused for fitting no reading.
pub const FEW_ELEMENTS: usize = 256;

/// The score of a reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The largest |ln gain| over the levels; 0 is perfect. It is infinite if samples are not
    /// finite.
    pub gain: f64,
    /// The smallest correlation, over the levels, of the noise that was added with the noise that
    /// the output stands for.
    pub correlation: f64,
    /// The largest correlation, over the levels, of the network's output with its input.
    #[serde(skip)]
    pub follows: f64,
}

impl Score {
    /// Whether the reading is right.
    pub fn fits(&self) -> bool {
        self.gain <= GAIN && self.correlation >= CORRELATION
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Score { gain, correlation, .. } = self;
        write!(f, "noise put in and noise found: correlation {correlation:.3}, ")?;
        match gain.exp() {
            factor if factor < 2.0 => write!(f, "gain off by {:.1} %", (factor - 1.0) * 100.0),
            factor if factor.is_finite() => write!(f, "gain off by a factor of {factor:.0}"),
            _ => write!(f, "no gain at all"),
        }
    }
}

/// Number of samples of a test with `len` elements each: about 8192 elements, and from 2 to 64
/// samples.
pub fn samples(len: usize) -> usize {
    (8192 / len.max(1)).clamp(2, 64)
}

/// Scores the reading of `config`, the configuration of a deterministic loop.
///
/// # Errors
/// [`CompileError`] if the time steps cannot be given to the model, or if the loop cannot be run.
pub fn score(
    model: &Model,
    config: &SamplerConfig,
    request: &Request,
    threads: usize,
) -> Result<Score, CompileError> {
    let sampler = Sampler::new(config, STEPS)?;
    let options =
        LoopOptions { sampler: config.clone(), steps: STEPS, any_steps: false, bf16: None };
    let lowered = compile_loop(model, &options)?;
    let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
    let engine = EngineOptions { batch: request.samples, threads, ..EngineOptions::default() };
    let mut denoiser = Denoiser::open(&weights, sampler, false, &engine)?;
    let request = Request {
        guidance: Some(1.0),
        guidance_rescale: None,
        guidance_interval: None,
        unconditional: Default::default(),
        ..request.clone()
    };
    let samples = denoiser.sample(&request, &mut |_| ControlFlow::Continue(()))?.to_f32_vec();
    let nothing = Score { gain: f64::INFINITY, correlation: 0.0, follows: 0.0 };
    if !samples.iter().all(|x| x.is_finite()) {
        return Ok(nothing);
    }
    let mut score = Score { gain: 0.0, correlation: 1.0, follows: 0.0 };
    let len = samples.len() / request.samples.max(1);
    for (n, (evaluation, level)) in levels(denoiser.sampler()).into_iter().enumerate() {
        let mut noise = Noise::new(request.seed ^ 0x5eed, n as u64 * 1000, denoiser.width());
        let mut sums = Sums::default();
        for first in (0..request.samples).step_by(denoiser.width()) {
            let mut trajectory = denoiser.begin(&request, first)?;
            let count = denoiser.width() * len;
            let mut put_in = vec![0.0; count];
            noise.fill(&mut put_in);
            let mut input = vec![0.0; count];
            for (i, (x, e)) in input.iter_mut().zip(&put_in).enumerate() {
                let at = (first * len + i).min(samples.len() - 1);
                *x = level.signal * samples[at] + level.noise * e;
            }
            let width = denoiser.width();
            let output = denoiser.predict_at(&mut trajectory, evaluation, &input)?;
            // a learned variance follows the prediction of each sample
            let stride = output.len() / width;
            for sample in 0..width.min(request.samples - first) {
                for j in 0..len {
                    let (i, out) = (sample * len + j, output[sample * stride + j]);
                    let found = noise_of(config.prediction_type, level, input[i], out);
                    sums.add(found, put_in[i], input[i], out);
                }
            }
        }
        let (gain, correlation, follows) = sums.result();
        score.gain = score.gain.max(gain);
        score.correlation = score.correlation.min(correlation);
        score.follows = score.follows.max(follows);
    }
    Ok(score)
}

/// The evaluations nearest to the tested ratios, each once.
fn levels(sampler: &Sampler) -> Vec<(usize, Level)> {
    let all = sampler.evaluations().iter().enumerate();
    let all: Vec<(usize, Level)> = all.filter_map(|(i, e)| Some((i, e.level?))).collect();
    let mut chosen: Vec<(usize, Level)> = Vec::new();
    for ratio in RATIOS {
        let distance = |level: &Level| (level.noise / level.signal.max(1e-6) / ratio).ln().abs();
        let nearest = all.iter().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1)));
        chosen.extend(nearest.filter(|(i, _)| chosen.iter().all(|(at, _)| at != i)));
    }
    chosen
}

/// The noise that an output stands for.
fn noise_of(prediction: Prediction, level: Level, x: f32, out: f32) -> f32 {
    let Level { signal, noise } = level;
    match prediction {
        Prediction::Epsilon => out,
        Prediction::VPrediction => signal * out + noise * x,
        Prediction::Sample => (x - signal * out) / noise,
        Prediction::Flow => x + signal * out,
        Prediction::FlowToData => x - signal * out,
    }
}

/// Sums of products of the noise that was found (f), the noise that was added (e), the input (x)
/// and the output (o).
#[derive(Default)]
struct Sums {
    ff: f64,
    fe: f64,
    ee: f64,
    xx: f64,
    xo: f64,
    oo: f64,
}

impl Sums {
    fn add(&mut self, f: f32, e: f32, x: f32, o: f32) {
        let [f, e, x, o] = [f, e, x, o].map(f64::from);
        self.ff += f * f;
        self.fe += f * e;
        self.ee += e * e;
        self.xx += x * x;
        self.xo += x * o;
        self.oo += o * o;
    }

    /// |ln gain|, the correlation of the noises, and the correlation of the output with the input.
    fn result(&self) -> (f64, f64, f64) {
        let cosine = |ab: f64, aa: f64, bb: f64| ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE);
        let gain = self.fe / self.ff;
        let gain = if gain > 0.0 { gain.ln().abs() } else { f64::INFINITY };
        let follows = cosine(self.xo, self.xx, self.oo).abs();
        (gain, cosine(self.fe, self.ff, self.ee), if follows.is_finite() { follows } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conditional_mean_has_gain_one_and_a_blank_one_has_not() {
        let (mut mean, mut half) = (Sums::default(), Sums::default());
        let mut noise = Noise::new(1, 0, 1);
        let mut values = vec![0.0; 20_000];
        noise.fill(&mut values);
        for pair in values.chunks_exact(2) {
            // image a and noise e of unit variance: the mean of e given x = a + e is x/2
            let [a, e] = [pair[0], pair[1]];
            mean.add((a + e) / 2.0, e, a + e, (a + e) / 2.0);
            half.add((a + e) / 3.0, e, a + e, (a + e) / 3.0);
        }
        assert!(mean.result().0 < 0.02, "{:?}", mean.result());
        assert!(half.result().0 > 0.3, "{:?}", half.result());
    }
}
