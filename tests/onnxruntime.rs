//! Whole models against ONNX Runtime, on inputs that no recording holds.
//!
//! Needs ONNX Runtime's shared library: `CQC_ORT_LIBRARY`, or the `onnxruntime` wheel of the Python in `CQC_ORACLE_PYTHON`.
//! Prints a skip where neither is set.

mod common;

use common::{models, relative_error, shared};
use cqc::compile::compile_evaluation;
use cqc::model::{Model, ModelOptions};
use cqc_proto::{DType, Tensor};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use ort::environment::Environment;
use ort::session::Session;
use ort::value::DynValue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CQC_ORT_LIBRARY") {
        return Some(path.into());
    }
    let python = std::env::var_os("CQC_ORACLE_PYTHON")?;
    let find = "import onnxruntime, glob, os; print(glob.glob(os.path.dirname(onnxruntime.__file__) + '/capi/libonnxruntime.so*')[0])";
    let output = Command::new(python).args(["-c", find]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
}

/// The recorded inputs with floats replaced by noise and integers kept.
fn fresh(inputs: &BTreeMap<String, Tensor>, seed: u64) -> BTreeMap<String, Tensor> {
    let noise = |t: &Tensor| {
        let mut values = vec![0.0; t.len()];
        Noise::new(seed, 0, 1).fill(&mut values);
        Tensor::from_f32(t.shape(), &values).to_float(t.dtype())
    };
    inputs.iter().map(|(n, t)| (n.clone(), if t.dtype().is_float() { noise(t) } else { t.clone() })).collect()
}

fn to_ort(t: &Tensor) -> Option<DynValue> {
    let shape: Vec<i64> = t.shape().iter().map(|&d| d as i64).collect();
    match t.dtype() {
        DType::F32 => Some(ort::value::Tensor::from_array((shape, t.to_f32_vec())).ok()?.into_dyn()),
        DType::I64 => Some(ort::value::Tensor::from_array((shape, t.to_i64_vec())).ok()?.into_dyn()),
        _ => None,
    }
}

fn by_ort(
    environment: &Environment,
    model: &Path,
    inputs: &BTreeMap<String, Tensor>,
) -> Option<BTreeMap<String, Tensor>> {
    let mut session =
        Session::builder(environment).unwrap().with_intra_threads(2).unwrap().commit_from_file(model).unwrap();
    let feeds = inputs.iter().map(|(n, t)| Some((n.clone(), to_ort(t)?))).collect::<Option<Vec<_>>>()?;
    let outputs = session.run(feeds).unwrap();
    let read = |(name, value): (&str, ort::value::ValueRef<'_>)| {
        let (shape, data) = value.try_extract_tensor::<f32>().unwrap();
        let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        (name.to_string(), Tensor::from_f32(&shape, data))
    };
    Some(outputs.iter().map(read).collect())
}

#[test]
fn outputs_equal_onnx_runtime() {
    let Some(library) = library() else {
        println!("skipped: neither CQC_ORT_LIBRARY nor CQC_ORACLE_PYTHON is set");
        return;
    };
    let builder = ort::init_from(&library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
    let environment = builder.build().unwrap();
    let mut found = models();
    found.extend(shared());
    for (seed, check) in found.iter().enumerate() {
        let inputs = fresh(&check.inputs, seed as u64);
        let Some(expected) = by_ort(&environment, &check.model, &inputs) else {
            println!("skipped: {}: an input type that this test does not pass on", check.model.display());
            continue;
        };
        let model = Model::load(&check.model, &ModelOptions::default(), |_, _| {}).unwrap();
        let lowered = compile_evaluation(&model).unwrap();
        let bytes = lowered.weight_bytes().unwrap();
        let weights = Weights::new(lowered.plan, bytes).unwrap();
        let options = EngineOptions { batch: check.batch(), threads: 2, ..EngineOptions::default() };
        let outputs = Engine::open(&weights, &options).unwrap().run(&inputs).unwrap();
        for (name, expected) in &expected {
            let error = relative_error(&outputs[name], expected);
            println!("{}: {name}: relative error {error:.2e}", check.model.display());
            // sums in another order
            assert!(error < 1e-4, "{}: {name}: relative error {error:e}", check.model.display());
        }
    }
}
