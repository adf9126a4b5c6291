//! Guidance that is rescaled, or that applies in a part of the steps.
//! `tests/golden/guidance/record.py` recorded the loops with diffusers' guider.

mod common;

use common::*;
use cqc_proto::cq::{Fill, GuidanceInterval};
use cqc_proto::op::{Act, BinaryKind};
use cqc_proto::plan::*;
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_proto::{DType, Op, Tensor, ValueType};
use cqc_runtime::denoise::{DenoiseError, Denoiser, Request, fill_value};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::{Sampler, State};
use npyz::npz::NpzArchive;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use ProgramKind::{Cached, Full, PreludeSteps};

const STEPS: usize = 12;

#[derive(serde::Deserialize)]
struct Case {
    sampler: String,
    config: String,
    scale: f32,
    rescale: f32,
    start: f64,
    stop: f64,
    /// The number of evaluations for which the guider asked for the unconditional half.
    guided: u64,
}

struct Golden {
    arrays: BTreeMap<&'static str, Tensor>,
    cases: Vec<Case>,
    samples: Vec<f32>,
    embedded: Vec<(f32, usize)>,
    embeddings: Vec<f32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/guidance/guidance.npz");
    let mut archive = NpzArchive::open(path).unwrap();
    let mut floats = |name: &str| -> (Vec<usize>, Vec<f32>) {
        let array = archive.by_name(name).unwrap().unwrap();
        (array.shape().iter().map(|&d| d as usize).collect(), array.into_vec().unwrap())
    };
    let arrays = ["w", "classes", "times", "noise"].map(|name| {
        let (shape, values) = floats(name);
        (name, Tensor::from_f32(&shape, &values))
    });
    let (samples, embeddings) = (floats("samples").1, floats("embeddings").1);
    let mut text =
        |name: &str| -> Vec<u8> { archive.by_name(name).unwrap().unwrap().into_vec().unwrap() };
    let (cases, embedded) = (text("cases"), text("embedded"));
    Golden {
        arrays: arrays.into(),
        cases: serde_json::from_slice(&cases).unwrap(),
        samples,
        embedded: serde_json::from_slice(&embedded).unwrap(),
        embeddings,
    }
}

/// `out = x · w + class row + time row`, the stand-in for the network in the recording, with a
/// symbolic or a fixed batch.
fn stand_in(golden: &Golden, fixed: Option<usize>) -> Arc<Weights> {
    let rows = fixed.map_or("N".to_string(), |b| b.to_string());
    let stacked = fixed.map_or("N".to_string(), |b| (b * STEPS).to_string());
    let mut b = Build::new(STEPS);
    (b.plan.batch_symbol, b.plan.fixed_batch) = (fixed.is_none().then(|| "N".into()), fixed);
    let sample = b.model_input("sample", InputRole::Sample, f32s(&format!("{rows},24,4")));
    let ty = |rows: &str| ValueType::new(DType::I64, shape(rows));
    let labels = b.model_input("labels", InputRole::Condition, ty(&rows));
    let l = b.value(PreludeSteps, ty(&stacked), Source::Input(labels));
    let table = b.constant(PreludeSteps, &golden.arrays["classes"]);
    let class = b.step(PreludeSteps, Op::Gather { axis: 0 }, &[Some(table), Some(l)]);
    let one_row = Op::Reshape { shape: shape(&format!("{stacked},1,4")) };
    let class = b.step(PreludeSteps, one_row, &[Some(class)]);
    b.plan.prelude_steps.results = vec![class];
    let x = b.input(Full, sample);
    let w = b.constant(Full, &golden.arrays["w"]);
    let class = b.value(Full, f32s(&format!("{rows},1,4")), Source::PreludeSteps(0));
    let times = golden.arrays["times"].clone().reshaped(vec![STEPS, 1, 1, 4]).unwrap();
    let times = b.store(&times);
    let time = b.value(Full, f32s("1,1,4"), Source::Table(times));
    let y = b.step(Full, Op::Linear { act: Act::None }, &[Some(x), Some(w), None, Some(time)]);
    let y = b.full(Op::binary(BinaryKind::Add), &[y, class]);
    b.output("out", y);
    Weights::new(b.plan.clone(), b.bytes()).unwrap()
}

fn sampler(case: &Case) -> Sampler {
    let kind = case.sampler.parse().unwrap();
    let config = SamplerConfig::from_diffusers_json(&case.config, Some(kind)).unwrap();
    Sampler::new(&config, STEPS).unwrap()
}

fn request(golden: &Golden, case: &Case) -> Request {
    let labels =
        |l: &[i64]| BTreeMap::from([("labels".to_string(), Tensor::from_i64(&[l.len()], l))]);
    let guided = case.scale != 1.0;
    Request {
        samples: 2,
        noise: Some(golden.arrays["noise"].clone()),
        conditions: labels(&[1, 3]),
        unconditional: labels(&[4]),
        guidance: Some(case.scale),
        guidance_rescale: guided.then_some(case.rescale),
        guidance_interval: guided.then_some(GuidanceInterval { from: case.start, to: case.stop }),
        ..Request::default()
    }
}

