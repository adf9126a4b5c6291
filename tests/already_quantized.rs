//! Models that are already quantized, compared with ONNX Runtime
//! (`tests/models/quantized/make.py`).

mod common;

use cachequant::compile::compile_evaluation;
use cachequant::model::{Model, ModelOptions};
use common::{checks, path, relative_error};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};

#[test]
fn outputs_equal_onnx_runtime_and_a_warning_counts_what_is_quantized() {
    let found = checks(path("quantized/make").parent().unwrap());
    assert!(found.len() > 30, "{} models", found.len());
    for check in found {
        let name = check.model.file_stem().unwrap().to_string_lossy().into_owned();
        let model = Model::load(&check.model, &ModelOptions::default(), |_, _| {}).unwrap();
        assert!(model.report.failures.is_empty(), "{name}: {:?}", model.report.failures);
        assert!(
            model.warnings.iter().any(|w| w.contains("already quantized")),
            "{name}: {:?}",
            model.warnings
        );
        let lowered = compile_evaluation(&model).unwrap();
        let bytes = lowered.weight_bytes().unwrap();
        let weights = Weights::new(lowered.plan, bytes).unwrap();
        let batch = match model.batch_symbol {
            Some(_) => check.batch(),
            None => model.fixed_batch.unwrap_or(1),
        };
        let options = EngineOptions { batch, threads: 1, ..EngineOptions::default() };
        let outputs = Engine::open(&weights, &options).unwrap().run(&check.inputs).unwrap();
        for (output, expected) in &check.outputs {
            // a sum in another order may cross the middle between two steps of 8 bits
            let step =
                if name.starts_with("q") || name.starts_with("dynamic") { 1e-2 } else { 1e-5 };
            let error = relative_error(&outputs[output], expected);
            assert!(error < step, "{name}: {output}: relative error {error:e}");
            assert_eq!(outputs[output].dtype(), expected.dtype(), "{name}: {output}");
        }
    }
}

#[test]
fn a_model_of_floats_is_not_said_to_be_quantized() {
    let warnings = common::load("dit-dy23").warnings;
    assert!(!warnings.iter().any(|w| w.contains("already quantized")), "{warnings:?}");
}
