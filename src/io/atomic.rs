//! Writes output files so that they appear as a whole or not at all.
//!
//! Bytes go to a temporary file beside the target, which is then renamed. Temporary files are
//! registered, so that an interrupted process can remove them. A killed process cannot; its
//! temporary files are removed by the next process that writes to the same directory
//! ([`remove_orphans`]).

use super::FileError;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tempfile::NamedTempFile;

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It may not: [`FileError::Exists`].
    Refuse,
    /// It may, as with the option `--force`.
    Allow,
}

/// The beginning and the end of the names of temporary files and directories. Files of earlier
/// versions, whose names begin with `.cqc-` alone, are left alone.
const PREFIX: &str = ".cqc-tmp-";
const SUFFIX: &str = ".tmp";

/// Number of letters and digits between them.
const RANDOM: usize = 6;

/// A temporary file younger than this may not have been locked yet.
const GRACE: Duration = Duration::from_secs(1);

/// Temporary files that have not been renamed or removed yet.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Registers a file that an interrupt removes.
pub(super) fn register(path: &Path) {
    unfinished().push(path.to_path_buf());
}

/// Lets an interrupt no longer remove a file.
pub(super) fn forget(path: &Path) {
    unfinished().retain(|p| p != path);
}

/// Removes all temporary files of writes in progress, which then fail. It is meant for an
/// interrupted process that is about to exit.
pub fn remove_unfinished() {
    for path in unfinished().drain(..) {
        // Nothing sensible can be done about a file that cannot be removed.
        let _ =
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
}

/// Removes the temporary files and directories that killed processes have left in `directory`.
///
/// A process holds a lock on its temporary files as long as it lives, so those without a lock are
/// orphans. Nothing is removed where the file system has no locks, and nothing whose name is not
/// exactly of the form that [`write_atomic`] and [`write_directory`] use.
pub fn remove_orphans(directory: &Path) {
    let Ok(entries) = directory.read_dir() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        let ours = random
            .is_some_and(|r| r.len() == RANDOM && r.bytes().all(|b| b.is_ascii_alphanumeric()));
        let Some(found) = entry.metadata().ok().filter(|_| ours) else { continue };
        let old = found.modified().is_ok_and(|t| t.elapsed().is_ok_and(|age| age > GRACE));
        if !old || !(found.is_file() || found.is_dir()) {
            continue;
        }
        let path = entry.path();
        let Some(lock) = File::open(&path).ok().filter(|file| file.try_lock().is_ok()) else {
            continue;
        };
        tracing::debug!("removing {}, which an earlier process has left", path.display());
        let removed = if found.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        if let Err(e) = removed {
            tracing::debug!("{} cannot be removed: {e}", path.display());
        }
        drop(lock);
    }
}

/// Locks a temporary file or directory until the result is dropped, where the system has locks.
fn hold(path: &Path) -> Option<File> {
    File::open(path).ok().filter(|file| file.try_lock().is_ok())
}

