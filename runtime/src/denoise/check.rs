//! Checks on a request that need no computation.

use super::{DenoiseError, Request};
use cqc_proto::op::{Family, operand};
use cqc_proto::plan::{InputRole, Plan, Program, Source};
use cqc_proto::{Op, Tensor};

/// Checks the guidance scale of a request and the values of its noise, its image, its mask and the
/// conditions of both halves.
///
/// # Errors
/// [`DenoiseError::Guidance`] for the scale, [`DenoiseError::NotFinite`] for infinities and NaN,
/// [`DenoiseError::MaskValue`] for a mask outside of 0 to 1, [`DenoiseError::Label`] for a label
/// without a row in its table.
pub fn check_request(plan: &Plan, request: &Request) -> Result<(), DenoiseError> {
    request.guidance.map_or(Ok(()), check_guidance)?;
    if let Some(noise) = &request.noise {
        check_finite("noise", noise, false)?;
    }
    if let Some(init) = &request.init {
        check_finite("init", init, false)?;
    }
    if let Some(mask) = &request.mask {
        let outside = |v: &f64| !(0.0..=1.0).contains(v);
        let value = mask.to_f64_vec().into_iter().find(outside);
        value.map_or(Ok(()), |value| Err(DenoiseError::MaskValue { value: value as f32 }))?;
    }
    let halves = [&request.conditions, &request.unconditional];
    let given = halves.into_iter().chain([&request.step_conditions, &request.unconditional_steps]);
    let given = given.flatten();
    given.into_iter().try_for_each(|(name, tensor)| check_condition(plan, name, tensor))
}

/// Checks the values that are given for one input of the model. Floats must be finite, except that
/// an input with `mask` in its name may hold −∞. Integers that select rows of a table must be
/// within the table.
///
/// # Errors
/// [`DenoiseError::NotFinite`], [`DenoiseError::Label`].
pub fn check_condition(plan: &Plan, name: &str, given: &Tensor) -> Result<(), DenoiseError> {
    let condition = |i: &cqc_proto::plan::PlanInput| {
        i.name == name && i.role == InputRole::Condition && i.ty.dtype.is_integer()
    };
    if given.dtype().is_float() {
        let is_mask = name.to_lowercase().contains("mask");
        return check_finite(name, given, is_mask);
    }
    let Some(input) = plan.inputs.iter().position(condition) else { return Ok(()) };
    let Some((table, rows)) = table_of(plan, input) else { return Ok(()) };
    let outside = |label: &f64| *label < 0.0 || *label >= rows as f64;
    match given.to_f64_vec().into_iter().find(outside) {
        None => Ok(()),
        Some(label) => {
            Err(DenoiseError::Label { name: name.into(), label: label as i64, rows, table })
        }
    }
}

/// The number of rows of the smallest table that the labels of input `name` select from, or `None`
/// if they select from no table.
pub fn label_rows(plan: &Plan, name: &str) -> Option<usize> {
    let input = plan.inputs.iter().position(|i| i.name == name)?;
    table_of(plan, input).map(|(_, rows)| rows)
}

/// Checks that a guidance scale is finite and not negative.
pub(super) fn check_guidance(scale: f32) -> Result<(), DenoiseError> {
    if scale.is_finite() && scale >= 0.0 { Ok(()) } else { Err(DenoiseError::Guidance { scale }) }
}

fn check_finite(name: &str, given: &Tensor, masks: bool) -> Result<(), DenoiseError> {
    let values = given.to_f32_vec();
    let wrong = |x: &f32| !(x.is_finite() || (masks && *x == f32::NEG_INFINITY));
    let Some(at) = values.iter().position(wrong) else { return Ok(()) };
    let rows = given.shape().first().copied().unwrap_or(1).max(1);
    let row = at / (values.len() / rows).max(1);
    Err(DenoiseError::NotFinite { name: name.into(), value: values[at], row })
}

/// The smallest table that an input selects rows from: the name of the step that reads it, and its
/// number of rows.
fn table_of(plan: &Plan, input: usize) -> Option<(String, usize)> {
    let programs = [&plan.prelude, &plan.prelude_steps, &plan.full];
    let tables = programs.into_iter().flat_map(|program| tables_in(program, input));
    tables.min_by_key(|(_, rows)| *rows)
}

fn tables_in(program: &Program, input: usize) -> Vec<(String, usize)> {
    let mut is_label: Vec<bool> =
        program.values.iter().map(|v| v.source == Source::Input(input)).collect();
    let mut found = Vec::new();
    for step in &program.steps {
        let reads = |i: usize| step.inputs.get(i).copied().flatten();
        match &step.op {
            Op::Gather { axis } if reads(1).is_some_and(|v| is_label[v]) => {
                let data = reads(operand::X).map(|v| &program.values[v].ty.shape);
                if let Some(rows) = data.and_then(|shape| shape.get(*axis)?.as_const()) {
                    found.push((step.name.clone(), rows as usize));
                }
            }
            // the result holds the same labels in another shape or type
            op if (op.traits().family == Family::Movement || matches!(op, Op::Cast { .. }))
                && reads(operand::X).is_some_and(|v| is_label[v]) =>
            {
                step.outputs.iter().for_each(|&v| is_label[v] = true);
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_guidance_are_finite_and_not_negative() {
        for good in [0.0, 1.0, 7.5] {
            assert!(check_guidance(good).is_ok());
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -2.0] {
            assert!(check_guidance(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_finite_is_named_with_its_row() {
        let t = Tensor::from_f32(&[2, 2], &[0.0, 1.0, f32::NEG_INFINITY, 2.0]);
        let Err(DenoiseError::NotFinite { name, row, .. }) = check_finite("noise", &t, false)
        else {
            panic!("accepted")
        };
        assert_eq!((name.as_str(), row), ("noise", 1));
        assert!(check_finite("mask", &t, true).is_ok());
        let nan = Tensor::from_f32(&[1, 1], &[f32::NAN]);
        assert!(check_finite("mask", &nan, true).is_err());
    }
}
