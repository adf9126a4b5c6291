//! Functions that the shape rules share: access to inputs, bounds, broadcasting.

use super::InputTypes;
use crate::dim::{Dim, MAX_DIM};
use crate::types::{MAX_RANK, Shape, ValueType, element_count};

/// The input of an operator that has exactly one.
pub(super) fn single<'a>(inputs: &InputTypes<'a>) -> Result<&'a ValueType, String> {
    match inputs {
        [Some(x)] => Ok(x),
        _ => Err(format!("takes 1 input, got {}", inputs.iter().flatten().count())),
    }
}

/// Input `i`, which must be present.
pub(super) fn required<'a>(
    inputs: &InputTypes<'a>,
    i: usize,
    what: &str,
) -> Result<&'a ValueType, String> {
    inputs.get(i).copied().flatten().ok_or_else(|| format!("input {i} ({what}) is missing"))
}

/// Input `i`, which may be absent.
pub(super) fn optional<'a>(inputs: &InputTypes<'a>, i: usize) -> Option<&'a ValueType> {
    inputs.get(i).copied().flatten()
}

/// Refuses more than `n` inputs.
pub(super) fn at_most(inputs: &InputTypes, n: usize) -> Result<(), String> {
    if inputs.len() > n {
        Err(format!("takes at most {n} inputs, got {}", inputs.len()))
    } else {
        Ok(())
    }
}

pub(super) fn check(condition: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason()) }
}

/// The maximum number of groups or heads of an operator.
pub(super) const MAX_GROUPS: usize = 1 << 20;

/// Refuses types that no tensor can have. Symbolic sizes are checked when they get values.
pub(super) fn check_bounds(what: &str, t: &ValueType) -> Result<(), String> {
    check(t.rank() <= MAX_RANK, || {
        format!("{what} has {} axes, at most {MAX_RANK} are supported", t.rank())
    })?;
    let size_ok = |d: &Dim| d.as_const().is_none_or(|v| (0..=MAX_DIM).contains(&v));
    let count_ok = || t.fixed_shape().is_none_or(|shape| element_count(&shape).is_some());
    check(t.shape.iter().all(size_ok) && count_ok(), || {
        format!("{what} would be {t}, which no tensor can be")
    })
}

pub(super) fn check_axis(axis: usize, x: &ValueType) -> Result<(), String> {
    check(axis < x.rank(), || format!("`axis` is {axis}, x is {x}"))
}

/// Checks that the axes are axes of x, in ascending order, each once.
pub(super) fn check_axes(axes: &[usize], x: &ValueType) -> Result<(), String> {
    let ascending = axes.windows(2).all(|w| w[0] < w[1]);
    check(ascending && axes.last().is_none_or(|&a| a < x.rank()), || {
        format!("`axes` is {axes:?}, expected ascending axes of {x}")
    })
}

/// Whether the size is at least 0 for all values of the symbols (each ≥ 1), as far as
/// [`Dim::is_positive`] can tell.
pub(super) fn not_negative(d: &Dim) -> bool {
    d.add(&1.into()).is_some_and(|d| d.is_positive())
}

/// The shape of two broadcast shapes by numpy's rules. A symbolic size matches itself and 1.
///
/// # Errors
/// A message that names two sizes that do not broadcast.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| {
        (i + s.len()).checked_sub(rank).map_or(Dim::constant(1), |i| s[i].clone())
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y.is(1) => Ok(x),
            (x, y) if x.is(1) => Ok(y),
            (x, y) => Err(format!("sizes {x} and {y} of axis {i} do not broadcast")),
        })
        .collect()
}
