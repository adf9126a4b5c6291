//! Compares whole loops on CUDA devices with the CPU. Every evaluation begins with the same sample,
//! and each side has its own cache. The tests run on the simulator if it is built in (feature
//! `cuda-sim`), and on a GPU if there is one (feature `cuda`; with `CQC_REQUIRE_CUDA=1` they fail
//! without one).
#![cfg(any(feature = "cuda", feature = "cuda-sim"))]

use bytes::Bytes;
use cqc_kernels::cuda::Device;
use cqc_proto::cq::Artifact;
use cqc_proto::plan::{InputRole, ProgramKind};
use cqc_proto::sampler::{Prediction, SamplerConfig, SamplerKind, Variance};
use cqc_proto::{Bindings, Tensor};
use cqc_runtime::DenoiserOptions;
use cqc_runtime::cuda::CudaBackend;
use cqc_runtime::denoise::{Compensation, Denoiser, Request};
use cqc_runtime::engine::{Backend, DevicePreludes, Engine, EngineError, EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

fn devices() -> Vec<Arc<dyn Device>> {
    let mut devices: Vec<Arc<dyn Device>> = vec![];
    #[cfg(feature = "cuda-sim")]
    if std::env::var_os("CQC_REQUIRE_CUDA").is_none() {
        devices.push(Arc::new(cqc_kernels::cuda::simulator::Simulator));
    }
    #[cfg(feature = "cuda")]
    match cqc_kernels::cuda::driver::Gpu::open(&Default::default()) {
        Ok(gpu) => devices.push(gpu),
        Err(e) if std::env::var_os("CQC_REQUIRE_CUDA").is_some() => panic!("CQC_REQUIRE_CUDA: {e}"),
        Err(e) => println!("skipped on a GPU: {e}"),
    }
    devices
}

fn on(device: &Arc<dyn Device>, slots: usize) -> Option<Arc<dyn Backend>> {
    Some(Arc::new(CudaBackend { device: Arc::clone(device), slots }))
}

fn open(path: &Path) -> Arc<Weights> {
    let artifact = Artifact::read(Bytes::from(std::fs::read(path).unwrap())).unwrap();
    Weights::new(artifact.manifest.plan, artifact.weights).unwrap()
}

/// Conditions for two samples, all of ones.
fn conditions(weights: &Weights) -> BTreeMap<String, Tensor> {
    let plan = weights.plan();
    let bindings: Bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), 2)).collect();
    let inputs = plan.inputs.iter().filter(|i| i.role == InputRole::Condition);
    let ones = |i: &cqc_proto::plan::PlanInput| {
        let shape = i.ty.resolve(&bindings).unwrap();
        let count = shape.iter().product();
        let one = if i.ty.dtype.is_float() {
            Tensor::from_f32(&shape, &vec![1.0; count])
        } else {
            Tensor::from_i64(&shape, &vec![1; count])
        };
        (i.name.clone(), one)
    };
    inputs.map(ones).collect()
}

/// The ratio of signal to difference in dB.
fn sqnr(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let noise: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    10.0 * (expected.iter().map(|&x| square(x)).sum::<f64>() / noise.max(1e-30)).log10()
}

