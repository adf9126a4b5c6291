//! `compile --report`, and the output of `inspect` about quantized layers.

mod common;

use common::{done, line, model};
use serde_json::Value;
use std::path::Path;

/// A directory with an artifact and its page.
struct Made {
    dir: tempfile::TempDir,
    page: String,
}

const GUIDED: &str =
    "--steps 6 --guidance 2 --null-label 2 --calib-samples 4 --calib-batch 2 --threads 2";

fn make(model: &Path, recipe: &str) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let (out, report) = (dir.path().join("a.cq"), dir.path().join("a.html"));
    let files = format!("{} -o {} --report {}", model.display(), out.display(), report.display());
    done(&format!("compile {files} {recipe}"));
    let page = std::fs::read_to_string(report).unwrap();
    Made { dir, page }
}

impl Made {
    fn inspect(&self, more: &str) -> String {
        done(&format!("inspect {} {more}", self.dir.path().join("a.cq").display())).stdout
    }

    fn has(&self, section: &str) -> bool {
        self.page.contains(&format!("<section id=\"{section}\">"))
    }
}

/// Checks that every tag is closed, every attribute quoted and every `&` an entity, and that
/// nothing is loaded from elsewhere or executed.
fn check_page(page: &str) {
    let rest = page.strip_prefix("<!DOCTYPE html>\n").expect("it is HTML");
    let mut open: Vec<&str> = Vec::new();
    for tag in rest.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').expect("a tag ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "<{tag}>");
        assert!(tag.matches('"').count().is_multiple_of(2), "<{tag}>");
        let foreign =
            ["script", "link", "img", "iframe", "object", "embed", "base", "use"].contains(&name);
        assert!(
            !foreign && !["src=", "href=", " on"].iter().any(|attribute| tag.contains(attribute)),
            "<{tag}>"
        );
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
        let text = if name == "style" { "" } else { text };
        for part in format!("{tag}{text}").split('&').skip(1) {
            assert!(
                ["amp;", "lt;", "gt;", "quot;", "#39;"]
                    .iter()
                    .any(|entity| part.starts_with(entity)),
                "&{part}"
            );
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(!["http", "url(", "@import", "NaN"].iter().any(|part| page.contains(part)));
}

#[test]
fn a_page_shows_every_layer_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = dir.path().join("m.onnx");
    // a name of the same length, so that the rest of the file does not move
    let bytes = std::fs::read(model("dit-dy23")).unwrap();
    let (from, to) = (b"node_linear_", b"<i>\"'&</td>_");
    let mut out = bytes.clone();
    for at in (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)) {
        out[at..at + to.len()].copy_from_slice(to);
    }
    std::fs::write(&hostile, out).unwrap();

    let made = make(
        &hostile,
        &format!(
            "{GUIDED} --interval 2 --quant w8a8 --correct cache,quant=all --variance-compensation"
        ),
    );
    check_page(&made.page);
    let view: Value = serde_json::from_str(&made.inspect("--json")).unwrap();
    let layers = ["layers", "float_layers"]
        .into_iter()
        .flat_map(|key| view["quant"][key].as_array().unwrap());
    let names: Vec<&str> = layers.map(|layer| layer["name"].as_str().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("<i>\"'&</td>_")), "{names:?}");
    for name in names {
        let escaped = name
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&quot;")
            .replace('\'', "&#39;");
        assert!(made.page.contains(&format!("<code>{escaped}</code>")), "{name}");
    }
    for section in ["compiled", "schedule", "errors", "cost", "layers"] {
        assert!(made.has(section), "{section}");
    }
    for curve in ["cache", "quantization", "both", "artifact"] {
        assert!(made.page.contains(&format!("<path class=\"line {curve}\"")), "{curve}");
    }
}

