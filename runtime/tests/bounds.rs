//! The longest plans that a file can contain take time in proportion to their length. Each of them
//! would take minutes if something searched through a whole program for each of its steps. Missing
//! memory is reported as an error.

use cqc_proto::cq::{Manifest, SourceModel};
use cqc_proto::op::UnaryKind;
use cqc_proto::plan::{
    Constant, InputRole, Plan, PlanInput, PlanOutput, PlanValue, Program, Source, Step, validate,
};
use cqc_proto::sampler::SamplerConfig;
use cqc_proto::{DType, Op, ValueType};
use cqc_runtime::engine::{Engine, EngineError, EngineOptions, Weights};
use cqc_runtime::{Artifact, DenoiseError, DenoiserOptions, Request};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Far more time than any of these plans needs, and far less than the square of its length takes.
const ENOUGH: Duration = Duration::from_secs(60);

fn f32s(shape: &[usize]) -> ValueType {
    ValueType::fixed(DType::F32, shape)
}

fn value(shape: &[usize], source: Source) -> PlanValue {
    PlanValue { name: String::new(), ty: f32s(shape), source, alias: None }
}

fn step(op: Op, inputs: impl IntoIterator<Item = usize>, output: usize) -> Step {
    let inputs = inputs.into_iter().map(Some).collect();
    Step { op, inputs, outputs: vec![output], name: String::new() }
}

fn constant(shape: &[usize], offset: u64) -> Constant {
    Constant { name: String::new(), ty: f32s(shape), offset, codes: None }
}

/// A plan of batch 1 with a sample `[width]` and an output of the same shape, which is the value
/// `output`.
fn plan(width: usize, evaluations: usize, full: Program, output: usize) -> Plan {
    let input = PlanInput { name: "x".into(), ty: f32s(&[1, width]), role: InputRole::Sample };
    let ty = full.values[output].ty.clone();
    Plan {
        batch_symbol: None,
        fixed_batch: Some(1),
        inputs: vec![input],
        outputs: vec![PlanOutput { name: "y".into(), ty, value: output }],
        evaluations,
        constants: vec![constant(&[1], 0), constant(&[4], 64)],
        prelude: Program::default(),
        prelude_steps: Program::default(),
        full,
        cache: None,
        times: None,
    }
}

fn neg() -> Op {
    Op::unary(UnaryKind::Neg)
}

/// `x`, negated `steps` times.
fn chain(steps: usize) -> Plan {
    let mut full = Program { values: vec![value(&[1, 4], Source::Input(0))], ..Program::default() };
    for i in 0..steps {
        full.values.push(value(&[1, 4], Source::Step));
        full.steps.push(step(neg(), [i], i + 1));
    }
    plan(4, 0, full, steps)
}

fn weights(plan: Plan) -> Arc<Weights> {
    Weights::new(plan, vec![0; 128].into()).unwrap()
}

fn sizes(plan: Plan) -> Duration {
    let start = Instant::now();
    Engine::sizes(&weights(plan), &EngineOptions { threads: 1, ..EngineOptions::default() })
        .unwrap();
    start.elapsed()
}

#[test]
fn many_results_of_all_evaluations_are_checked_in_a_moment() {
    // every value needs to know whether `prelude_steps` runs evaluation by evaluation
    let many = 400_000;
    let mut plan = chain(1);
    plan.evaluations = 4;
    plan.prelude_steps.values = vec![value(&[4], Source::Constant(1)); many];
    plan.prelude_steps.results = vec![0];
    plan.full.values.extend(vec![value(&[1], Source::PreludeSteps(0)); many]);
    let start = Instant::now();
    validate(&plan, 128).unwrap();
    assert!(start.elapsed() < ENOUGH, "{:?}", start.elapsed());
}

#[test]
fn a_long_chain_is_laid_out_in_a_moment() {
    let took = sizes(chain(100_000));
    assert!(took < ENOUGH, "{took:?}");
}

#[test]
fn many_values_alive_at_once_are_laid_out_in_a_moment() {
    let many = 60_000;
    let mut full = Program { values: vec![value(&[1, 4], Source::Input(0))], ..Program::default() };
    for i in 0..many {
        full.values.push(value(&[1, 4], Source::Step));
        full.steps.push(step(neg(), [0], i + 1));
    }
    full.values.push(value(&[1, 4 * many], Source::Step));
    full.steps.push(step(Op::Concat { axis: 1 }, 1..=many, many + 1));
    let took = sizes(plan(4, 0, full, many + 1));
    assert!(took < ENOUGH, "{took:?}");
}

