//! Artifacts as embedders use them: opened, sampled from, stepped through, and shared between
//! threads.

use cqc_proto::plan::ProgramKind;
use cqc_proto::{DType, Tensor};
use cqc_runtime::denoise::{DenoiseError, Denoiser, Request, Trajectory};
use cqc_runtime::engine::{Engine, EngineError, EngineOptions};
use cqc_runtime::noise::Noise;
use cqc_runtime::sampler::State;
use cqc_runtime::{Artifact, DenoiserOptions, Device};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// A guided transformer that takes class labels, cached and quantized.
fn path() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/artifacts/v4.cq").into()
}

fn artifact() -> Artifact {
    Artifact::open(&path()).unwrap()
}

fn options() -> DenoiserOptions {
    let engine = EngineOptions { batch: 2, threads: 1, ..EngineOptions::default() };
    DenoiserOptions { device: Device::Cpu, engine, ..DenoiserOptions::default() }
}

fn labels(values: &[i64]) -> BTreeMap<String, Tensor> {
    BTreeMap::from([("class_labels".to_string(), Tensor::from_i64(&[values.len()], values))])
}

fn request(seed: u64) -> Request {
    Request { samples: 2, seed, conditions: labels(&[1, 2]), ..Request::default() }
}

fn sample(denoiser: &mut Denoiser, request: &Request) -> Vec<f32> {
    denoiser.sample(request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

#[test]
fn what_requests_share_can_be_shared_and_the_rest_can_be_sent() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Artifact>();
    sync::<Artifact>();
    send::<Denoiser>();
    send::<Trajectory>();
    send::<Request>();
    sync::<Request>();

    let artifact = artifact();
    let mut denoiser = artifact.denoiser(&options()).unwrap();
    let expected = sample(&mut denoiser, &request(3));
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || sample(&mut denoiser, &request(3)));
        let own = scope.spawn(|| sample(&mut artifact.denoiser(&options()).unwrap(), &request(3)));
        for samples in [sent, own] {
            assert!(samples.join().unwrap() == expected, "on another thread");
        }
    });
}

#[test]
fn bytes_give_the_samples_of_their_file() {
    let bytes = std::fs::read(path()).unwrap();
    let owned = Artifact::from_bytes(bytes.clone()).unwrap();
    assert_eq!(owned.manifest(), artifact().manifest());
    let [from_bytes, from_file] = [owned, artifact()]
        .map(|artifact| sample(&mut artifact.denoiser(&options()).unwrap(), &request(5)));
    assert!(from_bytes == from_file);
    assert!(Artifact::from_bytes(bytes[..bytes.len() / 2].to_vec()).is_err());
}

/// The guidance scale and the null conditions are those of the artifact unless a request has its
/// own.
#[test]
fn a_request_that_says_nothing_of_guidance_is_guided_as_compiled() {
    let artifact = artifact();
    let guidance = artifact.manifest().guidance;
    assert!(guidance != 0.0 && guidance != 1.0);
    let mut denoiser = artifact.denoiser(&options()).unwrap();
    let mut with = |guidance, null: &[i64]| {
        let unconditional = if null.is_empty() { BTreeMap::new() } else { labels(null) };
        sample(&mut denoiser, &Request { guidance, unconditional, ..request(5) })
    };
    let found = with(None, &[]);
    assert!(found == with(Some(guidance), &[0]), "its null label is 0");
    for (scale, what) in [(0.0, "the unconditional image"), (1.0, "the conditional image")] {
        assert!(found != with(Some(scale), &[]), "{what}");
    }
    assert!(found != with(None, &[1]), "another null label");
    let other = DenoiserOptions { guidance: Some(guidance + 1.0), ..options() };
    let mut other = artifact.denoiser(&other).unwrap();
    assert!(sample(&mut other, &request(5)) == with(Some(guidance + 1.0), &[]));
    let one = DenoiserOptions { guidance: Some(1.0), ..options() };
    let refused =
        artifact.denoiser(&one).unwrap().begin(&Request { guidance: Some(2.0), ..request(5) }, 0);
    assert!(matches!(refused, Err(DenoiseError::NotGuided { scale: 2.0 })));
}

/// Each trajectory has its own cache, noise and guidance.
#[test]
fn trajectories_side_by_side_are_what_each_is_alone() {
    let mut denoiser = artifact().denoiser(&options()).unwrap();
    let requests =
        [request(5), Request { conditions: labels(&[0, 1]), guidance: Some(3.0), ..request(6) }];
    let alone = requests.each_ref().map(|request| sample(&mut denoiser, request));
    let mut trajectories = requests.each_ref().map(|request| denoiser.begin(request, 0).unwrap());
    // the second one begins when the first one is at a cached step, and overtakes it
    for turn in [0, 0, 0, 1, 1, 1, 1, 0] {
        denoiser.step(&mut trajectories[turn]).unwrap();
    }
    for (trajectory, alone) in trajectories.iter().zip(&alone) {
        assert_eq!(trajectory.next(), denoiser.sampler().evaluations().len());
        assert!(trajectory.x() == alone);
    }
}

