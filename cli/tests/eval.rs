//! `eval`, `diff` and `bisect` of the built `cqc`, on models in few steps.

mod common;

use cachequant::io::{Overwrite, read_npz, write_npy, write_npz};
use common::line;
use cqc_proto::{DType, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn model(name: &str) -> String {
    common::model(name).display().to_string()
}

const UNET: &str = "ddpm-shapes32";
const DIT: &str = "dit-dy23";

/// A directory for all tests of this file, in cargo's own one.
fn dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("eval");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// An uncached artifact. Every test uses names of its own.
fn compiled(name: &str, options: &str) -> String {
    let path = dir().join(name).display().to_string();
    let ran = line(&format!("compile {options} --interval 1 --quant none -o {path} --force -q"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    path
}

fn number(json: &Value, pointer: &str) -> f64 {
    json.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {json}"))
}

#[test]
fn an_artifact_equals_its_own_model() {
    let artifact = compiled("own.cq", &format!("{} --steps 3", model(UNET)));
    let ran = line(&format!("eval {artifact} --reference {} -n 3 --batch 2 --json", model(UNET)));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let json = ran.json();
    assert_eq!((number(&json, "/psnr/mean"), number(&json, "/psnr/min")), (100.0, 100.0));
    assert_eq!((&json["psnr"]["identical"], &json["psnr"]["on"]), (&3.into(), &"uint8".into()));
    assert!((number(&json, "/ssim/mean") - 1.0).abs() < 1e-12);
    assert_eq!(json["trajectory"], serde_json::json!([0.0, 0.0, 0.0]));
    assert_eq!((&json["samples"], &json["features"]), (&3.into(), &Value::Null));
    let text = line(&format!("eval {artifact} --reference {artifact} -n 1 --max-frechet 1"));
    assert_eq!(text.code, 2, "no features, no distance");
}

#[test]
fn parts_have_the_figures_of_the_whole() {
    let (a, r) = (
        compiled("two.cq", &format!("{} --steps 2", model(UNET))),
        compiled("four.cq", &format!("{} --steps 4", model(UNET))),
    );
    let path = |name: &str| dir().join(name).display().to_string();
    let d = 12;
    let identity: Vec<u8> = (0..d * d)
        .flat_map(|i| (if i % (d + 1) == 0 { 0.25f64 } else { 0.0 }).to_le_bytes())
        .collect();
    let stats = [
        ("mu".to_string(), Tensor::from_f32(&[d], &vec![0.5; d])),
        ("sigma".to_string(), Tensor::new(DType::F64, vec![d, d], identity).unwrap()),
    ];
    write_npz(&dir().join("stats.npz"), &stats, Overwrite::Allow).unwrap();
    let real = format!("--real-stats {}", path("stats.npz"));
    let common =
        format!("eval {a} --reference {r} -n 14 --seed 3 --features {}", model("features-tiny"));
    let whole = line(&format!("{common} {real} --batch 5 --json"));
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let whole = whole.json();
    for pointer in ["/psnr/mean", "/ssim/mean", "/sqnr_db", "/features/frechet_to_real/distance"] {
        assert!(number(&whole, pointer).is_finite());
    }
    assert!(number(&whole, "/psnr/mean") < 60.0, "other steps, other images");
    assert!(number(&whole, "/features/frechet_to_reference/distance") > 0.0);
    assert!(number(&whole, "/features/inception_score/mean") >= 1.0);
    assert_eq!(whole["trajectory"], Value::Null, "other steps, other evaluations");
    assert_eq!(whole["features"]["extractor"]["dimensions"], 12);

    let parts: Vec<String> = (0..3).map(|i| path(&format!("p{i}.npz"))).collect();
    for (i, part) in parts.iter().enumerate() {
        let ran =
            line(&format!("{common} --batch {} --shard {i}/3 --partial {part} --force", i + 1));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        if i == 0 {
            assert!(ran.stderr.contains("4 images for 12 features"), "{}", ran.stderr);
        }
    }
    let merged =
        line(&format!("eval --merge {} {} {} {real} --json", parts[2], parts[0], parts[1])).json();
    assert_eq!(merged, whole);
    let missing = line(&format!("eval --merge {} {}", parts[0], parts[2]));
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("samples 4 to 8 are in no part"), "{}", missing.stderr);
    let target =
        line(&format!("eval --merge {} {real} --min-psnr 99 --max-frechet 0", parts.join(" ")));
    assert_eq!(target.code, 4, "{}", target.stderr);
    assert!(
        target.stdout.contains("PSNR dB")
            && target.stderr.contains("PSNR")
            && target.stderr.contains("Frechet")
    );
    assert_eq!(
        line(&format!("eval --merge {} {real} --min-psnr 0 --min-ssim -1", parts.join(" "))).code,
        0
    );

    // real features: those of the artifact itself, so that it covers them
    let features = read_npz(Path::new(&parts[0]))
        .unwrap()
        .into_iter()
        .find(|(n, _)| n == "features")
        .unwrap()
        .1;
    write_npy(&dir().join("real.npy"), &features, Overwrite::Allow).unwrap();
    let json = line(&format!(
        "eval --merge {} --real-features {} --json",
        parts.join(" "),
        path("real.npy")
    ))
    .json();
    assert_eq!(json["features"]["precision_recall"]["against"], "real");
    assert_eq!(number(&json, "/features/precision_recall/recall"), 1.0);
}

#[test]
fn labels_and_guidance_reach_both() {
    let artifact =
        compiled("dit.cq", &format!("{} --steps 3 --guidance 2 --null-label 8", model(DIT)));
    let options = "-n 3 --labels 1,2";
    let json = line(&format!("eval {artifact} --reference {} {options} --json", model(DIT))).json();
    assert_eq!(number(&json, "/psnr/min"), 100.0);
    assert_eq!(number(&json, "/guidance"), 2.0);
    let json = line(&format!("bisect {} {artifact} {options} --json", model(DIT))).json();
    assert_eq!(json["crossing"], Value::Null);
    let missing = line(&format!("eval {artifact} --reference {} -n 1", model(DIT)));
    assert_eq!(missing.code, 2, "{}", missing.stderr);
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let ddim = compiled("ddim.cq", &format!("{} --steps 2", model(UNET)));
    let euler = compiled("euler.cq", &format!("{} --steps 2 --sampler euler", model(UNET)));
    let dit = compiled("other.cq", &format!("{} --steps 2", model(DIT)));
    let ran = line(&format!("eval {ddim} --reference {euler} -n 1"));
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("different samplers") && ran.stderr.contains("euler"),
        "{}",
        ran.stderr
    );
    let ran = line(&format!("eval {ddim} --reference {dit} -n 1"));
    assert!(ran.code == 2 && ran.stderr.contains("different shapes"), "{}", ran.stderr);
    let ran = line(&format!("eval {ddim} --reference {ddim} -n 1 --features {}", model(UNET)));
    assert!(ran.code == 1 && ran.stderr.contains("makes no features"), "{}", ran.stderr);
    for text in [
        "eval",
        "eval a.cq",
        "eval --merge",
        "eval a.cq --reference b.cq --merge c.npz",
        "bisect a.cq",
        "diff a.cq",
    ] {
        assert_eq!(line(text).code, 2, "{text}");
    }
    for command in ["eval", "diff", "bisect"] {
        assert!(line(&format!("{command} --help")).stdout.contains("Examples:"), "{command}");
    }
}

#[test]
fn differences_are_named_and_exit_with_1() {
    let two = compiled("d2.cq", &format!("{} --steps 2", model(UNET)));
    let three = compiled("d3.cq", &format!("{} --steps 3 --eta 0.5", model(UNET)));
    let same = line(&format!("diff {two} {two}"));
    assert_eq!((same.code, same.stderr.as_str()), (0, ""));
    assert!(same.stdout.contains("nothing differs"), "{}", same.stdout);
    let ran = line(&format!("diff {} {two} --json", model(UNET)));
    assert_eq!((ran.code, &ran.json()["equal"]), (0, &true.into()), "{}", ran.stdout);

    let ran = line(&format!("diff {two} {three} --json"));
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    let json = ran.object();
    let changes = json["changes"].as_array().unwrap();
    let has =
        |part: &str, what: &str| changes.iter().any(|c| c["part"] == part && c["what"] == what);
    assert!(
        has("sampler", "eta") && has("settings", "steps") && !has("settings", "guidance"),
        "{json}"
    );
    assert!(
        json["constants"]["equal"].as_u64().unwrap() > 50,
        "weights are the same, tables are not"
    );
    let text = line(&format!("diff {two} {three}")).stdout;
    assert!(text.contains("steps  2  →  3"), "{text}");
}

/// The U-Net with a thousand of one layer's weights scaled; returns the file.
fn disturbed(name: &str) -> String {
    let mut bytes = std::fs::read(model(UNET)).unwrap();
    let middle = bytes.len() / 2;
    let at = (middle..).find(|&at| plausible(&bytes[at..at + 4096])).unwrap();
    for float in bytes[at..at + 4096].chunks_exact_mut(4) {
        let value = f32::from_le_bytes(float.try_into().unwrap()) * 1.5;
        float.copy_from_slice(&value.to_le_bytes());
    }
    let path = dir().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// Whether the bytes are floats of a trained layer.
fn plausible(bytes: &[u8]) -> bool {
    let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).abs());
    floats.clone().all(|v| (1e-8..4.0).contains(&v)) && floats.sum::<f32>() > 1.0
}

