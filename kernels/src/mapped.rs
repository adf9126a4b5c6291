//! Read-only memory maps of weight files.

use std::fs::File;
use std::io;
use std::path::Path;

/// The bytes of a mapped file. Pages are read when first touched.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

/// Maps `path` read-only. An empty file gives no bytes.
///
/// The file must not be shortened or rewritten while the map lives: weights are written under another name and
/// renamed into place.
///
/// # Errors
/// Whatever opening or mapping the file reports.
pub fn map_file(path: impl AsRef<Path>) -> io::Result<Mapped> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: read-only and private to us; that nobody rewrites the file under the map is the documented demand.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Mapped(Some(map)))
}