/// The ratio of every evaluation in dB, with its program.
fn compare(device: &Arc<dyn Device>, path: &Path, evaluations: usize) -> Vec<(ProgramKind, f64)> {
    let weights = open(path);
    let plan = weights.plan();
    let batch = plan.fixed_batch.unwrap_or(2);
    let options = EngineOptions { batch, threads: 1, ..Default::default() };
    let mut cpu = Engine::open(&weights, &options).unwrap();
    let mut gpu =
        Engine::open(&weights, &EngineOptions { device: on(device, 2), ..options }).unwrap();
    let timesteps: Vec<f64> = (0..plan.evaluations).map(|e| 900.0 - 10.0 * e as f64).collect();
    let given = conditions(&weights);
    let mut on_cpu = cpu.begin(&given, &timesteps).unwrap();
    let mut others =
        [gpu.begin(&given, &timesteps).unwrap(), gpu.begin(&given, &timesteps).unwrap()];
    let refused = gpu.begin(&given, &timesteps).unwrap_err();
    assert!(matches!(refused, EngineError::NoSlot { slots: 2 }), "{refused}");
    let sample = plan.inputs.iter().position(|i| i.role == InputRole::Sample).unwrap();
    let (count, results) =
        (cpu.input_shape(sample).iter().product(), cpu.output_shape(0).iter().product());
    let mut decibels = Vec::new();
    for e in 0..plan.evaluations.min(evaluations) {
        let kind = plan.program_at(e);
        let mut x = vec![0.0; count];
        Noise::new(e as u64, 0, batch).fill(&mut x);
        let (mut expected, mut found, mut again) =
            (vec![0.0; results], vec![0.0; results], vec![0.0; results]);
        cpu.evaluate(&mut on_cpu, e, &x, &mut expected).unwrap();
        let [one, two] = &mut others;
        gpu.evaluate(one, e, &x, &mut found).unwrap();
        gpu.evaluate(two, e, &x, &mut again).unwrap();
        assert_eq!(found, again, "two requests, evaluation {e}");
        decibels.push((kind, sqnr(&found, &expected)));
    }
    let clone = &mut others[0].clone();
    let refused = gpu.evaluate(clone, 0, &vec![0.0; count], &mut vec![0.0; results]).unwrap_err();
    assert!(matches!(refused, EngineError::ForeignRequest), "{refused}");
    decibels
}

#[test]
fn loops_of_old_artifacts_equal_the_cpu() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/artifacts");
    if !folder.is_dir() {
        return println!("skipped: no {}", folder.display());
    }
    for device in devices() {
        // fp16 after every layer; rounded activations may fall on the neighbouring level
        for (name, least) in [("v1", 56.0), ("v2", 56.0), ("v3", 38.0), ("v4", 38.0), ("v5", 38.0)]
        {
            let decibels = compare(&device, &folder.join(format!("{name}.cq")), 6);
            println!("{}: {name}: {decibels:.1?}", device.name());
            assert!(decibels.iter().all(|(_, db)| *db > least), "{name}: {decibels:?}");
        }
    }
}

#[test]
fn preludes_run_on_the_device_and_refuse_a_label_that_is_not_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/artifacts");
    if !folder.is_dir() {
        return println!("skipped: no {}", folder.display());
    }
    for device in devices() {
        let mut refused = 0;
        for name in ["v1", "v2", "v3", "v4", "v5"] {
            let weights = open(&folder.join(format!("{name}.cq")));
            let plan = weights.plan();
            let batch = plan.fixed_batch.unwrap_or(2);
            let options =
                EngineOptions { batch, threads: 1, device: on(&device, 1), ..Default::default() };
            let mut engine = Engine::open(&weights, &options).unwrap();
            let begins = [&plan.prelude, &plan.prelude_steps];
            let [prelude, prelude_steps] =
                begins.map(|p| !(p.steps.is_empty() && p.results.is_empty()));
            let expected = DevicePreludes { prelude, prelude_steps };
            assert_eq!(engine.device().unwrap().preludes(), expected, "{name}");
            let looks_up =
                |step: &cqc_proto::plan::Step| matches!(step.op, cqc_proto::Op::Gather { .. });
            if !begins.iter().any(|p| p.steps.iter().any(looks_up)) {
                continue;
            }
            let label = |(name, t): (String, Tensor)| {
                let outside =
                    Tensor::from_i64(t.shape(), &vec![1 << 20; t.shape().iter().product()]);
                (name, if t.dtype().is_float() { t } else { outside })
            };
            let given = conditions(&weights).into_iter().map(label).collect();
            let timesteps: Vec<f64> =
                (0..plan.evaluations).map(|e| 900.0 - 10.0 * e as f64).collect();
            let fault = engine.begin(&given, &timesteps).unwrap_err();
            assert!(matches!(fault, EngineError::Fault { .. }), "{name}: {fault}");
            engine.begin(&conditions(&weights), &timesteps).unwrap();
            refused += 1;
        }
        assert!(refused > 0, "some artifact looks labels up");
    }
}

