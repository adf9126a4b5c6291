//! The request that a denoiser serves, and the selection of the rows that one batch needs.

use super::DenoiseError;
use cqc_proto::Tensor;
use cqc_proto::cq::GuidanceInterval;
use cqc_proto::plan::{Plan, PlanInput};
use std::collections::BTreeMap;
use std::ops::Range;

/// An order for samples. The default is one sample of seed 0, with the denoiser's guidance.
#[derive(Clone, Debug)]
pub struct Request {
    /// The number of samples.
    pub samples: usize,
    /// The seed of all noise.
    pub seed: u64,
    /// The number of the first sample. Sample `i` draws its noise from stream `first + i` of the
    /// seed, so the parts of a divided request give the same samples as the whole.
    pub first: u64,
    /// Initial noise of unit variance, `[samples, ...]`, instead of the seed's. Noise that the
    /// sampler adds later still comes from the seed. With `from`, these are the samples to
    /// continue, as a request with `to` returned them.
    pub noise: Option<Tensor>,
    /// The image to begin with, `[samples, ...]` or one for all, in the scale of the samples. It is
    /// made as noisy as the samples are where the loop begins.
    pub init: Option<Tensor>,
    /// The share of the steps that run on `init`, greater than 0 and at most 1, as in diffusers.
    /// `None` stands for 0.8. With a mask, or with a sampler that always begins with an image, it
    /// stands for 1.
    pub strength: Option<f32>,
    /// The mask, `[samples or 1, channels or 1, ...]`. Where it is 0 the image `init` is kept,
    /// where it is 1 the image is repainted.
    pub mask: Option<Tensor>,
    /// The sampler step with which the loop begins, at least 1. It continues the samples in
    /// `noise`.
    pub from: Option<usize>,
    /// The sampler step before which the loop ends. The samples are then still noisy, in the
    /// sampler's scale.
    pub to: Option<usize>,
    /// The conditions by input name, with one row per sample or one for all.
    pub conditions: BTreeMap<String, Tensor>,
    /// The values of step conditions by input name: `[evaluations, rows, ...]`, with one row per
    /// sample or one for all. They are for inputs of the role [`InputRole::StepCondition`] that are
    /// not in `conditions`. Values for inputs that are in neither are set with
    /// [`Denoiser::set_condition`].
    ///
    /// [`InputRole::StepCondition`]: cqc_proto::plan::InputRole::StepCondition
    /// [`Denoiser::set_condition`]: super::Denoiser::set_condition
    pub step_conditions: BTreeMap<String, Tensor>,
    /// The step conditions of the unconditional half of guidance, in the form of `step_conditions`.
    /// An input that is missing here gets its values from there.
    pub unconditional_steps: BTreeMap<String, Tensor>,
    /// The conditions of the unconditional half of guidance, with one row per sample or one for
    /// all. An input that is missing here gets the artifact's null condition or, without one, its
    /// condition.
    pub unconditional: BTreeMap<String, Tensor>,
    /// The guidance scale; `None` takes the denoiser's. Any scale other than 1 needs a denoiser
    /// that was opened with guidance, unless the network takes the scale as an input.
    pub guidance: Option<f32>,
    /// The degree, from 0 to 1, to which the guided prediction gets the standard deviation of the
    /// conditional one (arXiv:2305.08891, section 3.4). `None` takes the denoiser's.
    pub guidance_rescale: Option<f32>,
    /// The part of all steps of the loop in which guidance applies; `None` takes the denoiser's.
    /// Outside of it the unconditional half is not computed. Only [`Denoiser::begin`] of a denoiser
    /// that was opened without an interval computes it nevertheless, and ignores it.
    ///
    /// [`Denoiser::begin`]: super::Denoiser::begin
    pub guidance_interval: Option<GuidanceInterval>,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            samples: 1,
            seed: 0,
            first: 0,
            noise: None,
            init: None,
            strength: None,
            mask: None,
            from: None,
            to: None,
            conditions: BTreeMap::new(),
            step_conditions: BTreeMap::new(),
            unconditional_steps: BTreeMap::new(),
            unconditional: BTreeMap::new(),
            guidance: None,
            guidance_rescale: None,
            guidance_interval: None,
        }
    }
}

impl Request {
    /// All tensors on which the samples depend, each with a description: `noise`, `init`, `mask`,
    /// `condition NAME`, `null condition NAME`, `condition per step NAME` or
    /// `null condition per step NAME`.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let one = [("noise", &self.noise), ("init", &self.init), ("mask", &self.mask)];
        let one = one.into_iter().filter_map(|(what, t)| Some((what.to_string(), t.as_ref()?)));
        let maps = [
            ("condition", &self.conditions),
            ("condition per step", &self.step_conditions),
            ("null condition", &self.unconditional),
            ("null condition per step", &self.unconditional_steps),
        ];
        one.chain(
            maps.into_iter().flat_map(|(what, map)| {
                map.iter().map(move |(name, t)| (format!("{what} {name}"), t))
            }),
        )
    }

    /// The samples of `range` as a request of their own, which gives the same samples as the whole.
    /// Tensors with one row for all samples stay as they are.
    ///
    /// # Panics
    /// If the range exceeds the samples.
    pub fn part(&self, range: Range<usize>) -> Request {
        assert!(range.end <= self.samples, "samples {range:?} of {}", self.samples);
        let all = self.samples;
        let rows = |axis: usize, t: &Tensor| cut(t, axis, all, &range);
        let map = |axis: usize, map: &BTreeMap<String, Tensor>| {
            map.iter().map(|(name, t)| (name.clone(), rows(axis, t))).collect()
        };
        Request {
            samples: range.len(),
            first: self.first.wrapping_add(range.start as u64),
            noise: self.noise.as_ref().map(|t| rows(0, t)),
            init: self.init.as_ref().map(|t| rows(0, t)),
            mask: self.mask.as_ref().map(|t| rows(0, t)),
            conditions: map(0, &self.conditions),
            step_conditions: map(1, &self.step_conditions),
            unconditional_steps: map(1, &self.unconditional_steps),
            unconditional: map(0, &self.unconditional),
            ..self.clone()
        }
    }
}

