//! Decides which evaluations are full and how the cache is corrected, by running the loop on the
//! calibration set.
//!
//! ```text
//! observe   one ordinary trajectory per calibration sample: distances between cached tensors,
//!           moments, and the cost of an output that is computed from an older cache
//! schedules the candidates that follow from these numbers
//! correct   affine tables for a schedule, fitted on the ordinary trajectory or on the accelerated
//!           one
//! measure   the accelerated loop on held-out samples: the best candidate wins
//! ```
//!
//! The tensors are processed as they are computed: only the cached tensors of the longest group of
//! evaluations are in memory, not those of all evaluations.

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

/// Options of the calibration of a cached loop.
pub struct CalibrationOptions<'a> {
    /// About one evaluation of this number is full.
    pub interval: usize,
    /// The method that chooses the schedule, or the schedule itself.
    pub schedule: ScheduleSource,
    /// Whether the cache may be corrected.
    pub correct: CorrectionPolicy,
    /// The calibration samples. The last ones are held out ([`holdout_size`]).
    pub request: Request,
    /// Largest number of samples on which the effect of older caches on the output is observed.
    pub output_samples: usize,
    /// Called after every evaluation with the number of evaluations done and an estimate of all.
    /// [`ControlFlow::Break`] ends the calibration.
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// The schedule that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleSource {
    /// The schedule that this method finds.
    Method(ScheduleKind),
    /// These full evaluations.
    Given(Vec<usize>),
}

/// The correction that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorrectionPolicy {
    /// No correction.
    Never,
    /// The form that is best on the holdout, which may be none.
    Best,
    /// This form, whether it helps or not.
    Always(CorrectionFit),
}

/// Why a cached loop cannot be calibrated.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The loop cannot be run.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// The method has no schedule with that number of full evaluations.
    #[error("there is no {kind} schedule with {full} full evaluations of {evaluations}")]
    NoSchedule {
        /// The method.
        kind: ScheduleKind,
        /// Number of full evaluations.
        full: usize,
        /// Number of all evaluations.
        evaluations: usize,
    },
    /// A given schedule does not fit the loop.
    #[error("schedule: {0}")]
    Schedule(String),
    /// The cached step does not give what the full step gives, which is a bug of the compiler and
    /// never of the model.
    #[error(
        "internal error: at evaluation {evaluation} the cached step gives {cached} where the full one gives {full}; please report it with the model"
    )]
    CutInvariant {
        /// The evaluation.
        evaluation: usize,
        /// An element of the result of the full step.
        full: f32,
        /// The same element of the result of the cached step.
        cached: f32,
    },
    /// The input of a layer has elements that are infinite or NaN.
    #[error("`{value}` is not finite at evaluation {evaluation}: no range can be found for it")]
    NotFinite {
        /// Name of the value.
        value: String,
        /// The evaluation.
        evaluation: usize,
    },
    /// There are too few samples to fit on some and to measure on others.
    #[error("there are {0} calibration samples, but at least 2 are needed")]
    Samples(usize),
}

/// Counts evaluations, and lets the caller end the run.
pub(crate) struct EvaluationCounter<'a> {
    pub done: u64,
    pub all: u64,
    pub call: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// Counts evaluations of smaller batches in units of the batches that [`EvaluationCounter`] counts.
pub(crate) struct PartialBatches {
    samples: usize,
    width: usize,
    done: usize,
}

impl PartialBatches {
    /// Evaluations of `samples` samples, where other batches have `width`.
    pub(crate) fn new(samples: usize, width: usize) -> PartialBatches {
        PartialBatches { samples, width, done: 0 }
    }

    /// Counts one of these evaluations.
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
