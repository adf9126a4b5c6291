//! Assembles a loop with a cache: the two graphs of a step, a schedule, and the tables that correct
//! the cached tensors.

use super::affine::Affine;
use super::correct::{Correction, correct};
use super::split::Split;
use crate::bind::{Bound, CachedPart};
use cqc_proto::Tensor;
use cqc_proto::op::OpError;

/// Replaces the step of `bound` by the graphs of `split`, and returns the corrections that were
/// inserted: one per slot if there are `rows`, none otherwise.
///
/// `full_evaluations` ascend from 0. `rows[slot][evaluation]` is the correction of a slot. A slot
/// whose rows forecast from two stored tensors gets another slot, after all others, for the older
/// tensor.
///
/// # Errors
/// [`OpError`] if a slot is not a float tensor with channels.
pub fn assemble(
    bound: &Bound,
    split: &Split,
    full_evaluations: &[usize],
    rows: Option<&[Vec<Affine>]>,
) -> Result<(Bound, Vec<Correction>), OpError> {
    let mut bound = bound.clone();
    bound.full = split.full.clone();
    let mut corrections = Vec::new();
    let mut previous = Vec::new();
    for (slot, (of, rows)) in split.slots.iter().zip(rows.into_iter().flatten()).enumerate() {
        let mut table = |what: &str, row: fn(&Affine) -> &[f32]| {
            let values: Vec<f32> = rows.iter().flat_map(row).copied().collect();
            let shape = [rows.len(), values.len() / rows.len()];
            bound.add_table(format!("cache:{}/{what}", of.name), Tensor::from_f32(&shape, &values))
        };
        let (scale, shift) = (table("scale", |a| &a.scale), table("shift", |a| &a.shift));
        let forecasts = rows.iter().any(|a| !a.previous.is_empty());
        let factors = forecasts.then(|| table("previous", |a| &a.previous));
        let before = factors.map(|factors| (split.slots.len() + previous.len(), factors));
        previous.extend(forecasts.then_some(slot));
        corrections.push(Correction { slot, scale, shift, previous: before });
    }
    let mut part = split.cached.clone();
    correct(&mut part, &corrections)?;
    let slots = split.slots.iter().map(|s| s.name.clone()).collect();
    bound.cached =
        Some(CachedPart { part, slots, previous, full_evaluations: full_evaluations.to_vec() });
    Ok((bound, corrections))
}
