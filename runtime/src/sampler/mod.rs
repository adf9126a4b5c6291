//! The loop around the network: which time steps it is asked for, and how its answers move the
//! sample.
//!
//! Semantics are those of diffusers 0.42's schedulers, see `tests/sampler_goldens.rs`; the
//! constants come from [`SamplerConfig`]. One file per [kind](SamplerKind); `schedule` and `sigmas`
//! hold what they share.
//!
//! Everything is indexed by *evaluation* of the network. PLMS evaluates its first step twice, so it
//! has steps + 1 of them; [`Evaluation::step`] leads back to the step.

mod ddim;
mod ddpm;
mod dpmpp;
mod euler;
mod guidance;
mod plms;
mod schedule;
mod sigmas;
mod table;

pub use guidance::guide;
pub use table::{SAMPLER_ROW, SamplerRule, SamplerTable};

use cqc_proto::sampler::{MAX_STEPS, SamplerConfig, SamplerConfigError, SamplerKind, Variance};
use ddim::Ddim;
use ddpm::Ddpm;
use dpmpp::DpmPp;
use euler::Euler;
use plms::Plms;

/// One evaluation of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// As fed to the network, 0 to the training steps − 1. Euler's may be fractional (always a
    /// float32).
    pub timestep: f64,
    /// The network sees the sample times this; 1 but for Euler.
    pub input_scale: f32,
    /// The sampler step it belongs to, from 0.
    pub step: usize,
}

impl Evaluation {
    fn unscaled(timestep: f64, step: usize) -> Self {
        Self { timestep, input_scale: 1.0, step }
    }

    fn one_per_step(timesteps: &[usize]) -> Vec<Self> {
        timesteps.iter().enumerate().map(|(step, &t)| Self::unscaled(t as f64, step)).collect()
    }
}

/// One step of DDIM without noise: with x = `signal` · image + `noise` · ε, the next x is
/// `next_signal` · image + `direction` · ε, the image clipped if the configuration says so, ε not
/// recomputed from it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[allow(missing_docs)] // named in the formula
pub struct DdimUpdate {
    pub signal: f32,
    pub noise: f32,
    pub next_signal: f32,
    pub direction: f32,
}

/// Why there is no such trajectory.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] SamplerConfigError),
    /// More steps than training steps (or than anyone needs), or none.
    #[error("{steps} sampling steps: there must be 1 to {max}")]
    Steps {
        /// As asked for.
        steps: usize,
        /// The most this configuration allows.
        max: usize,
    },
    /// The spacing leads outside the training steps.
    #[error(
        "time step {timestep} is outside of training (0 to {train}, exclusive): check steps_offset and the number of steps"
    )]
    TimestepOutside {
        /// The offending one.
        timestep: f64,
        /// Training steps.
        train: u32,
    },
    /// A constant of the update is not finite, e.g. epsilon prediction at a step of pure noise, or
    /// two equal noise levels.
    #[error(
        "evaluation {evaluation} (time step {timestep}) has no finite update: is it pure noise, or a repeated step?"
    )]
    NotFinite {
        /// Its index.
        evaluation: usize,
        /// Its time step.
        timestep: f64,
    },
}

fn check_finite(evaluation: usize, timestep: f64, numbers: &[f32]) -> Result<(), SamplerError> {
    let finite = numbers.iter().all(|number| number.is_finite());
    if finite { Ok(()) } else { Err(SamplerError::NotFinite { evaluation, timestep }) }
}

/// A sampler with its number of steps: every constant of the trajectory, computed once. It does not
/// change; what a request needs to remember is its [`State`].
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    steps: usize,
    evaluations: Vec<Evaluation>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Ddim(Ddim),
    Ddpm(Ddpm),
    Plms(Plms),
    Euler(Euler),
    DpmPp(DpmPp),
}

