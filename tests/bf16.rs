//! Loops rounded to bf16: their errors, and the agreement of all ways to execute them.
//!
//! Where the CPU has no instruction for bf16, the kernels run as plain Rust.

mod common;
#[path = "common/onnxruntime.rs"]
mod onnxruntime;

use cachequant::compile::{LoopOptions, Lowered, compile_loop};
use cachequant::export::{self, Form};
use cachequant::io::Overwrite;
use cachequant::model::{Model, ModelOptions};
use common::{Check, models, sqnr};
use cqc_passes::onnx::export::{ExportOptions, Layout, Qdq, Wire, export};
use cqc_passes::quant::QuantSpec;
use cqc_proto::onnx::data_type;
use cqc_proto::plan::{InputRole, Plan};
use cqc_proto::sampler::SamplerConfig;
use cqc_proto::{DType, Op, Tensor};
use cqc_runtime::engine::{Engine, EngineOptions, Execution, StepProfile, Weights};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::sync::Arc;

const STEPS: usize = 4;

/// The denoisers among the models in the repository.
fn denoisers() -> Vec<Check> {
    let named = |check: &Check| {
        let name = check.model.file_stem().unwrap().to_string_lossy();
        ["ddpm-shapes32", "dit-dy23", "sdxl-ts17"].contains(&&*name)
    };
    models().into_iter().filter(named).collect()
}

fn sampler() -> Sampler {
    Sampler::new(&SamplerConfig::default(), STEPS).unwrap()
}

fn timesteps() -> Vec<f64> {
    sampler().evaluations().iter().map(|e| e.timestep).collect()
}

fn lowered(check: &Check, bf16: Option<QuantSpec>) -> Lowered {
    let model = Model::load(&check.model, &ModelOptions::default(), |_, _| {}).unwrap();
    let options =
        LoopOptions { sampler: SamplerConfig::default(), steps: STEPS, any_steps: false, bf16 };
    compile_loop(&model, &options).unwrap()
}

fn rounded(check: &Check) -> Lowered {
    lowered(check, Some(QuantSpec::new(16)))
}

fn weights(lowered: &Lowered) -> Arc<Weights> {
    Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap()
}

/// The first output of an evaluation of the recorded inputs, and how its steps were executed.
fn evaluated(
    weights: &Arc<Weights>,
    check: &Check,
    e: usize,
    options: EngineOptions,
) -> (Vec<f32>, Vec<StepProfile>) {
    let name = weights.plan().outputs[0].name.clone();
    tapped(
        weights,
        &check.inputs,
        e,
        &name,
        EngineOptions { batch: check.batch(), profile: true, ..options },
    )
}

/// The same for any value that is kept.
fn tapped(
    weights: &Arc<Weights>,
    inputs: &BTreeMap<String, Tensor>,
    e: usize,
    name: &str,
    options: EngineOptions,
) -> (Vec<f32>, Vec<StepProfile>) {
    let mut engine = Engine::open(weights, &options).unwrap();
    let request = engine.run_at(e, &timesteps(), inputs).unwrap();
    (engine.tap(&request, name).unwrap().to_f32_vec(), engine.profile())
}

/// The recorded inputs with a sample that is larger by a part in a million. Other orders of
/// summation may change results as much as this does.
fn nudged(check: &Check) -> BTreeMap<String, Tensor> {
    let mut inputs = check.inputs.clone();
    let sample = inputs.get_mut("sample").unwrap();
    let values: Vec<f32> = sample.to_f32_vec().iter().map(|x| x * (1.0 + 1e-6)).collect();
    *sample = Tensor::from_f32(sample.shape(), &values);
    inputs
}

fn emulated(threads: usize) -> EngineOptions {
    EngineOptions { threads, emulate_bf16: true, ..EngineOptions::default() }
}

fn in_f32(threads: usize) -> EngineOptions {
    EngineOptions { threads, low_precision: false, ..EngineOptions::default() }
}

/// Number of constants of bf16 that programs of a plan read.
fn halves(plan: &Plan) -> usize {
    plan.constants.iter().filter(|c| c.ty.dtype == DType::BF16).count()
}

