//! The reading of a network is found, or refused, on samples that the loop itself makes: a trained
//! model that predicts epsilon, and others that are derived from it.

#[path = "../passes/tests/onnx_build/mod.rs"]
mod onnx_build;

use cachequant::compile::Session;
use cachequant::model::{Model, ModelOptions};
use cachequant::reading::{Misread, Verdict};
use cachequant::recipe::{Prediction, Quant, Recipe, SamplerKind, SchedulerConfig};
use cachequant::{CompileError, compile};
use cqc_proto::onnx::{ModelProto, NodeProto, data_type};
use onnx_build::{At, f32s, int, node, value};
use prost::Message;
use std::path::Path;

/// ᾱ of the schedule with which the model was trained.
fn alphas() -> Vec<f64> {
    let beta = |t: usize| 1e-4 + (0.02 - 1e-4) * t as f64 / 999.0;
    let next = |alpha: &mut f64, t| {
        *alpha *= 1.0 - beta(t);
        Some(*alpha)
    };
    (0..1000).scan(1.0, next).collect()
}

/// The trained U-Net followed by the nodes `extra`. They read `eps`, `sample`, and per sample
/// `signal` and `noise`, and compute `out_sample`.
fn derived(extra: Vec<NodeProto>) -> ModelProto {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/ddpm-shapes32.onnx");
    let mut model = ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap();
    let graph = model.graph.as_mut().unwrap();
    for output in graph.node.iter_mut().flat_map(|node| &mut node.output) {
        if output == "out_sample" {
            *output = "eps".into();
        }
    }
    let column = |of: &[f64]| of.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let signal = column(&alphas().iter().map(|a| a.sqrt()).collect::<Vec<f64>>());
    let noise = column(&alphas().iter().map(|a| (1.0 - a).sqrt()).collect::<Vec<f64>>());
    graph.initializer.extend([
        f32s("signal_of", &[1000, 1, 1, 1], &signal),
        f32s("noise_of", &[1000, 1, 1, 1], &noise),
        f32s("gain", &[], &[1.3]),
    ]);
    graph.node.extend([
        node("Gather", &["signal_of", "timestep"], &["signal"], vec![]),
        node("Gather", &["noise_of", "timestep"], &["noise"], vec![]),
    ]);
    graph.node.extend(extra);
    model
}

/// Nodes of (`a` − noise · `b`) / signal.
fn quotient(a: &str, b: &str) -> Vec<NodeProto> {
    vec![
        node("Mul", &["noise", b], &["part"], vec![]),
        node("Sub", &[a, "part"], &["difference"], vec![]),
        node("Div", &["difference", "signal"], &["out_sample"], vec![]),
    ]
}

/// The same network as a flow-matching model: its time is σ itself, its output is noise − image.
fn flow() -> ModelProto {
    let mut model = derived(vec![
        node("Mul", &["noise", "eps"], &["part"], vec![]),
        node("Sub", &["scaled_sample", "part"], &["difference"], vec![]),
        node("Div", &["difference", "signal"], &["unclipped"], vec![]),
        node("Clip", &["unclipped", "low", "high"], &["image"], vec![]),
        node("Sub", &["eps", "image"], &["out_sample"], vec![]),
    ]);
    let graph = model.graph.as_mut().unwrap();
    // the inputs of the network are computed from the flow's sample and level
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|input| *input == "sample") {
            *input = "scaled_sample".into();
        }
    }
    let ratio: Vec<f32> = alphas().iter().map(|a| ((1.0 - a) / a).sqrt() as f32).collect();
    graph.initializer.extend([
        f32s("ratio_of", &[1, 1000], &ratio),
        f32s("one", &[], &[1.0]),
        f32s("tiny", &[], &[1e-4]),
        f32s("low", &[], &[-1.0]),
        f32s("high", &[], &[1.0]),
        onnx_build::i64s("row", &[-1, 1]),
        onnx_build::i64s("column", &[-1, 1, 1, 1]),
        onnx_build::i64s("axis", &[1]),
        onnx_build::i64s("last", &[999]),
    ]);
    let cast = |to| vec![int("to", i64::from(to))];
    let mut nodes = vec![
        // the level nearest to σ / (1 − σ)
        node("Sub", &["one", "sigma"], &["rest"], vec![]),
        node("Max", &["rest", "tiny"], &["above"], vec![]),
        node("Div", &["sigma", "above"], &["ratio"], vec![]),
        node("Reshape", &["ratio", "row"], &["ratio_row"], vec![]),
        node("Less", &["ratio_of", "ratio_row"], &["is_less"], vec![]),
        node("Cast", &["is_less"], &["counted"], cast(data_type::INT64)),
        node("ReduceSum", &["counted", "axis"], &["index"], vec![int("keepdims", 0)]),
        node("Min", &["index", "last"], &["timestep"], vec![]),
        // x / √((1 − σ)² + σ²)
        node("Mul", &["rest", "rest"], &["rest2"], vec![]),
        node("Mul", &["sigma", "sigma"], &["sigma2"], vec![]),
        node("Add", &["rest2", "sigma2"], &["squares"], vec![]),
        node("Sqrt", &["squares"], &["size"], vec![]),
        node("Reshape", &["size", "column"], &["size4"], vec![]),
        node("Div", &["sample", "size4"], &["scaled_sample"], vec![]),
    ];
    nodes.append(&mut graph.node);
    graph.node = nodes;
    graph.input.retain(|i| i.name() != "timestep");
    graph.input.push(value("sigma", data_type::FLOAT, &[At::Called("N")]));
    let batch = |v: &mut cqc_proto::onnx::ValueInfoProto| {
        *v =
            value(v.name(), data_type::FLOAT, &[At::Called("N"), At::Is(3), At::Is(32), At::Is(32)])
    };
    graph.input.iter_mut().filter(|i| i.name() == "sample").for_each(batch);
    graph.output.iter_mut().for_each(batch);
    model
}

