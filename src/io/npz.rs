//! The format `.npz`, a zip archive of `.npy` files that holds named arrays.

use super::{FileError, Overwrite, npy, open_regular, or_what, write_atomic};
use cqc_proto::Tensor;
use npyz::zip::write::FileOptions;
use npyz::zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, read::ZipFile};
use std::io::{self, BufReader, Cursor, Read, Seek, Write};
use std::path::Path;

/// Largest number of arrays that are read from one file.
const MAX_ARRAYS: usize = 1 << 16;

/// Deflate cannot shrink data by more than this factor, so an entry that claims more is invalid.
const MAX_RATIO: u64 = 1032;

/// Reads all arrays, in the order of the file. The memory is bounded by the sizes that are possible
/// for a file of its size.
///
/// # Errors
/// [`FileError::Io`] or [`FileError::Format`].
pub fn read_npz(path: &Path) -> Result<Vec<(String, Tensor)>, FileError> {
    let file = open_regular(path)?;
    let mut first = Vec::new();
    let read = (&file).take(1 << 12).read_to_end(&mut first).and_then(|_| (&file).rewind());
    read.map_err(FileError::reading(path))?;
    read_archive(BufReader::new(file))
        .map_err(|reason| or_what(reason, &first))
        .map_err(|reason| FileError::Format { path: path.to_path_buf(), format: ".npz", reason })
}

/// Reads all arrays of a `.npz` file that is in memory, as [`read_npz`] does.
///
/// # Errors
/// A sentence about the difference from the format.
pub fn decode_npz(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    read_archive(Cursor::new(bytes))
}

fn read_archive(file: impl Read + Seek) -> Result<Vec<(String, Tensor)>, String> {
    let mut archive = ZipArchive::new(file).map_err(|e| e.to_string())?;
    if archive.len() > MAX_ARRAYS {
        return Err(format!("it holds {} arrays, at most {MAX_ARRAYS} are read", archive.len()));
    }
    let mut arrays = Vec::new();
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(|e| e.to_string())?;
        let Some(name) = npyz::npz::array_name_from_file_name(entry.name()).map(str::to_string)
        else {
            continue;
        };
        let tensor = read_entry(entry)
            .map_err(|reason| format!("array `{}`: {reason}", name.escape_debug()))?;
        arrays.push((name, tensor));
    }
    Ok(arrays)
}

fn read_entry(mut entry: ZipFile) -> Result<Tensor, String> {
    let (size, packed) = (entry.size(), entry.compressed_size());
    if size > packed.saturating_mul(MAX_RATIO).saturating_add(MAX_RATIO) {
        return Err(format!("{size} bytes cannot have been compressed to {packed}"));
    }
    let mut bytes = Vec::new();
    // One byte more than the directory says is read, to notice an entry that is longer.
    entry.by_ref().take(size + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 != size {
        return Err(format!("it has {} bytes, its directory says {size}", bytes.len()));
    }
    npy::decode_npy(bytes.into())
}

/// Writes arrays uncompressed, as `numpy.savez`. The same arrays give the same bytes, because no
/// time is stored.
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Io`].
pub fn write_npz(
    path: &Path,
    arrays: &[(String, Tensor)],
    overwrite: Overwrite,
) -> Result<(), FileError> {
    write_atomic(path, overwrite, |out| {
        let mut zip = ZipWriter::new(out);
        for (name, tensor) in arrays {
            let tensor = npy::storable(tensor);
            zip.start_file(
                npyz::npz::file_name_from_array_name(name),
                stored(tensor.bytes().len()),
            )?;
            zip.write_all(&npy::header(&tensor))?;
            zip.write_all(tensor.bytes())?;
        }
        zip.finish()?;
        Ok(())
    })
}

/// The options with which an array of this number of bytes is stored.
fn stored(bytes: usize) -> FileOptions {
    FileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(bytes >= 1 << 31)
}

/// Writes one array as [`write_npz`] does, from a `.npy` file whose data has `bytes` bytes.
pub(super) fn write_npz_from(
    out: impl Write + Seek,
    name: &str,
    mut array: impl Read,
    bytes: usize,
) -> io::Result<()> {
    let mut zip = ZipWriter::new(out);
    zip.start_file(npyz::npz::file_name_from_array_name(name), stored(bytes))?;
    io::copy(&mut array, &mut zip)?;
    zip.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_read_back_and_bytes_are_the_same_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let arrays = vec![
            ("x".to_string(), Tensor::from_f32(&[2, 2], &[1.0, -2.0, 3.5, f32::MAX])),
            ("/a/b.c_0".to_string(), Tensor::from_i64(&[3], &[1, i64::MIN, 3])),
            ("empty".to_string(), Tensor::from_f32(&[0], &[])),
        ];
        let (one, two) = (dir.path().join("one.npz"), dir.path().join("two.npz"));
        write_npz(&one, &arrays, Overwrite::Refuse).unwrap();
        write_npz(&two, &arrays, Overwrite::Refuse).unwrap();
        assert_eq!(read_npz(&one).unwrap(), arrays);
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let arrays = [("x".to_string(), Tensor::from_f32(&[8], &[0.5; 8]))];
        write_npz(&path, &arrays, Overwrite::Refuse).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(read_npz(&path).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            std::fs::write(&path, &flipped).unwrap();
            let _ = read_npz(&path); // an error or the array, never a panic
        }
    }
}