impl Sampler {
    /// The trajectory of `config` in `steps` steps. O(training steps + steps).
    ///
    /// # Errors
    /// [`SamplerError`]: an invalid configuration, a wrong number of steps, or steps without a
    /// finite update.
    pub fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        config.validate()?;
        let max = MAX_STEPS.min(config.num_train_timesteps as usize);
        if !(1..=max).contains(&steps) {
            return Err(SamplerError::Steps { steps, max });
        }
        let (rule, evaluations) = match config.kind {
            SamplerKind::Ddim => {
                Ddim::new(config, steps).map(|(rule, list)| (Rule::Ddim(rule), list))
            }
            SamplerKind::Ddpm => {
                Ddpm::new(config, steps).map(|(rule, list)| (Rule::Ddpm(rule), list))
            }
            SamplerKind::Plms => {
                Plms::new(config, steps).map(|(rule, list)| (Rule::Plms(rule), list))
            }
            SamplerKind::Euler => {
                Euler::new(config, steps).map(|(rule, list)| (Rule::Euler(rule), list))
            }
            SamplerKind::DpmPp2m => {
                DpmPp::new(config, steps).map(|(rule, list)| (Rule::DpmPp(rule), list))
            }
        }?;
        Ok(Self { config: config.clone(), steps, evaluations, rule })
    }

    /// What it was made from.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Every evaluation of the network, in order.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.evaluations
    }

    /// Standard deviation of the sample before the first evaluation: scale unit normal noise by it.
    pub fn initial_scale(&self) -> f32 {
        match &self.rule {
            Rule::Euler(euler) => euler.initial_scale(self.config.timestep_spacing),
            _ => 1.0,
        }
    }

    /// Whether evaluation `i` asks for noise: then [`Sampler::advance`] draws one value per element
    /// of the sample.
    pub fn adds_noise(&self, i: usize) -> bool {
        match &self.rule {
            Rule::Ddim(_) => self.config.eta > 0.0,
            Rule::Ddpm(ddpm) => ddpm.adds_noise(i),
            _ => false,
        }
    }

    /// Whether the network's output must have a second half, the variance.
    pub fn reads_variance(&self) -> bool {
        self.config.kind == SamplerKind::Ddpm
            && matches!(self.config.variance_type, Variance::Learned | Variance::LearnedRange)
    }

    /// For code that runs the loop without this crate: DDIM's constants per evaluation. `None` for
    /// other kinds, and with `eta` > 0.
    pub fn ddim_updates(&self) -> Option<Vec<DdimUpdate>> {
        match &self.rule {
            Rule::Ddim(ddim) => ddim.updates(),
            _ => None,
        }
    }

    /// What the network sees at evaluation `i` for the sample `x`; `out` is as long as `x`.
    pub fn scale_input(&self, i: usize, x: &[f32], out: &mut [f32]) {
        let scale = self.evaluations[i].input_scale;
        assert_eq!(x.len(), out.len());
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale);
    }

    /// Moves the sample `x` `[samples, len]` by the network's `output` at evaluation `i`.
    /// Evaluations come in order, each once; after the last one the state is ready for another
    /// trajectory.
    ///
    /// `output` is as long as `x`, or twice as long: per sample, prediction and variance. The
    /// second half is used if [`Sampler::reads_variance`], and else ignored. `noise` is called
    /// once, with a buffer `[samples, len]` to fill with unit normal noise, if
    /// [`Sampler::adds_noise`], and else not at all. Nothing is allocated.
    ///
    /// # Panics
    /// If a length is wrong, or an evaluation is left out.
    pub fn advance(
        &self,
        state: &mut State,
        i: usize,
        x: &mut [f32],
        output: &[f32],
        mut noise: impl FnMut(&mut [f32]),
    ) {
        assert_eq!(i, state.next, "evaluations come in order");
        assert_eq!(
            x.len(),
            state.len * state.samples,
            "the sample has the size its state was made for"
        );
        let doubled = output.len() == 2 * x.len();
        assert!(
            doubled || (output.len() == x.len() && !self.reads_variance()),
            "the network's output fits the sample"
        );
        state.next = (i + 1) % self.evaluations.len();
        let output = Output { data: output, len: state.len, doubled };
        if self.adds_noise(i) {
            noise(&mut state.noise);
        }
        match &self.rule {
            Rule::Ddim(ddim) => ddim.advance(i, x, output, &state.noise),
            Rule::Ddpm(ddpm) => ddpm.advance(i, x, output, &state.noise),
            Rule::Plms(plms) => plms.advance(i, x, output, &mut state.kept),
            Rule::Euler(euler) => euler.advance(i, x, output),
            Rule::DpmPp(dpm) => dpm.advance(i, x, output, &mut state.kept),
        }
    }

    /// Per evaluation: by how much the final sample changes if this evaluation's output changes by
    /// 1 and nothing else does.
    ///
    /// Clipping is left out, and so is what the network answers to a changed sample. For DDIM with
    /// epsilon prediction this is
    /// |σ − σ′| with σ = √((1−ᾱ)/ᾱ), times √ᾱ of the end. O(evaluations²).
    pub fn output_weights(&self) -> Vec<f64> {
        let linear = SamplerConfig {
            clip_sample: false,
            variance_type: Variance::FixedSmall,
            ..self.config.clone()
        };
        let sampler = Self::new(&linear, self.steps).expect("less is asked of it than of `self`");
        let count = self.evaluations.len();
        let mut state = State::new(&sampler, 1, count);
        let (mut x, mut output) = (vec![0.0; count], vec![0.0; count]);
        for i in 0..count {
            // a trajectory per element: the i-th one is moved by evaluation i only
            output[i] = 1.0;
            sampler.advance(&mut state, i, &mut x, &output, |noise| noise.fill(0.0));
            output[i] = 0.0;
        }
        x.into_iter().map(|moved| f64::from(moved.abs())).collect()
    }
}

