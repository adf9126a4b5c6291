//! Exported quantized loops in ONNX Runtime, compared with this engine's execution of the same
//! roundings.
//!
//! Two free executions drift apart: a sum in another order moves an operand across a border between
//! two codes, which changes the operands of the next layer, and after a few layers the difference
//! is as large as the effect of rounding itself. So layers are compared one by one on the same
//! operands, evaluations on the same sample and cache, and free loops by the distance that rounding
//! has moved their ends. (Beside it the test prints how far this engine drifts if the last bits of
//! its noise change.)
//!
//! Needs ONNX Runtime as `onnxruntime.rs` does.

mod common;
#[path = "common/exported.rs"]
mod exported;
#[path = "common/onnxruntime.rs"]
mod onnxruntime;
#[path = "common/quantized.rs"]
mod quantized;
#[path = "common/rewired.rs"]
mod rewired;

use cachequant::export::Form;
use cachequant::io::{Overwrite, read_npy, write_npy};
use common::{run, sqnr};
use cqc_passes::onnx::export::{ExportedModel, Layout, Qdq, Scales};
use cqc_proto::onnx::{ModelProto, data_type};
use cqc_proto::plan::{Program, ProgramKind};
use cqc_proto::{DType, Op, Tensor};
use cqc_runtime::denoise::{Denoiser, Trajectory};
use exported::{Runtime, Values, exported};
use quantized::{Case, case};
use rewired::{arranged, columns, cut, input_name, largest_difference, tapped};
use std::collections::BTreeMap;

const CONSTANT: Qdq = Qdq::Ort(Scales::Constant);

fn unet(bits: u8, interval: usize) -> Case {
    case("ddpm-shapes32", BTreeMap::new(), bits, interval, false)
}

/// A U-Net with conditions, transformer blocks and preludes.
fn conditional() -> Case {
    let recorded =
        common::models().into_iter().find(|c| c.model.ends_with("sdxl-ts17.onnx")).unwrap();
    let conditions = recorded
        .inputs
        .into_iter()
        .filter(|(name, _)| !["sample", "timestep"].contains(&name.as_str()));
    case("sdxl-ts17", conditions.collect(), 8, 3, true)
}

/// An evaluation of this engine: the results of its steps by the names of their values.
fn watched(ours: &mut Denoiser, kind: ProgramKind, trajectory: &mut Trajectory) -> Values {
    let program = ours.engine().plan().program(kind).clone();
    let mut seen = Values::new();
    let mut watch = |step: &cqc_runtime::engine::Watched| {
        if step.done {
            let value = program.steps[step.step].outputs[0];
            seen.insert(program.values[value].name.clone(), step.result());
        }
    };
    ours.evaluate_watched(kind, trajectory, Some(&mut watch)).unwrap();
    seen
}

/// A rounded segment in the exported model: its tensor, this engine's value, and the first position
/// and the size of the segment in it.
struct Rounded {
    tensor: String,
    value: String,
    segment: Option<(usize, usize)>,
}

fn rounded(model: &ModelProto, program: &Program) -> Vec<Rounded> {
    let mut nodes = BTreeMap::new();
    for step in &program.steps {
        let Op::FakeQuant { segments, .. } = &step.op else { continue };
        let value = &program.values[step.outputs[0]].name;
        nodes.insert(format!("{}/DequantizeLinear", step.name), (value.clone(), None));
        let mut start = 0;
        for (i, &size) in segments.iter().enumerate() {
            nodes.insert(
                format!("{}.{i}/DequantizeLinear", step.name),
                (value.clone(), Some((start, size))),
            );
            start += size;
        }
    }
    let written = model.graph.iter().flat_map(|g| &g.node);
    let found = written.filter_map(|n| {
        let (value, segment) = nodes.get(n.name())?.clone();
        Some(Rounded { tensor: n.output[0].clone(), value, segment })
    });
    found.collect()
}

