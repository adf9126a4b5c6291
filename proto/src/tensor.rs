//! Constant tensors: bytes with a type and a shape, which are shared without copying.

use crate::dtype::DType;
use crate::types::{ValueType, element_count};
use bytes::Bytes;
use half::{bf16, f16};
use std::borrow::Cow;

/// A dense row-major tensor. Its bytes are little endian. They may be a slice of a mapped file, so
/// they need not be aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Bytes,
}

/// The number of bytes does not fit the type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{dtype} {shape:?} needs {expected} bytes, got {found}")]
pub struct TensorSizeError {
    /// The requested element type.
    pub dtype: DType,
    /// The requested sizes of the axes.
    pub shape: Vec<usize>,
    /// The number of bytes of that shape, or `usize::MAX` if it overflows.
    pub expected: usize,
    /// The number of given bytes.
    pub found: usize,
}

impl Tensor {
    /// A tensor with the bytes `data`.
    ///
    /// # Errors
    /// [`TensorSizeError`] if the number of bytes does not fit the type and the shape.
    pub fn new(
        dtype: DType,
        shape: Vec<usize>,
        data: impl Into<Bytes>,
    ) -> Result<Tensor, TensorSizeError> {
        let data = data.into();
        let expected = element_count(&shape).map_or(usize::MAX, |n| n * dtype.size());
        if data.len() != expected {
            return Err(TensorSizeError { dtype, shape, expected, found: data.len() });
        }
        Ok(Tensor { dtype, shape, data })
    }

    /// A tensor of f32 values.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::of(DType::F32, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// A tensor of i64 values.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::of(DType::I64, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// A tensor of bool values.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn from_bool(shape: &[usize], values: &[bool]) -> Tensor {
        Tensor::of(DType::Bool, shape, values.iter().map(|&b| b as u8).collect())
    }

    fn of(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Tensor {
        Tensor::new(dtype, shape.to_vec(), bytes)
            .expect("the caller gives as many elements as the shape has")
    }

    /// A tensor of zeros of any type.
    ///
    /// # Errors
    /// [`TensorSizeError`] if the shape has more than 2^40 elements.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorSizeError> {
        let Some(n) = element_count(shape) else {
            return Err(TensorSizeError {
                dtype,
                shape: shape.to_vec(),
                expected: usize::MAX,
                found: 0,
            });
        };
        Tensor::new(dtype, shape.to_vec(), vec![0u8; n * dtype.size()])
    }

    /// A tensor whose elements are all `number`. For integer types the number is truncated.
    ///
    /// # Errors
    /// Those of [`Tensor::zeros`].
    pub fn full(dtype: DType, shape: &[usize], number: f64) -> Result<Tensor, TensorSizeError> {
        let one = match dtype {
            DType::F64 => number.to_le_bytes().to_vec(),
            DType::Bool => vec![u8::from(number != 0.0)],
            _ if dtype.is_float() => {
                Tensor::from_f32(&[1], &[number as f32]).to_float(dtype).bytes().to_vec()
            }
            _ => (number as i64).to_le_bytes()[..dtype.size()].to_vec(),
        };
        let zeros = Tensor::zeros(dtype, shape)?;
        let bytes = one.repeat(zeros.len());
        Ok(Tensor { data: bytes.into(), ..zeros })
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes of the axes, the outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements as little-endian bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Element type and shape.
    pub fn value_type(&self) -> ValueType {
        ValueType::fixed(self.dtype, &self.shape)
    }

    /// The same elements with another shape of the same number of elements.
    ///
    /// # Errors
    /// [`TensorSizeError`] if the numbers of elements differ.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Tensor, TensorSizeError> {
        Tensor::new(self.dtype, shape, self.data.clone())
    }

    /// The elements, if they are f32. They are borrowed if the bytes are aligned, and copied
    /// otherwise.
    pub fn as_f32(&self) -> Option<Cow<'_, [f32]>> {
        (self.dtype == DType::F32).then(|| cast(&self.data))
    }

    /// The elements, if they are i64. They are borrowed if the bytes are aligned, and copied
    /// otherwise.
    pub fn as_i64(&self) -> Option<Cow<'_, [i64]>> {
        (self.dtype == DType::I64).then(|| cast(&self.data))
    }

    /// Every element as f64. Integers beyond 2^53 are rounded, and bool becomes 0 or 1.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        match self.dtype {
            DType::F32 => each(&self.data, |v: f32| v as f64),
            DType::F64 => each(&self.data, |v: f64| v),
            DType::F16 => each(&self.data, |v: u16| f16::from_bits(v).to_f64()),
            DType::BF16 => each(&self.data, |v: u16| bf16::from_bits(v).to_f64()),
            DType::U64 => each(&self.data, |v: u64| v as f64),
            _ => self.to_i64_vec().into_iter().map(|v| v as f64).collect(),
        }
    }

    /// Every element as f32. Floats are rounded to nearest, the other types are converted by
    /// [`Tensor::to_f64_vec`].
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => cast(&self.data).into_owned(),
            DType::F16 => each(&self.data, |v: u16| f16::from_bits(v).to_f32()),
            DType::BF16 => each(&self.data, |v: u16| bf16::from_bits(v).to_f32()),
            _ => self.to_f64_vec().into_iter().map(|v| v as f32).collect(),
        }
    }

    /// Every element as i64. Floats are truncated and saturated, u64 is reinterpreted, and bool
    /// becomes 0 or 1.
    pub fn to_i64_vec(&self) -> Vec<i64> {
        match self.dtype {
            DType::I64 => cast(&self.data).into_owned(),
            DType::U64 => each(&self.data, |v: u64| v as i64),
            DType::I32 => each(&self.data, |v: i32| v as i64),
            DType::U32 => each(&self.data, |v: u32| v as i64),
            DType::I16 => each(&self.data, |v: i16| v as i64),
            DType::U16 => each(&self.data, |v: u16| v as i64),
            DType::I8 => each(&self.data, |v: i8| v as i64),
            DType::U8 => each(&self.data, |v: u8| v as i64),
            DType::Bool => each(&self.data, |v: u8| (v != 0) as i64),
            _ => self.to_f64_vec().into_iter().map(|v| v as i64).collect(),
        }
    }

    /// The tensor converted to another float type, rounded to nearest even.
    pub fn to_float(&self, dtype: DType) -> Tensor {
        if self.dtype == dtype {
            return self.clone();
        }
        let values = self.to_f64_vec();
        let bytes = match dtype {
            DType::F32 => collect(values, |v| (v as f32).to_le_bytes()),
            DType::F16 => collect(values, |v| f16::from_f64(v).to_le_bytes()),
            DType::BF16 => collect(values, |v| bf16::from_f64(v).to_le_bytes()),
            _ => collect(values, f64::to_le_bytes),
        };
        let dtype = if dtype.is_float() { dtype } else { DType::F64 };
        Tensor { dtype, shape: self.shape.clone(), data: bytes.into() }
    }
}

fn collect<const N: usize>(values: Vec<f64>, f: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(f).collect()
}

fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(slice) => Cow::Borrowed(slice),
        Err(_) => Cow::Owned(
            bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect(),
        ),
    }
}

fn each<T: bytemuck::AnyBitPattern, R>(bytes: &[u8], f: impl Fn(T) -> R) -> Vec<R> {
    bytes.chunks_exact(size_of::<T>()).map(|c| f(bytemuck::pod_read_unaligned(c))).collect()
}
