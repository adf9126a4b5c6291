//! The denoising loop compared with recorded trajectories of the source models: 50 DDIM steps from
//! the recorded noise.

mod common;

use cachequant::io::read_npz;
use cachequant::recipe::{Quant, Recipe};
use cachequant::runtime::DenoiserOptions;
use cachequant::runtime::denoise::Request;
use cachequant::runtime::engine::EngineOptions;
use cachequant::{Model, ModelOptions};
use common::{compiled, on_cpu, path, relative_error, repository, shared_dir};
use cqc_proto::Tensor;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

struct Case {
    model: PathBuf,
    golden: PathBuf,
    /// Guidance scale and the label of the unconditional half.
    guidance: Option<(f32, i64)>,
}

/// The final samples and the expected ones.
fn run(case: &Case) -> (Tensor, Tensor) {
    let golden: BTreeMap<String, Tensor> = read_npz(&case.golden).unwrap().into_iter().collect();
    let model = Model::load(&case.model, &ModelOptions::default(), |_, _| {}).unwrap();
    let recipe = Recipe {
        steps: Some(50),
        guidance: case.guidance.map(|(scale, _)| scale),
        null_label: case.guidance.map(|(_, null)| null),
        interval: Some(1),
        quant: Some(Quant::None),
        ..Recipe::default()
    };
    let artifact = compiled(&model, &recipe).artifact().unwrap();
    let sampler = artifact.sampler().unwrap();
    let timesteps: Vec<i64> = sampler.evaluations().iter().map(|e| e.timestep as i64).collect();
    assert_eq!(timesteps, golden["timesteps"].to_i64_vec());
    let engine = EngineOptions { batch: 8, threads: 2, ..EngineOptions::default() };
    let mut denoiser = artifact.denoiser(&DenoiserOptions { engine, ..on_cpu(2) }).unwrap();
    let labels = case.guidance.map(|_| ("class_labels".to_string(), golden["labels"].clone()));
    let (noise, conditions) = (Some(golden["noise"].clone()), labels.into_iter().collect());
    let request = Request { samples: 8, noise, conditions, ..Request::default() };
    let found = denoiser.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    (found, golden["final"].clone())
}

/// Largest absolute difference of images in [-1, 1].
fn worst(found: &Tensor, expected: &Tensor) -> f64 {
    let scale = expected.to_f64_vec().iter().fold(0f64, |m, v| m.max(v.abs()));
    relative_error(found, expected) * scale
}

#[test]
fn ddpm_ends_where_torch_ends() {
    let golden = repository().join("tests/models/ddpm-shapes32.golden_ddim50.npz");
    let (found, expected) = run(&Case { model: path("ddpm-shapes32"), golden, guidance: None });
    let worst = worst(&found, &expected);
    println!("ddpm-shapes32: {worst:.2e}");
    assert!(worst < 1e-3, "{worst:e}");
}

#[test]
fn shared_models_end_where_torch_ends() {
    let Some(shared) = shared_dir() else { return };
    let path = |name: &str| shared.join("models").join(name);
    let ddpm = path("ddpm-shapes32/golden_ddim50.npz");
    let case =
        |model: &str, golden: PathBuf, guidance| Case { model: path(model), golden, guidance };
    let cases = [
        (case("ddpm-shapes32/model.dynamo.onnx", ddpm.clone(), None), 1e-3),
        (
            case("dit-shapes32/model.onnx", path("dit-shapes32/golden_ddim50.npz"), Some((2.0, 8))),
            1e-3,
        ),
        (case("topology/ddpm-fp16.onnx", ddpm, None), f64::INFINITY),
    ];
    for (case, limit) in cases {
        let (found, expected) = run(&case);
        let worst = worst(&found, &expected);
        let squares = found
            .to_f64_vec()
            .iter()
            .zip(expected.to_f64_vec())
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f64>();
        let psnr = 10.0 * (4.0 * found.len() as f64 / squares).log10();
        println!("{}: worst {worst:.2e}, PSNR {psnr:.1} dB", case.model.display());
        assert!(
            worst < limit && psnr > 45.0,
            "{}: worst {worst:e}, PSNR {psnr}",
            case.model.display()
        );
    }
}
