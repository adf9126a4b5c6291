//! Loops on tiny denoisers that begin with an image or in the middle, keep a part of an image, or
//! end early. Here the denoiser is compared with a sampler that is run by hand; `start_goldens.rs`
//! compares with diffusers.

mod common;

use common::*;
use cqc_proto::op::{Act, BinaryKind};
use cqc_proto::plan::*;
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_proto::{Op, Tensor};
use cqc_runtime::denoise::{Beginning, Course, DenoiseError, Denoiser, Request, StartError};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use cqc_runtime::sampler::{Repaint, Sampler, State};
use std::ops::ControlFlow;
use std::sync::Arc;

use ProgramKind::Full;

/// The number of channels, and of elements per channel.
const SHAPE: [usize; 2] = [3, 4];
const LEN: usize = 12;

/// `out = x · w + time row`, `[N, 3, 4]`.
fn denoiser(kind: SamplerKind, steps: usize, batch: usize) -> Denoiser {
    let sampler = Sampler::new(&SamplerConfig::of_kind(kind), steps).unwrap();
    let evaluations = sampler.evaluations().len();
    let mut b = Build::new(evaluations);
    (b.plan.batch_symbol, b.plan.fixed_batch) = (Some("N".into()), None);
    let sample = b.model_input("sample", InputRole::Sample, f32s("N,3,4"));
    let x = b.input(Full, sample);
    let w = b.weight(Full, &[4, 4]);
    let times = b.store(&tensor(&[evaluations, 1, 1, 4], 77));
    let time = b.value(Full, f32s("1,1,4"), Source::Table(times));
    let y = b.step(Full, Op::Linear { act: Act::None }, &[Some(x), Some(w)]);
    let y = b.full(Op::binary(BinaryKind::Add), &[y, time]);
    b.output("out", y);
    let weights: Arc<Weights> = Weights::new(b.plan.clone(), b.bytes()).unwrap();
    let options = EngineOptions { batch, threads: 1, ..EngineOptions::default() };
    Denoiser::open(&weights, sampler, false, &options).unwrap()
}

fn images(samples: usize, seed: u64) -> Tensor {
    let shape = [&[samples][..], &SHAPE].concat();
    let mut values = vec![0.0; samples * LEN];
    Noise::new(seed, 100, samples).fill(&mut values);
    Tensor::from_f32(&shape, &values)
}