/// A loop whose samples move on the device, and the same loop step by step with the sampler on the
/// CPU. Returns the samples of both.
fn sampled(
    device: &Arc<dyn Device>,
    weights: &Arc<Weights>,
    sampler: &Sampler,
    guided: bool,
) -> [Vec<f32>; 2] {
    let batch = weights.plan().fixed_batch.unwrap_or(2);
    let device = on(device, 2);
    let options = EngineOptions { batch, threads: 1, device, ..Default::default() };
    let mut denoise = Denoiser::open(weights, sampler.clone(), guided, &options).unwrap();
    let channels = denoise.channels();
    let factors = |by: f32| {
        (0..channels * sampler.evaluations().len()).map(|i| by * (i % 7) as f32).collect()
    };
    let scale: Vec<f32> = factors(1e-3);
    let scale = scale.into_iter().map(|v| 1.0 + v).collect();
    denoise.set_compensation(Some(Compensation { scale, shift: factors(-2e-3) })).unwrap();
    let samples = denoise.width() + 1;
    let rows = |value: i64| {
        let one = |(name, t): (String, Tensor)| {
            let shape = [&[samples], &t.shape()[1..]].concat();
            let count = shape.iter().product();
            let filled = if t.dtype().is_float() {
                Tensor::from_f32(&shape, &vec![value as f32; count])
            } else {
                Tensor::from_i64(&shape, &vec![value; count])
            };
            (name, filled)
        };
        conditions(weights).into_iter().map(one).collect()
    };
    let unconditional = if guided { rows(0) } else { BTreeMap::new() };
    let (conditions, guidance) = (rows(1), guided.then_some(1.75));
    let shape = [&[1], denoise.sample_shape()].concat();
    let image = || Tensor::from_f32(&shape, &vec![0.5; shape.iter().product()]);
    let init = sampler.needs_image().then(image);
    let request = Request {
        samples,
        seed: 5,
        init,
        conditions,
        unconditional,
        guidance,
        ..Request::default()
    };
    let mut seen = Vec::new();
    let there = denoise.sample(&request, &mut |moment| {
        seen.push(moment.x().unwrap().into_owned());
        ControlFlow::Continue(())
    });
    let there = there.unwrap().to_f32_vec();
    let len: usize = denoise.sample_shape().iter().product();
    let (mut here, mut steps) = (Vec::new(), Vec::new());
    for first in (0..samples).step_by(denoise.width()) {
        let mut trajectory = denoise.begin(&request, first).unwrap();
        while trajectory.next() < sampler.evaluations().len() {
            denoise.step(&mut trajectory).unwrap();
            steps.push(trajectory.x().to_vec());
        }
        here.extend_from_slice(&trajectory.x()[..len * denoise.width().min(samples - first)]);
    }
    assert_eq!(seen, steps, "the samples after each evaluation");
    [there, here]
}

