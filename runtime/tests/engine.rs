//! Compares the engine with the definitions of the operators, on plans that are built by hand.

mod common;

use common::*;
use cqc_proto::op::{Act, BinaryKind, ConvLayout, UnaryKind};
use cqc_proto::plan::*;
use cqc_proto::{DType, Op, Tensor, ValueType};
use cqc_runtime::engine::{Engine, EngineError, EngineOptions, Execution, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;

use ProgramKind::{Full, Prelude, PreludeSteps};

const LAST: ConvLayout = ConvLayout::ChannelsLast;

fn conv(stride: usize, upsample: usize, act: Act) -> Op {
    let (strides, pads, dilations) = (vec![stride; 2], vec![1; 4], vec![1; 2]);
    Op::Conv { strides, pads, dilations, groups: 1, layout: LAST, upsample, act }
}

fn group_norm() -> Op {
    Op::GroupNorm { groups: 4, eps: 1e-5, layout: LAST, act: Act::Silu }
}

/// A small U-Net with NCHW input and output, a table of time rows, class rows from the prelude,
/// skip connections that are concatenated in place, attention, and a block modulated by
/// `prelude_steps`.
fn unet(evaluations: usize) -> Build {
    let mut b = Build::new(evaluations);
    let sample = b.model_input("sample", InputRole::Sample, f32s("N,3,8,8"));
    b.model_input("timestep", InputRole::Timestep, ValueType::new(DType::I64, shape("N")));
    let labels =
        b.model_input("labels", InputRole::Condition, ValueType::new(DType::I64, shape("N")));

    // prelude: one row per label
    let (l, table) = (b.input(Prelude, labels), b.weight(Prelude, &[10, 24]));
    let rows = b.step(Prelude, Op::Gather { axis: 0 }, &[Some(table), Some(l)]);
    let class = b.step(Prelude, Op::unary(UnaryKind::Silu), &[Some(rows)]);
    b.plan.prelude.results = vec![class];

    // prelude_steps: scale, shift and gate from class and time
    let class = b.value(PreludeSteps, f32s("N,24"), Source::Prelude(0));
    let times = b.store(&tensor(&[evaluations, 1, 24], 7));
    let time = b.value(PreludeSteps, f32s("N,24"), Source::Table(times));
    let step = b.value(PreludeSteps, f32s("N"), Source::Input(1));
    b.plan.inputs[1].ty.dtype = DType::F32;
    let both = b.step(PreludeSteps, Op::binary(BinaryKind::Add), &[Some(class), Some(time)]);
    let step = b.step(PreludeSteps, Op::Reshape { shape: shape("N,1") }, &[Some(step)]);
    let both = b.step(PreludeSteps, Op::binary(BinaryKind::Mul), &[Some(both), Some(step)]);
    let w = b.weight(PreludeSteps, &[24, 96]);
    let rows = b.step(PreludeSteps, Op::Linear { act: Act::None }, &[Some(both), Some(w)]);
    let rows = b.step(PreludeSteps, Op::Reshape { shape: shape("N,3,32") }, &[Some(rows)]);
    let slice = |i: i64| Op::Slice {
        axes: vec![1],
        starts: vec![i.into()],
        ends: vec![(i + 1).into()],
        steps: vec![1],
    };
    let results = (0..3).map(|i| b.step(PreludeSteps, slice(i), &[Some(rows)])).collect();
    b.plan.prelude_steps.results = results;

    // full
    let x = b.input(Full, sample);
    let x = b.full(Op::Transpose { perm: vec![0, 2, 3, 1] }, &[x]);
    let (w, bias) = (b.weight(Full, &[16, 3, 3, 3]), b.weight(Full, &[16]));
    let skip = b.full(conv(1, 1, Act::None), &[x, w, bias]);
    let time_rows = b.store(&tensor(&[evaluations, 1, 1, 1, 32], 8));
    let row = b.value(Full, f32s("1,1,1,32"), Source::Table(time_rows));
    let (w, bias) = (b.weight(Full, &[32, 16, 3, 3]), b.weight(Full, &[32]));
    let down = b.step(Full, conv(2, 1, Act::Silu), &[Some(skip), Some(w), Some(bias), Some(row)]);
    let (gamma, beta) = (b.weight(Full, &[32]), b.weight(Full, &[32]));
    let h = b.full(group_norm(), &[down, gamma, beta]);
    let tokens = b.full(Op::Reshape { shape: shape("N,16,32") }, &[h]);
    let w = b.weight(Full, &[32, 96]);
    let qkv = b.full(Op::Linear { act: Act::None }, &[tokens, w]);
    let part = |i: i64| Op::Slice {
        axes: vec![2],
        starts: vec![(32 * i).into()],
        ends: vec![(32 * i + 32).into()],
        steps: vec![1],
    };
    let [q, k, v] = [0, 1, 2].map(|i| b.full(part(i), &[qkv]));
    let attention = Op::Attention {
        heads: 4,
        kv_heads: 4,
        scale: 0.35,
        causal: false,
        softcap: 0.0,
        softmax_bits: 0,
    };
    let a = b.full(attention, &[q, k, v]);
    let [scale, shift, gate] =
        [0, 1, 2].map(|i| b.value(Full, f32s("N,1,32"), Source::PreludeSteps(i)));
    let n =
        b.step(Full, Op::LayerNorm { eps: 1e-6 }, &[Some(a), None, None, Some(scale), Some(shift)]);
    let (w, bias) = (b.weight(Full, &[32, 32]), b.weight(Full, &[32]));
    let linear = Op::Linear { act: Act::GeluTanh };
    let t = b.step(Full, linear, &[Some(n), Some(w), Some(bias), None, Some(gate), Some(tokens)]);
    let t = b.full(Op::Reshape { shape: shape("N,4,4,32") }, &[t]);
    let (w, bias) = (b.weight(Full, &[16, 32, 3, 3]), b.weight(Full, &[16]));
    let up = b.full(conv(1, 2, Act::None), &[t, w, bias]);
    let joined = b.full(Op::Concat { axis: 3 }, &[up, skip]);
    let (gamma, beta) = (b.weight(Full, &[32]), b.weight(Full, &[32]));
    let h = b.full(group_norm(), &[joined, gamma, beta]);
    let (w, bias) = (b.weight(Full, &[3, 32, 3, 3]), b.weight(Full, &[3]));
    let y = b.full(conv(1, 1, Act::None), &[h, w, bias]);
    let y = b.full(Op::Transpose { perm: vec![0, 3, 1, 2] }, &[y]);
    b.output("out", y);

    // both parts of the concat are written in place
    b.plan.full.values[up].alias = Some(Alias::Columns { of: joined, offset: 0.into() });
    b.plan.full.values[skip].alias = Some(Alias::Columns { of: joined, offset: 16.into() });
    b
}

fn options(batch: usize, threads: usize) -> EngineOptions {
    EngineOptions { batch, threads, ..EngineOptions::default() }
}

fn labels(values: &[i64]) -> BTreeMap<String, Tensor> {
    BTreeMap::from([("labels".to_string(), Tensor::from_i64(&[values.len()], values))])
}

const STEPS: [f64; 5] = [0.9, 0.7, 0.5, 0.3, 0.1];

fn evaluate(engine: &mut Engine, labels_: &[i64], sample: &[f32], e: usize) -> Vec<f32> {
    let mut out = vec![0.0; sample.len()];
    let mut request = engine.begin(&labels(labels_), &STEPS).unwrap();
    engine.evaluate(&mut request, e, sample, &mut out).unwrap();
    out
}

#[test]
fn a_unet_equals_its_definition_at_every_evaluation() {
    let b = unet(5);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let mut engine = Engine::open(&weights, &options(2, 2)).unwrap();
    let slow: Vec<_> = engine
        .profile()
        .into_iter()
        .filter(|s| s.execution == Execution::Definition)
        .map(|s| s.name)
        .collect();
    assert_eq!(slow, Vec::<String>::new(), "every step has a kernel");
    let sample = tensor(&[2, 3, 8, 8], 5);
    let mut request = engine.begin(&labels(&[3, 9]), &STEPS).unwrap();
    for e in 0..5 {
        let mut inputs = labels(&[3, 9]);
        inputs.insert("sample".into(), sample.clone());
        let oracle = Interpreter {
            plan: &b.plan,
            weights: &b.weights,
            batch: 2,
            timesteps: STEPS.into(),
            inputs,
            evaluation: e,
        };
        let mut out = vec![0.0; sample.len()];
        engine.evaluate(&mut request, e, &sample.as_f32().unwrap(), &mut out).unwrap();
        let out = Tensor::from_f32(&[2, 3, 8, 8], &out);
        let error = relative(&out, &oracle.outputs()["out"]);
        assert!(error < 1e-5, "evaluation {e}: {error}"); // f32 sums of up to 288 products
    }
}

#[test]
fn threads_and_batch_do_not_change_a_bit() {
    let b = unet(5);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let sample = noise(3 * 192, 11);
    let all: Vec<Vec<f32>> = (1..4)
        .map(|threads| {
            evaluate(
                &mut Engine::open(&weights, &options(3, threads)).unwrap(),
                &[1, 2, 3],
                &sample,
                2,
            )
        })
        .collect();
    assert!(all[0] == all[1] && all[0] == all[2], "threads");
    let mut single = Engine::open(&weights, &options(1, 2)).unwrap();
    for i in 0..3 {
        let one = evaluate(&mut single, &[i as i64 + 1], &sample[i * 192..][..192], 2);
        assert!(one == all[0][i * 192..][..192], "sample {i} of the batch");
    }
}

#[test]
fn preludes_computed_in_overlapping_chunks_are_the_same() {
    let b = unet(5);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let sample = noise(2 * 192, 11);
    let mut whole = Engine::open(&weights, &options(2, 1)).unwrap();
    for prelude_memory in [0, 3000, 5000] {
        let mut parts =
            Engine::open(&weights, &EngineOptions { prelude_memory, ..options(2, 1) }).unwrap();
        for e in 0..5 {
            let [a, b] =
                [&mut parts, &mut whole].map(|engine| evaluate(engine, &[1, 2], &sample, e));
            let error = relative(&Tensor::from_f32(&[384], &a), &Tensor::from_f32(&[384], &b));
            // products of one or two rows add in another order
            assert!(error < 1e-6, "evaluation {e}: {error}");
        }
    }
}

#[test]
fn engines_of_one_plan_share_packed_weights() {
    let b = unet(5);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let _one = Engine::open(&weights, &options(1, 1)).unwrap();
    let packed = weights.packed_bytes();
    let _eight = Engine::open(&weights, &options(8, 1)).unwrap();
    assert!(packed > 0 && weights.packed_bytes() == packed);
}

#[test]
fn a_later_request_is_not_disturbed_by_an_earlier_one() {
    let b = unet(5);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let mut engine = Engine::open(&weights, &options(1, 1)).unwrap();
    let sample = noise(192, 3);
    let first = evaluate(&mut engine, &[4], &sample, 0);
    let other = evaluate(&mut engine, &[5], &sample, 0);
    assert!(first != other && first == evaluate(&mut engine, &[4], &sample, 0));
}

#[test]
fn requests_that_do_not_fit_are_refused_with_facts() {
    let b = unet(5);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let mut engine = Engine::open(&weights, &options(1, 1)).unwrap();
    let (sample, mut out) = (noise(192, 3), vec![0.0; 192]);
    assert!(matches!(
        engine.begin(&BTreeMap::new(), &STEPS),
        Err(EngineError::MissingInput { .. })
    ));
    assert!(matches!(
        engine.begin(&labels(&[1]), &[0.5]),
        Err(EngineError::Timesteps { found: 1, expected: 5 })
    ));
    assert!(matches!(engine.begin(&labels(&[1, 2]), &STEPS), Err(EngineError::InputType { .. })));
    let mut more = labels(&[1]);
    more.insert("guess".into(), tensor(&[1], 1));
    assert!(matches!(engine.begin(&more, &STEPS), Err(EngineError::UnknownInput { .. })));
    let outside = engine.begin(&labels(&[10]), &STEPS);
    assert!(matches!(outside, Err(EngineError::Execution { program: Prelude, .. })), "{outside:?}");
    let mut request = engine.begin(&labels(&[9]), &STEPS).unwrap();
    assert!(
        engine.tap(&request, "out").is_none() && engine.outputs(&request).is_empty(),
        "nothing has run"
    );
    assert!(matches!(
        engine.evaluate(&mut request, 5, &sample, &mut out),
        Err(EngineError::Evaluation { .. })
    ));
    assert!(matches!(
        engine.evaluate(&mut request, 0, &sample[1..], &mut out),
        Err(EngineError::Length { .. })
    ));
    let mut other = Engine::open(&weights, &options(1, 1)).unwrap();
    assert!(matches!(
        other.evaluate(&mut request, 0, &sample, &mut out),
        Err(EngineError::ForeignRequest)
    ));
    assert!(matches!(
        Engine::open(&weights, &options(0, 1)),
        Err(EngineError::Batch { asked: 0, .. })
    ));
    let little = EngineOptions { max_memory: 1000, ..options(1, 1) };
    assert!(matches!(
        Engine::open(&weights, &little),
        Err(EngineError::Memory { limit: 1000, .. })
    ));
}

/// Runs a plan of one operator, both with kernels and by definition.
fn check(op: Op, inputs: &[Tensor], fast: bool) {
    let mut b = Build::new(0);
    let mut given = BTreeMap::new();
    let values: Vec<usize> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| {
            given.insert(format!("x{i}"), t.clone());
            let input = b.model_input(&format!("x{i}"), InputRole::Condition, t.value_type());
            b.input(Full, input)
        })
        .collect();
    let y = b.full(op.clone(), &values);
    b.output("y", y);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let mut engine = Engine::open(&weights, &options(1, 2)).unwrap();
    assert_eq!(engine.profile()[0].execution != Execution::Definition, fast, "{op:?}");
    let by_kernel = engine.run(&given).unwrap();
    let (plan, weights, timesteps) = (&b.plan, &b.weights[..], vec![]);
    let oracle = Interpreter { plan, weights, batch: 1, timesteps, inputs: given, evaluation: 0 };
    let error = relative(&by_kernel["y"], &oracle.outputs()["y"]);
    assert!(error < 1e-5, "{op:?}: {error}"); // a few roundings
}