/// Refuses before any long work what [`write_atomic`] would refuse after it: an existing file, or a
/// missing directory.
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Io`].
pub fn check_target(path: &Path, overwrite: Overwrite) -> Result<(), FileError> {
    match path.metadata() {
        Ok(found) if found.is_dir() => {
            Err(FileError::writing(path)(io::ErrorKind::IsADirectory.into()))
        }
        Ok(found) if found.is_file() && overwrite == Overwrite::Refuse => {
            Err(FileError::Exists { path: path.to_path_buf() })
        }
        Ok(_) => Ok(()),
        Err(_) => directory(path).metadata().map(|_| ()).map_err(FileError::writing(path)),
    }
}

/// Creates `path` with the bytes that `write` writes. If `write` or the system fails, an old file
/// is still there and a new one is not. A `path` that is not a regular file (`/dev/null`, a pipe)
/// is written to directly.
///
/// # Errors
/// [`FileError::Exists`] if the file exists and `overwrite` refuses that, [`FileError::Io`] if it
/// cannot be written.
pub fn write_atomic(
    path: &Path,
    overwrite: Overwrite,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<(), FileError> {
    check_target(path, overwrite)?;
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return write_directly(path, write).map_err(FileError::writing(path));
    }
    // The target of a symbolic link is replaced, so that the link stays a link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    remove_orphans(directory(&target));
    let mut temporary = create_beside(&target).map_err(FileError::writing(path))?;
    let lock = hold(temporary.path());
    let written = fill(temporary.as_file_mut(), write);
    let mut unfinished = unfinished();
    unfinished.retain(|p| p != temporary.path());
    written.map_err(FileError::writing(path))?;
    let renamed = rename(temporary, &target, overwrite);
    drop(lock);
    renamed.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists { path: path.to_path_buf() },
        _ => FileError::writing(path)(e),
    })
}

/// Creates the directory `path` with the files that `write` puts into the directory that it is
/// given: all of them or none.
///
/// An existing directory is replaced only if it is empty or holds the file `mark`, by which it is
/// recognised as an earlier output. No other directory can be lost by mistake.
///
/// # Errors
/// [`FileError::Exists`], [`FileError::Io`], and the errors of `write`.
pub fn write_directory<E: From<FileError>>(
    path: &Path,
    overwrite: Overwrite,
    mark: &str,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    check_directory(path, overwrite, mark)?;
    remove_orphans(directory(path));
    let io = FileError::writing(path);
    let mut builder = builder();
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777));
    let temporary = builder.tempdir_in(directory(path)).map_err(io)?;
    unfinished().push(temporary.path().to_path_buf());
    let _lock = hold(temporary.path());
    let written = write(temporary.path());
    unfinished().retain(|p| p != temporary.path());
    written?;
    let io = FileError::writing(path);
    Ok(replace_directory(temporary, path).map_err(io)?)
}

/// Refuses before any long work what [`write_directory`] would refuse after it.
///
/// # Errors
/// [`FileError::Exists`] or [`FileError::Io`].
pub fn check_directory(path: &Path, overwrite: Overwrite, mark: &str) -> Result<(), FileError> {
    let Ok(found) = path.symlink_metadata() else {
        return directory(path).metadata().map(|_| ()).map_err(FileError::writing(path));
    };
    let ours = || {
        path.join(mark).is_file()
            || path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
    };
    match overwrite {
        Overwrite::Refuse => Err(FileError::Exists { path: path.to_path_buf() }),
        Overwrite::Allow if !found.is_dir() => {
            Err(FileError::writing(path)(io::ErrorKind::NotADirectory.into()))
        }
        Overwrite::Allow if !ours() => Err(FileError::writing(path)(io::Error::other(format!(
            "it is a directory without {mark}, which is not replaced"
        )))),
        Overwrite::Allow => Ok(()),
    }
}

/// The old directory is moved aside first, so that a half-written one is never in its place.
fn replace_directory(temporary: tempfile::TempDir, path: &Path) -> io::Result<()> {
    let aside =
        tempfile::Builder::new().prefix(".cqc-").suffix(".old").tempdir_in(directory(path))?;
    let old = aside.path().join("old");
    let existed = path.exists();
    if existed {
        std::fs::rename(path, &old)?;
    }
    let renamed = std::fs::rename(temporary.path(), path);
    if renamed.is_err() && existed {
        std::fs::rename(&old, path)?;
    }
    renamed.map(|()| drop(temporary.keep()))
}

pub(super) fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(RANDOM);
    builder
}

/// Creates an empty registered file, hidden, with the permissions of an ordinary new file.
fn create_beside(target: &Path) -> io::Result<NamedTempFile> {
    let mut builder = builder();
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
    let mut unfinished = unfinished();
    let temporary = builder.tempfile_in(directory(target))?;
    unfinished.push(temporary.path().to_path_buf());
    Ok(temporary)
}

fn fill(
    file: &mut File,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
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

fn write_directly(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
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
        assert!(matches!(
            check_target(missing, Overwrite::Refuse),
            Err(FileError::Io { action: "write", .. })
        ));
    }

    #[test]
    fn a_directory_is_replaced_only_when_it_was_written_the_same_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let write = |text: &'static str| {
            move |dir: &Path| {
                fs::write(dir.join("mark"), text).unwrap();
                Ok::<(), FileError>(())
            }
        };
        write_directory(&path, Overwrite::Refuse, "mark", write("one")).unwrap();
        let refused = write_directory(&path, Overwrite::Refuse, "mark", write("two"));
        assert!(matches!(refused, Err(FileError::Exists { .. })));
        let failed = write_directory(&path, Overwrite::Allow, "mark", |_| {
            Err(FileError::writing(&path)(io::ErrorKind::StorageFull.into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(path.join("mark")).unwrap(), b"one");
        write_directory(&path, Overwrite::Allow, "mark", write("two")).unwrap();
        assert_eq!(fs::read(path.join("mark")).unwrap(), b"two");
        fs::remove_file(path.join("mark")).unwrap();
        fs::write(path.join("thesis"), "years of work").unwrap();
        assert!(write_directory(&path, Overwrite::Allow, "mark", write("three")).is_err());
        assert_eq!(
            (fs::read_dir(&path).unwrap().count(), fs::read_dir(dir.path()).unwrap().count()),
            (1, 1)
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_temporary_files_that_nobody_writes_any_more_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        let put = |name: &str| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(long_ago).unwrap();
            (path, file)
        };
        let (orphan, _) = put(".cqc-tmp-aB3dE6.tmp");
        let (written, lock) = put(".cqc-tmp-live00.tmp");
        lock.lock().unwrap();
        let kept: Vec<PathBuf> = [
            "a.npy",
            "a.npy.partial",
            ".cqc-tmp-notes.tmp",
            ".cqc-tmp-aB3dE6.tmp.bak",
            ".cqc-tmp-aB3-E6.tmp",
            ".cqc-abcdef.tmp",
            "cqc-tmp-aB3dE6.tmp",
        ]
        .iter()
        .map(|name| put(name).0)
        .collect();
        let folder = dir.path().join(".cqc-tmp-folder.tmp");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("x"), "x").unwrap();
        File::open(&folder).unwrap().set_modified(long_ago).unwrap();
        let young = dir.path().join(".cqc-tmp-young0.tmp");
        fs::write(&young, "").unwrap();
        write_atomic(&dir.path().join("b"), Overwrite::Refuse, |out| out.write_all(b"b")).unwrap();
        assert!(!orphan.exists() && !folder.exists(), "orphans are removed");
        assert!(written.exists() && young.exists(), "what is written is not");
        assert!(kept.iter().all(|path| path.exists()), "nor what is anybody else's");
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        write_atomic(Path::new("/dev/null"), Overwrite::Allow, |out| out.write_all(b"x")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}