fn load(model: &ModelProto) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let model = Model::load(&path, &ModelOptions::default(), |_, _| {}).unwrap();
    (folder, model)
}

fn float_loop() -> Recipe {
    Recipe { interval: Some(1), quant: Some(Quant::None), steps: Some(20), ..Recipe::default() }
}

/// The reading that was found, and the sampler's prediction.
fn found(model: &Model, recipe: &Recipe) -> (Prediction, SamplerKind, Verdict) {
    let session = Session::new(model, recipe).unwrap();
    let sampler = &session.options().sampler;
    (sampler.prediction_type, sampler.kind, session.reading().verdict.clone())
}

fn misread(model: &Model, recipe: &Recipe) -> Misread {
    match Session::new(model, recipe) {
        Err(CompileError::Misread(misread)) => *misread,
        Err(other) => panic!("{other}"),
        Ok(session) => panic!("accepted as {:?}", session.reading()),
    }
}

#[test]
fn every_prediction_is_found_without_a_hint() {
    let models = [
        (derived(vec![node("Identity", &["eps"], &["out_sample"], vec![])]), Prediction::Epsilon),
        (derived(quotient("eps", "sample")), Prediction::VPrediction),
        (derived(quotient("sample", "eps")), Prediction::Sample),
    ];
    for (model, expected) in models {
        let (_folder, model) = load(&model);
        let (prediction, kind, verdict) = found(&model, &float_loop());
        println!("{expected:?}: {verdict:?}");
        assert_eq!((prediction, kind), (expected, SamplerKind::Ddim));
        assert!(matches!(verdict, Verdict::Fits(_)));
    }
}

#[test]
fn flow_matching_is_found_and_wrong_readings_of_it_are_refused() {
    let (_folder, model) = load(&flow());
    let (prediction, kind, verdict) = found(&model, &float_loop());
    println!("{verdict:?}");
    assert_eq!((prediction, kind), (Prediction::Flow, SamplerKind::FlowEuler));
    let ddim = Recipe { sampler: Some(SamplerKind::Ddim), ..float_loop() };
    let refused = misread(&model, &ddim);
    assert!(refused.fits.is_some_and(|(name, _, _)| name.contains("flow matching")));
    let other = Recipe { prediction: Some(Prediction::FlowToData), ..float_loop() };
    misread(&model, &other);
}

#[test]
fn a_wrong_schedule_or_prediction_is_refused_with_what_fits() {
    let (_folder, model) =
        load(&derived(vec![node("Identity", &["eps"], &["out_sample"], vec![])]));
    let v = Recipe { prediction: Some(Prediction::VPrediction), ..float_loop() };
    assert!(misread(&model, &v).fits.is_some_and(|(name, _, _)| name.contains("epsilon")));
    let file = serde_json::json!({
        "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012,
    });
    let file = SchedulerConfig::Json(file.as_object().unwrap().clone());
    let scaled = Recipe { scheduler_config: Some(file), ..float_loop() };
    let refused = misread(&model, &scaled);
    assert!(refused.fits.is_some_and(|(name, _, _)| name.contains("linear betas 0.0001")));
}

/// Solvers that never clip, and a configuration that says so, read the network as correctly as DDIM
/// does.
#[test]
fn a_right_reading_is_not_refused_because_images_are_not_clipped() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/ddpm-shapes32.onnx");
    let model = Model::load(&path, &ModelOptions::default(), |_, _| {}).unwrap();
    for (class, clip) in [("EulerDiscreteScheduler", true), ("DDIMScheduler", false)] {
        let file = serde_json::json!({"_class_name": class, "clip_sample": clip});
        let file = SchedulerConfig::Json(file.as_object().unwrap().clone());
        let recipe = Recipe { scheduler_config: Some(file), ..float_loop() };
        let session = Session::new(&model, &recipe).unwrap();
        assert!(matches!(session.reading().verdict, Verdict::Fits(_)), "{class}");
        assert!(!session.options().sampler.clip_sample, "the file decides: {class}");
    }
}

#[test]
fn what_fits_nothing_is_refused_unless_it_is_trusted() {
    let (_folder, model) =
        load(&derived(vec![node("Mul", &["eps", "gain"], &["out_sample"], vec![])]));
    assert!(misread(&model, &float_loop()).fits.is_none());
    let trusted = Recipe { trust: true, ..float_loop() };
    assert!(matches!(found(&model, &trusted).2, Verdict::Trusted(_)));
    assert!(compile(&model, &trusted, &mut ()).is_ok());
}