#[test]
fn broadcasts_equal_the_definition() {
    let x = tensor(&[2, 3, 4, 5], 1);
    let others: [&[usize]; 12] = [
        &[2, 3, 4, 5],
        &[],
        &[1],
        &[5],
        &[4, 5],
        &[2, 1, 1, 5],
        &[1, 3, 1, 1],
        &[2, 1, 1, 1],
        &[2, 3, 1, 1],
        &[2, 3, 4, 1],
        &[2, 1, 4, 5],
        &[3, 1, 5],
    ];
    for (i, shape) in others.into_iter().enumerate() {
        let y = tensor(shape, 50 + i as u64);
        check(Op::binary(BinaryKind::Sub), &[x.clone(), y.clone()], true);
        check(Op::binary(BinaryKind::Sub), &[y, x.clone()], true);
    }
    check(Op::binary(BinaryKind::Add), &[tensor(&[4, 1, 80], 1), tensor(&[1, 3, 1], 2)], true);
    check(Op::binary(BinaryKind::Div), &[tensor(&[], 1), tensor(&[], 2)], true);
    check(Op::binary(BinaryKind::Fmod), &[tensor(&[4], 1), tensor(&[4], 2)], false);
}

#[test]
fn moves_equal_the_definition() {
    let x = tensor(&[2, 3, 4, 5], 1);
    let x = || vec![x.clone()];
    check(Op::Transpose { perm: vec![3, 0, 2, 1] }, &x(), true);
    check(Op::Reshape { shape: shape("6,20") }, &x(), true);
    check(Op::Tile { repeats: vec![2, 1, 3, 2] }, &x(), true);
    check(Op::Expand { shape: shape("7,2,3,4,5") }, &x(), true);
    let (axes, starts, steps) = (vec![1, 3], vec![2.into(), 1.into()], vec![-2, 2]);
    check(Op::Slice { axes, starts, ends: vec![(-1).into(), 5.into()], steps }, &x(), true);
    // one element, so the step, which is too large to multiply a stride by, is not used
    let (axes, starts, steps) = (vec![1], vec![2.into()], vec![i64::MIN / 16 - 1]);
    check(Op::Slice { axes, starts, ends: vec![(-1).into()], steps }, &x(), true);
    let pad = |mode| Op::Pad { before: vec![0, 1, 0, 2], after: vec![1, 0, 0, 1], mode };
    check(pad(Default::default()), &x(), true);
    check(pad(Default::default()), &[x()[0].clone(), tensor(&[], 9)], true);
    check(pad(cqc_proto::op::PadMode::Edge), &x(), false);
    check(Op::Concat { axis: 1 }, &[x()[0].clone(), tensor(&[2, 2, 4, 5], 3)], true);
    check(
        Op::Gather { axis: 2 },
        &[x()[0].clone(), Tensor::from_i64(&[2, 2], &[0, -1, 3, 1])],
        true,
    );
    check(Op::Trilu { upper: true, k: 0 }, &x(), false);
    let condition = Tensor::from_bool(&[3, 1, 5], &[true, false, true, true, false].repeat(3));
    check(Op::Where, &[condition, x()[0].clone(), tensor(&[1], 4)], true);
    check(Op::Cast { to: DType::I64 }, &x(), true);
    check(Op::Cast { to: DType::F32 }, &[Tensor::from_i64(&[3], &[-7, 0, 1 << 20])], true);
    check(Op::Cast { to: DType::Bool }, &x(), true);
    check(Op::Cast { to: DType::F64 }, &x(), false);
}

