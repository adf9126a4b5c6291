//! Samples on their way from noise to images, and what an observer sees of them.

use super::guided::Guidance;
use super::steps::Steps;
use crate::engine::{Engine, EngineError, InFlight};
use crate::noise::Noise;
use crate::sampler::{Repaint, Sampler, State};
use cqc_proto::Tensor;
use std::borrow::Cow;
use std::sync::Arc;

/// What an observer sees after each evaluation.
pub struct Moment<'a> {
    /// The evaluation just made.
    pub evaluation: usize,
    /// The evaluation before which the loop ends: how many there are, unless the request says
    /// otherwise.
    pub evaluations: usize,
    /// The first sample at work, counted from 0 in this request, and how many.
    pub samples: std::ops::Range<usize>,
    /// The samples after this evaluation; none: they are on the device.
    pub(super) x: Option<&'a [f32]>,
    /// How many elements they have.
    pub(super) len: usize,
    /// The engine.
    pub engine: &'a Engine,
    /// The request that ran last: that of the conditional half if a guided loop is split.
    pub request: &'a InFlight,
}

impl<'a> Moment<'a> {
    /// The samples after this evaluation, padding included. Where a device moves them they come
    /// from there at this call.
    ///
    /// # Errors
    /// What the device says.
    pub fn x(&self) -> Result<Cow<'a, [f32]>, EngineError> {
        if let Some(x) = self.x {
            return Ok(Cow::Borrowed(x));
        }
        let mut x = vec![0.0; self.len];
        self.engine.get_samples(self.request, &mut x)?;
        Ok(Cow::Owned(x))
    }

    /// A kept value of the evaluation; `None` if the program that ran does not have it.
    pub fn tap(&self, name: &str) -> Option<Tensor> {
        self.engine.tap(self.request, name)
    }
}

/// The correction of the samples after every evaluation, `x · scale + shift` per channel of the
/// sample (Q&C's variance compensation, arXiv:2503.02508).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Compensation {
    /// `[evaluations · channels]`, channels being the first axis of a sample.
    pub scale: Vec<f32>,
    /// Likewise.
    pub shift: Vec<f32>,
}

/// Samples on their way from noise, [`Denoiser::width`](super::Denoiser::width) of them. A clone goes its own way from
/// here.
#[derive(Clone)]
pub struct Trajectory {
    /// The engine's requests: one, or one for each half of guidance, unconditional first.
    pub requests: Vec<InFlight>,
    /// The samples now, `[width, ...]`.
    pub(super) x: Vec<f32>,
    pub(super) state: State,
    pub(super) noise: Noise,
    /// What the requests get per evaluation.
    pub(super) steps: Vec<Steps>,
    pub(super) guidance: Guidance,
    /// The evaluation to come.
    pub(super) next: usize,
    /// The evaluation before which it ends.
    pub(super) end: usize,
    /// Evaluations before this one are full, whatever the schedule says.
    pub(super) full_until: usize,
    /// The sampler, where it begins in the middle.
    pub(super) sampler: Option<Arc<Sampler>>,
    /// What is kept of an image.
    pub(super) repaint: Option<Repaint>,
    /// Samples at once.
    pub(super) width: usize,
}

impl Trajectory {
    /// `x · scale + shift` per channel of the samples: their first axis, as many as there are
    /// factors.
    ///
    /// # Panics
    /// When the samples cannot be cut into that many channels.
    pub fn map_channels(&mut self, scale: &[f32], shift: &[f32]) {
        map_channels(&mut self.x, self.width, scale, shift);
    }

    /// The samples now, `[width, ...]`.
    pub fn x(&self) -> &[f32] {
        &self.x
    }

    /// The evaluation to come; [`Trajectory::end`] when all are done.
    pub fn next(&self) -> usize {
        self.next
    }

    /// The evaluation before which it ends: the number of evaluations, unless the request says
    /// otherwise.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Whether the rows of the sampler alone move it, from the first one on, by an output that is
    /// guided as on devices.
    pub(super) fn is_plain(&self) -> bool {
        let guided = self.requests.len() == 1 && self.guidance.is_plain(&(self.next..self.end));
        self.sampler.is_none() && self.repaint.is_none() && guided
    }
}

/// `x · scale + shift` per channel of `samples` samples.
pub(super) fn map_channels(x: &mut [f32], samples: usize, scale: &[f32], shift: &[f32]) {
    let plane = x.len() / samples / scale.len();
    assert_eq!(plane * samples * scale.len(), x.len(), "{} channels", scale.len());
    for (i, plane) in x.chunks_exact_mut(plane).enumerate() {
        let (a, b) = (scale[i % scale.len()], shift[i % scale.len()]);
        plane.iter_mut().for_each(|x| *x = a.mul_add(*x, b));
    }
}
