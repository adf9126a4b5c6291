//! Proposes values for sizes that a model leaves open, from the configuration files that exporters
//! write beside it.

use cqc_passes::onnx::OpenSize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A proposed size, and the place where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The size.
    pub size: i64,
    /// The key of the configuration.
    pub key: String,
    /// Path of the configuration.
    pub file: PathBuf,
}

/// Largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 24;

/// A proposal for every axis of each of `open`, from the configuration files of the model at
/// `path`: `config.json` beside it or one directory up, and those of the pipeline's tokenizer and
/// text encoder.
///
/// The result is only a proposal, because the names of sizes are the exporter's and their meaning
/// is guessed.
pub fn propose(path: &Path, open: &[OpenSize]) -> Vec<Vec<Option<Proposal>>> {
    let configs = Configs::around(path);
    let of_axis = |size: &OpenSize, axis: usize| meaning(size, axis).and_then(|m| configs.find(m));
    open.iter().map(|size| size.axes.iter().map(|&axis| of_axis(size, axis)).collect()).collect()
}

/// The meaning of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Channels,
    /// Of images and latents.
    Height,
    Width,
    Frames,
    /// Number of tokens of the text.
    Length,
    /// Number of features of a token.
    Features,
    /// Number of features of the text as a whole.
    Pooled,
}

/// The meaning of a size: by its name, or else by the input's name and the position among its axes.
fn meaning(size: &OpenSize, axis: usize) -> Option<Meaning> {
    use Meaning::*;
    let name = match &size.symbol {
        Some(name) => name.to_lowercase(),
        None => size.shape.get(axis).map_or_else(String::new, |s| s.to_lowercase()),
    };
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if has(&["seq", "length", "token"]) || name == "len" {
        return Some(Length);
    }
    if has(&["channel"]) {
        return Some(Channels);
    }
    if has(&["height"]) || name == "h" {
        return Some(Height);
    }
    if has(&["width"]) || name == "w" {
        return Some(Width);
    }
    if has(&["frame"]) {
        return Some(Frames);
    }
    if has(&["hidden", "cross_attention", "embed", "feature"]) {
        return Some(Features);
    }
    let input = size.input.to_lowercase();
    let is = |parts: &[&str]| parts.iter().any(|part| input.contains(part));
    match (size.shape.len(), axis) {
        (4 | 5, 1) => Some(Channels),
        (4, 2) | (5, 3) => Some(Height),
        (4, 3) | (5, 4) => Some(Width),
        (5, 2) => Some(Frames),
        (3, 1) if is(&["encoder", "context", "text", "prompt"]) => Some(Length),
        (3, 2) if is(&["encoder", "context", "text", "prompt"]) => Some(Features),
        (2, 1) if is(&["pooled", "text_embeds"]) => Some(Pooled),
        (2, 1) if is(&["input_ids", "mask"]) => Some(Length),
        _ => None,
    }
}

/// The configurations of a network, of its tokenizer and of its text encoder.
struct Configs {
    network: Vec<(PathBuf, Value)>,
    tokenizer: Vec<(PathBuf, Value)>,
    text_encoder: Vec<(PathBuf, Value)>,
}

impl Configs {
    fn around(path: &Path) -> Configs {
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let up = folder.join("..");
        let in_both = |name: &str| {
            let paths = [folder.join(name), up.join(name)].into_iter();
            paths.filter_map(|p| json(&p).map(|config| (p, config))).collect()
        };
        Configs {
            network: in_both("config.json"),
            tokenizer: in_both("tokenizer/tokenizer_config.json"),
            text_encoder: in_both("text_encoder/config.json"),
        }
    }

