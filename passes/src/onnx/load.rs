//! Reads files: the model's bytes and its external data, which are mapped.

use super::error::{DataFile, ImportError, shown};
use crate::recognize::Format;
use bytes::Bytes;
use cqc_proto::onnx::{ModelProto, StringStringEntryProto, TensorProto};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a file of external data that a model uses.
#[derive(Clone, Debug)]
pub struct External {
    /// Name of the file in the model.
    pub location: String,
    /// Position of the bytes in the file.
    pub range: Range<u64>,
    /// The bytes, mapped.
    pub bytes: Bytes,
}

/// The files of external data.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Directories in which the files are looked for; empty for a model in memory, which has no
    /// external data.
    folders: Vec<PathBuf>,
    open: RefCell<HashMap<String, Bytes>>,
    used: RefCell<Used>,
}

#[derive(Debug, Default)]
struct Used {
    known: HashSet<(String, Range<u64>)>,
    in_order: Vec<External>,
}

/// Why a file of external data cannot be read, with advice.
#[derive(Debug)]
struct Unreadable {
    reason: String,
    help: Option<String>,
}

impl From<String> for Unreadable {
    fn from(reason: String) -> Unreadable {
        Unreadable { reason, help: None }
    }
}

/// Maps a file.
pub(super) fn map(path: &Path) -> Result<Bytes, ImportError> {
    let io = |source| ImportError::Io { path: path.to_path_buf(), source };
    // mapping a pipe would wait for a writer
    let found = std::fs::metadata(path).map_err(io)?;
    if found.is_dir() {
        let reason = format!("{} is a directory", path.display());
        return Err(ImportError::NotOnnx { reason });
    }
    if !found.is_file() {
        return Err(ImportError::NotOnnx {
            reason: format!("{} is not a regular file", path.display()),
        });
    }
    cqc_kernels::map_file(path).map(Bytes::from_owner).map_err(io)
}

/// Decodes a model. Its weights keep borrowing from `bytes`.
pub(super) fn decode(bytes: Bytes) -> Result<ModelProto, ImportError> {
    let bad = |reason: String| Err(ImportError::NotOnnx { reason });
    if bytes.is_empty() {
        return bad("the file is empty".into());
    }
    let other = Format::of(&bytes);
    let decoded = super::scan::check(&bytes)
        .map(|()| <ModelProto as prost::Message>::decode(bytes).map_err(|e| e.to_string()));
    match (decoded, other) {
        (Ok(Ok(model)), _) if model.graph.is_some() => Ok(model),
        (_, Some(format)) => Err(ImportError::OtherFormat { format }),
        (Err(e), None) => Err(e),
        (Ok(Ok(_)), None) => bad("it holds no graph".into()),
        (Ok(Err(e)), None) => bad(format!("{e}; the file is damaged or cut off")),
    }
}

/// The value of that key.
fn entry<'a>(entries: &'a [StringStringEntryProto], key: &str) -> Option<&'a str> {
    entries.iter().find(|e| e.key() == key).map(StringStringEntryProto::value)
}

fn location(entries: &[StringStringEntryProto]) -> Option<&str> {
    entry(entries, "location").filter(|l| !l.is_empty())
}

impl Files {
    /// External data of the model at `path`: beside the model, and beside the files to which it
    /// links.
    pub fn beside(path: &Path) -> Files {
        let mut folders = vec![folder(path)];
        let mut link = path.to_path_buf();
        // as many links as Linux follows
        for _ in 0..40 {
            let Ok(target) = std::fs::read_link(&link) else { break };
            link = folder(&link).join(target);
            folders.push(folder(&link));
        }
        Files { folders, ..Files::default() }
    }

    /// Checks that all files that hold these tensors can be read.
    ///
    /// # Errors
    /// [`ImportError::Data`] with all files that cannot.
    pub fn check(&self, tensors: &[TensorProto]) -> Result<(), ImportError> {
        let mut seen = HashSet::new();
        let mut bad = Vec::new();
        for t in tensors.iter().filter(|t| t.data_location == Some(1)) {
            let Some(location) = location(&t.external_data).filter(|l| seen.insert(*l)) else {
                continue;
            };
            if let Err(Unreadable { reason, help }) = self.open(location) {
                let (location, tensor) = (shown(location), shown(t.name()));
                bad.push(DataFile { location, tensor, reason, help });
            }
        }
        if bad.is_empty() { Ok(()) } else { Err(ImportError::Data(bad)) }
    }

