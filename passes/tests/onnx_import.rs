//! What import makes of small models: sizes, the batch, versions of operators, functions, branches.

mod onnx_build;

use cqc_passes::interpret::interpret;
use cqc_passes::ir::verify;
use cqc_passes::onnx::{ImportError, ImportOptions, Imported, import};
use cqc_proto::onnx::*;
use cqc_proto::{Dim, Op, Tensor};
use onnx_build::*;
use std::collections::BTreeMap;

fn ops(imported: &Imported) -> Vec<String> {
    imported.graph.nodes().map(|(_, n)| n.op.name()).collect()
}

fn imports(m: &ModelProto, options: &ImportOptions) -> Imported {
    let imported = import(m, options).unwrap();
    verify(&imported.graph).unwrap();
    imported
}

fn output_type(imported: &Imported) -> String {
    imported.graph.ty(imported.graph.outputs[0].1).to_string()
}

/// One node from `x`, f32 of these axes, to `y`, with these initializers as the other operands.
fn one(opset: i64, axes: &[At], n: NodeProto, initializer: Vec<TensorProto>) -> ModelProto {
    let input = vec![value("x", data_type::FLOAT, axes)];
    let output = vec![value("y", data_type::FLOAT, &[])];
    model(opset, GraphProto { node: vec![n], initializer, input, output, ..Default::default() })
}

#[test]
fn arithmetic_on_the_batch_disappears() {
    let imported = imports(&small(), &ImportOptions::default());
    assert_eq!(ops(&imported), ["matmul", "relu", "add", "reshape"]);
    assert_eq!(output_type(&imported), "f32[N,2,2]");
    assert_eq!(imported.parameters, 16);
    assert_eq!(imported.node_count, 7);
    let x = Tensor::from_f32(&[3, 4], &(0..12).map(|i| i as f32 - 6.0).collect::<Vec<_>>());
    let y = interpret(&imported.graph, &BTreeMap::from([("x".into(), x)])).unwrap();
    assert_eq!(y[0].1.shape(), [3, 2, 2]);
    assert_eq!(y[0].1.to_f32_vec()[0..8], [-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 2.0]);
}

#[test]
fn the_batch_can_be_fixed_by_its_own_name_by_ours_and_by_shape() {
    let dim = |name: &str| ImportOptions {
        dims: BTreeMap::from([(name.into(), 5)]),
        ..Default::default()
    };
    assert_eq!(output_type(&imports(&small(), &dim("batch"))), "f32[5,2,2]");
    assert_eq!(output_type(&imports(&small(), &dim("N"))), "f32[5,2,2]");
    let shape: Vec<Dim> = vec![5.into(), 4.into()];
    let shapes =
        ImportOptions { shapes: BTreeMap::from([("x".into(), shape)]), ..Default::default() };
    assert_eq!(output_type(&imports(&small(), &shapes)), "f32[5,2,2]");
    let error = import(&small(), &dim("bach")).unwrap_err().to_string();
    assert!(error.contains("--dim bach=5") && error.contains("batch"), "{error}");
}

#[test]
fn open_sizes_behind_the_first_axis_name_the_flag() {
    let m = |axis: At| one(17, &[At::Open, axis], node("Relu", &["x"], &["y"], vec![]), vec![]);
    let ImportError::OpenSizes(open) =
        import(&m(At::Called("height")), &ImportOptions::default()).unwrap_err()
    else {
        panic!()
    };
    assert_eq!((open.len(), open[0].input.as_str(), &open[0].axes[..]), (1, "x", &[1][..]));
    assert_eq!(open[0].symbol.as_deref(), Some("height"));
    assert_eq!(open[0].option(&[]), "--dim height=SIZE");
    assert_eq!(open[0].option(&[Some(64)]), "--dim height=64");
    let error = import(&m(At::Open), &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("--shape x="), "{error}");
    let options =
        ImportOptions { dims: BTreeMap::from([("height".into(), 64)]), ..Default::default() };
    assert_eq!(output_type(&imports(&m(At::Called("height")), &options)), "f32[N,64]");
}

