//! Results of long stages, kept in a directory so that an interrupted compilation goes on where it
//! stopped.
//!
//! A stage's file is named after the hash of everything it depends on, so that a directory can
//! serve any number of compilations, and nothing in it is ever wrong, only unused.

use crate::io::{FileError, Overwrite, write_atomic};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Where results of stages are kept, and for what compilation.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    directory: Option<PathBuf>,
    inputs: blake3::Hasher,
}

impl Stages {
    /// Nothing is kept.
    pub fn none() -> Stages {
        Stages::default()
    }

    /// In `directory`, which is made if need be.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn new(directory: &Path) -> Result<Stages, FileError> {
        std::fs::create_dir_all(directory).map_err(FileError::writing(directory))?;
        Ok(Stages { directory: Some(directory.to_path_buf()), inputs: blake3::Hasher::new() })
    }

    /// Results from now on also depend on this.
    #[must_use]
    pub fn depending_on(&self, what: &[u8]) -> Stages {
        let mut next = self.clone();
        next.inputs.update(&(what.len() as u64).to_le_bytes()).update(what);
        next
    }

    /// The result of a stage: from its file, or made and kept. A file that cannot be read is made
    /// again.
    ///
    /// # Errors
    /// Those of `make`, and [`FileError::Io`].
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
