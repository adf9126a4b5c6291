//! Loops that begin with an image: compared with diffusers' pipelines on a tiny U-Net
//! (`tests/golden/pipelines/record.py`), and in artifacts that cache and quantize.

mod common;

use cachequant::compile::{LoopOptions, compile_loop};
use cachequant::io::read_npz;
use cachequant::recipe::{CacheFit, Quant, Recipe};
use cachequant::runtime::denoise::Request;
use cachequant::runtime::engine::EngineOptions;
use cachequant::runtime::{Artifact, DenoiserOptions};
use cachequant::{Model, ModelOptions};
use common::{compiled, load, on_cpu, repository, run, sqnr};
use cqc_proto::Tensor;
use cqc_proto::cq::{Manifest, SourceModel};
use cqc_proto::plan::ProgramKind;
use cqc_proto::sampler::SamplerConfig;
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    scheduler: String,
    masked: bool,
    strength: f32,
    guidance: f32,
    steps: usize,
}

const LEN: usize = 4 * 8 * 8;

fn artifact(model: &Model, case: &Case) -> Artifact {
    let sampler = SamplerConfig::from_diffusers_json(&case.scheduler, None).unwrap();
    let options =
        LoopOptions { sampler: sampler.clone(), steps: case.steps, any_steps: false, bf16: None };
    let lowered = compile_loop(model, &options).unwrap();
    let source = SourceModel {
        blake3: model.blake3.clone(),
        opset: model.opset,
        producer: model.producer.clone(),
        parameters: model.parameters,
    };
    let manifest = Manifest::new(source, lowered.plan.clone(), sampler, case.steps);
    Artifact::from_parts(manifest, lowered.weight_bytes().unwrap()).unwrap()
}

/// Every sampler with which Stable Diffusion's pipelines are run, image-to-image and inpainting,
/// with and without guidance.
#[test]
fn pipelines_of_diffusers_make_the_same_of_an_image() {
    let folder = repository().join("tests/golden/pipelines");
    let arrays: BTreeMap<String, Tensor> =
        read_npz(&folder.join("pipelines.npz")).unwrap().into_iter().collect();
    let cases: Vec<Case> = serde_json::from_slice(arrays["cases"].bytes()).unwrap();
    let numbers = arrays["f32"].to_f32_vec();
    let model =
        Model::load(&folder.join("unet.onnx"), &ModelOptions::default(), |_, _| {}).unwrap();
    let name = "encoder_hidden_states".to_string();
    let of = |array: &str| BTreeMap::from([(name.clone(), arrays[array].clone())]);
    assert_eq!(cases.len(), 72);
    for (case, numbers) in cases.iter().zip(numbers.chunks_exact(3 * LEN)) {
        let latents = |i: usize| Some(Tensor::from_f32(&[1, 4, 8, 8], &numbers[i * LEN..][..LEN]));
        let request = Request {
            init: latents(0),
            noise: latents(1),
            strength: Some(case.strength),
            mask: case.masked.then(|| arrays["mask"].clone()),
            conditions: of("condition"),
            unconditional: of("null"),
            guidance: Some(case.guidance),
            ..Request::default()
        };
        let engine = EngineOptions { batch: 1, threads: 1, ..EngineOptions::default() };
        let guidance = Some(case.guidance);
        let options = DenoiserOptions { guidance, engine, ..on_cpu(1) };
        let mut denoiser = artifact(&model, case).denoiser(&options).unwrap();
        let (found, expected) = (run(&mut denoiser, &request), &numbers[2 * LEN..]);
        let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error =
            found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
        println!("{}: {error:.1e}", case.name);
        assert!(error < 1e-5, "{}: {error:e}", case.name);
    }
}

/// A loop may begin with an evaluation that was compiled as cached. The layers that a cached step
/// leaves out have no ranges there.
#[test]
fn quantized_loops_begin_with_any_evaluation() {
    let model = load("ddpm-shapes32");
    let float = Recipe {
        steps: Some(12),
        interval: Some(1),
        quant: Some(Quant::None),
        ..Recipe::default()
    };
    let quantized = Recipe {
        interval: Some(4),
        quant: Some(Quant::W8a8),
        schedule: Some("uniform".parse().unwrap()),
        cache_fit: Some(CacheFit::Forecast),
        calib_samples: Some(4),
        ..float.clone()
    };
    let float = compiled(&model, &float).artifact().unwrap();
    let quantized = compiled(&model, &quantized).artifact().unwrap();
    let plan = &quantized.manifest().plan;
    let plain = Request { samples: 2, seed: 3, ..Request::default() };
    let mut float = float.denoiser(&on_cpu(2)).unwrap();
    let mut denoiser = quantized.denoiser(&on_cpu(2)).unwrap();
    let whole = run(&mut denoiser, &plain);
    let image = run(&mut float, &plain);
    let shape: Vec<usize> = [2].iter().chain(float.sample_shape()).copied().collect();
    let init = Some(Tensor::from_f32(&shape, &image));
    let mut worst = [f64::INFINITY; 2];
    for left in 1..12 {
        let strength = Some((left as f32 + 0.1) / 12.0);
        let request = Request { init: init.clone(), strength, seed: 8, ..plain.clone() };
        let begin = denoiser.course(&request).unwrap().evaluations.start;
        let quality = sqnr(&run(&mut denoiser, &request), &run(&mut float, &request));
        let is_full = plan.program_at(begin) == ProgramKind::Full;
        println!("from evaluation {begin} (full: {is_full}) {quality:.1} dB");
        worst[usize::from(is_full)] = worst[usize::from(is_full)].min(quality);
    }
    let [cached, full] = worst;
    assert!(cached > full - 1.0, "{cached:.1} dB where cached, {full:.1} where full");
    // the rows that were added to fill the batch do not affect other samples
    assert_eq!(run(&mut denoiser, &plain), whole);
    // a second request from there equals the first one
    let strength = Some(0.5);
    let request = Request { init, strength, seed: 8, ..plain };
    let mut fresh = quantized.denoiser(&on_cpu(2)).unwrap();
    assert_eq!(run(&mut denoiser, &request), run(&mut fresh, &request));
}
