//! What several test files share: models with recorded inputs and outputs.
#![allow(dead_code)] // every test file compiles its own copy and uses a part of it

use cachequant::io::read_npz;
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    checks(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models"))
}

/// The larger models, which are not part of the repository; prints a skip where they are absent.
pub fn shared() -> Vec<Check> {
    let Some(dir) = shared_dir() else { return vec![] };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("models")).into_iter().flatten().flatten() {
        found.extend(checks(&entry.path()));
    }
    found
}

/// The folder of the larger models and their recordings, if it is there.
pub fn shared_dir() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if !dir.join("models").is_dir() {
        println!("skipped: no ../shared/models");
        return None;
    }
    Some(dir)
}

/// The recorded models of a directory.
pub fn checks(dir: &Path) -> Vec<Check> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
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

/// Largest difference over the largest expected magnitude.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let (a, b) = (found.to_f64_vec(), expected.to_f64_vec());
    let scale = b.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    let worst =
        a.iter().zip(&b).fold(0f64, |m, (a, b)| if (a - b).is_nan() { f64::INFINITY } else { m.max((a - b).abs()) });
    worst / scale
}