/// The distance between two codes: the smallest one between different values.
fn step_of(values: &Tensor) -> f32 {
    let mut list = values.to_f32_vec();
    list.sort_by(f32::total_cmp);
    list.windows(2).map(|w| w[1] - w[0]).filter(|d| *d > 1e-9).fold(f32::INFINITY, f32::min)
}

/// Compares every layer of an evaluation on this engine's operands: rounded inputs and results
/// differ by one step at most.
fn check_layers(case: &Case, qdq: Qdq, kind: ProgramKind) {
    let Some(environment) = onnxruntime::environment() else { return };
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("exported");
    let exported = exported(case, Form { layout: Layout::Split, qdq }, &dir);
    let mut ours = case.open(qdq);
    let mut trajectory = ours.begin(&case.request, 0).unwrap();
    let mut runtime = Runtime::new(&exported, &dir, case, false).unwrap();
    let e = if kind == ProgramKind::Full {
        0
    } else {
        ours.evaluate_as(ProgramKind::Full, &mut trajectory).unwrap();
        let output = ours.output().to_vec();
        ours.advance(&mut trajectory, &output);
        runtime.take_cache(&trajectory);
        1
    };
    runtime.prepare(case, e, trajectory.x());
    let seen = watched(&mut ours, kind, &mut trajectory);

    let name = kind.to_string();
    let model = exported.models.iter().find(|m| m.name == name).unwrap();
    let rounded = rounded(&model.proto, case.plan().program(kind));
    let nodes = model.proto.graph.iter().flat_map(|g| &g.node);
    let results: Vec<String> =
        nodes.flat_map(|n| n.output.clone()).filter(|t| seen.contains_key(t)).collect();
    let taps: Vec<String> =
        results.iter().chain(rounded.iter().map(|r| &r.tensor)).cloned().collect();
    let mut feeds: Values = model
        .inputs
        .iter()
        .map(|p| (p.name.clone(), runtime.values[&p.value.to_string()].clone()))
        .collect();
    let rewired = |proto: ModelProto, feeds: &Values| {
        let path = dir.join("rewired.onnx");
        std::fs::write(&path, ExportedModel { proto, ..model.clone() }.encode()).unwrap();
        onnxruntime::run_session(&mut onnxruntime::session(environment, &path, false), feeds)
            .unwrap()
    };
    let alone = rewired(tapped(&model.proto, &taps), &feeds);
    let given: BTreeMap<String, Tensor> =
        results.iter().filter_map(|t| Some((t.clone(), arranged(&seen[t], &alone[t])?))).collect();
    feeds.extend(given.iter().map(|(t, ours)| (input_name(t), ours.clone())));
    let names: Vec<String> = given.keys().cloned().collect();
    let found = rewired(cut(&model.proto, &taps, &names), &feeds);

    let label = format!("{}, {qdq:?}, {kind}", case.name);
    let mut worst = [0f32; 2];
    for r in &rounded {
        let whole = &seen[&r.value];
        let ours = r.segment.map_or(whole.clone(), |(start, size)| columns(whole, start, size));
        let ours =
            arranged(&ours, &alone[&r.tensor]).unwrap_or_else(|| panic!("{label}: {}", r.tensor));
        worst[0] = worst[0].max(largest_difference(&found[&r.tensor], &ours) / step_of(&ours));
    }
    for (tensor, ours) in &given {
        let list = ours.to_f32_vec();
        let (low, high) = list.iter().fold((0f32, 0f32), |(l, h), &x| (l.min(x), h.max(x)));
        let difference =
            largest_difference(&found[tensor], ours) / ((high - low) / 255.0).max(1e-9);
        assert!(difference < 1.0, "{label}: {tensor}: {difference} steps of 8 bits");
        worst[1] = worst[1].max(difference);
    }
    println!(
        "{label}: {} roundings differ by {:.3} steps at most, {} results by {:.4}",
        rounded.len(),
        worst[0],
        given.len(),
        worst[1]
    );
    // x · (1 / scale) and x / scale may round to neighbours; 0.01: code times scale in f32
    assert!(worst[0] < 1.01, "{label}: {} steps", worst[0]);
    let layers = case.plan().program(kind).steps.iter();
    let fakes = layers.filter(|s| matches!(s.op, Op::FakeQuant { .. })).count();
    assert!(
        rounded.len() >= fakes && given.len() > fakes,
        "{label}: {} of {fakes} roundings are found",
        rounded.len()
    );
}