/// Rows `range` of an axis, or the tensor itself if the axis does not have `all` rows.
fn cut(t: &Tensor, axis: usize, all: usize, range: &Range<usize>) -> Tensor {
    if t.shape().get(axis) == Some(&all) { rows_at(t, axis, range) } else { t.clone() }
}

/// Rows `range` of axis `axis` of a tensor.
///
/// # Panics
/// If the tensor has no such axis, or if the axis has fewer rows.
pub fn rows_at(t: &Tensor, axis: usize, range: &Range<usize>) -> Tensor {
    let all = t.shape()[axis];
    let outer: usize = t.shape()[..axis].iter().product();
    let mut shape = t.shape().to_vec();
    shape[axis] = range.len();
    let row = t.bytes().len() / (outer * all).max(1);
    let part =
        |o: usize| t.bytes().slice((o * all + range.start) * row..(o * all + range.end) * row);
    let bytes = match outer {
        1 => part(0),
        _ => (0..outer).flat_map(|o| part(o).to_vec()).collect::<Vec<u8>>().into(),
    };
    Tensor::new(t.dtype(), shape, bytes).expect("the rows have these sizes")
}

/// Whether the first axis of input `name` is the batch.
pub(super) fn is_batched(plan: &Plan, name: &str) -> bool {
    let Some(input) = plan.inputs.iter().find(|i| i.name == name) else { return true };
    let first = input.ty.shape.first();
    match (&plan.batch_symbol, plan.fixed_batch) {
        (Some(symbol), _) => first.is_some_and(|d| d.as_symbol() == Some(symbol)),
        (None, fixed) => first.is_some_and(|d| d.is(fixed.unwrap_or(1) as i64)),
    }
}

/// A tensor without axes becomes one row of the input that it fills. Other tensors stay as they
/// are.
pub(super) fn row_of_number(plan: &Plan, name: &str, t: &Tensor) -> Result<Tensor, DenoiseError> {
    let input = plan.inputs.iter().find(|i| i.name == name && t.shape().is_empty());
    let Some(PlanInput { ty, .. }) = input else { return Ok(t.clone()) };
    let rest = ty.shape.iter().skip(1).map(|d| Some(d.as_const()? as usize));
    let shape: Option<Vec<usize>> = std::iter::once(Some(1)).chain(rest).collect();
    Ok(match shape {
        Some(shape) => Tensor::full(ty.dtype, &shape, t.to_f64_vec()[0])?,
        None => t.clone(),
    })
}

/// Rows `indices` of a tensor that has `samples` rows, or one row for all.
pub(super) fn gather(
    name: &str,
    t: &Tensor,
    indices: &[usize],
    samples: usize,
) -> Result<Tensor, DenoiseError> {
    let count = t.shape().first().copied().unwrap_or(0);
    if count == 0 || (count != samples && count != 1) {
        let row = t.shape().get(1..).unwrap_or_default().to_vec();
        return Err(DenoiseError::Rows {
            name: name.into(),
            shape: t.shape().to_vec(),
            samples,
            row,
        });
    }
    let row = t.bytes().len() / count;
    let at = |&i: &usize| if count == 1 { 0 } else { i };
    let bytes: Vec<u8> =
        indices.iter().map(at).flat_map(|i| &t.bytes()[i * row..][..row]).copied().collect();
    let mut shape = t.shape().to_vec();
    shape[0] = indices.len();
    Ok(Tensor::new(t.dtype(), shape, bytes)?)
}

/// The rows of `u` and then those of `c` along an axis. All other sizes are equal.
pub(super) fn joined_at(axis: usize, u: &Tensor, c: &Tensor) -> Result<Tensor, DenoiseError> {
    let mut shape = c.shape().to_vec();
    shape[axis] += u.shape()[axis];
    let outer: usize = shape[..axis].iter().product();
    let parts = |t: &Tensor| t.bytes().len() / outer.max(1);
    let (of_u, of_c) = (parts(u), parts(c));
    let both = (0..outer)
        .flat_map(|o| [&u.bytes()[o * of_u..(o + 1) * of_u], &c.bytes()[o * of_c..(o + 1) * of_c]]);
    Ok(Tensor::new(c.dtype(), shape, both.collect::<Vec<_>>().concat())?)
}
