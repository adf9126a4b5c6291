//! Exported loops in ONNX Runtime, compared with the engine.
//!
//! Needs ONNX Runtime as `onnxruntime.rs` does. Whole loops need `CQC_ORACLE_PYTHON` with numpy and
//! onnxruntime, and run `sample.py`.

mod common;
#[path = "common/onnxruntime.rs"]
mod onnxruntime;

use cachequant::compile::{LoopOptions, Lowered, ProgramError, compile_evaluation, compile_loop};
use cachequant::export::{self, ExportedLoop, Form};
use cachequant::io::{Overwrite, read_npy, write_npy};
use cachequant::recipe::{CacheFit, Quant, Recipe};
use cachequant::runtime::{Artifact, DenoiserOptions};
use cachequant::{Model, ModelOptions};
use common::{
    Check, checks, labels, models, on_cpu, path, relative_error, repository, shared, shared_dir,
};
use cqc_passes::onnx::export::{ExportOptions, Exported, Layout, Port, Qdq, Wire, export};
use cqc_proto::cq::GuidanceInterval;
use cqc_proto::plan::{Cache, CacheSlot, InputRole, Plan, Program, Source};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_proto::{DType, Op, Tensor};
use cqc_runtime::denoise::Request;
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use cqc_runtime::sampler::Sampler;
use ort::environment::Environment;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

const STEPS: usize = 4;

fn sampler() -> Sampler {
    Sampler::new(&SamplerConfig::default(), STEPS).unwrap()
}

fn timesteps() -> Vec<f64> {
    sampler().evaluations().iter().map(|e| e.timestep).collect()
}

/// The loop, or one evaluation of a model that is no denoiser.
fn lowered(path: &Path) -> Lowered {
    let model = Model::load(path, &ModelOptions::default(), |_, _| {}).unwrap();
    match compile_loop(
        &model,
        &LoopOptions {
            sampler: SamplerConfig::default(),
            steps: STEPS,
            any_steps: false,
            bf16: None,
        },
    ) {
        Err(ProgramError::Model(_)) => compile_evaluation(&model).unwrap(),
        lowered => lowered.unwrap(),
    }
}

fn constants(lowered: &Lowered) -> Vec<Tensor> {
    lowered.weights.parts.iter().map(|p| p.1.clone()).collect()
}

/// Writes the models of a plan as files in `dir`.
fn write(plan: &Plan, constants: &[Tensor], layout: Layout, dir: &Path) -> Exported {
    let null = BTreeMap::new();
    let sampler = sampler();
    let exported = ExportedLoop {
        plan,
        constants,
        sampler: &sampler,
        guidance: 1.0,
        rescale: 0.0,
        interval: None,
        fills: &BTreeMap::new(),
        null: &null,
        compensation: None,
    };
    export::write(exported, Form { layout, qdq: Qdq::None }, dir, Overwrite::Allow).unwrap();
    let weights = "weights.bin".to_string();
    let options = ExportOptions {
        layout,
        timesteps: timesteps(),
        weights,
        inline_below: 1024,
        qdq: Qdq::None,
    };
    export(plan, constants, &options).unwrap()
}

/// A recorded input in the type that exported models take.
fn as_port(port: &Port, given: &Tensor) -> Tensor {
    if port.ty.dtype.is_float() { given.to_float(port.ty.dtype) } else { given.clone() }
}

type Values = BTreeMap<String, Tensor>;

/// Runs a model on the loop's values and adds its results. Returns `false` if an input has a type
/// that cannot be passed on.
fn run_model(
    environment: &Environment,
    dir: &Path,
    exported: &Exported,
    name: &str,
    values: &mut Values,
) -> bool {
    let Some(model) = exported.models.iter().find(|m| m.name == name) else { return true };
    let feed = |p: &Port| (p.name.clone(), as_port(p, &values[&p.value.to_string()]));
    let feeds: BTreeMap<String, Tensor> = model.inputs.iter().map(feed).collect();
    let Some(outputs) = onnxruntime::run(environment, &dir.join(format!("{name}.onnx")), &feeds)
    else {
        return false;
    };
    values.extend(model.outputs.iter().map(|p| (p.value.to_string(), outputs[&p.name].clone())));
    true
}

