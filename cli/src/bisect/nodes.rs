//! Compares the values that two programs compute from the same sample.

use super::BisectArgs;
use crate::lockstep::{crosses, relative_error};
use crate::report::Failure;
use crate::source::SampleSource;
use cqc_proto::plan::{Plan, PlanValue, ProgramKind};
use cqc_proto::{Tensor, ValueType};
use cqc_runtime::denoise::{Request, fill_value};
use cqc_runtime::engine::{Engine, EngineOptions};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The comparison.
#[derive(Debug, Default, Serialize)]
pub struct Nodes {
    /// The reason why there is no comparison.
    pub not_compared: Option<String>,
    /// Number of values that both programs have, by name and type.
    pub compared: usize,
    /// Index in `values` of the first one beyond the limit.
    pub first: Option<usize>,
    /// The compared values, in the order in which A computes them.
    pub values: Vec<Node>,
}

/// A value, and the error of B's relative to A's.
#[derive(Debug, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The operator that computes it in A.
    pub op: String,
    /// With guidance, the half: `conditional` or `unconditional`.
    pub half: Option<&'static str>,
    /// |a − b| / |a|.
    pub error: f64,
}

/// Runs both at `evaluation` on A's sample `x`, which is sample `sample` of the request.
pub fn compare(
    both: [&SampleSource; 2],
    request: &Request,
    sample: usize,
    evaluation: usize,
    x: &[f32],
    args: &BisectArgs,
) -> Result<Nodes, Failure> {
    let [a, b] = both;
    for denoiser in both {
        if denoiser.plan().program_at(evaluation) != ProgramKind::Full {
            let why =
                format!("{} reuses its cache at evaluation {evaluation}", denoiser.path.display());
            return Ok(Nodes { not_compared: Some(why), ..Nodes::default() });
        }
    }
    let common = common_values(a.plan(), b.plan());
    let names: Vec<String> = common.iter().map(|(name, _)| name.clone()).collect();
    let request = request.part(sample..sample + 1);
    let manifest = a.artifact.manifest();
    let guided = request.guidance.is_some_and(|scale| scale != 1.0) && !manifest.takes_guidance();
    let mut request = request;
    for (name, fill) in &manifest.fills {
        let input = manifest.plan.inputs.iter().find(|i| i.name == *name);
        let width = input.and_then(|i| i.ty.shape.last()?.as_const());
        let value = fill_value(*fill, request.guidance.unwrap_or(a.guidance()), a.steps, width)?;
        request.conditions.entry(name.clone()).or_insert(value);
    }
    let mut nodes = Nodes { compared: names.len(), ..Nodes::default() };
    for half in if guided { vec![Some("conditional"), Some("unconditional")] } else { vec![None] } {
        let mut conditions = request.conditions.clone();
        if half == Some("unconditional") {
            conditions.extend(request.unconditional.clone());
        }
        let run = |d: &SampleSource| {
            values_at(d, evaluation, x, &conditions, &names, args.sampling.threads.count())
        };
        let (of_a, of_b) = (run(a)?, run(b)?);
        for (((name, op), a), b) in common.iter().zip(of_a).zip(of_b) {
            let error = relative_error(&b.to_f32_vec(), &a.to_f32_vec());
            nodes.values.push(Node { name: name.clone(), op: op.clone(), half, error });
        }
    }
    nodes.first = nodes.values.iter().position(|n| crosses(n.error, args.tolerance));
    Ok(nodes)
}

/// The values that both full programs compute under the same name and type, with A's operator and
/// in A's order.
fn common_values(a: &Plan, b: &Plan) -> Vec<(String, String)> {
    let written = |plan: &'_ Plan| -> Vec<(String, String, ValueType)> {
        let outputs =
            plan.full.steps.iter().flat_map(|s| s.outputs.iter().map(|&v| (s.op.name(), v)));
        let of = |(op, v): (String, usize)| {
            let PlanValue { name, ty, .. } = &plan.full.values[v];
            (name.clone(), op, one_batch_symbol(ty, plan))
        };
        outputs.map(of).collect()
    };
    let unique = |list: &[(String, String, ValueType)], name: &str| {
        list.iter().filter(|(n, ..)| n == name).count() == 1
    };
    let (of_a, of_b) = (written(a), written(b));
    let types: BTreeMap<&str, &ValueType> =
        of_b.iter().filter(|(n, ..)| unique(&of_b, n)).map(|(n, _, ty)| (n.as_str(), ty)).collect();
    let mut seen = BTreeSet::new();
    let both = of_a
        .iter()
        .filter(|(name, _, ty)| types.get(name.as_str()) == Some(&ty) && unique(&of_a, name));
    both.filter(|(name, ..)| seen.insert(name))
        .map(|(name, op, _)| (name.clone(), op.clone()))
        .collect()
}

/// The type at a batch of one, so that the names of batch symbols do not matter.
fn one_batch_symbol(ty: &ValueType, plan: &Plan) -> ValueType {
    let bindings = plan
        .batch_symbol
        .iter()
        .map(|s| (s.as_str().into(), plan.fixed_batch.unwrap_or(1) as i64))
        .collect();
    ty.resolve(&bindings).map_or_else(|| ty.clone(), |shape| ValueType::fixed(ty.dtype, &shape))
}

/// The values `names` of the full program at `evaluation`, for one sample.
fn values_at(
    denoiser: &SampleSource,
    evaluation: usize,
    x: &[f32],
    conditions: &BTreeMap<String, Tensor>,
    names: &[String],
    threads: usize,
) -> Result<Vec<Tensor>, Failure> {
    let (plan, sampler) = (denoiser.plan(), denoiser.sampler()?);
    let batch = plan.fixed_batch.unwrap_or(1);
    let mut scaled = vec![0.0; x.len()];
    sampler.scale_input(evaluation, x, &mut scaled);
    let shape = [&[1], &denoiser.sample_shape()?[..]].concat();
    let mut inputs: BTreeMap<String, Tensor> = BTreeMap::new();
    for input in &plan.inputs {
        let is_sample = input.role == cqc_proto::plan::InputRole::Sample;
        let given = if is_sample {
            Some(Tensor::from_f32(&shape, &scaled))
        } else {
            conditions.get(&input.name).cloned()
        };
        if let Some(row) = given {
            inputs.insert(input.name.clone(), repeated(&row, &input.ty, plan, batch)?);
        }
    }
    let options = EngineOptions { batch, threads, keep: names.to_vec(), ..Default::default() };
    let mut engine = Engine::open(denoiser.artifact.weights(), &options)?;
    let timesteps: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
    let request = engine.run_at(evaluation, &timesteps, &inputs)?;
    Ok(names
        .iter()
        .map(|name| engine.tap(&request, name).expect("it was kept, and the engine has run"))
        .collect())
}

/// Repeats a row for the whole batch, if the first axis of the input is the batch.
fn repeated(row: &Tensor, ty: &ValueType, plan: &Plan, batch: usize) -> Result<Tensor, Failure> {
    let first = ty.shape.first();
    let batched = match &plan.batch_symbol {
        Some(symbol) => first.is_some_and(|d| d.as_symbol() == Some(symbol)),
        None => first.is_some_and(|d| d.is(batch as i64)),
    };
    if !batched || row.shape().first() != Some(&1) {
        return Ok(row.clone());
    }
    let mut shape = row.shape().to_vec();
    shape[0] = batch;
    Tensor::new(row.dtype(), shape, row.bytes().repeat(batch))
        .map_err(|e| Failure::failed(e.to_string()))
}
