//! Gather, scatter and the other operators with index operands.

use super::*;

/// The combination of a scattered update with the present element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ScatterReduction {
    #[default]
    None,
    Add,
    Mul,
    Min,
    Max,
}

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    match op {
        Op::Gather { axis } => gather(*axis, inputs),
        Op::GatherElements { axis } => gather_elements(*axis, inputs),
        Op::GatherNd { batch_dims } => gather_nd(*batch_dims, inputs),
        Op::ScatterNd { reduction } => scatter_nd(*reduction, inputs),
        Op::ScatterElements { axis, reduction } => scatter_elements(*axis, *reduction, inputs),
        Op::OneHot { axis, depth } => one_hot(*axis, *depth, inputs),
        Op::TopK { axis, k, .. } => top_k(*axis, *k, single(inputs)?),
        Op::CumSum { axis, .. } => {
            let x = single(inputs)?;
            check_axis(*axis, x)?;
            check(x.dtype != DType::Bool, || "does not take bool".into())?;
            Ok(vec![x.clone()])
        }
        _ => unreachable!("dispatched by Op::infer"),
    }
}

/// Inputs 0 and 1. The second must be of an integer type.
fn data_and_indices<'a>(inputs: &InputTypes<'a>) -> Result<(&'a ValueType, &'a ValueType), String> {
    let (data, indices) = (required(inputs, 0, "data")?, required(inputs, 1, "indices")?);
    check(indices.dtype.is_integer(), || {
        format!("the indices are {}, expected an integer type", indices.dtype)
    })?;
    Ok((data, indices))
}

fn gather(axis: usize, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 2)?;
    let (data, indices) = data_and_indices(inputs)?;
    check_axis(axis, data)?;
    let shape = [&data.shape[..axis], &indices.shape, &data.shape[axis + 1..]].concat();
    Ok(vec![ValueType::new(data.dtype, shape)])
}

/// Checks that `indices` has data's rank and, except along `axis`, no larger size.
fn check_elements(axis: usize, data: &ValueType, indices: &ValueType) -> Result<(), String> {
    check_axis(axis, data)?;
    let smaller = |(k, (i, d)): (usize, (&Dim, &Dim))| {
        k == axis || d.sub(i).is_some_and(|rest| not_negative(&rest))
    };
    let fits = indices.rank() == data.rank()
        && indices.shape.iter().zip(&data.shape).enumerate().all(smaller);
    check(fits, || {
        format!("the indices are {indices}, which exceeds data {data} beside axis {axis}")
    })
}

fn gather_elements(axis: usize, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 2)?;
    let (data, indices) = data_and_indices(inputs)?;
    check_elements(axis, data, indices)?;
    Ok(vec![ValueType::new(data.dtype, indices.shape.clone())])
}

/// The size of the last axis of `indices`, which is the number of data's axes after the batch axes
/// that an index tuple addresses.
fn tuple_size(data: &ValueType, indices: &ValueType, batch_dims: usize) -> Result<usize, String> {
    let size = indices.shape.last().and_then(Dim::as_const).and_then(|k| usize::try_from(k).ok());
    let most = data.rank().saturating_sub(batch_dims);
    size.filter(|k| (1..=most).contains(k)).ok_or_else(|| {
        format!("the indices are {indices}, expected a last axis of 1 to {most} for data {data}")
    })
}

fn gather_nd(batch_dims: usize, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 2)?;
    let (data, indices) = data_and_indices(inputs)?;
    let k = tuple_size(data, indices, batch_dims)?;
    let shared =
        batch_dims < indices.rank() && data.shape[..batch_dims] == indices.shape[..batch_dims];
    check(shared, || {
        format!("data {data} and indices {indices} do not share {batch_dims} batch axes")
    })?;
    let shape = [&indices.shape[..indices.rank() - 1], &data.shape[batch_dims + k..]].concat();
    Ok(vec![ValueType::new(data.dtype, shape)])
}

fn check_updates(
    reduction: ScatterReduction,
    data: &ValueType,
    updates: &ValueType,
    expected: &[Dim],
) -> Result<(), String> {
    check(updates.dtype == data.dtype && updates.shape == expected, || {
        format!("the updates are {updates}, expected {}", ValueType::new(data.dtype, expected))
    })?;
    check(reduction == ScatterReduction::None || data.dtype != DType::Bool, || {
        format!("{reduction:?} does not take bool")
    })
}

fn scatter_nd(reduction: ScatterReduction, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 3)?;
    let (data, indices) = data_and_indices(inputs)?;
    let k = tuple_size(data, indices, 0)?;
    let expected = [&indices.shape[..indices.rank() - 1], &data.shape[k..]].concat();
    check_updates(reduction, data, required(inputs, 2, "updates")?, &expected)?;
    Ok(vec![data.clone()])
}

fn scatter_elements(axis: usize, reduction: ScatterReduction, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 3)?;
    let (data, indices) = data_and_indices(inputs)?;
    check_elements(axis, data, indices)?;
    check_updates(reduction, data, required(inputs, 2, "updates")?, &indices.shape)?;
    Ok(vec![data.clone()])
}

fn one_hot(axis: usize, depth: i64, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 2)?;
    let (indices, values) = (required(inputs, 0, "indices")?, required(inputs, 1, "values")?);
    check(indices.dtype != DType::Bool, || "the indices are bool, expected a number type".into())?;
    check(values.shape == [Dim::constant(2)], || {
        format!("the values are {values}, expected [off, on]")
    })?;
    check(axis <= indices.rank(), || format!("`axis` is {axis} for indices {indices}"))?;
    check((0..=MAX_DIM).contains(&depth), || format!("`depth` is {depth}"))?;
    let mut shape = indices.shape.clone();
    shape.insert(axis, depth.into());
    Ok(vec![ValueType::new(values.dtype, shape)])
}

fn top_k(axis: usize, k: i64, x: &ValueType) -> Inferred {
    check_axis(axis, x)?;
    check(x.dtype != DType::Bool, || "does not take bool".into())?;
    let rest = x.shape[axis].sub(&k.into());
    check(k >= 0 && rest.is_some_and(|r| not_negative(&r)), || {
        format!("`k` is {k}, axis {axis} has {}", x.shape[axis])
    })?;
    let mut shape = x.shape.clone();
    shape[axis] = k.into();
    Ok(vec![ValueType::new(x.dtype, shape.clone()), ValueType::new(DType::I64, shape)])
}
