//! Tokenizers of exported pipelines as `tokenizer.json`.

use super::DirectoryError;
use super::directory::config;
use crate::io::read_text;
use serde_json::{Value, json};
use std::path::Path;

/// The tokens that CLIP's pattern finds in a text, as transformers has it.
const CLIP_PATTERN: &str = "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|\
    [\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";

/// A tokenizer, and what its configurations say about it.
pub(super) struct Tokenizer {
    /// The text of its `tokenizer.json`.
    pub json: String,
    /// The token that pads.
    pub pad: u32,
    /// The most tokens of a text, if there is a limit.
    pub longest: Option<usize>,
}

/// Reads the tokenizer in a folder: `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.
pub(super) fn read(folder: &Path) -> Result<Tokenizer, DirectoryError> {
    let own = folder.join("tokenizer.json");
    let settings = folder.join("tokenizer_config.json");
    let settings = if settings.is_file() { config(&settings)? } else { Value::Null };
    let special = folder.join("special_tokens_map.json");
    let special = if special.is_file() { config(&special)? } else { Value::Null };
    let tokenizer = if own.is_file() { config(&own)? } else { clip(folder)? };
    let wrong =
        |reason: &str| DirectoryError::Config { path: folder.into(), reason: reason.into() };
    let named = |from: &Value| {
        let token = &from["pad_token"];
        token.as_str().or(token["content"].as_str()).map(str::to_string)
    };
    let pad = named(&settings)
        .or(named(&special))
        .or(tokenizer["padding"]["pad_token"].as_str().map(str::to_string));
    let pad = pad.ok_or_else(|| wrong("its tokenizer names no token that pads"))?;
    let pad = id_of(&tokenizer, &pad)
        .ok_or_else(|| wrong("the token that pads is not in its vocabulary"))?;
    let longest = settings["model_max_length"].as_f64().filter(|&n| (1.0..1e6).contains(&n));
    Ok(Tokenizer { json: tokenizer.to_string(), pad, longest: longest.map(|n| n as usize) })
}

/// The number of a token: an added one, or one of the vocabulary.
fn id_of(tokenizer: &Value, token: &str) -> Option<u32> {
    let added = tokenizer["added_tokens"].as_array();
    let added = added.into_iter().flatten().find(|t| t["content"].as_str() == Some(token));
    let id = added.and_then(|t| t["id"].as_u64()).or_else(|| {
        let vocabulary = &tokenizer["model"]["vocab"];
        let listed = || {
            vocabulary
                .as_array()?
                .iter()
                .position(|t| t[0].as_str() == Some(token))
                .map(|i| i as u64)
        };
        vocabulary[token].as_u64().or_else(listed)
    });
    u32::try_from(id?).ok()
}

/// CLIP's tokenizer from its vocabulary and merges, as `CLIPTokenizerFast` of transformers makes
/// it.
fn clip(folder: &Path) -> Result<Value, DirectoryError> {
    let vocab = config(&folder.join("vocab.json"))?;
    let merges = read_text(&folder.join("merges.txt"))?;
    let merges: Vec<&str> =
        merges.lines().filter(|l| !l.starts_with("#version") && !l.trim().is_empty()).collect();
    let special = |token: &str| {
        let id = vocab[token].as_u64();
        id.ok_or_else(|| DirectoryError::Config {
            path: folder.join("vocab.json"),
            reason: format!("it has no token {token}"),
        })
    };
    let (start, end) = ("<|startoftext|>", "<|endoftext|>");
    let (start_id, end_id) = (special(start)?, special(end)?);
    let added = |content: &str, id: u64| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(start, start_id), added(end, end_id)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": CLIP_PATTERN }, "behavior": "Removed",
              "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
              "use_regex": true },
        ] },
        "post_processor": { "type": "RobertaProcessing", "sep": [end, end_id],
            "cls": [start, start_id], "trim_offsets": false, "add_prefix_space": false },
        "decoder": null,
        "model": { "type": "BPE", "dropout": null, "unk_token": end,
            "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": merges },
    }))
}
