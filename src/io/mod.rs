//! Reads and writes files: numpy arrays, images, raw bytes. Every write is atomic.

mod atomic;
mod error;
mod npy;
mod npz;
mod png;
mod raw;
mod rows;

pub use atomic::{
    Overwrite, check_directory, check_target, remove_orphans, remove_unfinished, write_atomic,
    write_directory,
};
pub use error::FileError;
pub use npy::{decode_npy, read_npy, write_npy};
pub use npz::{decode_npz, read_npz, write_npz};
pub use png::{check_grid, encode_grid, read_png, to_byte, write_png};
pub use raw::{read_raw, write_raw};
pub use rows::{RowFile, kept_partial, partial_path};

use cqc_passes::recognize::Format;
use cqc_proto::Tensor;
use std::fs::File;
use std::io;
use std::path::Path;

/// Largest configuration, schedule or recipe that is read, in bytes.
const MAX_TEXT: u64 = 64 << 20;

/// Reads an array: of a `.npy` file, the array `name` of a `.npz` file (or its only array, whatever
/// its name), or the image of a `.png` file; see [`read_png`].
///
/// # Errors
/// [`FileError`] if there is no such file, if it has another format, or if its element type is not
/// one of a tensor.
pub fn read_array(path: &Path, name: &str) -> Result<Tensor, FileError> {
    if has_extension(path, "png") {
        return read_png(path);
    }
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

/// BLAKE3 of a file, in hexadecimal.
///
/// # Errors
/// [`FileError::Io`] if the file cannot be read.
pub fn file_hash(path: &Path) -> Result<String, FileError> {
    let mut hasher = blake3::Hasher::new();
    // The file is read, not mapped, because a mapped file would count as memory.
    hasher.update_reader(open_regular(path)?).map_err(FileError::reading(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Opens a regular file for reading. A pipe would wait for a writer and a device might never end,
/// so they are refused.
///
/// # Errors
/// [`FileError::Io`], also for a path that is neither a regular file nor a link to one.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    let found = path.metadata().map_err(FileError::reading(path))?;
    if found.is_dir() {
        return Err(FileError::reading(path)(io::ErrorKind::IsADirectory.into()));
    }
    if !found.is_file() {
        return Err(FileError::reading(path)(io::Error::other("it is not a regular file")));
    }
    File::open(path).map_err(FileError::reading(path))
}

/// Reads a text, such as a configuration.
///
/// # Errors
/// As [`open_regular`]; [`FileError::Format`] if the file is not text, is a placeholder of another
/// tool, or has more than 64 MiB.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let file = open_regular(path)?;
    let format = |reason| FileError::Format { path: path.to_path_buf(), format: "text", reason };
    let size = file.metadata().map_err(FileError::reading(path))?.len();
    if size > MAX_TEXT {
        return Err(format(format!("it has {size} bytes, at most {MAX_TEXT} are read")));
    }
    let bytes = std::fs::read(path).map_err(FileError::reading(path))?;
    if let Some(placeholder) = Format::of_placeholder(&bytes) {
        return Err(format(format!("{placeholder}; {}", placeholder.help())));
    }
    String::from_utf8(bytes).map_err(|_| format("it is not UTF-8".into()))
}

/// Adds to a reason the format that the file really has, if its first bytes tell.
fn or_what(reason: String, first: &[u8]) -> String {
    match Format::of(first) {
        Some(f @ (Format::GitLfsPointer | Format::GitAnnexPointer | Format::Html)) => {
            format!("{f}; {}", f.help())
        }
        Some(f) if f != Format::Zeros => format!("{reason}: {f}"),
        _ => reason,
    }
}

/// Whether the name of the file ends in `.extension`, in upper or lower case.
pub fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}
