//! Keeps the results of long stages in a directory, so that an interrupted compilation continues
//! where it stopped.
//!
//! The name of a stage's file has a hash of everything that the result depends on. One directory
//! can therefore serve any number of compilations, and a file in it is never wrong, only unused.

use crate::io::{FileError, Overwrite, write_atomic};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The directory that keeps the results of stages, and the inputs of one compilation.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    directory: Option<PathBuf>,
    inputs: blake3::Hasher,
}

impl Stages {
    /// Keeps nothing.
    pub fn none() -> Stages {
        Stages::default()
    }

    /// Keeps results in `directory`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`FileError::Io`] if the directory cannot be created.
    pub fn new(directory: &Path) -> Result<Stages, FileError> {
        std::fs::create_dir_all(directory).map_err(FileError::writing(directory))?;
        Ok(Stages { directory: Some(directory.to_path_buf()), inputs: blake3::Hasher::new() })
    }

    /// Stages whose results also depend on `what`.
    #[must_use]
    pub fn depending_on(&self, what: &[u8]) -> Stages {
        let mut next = self.clone();
        next.inputs.update(&(what.len() as u64).to_le_bytes()).update(what);
        next
    }

    /// The result of a stage: read from its file, or computed by `make` and kept. A file that
    /// cannot be read is computed again.
    ///
    /// # Errors
    /// Those of `make`, and [`FileError::Io`] if the result cannot be kept.
    pub fn run<T: Serialize + DeserializeOwned, E: From<FileError>>(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(directory) = &self.directory else { return make() };
        let hash = self.depending_on(name.as_bytes()).inputs.finalize().to_hex();
        let path = directory.join(format!("{name}-{}.json", &hash[..16]));
        let kept = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(kept) = kept {
            tracing::info!("{name}: kept in {}", path.display());
            return Ok(kept);
        }
        let made = make()?;
        write_atomic(&path, Overwrite::Allow, |out| Ok(serde_json::to_writer(out, &made)?))?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_made_once_per_input_and_again_when_its_file_is_broken() {
        let directory = tempfile::tempdir().unwrap();
        let made = std::cell::Cell::new(0);
        let run = |stages: &Stages| -> Result<Vec<f32>, FileError> {
            stages.run("stage", || {
                made.set(made.get() + 1);
                Ok(vec![0.1, 1e-40, -3.4e38])
            })
        };
        let stages = Stages::new(&directory.path().join("new")).unwrap().depending_on(b"model");
        let first = run(&stages).unwrap();
        assert_eq!(run(&stages).unwrap(), first);
        assert_eq!(made.get(), 1);
        run(&stages.depending_on(b"other")).unwrap();
        assert_eq!(made.get(), 2);
        for entry in std::fs::read_dir(directory.path().join("new")).unwrap() {
            std::fs::write(entry.unwrap().path(), "{").unwrap();
        }
        assert_eq!(run(&stages).unwrap(), first);
        assert_eq!(made.get(), 3);
    }
}
