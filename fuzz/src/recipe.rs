//! Target `recipe`: a recipe as JSON and as TOML → its contradictions.

use crate::{Random, json};
use cachequant::Recipe;

/// Reads a recipe from either text, checks it, and reads back what it writes.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let json = serde_json::from_str::<Recipe>(text).ok();
    let toml = toml::from_str::<Recipe>(text).ok();
    for recipe in json.into_iter().chain(toml) {
        crate::depth::read();
        let _ = recipe.check();
        let written = serde_json::to_string(&recipe).expect("a recipe is JSON");
        let read = serde_json::from_str::<Recipe>(&written).expect("what was written is read");
        assert_eq!(serde_json::to_string(&read).expect("likewise"), written);
    }
}

/// The default, and one with many keys, in both forms.
pub fn seeds() -> Vec<Vec<u8>> {
    let full = r#"{"steps":20,"guidance":2.5,"interval":3,"schedule":"dps","cut":"auto","quant":"w8a8","calib_samples":8,"seed":1,"correct":"cache,quant","keep_float":["a","b"],"target":["sm_80"],"any_steps":true,"null_cond":{"c":"c.npy"}}"#;
    let default = serde_json::to_vec(&Recipe::default()).expect("a recipe is JSON");
    let toml = b"steps = 20\nguidance = 2.5\nquant = 'w4a8'\nschedule = 'quadratic'\n".to_vec();
    vec![full.as_bytes().to_vec(), default, toml]
}

/// Keys and values of recipes.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "steps", "guidance", "interval", "schedule", "cut", "quant", "calib_samples", "calib_batch", "calib_noise", "correct",
    "keep_float", "target", "any_steps", "sampler", "eta", "scheduler_config", "null_label", "null_cond", "cond", "seed",
    "threads", "cache_fit", "labels", "budget", "target_psnr", "float_work", "share_ranges", "variance_compensation",
    "calib_select", "reconstruct", "split_inputs", "refit_cache", "work_dir", "cost=0.3", "cfg", "auto", "uniform",
    "quadratic", "dps", "dps-output", "w8a8", "w4a8", "bf16", "none", "all", "cache", "ddim", "ddpm", "plms", "euler",
    "dpmpp-2m", "sm_80", "sm_90a", "nearest", "second-order", "teacher-forced", "sequential", "deep", "shallow", "90%",
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
