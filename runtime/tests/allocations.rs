//! The loop allocates nothing; an allocator counts.

mod common;

use common::{Build, f32s, shape};
use cqc_proto::Tensor;
use cqc_proto::op::{Act, ConvLayout, Op};
use cqc_proto::plan::{Cache, CacheSlot, InputRole, ProgramKind, Source};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Execution, Weights};
use cqc_runtime::sampler::Sampler;
use cqc_runtime::{Artifact, DenoiserOptions, Device};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::collections::BTreeMap;
use std::sync::Mutex;

use ProgramKind::{Cached, Full};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Convolution, normalisation, attention and concat; cached from the attention on.
fn denoiser(evaluations: usize) -> Build {
    let layout = ConvLayout::ChannelsLast;
    let conv = |pads: usize| Op::Conv {
        strides: vec![1, 1],
        pads: vec![pads; 4],
        dilations: vec![1, 1],
        groups: 1,
        layout,
        upsample: 1,
        act: Act::None,
    };
    let mut b = Build::new(evaluations);
    let input = b.model_input("sample", InputRole::Sample, f32s("N,8,8,4"));
    let rows = b.store(&common::tensor(&[evaluations, 1, 1, 1, 8], 3));
    let [first, last] = [vec![8, 4, 3, 3], vec![4, 16, 3, 3]];
    let stem = |b: &mut Build, kind| {
        let x = b.input(kind, input);
        let w = b.weight(kind, &first);
        let row = b.value(kind, f32s("1,1,1,8"), Source::Table(rows));
        b.step(kind, conv(1), &[Some(x), Some(w), None, Some(row)])
    };
    let head = |b: &mut Build, kind, deep, h| {
        let joined = b.step(kind, Op::Concat { axis: 3 }, &[Some(deep), Some(h)]);
        let w = b.weight(kind, &last);
        b.step(kind, conv(1), &[Some(joined), Some(w)])
    };
    let h = stem(&mut b, Full);
    let norm = Op::GroupNorm { groups: 2, eps: 1e-5, layout, act: Act::Silu };
    let n = b.full(norm, &[h]);
    let tokens = b.full(Op::Reshape { shape: shape("N,64,8") }, &[n]);
    let attention = Op::Attention {
        heads: 2,
        kv_heads: 2,
        scale: 0.5,
        causal: false,
        softcap: 0.0,
        softmax_bits: 0,
    };
    let a = b.full(attention, &[tokens, tokens, tokens]);
    let deep = b.full(Op::Reshape { shape: shape("N,8,8,8") }, &[a]);
    let out = head(&mut b, Full, deep, h);
    b.output("out", out);
    let slots = vec![CacheSlot { name: "deep".into(), value: deep, previous_of: None }];
    b.plan.cache = Some(Cache { slots, cached: Default::default(), full_evaluations: vec![0, 3] });
    let h = stem(&mut b, Cached);
    let stored = b.value(Cached, f32s("N,8,8,8"), Source::Cache(0));
    let out = head(&mut b, Cached, stored, h);
    b.program(Cached).results = vec![out];
    b
}

/// Tests that run at the same time would count each other's allocations.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn evaluations_allocate_nothing() {
    let _alone = ONE_AT_A_TIME.lock();
    for kind in [SamplerKind::Ddim, SamplerKind::Plms, SamplerKind::DpmMultistep] {
        let sampler = Sampler::new(&SamplerConfig::of_kind(kind), 6).unwrap();
        let b = denoiser(sampler.evaluations().len());
        let weights = Weights::new(b.plan.clone(), b.bytes()).unwrap();
        let options = EngineOptions { batch: 2, threads: 2, ..EngineOptions::default() };
        let mut denoiser = Denoiser::open(&weights, sampler, false, &options).unwrap();
        let slow: Vec<_> = denoiser
            .engine()
            .profile()
            .into_iter()
            .filter(|s| s.execution == Execution::Definition)
            .map(|s| s.name)
            .collect();
        assert!(slow.is_empty(), "{slow:?}");
        // other threads (as they start, or the test's own) may allocate in some runs; the loop
        // would allocate in every run
        let counts: Vec<usize> =
            (0..20).map(|_| allocations_of_a_trajectory(&mut denoiser, BTreeMap::new())).collect();
        assert!(counts.contains(&0), "{kind}: {counts:?}");
    }
}

/// The number of allocations after the first evaluation.
fn allocations_of_a_trajectory(
    denoiser: &mut Denoiser,
    conditions: BTreeMap<String, Tensor>,
) -> usize {
    let request = Request { samples: 2, conditions, ..Request::default() };
    let mut trajectory = denoiser.begin(&request, 0).unwrap();
    denoiser.step(&mut trajectory).unwrap();
    let before = ALLOCATOR.stats();
    while trajectory.next() < denoiser.sampler().evaluations().len() {
        denoiser.step(&mut trajectory).unwrap();
    }
    let after = ALLOCATOR.stats();
    assert!(trajectory.x().iter().all(|x| x.is_finite()));
    after.allocations + after.reallocations - before.allocations - before.reallocations
}

/// Codes between layers, products of integers, and corrections of the cache.
#[test]
fn evaluations_of_integers_allocate_nothing() {
    let _alone = ONE_AT_A_TIME.lock();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/artifacts/v4.cq");
    let artifact = Artifact::open(path.as_ref()).unwrap();
    let engine = EngineOptions { batch: 2, threads: 2, ..EngineOptions::default() };
    let options =
        DenoiserOptions { guidance: Some(1.0), device: Device::Cpu, engine, ..Default::default() };
    let mut denoiser = artifact.denoiser(&options).unwrap();
    assert!(
        denoiser
            .engine()
            .profile()
            .iter()
            .any(|step| step.execution == Execution::Int8 && step.program == Cached)
    );
    let labels = Tensor::from_i64(&[2], &[1, 2]);
    let conditions = || [("class_labels".to_string(), labels.clone())].into();
    let counts: Vec<usize> =
        (0..20).map(|_| allocations_of_a_trajectory(&mut denoiser, conditions())).collect();
    assert!(counts.contains(&0), "{counts:?}");
}