    fn find(&self, meaning: Meaning) -> Option<Proposal> {
        let network = |keys: &[&str], at: usize| find(&self.network, keys, at);
        let text = |keys: &[&str]| find(&self.text_encoder, keys, 0);
        match meaning {
            Meaning::Channels => network(&["in_channels"], 0),
            Meaning::Height => network(&["sample_size", "sample_height", "input_size"], 0),
            Meaning::Width => network(&["sample_size", "sample_width", "input_size"], 1),
            Meaning::Frames => network(&["sample_frames", "num_frames"], 0),
            Meaning::Length => find(&self.tokenizer, &["model_max_length"], 0)
                .or_else(|| text(&["max_position_embeddings"]))
                .or_else(|| {
                    let keys =
                        ["model_max_length", "max_position_embeddings", "max_sequence_length"];
                    network(&keys, 0)
                }),
            Meaning::Features => {
                let keys = ["cross_attention_dim", "joint_attention_dim", "caption_channels"];
                network(&keys, 0).or_else(|| text(&["hidden_size", "d_model"]))
            }
            Meaning::Pooled => {
                network(&["pooled_projection_dim"], 0).or_else(|| text(&["projection_dim"]))
            }
        }
    }
}

fn json(path: &Path) -> Option<Value> {
    let found = path.metadata().ok()?;
    if !found.is_file() || found.len() > MAX_CONFIG {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The first key whose value is a size. Of a list of sizes, the one at index `at` or the last one
/// is taken.
fn find(configs: &[(PathBuf, Value)], keys: &[&str], at: usize) -> Option<Proposal> {
    let size = |value: &Value| {
        let value = match value {
            Value::Array(list) => list.get(at).or(list.last())?,
            one => one,
        };
        // tokenizers without a limit write 1e30
        value.as_i64().filter(|size| (1..=1 << 24).contains(size))
    };
    configs.iter().find_map(|(file, config)| {
        keys.iter().find_map(|key| {
            let size = size(config.get(key)?)?;
            Some(Proposal { size, key: key.to_string(), file: file.clone() })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(input: &str, shape: &[&str], axes: &[usize], symbol: Option<&str>) -> OpenSize {
        OpenSize {
            input: input.into(),
            shape: shape.iter().map(|s| s.to_string()).collect(),
            axes: axes.to_vec(),
            symbol: symbol.map(str::to_string),
        }
    }

    /// A pipeline as diffusers and optimum lay it out.
    #[test]
    fn a_pipelines_configurations_say_what_its_unet_leaves_open() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let unet = r#"{"in_channels": 4, "sample_size": [64, 96], "cross_attention_dim": 768}"#;
        write("unet/config.json", unet);
        write("tokenizer/tokenizer_config.json", r#"{"model_max_length": 77}"#);
        let path = dir.path().join("unet/model.onnx");
        let image = ["N", "unet_sample_channels", "height", "width"];
        let text = ["N", "unet_hidden_sequence", "768"];
        let proposed = propose(
            &path,
            &[
                open("sample", &image, &[1], Some("unet_sample_channels")),
                open("sample", &image, &[2], Some("height")),
                open("sample", &image, &[3], Some("width")),
                open("encoder_hidden_states", &text, &[1], Some("unet_hidden_sequence")),
                open("context", &["N", "?", "?"], &[1, 2], None),
                open("x", &["N", "?", "?", "?"], &[1, 2, 3], None),
                open("other", &["N", "k"], &[1], Some("k")),
            ],
        );
        let sizes: Vec<Vec<Option<i64>>> = proposed
            .iter()
            .map(|p| p.iter().map(|p| p.as_ref().map(|p| p.size)).collect())
            .collect();
        let some = |sizes: &[i64]| sizes.iter().map(|&s| Some(s)).collect::<Vec<_>>();
        let wants = [&[4][..], &[64], &[96], &[77], &[77, 768], &[4, 64, 96]].map(some);
        assert_eq!(sizes[..6], wants);
        assert_eq!(sizes[6], [None]);
        let proposal = proposed[1][0].as_ref().unwrap();
        assert_eq!(proposal.key, "sample_size");
        assert!(proposal.file.ends_with("unet/config.json"));
    }

    #[test]
    fn without_a_configuration_nothing_is_proposed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        let height = [open("x", &["N", "3", "h", "w"], &[2], Some("h"))];
        assert_eq!(propose(&path, &height), [[None]]);
        for text in ["{", "[]", r#"{"sample_size": null}"#, r#"{"sample_size": 1e30}"#] {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            assert_eq!(propose(&path, &height), [[None]], "{text}");
        }
    }
}