#[test]
fn every_layer_of_a_unet_agrees_to_one_step() {
    let case = unet(8, 3);
    for qdq in [Qdq::default(), CONSTANT, Qdq::Trt] {
        for kind in [ProgramKind::Full, ProgramKind::Cached] {
            check_layers(&case, qdq, kind);
        }
    }
    check_layers(&unet(4, 3), Qdq::default(), ProgramKind::Full);
    check_layers(&unet(8, 1), Qdq::default(), ProgramKind::Full);
}

#[test]
fn every_layer_with_conditions_agrees_to_one_step() {
    let case = conditional();
    for kind in [ProgramKind::Full, ProgramKind::Cached] {
        check_layers(&case, Qdq::default(), kind);
    }
}

/// Compares evaluations on the same sample and cache: the SQNR of their outputs, and of the samples
/// at the end.
fn check_evaluations(case: &Case, qdq: Qdq) {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("exported");
    let exported = exported(case, Form { layout: Layout::Split, qdq }, &dir);
    let Some(mut runtime) = Runtime::new(&exported, &dir, case, false) else { return };
    let mut ours = case.open(qdq);
    let mut trajectory = ours.begin(&case.request, 0).unwrap();
    let (mut outputs, mut end) = (vec![], 0.0);
    for e in 0..case.sampler().evaluations().len() {
        runtime.take_cache(&trajectory);
        let output = runtime.evaluate(case, e, trajectory.x());
        let kind = case.plan().program_at(e);
        ours.evaluate_as(kind, &mut trajectory).unwrap();
        let mut theirs = trajectory.clone();
        ours.advance(&mut theirs, &output);
        let own = ours.output().to_vec();
        ours.advance(&mut trajectory, &own);
        outputs.push(sqnr(&output, &own));
        end = sqnr(theirs.x(), trajectory.x());
    }
    println!("{}, {qdq:?}: outputs {outputs:.1?} dB, last samples {end:.1} dB", case.name);
    assert!(end > 50.0, "{}, {qdq:?}: {end} dB", case.name);
    assert!(outputs.iter().all(|&o| o > 25.0), "{}, {qdq:?}: {outputs:?} dB", case.name);
}

#[test]
fn evaluations_on_the_same_sample_end_in_the_same_latent() {
    for case in [unet(8, 3), unet(4, 3), unet(8, 1), conditional()] {
        [Qdq::default(), CONSTANT].into_iter().for_each(|qdq| check_evaluations(&case, qdq));
    }
}

#[test]
fn free_loops_drift_no_further_than_rounding_leads() {
    for (case, layouts) in
        [(unet(8, 3), [Layout::Split, Layout::If]), (unet(8, 1), [Layout::Split, Layout::If])]
    {
        let float = run(&mut case.open(Qdq::None), &case.request);
        for (qdq, layout) in
            [Qdq::default(), CONSTANT, Qdq::None].into_iter().flat_map(|q| layouts.map(|l| (q, l)))
        {
            let directory = tempfile::tempdir().unwrap();
            let dir = directory.path().join("exported");
            let exported = exported(&case, Form { layout, qdq }, &dir);
            let mut ours = case.open(qdq);
            let own = run(&mut ours, &case.request);
            let nudged = sqnr(&run(&mut ours, &case.nudged()), &own);
            // ONNX Runtime's option against overflow has no effect inside an If
            for optimize in [false, true].into_iter().filter(|o| !o || layout == Layout::Split) {
                let Some(mut runtime) = Runtime::new(&exported, &dir, &case, optimize) else {
                    return;
                };
                let found = sqnr(&runtime.sample(&case, &mut ours), &own);
                let label = format!("{}, {qdq:?}, {layout:?}, optimized: {optimize}", case.name);
                println!("{label}: {found:.1} dB; ours from itself, nudged: {nudged:.1} dB");
                // 6: both are one draw from the same distribution; 80: nothing is rounded
                let least = if qdq == Qdq::None { 80.0 } else { sqnr(&own, &float) - 6.0 };
                assert!(found > least, "{label}: {found} dB, at least {least} dB");
            }
        }
    }
}

