//! One evaluation of a plan, within bounds.

use cqc_proto::op::Op;
use cqc_proto::plan::{InputRole, Plan, PlanInput, ProgramKind};
use cqc_proto::{Bindings, DType, Tensor, ValueType};
use cqc_runtime::engine::{Engine, EngineOptions, Pool, Weights};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Most bytes of activations.
const MAX_ACTIVATIONS: usize = 4 << 20;

/// Most multiply-accumulates and elements of all programs together: more is slow, which is no
/// fault.
const MAX_WORK: i64 = 1 << 21;

/// Options of every engine: one thread, little memory.
pub fn options(batch: usize) -> EngineOptions {
    static OPTIONS: OnceLock<EngineOptions> = OnceLock::new();
    let options = OPTIONS.get_or_init(|| EngineOptions {
        threads: 1,
        pool: Some(Arc::new(Pool::new(1))),
        max_memory: MAX_ACTIVATIONS,
        prelude_memory: 1 << 20,
        ..EngineOptions::default()
    });
    EngineOptions { batch, ..options.clone() }
}

/// Whether the programs of a plan do little enough to be run at this batch.
pub fn is_small(plan: &Plan, batch: usize) -> bool {
    let evaluations = plan.evaluations.max(1) as i64;
    let kinds = [
        (ProgramKind::Prelude, 1),
        (ProgramKind::PreludeSteps, evaluations),
        (ProgramKind::Full, 1),
    ];
    let cached = plan.cache.is_some().then_some((ProgramKind::Cached, 1));
    let mut total: i64 = 0;
    for (kind, times) in kinds.into_iter().chain(cached) {
        let Some(work) = work(plan, kind, batch as i64) else { return false };
        total = total.saturating_add(work.saturating_mul(times));
    }
    total <= MAX_WORK
}

fn work(plan: &Plan, kind: ProgramKind, batch: i64) -> Option<i64> {
    let bindings: Bindings =
        plan.batch_symbol.iter().map(|symbol| (symbol.as_str().into(), batch)).collect();
    let program = plan.program(kind);
    let fixed = |v: usize| {
        let value = program.values.get(v)?;
        Some(ValueType::fixed(value.ty.dtype, &value.ty.resolve(&bindings)?))
    };
    let mut total: i64 = 0;
    for step in &program.steps {
        let inputs: Option<Vec<Option<ValueType>>> =
            step.inputs.iter().map(|v| v.map_or(Some(None), |v| fixed(v).map(Some))).collect();
        let outputs: Option<Vec<ValueType>> = step.outputs.iter().map(|&v| fixed(v)).collect();
        let (inputs, outputs) = (inputs?, outputs?);
        let inputs: Vec<Option<&ValueType>> = inputs.iter().map(Option::as_ref).collect();
        let cost = step.op.cost(&inputs, &outputs);
        let written = cost.written.as_const()?;
        let window = match &step.op {
            Op::Pool { kernel, .. } => {
                kernel.iter().try_fold(1i64, |n, &k| n.checked_mul(k as i64))?
            }
            _ => 1,
        };
        let work = cost.macs.as_const()?.checked_add(written.checked_mul(window)?)?;
        total = total.checked_add(work.checked_add(cost.read.as_const()?)?)?;
    }
    Some(total)
}

/// A value for an input: small floats; integers that `seed` chooses, also such as index nothing.
pub fn value(dtype: DType, shape: &[usize], seed: u8) -> Option<Tensor> {
    let count = cqc_proto::types::element_count(shape).filter(|&n| n <= MAX_ACTIVATIONS / 8)?;
    Some(match dtype {
        dtype if dtype.is_float() => {
            let values: Vec<f32> = (0..count).map(|i| (i % 7) as f32 / 3.0 - 1.0).collect();
            Tensor::from_f32(shape, &values)
        }
        DType::I64 => {
            let value = [0, 1, 2, -1, 5, i64::MAX, i64::MIN, 999][usize::from(seed % 8)];
            Tensor::from_i64(shape, &vec![value; count])
        }
        other => Tensor::zeros(other, shape).ok()?,
    })
}

/// Opens an engine and runs one evaluation that `seed` chooses; the first thing that is refused
/// ends it.
pub fn evaluate(weights: &Arc<Weights>, batch: usize, seed: u8) -> Option<()> {
    if !is_small(weights.plan(), batch) {
        return None;
    }
    let mut engine = Engine::open(weights, &options(batch)).ok()?;
    let input = |(i, input): (usize, &PlanInput)| {
        let value = value(input.ty.dtype, engine.input_shape(i), seed)?;
        Some((input.name.clone(), value, input.role))
    };
    let inputs: Option<Vec<(String, Tensor, InputRole)>> =
        engine.plan().inputs.iter().enumerate().map(input).collect();
    let inputs: BTreeMap<String, Tensor> =
        inputs?.into_iter().map(|(name, value, _)| (name, value)).collect();
    let evaluations = engine.plan().evaluations;
    let timesteps: Vec<f64> = (0..evaluations).rev().map(|t| t as f64).collect();
    engine.begin(&inputs, &timesteps).ok()?;
    engine.run_at(usize::from(seed) % evaluations.max(1), &timesteps, &inputs).ok()?;
    Some(())
}