#[test]
fn samples_that_stay_on_the_device_are_those_that_the_cpu_moves() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/artifacts");
    if !folder.is_dir() {
        return println!("skipped: no {}", folder.display());
    }
    let predictions = [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample];
    // every sampler with the defaults of its class, and those that support other predictions
    let mut configs: Vec<SamplerConfig> =
        SamplerKind::ALL.iter().map(|&kind| SamplerConfig::of_kind(kind)).collect();
    for prediction_type in predictions {
        for kind in [SamplerKind::Ddim, SamplerKind::Euler, SamplerKind::DpmMultistep] {
            configs.push(SamplerConfig { prediction_type, ..SamplerConfig::of_kind(kind) });
        }
    }
    configs.push(SamplerConfig { eta: 0.7, ..SamplerConfig::of_kind(SamplerKind::Ddim) });
    for variance_type in [Variance::FixedSmall, Variance::LearnedRange] {
        configs.push(SamplerConfig { variance_type, ..SamplerConfig::of_kind(SamplerKind::Ddpm) });
    }
    for device in devices() {
        let mut moved = 0;
        for (i, config) in configs.iter().enumerate() {
            // the artifact with a cache, with guidance in every third case
            let weights = open(&folder.join("v3.cq"));
            let evaluations = weights.plan().evaluations;
            let fits = |steps: usize| {
                let sampler = Sampler::new(config, steps).ok()?;
                (sampler.evaluations().len() == evaluations).then_some(sampler)
            };
            // samplers like Heun's have an odd number of evaluations
            let Some(sampler) = (1..=evaluations).rev().find_map(fits) else { continue };
            let [there, here] = sampled(&device, &weights, &sampler, i % 3 == 0);
            assert!(there.iter().all(|x| x.is_finite()), "{config:?}");
            assert_eq!(there, here, "{config:?}");
            moved += 1;
        }
        assert!(moved > SamplerKind::ALL.len() / 2, "{moved} of {}", configs.len());
    }
}

/// Some loops begin with an evaluation that was compiled as cached, where some layers have no
/// ranges.
#[test]
fn loops_begin_with_an_image_as_on_the_cpu() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/artifacts");
    if !folder.is_dir() {
        return println!("skipped: no {}", folder.display());
    }
    for device in devices() {
        for name in ["v3", "v4", "v5"] {
            let path = folder.join(format!("{name}.cq"));
            let artifact = cqc_runtime::Artifact::open(&path).unwrap();
            let (plan, steps) = (&artifact.manifest().plan, artifact.manifest().steps);
            let batch = plan.fixed_batch.unwrap_or(2);
            let engine = EngineOptions { batch, threads: 1, ..Default::default() };
            let mut loops = [None, on(&device, 2)].map(|device| {
                let engine = EngineOptions { device, ..engine.clone() };
                let device = cqc_runtime::Device::Cpu;
                let guidance = Some(1.0);
                let options = DenoiserOptions { guidance, device, engine, ..Default::default() };
                artifact.denoiser(&options).unwrap()
            });
            let shape = [&[batch], loops[0].sample_shape()].concat();
            let mut image = vec![0.0; shape.iter().product()];
            Noise::new(3, 0, batch).fill(&mut image);
            for left in 1..steps.min(7) {
                let request = Request {
                    samples: batch,
                    init: Some(Tensor::from_f32(&shape, &image)),
                    strength: Some((left as f32 + 0.1) / steps as f32),
                    conditions: conditions(artifact.weights()),
                    guidance: Some(1.0),
                    ..Request::default()
                };
                let begin = loops[0].course(&request).unwrap().evaluations.start;
                let [here, there] = loops.each_mut().map(|denoiser| {
                    let samples = denoiser.sample(&request, &mut |_| ControlFlow::Continue(()));
                    samples.unwrap().to_f32_vec()
                });
                let (db, kind) = (sqnr(&there, &here), plan.program_at(begin));
                println!("{}: {name} from {begin} ({kind}): {db:.1} dB", device.name());
                assert!(db > 30.0, "{name} from {begin}: {db} dB");
            }
        }
    }
}

/// The files in `CQC_TEST_CQ`, separated by `:`.
#[test]
fn other_artifacts() {
    let Some(paths) = std::env::var_os("CQC_TEST_CQ") else {
        return println!("skipped: no CQC_TEST_CQ");
    };
    for (device, path) in
        devices().iter().flat_map(|d| std::env::split_paths(&paths).map(move |p| (d, p)))
    {
        let decibels = compare(device, &path, 6);
        println!("{}: {}: {decibels:.1?}", device.name(), path.display());
        assert!(decibels.iter().all(|(_, db)| *db > 35.0), "{}: {decibels:?}", path.display());
    }
}