/// The loop's values before evaluation `e`, from recorded inputs.
fn begin(plan: &Plan, inputs: &BTreeMap<String, Tensor>, e: usize) -> Values {
    let value = |input: &cqc_proto::plan::PlanInput| {
        let name = match input.role {
            InputRole::Sample => Wire::Sample,
            InputRole::Timestep => Wire::Timestep,
            InputRole::Condition | InputRole::StepCondition => Wire::Condition(input.name.clone()),
        };
        (name.to_string(), inputs[&input.name].clone())
    };
    let mut values: Values = plan.inputs.iter().map(value).collect();
    values.insert("step".into(), Tensor::from_i64(&[], &[e as i64]));
    values
}

fn found() -> Vec<Check> {
    models().into_iter().chain(shared()).collect()
}

#[test]
fn exported_models_equal_the_engine() {
    let Some(environment) = onnxruntime::environment() else { return };
    for check in found() {
        let name = check.model.display();
        let lowered = lowered(&check.model);
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("exported");
        let exported = write(&lowered.plan, &constants(&lowered), Layout::Split, &dir);
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let options =
            EngineOptions { batch: check.batch(), threads: 2, ..EngineOptions::default() };
        let mut engine = Engine::open(&weights, &options).unwrap();
        let steps = if lowered.plan.evaluations == 0 { vec![] } else { timesteps() };
        for e in 0..steps.len().clamp(1, 2) {
            let request = engine.run_at(e, &steps, &check.inputs).unwrap();
            let expected = engine.outputs(&request);
            let mut values = begin(&lowered.plan, &check.inputs, e);
            let mut run = |model: &str| run_model(environment, &dir, &exported, model, &mut values);
            if !(run("prelude") && run("prelude_steps") && run("full")) {
                println!("skipped: {name}: an input type that this test does not pass on");
                continue;
            }
            for output in &lowered.plan.outputs {
                let error = relative_error(
                    &values[&Wire::Output(output.name.clone()).to_string()],
                    &expected[&output.name].to_float(DType::F32),
                );
                println!("{name}: {} at {e}: relative error {error:.2e}", output.name);
                // 1e-4: sums in another order; 1e-3: the engine gives halves
                let limit = if output.ty.dtype == DType::F32 { 1e-4 } else { 1e-3 };
                assert!(error < limit, "{name}: {} at {e}: relative error {error:e}", output.name);
            }
        }
    }
}

/// `plan` with one value of `full` in a cache, whose producers run at evaluation 0 only.
fn with_cache(plan: &Plan, value: usize) -> Plan {
    let mut cached = plan.full.clone();
    cached.values[value].source = Source::Cache(0);
    cached.values[value].alias = None;
    cached.results = plan.outputs.iter().map(|o| o.value).collect();
    drop_dead_steps(&mut cached);
    let slots =
        vec![CacheSlot { name: plan.full.values[value].name.clone(), value, previous_of: None }];
    let full_evaluations = vec![0, 2];
    Plan { cache: Some(Cache { slots, cached, full_evaluations }), ..plan.clone() }
}

fn drop_dead_steps(program: &mut Program) {
    use cqc_proto::plan::Alias;
    let mut live = vec![false; program.values.len()];
    let values = program.values.clone();
    let mark = |live: &mut Vec<bool>, v: usize| {
        live[v] = true;
        if let Some(Alias::Same { of }) = values[v].alias {
            live[of] = true;
        }
    };
    program.results.iter().for_each(|&v| mark(&mut live, v));
    for i in (0..program.steps.len()).rev() {
        let step = &program.steps[i];
        if step.outputs.iter().any(|&v| live[v] && program.values[v].source == Source::Step) {
            step.inputs.clone().into_iter().flatten().for_each(|v| mark(&mut live, v));
        } else {
            program.steps.remove(i);
        }
    }
}

