//! Writes samples as they are made, into a file that stays after a killed process and that the next
//! process continues.
//!
//! Until an output `x.npz` is complete, there are two files beside it. `x.npz.partial` is a `.npy`
//! file whose header has the final shape and whose data ends where the last process stopped.
//! `x.npz.partial.json` describes the command to which they belong. It is written first, so a
//! `.partial` without it is a file that cqc has not written.

use super::atomic::{directory, forget, register};
use super::{FileError, Overwrite, check_target, has_extension, npy, npz, png, write_atomic};
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The unfinished output of this process that is worth continuing.
static KEPT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The unfinished output that this process leaves if it ends now; `None` if it has no complete
/// rows.
pub fn kept_partial() -> Option<PathBuf> {
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

fn keep(partial: Option<PathBuf>) {
    *KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = partial;
}

/// Text that marks the description of unfinished output.
const WHAT: &str = "unfinished output of cqc: the same command continues it";

/// The path of the unfinished form of `output`.
pub fn partial_path(output: &Path) -> PathBuf {
    with_suffix(output, ".partial")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// An output of f32 rows that is being written.
#[derive(Debug)]
pub struct RowFile {
    output: PathBuf,
    /// The path where the output will be: `output` with links followed.
    target: PathBuf,
    partial: PathBuf,
    /// Open and locked as long as this value lives.
    file: File,
    shape: Vec<usize>,
    head: usize,
    done: usize,
}

impl RowFile {
    /// Begins or continues `output`, which will be an array of `shape`. `command` is everything
    /// that its bytes depend on: unfinished output is continued only if it was begun with the same
    /// `command`. It is continued after a multiple of `step` rows. With [`Overwrite::Allow`], the
    /// unfinished output of another command is replaced.
    ///
    /// # Errors
    /// [`FileError::Exists`] if the output exists; [`FileError::OtherPartial`],
    /// [`FileError::InTheWay`] or [`FileError::InUse`] if its unfinished form cannot be continued;
    /// [`FileError::Io`].
    pub fn open(
        output: &Path,
        overwrite: Overwrite,
        command: &BTreeMap<String, String>,
        shape: &[usize],
        step: usize,
    ) -> Result<RowFile, FileError> {
        check_target(output, overwrite)?;
        let target = output.canonicalize().unwrap_or_else(|_| output.to_path_buf());
        super::remove_orphans(directory(&target));
        let partial = partial_path(&target);
        let about = with_suffix(&partial, ".json");
        let writing = |e| FileError::writing(&partial)(e);
        let header = npy::header_of(DType::F32, shape);
        let begun = read_command(&about);
        match (partial.symlink_metadata(), &begun) {
            (Ok(found), Some(_)) if found.is_file() => {}
            (Ok(_), _) => return Err(FileError::InTheWay { path: partial }),
            (Err(_), None) if about.symlink_metadata().is_ok() => {
                return Err(FileError::InTheWay { path: about });
            }
            (Err(_), _) => {}
        }
        let goes_on = partial.exists() && begun.as_ref() == Some(command);
        if let (true, false, Some(begun)) = (partial.exists(), goes_on, &begun) {
            // the file that another process is writing is not taken away
            drop(lock(&partial)?);
            if overwrite == Overwrite::Refuse {
                let differences = differences(begun, command);
                return Err(FileError::OtherPartial { path: partial, differences });
            }
            std::fs::remove_file(&partial).map_err(writing)?;
        }
        if !goes_on {
            let text = serde_json::json!({"what": WHAT, "command": command}).to_string();
            write_atomic(&about, Overwrite::Allow, |out| out.write_all(text.as_bytes()))?;
        }
        let file = lock(&partial)?;
        let mut rows = RowFile {
            output: output.to_path_buf(),
            target,
            partial: partial.clone(),
            file,
            shape: shape.to_vec(),
            head: header.len(),
            done: 0,
        };
        let whole = rows.whole_rows(&header).map_err(writing)?;
        rows.done = if whole == shape[0] { whole } else { whole / step.max(1) * step.max(1) };
        match rows.done {
            // without rows nothing is lost if an interrupt removes the files
            0 => [&partial, &about].into_iter().for_each(|path| register(path)),
            _ => keep(Some(partial.clone())),
        }
        let end = (rows.head + rows.done * rows.row_bytes()) as u64;
        let file = &mut rows.file;
        let ready = match rows.done {
            0 => {
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&header))
            }
            _ => file.set_len(end).and_then(|()| file.seek(io::SeekFrom::End(0)).map(|_| ())),
        };
        ready.map_err(writing)?;
        Ok(rows)
    }

    /// Number of rows that are written.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Appends rows.
    ///
    /// # Errors
    /// [`FileError::Io`] if they cannot be written.
    ///
    /// # Panics
    /// If they are no f32 rows of the array's shape.
    pub fn push(&mut self, rows: &Tensor) -> Result<(), FileError> {
        assert_eq!((rows.dtype(), &rows.shape()[1..]), (DType::F32, &self.shape[1..]));
        self.file.write_all(rows.bytes()).map_err(FileError::writing(&self.partial))?;
        if self.done == 0 {
            forget(&self.partial);
            forget(&with_suffix(&self.partial, ".json"));
            keep(Some(self.partial.clone()));
        }
        self.done += rows.shape()[0];
        Ok(())
    }

    /// Completes the output when all rows are written. Its extension decides the format: `.npy`,
    /// `.npz` with the array `samples`, or `.png`.
    ///
    /// # Errors
    /// [`FileError`]; the unfinished output is then kept.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(mut self, overwrite: Overwrite) -> Result<(), FileError> {
        assert_eq!(self.done, self.shape[0], "all rows are written");
        self.file.sync_all().map_err(FileError::writing(&self.partial))?;
        let bytes = self.done * self.row_bytes();
        if has_extension(&self.output, "npy") {
            self.rename(overwrite)?;
        } else if has_extension(&self.output, "npz") {
            self.file.rewind().map_err(FileError::reading(&self.partial))?;
            let array = io::BufReader::new(&self.file);
            write_atomic(&self.output, overwrite, |out| {
                npz::write_npz_from(out, "samples", array, bytes)
            })?;
        } else {
            let png = self.encode_png().map_err(FileError::reading(&self.partial))?;
            png::write_encoded(&self.output, png, overwrite)?;
        }
        keep(None);
        discard(&self.partial);
        Ok(())
    }

    /// The rows as a grid of images.
    fn encode_png(&mut self) -> io::Result<Result<Vec<u8>, String>> {
        self.file.seek(io::SeekFrom::Start(self.head as u64))?;
        let (mut file, mut failed) = (io::BufReader::new(&self.file), None);
        let mut row = vec![0u8; self.row_bytes()];
        let images = (0..self.done).map_while(|_| {
            file.read_exact(&mut row).map_err(|e| failed = Some(e)).ok()?;
            let value = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("chunks of four"));
            Some(row.chunks_exact(4).map(value).collect())
        });
        let png = png::encode_images(&self.shape, images);
        failed.map_or(Ok(png), Err)
    }

    fn row_bytes(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * DType::F32.size()
    }

    /// Number of complete rows in the file; 0 if it does not begin with that header.
    fn whole_rows(&mut self, header: &[u8]) -> io::Result<usize> {
        let mut found = Vec::new();
        (&self.file).take(header.len() as u64).read_to_end(&mut found)?;
        if found != header {
            return Ok(0);
        }
        let data = self.file.metadata()?.len() as usize - header.len();
        Ok((data / self.row_bytes().max(1)).min(self.shape[0]))
    }

    fn rename(&self, overwrite: Overwrite) -> Result<(), FileError> {
        let partial = tempfile::TempPath::try_from_path(&self.partial)
            .map_err(FileError::writing(&self.output))?;
        let renamed = match overwrite {
            Overwrite::Allow => partial.persist(&self.target),
            Overwrite::Refuse => partial.persist_noclobber(&self.target),
        };
        renamed.map_err(|e| {
            let (path, error) = (e.path, e.error);
            // otherwise it would be removed, and with it all the work
            if path.keep().is_err() {
                tracing::warn!("{} could not be kept", self.partial.display());
            }
            match error.kind() {
                io::ErrorKind::AlreadyExists => FileError::Exists { path: self.output.clone() },
                _ => FileError::writing(&self.output)(error),
            }
        })
    }
}

