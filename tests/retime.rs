//! Compiled loops with another number of steps.

use cachequant::compile::{LoopOptions, compile_loop};
use cachequant::model::{Model, ModelOptions};
use cqc_proto::Tensor;
use cqc_proto::cq::{Manifest, SourceModel};
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::retime::{Possible, RetimeError, possible, retime};
use cqc_runtime::sampler::Sampler;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(format!("{name}.onnx"))
}

/// A compiled float loop.
fn compile(model: &str, steps: usize, any_steps: bool) -> (Manifest, bytes::Bytes) {
    let model = Model::load(&path(model), &ModelOptions::default(), |_, _| {}).unwrap();
    let options = LoopOptions { sampler: SamplerConfig::default(), steps, any_steps, bf16: None };
    let lowered = compile_loop(&model, &options).unwrap();
    let manifest = Manifest::new(SourceModel::default(), lowered.plan.clone(), options.sampler, steps);
    (manifest, lowered.weight_bytes().unwrap())
}

fn sample(weights: &Arc<Weights>, steps: usize, conditions: BTreeMap<String, Tensor>) -> Vec<f32> {
    let sampler = Sampler::new(&SamplerConfig::default(), steps).unwrap();
    let options = EngineOptions { batch: 2, threads: 2, ..EngineOptions::default() };
    let mut denoiser = Denoiser::open(weights, sampler, false, &options).unwrap();
    let request = Request { samples: 2, conditions, ..Request::default() };
    denoiser.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

fn retimed(compiled: &(Manifest, bytes::Bytes), steps: usize) -> Result<Arc<Weights>, RetimeError> {
    retime(&compiled.0, &compiled.1, steps).map(|(_, weights)| weights)
}

fn compiled_at(model: &str, steps: usize) -> Arc<Weights> {
    let (manifest, bytes) = compile(model, steps, false);
    Weights::new(manifest.plan, bytes).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn compiled_time_steps_keep_their_rows() {
    let compiled = compile("ddpm-shapes32", 20, false);
    assert_eq!(possible(&compiled.0).unwrap(), Possible::These(vec![1, 2, 4, 5, 10, 20]));
    for steps in [4, 5] {
        let expected = sample(&compiled_at("ddpm-shapes32", steps), steps, BTreeMap::new());
        assert_eq!(sample(&retimed(&compiled, steps).unwrap(), steps, BTreeMap::new()), expected, "{steps} steps");
    }
    match retimed(&compiled, 3) {
        Err(RetimeError::Unknown { timestep, possible }) => {
            assert_eq!((timestep, &possible[..]), (666.0, &[1, 2, 4, 5, 10, 20][..]));
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn other_time_steps_are_computed() {
    let compiled = compile("ddpm-shapes32", 4, true);
    assert_eq!(possible(&compiled.0).unwrap(), Possible::Any);
    for steps in [3, 7] {
        let expected = sample(&compiled_at("ddpm-shapes32", steps), steps, BTreeMap::new());
        let found = sample(&retimed(&compiled, steps).unwrap(), steps, BTreeMap::new());
        // rows from kernels instead of the definitions
        assert!(largest_difference(&found, &expected) < 1e-4, "{steps} steps");
    }
}

#[test]
fn what_depends_on_conditions_too_is_computed_per_request() {
    let labels = || BTreeMap::from([("class_labels".to_string(), Tensor::from_i64(&[2], &[1, 5]))]);
    let compiled = compile("dit-dy23", 4, true);
    let expected = sample(&compiled_at("dit-dy23", 6), 6, labels());
    let found = sample(&retimed(&compiled, 6).unwrap(), 6, labels());
    assert!(largest_difference(&found, &expected) < 1e-4);
}

#[test]
fn tables_of_the_time_step_are_checked() {
    let (mut manifest, bytes) = compile("ddpm-shapes32", 4, true);
    manifest.plan.times.as_mut().unwrap().tables.swap(0, 4);
    let error = Weights::new(manifest.plan.clone(), bytes.clone()).unwrap_err().to_string();
    assert!(error.contains("tables of the time step"), "{error}");
    manifest.plan.times.as_mut().unwrap().tables.truncate(1);
    let error = Weights::new(manifest.plan, bytes).unwrap_err().to_string();
    assert!(error.contains("results for 1 tables"), "{error}");
}

/// Fitted tables follow by time step: an artifact at other numbers of steps stays near the float model at those.
#[test]
fn fitted_tables_serve_other_numbers_of_steps() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("a.cq");
    let model = path("ddpm-shapes32");
    let cqc = |args: &[&str]| {
        let done =
            Command::new(env!("CARGO_BIN_EXE_cqc")).args(args).args(["--threads", "2", "--json"]).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice::<Value>(&done.stdout).unwrap()
    };
    let (artifact, model) = (artifact.to_str().unwrap(), model.to_str().unwrap());
    cqc(&[
        "compile",
        model,
        "-o",
        artifact,
        "--steps",
        "12",
        "--interval",
        "3",
        "--schedule",
        "uniform",
        "--cache-fit",
        "forecast",
        "--quant",
        "w8a8",
        "--calib-samples",
        "4",
        "--any-steps",
    ]);
    let psnr = |steps: &str| {
        let figures = cqc(&["eval", artifact, "--reference", model, "-n", "2", "--steps", steps]);
        figures["psnr"]["mean"].as_f64().unwrap_or_else(|| panic!("{figures}"))
    };
    let (compiled, fewer, more) = (psnr("12"), psnr("8"), psnr("18"));
    println!("PSNR with 12, 8, 18 steps: {compiled:.1}, {fewer:.1}, {more:.1} dB");
    assert!(fewer > compiled - 6.0 && more > compiled - 6.0, "{compiled:.1}: {fewer:.1}, {more:.1} dB");
}
