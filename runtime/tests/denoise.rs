//! The loop around a tiny denoiser.

mod common;

use common::*;
use cqc_proto::op::{Act, BinaryKind};
use cqc_proto::plan::*;
use cqc_proto::sampler::{SamplerConfig, SamplerKind, Variance};
use cqc_proto::{DType, Op, Tensor, ValueType};
use cqc_runtime::denoise::{DenoiseError, Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use ProgramKind::{Full, PreludeSteps};

/// `out = x · w + class row + time row`, `[N, 24, 4]` (or `[N, 24, 8]` with a variance), with a
/// symbolic or a fixed batch. 24 rows are whole tiles of every kernel, so results are bit for bit
/// the same in every batch.
fn denoiser(evaluations: usize, columns: usize, fixed: Option<usize>) -> Arc<Weights> {
    let rows = fixed.map_or("N".to_string(), |b| b.to_string());
    let stacked = fixed.map_or("N".to_string(), |b| (b * evaluations).to_string());
    let mut b = Build::new(evaluations);
    (b.plan.batch_symbol, b.plan.fixed_batch) = (fixed.is_none().then(|| "N".into()), fixed);
    let sample = b.model_input("sample", InputRole::Sample, f32s(&format!("{rows},24,4")));
    let labels =
        b.model_input("labels", InputRole::Condition, ValueType::new(DType::I64, shape(&rows)));
    let l =
        b.value(PreludeSteps, ValueType::new(DType::I64, shape(&stacked)), Source::Input(labels));
    let table = b.weight(PreludeSteps, &[5, columns]);
    let class = b.step(PreludeSteps, Op::Gather { axis: 0 }, &[Some(table), Some(l)]);
    let class = b.step(
        PreludeSteps,
        Op::Reshape { shape: shape(&format!("{stacked},1,{columns}")) },
        &[Some(class)],
    );
    b.plan.prelude_steps.results = vec![class];

    let x = b.input(Full, sample);
    let w = b.weight(Full, &[4, columns]);
    let class = b.value(Full, f32s(&format!("{rows},1,{columns}")), Source::PreludeSteps(0));
    let times = b.store(&tensor(&[evaluations, 1, 1, columns], 77));
    let time = b.value(Full, f32s(&format!("1,1,{columns}")), Source::Table(times));
    let y = b.step(Full, Op::Linear { act: Act::None }, &[Some(x), Some(w), None, Some(time)]);
    let y = b.full(Op::binary(BinaryKind::Add), &[y, class]);
    b.output("out", y);
    Weights::new(b.plan.clone(), b.bytes()).unwrap()
}

fn sampler(kind: SamplerKind, steps: usize) -> Sampler {
    Sampler::new(&SamplerConfig::of_kind(kind), steps).unwrap()
}

fn options(batch: usize) -> EngineOptions {
    EngineOptions { batch, threads: 2, ..EngineOptions::default() }
}

/// With a `guidance` of `None`, the request uses the denoiser's own.
fn request(labels: &[i64], guidance: Option<f32>) -> Request {
    let conditions =
        BTreeMap::from([("labels".to_string(), Tensor::from_i64(&[labels.len()], labels))]);
    let unconditional = BTreeMap::from([("labels".to_string(), Tensor::from_i64(&[1], &[4]))]);
    Request {
        samples: labels.len(),
        seed: 7,
        conditions,
        unconditional,
        guidance,
        ..Request::default()
    }
}

fn run(l: &mut Denoiser, request: &Request) -> Vec<f32> {
    l.sample(request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

const LEN: usize = 24 * 4;
const LABELS: [i64; 5] = [0, 1, 2, 3, 0];

#[test]
fn samples_do_not_depend_on_how_many_are_computed_at_once() {
    for &kind in SamplerKind::ALL {
        let evaluations = sampler(kind, 6).evaluations().len();
        for guided in [false, true] {
            let weights = denoiser(evaluations, 4, None);
            let image = Tensor::from_f32(&[1, 24, 4], &[0.5; LEN]);
            let init = sampler(kind, 6).needs_image().then_some(image);
            let request = Request { init, ..request(&LABELS, guided.then_some(1.5)) };
            let mut widths = [1, 2, 5, 8]
                .map(|w| Denoiser::open(&weights, sampler(kind, 6), guided, &options(w)).unwrap());
            let all = widths.each_mut().map(|l| run(l, &request));
            assert!(
                all.iter()
                    .all(|a| *a == all[0] && a.len() == 5 * LEN && a.iter().all(|v| v.is_finite())),
                "{kind}"
            );
            let shard = Request {
                first: 3,
                samples: 2,
                init: request.init.clone(),
                ..self::request(&LABELS[3..], guided.then_some(1.5))
            };
            assert!(run(&mut widths[1], &shard) == all[0][3 * LEN..], "{kind}: a shard");
        }
    }
}

#[test]
fn a_fixed_batch_gives_what_a_free_one_gives() {
    for fixed in 1..4 {
        for guided in [false, true] {
            let request = request(&LABELS, guided.then_some(2.0));
            let mut free = Denoiser::open(
                &denoiser(6, 4, None),
                sampler(SamplerKind::Ddim, 6),
                guided,
                &options(5),
            )
            .unwrap();
            let weights = denoiser(6, 4, Some(fixed));
            let mut l =
                Denoiser::open(&weights, sampler(SamplerKind::Ddim, 6), guided, &options(5))
                    .unwrap();
            assert!(
                run(&mut l, &request) == run(&mut free, &request),
                "batch {fixed}, guided: {guided}"
            );
            assert_eq!(l.halves(), if guided && fixed % 2 == 1 { 2 } else { 1 });
        }
    }
}

#[test]
fn guidance_is_what_two_plain_evaluations_and_the_sampler_make_of_it() {
    let (weights, sampler_) = (denoiser(6, 4, None), sampler(SamplerKind::Ddim, 6));
    let mut l = Denoiser::open(&weights, sampler(SamplerKind::Ddim, 6), true, &options(1)).unwrap();
    let noise = tensor(&[1, 24, 4], 3);
    let request = Request { noise: Some(noise.clone()), ..request(&[2], Some(3.0)) };
    let guided = run(&mut l, &request);

    let timesteps: Vec<f64> = sampler_.evaluations().iter().map(|e| e.timestep).collect();
    let mut engine = cqc_runtime::engine::Engine::open(&weights, &options(1)).unwrap();
    let mut state = cqc_runtime::sampler::State::new(&sampler_, 1, LEN);
    let mut x = noise.to_f32_vec();
    for e in 0..6 {
        let [u, c] = [4, 2].map(|label| {
            let mut out = vec![0.0; LEN];
            let labels = BTreeMap::from([("labels".to_string(), Tensor::from_i64(&[1], &[label]))]);
            let mut request = engine.begin(&labels, &timesteps).unwrap();
            engine.evaluate(&mut request, e, &x, &mut out).unwrap();
            out
        });
        let mixed: Vec<f32> = u.iter().zip(&c).map(|(u, c)| u + 3.0 * (c - u)).collect();
        sampler_.advance(&mut state, e, &mut x, &mixed, |_| unreachable!("DDIM adds none"));
    }
    assert_eq!(guided, x);
}

#[test]
fn a_second_half_of_the_output_is_the_variance() {
    let config = SamplerConfig {
        variance_type: Variance::LearnedRange,
        ..SamplerConfig::of_kind(SamplerKind::Ddpm)
    };
    let sampler = || Sampler::new(&config, 6).unwrap();
    for guided in [false, true] {
        let mut l = Denoiser::open(&denoiser(6, 8, None), sampler(), guided, &options(2)).unwrap();
        assert!(
            run(&mut l, &request(&LABELS, guided.then_some(2.0))).iter().all(|v| v.is_finite())
        );
    }
    let without = Denoiser::open(&denoiser(6, 4, None), sampler(), false, &options(2));
    assert!(matches!(without, Err(DenoiseError::NoDenoiser { .. })));
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    let weights = denoiser(6, 4, None);
    let open = |steps, guided| {
        Denoiser::open(&weights, sampler(SamplerKind::Ddim, steps), guided, &options(2))
    };
    assert!(matches!(open(7, false), Err(DenoiseError::Evaluations { plan: 6, sampler: 7 })));
    let refused = open(6, false).unwrap().begin(&request(&LABELS, Some(2.0)), 0);
    assert!(matches!(refused, Err(DenoiseError::NotGuided { scale: 2.0 })));
    let mut l = open(6, true).unwrap();
    let mut go =
        |request: Request| l.sample(&request, &mut |_| ControlFlow::Continue(())).map(|_| ());
    let without_null = Request { unconditional: BTreeMap::new(), ..request(&LABELS, Some(2.0)) };
    assert!(matches!(go(without_null), Err(DenoiseError::NoNull)));
    let two_labels = Request { samples: 5, ..request(&[1, 2], Some(2.0)) };
    assert!(matches!(go(two_labels), Err(DenoiseError::Rows { .. })));
    let noise = Some(tensor(&[4, 24, 4], 1));
    assert!(matches!(
        go(Request { noise, ..request(&LABELS, Some(2.0)) }),
        Err(DenoiseError::Rows { .. })
    ));
    let stray = BTreeMap::from([("text".to_string(), tensor(&[1], 1))]);
    assert!(matches!(
        go(Request { unconditional: stray, ..request(&LABELS, Some(2.0)) }),
        Err(DenoiseError::Engine(_))
    ));
    let mut seen = 0;
    let broken = l.sample(&request(&LABELS, Some(2.0)), &mut |moment| {
        seen += 1;
        if moment.evaluation == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(broken, Err(DenoiseError::Interrupted)) && seen == 3);
    assert_eq!(
        run(&mut l, &request(&LABELS, Some(2.0))).len(),
        5 * LEN,
        "the loop can be used again"
    );
}
