//! Small models, built by hand.

#![allow(dead_code)] // each test file uses its part

use cqc_proto::onnx::*;
use prost::Message;

pub enum At<'a> {
    Is(i64),
    Called(&'a str),
    Open,
}

pub fn value(name: &str, elem: i32, axes: &[At]) -> ValueInfoProto {
    let dim = |a: &At| match a {
        At::Is(v) => DimensionProto { dim_value: Some(*v), dim_param: None },
        At::Called(s) => DimensionProto { dim_value: None, dim_param: Some(s.to_string()) },
        At::Open => DimensionProto::default(),
    };
    let shape = TensorShapeProto { dim: axes.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(elem), shape: Some(shape) };
    let ty = TypeProto { tensor_type: Some(tensor), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty) }
}

pub fn f32s(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(data_type::FLOAT),
        raw_data: Some(raw.into()),
        ..Default::default()
    }
}

pub fn i64s(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(data_type::INT64),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        attribute,
        ..Default::default()
    }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_type::INT),
        i: Some(i),
        ..Default::default()
    }
}

pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let ints = ints.to_vec();
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_type::INTS),
        ints,
        ..Default::default()
    }
}

pub fn graph(name: &str, g: GraphProto) -> AttributeProto {
    let g = Some(Box::new(g));
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_type::GRAPH),
        g,
        ..Default::default()
    }
}

pub fn model(opset: i64, graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
        graph: Some(graph),
        ..Default::default()
    }
}

/// `y = x · w + relu(x)` and a reshape by arithmetic on the batch, as exporters write.
pub fn small() -> ModelProto {
    let eye: Vec<f32> = (0..16).map(|i| (i % 5 == 0) as i32 as f32).collect();
    model(
        17,
        GraphProto {
            name: Some("small".into()),
            node: vec![
                node("MatMul", &["x", "w"], &["xw"], vec![]),
                node("Relu", &["x"], &["r"], vec![]),
                node("Add", &["xw", "r"], &["s"], vec![]),
                node("Shape", &["s"], &["shape"], vec![]),
                node("Gather", &["shape", "zero"], &["batch"], vec![int("axis", 0)]),
                node("Concat", &["batch", "two"], &["target"], vec![int("axis", 0)]),
                node("Reshape", &["s", "target"], &["y"], vec![]),
            ],
            initializer: vec![f32s("w", &[4, 4], &eye), i64s("zero", &[0]), i64s("two", &[2, -1])],
            input: vec![value("x", data_type::FLOAT, &[At::Called("batch"), At::Is(4)])],
            output: vec![value("y", data_type::FLOAT, &[])],
            ..Default::default()
        },
    )
}

pub fn bytes(m: &ModelProto) -> Vec<u8> {
    m.encode_to_vec()
}