#[test]
fn nearest_enlarging_equals_the_definition() {
    use cqc_proto::op::{CoordinateMode as C, NearestMode as R, ResizeMode};
    for (coordinates, nearest, fast) in [
        (C::Asymmetric, R::Floor, true),
        (C::HalfPixel, R::RoundPreferFloor, true),
        (C::AlignCorners, R::Floor, false),
    ] {
        let op = Op::Resize {
            sizes: shape("2,3,8,15"),
            scales: vec![],
            mode: ResizeMode::Nearest,
            coordinates,
            nearest,
            cubic_a: -0.75,
            exclude_outside: false,
            antialias: false,
        };
        check(op, &[tensor(&[2, 3, 4, 5], 1)], fast);
    }
}

#[test]
fn products_of_computed_matrices_equal_the_definition() {
    check(Op::MatMul, &[tensor(&[2, 3, 7, 9], 1), tensor(&[2, 3, 9, 5], 2)], true);
    check(Op::MatMul, &[tensor(&[2, 3, 7, 9], 1), tensor(&[9, 5], 2)], true);
    check(Op::MatMul, &[tensor(&[1, 7, 9], 1), tensor(&[6, 9, 5], 2)], true);
    check(Op::MatMul, &[tensor(&[2, 1, 7, 9], 1), tensor(&[1, 3, 9, 5], 2)], false);
    check(Op::MatMul, &[tensor(&[9], 1), tensor(&[9, 5], 2)], false);
    check(Op::Linear { act: Act::None }, &[tensor(&[4, 9], 1), tensor(&[9, 5], 2)], true);
    check(Op::Linear { act: Act::Relu }, &[tensor(&[4, 9], 1), tensor(&[9, 5], 2)], false);
}

