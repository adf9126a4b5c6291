//! ControlNets as further models in the loop, compared with diffusers' pipeline from the same noise
//! (`golden/controlnet/record.py`).

mod common;

use cachequant::io::read_npz;
use cachequant::model::{ModelError, Wire};
use cachequant::recipe::{Quant, Recipe, SchedulerConfig};
use cachequant::runtime::denoise::Request;
use cachequant::runtime::engine::EngineOptions;
use cachequant::{Model, ModelOptions};
use common::{compiled, on_cpu, relative_error, repository, run, samples, sqnr};
use cqc_proto::plan::InputRole;
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    repository().join("tests/golden/controlnet").join(name)
}

fn golden() -> BTreeMap<String, Tensor> {
    read_npz(&file("golden.npz")).unwrap().into_iter().collect()
}

fn load(with: &[&str], wires: Vec<Wire>) -> Result<Model, ModelError> {
    let with = with.iter().map(|name| file(name)).collect();
    let options = ModelOptions { with, wires, ..ModelOptions::default() };
    Model::load(&file("unet.onnx"), &options, |_, _| {})
}

fn number(value: f64) -> Tensor {
    Tensor::full(DType::F64, &[], value).unwrap()
}

fn recipe(guidance: f32) -> Recipe {
    let scheduler = serde_json::json!({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "clip_sample": false, "set_alpha_to_one": false,
        "steps_offset": 1,
    });
    let serde_json::Value::Object(scheduler) = scheduler else { unreachable!() };
    Recipe {
        steps: Some(10),
        scheduler_config: Some(SchedulerConfig::Json(scheduler.into_iter().collect())),
        guidance: Some(guidance),
        interval: Some(1),
        quant: Some(Quant::None),
        ..Recipe::default()
    }
}

/// The request of the recording, with `count` ControlNets.
fn request(golden: &BTreeMap<String, Tensor>, count: usize, guidance: f32) -> Request {
    let mut conditions = BTreeMap::from([
        ("encoder_hidden_states".to_string(), golden["text"].clone()),
        ("controlnet_cond".to_string(), golden["image1"].clone()),
        ("conditioning_scale".to_string(), number(0.8)),
    ]);
    if count == 2 {
        conditions.insert("controlnet_cond.2".into(), golden["image2"].clone());
        conditions.insert("conditioning_scale.2".into(), number(0.5));
    }
    Request {
        samples: 2,
        noise: Some(golden["noise"].clone()),
        conditions,
        unconditional: BTreeMap::from([("encoder_hidden_states".into(), golden["null"].clone())]),
        guidance: Some(guidance),
        ..Request::default()
    }
}

#[test]
fn control_nets_in_the_loop_end_where_diffusers_ends() {
    let golden = golden();
    for (name, with) in
        [("one", &["control1.onnx"][..]), ("two", &["control1.onnx", "control2.onnx"])]
    {
        let model = load(with, vec![]).unwrap();
        for guidance in [1.0, 3.0] {
            let compiled = compiled(&model, &recipe(guidance));
            let request = request(&golden, with.len(), guidance);
            let found = samples(&compiled, &request);
            let expected = &golden[&format!("{name}_guidance{guidance}")];
            let found = Tensor::from_f32(expected.shape(), &found);
            let error = relative_error(&found, expected);
            println!("{name}, guidance {guidance}: {error:.1e}");
            assert!(error < 1e-5, "{name}, guidance {guidance}: {error:e}");
        }
    }
}

#[test]
fn what_control_nets_feed_is_cached_and_quantized() {
    let golden = golden();
    let model = load(&["control1.onnx"], vec![]).unwrap();
    let of = request(&golden, 1, 1.0);
    let plain = samples(&compiled(&model, &recipe(1.0)), &of);
    let array = |name: &str| (name.to_string(), of.conditions[name].clone().into());
    let cond = ["encoder_hidden_states", "controlnet_cond", "conditioning_scale"].map(array);
    let noise = Some(golden["noise"].clone().into());
    let calibrated =
        |of: Recipe| Recipe { cond: cond.clone().into(), calib_noise: noise.clone(), ..of };
    let cached = Recipe { interval: Some(2), ..recipe(1.0) };
    let cached = compiled(&model, &calibrated(cached));
    let plan = cached.artifact().unwrap().manifest().plan.clone();
    let cost = |program: &cqc_proto::plan::Program| program.steps.len();
    assert!(cost(plan.program(cqc_proto::plan::ProgramKind::Cached)) < cost(&plan.full));
    let quantized = Recipe { quant: Some(Quant::W8a8), ..recipe(1.0) };
    let quantized = compiled(&model, &calibrated(quantized));
    let rounds = |name: &str| {
        let constants = quantized.artifact().unwrap().manifest().plan.constants.clone();
        constants.iter().filter(|c| c.codes.is_some() && c.name.starts_with(name)).count()
    };
    assert!(rounds("control1/") > 10 && rounds("") > rounds("control1/"));
    for (name, compiled) in [("cached", &cached), ("quantized", &quantized)] {
        let psnr = sqnr(&samples(compiled, &of), &plain);
        println!("{name}: {psnr:.1} dB");
        assert!(psnr > 20.0, "{name}: {psnr}");
    }
}

