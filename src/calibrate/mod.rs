//! Decides when the cached part is computed and how the cache is corrected, by running the loop.
//!
//! ```text
//! observe   one ordinary trajectory per calibration sample: distances between cached tensors, moments, and what an output
//!           costs that is computed from an older cache
//! schedules the candidates that these numbers give
//! correct   affine tables for a schedule: fitted on the ordinary trajectory, or on the accelerated one
//! measure   the accelerated loop on held-out samples: the best candidate wins
//! ```
//!
//! Everything streams: what is in memory are the cached tensors of the longest group of
//! evaluations, not of all.

mod choose;
mod correct;
mod invariant;
pub(crate) mod measure;
mod observe;
mod probe;
pub mod quantize;

pub use choose::{
    CachingChoice, Candidate, MeasuredCandidate, Study, choose, evaluations_to_come, holdout_size,
};
pub use correct::{CacheTables, CorrectionFit};
pub use invariant::check_cut;
pub use measure::Holdout;

use cqc_passes::cache::schedule::ScheduleKind;
use cqc_runtime::denoise::{DenoiseError, Request};
use std::ops::ControlFlow;

/// What to decide, and on what.
pub struct CalibrationOptions<'a> {
    /// About one evaluation of so many is full.
    pub interval: usize,
    /// How the schedule is chosen, or the schedule.
    pub schedule: ScheduleSource,
    /// Whether the cache may be corrected; the default is what measures best.
    pub correct: CorrectionPolicy,
    /// The calibration samples. The last half of them is held out to measure on.
    pub request: Request,
    /// Samples whose trajectories also tell what older caches do to the output, at most.
    pub output_samples: usize,
    /// Called after every evaluation with the number done and an estimate of all; may break off.
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// The schedule asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleSource {
    /// By this method.
    Method(ScheduleKind),
    /// These full evaluations.
    Given(Vec<usize>),
}

/// The correction asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorrectionPolicy {
    /// None.
    Never,
    /// The form that measures best, which may be none.
    Best,
    /// This form, whatever it does.
    Always(CorrectionFit),
}

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The loop could not be run.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// No schedule of that kind exists.
    #[error("there is no {kind} schedule of {full} full evaluations in {evaluations}")]
    NoSchedule {
        /// The kind.
        kind: ScheduleKind,
        /// Full evaluations.
        full: usize,
        /// All evaluations.
        evaluations: usize,
    },
    /// A given schedule does not fit.
    #[error("schedule: {0}")]
    Schedule(String),
    /// The cut is wrong: a bug in the compiler, never in the model.
    #[error(
        "internal error: at evaluation {evaluation} the cached step gives {cached} where the full one gives {full}; please report it with the model"
    )]
    CutInvariant {
        /// Where.
        evaluation: usize,
        /// Of `full`.
        full: f32,
        /// Of `cached`.
        cached: f32,
    },
    /// A layer's input is not a number, or infinite.
    #[error("`{value}` is not finite at evaluation {evaluation}: no range can be found for it")]
    NotFinite {
        /// The value.
        value: String,
        /// The evaluation.
        evaluation: usize,
    },
    /// Too few samples to fit on some and measure on others.
    #[error("{0} calibration samples, at least 2 are needed")]
    Samples(usize),
}

/// Counts evaluations and lets the caller break off.
pub(crate) struct EvaluationCounter<'a> {
    pub done: u64,
    pub all: u64,
    pub call: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// Evaluations of fewer samples than [`EvaluationCounter`] counts by.
pub(crate) struct PartialBatches {
    samples: usize,
    width: usize,
    done: usize,
}

impl PartialBatches {
    /// Evaluations of `samples` where others have `width`.
    pub(crate) fn new(samples: usize, width: usize) -> PartialBatches {
        PartialBatches { samples, width, done: 0 }
    }

    /// After one of them.
    pub(crate) fn step(&mut self, progress: &mut EvaluationCounter) -> Result<(), DenoiseError> {
        self.done += self.samples;
        if self.done >= self.width {
            self.done -= self.width;
            progress.step()?;
        }
        Ok(())
    }
}

impl EvaluationCounter<'_> {
    pub(crate) fn step(&mut self) -> Result<(), DenoiseError> {
        self.done += 1;
        self.all = self.all.max(self.done);
        match (self.call)(self.done, self.all) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DenoiseError::Interrupted),
        }
    }
}