/// A plan with one step that has `operands` operands, and `unread` values that no step reads.
fn wide(operands: usize, unread: usize) -> Plan {
    let mut full = Program {
        values: vec![
            value(&[1, 4], Source::Input(0)),
            value(&[1, 4], Source::Step),
            value(&[1, 4 * operands], Source::Step),
        ],
        steps: vec![
            step(neg(), [0], 1),
            step(Op::Concat { axis: 1 }, std::iter::repeat_n(1, operands), 2),
        ],
        results: vec![],
    };
    full.values.extend(vec![value(&[4], Source::Constant(1)); unread]);
    plan(4, 0, full, 2)
}

#[test]
fn one_step_of_many_operands_is_prepared_in_a_moment() {
    let took = sizes(wide(400_000, 200_000));
    assert!(took < ENOUGH, "{took:?}");
}

/// An operand takes two bytes of a manifest, and hundreds of bytes after its step is prepared.
#[test]
fn more_operands_than_the_values_and_steps_justify_are_refused() {
    validate(&wide(32_768, 0), 128).unwrap();
    let error = validate(&wide(40_000, 0), 128).unwrap_err().to_string();
    assert_eq!(error, "40001 operands of steps, at most 32778 are allowed");
    validate(&wide(40_000, 4_000), 128).unwrap();
}

#[test]
fn many_roundings_look_at_their_table_once() {
    let (many, evaluations) = (20_000, 1 << 14);
    let mut full = Program {
        values: vec![
            value(&[1, 4], Source::Input(0)),
            value(&[1], Source::Table(0)),
            value(&[1], Source::Table(0)),
        ],
        ..Program::default()
    };
    for i in 0..many {
        full.values.push(value(&[1, 4], Source::Step));
        let op = Op::FakeQuant { bits: 8, segments: vec![] };
        full.steps.push(step(op, [0, 1, 2], 3 + i));
    }
    let mut plan = plan(4, evaluations, full, 3);
    plan.constants = vec![constant(&[evaluations, 1], 0)];
    let ones: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), evaluations).flatten().collect();
    let weights = Weights::new(plan, ones.into()).unwrap();
    let start = Instant::now();
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    Engine::sizes(&weights, &options).unwrap();
    assert!(start.elapsed() < ENOUGH, "{:?}", start.elapsed());
}

/// `y = x` over `elements` elements. Each takes memory of the engine and of a request.
fn huge(elements: usize) -> Plan {
    let values = vec![value(&[1, elements], Source::Input(0)), value(&[1, elements], Source::Step)];
    let full = Program { values, steps: vec![step(neg(), [0], 1)], results: vec![] };
    plan(elements, 0, full, 1)
}

#[test]
fn memory_that_is_not_there_is_an_error_and_sizes_are_known_without_it() {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    for elements in [1 << 36, 1 << 40] {
        let weights = weights(huge(elements));
        let sizes = Engine::sizes(&weights, &options).unwrap();
        assert!(sizes.request >= 4 * elements && sizes.programs[2] >= 4 * elements);
        let error = Engine::open(&weights, &options).unwrap_err();
        let EngineError::NoMemory(e) = &error else { panic!("{error}") };
        assert_eq!(e.needed, sizes.request + sizes.programs[2]);
        assert!(e.available.bytes < e.needed, "{error}");
        assert!(error.to_string().contains("an evaluation of batch 1 needs"), "{error}");
    }
}

#[test]
fn a_request_for_more_samples_than_fit_is_an_error() {
    let manifest = Manifest::new(SourceModel::default(), chain(1), SamplerConfig::default(), 2);
    let artifact = Artifact::from_parts(manifest, vec![0; 128].into()).unwrap();
    let options = DenoiserOptions { device: cqc_runtime::Device::Cpu, ..Default::default() };
    let mut denoiser = artifact.denoiser(&options).unwrap();
    for samples in [1 << 40, usize::MAX / 16, usize::MAX] {
        let request = Request { samples, ..Request::default() };
        let error = denoiser.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, DenoiseError::Engine(EngineError::NoMemory(_))), "{error}");
        assert!(error.to_string().contains(&format!("{samples} samples")), "{error}");
    }
    let request = Request { samples: 3, ..Request::default() };
    let samples = denoiser.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(samples.shape(), [3, 4]);
}
