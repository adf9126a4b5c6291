//! Writes artifacts, either completely or not at all.

use super::*;
use crate::plan::{Constant, PlanError, validate};
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The reason why an artifact was not written. The target does not change then, and no temporary
/// file remains.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The target exists, and overwriting was not requested.
    #[error("{} exists", path.display())]
    Exists {
        /// Path of the target.
        path: PathBuf,
    },
    /// The operating system reported an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The manifest could not be read back, so it is not written.
    #[error("manifest: {reason}")]
    Manifest {
        /// The expected and the actual content.
        reason: String,
    },
    /// The plan could not be executed.
    #[error("plan: {0}")]
    Plan(#[from] PlanError),
    /// The bytes of a constant do not fit its type, or its offset lies before the end of the
    /// previous constant.
    #[error("constant `{name}`: {reason}")]
    Constant {
        /// Name of the constant.
        name: String,
        /// The expected and the actual content.
        reason: String,
    },
}

/// The compression level of manifests, of at most 10. Higher levels take more time and save almost
/// nothing.
const DEFLATE_LEVEL: u8 = 6;

/// Sets the offset of every constant, in order, and returns the length of the weight section.
pub fn lay_out(constants: &mut [Constant]) -> u64 {
    constants.iter_mut().fold(0, |end: u64, constant| {
        constant.offset = end.next_multiple_of(64);
        constant.offset + byte_len(constant).unwrap_or(0)
    })
}

/// The size in bytes of a constant whose sizes are known.
fn byte_len(constant: &Constant) -> Option<u64> {
    constant.stored_bytes().map(|bytes| bytes as u64)
}

/// Writes an artifact to `path` through a temporary file in the same directory. With `force`, an
/// existing file is replaced.
///
/// `bytes(i)` returns the bytes of `plan.constants[i]`. It is called in ascending order, once for
/// each constant, so that they need not be in memory at the same time.
///
/// # Errors
/// A [`WriteError`]. The offsets of the constants have to ascend ([`lay_out`]).
pub fn write(
    path: &Path,
    force: bool,
    manifest: &Manifest,
    bytes: impl FnMut(usize) -> io::Result<Bytes>,
) -> Result<(), WriteError> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(WriteError::Exists { path: path.into() });
    }
    let (temporary, file) = Temporary::create(path)?;
    let io_error = |source| WriteError::Io { path: path.into(), source };
    let mut out = BufWriter::with_capacity(1 << 20, file);
    encode(&mut out, manifest, bytes).map_err(|e| match e {
        WriteError::Io { source, .. } => io_error(source),
        other => other,
    })?;
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(io_error)?;
    drop(out);
    temporary.publish(path, force)
}

/// Writes an artifact to a stream. The header is written last.
///
/// # Errors
/// Those of [`write()`]. The path in [`WriteError::Io`] is empty.
pub fn encode<W: Write + Seek>(
    out: &mut W,
    manifest: &Manifest,
    bytes: impl FnMut(usize) -> io::Result<Bytes>,
) -> Result<(), WriteError> {
    encode_with(out, manifest, &Attached::default(), bytes)
}

/// The sections of an artifact beyond its loop. Readers that do not know them skip them.
#[derive(Clone, Debug, Default)]
pub struct Attached<'a> {
    /// Compiled CUDA kernels.
    pub kernels: Option<&'a [u8]>,
    /// The parts of a pipeline, and the attachments that it names by index.
    pub pipeline: Option<(&'a Pipeline, &'a [Bytes])>,
}

/// Like [`encode`], with further sections.
///
/// # Errors Those of [`encode`], and [`WriteError::Manifest`] for a pipeline that names attachments
/// that are not there.
pub fn encode_with<W: Write + Seek>(
    out: &mut W,
    manifest: &Manifest,
    attached: &Attached,
    mut bytes: impl FnMut(usize) -> io::Result<Bytes>,
) -> Result<(), WriteError> {
    let constants = &manifest.plan.constants;
    let weights_len =
        constants.iter().filter_map(|c| c.offset.checked_add(byte_len(c)?)).max().unwrap_or(0);
    validate(&manifest.plan, weights_len)?;
    let unreadable = |reason| WriteError::Manifest { reason };
    manifest.check().map_err(unreadable)?;
    let json = serde_json::to_vec(manifest).map_err(|e| unreadable(e.to_string()))?;
    if json.len() as u64 > MAX_MANIFEST {
        return Err(unreadable(format!("{} bytes, at most {MAX_MANIFEST} are read", json.len())));
    }
    let further = further(attached).map_err(unreadable)?;
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(&json, DEFLATE_LEVEL);
    let io_error = |source| WriteError::Io { path: PathBuf::new(), source };
    let first = (HEADER + (2 + further.len()) * ENTRY) as u64;
    let mut writer = Hashing { out, at: 0, hasher: blake3::Hasher::new() };
    writer.zeros_to(first).and_then(|()| writer.begin().write_all(&packed)).map_err(io_error)?;
    let manifest_section =
        Section { name: MANIFEST, offset: first, len: packed.len() as u64, hash: writer.hash() };
    let offset = (first + packed.len() as u64).next_multiple_of(WEIGHTS_ALIGN);
    writer.zeros_to(offset).map_err(io_error)?;
    writer.begin();
    for (i, constant) in constants.iter().enumerate() {
        let bytes = bytes(i).map_err(io_error)?;
        writer.constant(constant, offset, &bytes)?;
    }
    let weights = Section { name: WEIGHTS, offset, len: weights_len, hash: writer.hash() };
    let mut sections = vec![manifest_section, weights];
    for (name, align, bytes) in further {
        let offset = writer.at.next_multiple_of(align);
        writer
            .zeros_to(offset)
            .and_then(|()| writer.begin().write_all(&bytes))
            .map_err(io_error)?;
        let hash = writer.hash();
        sections.push(Section { name, offset, len: bytes.len() as u64, hash });
    }
    let header = header(&sections, writer.at);
    out.seek(SeekFrom::Start(0)).and_then(|_| out.write_all(&header)).map_err(io_error)
}