#[test]
fn all_open_sizes_are_named_at_once_and_each_once() {
    use At::{Called, Is, Open};
    let axes: [&[At]; 4] = [
        &[Called("batch"), Is(4), Called("h"), Called("w")],
        &[Called("batch"), Called("2*h"), Called("len")],
        &[Open, Open, Called("len"), Open],
        &[Called("a+b")],
    ];
    let named = |(i, a): (usize, &&[At])| value(&format!("x{i}"), data_type::FLOAT, a);
    let g = GraphProto {
        node: vec![node("Identity", &["x0"], &["y"], vec![])],
        input: axes.iter().enumerate().map(named).collect(),
        output: vec![value("y", data_type::FLOAT, &[])],
        ..Default::default()
    };
    let options = |dims: &[(&str, i64)], shape: Option<Vec<Dim>>| ImportOptions {
        dims: dims.iter().map(|(n, v)| (n.to_string(), *v)).collect(),
        shapes: shape.into_iter().map(|s| ("x2".to_string(), s)).collect(),
        ..Default::default()
    };
    let asked = |options: &ImportOptions| match import(&model(17, g.clone()), options) {
        Err(ImportError::OpenSizes(open)) => {
            open.iter().map(|o| o.option(&[Some(7)])).collect::<Vec<_>>()
        }
        other => panic!("{:?}", other.map(|_| ())),
    };
    // the shape of x2 says what `len` is
    let all = ["--shape x2=NxSIZExSIZExSIZE", "--dim h=7", "--dim w=7", "--dim a=7", "--dim b=7"];
    let first = asked(&options(&[], None));
    assert_eq!(first[0], "--shape x2=Nx7xSIZExSIZE");
    assert_eq!(first[1..], all[1..]);
    let shape = vec![Dim::symbol("N"), 2.into(), 77.into(), 5.into()];
    let rest = asked(&options(&[("h", 8)], Some(shape)));
    assert_eq!(rest, ["--dim w=7", "--dim a=7", "--dim b=7"]);
}

#[test]
fn all_first_axes_are_one_batch_and_expressions_follow_it() {
    let g = GraphProto {
        node: vec![node("Concat", &["x", "z"], &["y"], vec![int("axis", 1)])],
        input: vec![
            value("x", data_type::FLOAT, &[At::Called("batch"), At::Is(2)]),
            value("z", data_type::FLOAT, &[At::Open, At::Called("2*batch")]),
        ],
        output: vec![value("y", data_type::FLOAT, &[])],
        ..Default::default()
    };
    assert_eq!(output_type(&imports(&model(17, g), &ImportOptions::default())), "f32[N,2*N+2]");
}

#[test]
fn softmax_flattens_before_13() {
    let softmax = || node("Softmax", &["x"], &["y"], vec![]);
    let axes = || [At::Is(2), At::Is(3), At::Is(4)];
    assert_eq!(
        ops(&imports(&one(12, &axes(), softmax(), vec![]), &ImportOptions::default())),
        ["reshape", "softmax", "reshape"]
    );
    assert_eq!(
        ops(&imports(&one(13, &axes(), softmax(), vec![]), &ImportOptions::default())),
        ["softmax"]
    );
}

#[test]
fn axes_are_an_attribute_or_an_operand() {
    let old = one(
        12,
        &[At::Is(1), At::Is(3)],
        node("Squeeze", &["x"], &["y"], vec![ints("axes", &[0])]),
        vec![],
    );
    let new = one(
        13,
        &[At::Is(1), At::Is(3)],
        node("Squeeze", &["x", "a"], &["y"], vec![]),
        vec![i64s("a", &[0])],
    );
    for m in [old, new] {
        assert_eq!(output_type(&imports(&m, &ImportOptions::default())), "f32[3]");
    }
}

#[test]
fn group_normalization_has_scales_per_group_before_21() {
    let m = |opset, n: i64| {
        let scale = |name| f32s(name, &[n], &vec![1.0; n as usize]);
        let gn = node("GroupNormalization", &["x", "s", "b"], &["y"], vec![int("num_groups", 2)]);
        one(opset, &[At::Open, At::Is(4), At::Is(3)], gn, vec![scale("s"), scale("b")])
    };
    for (opset, n) in [(18, 2), (21, 4)] {
        assert_eq!(ops(&imports(&m(opset, n), &ImportOptions::default())), ["group_norm"]);
    }
}

