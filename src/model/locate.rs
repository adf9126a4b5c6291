//! Where the model of a path lies.

use super::ModelError;
use std::path::{Path, PathBuf};

/// A model's file and what stands around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The .onnx file.
    pub model: PathBuf,
    /// The scheduler's configuration that a pipeline directory has.
    pub scheduler: Option<PathBuf>,
}

/// Where the denoiser of a directory is looked for.
pub const PLACES: [&str; 3] = ["unet/model.onnx", "transformer/model.onnx", "model.onnx"];

/// The model that `path` names: the file itself, or the denoiser of a pipeline directory. Links are
/// followed.
///
/// # Errors
/// [`ModelError::NoModel`] for a directory that holds none.
pub fn locate(path: &Path) -> Result<Located, ModelError> {
    if !path.is_dir() {
        return Ok(Located { model: path.to_path_buf(), scheduler: None });
    }
    let places = || PLACES.iter().map(|place| path.join(place));
    let model = places().find(|p| p.is_file()).ok_or_else(|| {
        // is_file follows links, so this one leads nowhere, as in a cache that was half deleted
        let is_link = |p: &PathBuf| p.symlink_metadata().is_ok_and(|found| found.is_symlink());
        ModelError::NoModel { path: path.to_path_buf(), broken: places().find(is_link) }
    })?;
    let scheduler = Some(path.join("scheduler/scheduler_config.json")).filter(|p| p.is_file());
    Ok(Located { model, scheduler })
}
