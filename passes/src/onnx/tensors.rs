//! Converts `TensorProto` to [`Tensor`].

use super::load::Files;
use super::narrow::Narrow;
use bytes::Bytes;
use cqc_proto::onnx::{TensorProto, data_type};
use cqc_proto::types::{MAX_RANK, element_count};
use cqc_proto::{DType, Tensor};
use half::{bf16, f16};

/// The element type of that ONNX number.
///
/// # Errors
/// The name of the type if cqc has no such type.
pub(super) fn dtype(number: i32) -> Result<DType, String> {
    Ok(match number {
        data_type::FLOAT => DType::F32,
        data_type::DOUBLE => DType::F64,
        data_type::FLOAT16 => DType::F16,
        data_type::BFLOAT16 => DType::BF16,
        data_type::INT8 => DType::I8,
        data_type::INT16 => DType::I16,
        data_type::INT32 => DType::I32,
        data_type::INT64 => DType::I64,
        data_type::UINT8 => DType::U8,
        data_type::UINT16 => DType::U16,
        data_type::UINT32 => DType::U32,
        data_type::UINT64 => DType::U64,
        data_type::BOOL => DType::Bool,
        n => return Err(type_name(n)),
    })
}

/// The same as [`dtype`] for all types that cqc can hold. A type without a counterpart is returned
/// with the type that holds its numbers.
///
/// # Errors
/// The name of the type if cqc cannot hold it.
pub(super) fn element(number: i32) -> Result<(DType, Option<Narrow>), String> {
    match Narrow::of(number) {
        Some(narrow) => Ok((narrow.carrier(), Some(narrow))),
        None => Ok((dtype(number)?, None)),
    }
}

/// The name of the type, such as `float8e4m3fn`, or the number if the standard has no such type.
pub(super) fn type_name(number: i32) -> String {
    let name = usize::try_from(number).ok().and_then(|n| data_type::NAMES.get(n));
    name.map_or_else(|| format!("number {number}"), |n| n.to_string())
}

/// Why a tensor cannot be read.
#[derive(Debug)]
pub(super) enum BadTensor {
    /// It has a type or feature that cqc does not support.
    Unsupported(String),
    /// Its sizes and its data do not fit together.
    Malformed(String),
}

/// Reads a tensor. Raw and external data is shared, not copied.
pub(super) fn read(t: &TensorProto, files: &Files) -> Result<Tensor, BadTensor> {
    use BadTensor::*;
    let number = t.data_type.unwrap_or(0);
    if number == 0 {
        return Err(Malformed("it has no element type".into()));
    }
    let (dtype, narrow) = element(number)
        .map_err(|name| Unsupported(format!("its element type {name} is not supported")))?;
    if t.segment.is_some() {
        return Err(Unsupported("it is stored in segments".into()));
    }
    let shape = sizes(&t.dims).map_err(Malformed)?;
    let data = match (t.data_location, &t.raw_data) {
        (Some(1), _) => files.external(&t.external_data).map_err(Malformed)?,
        (Some(n), _) if n != 0 => {
            return Err(Malformed(format!("its data location is {n}, expected 0 or 1")));
        }
        (_, Some(raw)) => raw.clone(),
        // codes are packed in this field as in the other forms, a byte in each number
        _ if narrow.is_some() => typed_data(t, DType::U8).map_err(Malformed)?,
        _ => typed_data(t, dtype).map_err(Malformed)?,
    };
    let data = match (narrow, element_count(&shape)) {
        (Some(narrow), Some(count)) => narrow.unpack(&data, count).map_err(Malformed)?.into(),
        _ => data,
    };
    let data = if dtype == DType::Bool { normal_bools(data) } else { data };
    Tensor::new(dtype, shape, data).map_err(|e| Malformed(e.to_string()))
}

fn sizes(dims: &[i64]) -> Result<Vec<usize>, String> {
    if dims.len() > MAX_RANK {
        return Err(format!("it has {} axes, at most {MAX_RANK} are supported", dims.len()));
    }
    let negative = || format!("its sizes are {dims:?}");
    let shape: Vec<usize> = dims
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| negative())?;
    element_count(&shape).map(|_| shape).ok_or_else(|| format!("its sizes {dims:?} are too large"))
}

/// Replaces bytes other than 0 and 1, which would break the invariant of [`DType::Bool`].
fn normal_bools(data: Bytes) -> Bytes {
    if data.iter().all(|&b| b < 2) {
        data
    } else {
        data.iter().map(|&b| (b != 0) as u8).collect::<Vec<_>>().into()
    }
}

/// The elements from the field that belongs to the type.
fn typed_data(t: &TensorProto, dtype: DType) -> Result<Bytes, String> {
    let ints = &t.int32_data;
    let bytes: Vec<u8> = match dtype {
        DType::F32 => bytemuck::cast_slice(&t.float_data).to_vec(),
        DType::F64 => bytemuck::cast_slice(&t.double_data).to_vec(),
        DType::I64 => bytemuck::cast_slice(&t.int64_data).to_vec(),
        DType::U64 => bytemuck::cast_slice(&t.uint64_data).to_vec(),
        DType::U32 => t.uint64_data.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        DType::I32 => bytemuck::cast_slice(ints).to_vec(),
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => {
            ints.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect()
        }
        DType::I8 | DType::U8 | DType::Bool => ints.iter().map(|&v| v as u8).collect(),
    };
    Ok(bytes.into())
}

/// Whole numbers as a tensor of any type.
pub(super) fn from_integers(dtype: DType, shape: Vec<usize>, values: &[i64]) -> Tensor {
    from_numbers(dtype, shape, values.iter().map(|&v| (v, v as f64)))
}

/// Real numbers as a tensor of a float type.
pub(super) fn from_floats(dtype: DType, shape: Vec<usize>, values: &[f64]) -> Tensor {
    from_numbers(dtype, shape, values.iter().map(|&v| (v as i64, v)))
}

fn from_numbers(
    dtype: DType,
    shape: Vec<usize>,
    values: impl Iterator<Item = (i64, f64)>,
) -> Tensor {
    let mut bytes = Vec::new();
    for (i, f) in values {
        match dtype {
            DType::F32 => bytes.extend((f as f32).to_le_bytes()),
            DType::F64 => bytes.extend(f.to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f64(f).to_le_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f64(f).to_le_bytes()),
            DType::Bool => bytes.push((i != 0) as u8),
            // little endian: the low bytes are the narrower integer
            integer => bytes.extend(&i.to_le_bytes()[..integer.size()]),
        }
    }
    Tensor::new(dtype, shape, bytes).expect("one number per element")
}