#[test]
fn the_script_compensates_and_samples_quantized_loops() {
    let Some(python) = std::env::var_os("CQC_ORACLE_PYTHON") else {
        return println!("skipped: CQC_ORACLE_PYTHON is not set");
    };
    let case = unet(8, 3);
    assert!(case.artifact.compensation().is_some());
    for (qdq, layout, least) in [
        (Qdq::None, Layout::Split, 60.0),
        (Qdq::default(), Layout::Split, 25.0),
        (Qdq::default(), Layout::If, 25.0),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("exported");
        exported(&case, Form { layout, qdq }, &dir);
        let [noise, samples] = ["noise.npy", "samples.npy"].map(|f| directory.path().join(f));
        let request = case.nudged();
        write_npy(&noise, request.noise.as_ref().unwrap(), Overwrite::Refuse).unwrap();
        let mut command = std::process::Command::new(&python);
        assert!(
            command.arg(dir.join("sample.py")).args([&noise, &samples]).status().unwrap().success()
        );
        let own = run(&mut case.open(qdq), &request);
        let found = sqnr(&read_npy(&samples).unwrap().to_f32_vec(), &own);
        println!("{qdq:?}, {layout:?}: {found:.1} dB");
        assert!(found > least, "{qdq:?}, {layout:?}: {found} dB");
    }
}

/// The form that ONNX Runtime and TensorRT look for: both operands of every product come directly
/// from a DequantizeLinear, that of the input after a QuantizeLinear, and scales are constants
/// where that was asked for.
#[test]
fn rounding_stands_directly_in_front_of_products() {
    let case = case("ddpm-shapes32", BTreeMap::new(), 4, 1, true);
    for (qdq, code) in [(Qdq::default(), DType::U8), (CONSTANT, DType::U8), (Qdq::Trt, DType::I8)] {
        let directory = tempfile::tempdir().unwrap();
        let exported = exported(
            &case,
            Form { layout: Layout::Split, qdq },
            &directory.path().join("exported"),
        );
        let graph = exported.models[0].proto.graph.as_ref().unwrap();
        let producer = |t: &String| graph.node.iter().find(|n| n.output.contains(t));
        let constant = |t: &String| graph.initializer.iter().find(|i| i.name.as_ref() == Some(t));
        let products = graph.node.iter().filter(|n| ["Conv", "MatMul"].contains(&n.op_type()));
        let (mut nibbles, mut count) = (0, 0);
        for product in products {
            for operand in &product.input[..2] {
                let dequantize =
                    producer(operand).unwrap_or_else(|| panic!("{}: {operand}", product.name()));
                assert_eq!(dequantize.op_type(), "DequantizeLinear", "{}", product.name());
                match constant(&dequantize.input[0]) {
                    Some(codes) => nibbles += usize::from(codes.data_type == Some(data_type::INT4)),
                    None => {
                        assert_eq!(
                            producer(&dequantize.input[0]).unwrap().op_type(),
                            "QuantizeLinear"
                        );
                        assert!(
                            qdq == Qdq::default() || constant(&dequantize.input[1]).is_some(),
                            "{}",
                            product.name()
                        );
                        let zero = constant(&dequantize.input[2]).map(|z| z.data_type.unwrap());
                        let expected =
                            if code == DType::U8 { data_type::UINT8 } else { data_type::INT8 };
                        assert!(zero.is_none_or(|z| z == expected), "{}", product.name());
                    }
                }
            }
            count += 1;
        }
        assert!(count > 70, "{count} products");
        // the first and the last layer have 8 bits; TensorRT has 4 in blocks only
        assert_eq!(nibbles > 70, qdq != Qdq::Trt, "{nibbles} of {count}");
    }
}
