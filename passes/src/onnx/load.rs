//! Files: the model's bytes and its external data, mapped.

use super::error::{ImportError, shown};
use bytes::Bytes;
use cqc_proto::onnx::{ModelProto, StringStringEntryProto};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where external data comes from.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The model's directory, canonical; `None` for a model in memory, which has no external data.
    directory: Option<PathBuf>,
    open: RefCell<HashMap<PathBuf, Bytes>>,
}

/// Maps a file.
pub(super) fn map(path: &Path) -> Result<Bytes, ImportError> {
    let io = |source| ImportError::Io { path: path.to_path_buf(), source };
    // mapping a pipe would wait for a writer
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(ImportError::NotOnnx {
            reason: format!("{} is not a regular file", path.display()),
        });
    }
    cqc_kernels::map_file(path).map(Bytes::from_owner).map_err(io)
}

/// Decodes a model; weights keep borrowing from `bytes`.
pub(super) fn decode(bytes: Bytes) -> Result<ModelProto, ImportError> {
    let bad = |reason: String| Err(ImportError::NotOnnx { reason });
    if bytes.is_empty() {
        return bad("the file is empty".into());
    }
    super::scan::check(&bytes)?;
    let looks_like_text =
        bytes.iter().take(512).all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e));
    match <ModelProto as prost::Message>::decode(bytes) {
        Ok(model) if model.graph.is_some() => Ok(model),
        Ok(_) if looks_like_text => bad("it is a text file".into()),
        Ok(_) => bad("it holds no graph".into()),
        Err(_) if looks_like_text => bad("it is a text file".into()),
        Err(e) => bad(format!("{e}; the file is damaged or cut off")),
    }
}

impl Files {
    /// External data beside the model at `path`.
    pub fn beside(path: &Path) -> Result<Files, ImportError> {
        let io = |source| ImportError::Io { path: path.to_path_buf(), source };
        let canonical = path.canonicalize().map_err(io)?;
        Ok(Files { directory: canonical.parent().map(Path::to_path_buf), open: RefCell::default() })
    }

    /// The bytes that `entries` describe.
    pub fn external(&self, entries: &[StringStringEntryProto]) -> Result<Bytes, String> {
        let get =
            |key: &str| entries.iter().find(|e| e.key() == key).map(StringStringEntryProto::value);
        let location =
            get("location").filter(|l| !l.is_empty()).ok_or("its external data has no location")?;
        let number = |key: &str| match get(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(format!("its external data has the {key} `{}`", shown(text))),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let file = self.open(location)?;
        let size = file.len() as u64;
        let end = match length {
            Some(n) => offset.checked_add(n),
            None => Some(size),
        };
        match end {
            Some(end) if offset <= end && end <= size => {
                Ok(file.slice(offset as usize..end as usize))
            }
            _ => Err(format!(
                "its external data is {} bytes at {offset} of `{}`, which has {size}",
                length.map_or("all".to_string(), |n| n.to_string()),
                shown(location)
            )),
        }
    }

    fn open(&self, location: &str) -> Result<Bytes, String> {
        let Some(directory) = &self.directory else {
            return Err("its data is external, but the model was not read from a file".into());
        };
        let name = shown(location);
        if location.contains('\0') || location.len() > super::limits::MAX_NAME {
            return Err(format!("its external data is in `{name}`, which is no file name"));
        }
        let path = directory.join(location);
        let path =
            path.canonicalize().map_err(|e| format!("its external data is in `{name}`: {e}"))?;
        if !path.starts_with(directory) {
            return Err(format!(
                "its external data is in `{name}`, which lies outside the model's directory"
            ));
        }
        if let Some(bytes) = self.open.borrow().get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = map(&path).map_err(|e| format!("its external data: {e}"))?;
        self.open.borrow_mut().insert(path, bytes.clone());
        Ok(bytes)
    }
}
