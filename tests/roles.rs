//! Loops of models whose sample, time step or prediction is not the first of its kind, or only a
//! part of an input.

mod common;
#[path = "../passes/tests/onnx_build/mod.rs"]
mod onnx_build;

use cachequant::model::{Model, ModelError, ModelOptions, RoleOptions};
use cachequant::recipe::Quant;
use cachequant::runtime::denoise::Request;
use cachequant::{CompileError, Recipe, compile};
use common::samples;
use cqc_proto::Tensor;
use cqc_proto::onnx::{GraphProto, ModelProto, ValueInfoProto, data_type};
use onnx_build::{At, f32s, int, ints, model, node, value};
use std::collections::BTreeMap;
use std::path::Path;

const SIZES: [usize; 3] = [4, 6, 6];

fn float(name: &str, channels: i64) -> ValueInfoProto {
    value(name, data_type::FLOAT, &[At::Called("N"), At::Is(channels), At::Is(6), At::Is(6)])
}

/// Weights without a pattern.
fn weights(name: &str, dims: &[i64], scale: f32) -> cqc_proto::onnx::TensorProto {
    let count: i64 = dims.iter().product();
    let values: Vec<f32> =
        (0..count).map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0) * scale).collect();
    f32s(name, dims, &values)
}

/// A denoiser `y = conv(x) + cos(t / 100)`, which reads a value `whole` of nine channels. `inputs`
/// and the nodes `front` provide `whole`.
fn denoiser(
    inputs: Vec<ValueInfoProto>,
    front: Vec<cqc_proto::onnx::NodeProto>,
    whole: &str,
    outputs: &[&str],
) -> ModelProto {
    let pads = || vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
    let mut nodes = front;
    nodes.extend([
        node("Cast", &["t"], &["tf"], vec![int("to", i64::from(data_type::FLOAT))]),
        node("Reshape", &["tf", "column"], &["tc"], vec![]),
        node("Mul", &["tc", "rate"], &["angle"], vec![]),
        node("Cos", &["angle"], &["e"], vec![]),
        node("Conv", &[whole, "w"], &["h"], pads()),
        node("Add", &["h", "e"], &["he"], vec![]),
        node("Tanh", &["he"], &["features"], vec![]),
        node("Conv", &["features", "v"], &["out_sample"], pads()),
    ]);
    let initializer = vec![
        weights("w", &[4, 9, 3, 3], 0.2),
        weights("v", &[4, 4, 3, 3], 0.2),
        f32s("rate", &[1, 1, 1, 1], &[0.01]),
        onnx_build::i64s("column", &[-1, 1, 1, 1]),
    ];
    model(
        17,
        GraphProto {
            name: Some("net".into()),
            node: nodes,
            initializer,
            input: inputs,
            output: outputs.iter().map(|name| float(name, 4)).collect(),
            ..Default::default()
        },
    )
}

fn time(axes: &[At]) -> ValueInfoProto {
    value("t", data_type::INT64, axes)
}

fn load(dir: &Path, proto: &ModelProto, roles: RoleOptions) -> Result<Model, ModelError> {
    let path = dir.join("m.onnx");
    std::fs::write(&path, onnx_build::bytes(proto)).unwrap();
    Model::load(&path, &ModelOptions { roles, ..ModelOptions::default() }, |_, _| {})
}

fn recipe() -> Recipe {
    Recipe {
        steps: Some(4),
        interval: Some(1),
        quant: Some(Quant::None),
        threads: Some(1),
        ..Recipe::default()
    }
}

fn ramp(channels: usize) -> Tensor {
    let count = channels * SIZES[1] * SIZES[2];
    let values: Vec<f32> = (0..count).map(|i| (i * 31 % 97) as f32 / 48.0 - 1.0).collect();
    Tensor::from_f32(&[1, channels, SIZES[1], SIZES[2]], &values)
}

/// Two samples with these conditions.
fn run(model: &Model, conditions: &[(&str, Tensor)]) -> Vec<f32> {
    let conditions: BTreeMap<String, Tensor> =
        conditions.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
    let request = Request { samples: 2, seed: 3, conditions, ..Request::default() };
    samples(&compile(model, &recipe(), &mut ()).unwrap(), &request)
}

/// A model that joins the inputs `parts`, each given with its number of channels.
fn joining(parts: &[(&str, i64)], outputs: &[&str]) -> ModelProto {
    let mut inputs: Vec<_> = parts.iter().map(|(name, channels)| float(name, *channels)).collect();
    inputs.push(time(&[At::Called("N")]));
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    denoiser(
        inputs,
        vec![node("Concat", &names, &["whole"], vec![int("axis", 1)])],
        "whole",
        outputs,
    )
}