fn options(batch: usize) -> EngineOptions {
    EngineOptions { batch, threads: 1, profile: true, ..EngineOptions::default() }
}

fn run(l: &mut Denoiser, request: &Request) -> Vec<f32> {
    l.sample(request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

/// The number of runs of a program.
fn calls(l: &Denoiser, kind: ProgramKind) -> u64 {
    let steps = l.engine().profile();
    steps.iter().filter(|s| s.program == kind).map(|s| s.calls).max().unwrap_or(0)
}

fn error(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn loops_end_where_those_of_diffusers_guider_end_and_leave_out_what_it_leaves_out() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 30);
    for (case, expected) in golden.cases.iter().zip(golden.samples.chunks_exact(2 * 24 * 4)) {
        let request = request(&golden, case);
        let name = format!(
            "{} {} {} {}..{}",
            case.sampler, case.scale, case.rescale, case.start, case.stop
        );
        let guided = case.scale != 1.0;
        let weights = stand_in(&golden, None);
        let open =
            |w: &Arc<Weights>| Denoiser::open(w, sampler(case), guided, &options(2)).unwrap();
        let joined = run(&mut open(&weights), &request);
        let found = error(&joined, expected);
        assert!(found < 1e-5, "{name}: {found}");
        if !guided {
            continue;
        }

        let mut apart = Denoiser::open_apart(&weights, sampler(case), &options(2)).unwrap();
        assert!(run(&mut apart, &request) == joined, "{name}: apart");
        assert_eq!(calls(&apart, Full), STEPS as u64 + case.guided, "{name}");
        for fixed in [1, 2] {
            let mut l = open(&stand_in(&golden, Some(fixed)));
            assert!(run(&mut l, &request) == joined, "{name}: batch {fixed}");
        }
        // step by step, both halves are computed and one is ignored
        let mut l = open(&weights);
        let mut trajectory = l.begin(&request, 0).unwrap();
        (0..STEPS).for_each(|_| l.step(&mut trajectory).unwrap());
        assert!(trajectory.x() == joined, "{name}: step by step");
    }
}

#[test]
fn without_any_guided_step_the_loop_is_the_unguided_one_bit_for_bit() {
    let golden = golden();
    let case = &golden.cases[9];
    assert_eq!((case.guided, case.scale), (0, 3.0));
    let weights = stand_in(&golden, None);
    let mut plain = Denoiser::open(&weights, sampler(case), false, &options(2)).unwrap();
    let unguided = Request {
        guidance: Some(1.0),
        guidance_rescale: None,
        guidance_interval: None,
        ..request(&golden, case)
    };
    let expected = run(&mut plain, &unguided);
    let mut guided = Denoiser::open(&weights, sampler(case), true, &options(2)).unwrap();
    assert!(run(&mut guided, &request(&golden, case)) == expected);
    assert!(run(&mut guided, &unguided) == expected);
    assert_eq!(calls(&guided, Full), 0, "another engine computed one half");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let golden = golden();
    let case = &golden.cases[1];
    let weights = stand_in(&golden, None);
    let mut l = Denoiser::open(&weights, sampler(case), true, &options(2)).unwrap();
    let mut said = |scale, rescale, from, to| {
        let wrong = Request {
            guidance: Some(scale),
            guidance_rescale: Some(rescale),
            guidance_interval: Some(GuidanceInterval { from, to }),
            ..request(&golden, case)
        };
        match l.begin(&wrong, 0) {
            Err(DenoiseError::Guiding(errors)) => errors.len(),
            Err(e) => panic!("{e}"),
            Ok(_) => 0,
        }
    };
    assert_eq!(said(3.0, 0.7, 0.2, 0.8), 0);
    assert_eq!(said(1.0, 0.0, 0.0, 1.0), 0);
    assert_eq!(said(3.0, 1.5, 0.8, 0.2), 2);
    assert_eq!(said(3.0, f32::NAN, 0.0, f64::NAN), 2);
    assert_eq!(said(1.0, 0.7, 0.2, 0.8), 2);
}

const ROWS: usize = 3 * 8;
/// The number of evaluations of the plan with a cache.
const CACHED: usize = 6;

/// `full`: `deep = x · w + c; out = x / 2 + deep · row`. `cached`: the same, beginning with `deep`.
fn caching(full: &[usize]) -> Arc<Weights> {
    let mut b = Build::new(CACHED);
    let sample = b.model_input("sample", InputRole::Sample, f32s("N,3,8"));
    let condition = b.model_input("c", InputRole::Condition, f32s("N,3,8"));
    let rows = b.store(&tensor(&[CACHED, 1, 8], 9));
    let x = b.input(Full, sample);
    let c = b.input(Full, condition);
    let w = b.weight(Full, &[8]);
    let product = b.full(Op::binary(BinaryKind::Mul), &[x, w]);
    let deep = b.full(Op::binary(BinaryKind::Add), &[product, c]);
    let tail = |b: &mut Build, kind, x, deep| {
        let half = b.constant(kind, &Tensor::from_f32(&[1], &[0.5]));
        let half = b.step(kind, Op::binary(BinaryKind::Mul), &[Some(x), Some(half)]);
        let row = b.value(kind, f32s("1,8"), Source::Table(rows));
        let scaled = b.step(kind, Op::binary(BinaryKind::Mul), &[Some(deep), Some(row)]);
        b.step(kind, Op::binary(BinaryKind::Add), &[Some(half), Some(scaled)])
    };
    let out = tail(&mut b, Full, x, deep);
    b.output("out", out);
    let slots = vec![CacheSlot { name: "deep".into(), value: deep, previous_of: None }];
    b.plan.cache =
        Some(Cache { slots, cached: Default::default(), full_evaluations: full.to_vec() });
    let x = b.input(Cached, sample);
    let stored = b.value(Cached, f32s("N,3,8"), Source::Cache(0));
    let out = tail(&mut b, Cached, x, stored);
    b.program(Cached).results = vec![out];
    Weights::new(b.plan.clone(), b.bytes()).unwrap()
}

#[test]
fn after_an_outage_the_unconditional_half_caches_anew() {
    let config = SamplerConfig::of_kind(SamplerKind::Ddim);
    let (given, null, x0) = (noise(ROWS, 1), noise(ROWS, 2), noise(ROWS, 3));
    for (full, from, to) in [
        (&[0, 2, 4][..], 0.5, 1.0),
        (&[0, 2, 4], 0.2, 0.9),
        (&[0], 0.5, 1.0),
        (&[0, 4], 0.34, 0.5),
        (&[0, 3], 0.0, 0.5),
    ] {
        let weights = caching(full);
        let as_map = |values: &[f32]| {
            BTreeMap::from([("c".to_string(), Tensor::from_f32(&[1, 3, 8], values))])
        };
        let interval = GuidanceInterval { from, to };
        let request = Request {
            noise: Some(Tensor::from_f32(&[1, 3, 8], &x0)),
            conditions: as_map(&given),
            unconditional: as_map(&null),
            guidance: Some(2.5),
            guidance_interval: Some(interval),
            ..Request::default()
        };
        let sampler = Sampler::new(&config, CACHED).unwrap();
        let mut l = Denoiser::open_apart(&weights, sampler.clone(), &options(1)).unwrap();
        let found = run(&mut l, &request);

        // if the schedule is full there as well, a loop that computes both halves gives the same
        if full.contains(&interval.steps(CACHED).start) {
            let mut joined = Denoiser::open(&weights, sampler.clone(), true, &options(1)).unwrap();
            let mut trajectory = joined.begin(&request, 0).unwrap();
            (0..CACHED).for_each(|_| joined.step(&mut trajectory).unwrap());
            assert!(trajectory.x() == found, "full {full:?}, {interval}");
        }

        // the expected values by the formulas
        let (w, rows) = (noise(8, 101), noise(CACHED * 8, 9));
        let mut x = x0.clone();
        let mut state = State::new(&sampler, 1, ROWS);
        let guided = interval.steps(CACHED);
        let mut deep = [vec![0.0; ROWS], vec![0.0; ROWS]];
        let mut counted = [0; 2];
        for e in 0..CACHED {
            let mut halves = [vec![0.0; ROWS], vec![0.0; ROWS]];
            for (half, c) in [&null, &given].into_iter().enumerate() {
                if half == 0 && !guided.contains(&e) {
                    continue;
                }
                let is_full = full.contains(&e) || (half == 0 && e == guided.start);
                counted[usize::from(!is_full)] += 1;
                for i in 0..ROWS {
                    if is_full {
                        deep[half][i] = x[i] * w[i % 8] + c[i];
                    }
                    halves[half][i] = x[i] * 0.5 + deep[half][i] * rows[e * 8 + i % 8];
                }
            }
            let [u, c] = &halves;
            let out: Vec<f32> = match guided.contains(&e) {
                true => u.iter().zip(c).map(|(u, c)| u + 2.5 * (c - u)).collect(),
                false => c.clone(),
            };
            sampler.advance(&mut state, e, &mut x, &out, |_| {});
        }
        let off = error(&found, &x);
        assert!(off < 1e-6, "full {full:?}, {interval}: {off}");
        assert_eq!([Full, Cached].map(|kind| calls(&l, kind)), counted, "{full:?} {interval}");
    }
}

#[test]
fn the_scale_is_embedded_as_latent_consistency_models_take_it() {
    let golden = golden();
    let mut expected = &golden.embeddings[..];
    for &(scale, width) in &golden.embedded {
        let row = expected.split_off(..width).unwrap();
        let found = fill_value(Fill::GuidanceEmbedding, scale, 4, Some(width as i64)).unwrap();
        assert_eq!(found.shape(), [1, width]);
        // one ulp of a frequency is 5e-4 of an angle of 7500
        let found = error(&found.to_f32_vec(), row);
        assert!(found < 1e-3, "{scale} {width}: {found}");
        println!("{scale} {width}: {found}");
    }
    assert!(expected.is_empty());
}
