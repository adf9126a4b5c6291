//! Files in and out: numpy arrays, images, raw bytes. Every write is atomic.

mod atomic;
mod error;
mod npy;
mod npz;
mod png;
mod raw;

pub use atomic::{
    Overwrite, check_directory, check_target, remove_unfinished, write_atomic, write_directory,
};
pub use error::FileError;
pub use npy::{decode_npy, read_npy, write_npy};
pub use npz::{decode_npz, read_npz, write_npz};
pub use png::{encode_grid, to_byte, write_png};
pub use raw::{read_raw, write_raw};

use cqc_proto::Tensor;
use std::path::Path;

/// Reads the array of a `.npy` file, or `name` of a `.npz` file (whatever its name if it is the
/// only one).
///
/// # Errors
/// [`FileError`]: no such file, another format, an element type that tensors do not have.
pub fn read_array(path: &Path, name: &str) -> Result<Tensor, FileError> {
    if !has_extension(path, "npz") {
        return read_npy(path);
    }
    let mut arrays = read_npz(path)?;
    if let Some(at) = arrays.iter().position(|(n, _)| n == name) {
        return Ok(arrays.swap_remove(at).1);
    }
    match <[_; 1]>::try_from(arrays) {
        Ok([(_, only)]) => Ok(only),
        Err(arrays) => Err(FileError::NoArray {
            path: path.to_path_buf(),
            name: name.to_string(),
            known: arrays.into_iter().map(|(n, _)| n).collect(),
        }),
    }
}

/// BLAKE3 of a file, hexadecimal.
///
/// # Errors
/// [`FileError::Io`].
pub fn file_hash(path: &Path) -> Result<String, FileError> {
    let mut hasher = blake3::Hasher::new();
    // read, not mapped: a map would count as memory
    std::fs::File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(FileError::reading(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether the file's name ends in `.extension`, in any case.
pub fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}