/// A cache that is filled by the evaluation that reads it changes nothing, and it is the same cache
/// in an `If`.
#[test]
fn cached_evaluations_read_what_full_ones_give() {
    let Some(environment) = onnxruntime::environment() else { return };
    for check in checks(&repository().join("tests/models")) {
        let lowered = lowered(&check.model);
        let full = &lowered.plan.full;
        let deep = full
            .steps
            .iter()
            .rev()
            .find(|s| matches!(s.op, Op::Concat { .. } | Op::Attention { .. }));
        let (Some(deep), true) = (deep, lowered.plan.evaluations > 0) else { continue };
        let name = check.model.display();
        let slot = deep.inputs[0].expect("required");
        let plan = with_cache(&lowered.plan, slot);
        assert!(plan.cache.as_ref().is_some_and(|c| c.cached.steps.len() < full.steps.len()));
        let directory = tempfile::tempdir().unwrap();
        let [split, one] = ["split", "if"].map(|d| directory.path().join(d));
        let constants = constants(&lowered);
        let (split_models, if_models) = (
            write(&plan, &constants, Layout::Split, &split),
            write(&plan, &constants, Layout::If, &one),
        );
        let output = Wire::Output(plan.outputs[0].name.clone()).to_string();

        let mut values = begin(&plan, &check.inputs, 1);
        let mut run =
            |model: &str| run_model(environment, &split, &split_models, model, &mut values);
        if !(run("prelude") && run("prelude_steps") && run("full")) {
            continue;
        }
        let expected = values[&output].clone();
        assert!(run_model(environment, &split, &split_models, "cached", &mut values));
        assert!(relative_error(&values[&output], &expected) < 1e-6, "{name}");

        // evaluation 1 with the cache of evaluation 0, both ways
        let mut results = Vec::new();
        for (dir, models, names) in
            [(&split, &split_models, ["full", "cached"]), (&one, &if_models, ["model"; 2])]
        {
            let mut values = begin(&plan, &check.inputs, 0);
            let shape: Vec<usize> = expected_shape(&plan, slot, check.batch());
            values.insert("cache.0".into(), Tensor::zeros(DType::F32, &shape).unwrap());
            for (e, model) in names.into_iter().enumerate() {
                values.insert("step".into(), Tensor::from_i64(&[], &[e as i64]));
                for model in ["prelude", "prelude_steps", model] {
                    assert!(run_model(environment, dir, models, model, &mut values));
                }
            }
            results.push(values);
        }
        // 1e-5: ONNX Runtime chooses other kernels inside an If
        for value in [output.as_str(), "cache.0"] {
            let error = relative_error(&results[1][value], &results[0][value]);
            assert!(error < 1e-5, "{name}: {value}: relative error {error:e}");
        }
        println!("{name}: `{}` cached", full.values[slot].name);
    }
}

fn expected_shape(plan: &Plan, value: usize, batch: usize) -> Vec<usize> {
    let batch = plan.batch_symbol.iter().map(|s| (s.as_str().into(), batch as i64)).collect();
    plan.full.values[value].ty.resolve(&batch).unwrap()
}