#[test]
fn norms_and_attention_equal_the_definition() {
    check(Op::Softmax { axis: 1 }, &[tensor(&[5, 33], 1)], true);
    check(Op::Softmax { axis: 0 }, &[tensor(&[5, 33], 1)], false);
    check(Op::RmsNorm { eps: 1e-6 }, &[tensor(&[2, 5, 33], 1), tensor(&[33], 2)], true);
    check(Op::Geglu { act: Act::GeluErf }, &[tensor(&[2, 5, 34], 1)], true);
    check(Op::Affine, &[tensor(&[2, 5, 33], 1), tensor(&[33], 2), tensor(&[33], 3)], true);
    let affine = [&[2, 5, 33][..], &[33], &[33], &[2, 5, 33], &[2, 5, 33], &[33]];
    let affine: Vec<Tensor> =
        affine.iter().zip(1..).map(|(shape, seed)| tensor(shape, seed)).collect();
    check(Op::Affine, &affine[..4], true);
    check(Op::Affine, &affine, true);
    let attention = |causal| Op::Attention {
        heads: 4,
        kv_heads: 2,
        scale: 0.5,
        causal,
        softcap: 0.0,
        softmax_bits: 0,
    };
    let (q, k, v) = (tensor(&[2, 6, 32], 1), tensor(&[2, 6, 16], 2), tensor(&[2, 6, 20], 3));
    for mask in [&[2, 4, 6, 6][..], &[2, 1, 1, 6], &[6, 6], &[6, 1]] {
        check(attention(false), &[q.clone(), k.clone(), v.clone(), tensor(mask, 4)], true);
    }
    check(attention(true), &[q, k, v], true);
}

