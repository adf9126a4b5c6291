//! Plans from untrusted sources. If validation accepts a plan, the engine runs it or refuses it,
//! but never panics.

mod common;

use common::*;
use cqc_proto::op::{Act, BinaryKind, ConvLayout};
use cqc_proto::plan::*;
use cqc_proto::{DType, Op, Tensor, ValueType};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use serde_json::Value;
use std::collections::BTreeMap;

use ProgramKind::{Full, Prelude, PreludeSteps};

/// A plan with one of many operators after another, on `[N, 4, 4, 8]`.
fn plan() -> Build {
    let mut b = Build::new(3);
    let sample = b.model_input("sample", InputRole::Sample, f32s("N,4,4,8"));
    let labels =
        b.model_input("labels", InputRole::Condition, ValueType::new(DType::I64, shape("N")));
    let (l, table) = (b.input(Prelude, labels), b.weight(Prelude, &[10, 8]));
    let class = b.step(Prelude, Op::Gather { axis: 0 }, &[Some(table), Some(l)]);
    b.plan.prelude.results = vec![class];
    let class = b.value(PreludeSteps, f32s("N,8"), Source::Prelude(0));
    let times = b.store(&tensor(&[3, 8], 7));
    let time = b.value(PreludeSteps, f32s("N,8"), Source::Table(times));
    let both = b.step(PreludeSteps, Op::binary(BinaryKind::Add), &[Some(class), Some(time)]);
    let both = b.step(PreludeSteps, Op::Reshape { shape: shape("N,1,1,8") }, &[Some(both)]);
    b.plan.prelude_steps.results = vec![both];

    let x = b.input(Full, sample);
    let row = b.value(Full, f32s("N,1,1,8"), Source::PreludeSteps(0));
    let (w, bias) = (b.weight(Full, &[8, 8, 3, 3]), b.weight(Full, &[8]));
    let layout = ConvLayout::ChannelsLast;
    let (strides, pads, dilations, groups) = (vec![1, 1], vec![1, 1, 1, 1], vec![1, 1], 1);
    let conv = Op::Conv { strides, pads, dilations, groups, layout, upsample: 1, act: Act::Silu };
    let h = b.step(Full, conv, &[Some(x), Some(w), Some(bias), Some(row), Some(row), Some(x)]);
    let gamma = b.weight(Full, &[8]);
    let n =
        b.full(Op::GroupNorm { groups: 2, eps: 1e-5, layout, act: Act::Silu }, &[h, gamma, bias]);
    let joined = b.full(Op::Concat { axis: 3 }, &[n, h]);
    b.plan.full.values[n].alias = Some(Alias::Columns { of: joined, offset: 0.into() });
    b.plan.full.values[h].alias = Some(Alias::Columns { of: joined, offset: 8.into() });
    let tokens = b.full(Op::Reshape { shape: shape("N,16,16") }, &[joined]);
    let slice =
        Op::Slice { axes: vec![2], starts: vec![0.into()], ends: vec![16.into()], steps: vec![2] };
    let k = b.full(slice, &[tokens]);
    let attention = Op::Attention {
        heads: 2,
        kv_heads: 1,
        scale: 0.5,
        causal: true,
        softcap: 0.0,
        softmax_bits: 0,
    };
    let a = b.full(attention, &[tokens, k, k]);
    let s = b.full(Op::Softmax { axis: 2 }, &[a]);
    let t = b.full(Op::Transpose { perm: vec![0, 2, 1] }, &[s]);
    let m = b.full(Op::MatMul, &[t, s]);
    let e = b.full(Op::Expand { shape: shape("2,N,16,16") }, &[m]);
    let p = b.full(
        Op::Pad { before: vec![0, 0, 1, 0], after: vec![0; 4], mode: Default::default() },
        &[e],
    );
    let r = b.full(
        Op::Reduce { kind: cqc_proto::op::ReduceKind::Mean, axes: vec![0, 2], keep: false },
        &[p],
    );
    let c = b.full(Op::Cast { to: DType::I32 }, &[r]);
    let c = b.full(Op::Cast { to: DType::F32 }, &[c]);
    let c = b.full(Op::Reshape { shape: shape("N,1,16,1") }, &[c]);
    let tiled = b.full(Op::Tile { repeats: vec![1, 4, 1, 2] }, &[c]);
    let t = b.full(Op::Reshape { shape: shape("N,4,4,8") }, &[tiled]);
    let y = b.full(Op::binary(BinaryKind::Mul), &[t, h]);
    b.output("out", y);
    b
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// Changes one place of a JSON tree, mostly by little, because plans that differ much are usually
/// refused at once.
fn mutate(json: &mut Value, random: &mut Random) {
    match json {
        Value::Object(o) if !o.is_empty() => {
            let at = random.below(o.len());
            mutate(o.values_mut().nth(at).unwrap(), random);
        }
        Value::Array(a) if !a.is_empty() && random.below(20) > 0 => {
            let at = random.below(a.len());
            mutate(&mut a[at], random);
        }
        Value::Array(a) if !a.is_empty() => {
            let other = random.below(a.len());
            a.swap(0, other);
        }
        Value::Number(n) => {
            let old = n.as_i64().unwrap_or(0);
            let new = [
                old.wrapping_add(1),
                old.wrapping_sub(1),
                old.wrapping_mul(2),
                0,
                1,
                1 << 20,
                1 << 40,
                i64::MAX,
                -1,
            ];
            *json = Value::from(new[random.below(new.len())]);
        }
        Value::Bool(b) => *b = !*b,
        other => {
            let new = [
                "N",
                "2*N",
                "N+1",
                "step",
                "f16",
                "i64",
                "channels_first",
                "gelu_tanh",
                "max",
                "pow",
            ];
            *other = if random.below(4) == 0 {
                Value::Null
            } else {
                new[random.below(new.len())].into()
            };
        }
    }
}

/// Opens and runs a plan until something is refused.
fn run(plan: Plan, weights: &[u8], batch: usize) -> Option<()> {
    let weights = Weights::new(plan, weights.to_vec().into()).ok()?;
    let options =
        EngineOptions { batch, threads: 1, max_memory: 1 << 24, ..EngineOptions::default() };
    let mut engine = Engine::open(&weights, &options).ok()?;
    let plan = engine.plan();
    let condition = |(i, input): (usize, &PlanInput)| {
        let dtype = if input.ty.dtype.is_float() { DType::F32 } else { input.ty.dtype };
        (input.name.clone(), Tensor::zeros(dtype, engine.input_shape(i)).unwrap())
    };
    let inputs: BTreeMap<String, Tensor> = plan.inputs.iter().enumerate().map(condition).collect();
    let timesteps = vec![1.0; plan.evaluations];
    engine.begin(&inputs, &timesteps).ok()?;
    engine.run_at(plan_last(&engine), &timesteps, &inputs).ok()?;
    Some(())
}

fn plan_last(engine: &Engine) -> usize {
    engine.plan().evaluations.saturating_sub(1)
}

#[test]
fn mutated_plans_run_or_are_refused() {
    let b = plan();
    assert!(run(b.plan.clone(), &b.weights, 2).is_some(), "the plan itself runs");
    let json = serde_json::to_value(&b.plan).unwrap();
    let (mut random, mut valid, mut ran) = (Random(0x51ab_3f7c), 0, 0);
    for _ in 0..20_000 {
        let mut json = json.clone();
        (0..=random.below(2)).for_each(|_| mutate(&mut json, &mut random));
        let Ok(plan) = serde_json::from_value::<Plan>(json) else { continue };
        if validate(&plan, b.weights.len() as u64).is_err() {
            continue;
        }
        valid += 1;
        ran += usize::from(run(plan, &b.weights, 1 + random.below(2)).is_some());
    }
    assert!(
        valid > 1000 && ran > 500,
        "{valid} valid, {ran} ran: the mutations are too wild to test anything"
    );
}

#[test]
fn mutated_operators_with_inferred_types_run_or_are_refused() {
    let b = plan();
    let (mut random, mut ran) = (Random(0x1f3d_5b79), 0);
    for _ in 0..20_000 {
        let mut plan = b.plan.clone();
        let at = random.below(plan.full.steps.len());
        let mut op = serde_json::to_value(&plan.full.steps[at].op).unwrap();
        mutate(&mut op, &mut random);
        let Ok(op) = serde_json::from_value::<Op>(op) else { continue };
        plan.full.steps[at].op = op;
        if random.below(2) == 0 {
            let (inputs, other) =
                (plan.full.steps[at].inputs.len(), random.below(plan.full.values.len()));
            plan.full.steps[at].inputs[random.below(inputs)] =
                (random.below(3) > 0).then_some(other);
        }
        // the types that follow from the change, so that the plan passes validation
        for step in &plan.full.steps {
            let types: Vec<Option<&ValueType>> =
                step.inputs.iter().map(|v| v.map(|v| &plan.full.values[v].ty)).collect();
            let Ok(inferred) = step.op.infer(&types) else { break };
            plan.full.values[step.outputs[0]].ty = inferred[0].clone();
        }
        plan.outputs[0].ty = plan.full.values[plan.outputs[0].value].ty.clone();
        ran += usize::from(run(plan, &b.weights, 1 + random.below(2)).is_some());
    }
    assert!(ran > 300, "{ran} ran: the mutations are too wild to test anything");
}
