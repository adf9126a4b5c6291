//! Broken models: each gets an error that names the place.

mod onnx_build;

use cqc_passes::onnx::{ImportError, ImportOptions, import, import_bytes, load};
use cqc_proto::onnx::*;
use onnx_build::*;
use std::path::Path;

/// The error of a model; it must hold all of `parts`.
fn fails(m: &ModelProto, parts: &[&str]) {
    let error = import(m, &ImportOptions::default()).expect_err("the model is broken").to_string();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

fn edited(edit: impl FnOnce(&mut GraphProto)) -> ModelProto {
    let mut m = small();
    edit(m.graph.as_mut().unwrap());
    m
}

#[test]
fn the_model_that_the_others_break_is_fine() {
    let imported = import(&small(), &ImportOptions::default()).unwrap();
    let (_, y) = &imported.graph.outputs[0];
    assert_eq!(imported.graph.ty(*y).to_string(), "f32[N,2,2]");
}

#[test]
fn bytes_that_are_no_model() {
    let fails = |bytes: &[u8], part: &str| {
        let error = import_bytes(bytes.to_vec(), &ImportOptions::default())
            .expect_err("no model")
            .to_string();
        assert!(error.contains(part), "`{part}` is not in: {error}");
    };
    fails(b"", "empty");
    fails(b"import torch\nprint('hello')\n", "text file");
    fails(&[0xff; 64], "damaged");
    let whole = bytes(&small());
    fails(&whole[..whole.len() / 2], "damaged");
    fails(&[0u8; 40], "damaged");
}

#[test]
fn a_flood_of_empty_messages_is_refused_before_decoding() {
    // field 7 (graph) of 12 MiB holding 6 million empty nodes
    let nodes = [0x0a, 0x00].repeat(6 << 20);
    let mut file = vec![0x3a];
    prost::encoding::encode_varint(nodes.len() as u64, &mut file);
    file.extend(nodes);
    let error = import_bytes(file, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("more than"), "{error}");
}

#[test]
fn deep_nesting_is_an_error() {
    let mut inner = GraphProto::default();
    for _ in 0..200 {
        inner = GraphProto {
            node: vec![node("If", &["c"], &["y"], vec![graph("then_branch", inner)])],
            ..Default::default()
        };
    }
    let m = model(17, inner);
    let error = import_bytes(bytes(&m), &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("nested"), "{error}");
}

#[test]
fn graphs_that_contradict_themselves() {
    fails(
        &edited(|g| g.node[0].input[1] = "nowhere".into()),
        &["MatMul", "nowhere", "nothing defines"],
    );
    fails(&edited(|g| g.node[0].input[0] = "s".into()), &["cycle"]);
    fails(&edited(|g| g.node[1].output[0] = "xw".into()), &["Relu", "`xw` is already defined"]);
    fails(&edited(|g| g.node[1].output[0] = "w".into()), &["Relu", "`w` is already defined"]);
    fails(&edited(|g| g.initializer.push(i64s("zero", &[1]))), &["tensor `zero`", "twice"]);
    fails(&edited(|g| g.input.push(g.input[0].clone())), &["input `x`", "twice"]);
    fails(&edited(|g| g.output.clear()), &["no outputs"]);
    fails(
        &edited(|g| g.output[0].name = Some("gone".into())),
        &["output `gone`", "nothing defines"],
    );
    fails(&edited(|g| g.output.push(g.output[0].clone())), &["output `y`", "twice"]);
}

#[test]
fn tensors_of_the_wrong_size() {
    fails(
        &edited(|g| g.initializer[0].raw_data = Some(vec![0; 63].into())),
        &["tensor `w`", "64 bytes, got 63"],
    );
    fails(&edited(|g| g.initializer[0].dims = vec![4, -4]), &["tensor `w`", "-4"]);
    fails(&edited(|g| g.initializer[0].dims = vec![i64::MAX, 4]), &["tensor `w`", "too large"]);
    fails(&edited(|g| g.initializer[0].dims = vec![1 << 39, 4]), &["tensor `w`", "too large"]);
    fails(&edited(|g| g.initializer[0].dims = vec![1; 70]), &["tensor `w`", "70 axes"]);
    fails(&edited(|g| g.initializer[0].data_type = None), &["tensor `w`", "no element type"]);
    fails(&edited(|g| g.initializer[0].data_type = Some(22)), &["`w`", "int4"]);
    fails(&edited(|g| g.initializer[0].data_type = Some(99)), &["`w`", "number 99"]);
    fails(&edited(|g| g.initializer[1].int64_data.push(0)), &["tensor `zero`", "8 bytes, got 16"]);
}

#[test]
fn names_and_attributes() {
    fails(&edited(|g| g.node[0].name = Some("n".repeat(5000))), &["5000 bytes"]);
    fails(&edited(|g| g.node[0].name = Some("a\0b".into())), &["NUL"]);
    fails(&edited(|g| g.node[5].attribute.clear()), &["Concat", "`axis` is missing"]);
    fails(&edited(|g| g.node[5].attribute[0] = int("axis", 7)), &["Concat", "axis 7"]);
    fails(
        &edited(|g| g.node[5].attribute[0] = ints("axis", &[0])),
        &["Concat", "`axis` is not an integer"],
    );
    fails(&edited(|g| g.node[0].input.truncate(1)), &["MatMul", "operand 1"]);
    fails(&edited(|g| g.initializer[2] = i64s("two", &[3, -1])), &["Reshape", "does not divide"]);
    fails(&edited(|g| g.initializer[2] = i64s("two", &[-1, -1])), &["Reshape", "-1 twice"]);
}

#[test]
fn enormous_constants_are_not_made() {
    let g = GraphProto {
        node: vec![
            node("ConstantOfShape", &["size"], &["big"], vec![]),
            node("Relu", &["big"], &["y"], vec![]),
        ],
        initializer: vec![i64s("size", &[1 << 20, 1 << 19])],
        output: vec![value("y", data_type::FLOAT, &[])],
        ..Default::default()
    };
    // 2^39 elements stay a broadcast of one number
    let imported = import(&model(17, g), &ImportOptions::default()).unwrap();
    assert_eq!(imported.graph.node_count(), 2);
}

#[test]
fn opsets_out_of_range() {
    for (version, part) in [(10, "11 to 28"), (99, "11 to 28")] {
        let mut m = small();
        m.opset_import[0].version = Some(version);
        fails(&m, &[part, &version.to_string()]);
    }
    let mut m = small();
    m.opset_import.clear();
    fails(&m, &["opset_import"]);
}

#[test]
fn everything_unsupported_is_listed_once() {
    let m = edited(|g| {
        g.node[1] =
            NodeProto { name: Some("first".into()), ..node("Fancy", &["x"], &["r"], vec![]) };
        g.node.push(node("Relu", &["s"], &["t"], vec![])); // reads only what failed: not listed
        g.node.push(node("LSTM", &["t"], &["u"], vec![])); // unsupported by itself: listed
        g.output.push(value("u", data_type::FLOAT, &[]));
    });
    let ImportError::Unsupported(list) = import(&m, &ImportOptions::default()).unwrap_err() else {
        panic!()
    };
    let names: Vec<_> = list.iter().map(|u| (u.node.as_str(), u.op.as_str())).collect();
    assert_eq!(names, [("first", "Fancy"), ("u", "LSTM")]);
}

#[test]
fn functions_that_call_themselves() {
    let call = |name: &str, x: &str, y: &str| NodeProto {
        domain: Some("f".into()),
        ..node(name, &[x], &[y], vec![])
    };
    let mut m = edited(|g| g.node[1] = call("F", "x", "r"));
    m.functions.push(FunctionProto {
        name: Some("F".into()),
        domain: Some("f".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![call("F", "a", "b")],
        ..Default::default()
    });
    fails(&m, &["function `F`", "nested more than"]);
}

#[test]
fn functions_that_double_stop_at_the_node_limit() {
    let call = |name: String, x: &str, y: &str| NodeProto {
        domain: Some("f".into()),
        ..node(&name, &[x], &[y], vec![])
    };
    let mut m = edited(|g| g.node[1] = call("F0".into(), "x", "r"));
    let last = FunctionProto {
        name: Some("F30".into()),
        domain: Some("f".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![node("Relu", &["a"], &["b"], vec![])],
        ..Default::default()
    };
    m.functions.push(last);
    for i in 0..30 {
        let next = |x: &str, y: &str| call(format!("F{}", i + 1), x, y);
        m.functions.push(FunctionProto {
            name: Some(format!("F{i}")),
            domain: Some("f".into()),
            input: vec!["a".into()],
            output: vec!["d".into()],
            node: vec![next("a", "b"), next("b", "c"), next("c", "d")],
            ..Default::default()
        });
    }
    fails(&m, &["more than"]);
}

fn external(location: &str, offset: &str, length: &str) -> ModelProto {
    let entry = |key: &str, v: &str| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(v.into()),
    };
    edited(|g| {
        let w = &mut g.initializer[0];
        w.raw_data = None;
        w.data_location = Some(1);
        w.external_data =
            vec![entry("location", location), entry("offset", offset), entry("length", length)];
    })
}

#[test]
fn external_data_stays_in_the_models_directory() {
    let root = std::env::temp_dir().join(format!("cqc-onnx-{}", std::process::id()));
    let dir = root.join("model");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(root.join("secret.bin"), [0; 64]).unwrap();
    std::fs::write(dir.join("w.bin"), [0; 80]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(root.join("secret.bin"), dir.join("link.bin")).unwrap();
    let outside = root.join("secret.bin");
    let cases = [
        ("w.bin", "16", "64", None),
        ("w.bin", "17", "64", Some("which has 80")),
        ("w.bin", "18446744073709551615", "64", Some("which has 80")),
        ("w.bin", "0", "63", Some("64 bytes, got 63")),
        ("w.bin", "-1", "64", Some("offset `-1`")),
        ("../secret.bin", "0", "64", Some("outside")),
        (outside.to_str().unwrap(), "0", "64", Some("outside")),
        #[cfg(unix)]
        ("link.bin", "0", "64", Some("outside")),
        ("missing.bin", "0", "64", Some("missing.bin")),
        (".", "0", "64", Some("not a regular file")),
        ("", "0", "64", Some("no location")),
        ("a\0b", "0", "64", Some("no file name")),
    ];
    for (location, offset, length, expected) in cases {
        check_external(
            &dir.join("m.onnx"),
            &external(location, offset, length),
            location,
            expected,
        );
    }
    std::fs::remove_dir_all(root).unwrap();
    fails(&external("w.bin", "0", "64"), &["tensor `w`", "not read from a file"]);
}

fn check_external(path: &Path, m: &ModelProto, location: &str, expected: Option<&str>) {
    std::fs::write(path, bytes(m)).unwrap();
    match (load(path, &ImportOptions::default()), expected) {
        (Ok(_), None) => {}
        (Err(e), Some(part)) => {
            let text = e.to_string();
            assert!(
                text.contains(part) && text.contains("tensor `w`"),
                "{location}: `{part}` is not in: {text}"
            );
        }
        (result, _) => panic!("{location}: {:?}", result.map(|_| ())),
    }
}
