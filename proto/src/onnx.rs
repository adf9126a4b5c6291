//! The ONNX messages, written by hand so that building needs no `protoc`.
//!
//! Field numbers are those of `onnx.proto` (release 1.23). Only the fields that the importer reads
//! are declared; decoding skips all others. Fields of type [`Bytes`] borrow from the decoded
//! buffer, so decoding `Bytes::from_owner(map)` copies no weights. Enumerations are `i32`, because
//! a file may contain any number there.

use bytes::Bytes;
use prost::Message;

/// A model file, which is the root message.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    /// Version of the file format.
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// The operator sets that the nodes use.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Name of the tool that wrote the model.
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// Version of that tool.
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    /// The graph of the model.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// The functions that nodes may call by domain and name.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

/// The version of an operator set that a model or a function uses.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    /// Domain of the operator set, empty for the standard operators.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// Version of the operator set.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// A graph, either of the model or of an attribute.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// The nodes. By the standard, operands come before their readers.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name of the graph, for messages.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// The constants, with their names.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Sparse constants, which are not supported.
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
    /// The inputs, in order.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// The outputs, in order.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// One application of an operator, or one call of a function.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    /// Names of the operands. An empty name stands for an optional operand that is absent.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the results. An empty name stands for a result that is not used.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Name for messages, which may be empty.
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// Name of the operator or function.
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// Domain of the operator set or function.
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    /// A key that distinguishes functions of the same name.
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
    /// The attributes, in any order.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
}

/// A named attribute. Its type determines the field with its value.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    /// Name of the attribute.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// In a function body, the name of the call's attribute that replaces this one.
    #[prost(string, optional, tag = "21")]
    pub ref_attr_name: Option<String>,
    /// Type of the attribute, one of [`attribute_type`].
    #[prost(int32, optional, tag = "20")]
    pub r#type: Option<i32>,
    /// The value of the type `FLOAT`.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// The value of the type `INT`.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// The value of the type `STRING`.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub s: Option<Bytes>,
    /// The value of the type `TENSOR`.
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    /// The value of the type `GRAPH`.
    #[prost(message, optional, boxed, tag = "6")]
    pub g: Option<Box<GraphProto>>,
    /// The value of the type `SPARSE_TENSOR`.
    #[prost(message, optional, tag = "22")]
    pub sparse_tensor: Option<SparseTensorProto>,
    /// The values of the type `FLOATS`.
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    /// The values of the type `INTS`.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// The values of the type `STRINGS`.
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<Bytes>,
    /// The values of the type `GRAPHS`.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
}

/// The values of [`AttributeProto::type`](AttributeProto).
pub mod attribute_type {
    #![allow(missing_docs)] // the names of the standard
    pub const UNDEFINED: i32 = 0;
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const STRING: i32 = 3;
    pub const TENSOR: i32 = 4;
    pub const GRAPH: i32 = 5;
    pub const FLOATS: i32 = 6;
    pub const INTS: i32 = 7;
    pub const STRINGS: i32 = 8;
    pub const GRAPHS: i32 = 10;
    pub const SPARSE_TENSOR: i32 = 11;
}

/// A tensor. Its elements are in one of the data fields or in another file.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// The sizes of the axes.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// Type of the elements, one of [`data_type`].
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// The part of a larger tensor, which is not supported.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub segment: Option<Bytes>,
    /// The elements of type f32.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// The elements of types up to 32 bits. f16 and bf16 are stored as their bits.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Strings, which are not supported.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<Bytes>,
    /// The elements of type i64.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// Name of the tensor.
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// The elements in little endian.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
    /// The elements of type f64.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// The elements of types u32 and u64.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// The entries `location`, `offset` and `length` for elements in another file.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// 1 if the elements are in another file.
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

/// The values of [`TensorProto::data_type`](TensorProto).
pub mod data_type {
    #![allow(missing_docs)] // the names of the standard
    pub const UNDEFINED: i32 = 0;
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    /// Two elements per byte, the first one in the low half.
    pub const INT4: i32 = 22;
    pub const UINT16: i32 = 4;
    pub const INT16: i32 = 5;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const STRING: i32 = 8;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const DOUBLE: i32 = 11;
    pub const UINT32: i32 = 12;
    pub const UINT64: i32 = 13;
    pub const BFLOAT16: i32 = 16;

    /// The names of the types by number, for messages.
    pub const NAMES: [&str; 29] = [
        "undefined",
        "float32",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
        "float64",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "bfloat16",
        "float8e4m3fn",
        "float8e4m3fnuz",
        "float8e5m2",
        "float8e5m2fnuz",
        "uint4",
        "int4",
        "float4e2m1",
        "float8e8m0",
        "uint2",
        "int2",
        "float6e2m3",
        "float6e3m2",
    ];
}

/// A sparse tensor, which is not supported. It is read so that its presence can be reported.
#[derive(Clone, PartialEq, Message)]
pub struct SparseTensorProto {
    /// The values of the tensor, which carry its name.
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
}

/// A pair of a key and a value.
#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    /// The key, such as `location`.
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    /// The value that belongs to the key.
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// Name and type of an input, an output or an inner value.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    /// Name of the value.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Type of the value.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// A type. Only dense tensors are supported; the others are read so that they can be reported.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    /// The type of a dense tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
    /// The type of a sequence.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub sequence_type: Option<Bytes>,
    /// The type of a map.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub map_type: Option<Bytes>,
    /// The type of an optional value.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub optional_type: Option<Bytes>,
    /// The type of a sparse tensor.
    #[prost(bytes = "bytes", optional, tag = "8")]
    pub sparse_tensor_type: Option<Bytes>,
    /// A type that a domain defines.
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub opaque_type: Option<Bytes>,
}

/// Element type and shape of a dense tensor.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    /// Type of the elements, one of [`data_type`].
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    /// The shape. It is absent if the rank is unknown.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// The shape of a tensor.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    /// The sizes of the axes.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// The size of one axis: a number, a name, or neither if it is unknown.
#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    /// The number of a known size.
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    /// The name of a symbolic size.
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

/// A function, which is a list of nodes over named inputs and attributes.
#[derive(Clone, PartialEq, Message)]
pub struct FunctionProto {
    /// Name of the function.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Names of the inputs.
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    /// Names of the outputs.
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    /// Names of the attributes without a default.
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    /// The attributes with their defaults.
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    /// The nodes of the body.
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    /// The operator sets that the body uses.
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Domain of the function.
    #[prost(string, optional, tag = "10")]
    pub domain: Option<String>,
    /// A key that distinguishes functions of the same name.
    #[prost(string, optional, tag = "13")]
    pub overload: Option<String>,
}
