//! Work and weights of a plan's programs.

use cqc_proto::op::Cost;
use cqc_proto::plan::{Plan, Program, Source, Step};
use cqc_proto::{Bindings, Dim, ValueType};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The cost of one evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepCost {
    /// Multiply-accumulates, per sample.
    pub macs: i64,
    /// Multiply-accumulates whose operands are rounded, per sample.
    pub quantized_macs: i64,
    /// Bytes of the weights that it reads, as they are stored.
    pub weight_bytes: u64,
    /// Bytes of the same weights as f32.
    pub float_weight_bytes: u64,
}

impl StepCost {
    /// The cost of one run of a program.
    pub fn of(plan: &Plan, program: &Program) -> StepCost {
        let (weight_bytes, float_weight_bytes) = weight_bytes(plan, program);
        let rounds = |step: &&Step| step.op.traits().is_rounding;
        let rounded: BTreeSet<usize> =
            program.steps.iter().filter(rounds).map(|step| step.outputs[0]).collect();
        let reads_rounded = |step: &&Step| {
            step.inputs.first().copied().flatten().is_some_and(|x| rounded.contains(&x))
        };
        let quantized_macs = sum(plan, program, program.steps.iter().filter(reads_rounded));
        StepCost { macs: macs(plan, program), quantized_macs, weight_bytes, float_weight_bytes }
    }
}

/// Multiply-accumulates of a program, per sample.
pub fn macs(plan: &Plan, program: &Program) -> i64 {
    sum(plan, program, program.steps.iter())
}

/// Multiply-accumulates of the loop, per sample and without guidance, if `full` evaluations are
/// full and `cached` evaluations are cached.
pub fn loop_macs(plan: &Plan, full: usize, cached: usize) -> i64 {
    let stacked = plan.batch_symbol.is_none() && !plan.steps_one_by_one();
    let times = if stacked { 1 } else { plan.evaluations as i64 };
    let cached_macs = plan.cache.as_ref().map_or(0, |cache| macs(plan, &cache.cached));
    let steps = macs(plan, &plan.full) * full as i64 + cached_macs * cached as i64;
    macs(plan, &plan.prelude) + macs(plan, &plan.prelude_steps) * times + steps
}

/// Bytes of the cache for one sample, or for the batch size that the plan fixes.
pub fn cache_bytes(plan: &Plan) -> u64 {
    let one = plan.batch_symbol.iter().map(|s| (s.as_str().into(), 1)).collect();
    let size = |value: usize| {
        let ty = &plan.full.values[value].ty;
        ty.resolve(&one)
            .map_or(0, |shape| (shape.iter().product::<usize>() * ty.dtype.size()) as u64)
    };
    plan.cache.iter().flat_map(|cache| &cache.slots).map(|slot| size(slot.value)).sum()
}

/// The work of a step for one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepWork {
    /// Multiply-accumulates.
    pub macs: i64,
    /// Bytes of its operands, weights included, and of its results, in the types of the plan: float
    /// values count as f32.
    pub bytes: i64,
}

/// The work of every step of a program, by name and operator. Steps of the same name and operator
/// do the same work.
pub fn work_of_steps(plan: &Plan, program: &Program) -> BTreeMap<(String, String), StepWork> {
    let named =
        |step: &Step| ((step.name.clone(), step.op.name()), work_of_step(plan, program, step));
    program.steps.iter().map(named).collect()
}

/// The work of one step of a program.
pub fn work_of_step(plan: &Plan, program: &Program, step: &Step) -> StepWork {
    let cost = cost(program, step);
    let number = |dim: &Dim| per_sample(plan, dim);
    StepWork { macs: number(&cost.macs), bytes: number(&cost.read) + number(&cost.written) }
}

fn sum<'a>(plan: &Plan, program: &Program, steps: impl Iterator<Item = &'a Step>) -> i64 {
    let macs = steps.map(|step| cost(program, step).macs);
    per_sample(plan, &macs.fold(Dim::default(), |sum, macs| sum.add(&macs).unwrap_or(sum)))
}

fn cost(program: &Program, step: &Step) -> Cost {
    let inputs: Vec<Option<&ValueType>> =
        step.inputs.iter().map(|v| v.map(|v| &program.values[v].ty)).collect();
    let outputs: Vec<ValueType> =
        step.outputs.iter().map(|&v| program.values[v].ty.clone()).collect();
    step.op.cost(&inputs, &outputs)
}

/// The value for one sample: at a batch of one, or as a share of the fixed batch.
fn per_sample(plan: &Plan, dim: &Dim) -> i64 {
    let one: Bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), 1)).collect();
    dim.eval(&one).unwrap_or(0) / plan.fixed_batch.unwrap_or(1) as i64
}

/// Bytes of all constants that are not tables, with their scales as stored, and without scales as
/// f32.
fn weight_bytes(plan: &Plan, program: &Program) -> (u64, u64) {
    let constant = |source| if let Source::Constant(i) = source { Some(i) } else { None };
    let read: BTreeSet<usize> = program.values.iter().filter_map(|v| constant(v.source)).collect();
    let scales: BTreeSet<usize> = read
        .iter()
        .filter_map(|&i| plan.constants[i].codes.as_ref().map(|codes| codes.scale))
        .collect();
    let stored = |i: &usize| plan.constants[*i].stored_bytes().unwrap_or(0) as u64;
    let float = |i: &usize| {
        let ty = &plan.constants[*i].ty;
        let element = if ty.dtype.is_float() { 4 } else { ty.dtype.size() };
        ty.fixed_shape().map_or(0, |shape| (shape.iter().product::<usize>() * element) as u64)
    };
    (read.union(&scales).map(stored).sum(), read.difference(&scales).map(float).sum())
}