/// The documented form of `inspect --json`.
#[test]
fn inspect_lists_quantized_layers_and_their_tables() {
    let made = make(
        &model("dit-dy23"),
        &format!("{GUIDED} --interval 2 --quant w4a8 --correct cache,quant=all"),
    );
    let view: Value = serde_json::from_str(&made.inspect("--json")).unwrap();
    let quant = &view["quant"];
    assert_eq!((&quant["kind"], &quant["rounding"]), (&"w4a8".into(), &"nearest".into()));
    assert!(quant["compensation"].is_null());
    let layers = quant["layers"].as_array().unwrap();
    assert!(layers.iter().any(|layer| layer["weight_bits"] == 4));
    let length = |value: &Value| value.as_array().unwrap().len();
    for layer in layers {
        let per_step = ["activation_scale", "activation_zero_point"].map(|key| length(&layer[key]));
        if layer["activation_bits"].is_null() {
            // its input is rounded to bf16
            assert_eq!(per_step, [0, 0]);
            assert!(
                ["bf16", "rounded f32"].contains(&layer["kernel"].as_str().unwrap()),
                "{layer}"
            );
            continue;
        }
        assert_eq!((per_step, &layer["activation_bits"]), ([6, 6], &8.into()));
        assert_eq!(layer["kernel"], "int8", "{}", layer["name"]);
        if layer["op"] == "attention" {
            assert_eq!(
                (length(&layer["activation_scale"][0]), &layer["weight_scale"]),
                (3, &Value::Null)
            );
        } else {
            assert!(layer["activation_scale"][0].as_f64().unwrap() > 0.0);
            assert!((0..=255).contains(&layer["activation_zero_point"][0].as_i64().unwrap()));
            assert!(length(&layer["weight_scale"]) >= 16);
        }
    }
    let corrected = view["corrections"]["quant"].as_array().unwrap();
    assert_eq!((length(&corrected[0]["a"]), length(&corrected[0]["b"])), (6, 6));
    assert_eq!(length(&corrected[0]["a"][0]), length(&corrected[0]["b"][5]));
    assert!(corrected.iter().all(|c| layers.iter().any(|layer| layer["name"] == c["layer"])));

    let text = made.inspect("");
    let all = layers.len() + quant["float_layers"].as_array().unwrap().len();
    for said in [
        "quant      w4a8, weights rounded nearest",
        &format!("quantized: {} of {all} layers, ", layers.len()),
        "float: 1 because fewer than 16 channels go in or out",
    ] {
        assert!(text.contains(said), "{said} in {text}");
    }
}

#[test]
fn what_does_not_exist_is_left_out() {
    // nothing is calibrated, so labels may be missing
    let plain = make(&model("dit-dy23"), "--steps 4 --interval 1 --quant none");
    check_page(&plain.page);
    let sections =
        ["compiled", "schedule", "errors", "cost", "layers"].map(|section| plain.has(section));
    assert_eq!(sections, [true, false, false, true, false]);
    let view: Value = serde_json::from_str(&plain.inspect("--json")).unwrap();
    assert_eq!(
        (&view["quant"], &view["corrections"]),
        (&serde_json::json!({"kind": "none", "layers": []}), &Value::Null)
    );

    let quantized =
        make(&model("dit-dy23"), &format!("{GUIDED} --interval 1 --quant w8a8 --correct none"));
    check_page(&quantized.page);
    let sections =
        ["compiled", "schedule", "errors", "cost", "layers"].map(|section| quantized.has(section));
    assert_eq!(sections, [true, false, true, true, true]);
    assert_eq!(
        quantized.page.matches("<path class=\"line ").count(),
        1,
        "quantization alone is the artifact"
    );
}

/// A fixed batch keeps the halves of guidance apart.
#[test]
fn split_batches_are_reported_too() {
    let made = make(&model("dit-ts14-static"), &format!("{GUIDED} --interval 2 --quant w8a8"));
    check_page(&made.page);
    assert!(made.has("errors") && made.has("layers") && made.has("schedule"));
}

#[test]
fn files_are_not_overwritten_and_that_is_said_first() {
    let dir = tempfile::tempdir().unwrap();
    let (out, report) = (dir.path().join("a.cq"), dir.path().join("a.html"));
    std::fs::write(&report, "mine").unwrap();
    let compile = |report: &Path, more: &str| {
        let files = format!(
            "{} -o {} --report {}",
            model("dit-dy23").display(),
            out.display(),
            report.display()
        );
        line(&format!("compile {files} --steps 4 --interval 1 --quant none {more}"))
    };
    let refused = compile(&report, "");
    let said = refused.stderr.contains("a.html") && refused.stderr.contains("--force");
    assert!(refused.code == 1 && said, "{}", refused.stderr);
    assert!(!out.exists() && std::fs::read(&report).unwrap() == b"mine");
    let refused = compile(&out, "");
    let said = refused.stderr.contains("name the same file");
    assert!(refused.code == 2 && said, "{}", refused.stderr);
    assert_eq!(compile(&report, "--force").code, 0);
    check_page(&std::fs::read_to_string(&report).unwrap());
}
