//! Samplers: the time steps at which the network is evaluated, and the rule that moves the sample
//! by its predictions.
//!
//! The samplers follow the schedulers of diffusers 0.42, see `tests/sampler_goldens.rs`. Their
//! constants come from [`SamplerConfig`]. The module `levels` computes noise levels and time steps,
//! one file per [kind](SamplerKind) in `solvers` makes a [`Table`] from them, and `state` executes
//! the rows of a table.
//!
//! Tables are indexed by *evaluation* of the network, not by sampler step. PLMS evaluates the
//! network twice in its first step, so it has steps + 1 evaluations; PNDM evaluates it four times
//! in each of its first three steps. [`Evaluation::step`] is the step of an evaluation.

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
    /// The time step that the network is told, from 0 to the number of training steps − 1. For the
    /// kinds over σ it may be a fraction, which is always a float32. For models that are told ¼ ln
    /// σ it may be negative.
    pub timestep: f64,
    /// The factor by which the sample is multiplied before the network sees it. It is 1 except for
    /// the kinds over σ.
    pub input_scale: f32,
    /// The sampler step to which the evaluation belongs, from 0.
    pub step: usize,
    /// The noise level of the sample at this evaluation, or `None` if the sampler does not define
    /// it.
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

/// A noise level: x = `signal` · image + `noise` · ε, where ε has unit variance.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // named in the formula
pub struct Level {
    pub signal: f32,
    pub noise: f32,
}

/// One step of DDIM without noise. With x = `signal` · image + `noise` · ε, the next sample is
/// `next_signal` · image + `direction` · ε. The image is clipped if the configuration says so, and
/// ε is not computed again from the clipped image.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[allow(missing_docs)] // named in the formula
pub struct DdimUpdate {
    pub signal: f32,
    pub noise: f32,
    pub next_signal: f32,
    pub direction: f32,
}

/// The reason why a sampler cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] SamplerConfigError),
    /// The number of steps is 0, or greater than the number of training steps or another limit.
    #[error("{steps} sampling steps: there must be {min} to {max}")]
    Steps {
        /// The requested number of steps.
        steps: usize,
        /// The smallest number that this configuration allows.
        min: usize,
        /// The largest number that this configuration allows.
        max: usize,
    },
    /// The configuration has a list of levels or time steps, and its length differs from the number
    /// of steps.
    #[error("{steps} sampling steps, but the list of levels or time steps makes {listed}")]
    ListLength {
        /// The requested number of steps.
        steps: usize,
        /// The number of steps that the list makes.
        listed: usize,
    },
    /// The spacing leads to a time step outside of the training steps.
    #[error(
        "time step {timestep} is outside of training (0 to {train}, exclusive): check steps_offset and the number of steps"
    )]
    TimestepOutside {
        /// The time step that lies outside.
        timestep: f64,
        /// Number of training steps.
        train: u32,
    },
    /// A constant of the update is not finite. This happens for example with epsilon prediction at
    /// a step of pure noise, or with two equal noise levels.
    #[error(
        "evaluation {evaluation} (time step {timestep}) has no finite update: is it pure noise, or a repeated step?"
    )]
    NotFinite {
        /// Index of the evaluation.
        evaluation: usize,
        /// Time step of the evaluation.
        timestep: f64,
    },
    /// The noise levels depend on the number of tokens, and the shift is not known.
    #[error(
        "the scheduler shifts its noise levels by the number of tokens (use_dynamic_shifting), \
         which is not known: give the shift with --flow-mu, or a fixed one with --flow-shift"
    )]
    NoShift,
    /// A loop of this kind cannot begin with that evaluation.
    #[error("{kind} cannot begin with evaluation {evaluation}: {reason}")]
    Middle {
        /// Kind of the sampler.
        kind: SamplerKind,
        /// The evaluation with which the loop was to begin.
        evaluation: usize,
        /// The reason why it cannot begin there.
        reason: &'static str,
    },
}

