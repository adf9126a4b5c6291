//! The hash that identifies a model.

use crate::io::{FileError, file_hash};
use cqc_kernels::mapped;
use cqc_passes::onnx::External;
use std::path::Path;

/// Number of bytes that are hashed before their pages are released.
const PART: usize = 1 << 24;

/// BLAKE3 of the model's file, in hexadecimal.
///
/// For a model with external data, it is the BLAKE3 of the file's hash and of each piece of data
/// that the model uses, in the model's order. A piece contributes the name of its file, its
/// position there, and its bytes.
///
/// # Errors
/// [`FileError::Io`] if the file cannot be read.
pub fn model_hash(path: &Path, external: &[External]) -> Result<String, FileError> {
    let file = file_hash(path)?;
    if external.is_empty() {
        return Ok(file);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(file.as_bytes());
    for External { location, range, bytes } in external {
        for number in [location.len() as u64, range.start, range.end] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(location.as_bytes());
        for part in bytes.chunks(PART) {
            hasher.update(part);
            mapped::release(part);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_data_too_and_without_any_by_its_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        std::fs::write(&path, "model").unwrap();
        let data = |location: &str, start: u64, bytes: &'static [u8]| External {
            location: location.into(),
            range: start..start + bytes.len() as u64,
            bytes: bytes.into(),
        };
        let hash = |external: &[External]| model_hash(&path, external).unwrap();
        assert_eq!(hash(&[]), file_hash(&path).unwrap());
        let different = [
            hash(&[]),
            hash(&[data("w", 0, b"ab")]),
            hash(&[data("w", 0, b"ac")]),
            hash(&[data("w", 8, b"ab")]),
            hash(&[data("v", 0, b"ab")]),
            hash(&[data("w", 0, b"a"), data("w", 1, b"b")]),
            hash(&[data("w", 1, b"b"), data("w", 0, b"a")]),
        ];
        for (i, a) in different.iter().enumerate() {
            assert!(different[..i].iter().all(|b| a != b), "{i}");
        }
        assert_eq!(hash(&[data("w", 0, b"ab")]), different[1]);
    }
}
