//! The loop around the network: which time steps it is asked for, and how its answers move the
//! sample.
//!
//! Semantics are those of diffusers 0.42's schedulers, see `tests/sampler_goldens.rs`; the
//! constants come from [`SamplerConfig`]. `levels` makes noise levels and time steps, a file per
//! [kind](SamplerKind) in `solvers` makes a [`Table`] of them, and `state` executes its rows.
//!
//! Everything is indexed by *evaluation* of the network. PLMS evaluates its first step twice, so it
//! has steps + 1 of them, and PNDM its first three steps four times; [`Evaluation::step`] leads back
//! to the step.

mod guidance;
mod levels;
mod solvers;
mod start;
mod state;
mod table;

pub use guidance::{guide, rescale};
pub use start::Repaint;
pub use state::State;
pub use table::{LearnedStd, Limit, MAX_REGISTERS, MAX_TERMS, Op, Register, Row, Table, Term};

use start::Begin;

use cqc_proto::sampler::{MAX_STEPS, SamplerConfig, SamplerConfigError, SamplerKind, Variance};

/// One evaluation of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// As fed to the network, 0 to the training steps − 1. Of the kinds over σ it may be fractional
    /// (always a float32), and where a model is told ¼ ln σ negative.
    pub timestep: f64,
    /// The network sees the sample times this; 1 but for the kinds over σ.
    pub input_scale: f32,
    /// The sampler step it belongs to, from 0.
    pub step: usize,
    /// What the sample is made of there; `None` where a sampler does not say it.
    pub level: Option<Level>,
}

impl Evaluation {
    fn unscaled(timestep: f64, step: usize) -> Self {
        Self { timestep, input_scale: 1.0, step, level: None }
    }

    fn scaled(timestep: f64, input_scale: f32, step: usize) -> Self {
        Self { timestep, input_scale, step, level: None }
    }

    fn at(self, signal: f32, noise: f32) -> Self {
        self.of(Level { signal, noise })
    }

    fn of(mut self, level: Level) -> Self {
        self.level = Some(level);
        self
    }
}

/// A noise level: x = `signal` · image + `noise` · ε, with ε of unit variance.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // named in the formula
pub struct Level {
    pub signal: f32,
    pub noise: f32,
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
    #[error("{steps} sampling steps: there must be {min} to {max}")]
    Steps {
        /// As asked for.
        steps: usize,
        /// The fewest this configuration allows.
        min: usize,
        /// The most this configuration allows.
        max: usize,
    },
    /// The configuration lists levels or time steps, and not as many as there are steps.
    #[error("{steps} sampling steps, but the list of levels or time steps makes {listed}")]
    ListLength {
        /// As asked for.
        steps: usize,
        /// As many as the list makes.
        listed: usize,
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
    /// The levels depend on the number of tokens.
    #[error(
        "the scheduler shifts its noise levels by the number of tokens (use_dynamic_shifting), \
         which is not known: give the shift with --flow-mu, or a fixed one with --flow-shift"
    )]
    NoShift,
    /// A loop of this kind has no such beginning.
    #[error("{kind} cannot begin with evaluation {evaluation}: {reason}")]
    Middle {
        /// The sampler.
        kind: SamplerKind,
        /// As asked for.
        evaluation: usize,
        /// What is in the way.
        reason: &'static str,
    },
}

/// A sampler with its number of steps: every constant of the trajectory, computed once. It does not
/// change; what a request needs to remember is its [`State`].
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    steps: usize,
    evaluations: Vec<Evaluation>,
    table: Table,
    /// The evaluation with which its trajectories begin.
    begin: usize,
}

