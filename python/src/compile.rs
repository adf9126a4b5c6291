//! Compilation.

use super::arrays::{array, arrays};
use super::errors::{self, BelowFloor, Cancelled};
use cachequant::compile::{Proposal, proposals};
use cachequant::model::{Located, Wire, locate};
use cachequant::recipe::SchedulerConfig;
use cachequant::{CompileError, Model, ModelOptions, Overwrite, Phase, Recipe};
use cqc_proto::Dim;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Compiles the model at `model` to the file `out`; the result is a JSON object.
///
/// `recipe` is a JSON object of the keys of a recipe, `arrays` has those keys whose values are
/// arrays, and `reading` says how the model is read. `progress(phase, done, total)` cancels by
/// returning `False`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "named arguments in Python")]
pub fn compile(
    py: Python<'_>,
    model: PathBuf,
    out: PathBuf,
    recipe: &str,
    arrays: &Bound<'_, PyDict>,
    reading: &Bound<'_, PyDict>,
    accept: bool,
    force: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let mut recipe: Recipe =
        serde_json::from_str(recipe).map_err(|e| PyValueError::new_err(e.to_string()))?;
    put_arrays(&mut recipe, arrays)?;
    let options = model_options(reading)?;
    let overwrite = if force { Overwrite::Allow } else { Overwrite::Refuse };
    let mut told = Told { callback: progress, raised: None };
    let done = py.detach(|| run(&model, &out, &mut recipe, &options, accept, overwrite, &mut told));
    match (done, told.raised) {
        (_, Some(e)) => Err(e),
        (Err(e), None) => Err(e),
        (Ok(summary), None) => Ok(summary),
    }
}

fn run(
    path: &Path,
    out: &Path,
    recipe: &mut Recipe,
    options: &ModelOptions,
    accept: bool,
    overwrite: Overwrite,
    told: &mut Told,
) -> PyResult<String> {
    let file = |e: cachequant::io::FileError| errors::Error::new_err(e.to_string());
    cachequant::io::check_target(out, overwrite).map_err(file)?;
    let Located { model: path, scheduler } = locate(path).map_err(errors::model)?;
    if recipe.scheduler_config.is_none() {
        recipe.scheduler_config = scheduler.map(SchedulerConfig::File);
    }
    let failed = |e: CompileError| match e.is_interrupted() {
        true => Cancelled::new_err("cancelled"),
        false => errors::compilation(&e),
    };
    let model = Model::load(&path, options, |_, _| {}).map_err(errors::model)?;
    let compiled = cachequant::compile(&model, recipe, told).map_err(failed)?;
    let psnr = compiled.quality(told).map_err(failed)?;
    if let (Some(psnr), Some(floor), false) = (psnr, compiled.floor(), accept)
        && psnr < floor
    {
        let tried = proposals(&model, recipe, floor, told).map_err(failed)?;
        return Err(below(psnr, floor, &tried));
    }
    compiled.write(out, overwrite).map_err(file)?;
    let summary = compiled.summary();
    let mut said =
        serde_json::to_value(&summary).map_err(|e| errors::Error::new_err(e.to_string()))?;
    said["psnr"] = psnr.into();
    said["warnings"] = model.warnings.clone().into();
    Ok(said.to_string())
}

fn below(psnr: f64, floor: f64, tried: &[Proposal]) -> PyErr {
    let mut text = format!(
        "held-out samples reach {psnr:.1} dB to the float loop, below {floor:.1}; \
         accept=True writes it as it is"
    );
    for Proposal { options, psnr } in tried {
        text += &format!("; {psnr:.1} dB with {options}");
    }
    let error = BelowFloor::new_err(text);
    Python::attach(|py| {
        let value = error.value(py);
        let tried: Vec<(String, f64)> = tried.iter().map(|p| (p.options.clone(), p.psnr)).collect();
        let set = value
            .setattr("psnr", psnr)
            .and_then(|()| value.setattr("floor", floor))
            .and_then(|()| value.setattr("proposals", tried));
        set.err().unwrap_or_else(|| error.clone_ref(py))
    })
}

/// What is told how far a compilation is.
struct Told {
    callback: Option<Py<PyAny>>,
    /// What the callback raised, or the interpreter.
    raised: Option<PyErr>,
}

impl cachequant::Progress for Told {
    fn update(&mut self, phase: Phase, done: u64, total: u64) -> ControlFlow<()> {
        let going = Python::attach(|py| -> PyResult<bool> {
            py.check_signals()?;
            let Some(callback) = &self.callback else { return Ok(true) };
            let answer = callback.bind(py).call1((phase.name(), done, total))?;
            Ok(!answer.is(pyo3::types::PyBool::new(py, false)))
        });
        match going {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(e) => {
                self.raised = Some(e);
                ControlFlow::Break(())
            }
        }
    }
}

fn put_arrays(recipe: &mut Recipe, given: &Bound<'_, PyDict>) -> PyResult<()> {
    for (key, value) in given {
        match key.extract::<String>()?.as_str() {
            "cond" => recipe.cond = arrays(value.cast()?)?,
            "null-cond" => recipe.null_cond = arrays(value.cast()?)?,
            "calib-noise" => recipe.calib_noise = Some(array(&value)?),
            other => return Err(PyTypeError::new_err(format!("{other} takes no array"))),
        }
    }
    Ok(())
}

fn model_options(given: &Bound<'_, PyDict>) -> PyResult<ModelOptions> {
    let mut options = ModelOptions::default();
    let roles = &mut options.roles;
    for (key, value) in given {
        match key.extract::<String>()?.as_str() {
            "dims" => options.import.dims = value.extract()?,
            "shapes" => {
                let given: std::collections::BTreeMap<String, Vec<i64>> = value.extract()?;
                let sizes = |v: Vec<i64>| v.into_iter().map(Dim::constant).collect();
                options.import.shapes = given.into_iter().map(|(n, v)| (n, sizes(v))).collect();
            }
            "sample_input" => roles.sample_input = value.extract()?,
            "time_input" => roles.time_input = value.extract()?,
            "prediction_output" => roles.prediction_output = value.extract()?,
            "sample_channel" => roles.sample_channel = value.extract()?,
            "per_step" => roles.per_step = value.extract()?,
            "per_request" => roles.per_request = value.extract()?,
            "with_models" => {
                let paths: Vec<PathBuf> = value.extract()?;
                let located = paths.iter().map(|p| locate(p).map(|l| l.model));
                options.with = located.collect::<Result<_, _>>().map_err(errors::model)?;
            }
            "wires" => {
                let pairs: Vec<(String, String)> = value.extract()?;
                let wire = |(output, input)| Wire { output, input };
                options.wires = pairs.into_iter().map(wire).collect();
            }
            other => return Err(PyTypeError::new_err(format!("unexpected argument {other}"))),
        }
    }
    Ok(options)
}
