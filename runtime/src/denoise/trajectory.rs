//! Trajectories, and the view of them that an observer gets.

use super::guided::Guidance;
use super::steps::Steps;
use crate::engine::{Engine, EngineError, InFlight};
use crate::noise::Noise;
use crate::sampler::{Repaint, Sampler, State};
use cqc_proto::Tensor;
use std::borrow::Cow;
use std::sync::Arc;

/// The state of a request that an observer sees after an evaluation.
pub struct Moment<'a> {
    /// Index of the evaluation that has just been made.
    pub evaluation: usize,
    /// The evaluation before which the loop ends. It is the number of evaluations unless the
    /// request has [`to`](super::Request::to).
    pub evaluations: usize,
    /// The samples that are being computed, counted from 0 in this request.
    pub samples: std::ops::Range<usize>,
    /// The samples after this evaluation, or `None` if they are on the device.
    pub(super) x: Option<&'a [f32]>,
    /// Number of elements of all samples, padding included.
    pub(super) len: usize,
    /// The engine that evaluates the network.
    pub engine: &'a Engine,
    /// The engine request that ran last. If the halves of guidance are apart, it is the conditional
    /// one.
    pub request: &'a InFlight,
}

impl<'a> Moment<'a> {
    /// The samples after this evaluation, padding included. If they are on a device, this call
    /// copies them from there.
    ///
    /// # Errors
    /// The error of the device.
    pub fn x(&self) -> Result<Cow<'a, [f32]>, EngineError> {
        if let Some(x) = self.x {
            return Ok(Cow::Borrowed(x));
        }
        let mut x = vec![0.0; self.len];
        self.engine.get_samples(self.request, &mut x)?;
        Ok(Cow::Owned(x))
    }

    /// The value of a tap after this evaluation, or `None` if the program that ran does not have
    /// it.
    pub fn tap(&self, name: &str) -> Option<Tensor> {
        self.engine.tap(self.request, name)
    }
}

/// The sample compensation, which is applied after every evaluation: `x · scale + shift` per
/// channel of the sample. It is the variance compensation of Q&C (arXiv:2503.02508).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Compensation {
    /// The factors, `[evaluations · channels]`. The channels are the first axis of a sample.
    pub scale: Vec<f32>,
    /// The summands, `[evaluations · channels]`.
    pub shift: Vec<f32>,
}

/// The state of a loop that is under way, for [`Denoiser::width`](super::Denoiser::width) samples.
/// A clone continues independently from the same state.
#[derive(Clone)]
pub struct Trajectory {
    /// The engine's requests: one, or one for each half of guidance, the unconditional one first.
    pub requests: Vec<InFlight>,
    /// The present samples, `[width, ...]`.
    pub(super) x: Vec<f32>,
    pub(super) state: State,
    pub(super) noise: Noise,
    /// The step conditions of each engine request.
    pub(super) steps: Vec<Steps>,
    pub(super) guidance: Guidance,
    /// The next evaluation.
    pub(super) next: usize,
    /// The evaluation before which the loop ends.
    pub(super) end: usize,
    /// Evaluations before this one run the full step, whatever the schedule says.
    pub(super) full_until: usize,
    /// The sampler of a loop that begins in the middle.
    pub(super) sampler: Option<Arc<Sampler>>,
    /// The image whose masked part is kept.
    pub(super) repaint: Option<Repaint>,
    /// The number of samples that are computed at once.
    pub(super) width: usize,
}

impl Trajectory {
    /// Computes `x · scale + shift` per channel. The channels are the first axis of a sample, and
    /// their number is the length of `scale`.
    ///
    /// # Panics
    /// If the samples cannot be divided into that many channels.
    pub fn map_channels(&mut self, scale: &[f32], shift: &[f32]) {
        map_channels(&mut self.x, self.width, scale, shift);
    }

    /// The present samples, `[width, ...]`.
    pub fn x(&self) -> &[f32] {
        &self.x
    }

    /// The next evaluation, or [`Trajectory::end`] if all are done.
    pub fn next(&self) -> usize {
        self.next
    }

    /// The evaluation before which the loop ends. It is the number of evaluations unless the
    /// request has [`to`](super::Request::to).
    pub fn end(&self) -> usize {
        self.end
    }

    /// Whether a device can move the samples: the loop begins with evaluation 0, nothing is
    /// repainted, and guidance is the same at all evaluations.
    pub(super) fn is_plain(&self) -> bool {
        let guided = self.requests.len() == 1 && self.guidance.is_plain(&(self.next..self.end));
        self.sampler.is_none() && self.repaint.is_none() && guided
    }
}

/// Computes `x · scale + shift` per channel of `samples` samples.
pub(super) fn map_channels(x: &mut [f32], samples: usize, scale: &[f32], shift: &[f32]) {
    let plane = x.len() / samples / scale.len();
    assert_eq!(plane * samples * scale.len(), x.len(), "{} channels", scale.len());
    for (i, plane) in x.chunks_exact_mut(plane).enumerate() {
        let (a, b) = (scale[i % scale.len()], shift[i % scale.len()]);
        plane.iter_mut().for_each(|x| *x = a.mul_add(*x, b));
    }
}