/// A sampler with its number of steps. All constants of the trajectory are computed when it is
/// made, and it does not change afterwards. The state of a request is a [`State`].
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
    /// The sampler of `config` for `steps` steps. The work is O(training steps + steps).
    ///
    /// # Errors
    /// A [`SamplerError`] if the configuration is invalid, if the number of steps is not possible,
    /// or if a step has no finite update.
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

    /// A sampler whose evaluations have the given time steps, for a caller with a solver of its own
    /// that only asks for predictions. Its rows take the network's output as the next sample.
    /// `config` is stored but otherwise ignored.
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

    /// The configuration from which the sampler was made.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// The evaluations of the network, in order.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.evaluations
    }

    /// The sampler table, with one row per evaluation.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Standard deviation of the sample before the first evaluation. The initial sample is unit
    /// normal noise multiplied by it.
    pub fn initial_scale(&self) -> f32 {
        self.table.initial_scale
    }

    /// Whether [`Sampler::advance`] draws noise at evaluation `i`, one value per element of the
    /// sample.
    pub fn adds_noise(&self, i: usize) -> bool {
        self.table.rows[i].draws_noise()
    }

    /// Whether the network's output must have a second half with the variance.
    pub fn reads_variance(&self) -> bool {
        matches!(self.config.kind, SamplerKind::Ddpm | SamplerKind::UnClip)
            && matches!(self.config.variance_type, Variance::Learned | Variance::LearnedRange)
    }

    /// The constants of DDIM per evaluation, for code that runs the loop without this crate. `None`
    /// for other kinds, for `eta` > 0 and with thresholding.
    pub fn ddim_updates(&self) -> Option<Vec<DdimUpdate>> {
        (self.config.kind == SamplerKind::Ddim && self.config.thresholding.is_none())
            .then(|| solvers::ddim_updates(&self.config, self.steps))
            .flatten()
    }

    /// Computes the network's input at evaluation `i` from the sample `x`. `out` has the length of
    /// `x`.
    pub fn scale_input(&self, i: usize, x: &[f32], out: &mut [f32]) {
        let scale = self.evaluations[i].input_scale;
        assert_eq!(x.len(), out.len());
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale);
    }

    /// Moves the sample `x` `[samples, len]` by the network's `output` at evaluation `i`. The
    /// evaluations must come in order, each once, beginning with [`Sampler::begin`]. After the last
    /// one the state is ready for another trajectory.
    ///
    /// `output` has the length of `x`, or twice that, with prediction and variance per sample. The
    /// variance is read if [`Sampler::reads_variance`], otherwise ignored. If
    /// [`Sampler::adds_noise`], `noise` is called once with a buffer `[samples, len]`, which it
    /// fills with unit normal noise. Nothing is allocated, except by dynamic thresholding.
    ///
    /// # Panics
    /// If a length is wrong, or if an evaluation is left out.
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

    /// The weight of each evaluation: the amount by which the final sample changes if the output of
    /// this evaluation alone changes by 1.
    ///
    /// Clipping is ignored, and so is the change of later outputs that a changed sample causes. For
    /// DDIM with epsilon prediction the weight is |σ − σ′| · √ᾱ of the end, with σ = √((1−ᾱ)/ᾱ).
    /// The work is O(evaluations²).
    pub fn output_weights(&self) -> Vec<f64> {
        let table = self.table.linear();
        let count = self.evaluations.len();
        let mut state = State::of_table(&table, 1, count);
        let (mut x, mut output) = (vec![0.0; count], vec![0.0; count]);
        for (i, row) in table.rows.iter().enumerate() {
            // one element per trajectory; only evaluation i moves the i-th
            output[i] = 1.0;
            state.execute(row, &mut x, &output, count);
            output[i] = 0.0;
        }
        x.into_iter().map(|moved| f64::from(moved.abs())).collect()
    }
}

impl State {
    /// The state for `samples` samples of `len` elements each.
    pub fn new(sampler: &Sampler, samples: usize, len: usize) -> Self {
        let mut state = Self::of_table(&sampler.table, samples, len);
        state.next = sampler.begin;
        state
    }
}

fn min_steps(config: &SamplerConfig) -> usize {
    if config.kind == SamplerKind::Pndm { solvers::PNDM_MIN_STEPS } else { 1 }
}

fn max_steps(config: &SamplerConfig) -> usize {
    use SamplerKind::{CosineDpm, Direct, EdmDpm, EdmEuler, Ipndm, Lcm, Scm, Tcd, Wuerstchen};
    let train = config.num_train_timesteps as usize;
    match config.kind {
        // the levels of these kinds may lie between training steps
        Direct | Scm | Wuerstchen | Ipndm | EdmEuler | EdmDpm | CosineDpm => MAX_STEPS,
        kind if kind.is_flow() => MAX_STEPS,
        Lcm | Tcd if config.timesteps.is_none() => config.original_inference_steps as usize,
        _ => train.min(MAX_STEPS),
    }
}

#[cfg(test)]
mod tests;