/// Compares a loop through `sample.py` with the same loop through the engine.
fn sample_both_ways(python: &Path, artifact: &Artifact, request: &Request, layout: Layout) {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("exported");
    let (manifest, sampler) = (artifact.manifest(), artifact.sampler().unwrap());
    let constants: Vec<Tensor> =
        (0..manifest.plan.constants.len()).map(|i| artifact.constant(i)).collect();
    let (guidance, null) = (manifest.guidance, artifact.null_conditions());
    let exported = ExportedLoop {
        plan: &manifest.plan,
        constants: &constants,
        sampler: &sampler,
        guidance,
        rescale: manifest.guidance_rescale,
        interval: manifest.guidance_interval,
        fills: &manifest.fills,
        null: &null,
        compensation: None,
    };
    export::write(exported, Form { layout, qdq: Qdq::None }, &dir, Overwrite::Refuse).unwrap();
    let file = |name: &str| directory.path().join(name);
    write_npy(&file("noise.npy"), request.noise.as_ref().unwrap(), Overwrite::Refuse).unwrap();
    let mut command = Command::new(python);
    command.arg(dir.join("sample.py")).args([file("noise.npy"), file("samples.npy")]);
    for (name, condition) in &request.conditions {
        let path = file(&format!("{name}.npy"));
        write_npy(&path, condition, Overwrite::Refuse).unwrap();
        command.arg(format!("{name}={}", path.display()));
    }
    assert!(command.status().unwrap().success());
    let found = read_npy(&file("samples.npy")).unwrap();
    let engine = EngineOptions { batch: request.samples, threads: 2, ..EngineOptions::default() };
    let mut denoiser = artifact.denoiser(&DenoiserOptions { engine, ..on_cpu(2) }).unwrap();
    let expected = denoiser.sample(request, &mut |_| ControlFlow::Continue(())).unwrap();
    let error = relative_error(&found, &expected);
    println!("guidance {guidance}: relative error {error:.2e}");
    assert!(error < 1e-4, "relative error {error:e}"); // sums in another order, over a few steps
}

#[test]
fn the_script_samples_what_the_engine_samples() {
    let Some(python) = std::env::var_os("CQC_ORACLE_PYTHON") else {
        return println!("skipped: CQC_ORACLE_PYTHON is not set");
    };
    let float = Recipe {
        steps: Some(STEPS),
        interval: Some(1),
        quant: Some(Quant::None),
        threads: Some(2),
        ..Recipe::default()
    };
    let rescaled = Recipe {
        guidance: Some(2.0),
        guidance_rescale: Some(0.7),
        guidance_interval: Some(GuidanceInterval { from: 0.3, to: 0.8 }),
        null_label: Some(0),
        trust: true,
        sampler: Some(SamplerKind::Ddim),
        ..float.clone()
    };
    let mut cases = vec![
        (path("ddpm-shapes32"), float.clone(), vec![]),
        (path("dit-dy23"), rescaled, vec![1, 2]),
    ];
    if let Some(shared) = shared_dir() {
        let guided = Recipe { guidance: Some(2.0), null_label: Some(8), ..float };
        cases.push((shared.join("models/dit-shapes32/model.onnx"), guided, vec![1, 3]));
    }
    for (path, float, of) in cases {
        let size = if path.ends_with("dit-dy23.onnx") { 8 } else { 32 };
        let mut noise = vec![0.0; 2 * 3 * size * size];
        Noise::new(7, 0, 2).fill(&mut noise);
        let noise = Some(Tensor::from_f32(&[2, 3, size, size], &noise));
        let conditions = if of.is_empty() { BTreeMap::new() } else { labels(&of) };
        let request = Request { samples: 2, noise, conditions, ..Request::default() };
        // with a cache that a forecast corrects
        let cached = Recipe {
            interval: Some(2),
            schedule: Some("uniform".parse().unwrap()),
            cache_fit: Some(CacheFit::Forecast),
            calib_samples: Some(2),
            labels: of,
            ..float.clone()
        };
        let model = Model::load(&path, &ModelOptions::default(), |_, _| {}).unwrap();
        let [float, cached] =
            [float, cached].map(|recipe| common::compiled(&model, &recipe).artifact().unwrap());
        let slots = cached.manifest().plan.cache.as_ref().unwrap().slots.len();
        assert_eq!(slots, 2, "the tensor and what it was before");
        for (artifact, layout) in
            [(&float, Layout::Split), (&cached, Layout::Split), (&cached, Layout::If)]
        {
            sample_both_ways(Path::new(&python), artifact, &request, layout);
        }
    }
}
