//! Models that hold their inputs and the results of ONNX Runtime: operators that its optimizers
//! write, and control flow. `onnx_cases/make.py` writes them.
//!
//! Each is interpreted as imported, and again after the passes, so that what they make of these
//! graphs is compared too.

use cqc_passes::interpret::interpret;
use cqc_passes::ir::{Graph, verify};
use cqc_passes::onnx::{ImportOptions, import, read_tensor};
use cqc_passes::rewrite::{PIPELINE, run};
use cqc_proto::onnx::{GraphProto, ModelProto};
use cqc_proto::{DType, Tensor};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;

/// Takes the initializers whose name starts with `prefix` out of the graph.
fn take(graph: &mut GraphProto, prefix: &str) -> BTreeMap<String, Tensor> {
    let (taken, rest) = graph.initializer.drain(..).partition(|t| t.name().starts_with(prefix));
    graph.initializer = rest;
    let taken: Vec<cqc_proto::onnx::TensorProto> = taken;
    let name = |t: &cqc_proto::onnx::TensorProto| t.name()[prefix.len()..].to_string();
    taken.iter().map(|t| (name(t), read_tensor(t.encode_to_vec()).unwrap())).collect()
}

/// Largest difference, relative to the largest value.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let largest = b.iter().fold(1e-6, |m: f64, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / largest
}

/// What is wrong with the graph's results.
fn faults(
    graph: &Graph,
    given: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
) -> Vec<String> {
    let results = match interpret(graph, given) {
        Ok(results) => results,
        Err(e) => return vec![format!("it cannot be interpreted: {e}")],
    };
    let results: BTreeMap<String, Tensor> = results.into_iter().collect();
    let mut faults = Vec::new();
    for (name, right) in expected {
        let Some(y) = results.get(name) else {
            faults.push(format!("no output `{name}`"));
            continue;
        };
        // f16: the reference rounds where the model does, the graph may round less often
        let allowed = if right.dtype() == DType::F16 { 4e-3 } else { 2e-5 };
        if y.shape() != right.shape() {
            faults.push(format!("`{name}` is {:?}, expected {:?}", y.shape(), right.shape()));
        } else if !(distance(y, right) <= allowed) {
            faults.push(format!("`{name}` is off by {:.3e}", distance(y, right)));
        }
    }
    faults
}

fn check(path: &Path) -> Vec<String> {
    let mut model = ModelProto::decode(&*std::fs::read(path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let (given, expected) = (take(graph, "given:"), take(graph, "expected:"));
    assert!(!expected.is_empty(), "{} has no expected results", path.display());
    let mut imported = match import(&model, &ImportOptions::default()) {
        Ok(imported) => imported,
        Err(e) => return vec![e.to_string()],
    };
    verify(&imported.graph).unwrap();
    let mut all = faults(&imported.graph, &given, &expected);
    if let Err(e) = run(&mut imported.graph, PIPELINE, |_, _| {}) {
        all.push(e.to_string());
        return all;
    }
    let wide = |t: &Tensor| if t.dtype().is_float() { t.to_float(DType::F32) } else { t.clone() };
    let given = given.iter().map(|(k, v)| (k.clone(), wide(v))).collect();
    all.extend(faults(&imported.graph, &given, &expected).iter().map(|f| format!("passes: {f}")));
    all
}

#[test]
fn models_of_onnx_runtime_give_its_results() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx_cases");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .collect();
    paths.sort();
    assert!(paths.len() > 100, "{} models", paths.len());
    let mut wrong = Vec::new();
    for path in &paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        wrong.extend(check(path).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}
