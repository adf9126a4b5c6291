//! Output files appear whole or not at all.
//!
//! Bytes go to a temporary file beside the target, which is then renamed. Temporary files are registered, so that an
//! interrupted process can remove them.

use super::FileError;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use tempfile::NamedTempFile;

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// No: [`FileError::Exists`].
    Refuse,
    /// Yes: `--force`.
    Allow,
}

/// Temporary files not yet renamed or removed.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Removes all temporary files of writes in progress; those writes then fail. For an interrupted process about to exit.
pub fn remove_unfinished() {
    for path in unfinished().drain(..) {
        // Nothing sensible is left to do for a file that cannot be removed.
        let _ = std::fs::remove_file(path);
    }
}

/// Says before any long work what [`write_atomic`] would refuse after it: an existing file, a missing directory.
///
/// # Errors
/// [`FileError::Exists`], [`FileError::Io`].
pub fn check_target(path: &Path, overwrite: Overwrite) -> Result<(), FileError> {
    match path.metadata() {
        Ok(found) if found.is_dir() => Err(FileError::writing(path)(io::ErrorKind::IsADirectory.into())),
        Ok(found) if found.is_file() && overwrite == Overwrite::Refuse => {
            Err(FileError::Exists { path: path.to_path_buf() })
        }
        Ok(_) => Ok(()),
        Err(_) => directory(path).metadata().map(|_| ()).map_err(FileError::writing(path)),
    }
}

/// Creates `path` with what `write` writes. If `write` or the system fails, an old file is still there and a new one is not.
///
/// What is no regular file (`/dev/null`, a pipe) is written to directly.
///
/// # Errors
/// [`FileError::Exists`], [`FileError::Io`].
pub fn write_atomic(
    path: &Path,
    overwrite: Overwrite,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<(), FileError> {
    check_target(path, overwrite)?;
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return write_directly(path, write).map_err(FileError::writing(path));
    }
    // Through a symbolic link, so that the link stays one.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mut temporary = create_beside(&target).map_err(FileError::writing(path))?;
    let written = fill(temporary.as_file_mut(), write);
    let mut unfinished = unfinished();
    unfinished.retain(|p| p != temporary.path());
    written.map_err(FileError::writing(path))?;
    rename(temporary, &target, overwrite).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists { path: path.to_path_buf() },
        _ => FileError::writing(path)(e),
    })
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An empty registered file, hidden, with the permissions of an ordinary new file.
fn create_beside(target: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".cqc-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
    let mut unfinished = unfinished();
    let temporary = builder.tempfile_in(directory(target))?;
    unfinished.push(temporary.path().to_path_buf());
    Ok(temporary)
}

fn fill(file: &mut File, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, &mut *file);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    // The rename must not become durable before the bytes.
    file.sync_all()
}

fn rename(temporary: NamedTempFile, target: &Path, overwrite: Overwrite) -> io::Result<()> {
    let renamed = match overwrite {
        Overwrite::Allow => temporary.persist(target),
        Overwrite::Refuse => temporary.persist_noclobber(target),
    };
    renamed.map(|_| ()).map_err(|e| e.error)
}

fn write_directly(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let mut out = BufWriter::new(&mut file);
    write(&mut out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_existing_file_is_replaced_only_when_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, Overwrite::Refuse, |out| out.write_all(b"one")).unwrap();
        let refused = write_atomic(&path, Overwrite::Refuse, |out| out.write_all(b"two"));
        assert!(matches!(refused, Err(FileError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomic(&path, Overwrite::Allow, |out| out.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"old").unwrap();
        let full = |out: &mut BufWriter<&mut File>| {
            out.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert!(write_atomic(&path, Overwrite::Allow, full).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_reported_before_the_work() {
        let missing = Path::new("/nonexistent-directory/a");
        assert!(matches!(check_target(missing, Overwrite::Refuse), Err(FileError::Io { action: "write", .. })));
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        write_atomic(Path::new("/dev/null"), Overwrite::Allow, |out| out.write_all(b"x")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}