/// Removes unfinished output and its description.
fn discard(partial: &Path) {
    for path in [partial.to_path_buf(), with_suffix(partial, ".json")] {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} cannot be removed: {e}", path.display());
            }
            _ => {}
        }
    }
}

/// Opens the unfinished file, exclusively for this process where the system has locks.
fn lock(partial: &Path) -> Result<File, FileError> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial);
    let file = open.map_err(FileError::writing(partial))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(FileError::InUse { path: partial.to_path_buf() }),
        _ => Ok(file),
    }
}

/// The command in a description.
fn read_command(about: &Path) -> Option<BTreeMap<String, String>> {
    let text = super::read_text(about).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    (value.get("what")?.as_str()? == WHAT).then_some(())?;
    serde_json::from_value(value.get("command")?.clone()).ok()
}

fn differences(
    was: &BTreeMap<String, String>,
    is: &BTreeMap<String, String>,
) -> Vec<(String, String, String)> {
    let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let value = |of: &BTreeMap<String, String>, key: &String| {
        of.get(key).cloned().unwrap_or_else(|| "none".into())
    };
    keys.into_iter()
        .map(|key| (key.clone(), value(was, key), value(is, key)))
        .filter(|(_, was, is)| was != is)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{write_npy, write_npz};
    use super::*;

    const SHAPE: [usize; 3] = [7, 2, 3];

    fn command(seed: u32) -> BTreeMap<String, String> {
        BTreeMap::from([("seed".into(), seed.to_string()), ("samples".into(), "7".into())])
    }

    fn rows(range: std::ops::Range<usize>) -> Tensor {
        let values: Vec<f32> = (range.start * 6..range.end * 6).map(|i| i as f32).collect();
        Tensor::from_f32(&[range.len(), 2, 3], &values)
    }

    fn open(path: &Path, seed: u32) -> Result<RowFile, FileError> {
        RowFile::open(path, Overwrite::Refuse, &command(seed), &SHAPE, 2)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = dir.read_dir().unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|n| n.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_output_in_pieces_has_the_bytes_of_one_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.npy", "a.npz"] {
            let (path, whole) = (dir.path().join(name), dir.path().join(format!("whole-{name}")));
            match name {
                "a.npy" => write_npy(&whole, &rows(0..7), Overwrite::Refuse).unwrap(),
                _ => {
                    let arrays = [("samples".to_string(), rows(0..7))];
                    write_npz(&whole, &arrays, Overwrite::Refuse).unwrap();
                }
            }
            let mut first = open(&path, 0).unwrap();
            first.push(&rows(0..2)).unwrap();
            first.push(&rows(2..5)).unwrap();
            drop(first);
            assert!(!path.exists(), "the output is whole or absent");
            // killed in the middle of a row, after five rows: continued after four
            let mut torn = OpenOptions::new().append(true).open(partial_path(&path)).unwrap();
            torn.write_all(&[1, 2, 3]).unwrap();
            drop(torn);
            let mut second = open(&path, 0).unwrap();
            assert_eq!(second.done(), 4);
            second.push(&rows(4..7)).unwrap();
            second.finish(Overwrite::Refuse).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap(), "{name}");
        }
        assert_eq!(names(dir.path()), ["a.npy", "a.npz", "whole-a.npy", "whole-a.npz"]);
    }

    #[test]
    fn what_another_command_began_is_refused_and_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let mut first = open(&path, 0).unwrap();
        first.push(&rows(0..2)).unwrap();
        assert!(matches!(open(&path, 0), Err(FileError::InUse { .. })));
        drop(first);
        let Err(FileError::OtherPartial { differences, .. }) = open(&path, 1) else { panic!() };
        assert_eq!(differences, [("seed".to_string(), "0".to_string(), "1".to_string())]);
        assert_eq!(open(&path, 0).unwrap().done(), 2, "it is still there");
        let forced = RowFile::open(&path, Overwrite::Allow, &command(1), &SHAPE, 2).unwrap();
        assert_eq!(forced.done(), 0);
    }

    #[test]
    fn nobodys_files_are_taken_for_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        std::fs::write(partial_path(&path), "thesis").unwrap();
        assert!(matches!(open(&path, 0), Err(FileError::InTheWay { .. })));
        std::fs::write(dir.path().join("a.npy.partial.json"), "{}").unwrap();
        let forced = RowFile::open(&path, Overwrite::Allow, &command(0), &SHAPE, 2);
        assert!(matches!(forced, Err(FileError::InTheWay { .. })));
        std::fs::remove_file(partial_path(&path)).unwrap();
        assert!(matches!(open(&path, 0), Err(FileError::InTheWay { .. })));
        assert_eq!(std::fs::read(dir.path().join("a.npy.partial.json")).unwrap(), b"{}");
    }

    #[test]
    fn an_output_that_appears_in_between_is_not_replaced_and_no_row_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let mut file = open(&path, 0).unwrap();
        file.push(&rows(0..7)).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(file.finish(Overwrite::Refuse), Err(FileError::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        let file = open(&path, 0).unwrap();
        assert_eq!(file.done(), 7);
        file.finish(Overwrite::Refuse).unwrap();
        assert_eq!(names(dir.path()), ["a.npy"]);
    }
}
