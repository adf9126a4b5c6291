//! Tensors that the command line gives to a model.

use super::args::NamedFile;
use super::report::Failure;
use cqc_proto::plan::PlanInput;
use cqc_proto::{Tensor, ValueType};
use std::collections::BTreeMap;

/// Reads every `NAME=FILE` or `NAME=NUMBER`. A later one of the same name replaces an earlier one.
pub fn read_named(files: &[NamedFile]) -> Result<BTreeMap<String, Tensor>, Failure> {
    files.iter().map(|f| Ok((f.name.clone(), f.array().read(&f.name)?))).collect()
}

/// The batch size of the given tensors, found at the axis `batch_symbol` of their inputs; 1 if none
/// of them tells, and `fixed` if the model has no such axis.
pub fn batch_of(
    inputs: &[PlanInput],
    batch_symbol: Option<&str>,
    fixed: Option<usize>,
    given: &BTreeMap<String, Tensor>,
) -> usize {
    let Some(symbol) = batch_symbol else { return fixed.unwrap_or(1) };
    let told = inputs.iter().filter_map(|input| {
        let tensor = given.get(&input.name).filter(|t| t.shape().len() == input.ty.rank())?;
        input
            .ty
            .shape
            .iter()
            .zip(tensor.shape())
            .find_map(|(d, &size)| (d.as_symbol() == Some(symbol)).then_some(size))
    });
    told.into_iter().find(|&n| n > 0).unwrap_or(1)
}

/// The shape of a type at a batch size; `None` if it is too large.
pub fn shape_at(ty: &ValueType, batch_symbol: Option<&str>, batch: usize) -> Option<Vec<usize>> {
    ty.resolve(&batch_symbol.into_iter().map(|s| (s.into(), batch as i64)).collect())
}
