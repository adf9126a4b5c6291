//! Whole models compared with ONNX Runtime, on inputs that no recording has.
//!
//! Needs ONNX Runtime's shared library: `CQC_ORT_LIBRARY`, or the `onnxruntime` wheel of the Python
//! in `CQC_ORACLE_PYTHON`. Prints a skip if neither is set.

mod common;
#[path = "common/onnxruntime.rs"]
mod onnxruntime;

use cachequant::compile::compile_evaluation;
use cachequant::model::{Model, ModelOptions};
use common::{models, relative_error, shared};
use cqc_proto::Tensor;
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use std::collections::BTreeMap;

/// The recorded inputs with floats replaced by noise and integers kept.
fn fresh(inputs: &BTreeMap<String, Tensor>, seed: u64) -> BTreeMap<String, Tensor> {
    let noise = |t: &Tensor| {
        let mut values = vec![0.0; t.len()];
        Noise::new(seed, 0, 1).fill(&mut values);
        Tensor::from_f32(t.shape(), &values).to_float(t.dtype())
    };
    inputs
        .iter()
        .map(|(n, t)| (n.clone(), if t.dtype().is_float() { noise(t) } else { t.clone() }))
        .collect()
}

#[test]
fn outputs_equal_onnx_runtime() {
    let Some(environment) = onnxruntime::environment() else { return };
    let mut found = models();
    found.extend(shared());
    for (seed, check) in found.iter().enumerate() {
        let inputs = fresh(&check.inputs, seed as u64);
        let Some(expected) = onnxruntime::run(environment, &check.model, &inputs) else {
            println!(
                "skipped: {}: an input type that this test does not pass on",
                check.model.display()
            );
            continue;
        };
        let model = Model::load(&check.model, &ModelOptions::default(), |_, _| {}).unwrap();
        let lowered = compile_evaluation(&model).unwrap();
        let bytes = lowered.weight_bytes().unwrap();
        let weights = Weights::new(lowered.plan, bytes).unwrap();
        let options =
            EngineOptions { batch: check.batch(), threads: 2, ..EngineOptions::default() };
        let outputs = Engine::open(&weights, &options).unwrap().run(&inputs).unwrap();
        for (name, expected) in &expected {
            let error = relative_error(&outputs[name], expected);
            println!("{}: {name}: relative error {error:.2e}", check.model.display());
            // sums in another order
            assert!(error < 1e-4, "{}: {name}: relative error {error:e}", check.model.display());
        }
    }
}
