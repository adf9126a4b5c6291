//! Builds messages: attributes, types, models.

use cqc_proto::onnx::*;
use cqc_proto::{DType, Dim, ValueType};

/// The operator set in which exported models are written. It is the oldest one that has a form for
/// everything in a plan (16-bit and blocked quantization came last). ONNX 1.16, ONNX Runtime 1.18,
/// TensorRT 10 and OpenVINO 2024 know it.
pub const OPSET: i64 = 21;

/// The version of the file format that belongs to [`OPSET`].
pub const IR_VERSION: i64 = 10;

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, attribute_type::INT) }
}

pub(super) fn ints<T: Copy + TryInto<i64>>(name: &str, list: &[T]) -> AttributeProto {
    let ints = list.iter().map(|&v| v.try_into().unwrap_or(i64::MAX)).collect();
    AttributeProto { ints, ..attribute(name, attribute_type::INTS) }
}

pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f: Some(f), ..attribute(name, attribute_type::FLOAT) }
}

pub(super) fn string(name: &str, s: &'static str) -> AttributeProto {
    AttributeProto { s: Some(s.into()), ..attribute(name, attribute_type::STRING) }
}

pub(super) fn graph_attribute(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(Box::new(g)), ..attribute(name, attribute_type::GRAPH) }
}

/// The number of an element type in the standard.
pub(super) fn number(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => data_type::FLOAT,
        DType::F64 => data_type::DOUBLE,
        DType::F16 => data_type::FLOAT16,
        DType::BF16 => data_type::BFLOAT16,
        DType::I8 => data_type::INT8,
        DType::I16 => data_type::INT16,
        DType::I32 => data_type::INT32,
        DType::I64 => data_type::INT64,
        DType::U8 => data_type::UINT8,
        DType::U16 => data_type::UINT16,
        DType::U32 => data_type::UINT32,
        DType::U64 => data_type::UINT64,
        DType::Bool => data_type::BOOL,
    }
}

/// Name and type of an input or output. A size with a symbol is named after its expression.
pub(super) fn value_info(name: &str, ty: &ValueType) -> ValueInfoProto {
    let dim = |d: &Dim| match d.as_const() {
        Some(v) => DimensionProto { dim_value: Some(v), dim_param: None },
        None => DimensionProto { dim_value: None, dim_param: Some(d.to_string()) },
    };
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(number(ty.dtype)), shape: Some(shape) };
    let ty = TypeProto { tensor_type: Some(tensor), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty) }
}

pub(super) fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        producer_name: Some("cqc".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(graph),
        functions: vec![],
    }
}