#[test]
fn gemm_with_constant_weights_is_a_linear_layer() {
    let gemm = node("Gemm", &["x", "w", "b"], &["y"], vec![int("transB", 1)]);
    let weights =
        || vec![f32s("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), f32s("b", &[2], &[0.5, -0.5])];
    let imported =
        imports(&one(17, &[At::Open, At::Is(3)], gemm, weights()), &ImportOptions::default());
    assert_eq!(ops(&imported), ["linear"]);
    let x = Tensor::from_f32(&[1, 3], &[1.0, 1.0, 1.0]);
    let y = interpret(&imported.graph, &BTreeMap::from([("x".into(), x)])).unwrap();
    assert_eq!(y[0].1.to_f32_vec(), [6.5, 14.5]);
}

#[test]
fn a_slice_of_an_axis_of_two_batches_is_exact() {
    let slice = node("Slice", &["xx", "half", "end", "axis"], &["y"], vec![]);
    let g = GraphProto {
        node: vec![
            node("Concat", &["x", "x"], &["xx"], vec![int("axis", 0)]),
            node("Shape", &["xx"], &["shape"], vec![]),
            node("Gather", &["shape", "axis"], &["size"], vec![]),
            node("Div", &["size", "two"], &["half"], vec![]),
            slice,
        ],
        initializer: vec![i64s("axis", &[0]), i64s("two", &[2]), i64s("end", &[i64::MAX])],
        input: vec![value("x", data_type::FLOAT, &[At::Open, At::Is(4)])],
        output: vec![value("y", data_type::FLOAT, &[])],
        ..Default::default()
    };
    assert_eq!(output_type(&imports(&model(17, g), &ImportOptions::default())), "f32[N,4]");
}

#[test]
fn values_keep_the_models_names() {
    let imported = imports(&small(), &ImportOptions::default());
    let names: Vec<_> = imported
        .graph
        .nodes()
        .map(|(_, n)| imported.graph.value(n.outputs[0]).name.clone())
        .collect();
    assert_eq!(names, ["xw", "r", "s", "y"]);
    assert_eq!(imported.graph.nodes().next().unwrap().1.name, "xw");
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let reference = AttributeProto {
        name: Some("alpha".into()),
        ref_attr_name: Some("slope".into()),
        r#type: Some(attribute_type::FLOAT),
        ..Default::default()
    };
    let slope = |f| AttributeProto {
        name: Some("slope".into()),
        r#type: Some(attribute_type::FLOAT),
        f: Some(f),
        ..Default::default()
    };
    let call = NodeProto {
        domain: Some("mine".into()),
        name: Some("call".into()),
        ..node("Leaky", &["x"], &["y"], vec![slope(0.25)])
    };
    let mut m = one(17, &[At::Open], call, vec![]);
    m.functions.push(FunctionProto {
        name: Some("Leaky".into()),
        domain: Some("mine".into()),
        input: vec!["a".into(), "absent".into()],
        output: vec!["c".into()],
        node: vec![
            node("LeakyRelu", &["a"], &["b"], vec![reference]),
            node("Clip", &["b", "absent"], &["c"], vec![]),
        ],
        attribute_proto: vec![slope(0.5)],
        ..Default::default()
    });
    let imported = imports(&m, &ImportOptions::default());
    let (_, n) = imported.graph.nodes().next().unwrap();
    assert_eq!(n.op, Op::unary(cqc_proto::op::UnaryKind::LeakyRelu { alpha: 0.25 }));
    assert_eq!(n.name, "call/b");
}

#[test]
fn a_branch_with_a_known_condition_is_taken() {
    let branch = |op: &str, y: &str| GraphProto {
        node: vec![node(op, &["x"], &[y], vec![])],
        output: vec![value(y, data_type::FLOAT, &[])],
        ..Default::default()
    };
    let cond = |v| TensorProto {
        name: Some("c".into()),
        data_type: Some(data_type::BOOL),
        int32_data: vec![v],
        ..Default::default()
    };
    for (v, op) in [(1, "relu"), (0, "neg")] {
        let attributes = vec![
            graph("then_branch", branch("Relu", "t")),
            graph("else_branch", branch("Neg", "e")),
        ];
        let m = one(17, &[At::Open], node("If", &["c"], &["y"], attributes), vec![cond(v)]);
        assert_eq!(ops(&imports(&m, &ImportOptions::default())), [op]);
    }
}

#[test]
fn known_inputs_are_used_where_a_static_operand_is_needed() {
    let g = GraphProto {
        node: vec![node("Reshape", &["x", "shape"], &["y"], vec![])],
        input: vec![
            value("x", data_type::FLOAT, &[At::Open, At::Is(6)]),
            value("shape", data_type::INT64, &[At::Is(3)]),
        ],
        output: vec![value("y", data_type::FLOAT, &[])],
        ..Default::default()
    };
    let m = model(17, g);
    let error = import(&m, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`shape`") && error.contains("compile time"), "{error}");
    let known_inputs = BTreeMap::from([("shape".into(), Tensor::from_i64(&[3], &[-1, 2, 3]))]);
    let imported = imports(&m, &ImportOptions { known_inputs, ..Default::default() });
    assert_eq!(output_type(&imported), "f32[N,2,3]");
    assert!(imported.consumed_inputs.contains("shape"));
}

#[test]
fn nodes_out_of_order_are_sorted() {
    let mut m = small();
    m.graph.as_mut().unwrap().node.reverse();
    assert_eq!(output_type(&imports(&m, &ImportOptions::default())), "f32[N,2,2]");
}

#[test]
fn a_range_over_the_batch_is_a_running_sum() {
    let g = GraphProto {
        node: vec![
            node("Shape", &["x"], &["shape"], vec![]),
            node("Gather", &["shape", "zero"], &["n"], vec![]),
            node("Range", &["zero", "n", "one"], &["y"], vec![]),
        ],
        initializer: vec![
            TensorProto { dims: vec![], ..i64s("zero", &[0]) },
            TensorProto { dims: vec![], ..i64s("one", &[1]) },
        ],
        input: vec![value("x", data_type::FLOAT, &[At::Open])],
        output: vec![value("y", data_type::INT64, &[])],
        ..Default::default()
    };
    let imported = imports(&model(17, g), &ImportOptions::default());
    assert_eq!(output_type(&imported), "i64[N]");
    let y = interpret(
        &imported.graph,
        &BTreeMap::from([("x".into(), Tensor::from_f32(&[3], &[0.0; 3]))]),
    )
    .unwrap();
    assert_eq!(y[0].1.to_i64_vec(), [0, 1, 2]);
}

#[test]
fn weights_are_not_copied() {
    let file = small_file();
    let imported = cqc_passes::onnx::import_bytes(file.clone(), &ImportOptions::default()).unwrap();
    let weights = imported
        .graph
        .values()
        .find_map(|(id, v)| (v.name == "w").then(|| imported.graph.tensor(id)))
        .flatten();
    let inside = file.as_ptr_range();
    assert!(inside.contains(&weights.unwrap().bytes().as_ptr()));
}

fn small_file() -> bytes::Bytes {
    bytes::Bytes::from(onnx_build::bytes(&small()))
}

#[test]
fn a_size_called_as_the_batch_but_elsewhere_is_not_the_batch() {
    let mut m = one(17, &[At::Called("batch"), At::Called("N"), At::Is(4)], relu(), vec![]);
    let dims = |list: &[(&str, i64)]| ImportOptions {
        dims: list.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        ..Default::default()
    };
    assert_eq!(output_type(&imports(&m, &dims(&[("N", 7)]))), "f32[N,7,4]");
    assert_eq!(output_type(&imports(&m, &dims(&[("N", 7), ("batch", 2)]))), "f32[2,7,4]");
    let error = import(&m, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("--dim N=SIZE"), "{error}");
    m = one(17, &[At::Called("N"), At::Is(4)], relu(), vec![]);
    assert_eq!(output_type(&imports(&m, &dims(&[("N", 7)]))), "f32[7,4]");
}

/// A model of `x` and `y`, which it hands on.
fn two_inputs(x: &[At], y: &[At]) -> ModelProto {
    let mut m = one(17, x, relu(), vec![]);
    let graph = m.graph.as_mut().unwrap();
    graph.input.push(value("more", data_type::FLOAT, y));
    graph.node.push(node("Relu", &["more"], &["z"], vec![]));
    graph.output.push(value("z", data_type::FLOAT, &[]));
    m
}

#[test]
fn a_size_that_is_also_another_axis_is_the_batch_only_if_its_name_says_so() {
    let dims = |list: &[(&str, i64)]| ImportOptions {
        dims: list.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        ..Default::default()
    };
    // a table of 77 rows, and a mask over them
    let m = two_inputs(&[At::Called("rows"), At::Is(4)], &[At::Called("b"), At::Called("rows")]);
    let error = import(&m, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("--dim rows=SIZE") && !error.contains("--dim b="), "{error}");
    let g = imports(&m, &dims(&[("rows", 77)]));
    let types: Vec<String> = g.graph.inputs.iter().map(|&v| g.graph.ty(v).to_string()).collect();
    assert_eq!(types, ["f32[77,4]", "f32[N,77]"]);
    let g = imports(&m, &dims(&[("rows", 77), ("b", 2)]));
    let types: Vec<String> = g.graph.inputs.iter().map(|&v| g.graph.ty(v).to_string()).collect();
    assert_eq!(types, ["f32[77,4]", "f32[2,77]"]);
    // sequence first
    let x = [At::Called("batch_size"), At::Is(4)];
    let m = two_inputs(&x, &[At::Is(7), At::Called("batch_size")]);
    let g = imports(&m, &ImportOptions::default());
    let types: Vec<String> = g.graph.inputs.iter().map(|&v| g.graph.ty(v).to_string()).collect();
    assert_eq!(types, ["f32[N,4]", "f32[7,N]"]);
}

fn relu() -> NodeProto {
    node("Relu", &["x"], &["y"], vec![])
}

#[test]
fn tensors_without_elements_add_nothing() {
    let axes = [At::Called("batch"), At::Is(4)];
    // an empty slice, an empty constant and one of another rank
    let mut m = one(17, &axes, relu(), vec![f32s("e", &[0], &[]), f32s("f", &[0, 4], &[])]);
    let graph = m.graph.as_mut().unwrap();
    graph.initializer.extend([i64s("start", &[2]), i64s("axis", &[1])]);
    graph.node = vec![
        node("Slice", &["x", "start", "start", "axis"], &["s"], vec![]),
        node("Concat", &["s", "x", "e"], &["c"], vec![int("axis", 1)]),
        node("ReduceSum", &["f"], &["r"], vec![int("keepdims", 0)]),
        node("Add", &["c", "r"], &["y"], vec![]),
    ];
    let imported = imports(&m, &ImportOptions::default());
    assert_eq!(output_type(&imported), "f32[N,4]");
    let x = Tensor::from_f32(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let y = interpret(&imported.graph, &BTreeMap::from([("x".into(), x)])).unwrap();
    assert_eq!(y[0].1.to_f32_vec(), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn empty_operands_stand_for_absent_ones() {
    let axes = [At::Called("batch"), At::Is(1), At::Is(4)];
    let none = || i64s("none", &[]);
    let ends = || vec![i64s("one", &[1]), i64s("two", &[2]), none()];
    for (n, constants, shape) in [
        (node("Squeeze", &["x", "none"], &["y"], vec![]), vec![none()], "f32[N,4]"),
        (node("Unsqueeze", &["x", "none"], &["y"], vec![]), vec![none()], "f32[N,1,4]"),
        (node("Slice", &["x", "one", "two", "none", "none"], &["y"], vec![]), ends(), ""),
        (node("ReduceMax", &["x", "none"], &["y"], vec![]), vec![none()], "f32[1,1,1]"),
    ] {
        let op = n.op_type().to_string();
        let found = import(&one(18, &axes, n, constants), &ImportOptions::default());
        if !shape.is_empty() {
            assert_eq!(output_type(&found.unwrap()), shape, "{op}");
        }
    }
}

#[test]
fn attributes_of_old_versions_are_read() {
    let axes = [At::Is(2), At::Is(3)];
    let float = |name: &str, f: f32| AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_type::FLOAT),
        f: Some(f),
        ..Default::default()
    };
    let run = |n: NodeProto, opset: i64| {
        let imported = imports(&one(opset, &axes, n, vec![]), &ImportOptions::default());
        let x = Tensor::from_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        interpret(&imported.graph, &BTreeMap::from([("x".into(), x)])).unwrap()[0].1.to_f32_vec()
    };
    let slice = vec![ints("starts", &[1]), ints("ends", &[3]), ints("axes", &[1])];
    assert_eq!(run(node("Slice", &["x"], &["y"], slice), 9), [2.0, 3.0, 5.0, 6.0]);
    let clip = vec![float("min", 2.0), float("max", 4.0)];
    assert_eq!(run(node("Clip", &["x"], &["y"], clip), 10), [2.0, 2.0, 3.0, 4.0, 4.0, 4.0]);
    let pad = vec![ints("pads", &[0, 0, 0, 1]), float("value", 9.0)];
    let padded = [1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 9.0];
    assert_eq!(run(node("Pad", &["x"], &["y"], pad), 10), padded);
    let top = vec![int("k", 1), int("axis", 1)];
    assert_eq!(run(node("TopK", &["x"], &["y", "i"], top), 9), [3.0, 6.0]);
}
