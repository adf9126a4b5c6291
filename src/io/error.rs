//! The error of reading or writing a file.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses to read or write the file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Either `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The output exists already and may not be replaced.
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
        /// The format, such as `.npy`, `.npz` or `.png`.
        format: &'static str,
        /// The difference from the format.
        reason: String,
    },
    /// The unfinished output of an earlier run belongs to another command.
    #[error("{} holds the unfinished output of another command", path.display())]
    OtherPartial {
        /// The unfinished file.
        path: PathBuf,
        /// The differing facts: name, value then, value now.
        differences: Vec<(String, String, String)>,
    },
    /// A file that cqc has not written has the name that unfinished output would have.
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
    /// The archive has no array of that name.
    #[error("{} has no array `{name}`", path.display())]
    NoArray {
        /// The file.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
        /// Names of the arrays that it has.
        known: Vec<String>,
    },
    /// The format cannot hold the tensor.
    #[error("{} cannot hold {what}", path.display())]
    CannotHold {
        /// The file.
        path: PathBuf,
        /// The tensor in words.
        what: String,
        /// A format or tensor that would do.
        help: String,
    },
}

impl FileError {
    /// For `map_err`: the error of reading `path`.
    pub fn reading(path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError::Io { action: "read", path: path.to_path_buf(), source }
    }

    /// For `map_err`: the error of writing `path`.
    pub fn writing(path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError::Io { action: "write", path: path.to_path_buf(), source }
    }
}
