//! Models that fuzzing found (`fuzz/`, docs/fuzzing.md), built anew as small as they go.

mod onnx_build;

use cqc_passes::bind::{BindError, bind, bind_within};
use cqc_passes::ir::parse;
use cqc_passes::onnx::limits::Budget;
use cqc_passes::onnx::{ImportError, ImportOptions, import};
use cqc_passes::rewrite;
use cqc_proto::onnx::*;
use cqc_proto::plan::InputRole;
use onnx_build::{At, f32s, graph, i64s, int, model, node, value};
use std::time::{Duration, Instant};

/// A model of one node that reads `x` and initializers.
fn one(node: NodeProto, initializer: Vec<TensorProto>, x: &[At]) -> ModelProto {
    let output = node.output.iter().map(|name| value(name, data_type::FLOAT, &[])).collect();
    let input = vec![value("x", data_type::FLOAT, x)];
    model(21, GraphProto { node: vec![node], initializer, input, output, ..Default::default() })
}

#[test]
fn cropping_to_the_least_whole_number_is_refused() {
    let crop = node("CenterCropPad", &["x", "s"], &["y"], vec![]);
    let m = one(crop, vec![i64s("s", &[i64::MIN, 2])], &[At::Is(3), At::Is(2)]);
    assert!(matches!(import(&m, &ImportOptions::default()), Err(ImportError::Unsupported(_))));
}

#[test]
fn a_scan_of_too_many_rows_is_refused_before_it_runs() {
    let body = GraphProto {
        name: Some("body".into()),
        node: vec![node("Add", &["a", "w"], &["b"], vec![])],
        initializer: vec![f32s("w", &[1], &[1.0])],
        input: vec![value("a", data_type::FLOAT, &[At::Is(2)])],
        output: vec![value("b", data_type::FLOAT, &[])],
        ..Default::default()
    };
    let scan = node("Scan", &["x"], &["y"], vec![int("num_scan_inputs", 1), graph("body", body)]);
    let m = one(scan, vec![], &[At::Is(1 << 32), At::Is(2)]);
    let start = Instant::now();
    for _ in 0..100 {
        let Err(ImportError::Unsupported(all)) = import(&m, &ImportOptions::default()) else {
            panic!("2^32 rows are unrolled")
        };
        assert!(all[0].to_string().contains("unrolled"), "{}", all[0]);
    }
    // each of them unrolled 2^14 rows before
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_time_step_of_two_numbers_per_sample_is_refused() {
    let text = "graph(%x: f32[N,2], %t: f32[2*N]) {
      %r = reshape(%t) shape=[\"N\",2]
      %s = sin(%r)
      %y = add(%x, %s)
      return %y
    }";
    let roles = [InputRole::Sample, InputRole::Timestep];
    let error = bind(&parse(text).unwrap(), &roles, Some("N"), &[999.0, 1.0]).unwrap_err();
    assert!(matches!(&error, BindError::Timestep { input, .. } if input == "t"), "{error}");
}

/// Outer products of a time step of 64 numbers: 2^24 of them, eight times over.
#[test]
fn large_tensors_of_the_time_step_alone_are_refused_before_they_are_computed() {
    let mut text = String::from(
        "graph(%x: f32[1,2], %t: f32[64]) {
           %a = reshape(%t) shape=[64,1]
           %b = mul(%a, %t)
           %c = reshape(%b) shape=[4096,1]
           %d = reshape(%b) shape=[1,4096]
           %p0 = mul(%c, %d)\n",
    );
    for i in 0..7 {
        text += &format!("%p{} = add(%p{i}, %p{i})\n", i + 1);
    }
    text += "%s = reduce_mean(%p7) axes=[0,1] keep=false
             %y = add(%x, %s)
             return %y\n}";
    let roles = [InputRole::Sample, InputRole::Timestep];
    let graph = parse(&text).unwrap();
    let budget = Budget { fold_bytes: 100 << 20, ..Budget::default() };
    let start = Instant::now();
    let error = bind_within(&graph, &roles, None, &[999.0, 1.0], &budget).unwrap_err();
    assert!(matches!(&error, BindError::Work { input, .. } if input == "t"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn a_number_is_not_repeated_for_any_number_of_channels() {
    let text = "graph(%x: f32[1,270582939648]) {
      %two = const f32[] 2
      %n = layer_norm(%x) eps=1e-5
      %y = mul(%n, %two)
      return %y
    }";
    let mut graph = parse(text).unwrap();
    rewrite::run(&mut graph, rewrite::PIPELINE, |_, _| {}).unwrap();
    assert!(graph.to_string().contains("mul("), "{graph}");
}

/// Every one of them is small enough to be folded, and all together would take 16 GiB.
#[test]
fn folding_many_constants_stays_within_a_budget() {
    let mut text = String::from("graph(%x: f32[1]) {\n  %c0 = const f32[262144] 1\n");
    (0..16384).for_each(|i| text += &format!("  %c{} = add(%c0, %c{i})\n", i + 1));
    let sums = (1..=16384).map(|i| format!("%c{i}")).collect::<Vec<_>>().join(", ");
    text += &format!("  return {sums}\n}}");
    let mut graph = parse(&text).unwrap();
    let fold = rewrite::PIPELINE.iter().find(|p| p.name == "fold-constants").unwrap();
    let report = rewrite::run(&mut graph, &[*fold], |_, _| {}).unwrap();
    // 1 GiB and 16 times the one constant, three of 1 MiB each
    let folded = report.replaced[0].1;
    assert!((300..=400).contains(&folded), "{folded} folded");
    assert!(report.refusals.iter().any(|r| r.reason.contains("too much memory")));
}