/// What a trajectory remembers between evaluations.
#[derive(Clone, Debug)]
pub struct State {
    samples: usize,
    len: usize,
    next: usize,
    kept: Vec<Vec<f32>>,
    noise: Vec<f32>,
}

impl State {
    /// For `samples` samples of `len` elements each. PLMS keeps five times the memory of the
    /// samples, the others less.
    pub fn new(sampler: &Sampler, samples: usize, len: usize) -> Self {
        let kept = match sampler.rule {
            Rule::Plms(_) => plms::KEPT,
            Rule::DpmPp(_) => dpmpp::KEPT,
            _ => 0,
        };
        let noise = if sampler.config.is_stochastic() { samples * len } else { 0 };
        Self {
            samples,
            len,
            next: 0,
            kept: vec![vec![0.0; samples * len]; kept],
            noise: vec![0.0; noise],
        }
    }

    /// Noise for an evaluation, one value per element.
    pub(crate) fn draw(&mut self, mut noise: impl FnMut(&mut [f32])) -> &[f32] {
        noise(&mut self.noise);
        &self.noise
    }
}

/// The network's output: per sample `len` predicted elements and, if `doubled`, as many of the
/// variance.
#[derive(Clone, Copy)]
struct Output<'a> {
    data: &'a [f32],
    len: usize,
    doubled: bool,
}

impl Output<'_> {
    /// `x[j] = f(j, x[j], prediction of x[j])` for every element.
    fn mean_onto(self, x: &mut [f32], f: impl FnMut(usize, f32, f32) -> f32) {
        self.onto(x, 0, f);
    }

    /// The same with the variance; only for a doubled output.
    fn variance_onto(self, x: &mut [f32], f: impl FnMut(usize, f32, f32) -> f32) {
        assert!(self.doubled, "checked by `Sampler::advance`");
        self.onto(x, self.len, f);
    }

    fn onto(self, x: &mut [f32], start: usize, mut f: impl FnMut(usize, f32, f32) -> f32) {
        let width = if self.doubled { 2 * self.len } else { self.len };
        for (n, x) in x.chunks_exact_mut(self.len.max(1)).enumerate() {
            let output = &self.data[n * width + start..][..self.len];
            for (j, (x, &output)) in x.iter_mut().zip(output).enumerate() {
                *x = f(n * self.len + j, *x, output);
            }
        }
    }
}

#[cfg(test)]
mod tests;
