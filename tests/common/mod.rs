//! Shared by several test files: models, recorded inputs and outputs, compiled loops.
#![allow(dead_code)] // every test file compiles its own copy and uses a part of it

use cachequant::io::read_npz;
use cachequant::runtime::denoise::{Denoiser, Request};
use cachequant::runtime::engine::EngineOptions;
use cachequant::runtime::{DenoiserOptions, Device};
use cachequant::{Compiled, Model, ModelOptions, Recipe, compile};
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The root of the repository. The tests of the command line, which are in a package below it,
/// include this module, too.
pub fn repository() -> PathBuf {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|folder| folder.join("tests/models").is_dir()).expect("tests/models").into()
}

/// The file of a model of `tests/models`, by its name without `.onnx`.
pub fn path(name: &str) -> PathBuf {
    repository().join("tests/models").join(format!("{name}.onnx"))
}

/// A model of `tests/models`, by its name without `.onnx`.
pub fn load(name: &str) -> Model {
    Model::load(&path(name), &ModelOptions::default(), |_, _| {}).unwrap()
}

/// The artifact of a recipe that suits the model.
pub fn compiled<'m>(model: &'m Model, recipe: &Recipe) -> Compiled<'m> {
    compile(model, recipe, &mut ()).unwrap()
}

/// Options of denoisers on the CPU, for two samples at once.
pub fn on_cpu(threads: usize) -> DenoiserOptions {
    let engine = EngineOptions { batch: 2, threads, ..EngineOptions::default() };
    DenoiserOptions { device: Device::Cpu, engine, ..DenoiserOptions::default() }
}

/// The samples of the artifact.
pub fn samples(compiled: &Compiled, request: &Request) -> Vec<f32> {
    run(&mut compiled.artifact().unwrap().denoiser(&on_cpu(1)).unwrap(), request)
}

/// The whole loop.
pub fn run(denoiser: &mut Denoiser, request: &Request) -> Vec<f32> {
    denoiser.sample(request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

/// Class labels as the transformers of `tests/models` take them.
pub fn labels(values: &[i64]) -> BTreeMap<String, Tensor> {
    BTreeMap::from([("class_labels".into(), Tensor::from_i64(&[values.len()], values))])
}

/// Signal-to-difference ratio, in dB.
pub fn sqnr(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let noise: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    10.0 * (expected.iter().map(|&x| square(x)).sum::<f64>() / noise.max(1e-30)).log10()
}

/// A model with recorded inputs and outputs.
pub struct Check {
    /// The `.onnx` file.
    pub model: PathBuf,
    /// Inputs by name.
    pub inputs: BTreeMap<String, Tensor>,
    /// Expected outputs by name.
    pub outputs: BTreeMap<String, Tensor>,
    /// Whether an output is f16.
    pub half: bool,
}

impl Check {
    /// Samples in the recorded batch.
    pub fn batch(&self) -> usize {
        self.outputs.values().next().map_or(1, |t| t.shape()[0])
    }
}

/// The models in the repository.
pub fn models() -> Vec<Check> {
    checks(&repository().join("tests/models"))
}

/// The larger models, which are not part of the repository. Prints a skip if they are absent.
pub fn shared() -> Vec<Check> {
    let Some(dir) = shared_dir() else { return vec![] };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("models")).into_iter().flatten().flatten() {
        found.extend(checks(&entry.path()));
    }
    found
}

/// The directory of the larger models and their recordings, if there is one.
pub fn shared_dir() -> Option<PathBuf> {
    let dir = repository().join("../shared");
    if !dir.join("models").is_dir() {
        println!("skipped: no ../shared/models");
        return None;
    }
    Some(dir)
}

/// The recorded models of a directory.
pub fn checks(dir: &Path) -> Vec<Check> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let recorded = files.iter().filter(|p| p.to_string_lossy().ends_with(".check.npz"));
    recorded.filter_map(|p| check(p)).collect()
}

fn check(npz: &Path) -> Option<Check> {
    let model = PathBuf::from(npz.to_string_lossy().replace(".check.npz", ".onnx"));
    if !model.exists() {
        return None;
    }
    let arrays = read_npz(npz).unwrap();
    let strip = |prefix: &str| {
        arrays
            .iter()
            .filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_string(), t.clone())))
            .collect::<BTreeMap<_, _>>()
    };
    let outputs = strip("out_");
    let half = outputs.values().any(|t| t.dtype() == DType::F16);
    Some(Check { model, inputs: strip("in_"), outputs, half })
}

/// Largest difference relative to the largest expected magnitude.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let (a, b) = (found.to_f64_vec(), expected.to_f64_vec());
    let scale = b.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(&b).fold(0f64, |m, (a, b)| {
        if (a - b).is_nan() { f64::INFINITY } else { m.max((a - b).abs()) }
    });
    worst / scale
}