#[test]
fn kept_values_can_be_read_after_a_run() {
    let b = unet(5);
    let names: Vec<String> = b.plan.full.values.iter().map(|v| v.name.clone()).collect();
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let kept = EngineOptions { keep: names.clone(), ..options(2, 2) };
    let mut engine = Engine::open(&weights, &kept).unwrap();
    let sample = tensor(&[2, 3, 8, 8], 5);
    let mut request = engine.begin(&labels(&[3, 9]), &STEPS).unwrap();
    engine.evaluate(&mut request, 4, &sample.as_f32().unwrap(), &mut [0.0; 2 * 192]).unwrap();
    let mut inputs = labels(&[3, 9]);
    inputs.insert("sample".into(), sample);
    let (plan, weights, timesteps) = (&b.plan, &b.weights[..], STEPS.into());
    let oracle = Interpreter { plan, weights, batch: 2, timesteps, inputs, evaluation: 4 };
    for (name, expected) in names.iter().zip(oracle.run(Full)) {
        let error = relative(&engine.tap(&request, name).unwrap(), &expected);
        assert!(error < 1e-5, "{name}: {error}");
    }
    assert!(engine.tap(&request, "nothing").is_none());
    let unknown = EngineOptions { keep: vec!["nothing".into()], ..options(1, 1) };
    assert!(matches!(
        Engine::open(&Weights::new(b.plan.clone(), b.bytes()).unwrap(), &unknown),
        Err(EngineError::NoValue { .. })
    ));
}