fn whole() -> ModelProto {
    let inputs = vec![float("sample", 9), time(&[At::Called("N")])];
    denoiser(inputs, vec![], "sample", &["out_sample"])
}

/// Channels `range` of a tensor of one row.
fn channels(t: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let plane = SIZES[1] * SIZES[2];
    let values = t.to_f32_vec()[range.start * plane..range.end * plane].to_vec();
    Tensor::from_f32(&[1, range.len(), SIZES[1], SIZES[2]], &values)
}

#[test]
fn a_part_of_an_input_samples_as_an_input_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let rest = ramp(5);
    let at = |first| RoleOptions { sample_channel: Some(first), ..RoleOptions::default() };
    let own = load(dir.path(), &joining(&[("sample", 4), ("rest", 5)], &["out_sample"]), at(0));
    assert!(matches!(own.unwrap().network(), Err(ModelError::NotADenoiser { reason, .. })
        if reason.contains("the whole of input `sample`")));
    let orders: [(usize, &[(&str, i64)]); 3] = [
        (0, &[("sample", 4), ("rest", 5)]),
        (2, &[("a", 2), ("sample", 4), ("b", 3)]),
        (5, &[("rest", 5), ("sample", 4)]),
    ];
    for (first, parts) in orders {
        let own =
            load(dir.path(), &joining(parts, &["out_sample"]), RoleOptions::default()).unwrap();
        let own = match first {
            2 => run(&own, &[("a", channels(&rest, 0..2)), ("b", channels(&rest, 2..5))]),
            _ => run(&own, &[("rest", rest.clone())]),
        };
        let model = load(dir.path(), &whole(), at(first)).unwrap();
        assert_eq!(run(&model, &[("sample.rest", rest.clone())]), own, "from channel {first}");
    }
    let beyond = load(dir.path(), &whole(), at(6)).unwrap();
    let reason = beyond.network().unwrap_err().to_string();
    assert!(reason.contains("the first can be 0 to 5"), "{reason}");
}

#[test]
fn what_calibration_needs_names_the_channels() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), &whole(), RoleOptions::default()).unwrap();
    assert!(model.warnings.iter().any(|w| w.contains("channels 0 to 3 of the 9 channels")));
    let recipe = Recipe { quant: None, ..recipe() };
    let Err(CompileError::Condition(e)) = compile(&model, &recipe, &mut ()) else {
        panic!("it is calibrated without a condition")
    };
    let text = e.to_string();
    assert!(text.contains("`sample.rest`") && text.contains("9 channels"), "{text}");
}

#[test]
fn order_and_other_outputs_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let cond = ramp(5);
    let load = |proto| load(dir.path(), &proto, RoleOptions::default()).unwrap();
    let expected = run(
        &load(joining(&[("sample", 4), ("rest", 5)], &["out_sample"])),
        &[("rest", cond.clone())],
    );
    // an output of the sample's shape comes first
    let features = load(joining(&[("sample", 4), ("rest", 5)], &["features", "out_sample"]));
    assert_eq!(features.network().unwrap().output.name, "out_sample");
    assert_eq!(run(&features, &[("rest", cond.clone())]), expected);
    // inputs in another order
    let mut proto = joining(&[("sample", 4), ("rest", 5)], &["out_sample"]);
    proto.graph.as_mut().unwrap().input.reverse();
    assert_eq!(run(&load(proto), &[("rest", cond)]), expected);
}

#[test]
fn every_shape_of_the_time_step_samples_alike() {
    let dir = tempfile::tempdir().unwrap();
    let with = |axes: &[At]| {
        let inputs = vec![float("sample", 9), time(axes)];
        let model = denoiser(inputs, vec![], "sample", &["out_sample"]);
        run(&load(dir.path(), &model, RoleOptions::default()).unwrap(), &[("sample.rest", ramp(5))])
    };
    let expected = with(&[At::Called("N")]);
    let (n, one) = (|| At::Called("N"), || At::Is(1));
    for axes in
        [vec![], vec![one()], vec![one(), one()], vec![n(), one()], vec![n(), one(), one(), one()]]
    {
        assert_eq!(with(&axes), expected, "{} axes", axes.len());
    }
}

#[test]
fn a_name_that_the_model_lacks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let roles = RoleOptions { time_input: Some("tau".into()), ..RoleOptions::default() };
    let e = load(dir.path(), &whole(), roles).unwrap_err().to_string();
    assert!(e.contains("--time-input tau") && e.contains("sample, t"), "{e}");
}
