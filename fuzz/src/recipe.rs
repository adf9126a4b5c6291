//! Target `recipe`: a recipe as JSON and as TOML → its contradictions.

use crate::{Random, json};
use cachequant::Recipe;

/// Reads a recipe from either text, checks it, and reads back what one without contradictions
/// writes.
pub fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let json = serde_json::from_str::<Recipe>(text).ok();
    let toml = toml::from_str::<Recipe>(text).ok();
    let is_read = json.is_some() || toml.is_some();
    for recipe in json.into_iter().chain(toml) {
        crate::depth::read();
        if !recipe.check().is_empty() {
            continue;
        }
        let written = serde_json::to_string(&recipe).expect("a recipe is JSON");
        let read = serde_json::from_str::<Recipe>(&written).expect("what was written is read");
        assert_eq!(serde_json::to_string(&read).expect("likewise"), written);
    }
    is_read
}

/// The default, and one with many keys, in both forms.
pub fn seeds() -> Vec<Vec<u8>> {
    let full = r#"{"steps":20,"guidance":2.5,"interval":3,"schedule":"dps","cut":"auto","quant":"w8a8","calib-samples":8,"seed":1,"correct":"cache,quant","keep-float":["a","b"],"target":["sm_80"],"any-steps":true,"null-cond":{"c":"c.npy"}}"#;
    let default = serde_json::to_vec(&Recipe::default()).expect("a recipe is JSON");
    let toml = b"steps = 20\nguidance = 2.5\nquant = 'w4a8'\nschedule = 'quadratic'\n".to_vec();
    vec![full.as_bytes().to_vec(), default, toml]
}

/// Keys and values of recipes.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "steps", "guidance", "interval", "schedule", "cut", "quant", "calib-samples", "calib-batch", "calib-noise", "correct",
    "guidance-rescale", "guidance-interval", "0.2..0.8", "fill", "guidance-embedding",
    "keep-float", "target", "any-steps", "sampler", "eta", "scheduler-config", "null-label", "null-cond", "cond", "seed",
    "threads", "cache-fit", "labels", "budget", "target-psnr", "float-work", "share-ranges", "variance-compensation",
    "calib-select", "reconstruct", "split-inputs", "refit-cache", "work-dir", "cost=0.3", "cfg", "auto", "uniform",
    "quadratic", "dps", "dps-output", "w8a8", "w4a8", "bf16", "none", "all", "cache", "ddim", "ddpm", "plms", "euler",
    "dpm-multistep", "sm_80", "sm_90a", "nearest", "second-order", "teacher-forced", "sequential", "deep", "shallow", "90%",
    "0.5", "file.npy", "0,5,10", "tdac", "spectral", "kmeans", "first", "label:1",
];

/// Changes keys and values of JSON, or characters of TOML.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    if let Some(new) = json::mutate_text(data, WORDS, random) {
        return Some(new);
    }
    let mut text = std::str::from_utf8(data).ok()?.to_string();
    let table: toml::Table = text.parse().ok()?;
    let mut json = serde_json::to_value(table).ok()?;
    json::mutate(&mut json, WORDS, random);
    if let Ok(new) = toml::to_string(&json) {
        text = new;
    }
    Some(text.into_bytes())
}