#[test]
fn half_precision_models_take_and_give_their_own_type() {
    let mut b = Build::new(0);
    let x = b.model_input("x", InputRole::Condition, ValueType::new(DType::F16, shape("N,4")));
    let x = b.input(Full, x);
    let w = b.constant(Full, &tensor(&[4, 8], 3).to_float(DType::F16));
    let y = b.full(Op::Linear { act: Act::None }, &[x, w]);
    b.output("y", y);
    b.plan.outputs[0].ty.dtype = DType::F16;
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let mut engine = Engine::open(&weights, &options(2, 1)).unwrap();
    let given = BTreeMap::from([("x".to_string(), tensor(&[2, 4], 1).to_float(DType::F16))]);
    let y = engine.run(&given).unwrap().remove("y").unwrap();
    let oracle = Interpreter {
        plan: &b.plan,
        weights: &b.weights,
        batch: 2,
        timesteps: vec![],
        inputs: given,
        evaluation: 0,
    };
    assert_eq!(y, oracle.outputs()["y"].to_float(DType::F16));
}

#[test]
fn a_reshape_may_be_an_alias_without_a_step() {
    let b = unet(5);
    let mut plan = b.plan.clone();
    let full = &mut plan.full;
    let (reshapes, steps): (Vec<Step>, Vec<Step>) =
        full.steps.drain(..).partition(|s| matches!(s.op, Op::Reshape { .. }));
    full.steps = steps;
    assert!(!reshapes.is_empty());
    for step in reshapes {
        full.values[step.outputs[0]].alias = Some(Alias::Same { of: step.inputs[0].unwrap() });
    }
    let sample = noise(192, 3);
    let [with, without] = [b.plan.clone(), plan].map(|plan| {
        let weights = Weights::new(plan, b.bytes()).unwrap();
        evaluate(&mut Engine::open(&weights, &options(1, 2)).unwrap(), &[4], &sample, 3)
    });
    assert_eq!(with, without);
}

