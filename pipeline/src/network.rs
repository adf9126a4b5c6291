//! A network that is evaluated once per request: a text encoder, or half of an autoencoder.

use crate::PipelineError;
use bytes::Bytes;
use cqc_proto::plan::Plan;
use cqc_proto::{DType, Tensor};
use cqc_runtime::Artifact;
use cqc_runtime::engine::{Engine, EngineOptions};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Most rows that are computed at once.
const MOST_ROWS: usize = 8;

/// A network with its constants, and the engine that ran it last.
#[derive(Debug)]
pub(crate) struct Network {
    artifact: Artifact,
    /// With its batch and its number of threads.
    engine: Mutex<Option<(usize, usize, Engine)>>,
}

impl Network {
    pub(crate) fn open(part: &str, bytes: &Bytes) -> Result<Network, PipelineError> {
        let artifact = Artifact::from_bytes(bytes.clone())
            .map_err(|source| PipelineError::Part { part: part.to_string(), source })?;
        if artifact.manifest().plan.evaluations != 0 {
            return Err(PipelineError::Mismatch(format!("the {part} is a loop, not one network")));
        }
        Ok(Network { artifact, engine: Mutex::new(None) })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.artifact.manifest().plan
    }

    /// Evaluates the network for inputs of as many rows each, a batch at a time.
    pub(crate) fn run(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        threads: usize,
    ) -> Result<BTreeMap<String, Tensor>, PipelineError> {
        let rows = inputs.values().next().and_then(|t| t.shape().first().copied()).unwrap_or(0);
        let batch = self.plan().fixed_batch.unwrap_or(rows.clamp(1, MOST_ROWS));
        let mut kept = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(b, t, _)| (*b, *t) != (batch, threads)) {
            let options = EngineOptions { batch, threads, ..EngineOptions::default() };
            *kept = Some((batch, threads, Engine::open(self.artifact.weights(), &options)?));
        }
        let Some((_, _, engine)) = kept.as_mut() else { return Ok(BTreeMap::new()) };
        let mut parts: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for first in (0..rows).step_by(batch) {
            // the last batch is filled up with its last row
            let taken: Vec<usize> = (first..first + batch).map(|row| row.min(rows - 1)).collect();
            let inputs = inputs.iter().map(|(name, t)| (name.clone(), rows_of(t, &taken)));
            for (name, tensor) in engine.run(&inputs.collect())? {
                if tensor.shape().first() != Some(&batch) {
                    let ty = tensor.value_type();
                    return Err(PipelineError::Mismatch(format!(
                        "the output `{name}` is {ty}, expected {batch} rows"
                    )));
                }
                let kept: Vec<usize> = (0..batch.min(rows - first)).collect();
                parts.entry(name).or_default().push(rows_of(&tensor, &kept));
            }
        }
        Ok(parts.into_iter().map(|(name, parts)| (name, concat(0, &parts))).collect())
    }
}

/// The rows of a tensor at these indices of its first axis.
pub(crate) fn rows_of(tensor: &Tensor, rows: &[usize]) -> Tensor {
    let all = tensor.shape()[0].max(1);
    let row = tensor.bytes().len() / all;
    let bytes: Vec<u8> =
        rows.iter().flat_map(|r| &tensor.bytes()[r * row..(r + 1) * row]).copied().collect();
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows.len();
    Tensor::new(tensor.dtype(), shape, bytes).expect("as many bytes as rows")
}

/// Tensors of one type joined along an axis; they agree in all others.
pub(crate) fn concat(axis: usize, parts: &[Tensor]) -> Tensor {
    let first = &parts[0];
    let size = first.dtype().size();
    let blocks: usize = first.shape()[..axis].iter().product();
    let run = |t: &Tensor| t.shape()[axis..].iter().product::<usize>() * size;
    let mut bytes = Vec::with_capacity(parts.iter().map(|t| t.bytes().len()).sum());
    for block in 0..blocks {
        for part in parts {
            bytes.extend_from_slice(&part.bytes()[block * run(part)..(block + 1) * run(part)]);
        }
    }
    let mut shape = first.shape().to_vec();
    shape[axis] = parts.iter().map(|t| t.shape()[axis]).sum();
    Tensor::new(first.dtype(), shape, bytes).expect("the parts have as many bytes")
}

/// A tensor as 32-bit floats.
pub(crate) fn floats(tensor: &Tensor) -> Tensor {
    match tensor.dtype() {
        DType::F32 => tensor.clone(),
        _ => Tensor::from_f32(tensor.shape(), &tensor.to_f32_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_and_parts_joined_along_any_axis() {
        let all: Vec<f32> = (0..12u8).map(f32::from).collect();
        let t = Tensor::from_f32(&[3, 2, 2], &all);
        assert_eq!(rows_of(&t, &[2, 0]).to_f32_vec(), [8., 9., 10., 11., 0., 1., 2., 3.]);
        let [a, b] = [[1., 2., 3., 4.], [5., 6., 7., 8.]].map(|v| Tensor::from_f32(&[2, 2], &v));
        let parts = [a, b];
        assert_eq!(concat(0, &parts).to_f32_vec(), [1., 2., 3., 4., 5., 6., 7., 8.]);
        assert_eq!(concat(1, &parts).to_f32_vec(), [1., 2., 5., 6., 3., 4., 7., 8.]);
        assert_eq!(concat(1, &parts).shape(), [2, 4]);
    }
}
