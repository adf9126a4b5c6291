//! Cached steps, which reuse values that an earlier full step stored.

mod common;

use common::{Build, f32s, noise, tensor};
use cqc_proto::op::{Act, BinaryKind, Op};
use cqc_proto::plan::{Cache, CacheSlot, InputRole, ProgramKind, Source, WeightCodes};
use cqc_proto::{DType, Tensor};
use cqc_runtime::engine::{Engine, EngineError, EngineOptions, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;

use ProgramKind::{Cached, Full};

const STEPS: [f64; 4] = [0.9, 0.7, 0.5, 0.3];
const LEN: usize = 24;

/// `full`: `deep = x · w; out = x + (a row of the evaluation) · deep`. `cached`: the same,
/// beginning with `deep`.
fn plan() -> Build {
    let mut b = Build::new(4);
    let input = b.model_input("sample", InputRole::Sample, f32s("N,3,8"));
    let rows = b.store(&tensor(&[4, 1, 8], 9));
    let x = b.input(Full, input);
    let w = b.weight(Full, &[8]);
    let deep = b.full(Op::binary(BinaryKind::Mul), &[x, w]);
    let tail = |b: &mut Build, kind, x, deep| {
        let row = b.value(kind, f32s("1,8"), Source::Table(rows));
        let scaled = b.step(kind, Op::binary(BinaryKind::Mul), &[Some(deep), Some(row)]);
        b.step(kind, Op::binary(BinaryKind::Add), &[Some(x), Some(scaled)])
    };
    let out = tail(&mut b, Full, x, deep);
    b.output("out", out);
    let slots = vec![CacheSlot { name: "deep".into(), value: deep, previous_of: None }];
    b.plan.cache = Some(Cache { slots, cached: Default::default(), full_evaluations: vec![0, 2] });
    let x = b.input(Cached, input);
    let stored = b.value(Cached, f32s("N,3,8"), Source::Cache(0));
    let out = tail(&mut b, Cached, x, stored);
    b.program(Cached).results = vec![out];
    b
}

fn weights() -> Arc<Weights> {
    let b = plan();
    Weights::new(b.plan.clone(), b.bytes()).unwrap()
}

fn open(weights: &Arc<Weights>, batch: usize) -> Engine {
    Engine::open(weights, &EngineOptions { batch, threads: 2, ..EngineOptions::default() }).unwrap()
}

/// The outputs of the trajectory x := out, one per evaluation.
fn outputs(engine: &mut Engine, seed: u64) -> Vec<Vec<f32>> {
    let mut request = engine.begin(&BTreeMap::new(), &STEPS).unwrap();
    let mut x = noise(LEN, seed);
    let run = |e| {
        let mut out = vec![0.0; LEN];
        engine.evaluate(&mut request, e, &x, &mut out).unwrap();
        x.copy_from_slice(&out);
        out
    };
    (0..4).map(run).collect()
}

#[test]
fn with_the_cache_of_the_same_step_cached_equals_full_bit_for_bit() {
    let mut engine = open(&weights(), 1);
    let mut request = engine.begin(&BTreeMap::new(), &STEPS).unwrap();
    let (x, [mut full, mut cached]) = (noise(LEN, 1), [(); 2].map(|_| vec![0.0; LEN]));
    for e in 0..4 {
        engine.evaluate_as(Full, &mut request, e, &x, &mut full).unwrap();
        engine.evaluate_as(Cached, &mut request, e, &x, &mut cached).unwrap();
        assert_eq!(full, cached, "evaluation {e}");
    }
}

#[test]
fn the_schedule_decides_and_the_cache_is_that_of_the_last_full_evaluation() {
    let mut engine = open(&weights(), 1);
    let found = outputs(&mut engine, 3);
    let mut request = engine.begin(&BTreeMap::new(), &STEPS).unwrap();
    let (mut x, mut out) = (noise(LEN, 3), vec![0.0; LEN]);
    let mut deep = vec![];
    for (e, found) in found.iter().enumerate() {
        if e % 2 == 0 {
            engine.evaluate_as(Full, &mut request, e, &x, &mut out).unwrap();
            deep = request.slot(0).to_vec();
        } else {
            request.set_slot(0, &deep);
            engine.evaluate_as(Cached, &mut request, e, &x, &mut out).unwrap();
        }
        assert_eq!(&out, found, "evaluation {e}");
        x.copy_from_slice(&out);
    }
}

#[test]
fn requests_in_flight_do_not_disturb_each_other() {
    let mut engine = open(&weights(), 1);
    let alone = [5, 6].map(|seed| outputs(&mut engine, seed));
    let mut requests =
        [5, 6].map(|seed| (engine.begin(&BTreeMap::new(), &STEPS).unwrap(), noise(LEN, seed), 0));
    // the second one runs two evaluations behind the first
    for turn in [0, 0, 1, 0, 1, 1, 0, 1] {
        let (request, x, e) = &mut requests[turn];
        let mut out = vec![0.0; LEN];
        engine.evaluate(request, *e, x, &mut out).unwrap();
        assert_eq!(out, alone[turn][*e], "request {turn}, evaluation {e}");
        x.copy_from_slice(&out);
        *e += 1;
    }
}

#[test]
fn a_second_slot_keeps_what_the_first_one_held_before() {
    let mut b = plan();
    let cache = b.plan.cache.as_mut().unwrap();
    let deep = cache.slots[0].value;
    cache.slots.push(CacheSlot { name: "deep before".into(), value: deep, previous_of: Some(0) });
    let mut engine = open(&Weights::new(b.plan.clone(), b.bytes()).unwrap(), 1);
    let mut request = engine.begin(&BTreeMap::new(), &STEPS).unwrap();
    let mut seen = vec![];
    for e in 0..4 {
        engine.evaluate_as(Full, &mut request, e, &noise(LEN, e as u64), &mut [0.0; LEN]).unwrap();
        seen.push(request.slot(0).to_vec());
        assert_eq!(request.slot(1), seen[e.saturating_sub(1)], "evaluation {e}");
    }
    b.plan.cache.as_mut().unwrap().slots[1].previous_of = Some(1);
    let error = Weights::new(b.plan.clone(), b.bytes()).unwrap_err().to_string();
    assert!(error.contains("slot `deep before` holds what slot 1 held before"), "{error}");
}

#[test]
fn a_request_begins_with_nothing_cached() {
    let mut engine = open(&weights(), 1);
    outputs(&mut engine, 1);
    let mut request = engine.begin(&BTreeMap::new(), &STEPS).unwrap();
    let refused = engine.evaluate(&mut request, 1, &noise(LEN, 1), &mut [0.0; LEN]);
    assert!(matches!(refused, Err(EngineError::NothingCached { evaluation: 1 })), "{refused:?}");
}

#[test]
fn plans_whose_cache_does_not_fit_are_refused() {
    type Change = fn(&mut Cache);
    let changes: [(Change, &str); 7] = [
        (|c| c.full_evaluations[0] = 1, "do not ascend from 0"),
        (|c| c.full_evaluations = vec![0, 2, 2], "do not ascend from 0"),
        (|c| c.full_evaluations = vec![0, 4], "full evaluation 4 of 4"),
        (|c| c.slots.clear(), "there is no cache slot 0"),
        (|c| c.slots[0].value = 99, "slot 0 stores nothing"),
        (|c| c.cached.results.clear(), "0 results for 1 outputs"),
        (|c| c.cached.values[1].ty = f32s("N,8,3"), "it is f32[N,8,3], the slot f32[N,3,8]"),
    ];
    for (change, expected) in changes {
        let mut b = plan();
        change(b.plan.cache.as_mut().unwrap());
        let error = Weights::new(b.plan.clone(), b.bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut b = plan();
    b.plan.full.values[0].source = Source::Cache(0);
    let error = Weights::new(b.plan.clone(), b.bytes()).unwrap_err().to_string();
    assert!(error.contains("only `cached` reads the cache"), "{error}");
}

/// A slot may store an activation that integer products read. It then stores the f32 values of the
/// codes.
#[test]
fn a_slot_can_store_a_rounded_activation() {
    let mut b = Build::new(2);
    let input = b.model_input("sample", InputRole::Sample, f32s("N,2,16"));
    let [scale, zero] = [0.125, 64.0].map(|x| b.constant(Full, &Tensor::from_f32(&[1], &[x])));
    let of_codes = b.store(&Tensor::from_f32(&[16, 1], &[0.01; 16]));
    let codes: Vec<u8> = (0..=255).collect();
    let weight = b.store(&Tensor::new(DType::I8, vec![16, 16], codes).unwrap());
    let how = WeightCodes { bits: 8, scale: of_codes, output_axis: 1, segments: vec![] };
    let constant = &mut b.plan.constants[weight];
    (constant.ty, constant.codes) = (f32s("16,16"), Some(how));
    let w = b.value(Full, f32s("16,16"), Source::Constant(weight));
    let x = b.input(Full, input);
    let rounded = b.full(Op::FakeQuant { bits: 8, segments: vec![] }, &[x, scale, zero]);
    let act = Act::None;
    let out = b.full(Op::Linear { act }, &[rounded, w]);
    b.output("out", out);
    let slots = vec![CacheSlot { name: "x".into(), value: rounded, previous_of: None }];
    b.plan.cache = Some(Cache { slots, cached: Default::default(), full_evaluations: vec![0] });
    let w = b.value(Cached, f32s("16,16"), Source::Constant(weight));
    let stored = b.value(Cached, f32s("N,2,16"), Source::Cache(0));
    let out = b.step(Cached, Op::Linear { act }, &[Some(stored), Some(w)]);
    b.program(Cached).results = vec![out];

    let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let mut engine = open(&weights, 1);
    let mut request = engine.begin(&BTreeMap::new(), &[0.9, 0.1]).unwrap();
    let (mut full, mut cached) = ([0.0; 32], [0.0; 32]);
    engine.evaluate(&mut request, 0, &noise(32, 1), &mut full).unwrap();
    engine.evaluate(&mut request, 1, &noise(32, 2), &mut cached).unwrap();
    assert_eq!(full, cached, "both read the first sample, rounded");
    assert!(full.iter().any(|x| *x != 0.0));
}
