//! Writes `schedule.json`, which describes everything about the loop that is not in the models.
//!
//! ```text
//! { "format_version": 1, "layout": "split" | "if",
//!   "qdq":         "none" | "ort" | "trt",                  how rounding to integers is written, "none" without any
//!   "scales":      "table" | "constant" | null,             whether scales of activations are indexed by the evaluation
//!   "batch":       {"symbol": "N", "fixed": null},          with guidance: two runs, or one with both halves stacked
//!   "sampler":     {"kind": "ddim", ...}, "steps": 50,      as in the artifact
//!   "evaluations": [{"timestep": 980.0, "input_scale": 1.0, "full": true}, ...],
//!   "initial_scale": 1.0,                                   of the noise that the loop begins with
//!   "ddim":        {"prediction": "epsilon", "clip": 1.0 | null,
//!                   "updates": [{"signal", "noise", "next_signal", "direction"}, ...]},    null for other samplers
//!   "compensation": {"scale": [[..C..], ...], "shift": [...]} | null,   after evaluation e, the sample becomes scale[e] · sample + shift[e] per channel
//!   "guidance":    2.0,                                     output = null + guidance · (output - null)
//!   "guidance_rescale": 0.0,                                then output · (1 + φ · (σ(conditional) / σ(output) - 1))
//!   "guidance_steps": [0, 20],                              in these sampler steps, the end excluded; else the conditional output
//!   "fills":       {"total_step": "steps"},                 inputs that cqc fills by itself: guidance, guidance-embedding, steps
//!   "null_conditions": {"file": "null.npz", "inputs": ["class_labels"]} | null,
//!   "output":      "output.noise_pred",                     the value that the sampler reads
//!   "models":      [{"name": "full", "file": "full.onnx", "runs": "...",
//!                    "inputs":  [{"name": "sample", "value": "sample", "dtype": "float32", "shape": ["N", 3, 32, 32], "tensor": "sample"}],
//!                    "outputs": [...]}] }
//! ```
//! The `name` of a port is its name in the ONNX file. Its `value` says its role in the loop:
//! `sample`, `timestep`, `step` (the number of the evaluation, a tensor without axes),
//! `condition.NAME`, `output.NAME`, or a value that one model computes and another one reads:
//! `prelude.I`, `prelude_steps.I`, `cache.I`. Models are listed in the order in which they run.
//! Before the first full evaluation the content of the cache has no effect.

use super::{ExportedLoop, Form, NULL};
use cqc_passes::onnx::export::{Exported, ExportedModel, Layout, Port, Qdq, Scales, Wire};
use cqc_proto::plan::ProgramKind;
use cqc_proto::{DType, Dim};
use serde_json::{Value, json};

/// Version of the format of `schedule.json`.
pub const FORMAT_VERSION: u32 = 1;

/// Name of the file of a model, such as `full.onnx`.
pub fn file_name(model: &ExportedModel) -> String {
    format!("{}.onnx", model.name)
}

pub(super) fn json(exported: ExportedLoop, form: Form, models: &Exported) -> Value {
    let ExportedLoop { plan, sampler, .. } = exported;
    let config = sampler.config();
    let evaluation = |(i, e): (usize, &cqc_runtime::sampler::Evaluation)| {
        json!({
            "timestep": e.timestep, "input_scale": e.input_scale,
            "full": plan.program_at(i) == ProgramKind::Full,
        })
    };
    let ddim = sampler.ddim_updates().map(|updates| {
        let clip = config.clip_sample.then_some(config.clip_sample_range);
        json!({ "prediction": config.prediction_type, "clip": clip, "updates": updates })
    });
    let names: Vec<&String> = exported.null.keys().collect();
    let steps = exported.sampler.steps();
    let guided = exported.interval.map_or(0..steps, |interval| interval.steps(steps));
    let guided = [guided.start, guided.end];
    let null_conditions = (!names.is_empty()).then(|| json!({ "file": NULL, "inputs": names }));
    let is_rounded = plan.constants.iter().any(|c| c.codes.is_some());
    let (qdq, scales) = match form.qdq {
        Qdq::Ort(Scales::Table) if is_rounded => ("ort", Some("table")),
        Qdq::Ort(Scales::Constant) if is_rounded => ("ort", Some("constant")),
        Qdq::Trt if is_rounded => ("trt", Some("constant")),
        _ => ("none", None),
    };
    let compensation = exported.compensation.map(|c| {
        let rows = |of: &[f32]| {
            of.chunks(of.len() / plan.evaluations).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        json!({ "scale": rows(&c.scale), "shift": rows(&c.shift) })
    });
    json!({
        "format_version": FORMAT_VERSION,
        "layout": match form.layout { Layout::Split => "split", Layout::If => "if" },
        "qdq": qdq,
        "scales": scales,
        "batch": { "symbol": plan.batch_symbol, "fixed": plan.fixed_batch },
        "sampler": config,
        "steps": sampler.evaluations().last().map_or(0, |e| e.step + 1),
        "evaluations": sampler.evaluations().iter().enumerate().map(evaluation).collect::<Vec<_>>(),
        "initial_scale": sampler.initial_scale(),
        "ddim": ddim,
        "compensation": compensation,
        "guidance": exported.guidance,
        "guidance_rescale": exported.rescale,
        "guidance_steps": guided,
        "fills": exported.fills,
        "null_conditions": null_conditions,
        "output": plan.outputs.first().map(|o| Wire::Output(o.name.clone()).to_string()),
        "models": models.models.iter().map(model).collect::<Vec<_>>(),
    })
}

fn model(model: &ExportedModel) -> Value {
    let runs = match model.name {
        "prelude" => "once per request",
        "prelude_steps" => "before every evaluation",
        "full" => "evaluations that are full",
        "cached" => "evaluations that are not full",
        _ => "every evaluation",
    };
    json!({
        "name": model.name, "file": file_name(model), "runs": runs,
        "inputs": model.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": model.outputs.iter().map(port).collect::<Vec<_>>(),
    })
}

fn port(port: &Port) -> Value {
    let size = |d: &Dim| d.as_const().map_or_else(|| json!(d.to_string()), |v| json!(v));
    json!({
        "name": port.name, "value": port.value.to_string(), "dtype": numpy_name(port.ty.dtype),
        "shape": port.ty.shape.iter().map(size).collect::<Vec<_>>(), "tensor": port.tensor,
    })
}

fn numpy_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F64 => "float64",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::I8 => "int8",
        DType::I16 => "int16",
        DType::I32 => "int32",
        DType::I64 => "int64",
        DType::U8 => "uint8",
        DType::U16 => "uint16",
        DType::U32 => "uint32",
        DType::U64 => "uint64",
        DType::Bool => "bool",
    }
}
