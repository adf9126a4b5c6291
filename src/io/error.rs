//! What can go wrong with a file.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The output is there already and may not be replaced.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not in the expected format.
    #[error("{} is not a valid {format} file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// `.npy`, `.npz`, `.png`.
        format: &'static str,
        /// What was seen.
        reason: String,
    },
    /// What an earlier run has left unfinished belongs to another command.
    #[error("{} holds the unfinished output of another command", path.display())]
    OtherPartial {
        /// The unfinished file.
        path: PathBuf,
        /// What differs: what it is, what it was, what it is now.
        differences: Vec<(String, String, String)>,
    },
    /// A file stands where unfinished output would, and cqc has not written it.
    #[error("{} is in the way: unfinished output would have that name", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("another process is writing {}", path.display())]
    InUse {
        /// The unfinished file.
        path: PathBuf,
    },
    /// An archive lacks an array.
    #[error("{} has no array `{name}`", path.display())]
    NoArray {
        /// The file.
        path: PathBuf,
        /// As asked for.
        name: String,
        /// What it has.
        known: Vec<String>,
    },
    /// The format cannot hold such a tensor.
    #[error("{} cannot hold {what}", path.display())]
    CannotHold {
        /// The file.
        path: PathBuf,
        /// The tensor, in words.
        what: String,
        /// What would do.
        help: String,
    },
}

impl FileError {
    /// For `map_err`: reading `path` failed.
    pub fn reading(path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError::Io { action: "read", path: path.to_path_buf(), source }
    }

    /// For `map_err`: writing `path` failed.
    pub fn writing(path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError::Io { action: "write", path: path.to_path_buf(), source }
    }
}
