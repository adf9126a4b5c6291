//! Arrays in a recipe: in a file, or in the recipe itself.

use crate::io::{FileError, read_array};
use cqc_proto::{DType, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;

/// An array in a recipe. With serde it is a number, the path of a file, or `{dtype, shape,
/// values}`.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// A `.npy` file, or a `.npz` file that has an array with the name that the recipe uses.
    File(PathBuf),
    /// The array itself.
    Tensor(Tensor),
    /// A number that fills the array, whatever its shape and type.
    Number(f64),
}

impl Array {
    /// Reads the array. `name` selects an array of a `.npz` file.
    ///
    /// # Errors
    /// [`FileError`] if its file cannot be read.
    pub fn read(&self, name: &str) -> Result<Tensor, FileError> {
        match self {
            Array::File(path) => read_array(path, name),
            Array::Tensor(tensor) => Ok(tensor.clone()),
            Array::Number(number) => {
                Ok(Tensor::full(DType::F64, &[], *number).expect("one number is small"))
            }
        }
    }
}

impl From<Tensor> for Array {
    fn from(tensor: Tensor) -> Array {
        Array::Tensor(tensor)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    File(PathBuf),
    Tensor { dtype: DType, shape: Vec<usize>, values: Values },
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Values {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
}

impl Serialize for Array {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let written = match self {
            // A path that is not UTF-8 cannot be written in another way.
            Array::File(path) => Written::File(path.to_string_lossy().into_owned().into()),
            Array::Number(number) => Written::Number(*number),
            Array::Tensor(t) => {
                let values = match t.dtype().is_float() {
                    true => Values::Floats(t.to_f64_vec()),
                    false => Values::Integers(t.to_i64_vec()),
                };
                Written::Tensor { dtype: t.dtype(), shape: t.shape().to_vec(), values }
            }
        };
        written.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Array {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Array, D::Error> {
        let (dtype, shape, values) = match Written::deserialize(from)? {
            Written::Number(number) => return Ok(Array::Number(number)),
            Written::File(path) => return Ok(Array::File(path)),
            Written::Tensor { dtype, shape, values } => (dtype, shape, values),
        };
        let floats = || match &values {
            Values::Floats(values) => values.clone(),
            // float values that happen to be whole numbers
            Values::Integers(values) => values.iter().map(|&v| v as f64).collect(),
        };
        let bytes: Vec<u8> = match (dtype, &values) {
            (DType::F64, _) => floats().iter().flat_map(|v| v.to_le_bytes()).collect(),
            (dtype, _) if dtype.is_float() => {
                let values: Vec<f32> = floats().iter().map(|&v| v as f32).collect();
                Tensor::from_f32(&[values.len()], &values).to_float(dtype).bytes().to_vec()
            }
            (DType::I64, Values::Integers(values)) => {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            (DType::I32, Values::Integers(values)) => {
                let narrow = values.iter().map(|&v| i32::try_from(v).map_err(D::Error::custom));
                narrow
                    .collect::<Result<Vec<i32>, _>>()?
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect()
            }
            _ => {
                return Err(D::Error::custom(format!(
                    "an array of {dtype} cannot be written in a recipe"
                )));
            }
        };
        Ok(Array::Tensor(Tensor::new(dtype, shape, bytes).map_err(D::Error::custom)?))
    }
}
