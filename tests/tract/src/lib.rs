//! Whole models compared with tract. Models that tract does not load are listed and do not fail the
//! test, because tract is the second reference.

#![cfg(test)]

#[path = "../../common/mod.rs"]
mod common;

use cachequant::compile::compile_evaluation;
use cachequant::model::{Model, ModelOptions};
use common::{Check, relative_error};
use cqc_proto::{DType, Tensor};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use std::collections::BTreeMap;
use std::path::Path;
use tract_onnx::prelude::{self as tract, Framework, InferenceModelExt, IntoRunnable};

/// The first output, or the reason why tract gives none.
fn by_tract(check: &Check, order: &[String]) -> Result<Vec<f32>, String> {
    let text = |e: tract::TractError| e.to_string();
    let mut model = tract_onnx::onnx().model_for_path(&check.model).map_err(text)?;
    let mut values = tract::tvec!();
    for (i, name) in order.iter().enumerate() {
        let t = &check.inputs[name];
        let value = match t.dtype() {
            DType::F32 => tract::Tensor::from_shape(t.shape(), &t.to_f32_vec()).map_err(text)?,
            DType::I64 => tract::Tensor::from_shape(t.shape(), &t.to_i64_vec()).map_err(text)?,
            other => return Err(format!("{other} inputs are not passed on")),
        };
        model = model
            .with_input_fact(i, tract::InferenceFact::dt_shape(value.datum_type(), t.shape()))
            .map_err(text)?;
        values.push(value.into());
    }
    let outputs = model
        .into_optimized()
        .map_err(text)?
        .into_runnable()
        .map_err(text)?
        .run(values)
        .map_err(text)?;
    outputs[0].to_plain_array_view::<f32>().map(|y| y.iter().copied().collect()).map_err(text)
}

#[test]
fn outputs_equal_tract() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut compared = 0;
    for check in common::checks(&dir) {
        let model = Model::load(&check.model, &ModelOptions::default(), |_, _| {}).unwrap();
        let order: Vec<String> = model.inputs.iter().map(|i| i.name.clone()).collect();
        let name = model.outputs[0].name.clone();
        let expected = match by_tract(&check, &order) {
            Ok(values) => values,
            Err(reason) => {
                println!(
                    "skipped: {}: tract: {}",
                    check.model.display(),
                    reason.lines().next().unwrap_or_default()
                );
                continue;
            }
        };
        let lowered = compile_evaluation(&model).unwrap();
        let bytes = lowered.weight_bytes().unwrap();
        let weights = Weights::new(lowered.plan, bytes).unwrap();
        let options =
            EngineOptions { batch: check.batch(), threads: 2, ..EngineOptions::default() };
        let outputs: BTreeMap<String, Tensor> =
            Engine::open(&weights, &options).unwrap().run(&check.inputs).unwrap();
        let error =
            relative_error(&outputs[&name], &Tensor::from_f32(outputs[&name].shape(), &expected));
        println!("{}: relative error {error:.2e}", check.model.display());
        assert!(error < 1e-4, "{}: relative error {error:e}", check.model.display());
        compared += 1;
    }
    assert!(compared > 0, "tract loaded none of the models");
}