/// The sections of the attachments: name, alignment, bytes.
fn further(attached: &Attached) -> Result<Vec<([u8; 8], u64, Bytes)>, String> {
    let mut all = Vec::new();
    if let Some(kernels) = attached.kernels {
        all.push((KERNELS, SECTION_ALIGN, Bytes::copy_from_slice(kernels)));
    }
    let Some((pipeline, attachments)) = attached.pipeline else { return Ok(all) };
    if attachments.len() > MAX_ATTACHMENTS {
        return Err(format!("{} attachments, at most {MAX_ATTACHMENTS}", attachments.len()));
    }
    pipeline.check(attachments.len())?;
    let json = serde_json::to_vec(pipeline).map_err(|e| e.to_string())?;
    all.push((PIPELINE, SECTION_ALIGN, json.into()));
    // networks among them are mapped in turn
    let parts = attachments.iter().enumerate();
    all.extend(parts.map(|(i, bytes)| (attachment(i), WEIGHTS_ALIGN, bytes.clone())));
    Ok(all)
}

/// A stream that counts and hashes the bytes that are written.
struct Hashing<'a, W> {
    out: &'a mut W,
    at: u64,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashing<'_, W> {
    /// Starts a new hash.
    fn begin(&mut self) -> &mut Self {
        self.hasher.reset();
        self
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn zeros_to(&mut self, at: u64) -> io::Result<()> {
        let zeros = [0; WEIGHTS_ALIGN as usize];
        while self.at < at {
            self.write_all(&zeros[..(at - self.at).min(WEIGHTS_ALIGN) as usize])?;
        }
        Ok(())
    }

    fn constant(&mut self, constant: &Constant, base: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let error = |reason| WriteError::Constant { name: constant.name.clone(), reason };
        let expected = byte_len(constant).unwrap_or(0);
        if bytes.len() as u64 != expected {
            return Err(error(format!(
                "{} bytes, its type {} takes {expected}",
                bytes.len(),
                constant.ty
            )));
        }
        // gaps are filled with zeros, so they must be small
        let at = base + constant.offset;
        if at < self.at || at - self.at > WEIGHTS_ALIGN {
            return Err(error(format!(
                "its offset {} does not follow the constant before it",
                constant.offset
            )));
        }
        let written = self.zeros_to(at).and_then(|()| self.write_all(bytes));
        written.map_err(|source| WriteError::Io { path: PathBuf::new(), source })
    }

    fn hash(&self) -> [u8; 32] {
        self.hasher.finalize().into()
    }
}

/// A file that is removed again unless it is published.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(target: &Path) -> Result<(Temporary, File), WriteError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let io_error = |source| WriteError::Io { path: target.into(), source };
        let name = target
            .file_name()
            .ok_or_else(|| io_error(io::ErrorKind::InvalidInput.into()))?
            .to_string_lossy();
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path =
                target.with_file_name(format!(".{name}.{}.{number}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((Temporary { path }, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error(e)),
            }
        }
    }

    /// Renames the file to its target. Without `force`, it does not replace a file that has been
    /// created in the meantime.
    fn publish(self, target: &Path, force: bool) -> Result<(), WriteError> {
        let io_error = |source| WriteError::Io { path: target.into(), source };
        if force {
            std::fs::rename(&self.path, target).map_err(io_error)?;
        } else {
            match std::fs::hard_link(&self.path, target) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(WriteError::Exists { path: target.into() });
                }
                // the file system has no hard links
                Err(_) => std::fs::rename(&self.path, target).map_err(io_error)?,
            }
        }
        sync_directory(target);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // after a rename the file no longer exists, and there is no way to report another error
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the new name durable, if the system can.
fn sync_directory(target: &Path) {
    let directory = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(directory) = File::open(directory) {
        let _ = directory.sync_all();
    }
}
