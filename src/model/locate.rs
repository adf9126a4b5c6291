//! Finds the model in a pipeline directory.

use super::ModelError;
use std::path::{Path, PathBuf};

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The .onnx file.
    pub model: PathBuf,
    /// The scheduler configuration of the pipeline directory, if there is one.
    pub scheduler: Option<PathBuf>,
}

/// Paths at which the denoiser of a directory is looked for, in this order.
pub const PLACES: [&str; 3] = ["unet/model.onnx", "transformer/model.onnx", "model.onnx"];

/// The model at `path`: the file itself, or the denoiser of a pipeline directory. Symbolic links
/// are followed.
///
/// # Errors
/// [`ModelError::NoModel`] for a directory without a denoiser.
pub fn locate(path: &Path) -> Result<Located, ModelError> {
    if !path.is_dir() {
        return Ok(Located { model: path.to_path_buf(), scheduler: None });
    }
    let places = || PLACES.iter().map(|place| path.join(place));
    let model = places().find(|p| p.is_file()).ok_or_else(|| {
        // `is_file` follows links, so this link leads nowhere, as in a cache that was deleted in
        // part
        let is_link = |p: &PathBuf| p.symlink_metadata().is_ok_and(|found| found.is_symlink());
        ModelError::NoModel { path: path.to_path_buf(), broken: places().find(is_link) }
    })?;
    let scheduler = Some(path.join("scheduler/scheduler_config.json")).filter(|p| p.is_file());
    Ok(Located { model, scheduler })
}
