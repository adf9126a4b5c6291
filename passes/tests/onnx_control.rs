//! What import refuses of control flow and of attention, and where conditions go.
//! `onnx_cases.rs` has what it accepts.

mod onnx_build;

use cqc_passes::bind::bind;
use cqc_passes::onnx::{ImportError, ImportOptions, import};
use cqc_proto::onnx::*;
use cqc_proto::plan::InputRole;
use cqc_proto::{DType, Tensor};
use onnx_build::*;

/// The reasons for which a model is refused, or its one error.
fn refusals(m: &ModelProto) -> String {
    match import(m, &ImportOptions::default()).expect_err("it must be refused") {
        ImportError::Unsupported(list) => {
            list.iter().map(|u| format!("{} ({}): {}\n", u.node, u.op, u.reason)).collect()
        }
        other => other.to_string(),
    }
}

fn bool_value(name: &str) -> ValueInfoProto {
    value(name, data_type::BOOL, &[])
}

/// `x: f32[N,4]` and `t: i64[N]` to `y`; `high` is whether t is above 500.
fn timed(nodes: Vec<NodeProto>, more: Vec<TensorProto>) -> ModelProto {
    let mut node_list = vec![
        node("ReduceMax", &["t"], &["top"], vec![int("keepdims", 0)]),
        node("Greater", &["top", "limit"], &["high"], vec![]),
    ];
    node_list.extend(nodes);
    let mut initializer =
        vec![TensorProto { dims: vec![], ..i64s("limit", &[500]) }, f32s("half", &[1], &[0.5])];
    initializer.extend(more);
    let g = GraphProto {
        node: node_list,
        initializer,
        input: vec![
            value("x", data_type::FLOAT, &[At::Called("batch"), At::Is(4)]),
            value("t", data_type::INT64, &[At::Called("batch")]),
        ],
        output: vec![value("y", data_type::FLOAT, &[])],
        ..Default::default()
    };
    model(17, g)
}

fn branch(nodes: Vec<NodeProto>, output: &str) -> GraphProto {
    GraphProto {
        node: nodes,
        output: vec![value(output, data_type::FLOAT, &[])],
        ..Default::default()
    }
}

fn choice(then: GraphProto, otherwise: GraphProto) -> NodeProto {
    let branches = vec![graph("then_branch", then), graph("else_branch", otherwise)];
    node("If", &["high"], &["y"], branches)
}

#[test]
fn a_condition_on_the_time_step_becomes_a_table_with_an_entry_per_evaluation() {
    let m = timed(
        vec![choice(
            branch(vec![node("Relu", &["x"], &["a"], vec![])], "a"),
            branch(vec![node("Mul", &["x", "half"], &["b"], vec![])], "b"),
        )],
        vec![],
    );
    let imported = import(&m, &ImportOptions::default()).unwrap();
    let roles = [InputRole::Sample, InputRole::Timestep];
    let bound = bind(&imported.graph, &roles, Some("N"), &[999.0, 501.0, 500.0, 1.0]).unwrap();
    let [(_, table)] = &bound.tables[..] else { panic!("{} tables", bound.tables.len()) };
    assert_eq!((table.dtype(), table.shape()), (DType::Bool, &[4][..]));
    assert_eq!(table.bytes(), Tensor::from_bool(&[4], &[true, true, false, false]).bytes());
    let ops: Vec<_> = bound.full.graph.nodes().map(|(_, n)| n.op.name()).collect();
    assert_eq!(ops, ["relu", "mul", "where"]);
}