impl Sampler {
    /// The trajectory of `config` in `steps` steps. O(training steps + steps).
    ///
    /// # Errors
    /// [`SamplerError`]: an invalid configuration, a wrong number of steps, or steps without a
    /// finite update.
    pub fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        config.validate()?;
        let (min, max) = (min_steps(config), max_steps(config));
        if !(min..=max).contains(&steps) {
            return Err(SamplerError::Steps { steps, min, max });
        }
        let end = usize::from(config.kind.lists_end());
        for (list, end) in [(&config.sigmas, end), (&config.timesteps, 0)] {
            let listed = list.as_ref().map_or(steps, |list| list.len().saturating_sub(end));
            if listed != steps {
                return Err(SamplerError::ListLength { steps, listed });
            }
        }
        Self::with_begin(config, steps, 0)
    }

    /// Evaluations at these time steps for a caller with a solver of its own, who asks for
    /// predictions: what the network answers is the next sample. `config` is kept and not looked at.
    pub(crate) fn of_caller(config: &SamplerConfig, timesteps: &[f64]) -> Self {
        let table = solvers::direct::at(timesteps);
        let evaluations = table.rows.iter().map(|row| row.evaluation).collect();
        Self { config: config.clone(), steps: timesteps.len(), evaluations, table, begin: 0 }
    }

    fn with_begin(
        config: &SamplerConfig,
        steps: usize,
        begin: usize,
    ) -> Result<Self, SamplerError> {
        let table = solvers::table(config, steps, Begin(begin))?;
        let unusable = |(_, row): &(usize, &Row)| !row.is_finite();
        if let Some((i, row)) = table.rows.iter().enumerate().skip(begin).find(unusable) {
            let timestep = row.evaluation.timestep;
            return Err(SamplerError::NotFinite { evaluation: i, timestep });
        }
        let evaluations = table.rows.iter().map(|row| row.evaluation).collect();
        Ok(Self { config: config.clone(), steps, evaluations, table, begin })
    }

    /// What it was made from.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Every evaluation of the network, in order.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.evaluations
    }

    /// Its rows.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Standard deviation of the sample before the first evaluation: scale unit normal noise by it.
    pub fn initial_scale(&self) -> f32 {
        self.table.initial_scale
    }

    /// Whether evaluation `i` asks for noise: then [`Sampler::advance`] draws one value per element
    /// of the sample.
    pub fn adds_noise(&self, i: usize) -> bool {
        self.table.rows[i].draws_noise()
    }

    /// Whether the network's output must have a second half, the variance.
    pub fn reads_variance(&self) -> bool {
        matches!(self.config.kind, SamplerKind::Ddpm | SamplerKind::UnClip)
            && matches!(self.config.variance_type, Variance::Learned | Variance::LearnedRange)
    }

    /// For code that runs the loop without this crate: DDIM's constants per evaluation. `None` for
    /// other kinds, and with `eta` > 0.
    pub fn ddim_updates(&self) -> Option<Vec<DdimUpdate>> {
        (self.config.kind == SamplerKind::Ddim && self.config.thresholding.is_none())
            .then(|| solvers::ddim_updates(&self.config, self.steps))
            .flatten()
    }

    /// What the network sees at evaluation `i` for the sample `x`; `out` is as long as `x`.
    pub fn scale_input(&self, i: usize, x: &[f32], out: &mut [f32]) {
        let scale = self.evaluations[i].input_scale;
        assert_eq!(x.len(), out.len());
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale);
    }

    /// Moves the sample `x` `[samples, len]` by the network's `output` at evaluation `i`.
    /// Evaluations come in order, each once, from [`Sampler::begin`] on; after the last one the
    /// state is ready for another trajectory.
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
        state.next = if i + 1 == self.evaluations.len() { self.begin } else { i + 1 };
        if self.adds_noise(i) {
            noise(&mut state.noise);
        }
        let width = if doubled { 2 * state.len } else { state.len };
        state.execute(&self.table.rows[i], x, output, width);
    }

    /// Per evaluation: by how much the final sample changes if this evaluation's output changes by
    /// 1 and nothing else does.
    ///
    /// Clipping is left out, and so is what the network answers to a changed sample. For DDIM with
    /// epsilon prediction this is
    /// |σ − σ′| with σ = √((1−ᾱ)/ᾱ), times √ᾱ of the end. O(evaluations²).
    pub fn output_weights(&self) -> Vec<f64> {
        let table = self.table.linear();
        let count = self.evaluations.len();
        let mut state = State::of_table(&table, 1, count);
        let (mut x, mut output) = (vec![0.0; count], vec![0.0; count]);
        for (i, row) in table.rows.iter().enumerate() {
            // a trajectory per element: the i-th one is moved by evaluation i only
            output[i] = 1.0;
            state.execute(row, &mut x, &output, count);
            output[i] = 0.0;
        }
        x.into_iter().map(|moved| f64::from(moved.abs())).collect()
    }
}

impl State {
    /// For `samples` samples of `len` elements each.
    pub fn new(sampler: &Sampler, samples: usize, len: usize) -> Self {
        let mut state = Self::of_table(&sampler.table, samples, len);
        state.next = sampler.begin;
        state
    }
}

/// The fewest steps of a trajectory.
fn min_steps(config: &SamplerConfig) -> usize {
    if config.kind == SamplerKind::Pndm { solvers::PNDM_MIN_STEPS } else { 1 }
}

/// The most steps of a trajectory.
fn max_steps(config: &SamplerConfig) -> usize {
    use SamplerKind::{CosineDpm, Direct, EdmDpm, EdmEuler, Ipndm, Lcm, Scm, Tcd, Wuerstchen};
    let train = config.num_train_timesteps as usize;
    match config.kind {
        // levels lie between time steps
        Direct | Scm | Wuerstchen | Ipndm | EdmEuler | EdmDpm | CosineDpm => MAX_STEPS,
        kind if kind.is_flow() => MAX_STEPS,
        Lcm | Tcd if config.timesteps.is_none() => config.original_inference_steps as usize,
        _ => train.min(MAX_STEPS),
    }
}

#[cfg(test)]
mod tests;
