//! Arrays from and to Python.

use cachequant::recipe::Array;
use cqc_proto::{DType, Tensor};
use numpy::{
    PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::collections::BTreeMap;

/// A NumPy array, or a number, as a tensor.
pub fn tensor(value: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    if let Ok(number) = value.extract::<f64>() {
        return Ok(Tensor::full(DType::F64, &[], number).expect("one number is small"));
    }
    let array = value.cast::<PyUntypedArray>()?;
    let name: String = array.dtype().getattr("name")?.extract()?;
    let dtype = match name.as_str() {
        "float32" => DType::F32,
        "float64" => DType::F64,
        "float16" => DType::F16,
        "int8" => DType::I8,
        "int16" => DType::I16,
        "int32" => DType::I32,
        "int64" => DType::I64,
        "uint8" => DType::U8,
        "uint16" => DType::U16,
        "uint32" => DType::U32,
        "uint64" => DType::U64,
        "bool" => DType::Bool,
        other => return Err(PyTypeError::new_err(format!("arrays of {other} are not taken"))),
    };
    let bytes: Bound<'_, PyBytes> = value.call_method0("tobytes")?.cast_into()?;
    let bytes = bytes::Bytes::copy_from_slice(bytes.as_bytes());
    Tensor::new(dtype, array.shape().to_vec(), bytes)
        .map_err(|e| PyTypeError::new_err(e.to_string()))
}

/// Arrays by name.
pub fn tensors(values: &Bound<'_, PyDict>) -> PyResult<BTreeMap<String, Tensor>> {
    values.iter().map(|(name, value)| Ok((name.extract()?, tensor(&value)?))).collect()
}

/// Arrays by name, each a path, a number or an array.
pub fn arrays(values: &Bound<'_, PyDict>) -> PyResult<BTreeMap<String, Array>> {
    values.iter().map(|(name, value)| Ok((name.extract()?, array(&value)?))).collect()
}

/// A path, a number or an array.
pub fn array(value: &Bound<'_, PyAny>) -> PyResult<Array> {
    if let Ok(number) = value.extract::<f64>() {
        return Ok(Array::Number(number));
    }
    if let Ok(path) = value.extract::<std::path::PathBuf>() {
        return Ok(Array::File(path));
    }
    Ok(Array::Tensor(tensor(value)?))
}

/// A C-contiguous array of float32.
pub fn floats<'a>(array: &'a PyReadonlyArrayDyn<'_, f32>) -> PyResult<&'a [f32]> {
    array.as_slice().map_err(|e| PyTypeError::new_err(e.to_string()))
}

/// A new array with these elements.
pub fn new_array<'py>(
    py: Python<'py>,
    shape: &[usize],
    values: &[f32],
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    numpy::PyArray1::from_slice(py, values).reshape(shape.to_vec())
}
