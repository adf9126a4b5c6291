//! Raw little-endian bytes, as benchmarks of other runtimes exchange them.

use super::{FileError, Overwrite, open_regular, write_atomic};
use cqc_proto::{DType, Tensor};
use std::io::{Read, Write};
use std::path::Path;

/// Reads a file that holds exactly the elements of a tensor.
///
/// # Errors
/// [`FileError::Io`]; [`FileError::Format`] if the size differs.
pub fn read_raw(path: &Path, dtype: DType, shape: &[usize]) -> Result<Tensor, FileError> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes).map_err(FileError::reading(path))?;
    let format = |reason| FileError::Format { path: path.to_path_buf(), format: "raw", reason };
    Tensor::new(dtype, shape.to_vec(), bytes).map_err(|e| format(e.to_string()))
}

/// Writes the elements as f32.
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Io`].
pub fn write_raw(path: &Path, tensor: &Tensor, overwrite: Overwrite) -> Result<(), FileError> {
    let values = tensor.to_f32_vec();
    write_atomic(path, overwrite, |out| {
        values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
    })
}