#[test]
fn branches_of_different_shapes_need_a_known_condition() {
    let flat = node("ReduceSum", &["x"], &["b"], vec![int("keepdims", 0)]);
    let m = timed(
        vec![choice(
            branch(vec![node("Relu", &["x"], &["a"], vec![])], "a"),
            branch(vec![flat], "b"),
        )],
        vec![],
    );
    let text = refusals(&m);
    for part in ["y (If)", "f32[N,4]", "one shape", "known at compile time"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A loop over `x` with a body that doubles it; `more` are further nodes of the body, `go` the
/// condition that it gives.
fn doubling(inputs: &[&str], go: &str, more: Vec<NodeProto>, stacked: bool) -> NodeProto {
    let mut nodes = vec![node("Add", &["v", "v"], &["w"], vec![])];
    nodes.extend(more);
    let mut output = vec![bool_value(go), value("w", data_type::FLOAT, &[])];
    if stacked {
        nodes.push(node("Relu", &["w"], &["s"], vec![]));
        output.push(value("s", data_type::FLOAT, &[]));
    }
    let body = GraphProto {
        node: nodes,
        input: vec![
            value("i", data_type::INT64, &[]),
            bool_value("c"),
            value("v", data_type::FLOAT, &[]),
        ],
        output,
        ..Default::default()
    };
    let outputs: &[&str] = if stacked { &["y", "z"] } else { &["y"] };
    node("Loop", inputs, outputs, vec![graph("body", body)])
}

#[test]
fn loops_that_cannot_be_unrolled_are_refused_with_the_reason() {
    let count = |n: i64| TensorProto { dims: vec![], ..i64s("M", &[n]) };
    let cases: [(NodeProto, i64, &[&str]); 5] = [
        (doubling(&["M", "", "x"], "c", vec![], false), 1 << 40, &["y (Loop)", "32768"]),
        (doubling(&["", "", "x"], "c", vec![], false), 0, &["repeated more than", "32768"]),
        (doubling(&["top", "", "x"], "c", vec![], false), 0, &["`M`", "computed at run time"]),
        (doubling(&["", "high", "x"], "c", vec![], false), 0, &["nothing else bounds"]),
        (doubling(&["M", "high", "x"], "c", vec![], true), 3, &["to be stacked"]),
    ];
    for (looped, trips, parts) in cases {
        let text = refusals(&timed(vec![looped], vec![count(trips)]));
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
    }
}

#[test]
fn loops_of_empty_loops_end_at_the_bound_too() {
    let empty = |input: &str, output: &str, inside: Vec<NodeProto>| {
        let [i, c, v] = [("i", data_type::INT64), ("c", data_type::BOOL), ("v", data_type::FLOAT)]
            .map(|(name, ty)| value(&format!("{name}{input}"), ty, &[]));
        let (go, result) = (c.name().to_string(), v.name().to_string());
        let last = inside.last().map_or(result, |n| n.output[0].clone());
        let body = GraphProto {
            node: inside,
            input: vec![i, c, v],
            output: vec![bool_value(&go), value(&last, data_type::FLOAT, &[])],
            ..Default::default()
        };
        node("Loop", &["M", "", input], &[output], vec![graph("body", body)])
    };
    let inner = empty("vx", "r", vec![]);
    let outer = empty("x", "y", vec![inner]);
    let count = TensorProto { dims: vec![], ..i64s("M", &[16000]) };
    let text = refusals(&timed(vec![outer], vec![count]));
    assert!(text.contains("more than 131072 nodes"), "{text}");
}

#[test]
fn sequences_hold_no_sequences() {
    let mut nodes = vec![node("SequenceConstruct", &["x", "x"], &["s0"], vec![])];
    for i in 0..64 {
        let (from, to) = (format!("s{i}"), format!("s{}", i + 1));
        nodes.push(node("SequenceConstruct", &[&from, &from], &[&to], vec![]));
    }
    nodes.push(node("SequenceAt", &["s64", "zero"], &["y"], vec![]));
    let zero = TensorProto { dims: vec![], ..i64s("zero", &[0]) };
    let text = refusals(&timed(nodes, vec![zero]));
    assert!(text.contains("sequence"), "{text}");
}

#[test]
fn operands_of_other_ranks_are_refused() {
    let plain = |shapes: &[&[i64]], n: NodeProto| {
        let input = shapes
            .iter()
            .zip(["q", "k", "v"])
            .map(|(s, name)| {
                value(name, data_type::FLOAT, &s.iter().map(|&d| At::Is(d)).collect::<Vec<_>>())
            })
            .collect();
        let output = vec![value("y", data_type::FLOAT, &[])];
        let mut m = model(23, GraphProto { node: vec![n], input, output, ..Default::default() });
        m.opset_import
            .push(OperatorSetIdProto { domain: Some("com.microsoft".into()), version: Some(1) });
        m
    };
    let contrib = |op: &str, inputs: &[&str], attributes: Vec<AttributeProto>| NodeProto {
        domain: Some("com.microsoft".into()),
        ..node(op, inputs, &["y"], attributes)
    };
    let shapes: [&[i64]; 6] = [&[], &[8], &[2, 8], &[2, 3, 8], &[2, 2, 3, 4], &[2, 3, 2, 2, 4]];
    // every combination of ranks: an error or a graph, never a panic
    for q in shapes {
        for k in shapes {
            for v in shapes {
                let heads = || vec![int("q_num_heads", 2), int("kv_num_heads", 2)];
                let qkv = &["q", "k", "v"];
                let num = || vec![int("num_heads", 2), int("kv_num_heads", 2)];
                for n in [
                    node("Attention", qkv, &["y", "pk", "pv"], heads()),
                    node("Attention", qkv, &["y"], heads()),
                    contrib("MultiHeadAttention", qkv, num()),
                    contrib("GroupQueryAttention", qkv, num()),
                    contrib("Attention", qkv, num()),
                    contrib("SkipLayerNormalization", qkv, vec![]),
                    contrib("NhwcConv", qkv, vec![]),
                    contrib("FusedMatMul", &["q", "k"], vec![int("transA", 1)]),
                    contrib("RotaryEmbedding", &["q", "k", "v", "v"], vec![]),
                    contrib("GroupNorm", qkv, vec![int("groups", 2), int("activation", 1)]),
                    node("MatMul", &["q", "k"], &["y"], vec![]),
                    node("Gemm", qkv, &["y"], vec![]),
                    node("Conv", qkv, &["y"], vec![]),
                    node("ConvInteger", &["q", "k", "", "v"], &["y"], vec![]),
                    node("LayerNormalization", qkv, &["y"], vec![]),
                    node("RotaryEmbedding", qkv, &["y"], vec![]),
                    node("Where", qkv, &["y"], vec![]),
                    node("Resize", &["q", "", "k", "v"], &["y"], vec![]),
                ] {
                    let _ = import(&plain(&[q, k, v], n), &ImportOptions::default());
                }
            }
        }
    }
}

#[test]
fn blocked_layouts_are_refused_with_what_to_do() {
    let conv = NodeProto {
        domain: Some("com.microsoft.nchwc".into()),
        ..node("Conv", &["x", "half"], &["y"], vec![])
    };
    let text = refusals(&timed(vec![conv], vec![]));
    assert!(text.contains("extended"), "{text}");
}