fn run(denoiser: &mut Denoiser, request: &Request) -> Vec<f32> {
    denoiser.sample(request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

fn errors(denoiser: &mut Denoiser, request: &Request) -> Vec<StartError> {
    match denoiser.sample(request, &mut |_| ControlFlow::Continue(())) {
        Err(DenoiseError::Start(errors)) => errors,
        other => panic!("{other:?}"),
    }
}

/// The samples of a request, one by one, by the sampler alone around `predict`.
fn by_hand(denoiser: &mut Denoiser, request: &Request) -> Vec<f32> {
    let course = denoiser.course(request).unwrap();
    let whole = denoiser.sampler().clone();
    let sampler = whole.beginning_at(course.evaluations.start).unwrap();
    let row = |t: &Option<Tensor>, i: usize| {
        let t = t.as_ref().unwrap();
        let (all, rows) = (t.to_f32_vec(), t.shape()[0]);
        let len = all.len() / rows;
        all[if rows == 1 { 0 } else { i } * len..][..len].to_vec()
    };
    let mut samples = Vec::new();
    for i in 0..request.samples {
        let mut noise = Noise::new(request.seed, request.first + i as u64, 1);
        let mut drawn = vec![0.0; LEN];
        noise.fill(&mut drawn);
        let mut x = vec![0.0; LEN];
        match course.beginning {
            Beginning::Image(level) => level.mix(&row(&request.init, i), &drawn, &mut x),
            Beginning::Noise => x = drawn.iter().map(|n| n * sampler.initial_scale()).collect(),
            Beginning::Given => x = row(&request.noise, i),
        }
        let repaint = request.mask.as_ref().map(|mask| {
            let per_plane = mask.shape()[1] == 1;
            let mask = row(&request.mask, i);
            let mask = if per_plane { mask.repeat(SHAPE[0]) } else { mask };
            Repaint { mask, image: row(&request.init, i), noise: drawn.clone() }
        });
        let init = whole.needs_image().then(|| images(1, 0));
        let alone = Request { init, ..Request::default() };
        let mut trajectory = denoiser.begin(&alone, 0).unwrap();
        let mut state = State::new(&sampler, 1, LEN);
        for e in course.evaluations.clone() {
            let mut input = vec![0.0; LEN];
            sampler.scale_input(e, &x, &mut input);
            let mut batch = input.repeat(denoiser.width());
            batch.truncate(denoiser.width() * LEN);
            let out = denoiser.predict_at(&mut trajectory, e, &batch).unwrap()[..LEN].to_vec();
            sampler.advance(&mut state, e, &mut x, &out, |to| noise.fill(to));
            if let Some(repaint) = &repaint {
                repaint.put_back(sampler.level_after(e), &mut x);
            }
        }
        samples.extend(x);
    }
    samples
}

#[test]
fn a_denoiser_begins_with_images_as_its_sampler_does() {
    for kind in [SamplerKind::Ddim, SamplerKind::Ddpm, SamplerKind::Euler, SamplerKind::Heun] {
        for strength in [None, Some(0.3), Some(1.0)] {
            let mut denoiser = denoiser(kind, 10, 2);
            let request =
                Request { samples: 3, init: Some(images(3, 1)), strength, ..Request::default() };
            assert_eq!(run(&mut denoiser, &request), by_hand(&mut denoiser, &request), "{kind}");
        }
    }
}

#[test]
fn residual_shifting_runs_all_steps_on_its_image() {
    let mut denoiser = denoiser(SamplerKind::ResShift, 10, 2);
    let request = Request { samples: 3, init: Some(images(3, 1)), ..Request::default() };
    assert_eq!(denoiser.course(&request).unwrap().evaluations, 0..10);
    assert_eq!(run(&mut denoiser, &request), by_hand(&mut denoiser, &request));
}

#[test]
fn a_masked_image_is_kept() {
    for kind in [SamplerKind::Ddim, SamplerKind::DpmMultistep, SamplerKind::EulerAncestral] {
        let mut denoiser = denoiser(kind, 8, 2);
        for strength in [None, Some(0.5)] {
            for shape in [[1, 1, 4], [1, 3, 4], [3, 1, 4], [3, 3, 4]] {
                let count = shape.iter().product::<usize>();
                let mask: Vec<f32> = (0..count).map(|i| [0.0, 1.0, 0.5][i % 3]).collect();
                let mask = Some(Tensor::from_f32(&shape, &mask));
                let init = Some(images(3, 2));
                let request = Request { samples: 3, init, mask, strength, ..Request::default() };
                let seen = run(&mut denoiser, &request);
                assert_eq!(seen, by_hand(&mut denoiser, &request), "{kind} {shape:?}");
                // the kept part is the image itself at the end
                let image = request.init.as_ref().unwrap().to_f32_vec();
                assert_eq!(seen[0], image[0]);
                assert_ne!(seen[1], image[1]);
            }
        }
    }
}

#[test]
fn two_parts_of_a_loop_are_the_whole() {
    // samplers of first order, or with whole steps, which lose nothing between two parts
    let kinds = [
        SamplerKind::Ddim,
        SamplerKind::Ddpm,
        SamplerKind::Euler,
        SamplerKind::EulerAncestral,
        SamplerKind::Heun,
        SamplerKind::Kdpm2Ancestral,
        SamplerKind::FlowEuler,
    ];
    for kind in kinds {
        let mut denoiser = denoiser(kind, 8, 2);
        let whole = Request { samples: 3, seed: 4, ..Request::default() };
        let all = run(&mut denoiser, &whole);
        for at in [1, 5, 7] {
            let half = run(&mut denoiser, &Request { to: Some(at), ..whole.clone() });
            let noise = Some(Tensor::from_f32(&[3, 3, 4], &half));
            let rest = Request { from: Some(at), noise, ..whole.clone() };
            assert_ne!(half, all, "{kind}");
            assert_eq!(run(&mut denoiser, &rest), all, "{kind} at {at}");
        }
        // the same with a mask
        let mask = Some(Tensor::from_f32(&[1, 1, 4], &[0.0, 1.0, 0.25, 1.0]));
        let whole = Request { init: Some(images(1, 3)), mask, ..whole };
        let all = run(&mut denoiser, &whole);
        let half = run(&mut denoiser, &Request { to: Some(3), ..whole.clone() });
        let noise = Some(Tensor::from_f32(&[3, 3, 4], &half));
        let rest = Request { from: Some(3), noise, ..whole };
        assert_eq!(run(&mut denoiser, &rest), all, "{kind} with a mask");
    }
}

#[test]
fn a_part_without_history_begins_with_first_order() {
    let mut denoiser = denoiser(SamplerKind::DpmMultistep, 8, 1);
    let half = run(&mut denoiser, &Request { to: Some(4), ..Request::default() });
    let noise = Some(Tensor::from_f32(&[1, 3, 4], &half));
    let rest = Request { from: Some(4), noise, ..Request::default() };
    assert_eq!(run(&mut denoiser, &rest), by_hand(&mut denoiser, &rest));
    assert_ne!(run(&mut denoiser, &rest), run(&mut denoiser, &Request::default()));
}

#[test]
fn shares_of_the_time_are_those_of_diffusers() {
    // 20 steps of 1000: time steps 950, 900, … 0; diffusers runs those of at least 200
    let ddim = Sampler::new(&SamplerConfig::of_kind(SamplerKind::Ddim), 20).unwrap();
    assert_eq!(ddim.step_of_share(0.8), 16);
    assert_eq!([0.0, 0.04, 0.05, 1.0].map(|share| ddim.step_of_share(share)), [0, 0, 1, 20]);
    // in decimal, 0.7 of 10 steps are 7; in binary, 0.7 is less
    let ten = Sampler::new(&SamplerConfig::of_kind(SamplerKind::Ddim), 10).unwrap();
    assert_eq!([0.7, 0.3, 0.29].map(|s| ten.evaluation_of_strength(s)), [3, 7, 8]);
    let flow = Sampler::new(&SamplerConfig::of_kind(SamplerKind::FlowEuler), 10).unwrap();
    assert_eq!([0.7, 0.3, 0.29, 0.01].map(|s| flow.evaluation_of_strength(s)), [3, 7, 7, 9]);
    let heun = Sampler::new(&SamplerConfig::of_kind(SamplerKind::Heun), 10).unwrap();
    assert_eq!((heun.evaluation_of_strength(0.3), heun.evaluation_of_step(7)), (14, 14));
    let plms = Sampler::new(&SamplerConfig::of_kind(SamplerKind::Plms), 10).unwrap();
    assert_eq!((plms.evaluation_of_strength(0.3), plms.evaluation_of_step(7)), (7, 8));
}

#[test]
fn contradictions_are_named_all_at_once() {
    let mut ddim = denoiser(SamplerKind::Ddim, 10, 1);
    let plain = Request::default();
    let image = || Some(images(1, 1));
    let mask = || Some(Tensor::from_f32(&[1, 1, 4], &[1.0; 4]));
    use StartError::*;
    let cases = [
        (
            Request { mask: mask(), strength: Some(0.5), ..plain.clone() },
            vec![MaskAlone, StrengthAlone],
        ),
        (
            Request { init: image(), strength: Some(1.5), to: Some(11), ..plain.clone() },
            vec![Strength { strength: 1.5 }, To { to: 11, steps: 10 }],
        ),
        (
            Request { init: image(), strength: Some(0.05), ..plain.clone() },
            vec![NothingLeft { strength: 0.05, steps: 10 }],
        ),
        (
            Request { init: image(), strength: Some(0.5), to: Some(5), ..plain.clone() },
            vec![Nothing { from: 5, to: 5 }],
        ),
        (
            Request { init: image(), strength: Some(0.5), from: Some(5), ..plain.clone() },
            vec![Twice { other: "`strength`" }, NothingToContinue],
        ),
        (
            Request { init: image(), from: Some(5), noise: image(), ..plain.clone() },
            vec![Twice { other: "`init`" }],
        ),
        (
            Request { from: Some(10), noise: image(), ..plain.clone() },
            vec![From { from: 10, steps: 10 }],
        ),
        (
            Request { from: Some(0), noise: image(), to: Some(0), ..plain.clone() },
            vec![From { from: 0, steps: 10 }, To { to: 0, steps: 10 }],
        ),
        (
            Request { from: Some(6), noise: image(), to: Some(4), ..plain.clone() },
            vec![Nothing { from: 6, to: 4 }],
        ),
    ];
    for (request, expected) in cases {
        assert_eq!(errors(&mut ddim, &request), expected);
    }
    let nan =
        errors(&mut ddim, &Request { init: image(), strength: Some(f32::NAN), ..plain.clone() });
    assert!(matches!(nan[..], [Strength { .. }]), "{nan:?}");
    for kind in [SamplerKind::Direct, SamplerKind::Scm, SamplerKind::DdimInverse] {
        let seen = errors(&mut denoiser(kind, 10, 1), &Request { init: image(), ..plain.clone() });
        assert!(matches!(seen[..], [NoImages { .. }]), "{seen:?}");
    }
    let res_shift = &mut denoiser(SamplerKind::ResShift, 10, 1);
    let sampler = "res-shift";
    assert_eq!(errors(res_shift, &plain), [NeedsImage { sampler }]);
    let request = Request { init: image(), strength: Some(0.5), mask: mask(), ..plain.clone() };
    let seen = errors(res_shift, &request);
    assert!(matches!(seen[..], [Whole { .. }, Whole { .. }]), "{seen:?}");
    let pndm = &mut denoiser(SamplerKind::Pndm, 10, 1);
    let seen = errors(pndm, &Request { from: Some(5), noise: image(), ..plain.clone() });
    assert!(matches!(seen[..], [Sampler(_)]), "{seen:?}");
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mut ddim = denoiser(SamplerKind::Ddim, 10, 1);
    let image = || Some(images(2, 1));
    let mut refused = |request: Request| {
        let request = Request { samples: 2, ..request };
        ddim.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let init = Some(images(3, 1));
    assert!(refused(Request { init, ..Request::default() }).contains("`init` has shape"));
    let nan = Some(Tensor::from_f32(&[1, 3, 4], &[f32::NAN; LEN]));
    assert!(refused(Request { init: nan, ..Request::default() }).contains("`init` holds NaN"));
    for shape in [&[1, 2, 4][..], &[3, 1, 4], &[1, 1, 2], &[4]] {
        let mask = Some(Tensor::from_f32(shape, &vec![1.0; shape.iter().product()]));
        let request = Request { init: image(), mask, ..Request::default() };
        assert!(refused(request).contains("the mask has shape"), "{shape:?}");
    }
    for wrong in [-0.5, 1.01, f32::NAN] {
        let mask = Some(Tensor::from_f32(&[1, 1, 4], &[1.0, wrong, 0.0, 0.0]));
        let request = Request { init: image(), mask, ..Request::default() };
        assert!(refused(request).contains("the mask holds"), "{wrong}");
    }
}

#[test]
fn a_course_says_which_evaluations_run() {
    let heun = denoiser(SamplerKind::Heun, 10, 1);
    let request = Request { init: Some(images(1, 1)), strength: Some(0.5), ..Request::default() };
    let Course { evaluations, .. } = heun.course(&request).unwrap();
    assert_eq!(evaluations, 10..19);
    let part = heun.course(&Request { to: Some(3), ..Request::default() }).unwrap();
    assert_eq!(part, Course { evaluations: 0..6, beginning: Beginning::Noise });
}
