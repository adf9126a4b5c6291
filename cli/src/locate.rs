//! Where the model of a command lies.

use super::report::Failure;
use std::path::{Path, PathBuf};

/// A model's file and what stands around it.
pub struct Located {
    /// The .onnx file.
    pub model: PathBuf,
    /// The scheduler's configuration that a pipeline directory has.
    pub scheduler: Option<PathBuf>,
}

/// The model that `path` names: the file itself, or the denoiser of a pipeline directory. Links are
/// followed.
pub fn locate(path: &Path) -> Result<Located, Failure> {
    if !path.is_dir() {
        return Ok(Located { model: path.to_path_buf(), scheduler: None });
    }
    const PLACES: [&str; 3] = ["unet/model.onnx", "transformer/model.onnx", "model.onnx"];
    let places = || PLACES.iter().map(|place| path.join(place));
    let model = places().find(|p| p.is_file()).ok_or_else(|| {
        let failure = Failure::failed(format!("{} holds no exported denoiser", path.display()))
            .fact("wants", PLACES.join(", "));
        // is_file follows links, so this one leads nowhere, as in a cache that was half deleted
        match places().find(|p| p.symlink_metadata().is_ok_and(|found| found.is_symlink())) {
            Some(link) => failure
                .fact("seen", format!("{} is a link to no file", link.display()))
                .help("download the model again"),
            None => {
                failure.help("export the pipeline to ONNX first, e.g. with optimum-cli export onnx")
            }
        }
    })?;
    let scheduler = Some(path.join("scheduler/scheduler_config.json")).filter(|p| p.is_file());
    Ok(Located { model, scheduler })
}
