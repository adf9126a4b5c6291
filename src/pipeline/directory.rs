//! The directory of an exported pipeline.

use super::DirectoryError;
use crate::io::read_text;
use crate::model::{Located, locate};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A directory that holds a denoiser and at least a text encoder or a decoder, as `optimum-cli
/// export onnx` and Olive write it.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The directory.
    pub path: PathBuf,
    /// The denoiser and the configuration of the scheduler.
    pub denoiser: Located,
    /// The class of the pipeline, from `model_index.json`.
    pub class: String,
    /// The folders of the text encoders with those of their tokenizers.
    pub(super) text: Vec<(PathBuf, PathBuf)>,
    /// The folder of the decoder.
    pub(super) decoder: Option<PathBuf>,
    /// The folder of the encoder.
    pub(super) encoder: Option<PathBuf>,
    pub(super) index: Value,
}

impl Directory {
    /// The pipeline that `path` names; `None` for a file, and for a directory with a denoiser
    /// alone.
    ///
    /// # Errors
    /// [`DirectoryError`] if `model_index.json` cannot be read, or there is no denoiser.
    pub fn find(path: &Path) -> Result<Option<Directory>, DirectoryError> {
        let index = path.join("model_index.json");
        if !index.is_file() {
            return Ok(None);
        }
        let with_model = |name: &str| {
            let folder = path.join(name);
            folder.join("model.onnx").is_file().then_some(folder)
        };
        let numbered = |name: &str, i: usize| match i {
            1 => name.to_string(),
            i => format!("{name}_{i}"),
        };
        let text: Vec<(PathBuf, PathBuf)> = (1..=3)
            .filter_map(|i| {
                let tokenizer = path.join(numbered("tokenizer", i));
                Some((with_model(&numbered("text_encoder", i))?, tokenizer))
            })
            .collect();
        let decoder = with_model("vae_decoder");
        if text.is_empty() && decoder.is_none() {
            return Ok(None);
        }
        let encoder = with_model("vae_encoder");
        let index = config(&index)?;
        let class = index["_class_name"].as_str().unwrap_or_default();
        // the classes of optimum are named after those of diffusers
        let class = class.trim_start_matches("ORT").trim_start_matches("Onnx").to_string();
        let denoiser = locate(path)?;
        let path = path.to_path_buf();
        Ok(Some(Directory { path, denoiser, class, text, decoder, encoder, index }))
    }
}

/// A configuration.
pub(super) fn config(path: &Path) -> Result<Value, DirectoryError> {
    let text = read_text(path)?;
    serde_json::from_str(&text)
        .map_err(|e| DirectoryError::Config { path: path.into(), reason: e.to_string() })
}

/// The configuration of a folder; null if it has none.
pub(super) fn config_of(folder: &Path) -> Result<Value, DirectoryError> {
    let path = folder.join("config.json");
    if path.is_file() { config(&path) } else { Ok(Value::Null) }
}