#[test]
fn an_evaluation_is_near_the_float_one_however_it_is_executed() {
    for check in denoisers() {
        let (plain, lowered) = (weights(&lowered(&check, None)), rounded(&check));
        let products = lowered.bf16.as_ref().unwrap();
        assert!(!products.layers.is_empty() && halves(&lowered.plan) > 0);
        let weights = weights(&lowered);
        for e in [0, STEPS - 1] {
            let float = evaluated(&plain, &check, e, in_f32(2)).0;
            let (unfused, _) = evaluated(&weights, &check, e, in_f32(2));
            let (fused, _) = evaluated(
                &weights,
                &check,
                e,
                EngineOptions { threads: 2, ..EngineOptions::default() },
            );
            let (multiplied, steps) = evaluated(&weights, &check, e, emulated(2));
            let count =
                steps.iter().filter(|s| s.execution == Execution::Bf16 && s.calls > 0).count();
            let name = &lowered.plan.outputs[0].name;
            let options = EngineOptions { batch: check.batch(), ..in_f32(2) };
            let chaos = sqnr(&tapped(&weights, &nudged(&check), e, name, options).0, &unfused);
            let [cost, paths] = [sqnr(&unfused, &float), sqnr(&multiplied, &unfused)];
            println!(
                "{} at {e}: {cost:.1} dB to float, {paths:.1} dB between executions, {chaos:.1} dB from a nudged sample, {count} of {} \
                 products of bf16",
                check.model.display(),
                products.layers.len()
            );
            assert!((30.0..65.0).contains(&cost), "{cost:.1} dB");
            // A sum in another order may move an operand across a border between two bf16 numbers,
            // which changes everything after it.
            assert!(
                paths > chaos.min(100.0) - 4.0,
                "{paths:.1} dB between executions, {chaos:.1} dB from a nudged sample"
            );
            assert!(count * 10 >= products.layers.len() * 9, "{count} products of bf16");
            if !weights.isa().has_bf16() {
                assert_eq!(fused, unfused, "rounding at once is rounding afterwards");
            }
        }
    }
}