#[test]
fn a_time_step_for_the_whole_batch_is_taken_evaluation_by_evaluation() {
    let one = unet(5);
    let mut b = unet(5);
    // the same arithmetic with a scalar where `one` has a vector of equal numbers
    b.plan.inputs[1].ty = f32s("");
    let steps = &mut b.plan.prelude_steps;
    let t = steps.values.iter().position(|v| v.source == Source::Input(1)).unwrap();
    steps.values[t].ty = f32s("");
    let reshape = steps.steps.iter().position(|s| s.inputs == [Some(t)]).unwrap();
    steps.steps[reshape].op = Op::Reshape { shape: shape("1,1") };
    let y = steps.steps[reshape].outputs[0];
    steps.values[y].ty = f32s("1,1");
    let sample = noise(3 * 192, 3);
    for e in 0..5 {
        let [vector, scalar] = [&one, &b].map(|b| {
            let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
            let mut engine = Engine::open(&weights, &options(3, 2)).unwrap();
            Tensor::from_f32(&[576], &evaluate(&mut engine, &[4, 5, 6], &sample, e))
        });
        // products of few rows add in another order
        assert!(relative(&scalar, &vector) < 1e-6, "evaluation {e}");
    }
}

#[test]
fn a_fixed_batch_runs_only_at_its_own() {
    let mut b = Build::new(0);
    (b.plan.batch_symbol, b.plan.fixed_batch) = (None, Some(2));
    let x = b.model_input("x", InputRole::Condition, f32s("2,4"));
    let x = b.input(Full, x);
    let y = b.full(Op::unary(UnaryKind::Neg), &[x]);
    b.output("y", y);
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    assert!(matches!(
        Engine::open(&weights, &options(1, 1)),
        Err(EngineError::Batch { asked: 1, .. })
    ));
    Engine::open(&weights, &options(2, 1)).unwrap();
}

/// A linear layer also computes the GEGLU after it, unless another step reads its result. The bits
/// are the same.
#[test]
fn a_geglu_is_computed_by_the_layer_before_it() {
    let mut b = Build::new(0);
    let x = b.model_input("x", InputRole::Condition, f32s("N,5,24"));
    let (x, w, bias) = (b.input(Full, x), b.weight(Full, &[24, 128]), b.weight(Full, &[128]));
    let pairs = b.full(Op::Linear { act: Act::None }, &[x, w, bias]);
    let gated = b.full(Op::Geglu { act: Act::GeluErf }, &[pairs]);
    let w = b.weight(Full, &[64, 24]);
    let y = b.full(Op::Linear { act: Act::None }, &[gated, w]);
    b.output("y", y);
    let given: BTreeMap<String, Tensor> = [("x".into(), tensor(&[3, 5, 24], 1))].into();
    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let run = |keep: Vec<String>| {
        let mut engine = Engine::open(&weights, &EngineOptions { keep, ..options(3, 2) }).unwrap();
        (engine.run(&given).unwrap().remove("y").unwrap(), engine.program_bytes(Full))
    };
    let (at_once, bytes) = run(vec![]);
    let (apart, more) = run(vec![b.plan.full.values[pairs].name.clone()]);
    assert_eq!(at_once.as_f32(), apart.as_f32());
    // the sums were 3 · 5 · 128 values
    assert!(bytes + 3 * 5 * 128 * 4 <= more, "{bytes} bytes, {more} where the sums are kept");
    let (plan, weights, timesteps) = (&b.plan, &b.weights[..], vec![]);
    let oracle =
        Interpreter { plan, weights, batch: 3, timesteps, inputs: given.clone(), evaluation: 0 };
    let error = relative(&at_once, &oracle.outputs()["y"]);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_profile_counts_every_step_only_if_asked() {
    let b = unet(5);
    let weights: Arc<Weights> = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    for (profile, calls) in [(false, 0), (true, 1)] {
        let mut engine =
            Engine::open(&weights, &EngineOptions { profile, ..options(1, 1) }).unwrap();
        evaluate(&mut engine, &[0], &noise(192, 1), 0);
        assert!(engine.profile().iter().all(|s| s.calls == calls));
        engine.reset_profile();
        assert!(engine.profile().iter().all(|s| s.calls == 0));
    }
}