    /// The bytes that `entries` describe.
    pub fn external(&self, entries: &[StringStringEntryProto]) -> Result<Bytes, String> {
        let location = location(entries).ok_or("its external data has no location")?;
        let number = |key: &str| match entry(entries, key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(format!("its external data has the {key} `{}`", shown(text))),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if self.folders.is_empty() {
            return Err("its data is external, but the model was not read from a file".into());
        }
        let file = self.open(location).map_err(|Unreadable { reason, help }| {
            let help = help.map_or_else(String::new, |help| format!("; {help}"));
            format!("its external data is in `{}`: {reason}{help}", shown(location))
        })?;
        let size = file.len() as u64;
        let end = match length {
            Some(n) => offset.checked_add(n),
            None => Some(size),
        };
        match end {
            Some(end) if offset <= end && end <= size => {
                let bytes = file.slice(offset as usize..end as usize);
                self.used.borrow_mut().note(location, offset..end, &bytes);
                Ok(bytes)
            }
            _ => Err(format!(
                "its external data is {} bytes at {offset} of `{}`, which has {size}",
                length.map_or("all".to_string(), |n| n.to_string()),
                shown(location)
            )),
        }
    }

    /// The external data that was read, in order.
    pub fn into_used(self) -> Vec<External> {
        self.used.into_inner().in_order
    }

    fn open(&self, location: &str) -> Result<Bytes, Unreadable> {
        if let Some(bytes) = self.open.borrow().get(location) {
            return Ok(bytes.clone());
        }
        let path = self.find(location)?;
        let bytes = map(&path).map_err(|e| match e {
            ImportError::NotOnnx { reason } => reason,
            e => e.to_string(),
        })?;
        if let Some(format) = Format::of_placeholder(&bytes) {
            let reason = format!("{} ({} bytes)", format, bytes.len());
            return Err(Unreadable { reason, help: Some(format.help().into()) });
        }
        self.open.borrow_mut().insert(location.to_string(), bytes.clone());
        Ok(bytes)
    }

    /// The file of that name, in the first directory that has one.
    fn find(&self, location: &str) -> Result<PathBuf, Unreadable> {
        let mut names = vec![relative(location, &['/'])?];
        // exporters on Windows separate directories by `\`, which is a letter elsewhere
        let portable = relative(location, &['/', '\\'])?;
        if portable != names[0] {
            names.push(portable);
        }
        for name in &names {
            for folder in &self.folders {
                let path = folder.join(name);
                if path.symlink_metadata().is_ok() {
                    return inside(folder, &path).map(|()| path);
                }
            }
        }
        let folders: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
        Err(Unreadable {
            reason: format!("there is no such file in {}", folders.join(", nor in ")),
            help: Some("put it beside the model, under that name".into()),
        })
    }
}

impl Used {
    fn note(&mut self, location: &str, range: Range<u64>, bytes: &Bytes) {
        if self.known.insert((location.to_string(), range.clone())) {
            let location = location.to_string();
            self.in_order.push(External { location, range, bytes: bytes.clone() });
        }
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The path below the model's directory that `location` describes.
fn relative(location: &str, separators: &[char]) -> Result<PathBuf, Unreadable> {
    let outside = || Unreadable::from("that lies outside the model's folder".to_string());
    if location.contains('\0') || location.len() > super::limits::MAX_NAME {
        return Err("that is no file name".to_string().into());
    }
    if location.starts_with(separators) {
        return Err(outside());
    }
    let mut path = PathBuf::new();
    for part in location.split(separators).filter(|p| !p.is_empty() && *p != ".") {
        // a drive of Windows is another root, even without a separator
        if part == ".." || !Path::new(part).components().all(is_name) {
            return Err(outside());
        }
        path.push(part);
    }
    if path.as_os_str().is_empty() {
        return Err("that is the model's folder, and not a regular file".to_string().into());
    }
    Ok(path)
}

fn is_name(component: std::path::Component) -> bool {
    matches!(component, std::path::Component::Normal(_))
}

/// Checks that no link among the directories between the model's and the file leads out, and that
/// the file is a regular file.
fn inside(folder: &Path, path: &Path) -> Result<(), Unreadable> {
    let canonical = |path: &Path| path.canonicalize().map_err(|e| Unreadable::from(e.to_string()));
    let parent = path.parent().unwrap_or(folder);
    if !canonical(parent)?.starts_with(canonical(folder)?) {
        return Err("a link on the way leads outside the model's folder".to_string().into());
    }
    let target = path.canonicalize().map_err(|e| {
        let to = path.read_link().map_or_else(|_| String::new(), |t| t.display().to_string());
        Unreadable::from(format!("a link to {to}: {e}"))
    })?;
    // files that the system makes up while they are read
    if ["/proc", "/sys", "/dev"].iter().any(|made_up| target.starts_with(made_up)) {
        return Err(format!("a link to {}, which is not a regular file", target.display()).into());
    }
    Ok(())
}
