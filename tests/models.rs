//! Whole models through import, rewrites, lowering and engine, compared with outputs that torch
//! recorded.
//!
//! `NAME.check.npz` beside `NAME.onnx` holds `in_*` and `out_*`. The larger models, which are not
//! part of the repository, are checked if `common::shared_dir` finds them.

mod common;

use cachequant::compile::compile_evaluation;
use cachequant::model::{Model, ModelOptions};
use common::{Check, models, relative_error, shared};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};

/// 1e-4 of the largest output, for f32 sums in another order; 1e-2 for half types, whose rounding
/// is the model's own.
fn tolerance(check: &Check) -> f64 {
    if check.half { 1e-2 } else { 1e-4 }
}

#[test]
fn outputs_equal_torch() {
    let mut found = models();
    found.extend(shared());
    assert!(!found.is_empty());
    for check in found {
        let model = Model::load(&check.model, &ModelOptions::default(), |_, _| {})
            .unwrap_or_else(|e| panic!("{}: {e}", check.model.display()));
        assert!(
            model.report.failures.is_empty(),
            "{}: {:?}",
            check.model.display(),
            model.report.failures
        );
        let lowered = compile_evaluation(&model).unwrap();
        let bytes = lowered.weight_bytes().unwrap();
        let weights = Weights::new(lowered.plan, bytes).unwrap();
        let options =
            EngineOptions { batch: check.batch(), threads: 2, ..EngineOptions::default() };
        let mut engine = Engine::open(&weights, &options).unwrap();
        let outputs = engine.run(&check.inputs).unwrap();
        for (name, expected) in &check.outputs {
            let error = relative_error(&outputs[name], expected);
            println!("{}: {name}: relative error {error:.2e}", check.model.display());
            assert!(
                error < tolerance(&check),
                "{}: {name}: relative error {error:e}",
                check.model.display()
            );
        }
        let left = model.left_over();
        assert!(
            left.is_empty(),
            "{}: decomposed operators are left: {left:?}",
            check.model.display()
        );
    }
}
