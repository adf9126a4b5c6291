//! Read-only memory maps of weight files.

use crate::arena::{Arena, Span};
use crate::memory;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Address and length of every live map, for [`release`].
static LIVE: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

fn live() -> std::sync::MutexGuard<'static, Vec<(usize, usize)>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner) // a panic leaves the list whole
}

/// The bytes of a mapped file. Pages are read when first touched.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let bytes = self.as_ref();
        let mut live = live();
        if let Some(at) = live.iter().position(|&map| map == (bytes.as_ptr().addr(), bytes.len())) {
            live.swap_remove(at);
        }
    }
}

/// Maps `path` read-only. An empty file gives no bytes.
///
/// The file must not be shortened or rewritten while the map lives: weights are written under
/// another name and renamed into place.
///
/// # Errors
/// Whatever opening or mapping the file reports.
pub fn map_file(path: impl AsRef<Path>) -> io::Result<Mapped> {
    map(&File::open(path)?)
}

/// [`map_file`] of an open file.
///
/// # Errors
/// Whatever mapping the file reports.
pub fn map(file: &File) -> io::Result<Mapped> {
    if file.metadata()?.len() == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: read-only and private to us; that nobody rewrites the file under the map is the
    // documented demand.
    let map = unsafe { memmap2::Mmap::map(file)? };
    live().push((map.as_ptr().addr(), map.len()));
    Ok(Mapped(Some(map)))
}

/// Reads all of `path` into memory of our own, which nobody else can change or shorten.
///
/// # Errors
/// Whatever opening or reading the file reports; [`io::ErrorKind::OutOfMemory`] where it does not
/// fit; [`io::ErrorKind::UnexpectedEof`] where it was shortened meanwhile.
pub fn read_file(path: impl AsRef<Path>) -> io::Result<Arena> {
    let path = path.as_ref();
    let mut file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let full =
        |e: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::OutOfMemory, e.to_string());
    memory::check(format_args!("reading {}", path.display()), len).map_err(|e| full(&e))?;
    let mut arena = Arena::try_new(len).map_err(|e| full(&e))?;
    file.read_exact(arena.get_mut(Span::new(0, len)).expect("an arena holds itself"))?;
    Ok(arena)
}

/// Lets go of the memory that backs `bytes` if they lie in a [`Mapped`] file: they are read again
/// when touched again. Whole pages only; does nothing for other memory, or where the system cannot.
pub fn release(bytes: &[u8]) {
    let (start, len) = (bytes.as_ptr().addr(), bytes.len());
    let inside = |&(map, size): &(usize, usize)| start >= map && start + len <= map + size;
    if !live().iter().any(inside) {
        return;
    }
    let page = 1 << 12;
    let (first, end) = (start.next_multiple_of(page), (start + len) / page * page);
    if first >= end {
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: the range lies in a live read-only file map, whose owner `bytes` borrows from.
    // Dropped pages read the same bytes again, as nobody rewrites the file. A failure (another page
    // size) changes nothing.
    unsafe {
        libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_read_the_same() {
        let path = std::env::temp_dir().join(format!("cqc-release-{}", std::process::id()));
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = map_file(&path).unwrap();
        release(&map.as_ref()[100..39_000]);
        release(&bytes);
        assert_eq!(map.as_ref(), bytes);
        std::fs::remove_file(&path).unwrap();
    }
}