/// A caller with a sampler of its own that does the same as the denoiser's.
#[test]
fn predictions_moved_by_the_caller_are_steps() {
    let mut denoiser = artifact().denoiser(&options()).unwrap();
    let sampler = denoiser.sampler().clone();
    let evaluations = sampler.evaluations().len();
    let mut stepped = denoiser.begin(&request(5), 0).unwrap();
    let mut predicted = stepped.clone();
    let mut x = predicted.x().to_vec();
    let begun = x.clone();
    let mut input = vec![0.0; x.len()];
    let mut state = State::new(&sampler, denoiser.width(), x.len() / denoiser.width());
    for e in 0..evaluations {
        denoiser.step(&mut stepped).unwrap();
        let stepped_output = denoiser.output().to_vec();
        sampler.scale_input(e, &x, &mut input);
        let output = denoiser.predict(&mut predicted, &input).unwrap().to_vec();
        assert!(output == stepped_output, "evaluation {e}");
        sampler.advance(&mut state, e, &mut x, &output, |_| unreachable!("DDIM adds no noise"));
        denoiser.compensate(e, &mut x);
        assert!(x == stepped.x(), "evaluation {e}");
        assert_eq!(predicted.next(), e + 1);
    }
    assert!(predicted.x() == begun, "the trajectory's own samples stay what they were");
    let finished = denoiser.predict(&mut predicted, &input).unwrap_err();
    assert!(matches!(finished, DenoiseError::Finished { .. }), "{finished}");
    let mut begun = denoiser.begin(&request(5), 0).unwrap();
    let short = denoiser.predict(&mut begun, &input[1..]).unwrap_err();
    assert!(short.to_string().contains("the input"), "{short}");
}

/// The observer is called after every evaluation of every batch, and can cancel the request.
#[test]
fn an_observer_breaks_off() {
    let mut denoiser = artifact().denoiser(&options()).unwrap();
    let request = Request { samples: 3, conditions: labels(&[1, 2, 0]), ..request(5) };
    let mut seen = vec![];
    let broken = denoiser.sample(&request, &mut |moment| {
        seen.push((moment.samples.start, moment.evaluation));
        if moment.samples.start == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(broken, Err(DenoiseError::Interrupted)));
    let evaluations = denoiser.sampler().evaluations().len();
    let expected: Vec<(usize, usize)> = (0..evaluations).map(|e| (0, e)).chain([(2, 0)]).collect();
    assert_eq!(seen, expected);
}

/// The parts of a divided request give the samples of the whole, and given noise replaces the
/// seed's.
#[test]
fn parts_and_given_noise_are_the_whole() {
    let mut denoiser = artifact().denoiser(&options()).unwrap();
    let whole = sample(&mut denoiser, &request(5));
    let len: usize = denoiser.sample_shape().iter().product();
    let second = Request { samples: 1, first: 1, conditions: labels(&[2]), ..request(5) };
    assert!(sample(&mut denoiser, &second) == whole[len..]);
    let mut noise = vec![0.0; 2 * len];
    Noise::new(5, 0, 2).fill(&mut noise);
    let shape = [&[2], denoiser.sample_shape()].concat();
    let noise = Some(Tensor::from_f32(&shape, &noise));
    assert!(sample(&mut denoiser, &Request { noise, ..request(99) }) == whole);
}

/// Tables have scales for the evaluations at which the schedule runs a program. At any other
/// evaluation the program may find a scale of 0, which codes cannot have.
#[test]
fn a_full_step_at_a_cached_evaluation_runs_or_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/artifacts");
    let mut refused = 0;
    for version in 1..=5 {
        let artifact = Artifact::open(format!("{folder}/v{version}.cq").as_ref()).unwrap();
        let plan = artifact.weights().plan();
        let options = EngineOptions { batch: 1, threads: 1, ..EngineOptions::default() };
        let mut engine = Engine::open(artifact.weights(), &options).unwrap();
        let inputs = plan.inputs.iter().enumerate().map(|(i, input)| {
            let dtype = if input.ty.dtype.is_float() { DType::F32 } else { input.ty.dtype };
            (input.name.clone(), Tensor::zeros(dtype, engine.input_shape(i)).unwrap())
        });
        let inputs = inputs.collect();
        let timesteps: Vec<f64> = (0..plan.evaluations).rev().map(|t| t as f64).collect();
        for e in 0..plan.evaluations {
            match engine.run_at(e, &timesteps, &inputs) {
                Ok(_) => {}
                Err(EngineError::Codes { .. }) if plan.program_at(e) == ProgramKind::Cached => {
                    refused += 1;
                }
                Err(other) => panic!("v{version}, evaluation {e}: {other}"),
            }
        }
    }
    assert!(refused > 0, "no artifact has such a row");
}
