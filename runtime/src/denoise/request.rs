//! What is asked of a denoiser, and the rows of it that one batch takes.

use super::DenoiseError;
use cqc_proto::Tensor;
use cqc_proto::plan::Plan;
use std::collections::BTreeMap;

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
    /// What the unconditional half of guidance gets, one row per sample, or one for all. An input
    /// that is missing here gets the null condition of the artifact, or else its condition.
    pub unconditional: BTreeMap<String, Tensor>,
    /// Scale of guidance; `None`: that of the artifact. Anything but 1 needs a denoiser that was
    /// opened with guidance.
    pub guidance: Option<f32>,
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
            unconditional: BTreeMap::new(),
            guidance: None,
        }
    }
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

/// The rows of both, one after the other.
pub(super) fn joined(u: &Tensor, c: &Tensor) -> Result<Tensor, DenoiseError> {
    let mut shape = c.shape().to_vec();
    shape[0] += u.shape()[0];
    Ok(Tensor::new(c.dtype(), shape, [&u.bytes()[..], &c.bytes()[..]].concat())?)
}