#[test]
fn a_changed_layer_is_found() {
    let (model, changed) = (model(UNET), disturbed("changed.onnx"));
    let json = line(&format!("diff {model} {changed} --json")).object();
    let differing = json["constants"]["differing"].as_array().unwrap();
    assert_eq!(differing.len(), 1, "{json}");
    assert!(differing[0]["max_abs"].as_f64().unwrap() > 0.0);

    let ran = line(&format!("bisect {model} {changed} --steps 3 --tolerance 1e-6 --json"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let json = ran.json();
    assert_eq!(json["crossing"]["evaluation"], 0);
    let nodes = &json["crossing"]["nodes"];
    let first = nodes["first"].as_u64().expect("a node differs") as usize;
    let values = nodes["values"].as_array().unwrap();
    assert!(first > 0 && first < values.len());
    assert!(
        values[..first].iter().all(|v| v["error"].as_f64().unwrap() == 0.0),
        "what stands before it is the same"
    );
    let text = line(&format!("bisect {model} {changed} --steps 3 --tolerance 1e-6")).stdout;
    assert!(text.contains("first node: "), "{text}");
    let text = line(&format!("bisect {model} {changed} --steps 3 --tolerance 10")).stdout;
    assert!(text.contains("nothing differs by more than 1e1"), "{text}");
}