#[test]
fn the_first_product_is_the_same_up_to_the_order_of_additions() {
    for check in denoisers() {
        let lowered = rounded(&check);
        let (weights, key) = (weights(&lowered), &lowered.bf16.as_ref().unwrap().layers[0].value);
        let of = |options: EngineOptions| {
            let options =
                EngineOptions { batch: check.batch(), keep: vec![key.clone()], ..options };
            tapped(&weights, &check.inputs, 0, key, options).0
        };
        let (expected, found) = (of(in_f32(2)), of(emulated(2)));
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = expected.iter().zip(&found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        println!("{}: {key}: {:.1e}", check.model.display(), worst / largest);
        // 2⁻²⁴ per addition
        assert!(worst <= 3e-6 * largest, "{key}: {worst:e} of {largest:e}");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for check in denoisers() {
        let weights = weights(&rounded(&check));
        for options in [emulated, in_f32] {
            let one = evaluated(&weights, &check, 1, options(1)).0;
            assert_eq!(
                one,
                evaluated(&weights, &check, 1, options(3)).0,
                "{}",
                check.model.display()
            );
        }
    }
}

#[test]
fn the_definition_rounds_the_same() {
    let check = denoisers().into_iter().find(|c| c.model.ends_with("dit-dy23.onnx")).unwrap();
    let weights = weights(&rounded(&check));
    let reference = EngineOptions { threads: 2, reference: true, ..EngineOptions::default() };
    let found = sqnr(
        &evaluated(&weights, &check, 0, in_f32(2)).0,
        &evaluated(&weights, &check, 0, reference).0,
    );
    // the bound of the comparison of executions above
    assert!(found > 45.0, "{found:.1} dB");
}

#[test]
fn no_pass_over_memory_is_made_where_a_producer_can_round() {
    let check = denoisers().into_iter().find(|c| c.model.ends_with("ddpm-shapes32.onnx")).unwrap();
    let weights = weights(&rounded(&check));
    let full = &weights.plan().full;
    let roundings = full.steps.iter().filter(|s| s.op == Op::RoundBf16);
    let alone = |step: &&cqc_proto::plan::Step| {
        let x = step.inputs[0].unwrap();
        let readers =
            full.steps.iter().flat_map(|s| s.inputs.iter().flatten()).filter(|v| **v == x).count();
        let maker = full.steps.iter().find(|s| s.outputs == [x]);
        readers == 1
            && maker.is_some_and(|s| {
                matches!(
                    s.op,
                    Op::Conv { .. }
                        | Op::Linear { .. }
                        | Op::GroupNorm { .. }
                        | Op::Attention { .. }
                )
            })
    };
    let (fused, separate): (Vec<_>, Vec<_>) = roundings.partition(alone);
    println!("{} roundings at once, {} on their own", fused.len(), separate.len());
    assert!(fused.len() > 2 * separate.len());
    for options in [emulated(1), EngineOptions { threads: 1, ..EngineOptions::default() }] {
        let profile = evaluated(&weights, &check, 0, options).1;
        let idle = profile
            .iter()
            .filter(|s| s.op == "round_bf16" && s.execution == Execution::Fused)
            .count();
        // attention in f32 stores f32 only
        let in_f32 = profile
            .iter()
            .filter(|s| s.op == "attention" && s.execution != Execution::Bf16)
            .count();
        assert_eq!(idle + in_f32, fused.len());
    }
}

#[test]
fn narrow_layers_are_rounded_if_asked_and_kept_ones_are_not() {
    let check = denoisers().into_iter().find(|c| c.model.ends_with("ddpm-shapes32.onnx")).unwrap();
    let usual = rounded(&check).bf16.unwrap();
    assert_eq!(
        usual.float_layers.iter().filter(|(_, why)| why.contains("channels")).count(),
        2,
        "first and last"
    );
    let all = lowered(&check, Some(QuantSpec { narrow_float: false, ..QuantSpec::new(16) }));
    assert_eq!(all.bf16.as_ref().unwrap().layers.len(), usual.layers.len() + 2);
    // three channels are too few for the kernels for bf16, but they are rounded nevertheless
    let (float, emulated) = (in_f32(2), emulated(2));
    let weights = weights(&all);
    let paths =
        sqnr(&evaluated(&weights, &check, 0, emulated).0, &evaluated(&weights, &check, 0, float).0);
    assert!(paths > 40.0, "{paths:.1} dB");
    let kept = vec![usual.layers[3].name.clone()];
    let kept =
        lowered(&check, Some(QuantSpec { keep_float: kept, ..QuantSpec::new(16) })).bf16.unwrap();
    assert!(kept.float_layers.contains(&(usual.layers[3].name.clone(), "as asked".into())));
}

#[test]
fn weights_are_stored_once_in_half_the_space() {
    for check in denoisers() {
        let [plain, rounded] = [lowered(&check, None), rounded(&check)];
        let products = &rounded.plan.constants;
        let bytes =
            |of: &Lowered| of.weights.parts.iter().map(|(_, t)| t.bytes().len()).sum::<usize>();
        let saved: usize = products
            .iter()
            .filter(|c| c.ty.dtype == DType::BF16)
            .map(|c| c.ty.fixed_shape().unwrap().iter().product::<usize>() * 2)
            .sum();
        assert_eq!(bytes(&plain) - bytes(&rounded), saved, "{}", check.model.display());
        assert!(
            bytes(&rounded) < bytes(&plain) * 6 / 10,
            "{} of {}",
            bytes(&rounded),
            bytes(&plain)
        );
    }
}

/// Casts to bfloat16 and back, and weights of that type.
#[test]
fn exported_roundings_are_casts() {
    let Some(environment) = onnxruntime::environment() else { return };
    for check in denoisers() {
        let float = evaluated(&weights(&lowered(&check, None)), &check, 1, in_f32(2)).0;
        let lowered = rounded(&check);
        let constants: Vec<Tensor> = lowered.weights.parts.iter().map(|p| p.1.clone()).collect();
        let (directory, null, sampler) = (tempfile::tempdir().unwrap(), BTreeMap::new(), sampler());
        for qdq in [Qdq::default(), Qdq::None] {
            let dir = directory.path().join(format!("{qdq:?}"));
            let plan = &lowered.plan;
            let of = export::ExportedLoop {
                plan,
                constants: &constants,
                sampler: &sampler,
                guidance: 1.0,
                rescale: 0.0,
                interval: None,
                fills: &BTreeMap::new(),
                null: &null,
                compensation: None,
            };
            export::write(of, Form { layout: Layout::Split, qdq }, &dir, Overwrite::Refuse)
                .unwrap();
            let (timesteps, weights_file) = (timesteps(), "weights.bin".to_string());
            let options = ExportOptions {
                layout: Layout::Split,
                timesteps,
                weights: weights_file,
                inline_below: 1024,
                qdq,
            };
            let exported = export(plan, &constants, &options).unwrap();
            let graphs = || exported.models.iter().filter_map(|m| m.proto.graph.as_ref());
            let stored = graphs()
                .flat_map(|g| &g.initializer)
                .any(|t| t.data_type == Some(data_type::BFLOAT16));
            assert_eq!(stored, qdq != Qdq::None);
            let mut values: BTreeMap<String, Tensor> = plan
                .inputs
                .iter()
                .map(|input| {
                    let wire = match input.role {
                        InputRole::Sample => Wire::Sample,
                        InputRole::Timestep => Wire::Timestep,
                        InputRole::Condition | InputRole::StepCondition => {
                            Wire::Condition(input.name.clone())
                        }
                    };
                    (wire.to_string(), check.inputs[&input.name].clone())
                })
                .collect();
            values.insert("step".into(), Tensor::from_i64(&[], &[1]));
            for name in ["prelude", "prelude_steps", "full"] {
                let Some(model) = exported.models.iter().find(|m| m.name == name) else { continue };
                let as_port = |given: &Tensor, dtype: DType| {
                    if dtype.is_float() { given.to_float(dtype) } else { given.clone() }
                };
                let feeds = model
                    .inputs
                    .iter()
                    .map(|p| (p.name.clone(), as_port(&values[&p.value.to_string()], p.ty.dtype)));
                let file = dir.join(format!("{name}.onnx"));
                let outputs = onnxruntime::run(environment, &file, &feeds.collect())
                    .expect("types that are passed on");
                values.extend(
                    model.outputs.iter().map(|p| (p.value.to_string(), outputs[&p.name].clone())),
                );
            }
            let theirs =
                values[&Wire::Output(plan.outputs[0].name.clone()).to_string()].to_f32_vec();
            let ours = evaluated(&weights(&lowered), &check, 1, in_f32(2)).0;
            let (found, cost) = (sqnr(&theirs, &ours), sqnr(&ours, &float));
            println!(
                "{}, {qdq:?}: {found:.1} dB, ours {cost:.1} dB to float",
                check.model.display()
            );
            // the bound of the comparison of executions above; without the roundings of
            // activations, their cost remains
            assert!(
                found > cost - 3.0,
                "{}, {qdq:?}: {found:.1} dB, {cost:.1} dB to float",
                check.model.display()
            );
        }
    }
}