/// The residuals of a ControlNet at every evaluation, given as inputs of the U-Net alone, lead to
/// the same samples as the ControlNet in the loop.
#[test]
fn values_per_evaluation_do_what_the_second_model_does() {
    let golden = golden();
    let joined = load(&["control1.onnx"], vec![]).unwrap();
    let with = request(&golden, 1, 1.0);
    let joined = compiled(&joined, &recipe(1.0)).artifact().unwrap();
    let control = Model::load(&file("control1.onnx"), &ModelOptions::default(), |_, _| {}).unwrap();
    let control = cachequant::compile::compile_evaluation(&control).unwrap();
    let weights = cachequant::runtime::engine::Weights::new(
        control.plan.clone(),
        control.weight_bytes().unwrap(),
    );
    let options = EngineOptions { batch: 2, ..EngineOptions::default() };
    let mut control =
        cachequant::runtime::engine::Engine::open(&weights.unwrap(), &options).unwrap();

    let alone = load(&[], vec![]).unwrap();
    let varying = alone.inputs.iter().filter(|i| i.role == InputRole::StepCondition);
    let names: Vec<String> = varying.map(|i| i.name.clone()).collect();
    assert_eq!(names.len(), 5);
    let alone = compiled(&alone, &recipe(1.0)).artifact().unwrap();
    let mut alone = alone.denoiser(&on_cpu(1)).unwrap();
    let mut unet = with.clone();
    unet.conditions.retain(|name, _| name == "encoder_hidden_states");
    let timesteps: Vec<i64> =
        alone.sampler().evaluations().iter().map(|e| e.timestep as i64).collect();
    let mut trajectory = alone.begin(&unet, 0).unwrap();
    let missing = alone.step(&mut trajectory).unwrap_err().to_string();
    assert!(missing.contains("down_block_additional_residual_0"), "{missing}");
    let mut all: Vec<Vec<Tensor>> = vec![vec![]; names.len()];
    for t in timesteps {
        let mut inputs = with.conditions.clone();
        inputs.insert("sample".into(), Tensor::from_f32(&[2, 4, 8, 8], trajectory.x()));
        inputs.insert("timestep".into(), Tensor::from_i64(&[2], &[t, t]));
        let outputs = control.run(&inputs).unwrap();
        for (i, name) in names.iter().enumerate() {
            let from = name.replace("additional_residual", "res_sample");
            alone.set_condition(&mut trajectory, name, &outputs[&from]).unwrap();
            all[i].push(outputs[&from].clone());
        }
        alone.step(&mut trajectory).unwrap();
    }
    let expected = run(&mut joined.denoiser(&on_cpu(1)).unwrap(), &with);
    let expected = Tensor::from_f32(&[2, 4, 8, 8], &expected);
    let called = Tensor::from_f32(&[2, 4, 8, 8], trajectory.x());
    assert!(relative_error(&called, &expected) < 1e-6);

    // the same with tensors of all evaluations, and the second sample alone
    for (name, steps) in names.iter().zip(&all) {
        let shape = [&[steps.len()], steps[0].shape()].concat();
        let bytes: Vec<u8> = steps.iter().flat_map(|t| t.bytes().to_vec()).collect();
        let tensor = Tensor::new(DType::F32, shape, bytes).unwrap();
        unet.step_conditions.insert(name.clone(), tensor);
    }
    let given = run(&mut alone, &unet);
    assert_eq!(given, called.to_f32_vec());
    assert_eq!(run(&mut alone, &unet.part(1..2)), given[given.len() / 2..]);
    let name = &names[0];
    let short = cachequant::runtime::denoise::rows_at(&unet.step_conditions[name], 0, &(0..9));
    unet.step_conditions.insert(name.clone(), short);
    let wrong = alone.sample(&unet, &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err();
    assert!(wrong.to_string().contains("expected 10 evaluations"), "{wrong}");
}

#[test]
fn what_does_not_fit_is_named() {
    let wire = |output: &str, input: &str| Wire { output: output.into(), input: input.into() };
    let refused = |with: &[&str], wires| load(with, wires).unwrap_err().to_string();
    let said = refused(&["control1.onnx"], vec![wire("nothing", "mid_block_additional_residual")]);
    assert!(said.contains("--wire nothing=…"), "{said}");
    let said = refused(&["control1.onnx"], vec![wire("mid_block_res_sample", "nothing")]);
    assert!(said.contains("the denoiser has no such input"), "{said}");
    let first = "down_block_additional_residual_0";
    let said = refused(&["control1.onnx"], vec![wire("mid_block_res_sample", first)]);
    assert!(said.contains("the input f32[N,16,8,8]"), "{said}");
    // a U-Net's prediction is no residual
    let said = refused(&["unet.onnx"], vec![]);
    assert!(said.contains("none of its outputs"), "{said}");
    let swapped = vec![
        wire("output_0", "down_block_additional_residual_1"),
        wire("output_1", "down_block_additional_residual_0"),
    ];
    let model = load(&["control2.onnx"], swapped).unwrap();
    let wires: Vec<(&str, &str)> =
        model.companions[0].wires.iter().map(|w| (&*w.output, &*w.input)).collect();
    assert_eq!(wires[0], ("output_0", "down_block_additional_residual_1"));
    assert_eq!(wires[4], ("output_4", "mid_block_additional_residual"));
}
