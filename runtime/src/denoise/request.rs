//! What is asked of a denoiser, and the rows of it that one batch takes.

use super::DenoiseError;
use cqc_proto::Tensor;
use cqc_proto::cq::GuidanceInterval;
use cqc_proto::plan::{Plan, PlanInput};
use std::collections::BTreeMap;
use std::ops::Range;

/// What to sample. By default one sample of seed 0, with the guidance of the denoiser.
#[derive(Clone, Debug)]
pub struct Request {
    /// How many samples.
    pub samples: usize,
    /// Seed of all noise.
    pub seed: u64,
    /// Number of the first sample: sample `i` draws its noise from stream `first + i` of the seed,
    /// so that a request can be cut in parts that give what the whole gives.
    pub first: u64,
    /// Initial noise of unit variance `[samples, ...]` instead of the seed's; noise that the
    /// sampler adds later still comes from the seed. With `from`: the samples to continue, as a
    /// request with `to` returned them.
    pub noise: Option<Tensor>,
    /// The image to begin with, `[samples, ...]` or one for all, in the scale of the samples: it is
    /// made as noisy as the samples are where the loop begins.
    pub init: Option<Tensor>,
    /// The share of the steps that run on `init`, more than 0 and at most 1, as in diffusers; `None`:
    /// 0.8, with a mask 1, which begins with noise alone.
    pub strength: Option<f32>,
    /// Where `init` is kept: 0 keeps it, 1 repaints. `[samples or 1, channels or 1, ...]`.
    pub mask: Option<Tensor>,
    /// The sampler step with which the loop begins, behind the first, with the samples `noise`.
    pub from: Option<usize>,
    /// The sampler step before which it ends; the samples are then noisy, in the sampler's scale.
    pub to: Option<usize>,
    /// Every input but sample and time step, by name: one row per sample, or one for all.
    pub conditions: BTreeMap<String, Tensor>,
    /// Values that conditions have at each evaluation, by input: `[evaluations, rows, ...]`, one row
    /// per sample, or one for all. For inputs of the role [`InputRole::StepCondition`] that are not
    /// in `conditions`; what is missing in both is given by [`Denoiser::set_condition`].
    ///
    /// [`InputRole::StepCondition`]: cqc_proto::plan::InputRole::StepCondition
    /// [`Denoiser::set_condition`]: super::Denoiser::set_condition
    pub step_conditions: BTreeMap<String, Tensor>,
    /// What the unconditional half of guidance gets instead, likewise.
    pub unconditional_steps: BTreeMap<String, Tensor>,
    /// What the unconditional half of guidance gets, one row per sample, or one for all. An input
    /// that is missing here gets the null condition of the artifact, or else its condition.
    pub unconditional: BTreeMap<String, Tensor>,
    /// Scale of guidance; `None`: that of the artifact. Anything but 1 needs a denoiser that was
    /// opened with guidance, unless the network takes the scale as an input.
    pub guidance: Option<f32>,
    /// How far the guided prediction gets the standard deviation of the conditional one, 0 to 1
    /// (arXiv:2305.08891, section 3.4); `None`: that of the artifact.
    pub guidance_rescale: Option<f32>,
    /// Steps in which guidance applies, of all steps of the loop; `None`: those of the artifact.
    /// In the others the unconditional half is not computed ([`Denoiser::begin`] of a denoiser that
    /// was opened without an interval computes it and leaves it aside).
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
    /// Every tensor that the samples depend on, with what it is: `noise`, `init`, `mask`,
    /// `condition NAME`, `null condition NAME`, or one of the latter per step.
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

    /// The samples of `range` as a request of their own: they come out as in the whole. What has one
    /// row for all samples stays.
    ///
    /// # Panics
    /// When the range leaves the samples.
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

/// Rows `range` on an axis of `all` rows; the tensor itself where it has another number of them.
fn cut(t: &Tensor, axis: usize, all: usize, range: &Range<usize>) -> Tensor {
    if t.shape().get(axis) == Some(&all) { rows_at(t, axis, range) } else { t.clone() }
}

/// Rows `range` on an axis that has them.
///
/// # Panics
/// When it has no such axis, or fewer rows.
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

/// Whether the input's first axis is the batch.
pub(super) fn is_batched(plan: &Plan, name: &str) -> bool {
    let Some(input) = plan.inputs.iter().find(|i| i.name == name) else { return true };
    let first = input.ty.shape.first();
    match (&plan.batch_symbol, plan.fixed_batch) {
        (Some(symbol), _) => first.is_some_and(|d| d.as_symbol() == Some(symbol)),
        (None, fixed) => first.is_some_and(|d| d.is(fixed.unwrap_or(1) as i64)),
    }
}

/// A tensor without axes as one row of the input that it fills; any other tensor as it is.
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

/// Rows `indices` of a tensor that has `samples` rows, or one for all.
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

/// The rows of both on an axis, one after the other. The sizes of the other axes are the same.
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
