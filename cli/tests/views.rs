//! Views say what the engine does: `inspect` and the report against `bench --profile`.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/dit-dy23.onnx")
}

fn cqc(arguments: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cqc"));
    let out = command.args(arguments.split_whitespace()).env_remove("CQC_LOG").output().unwrap();
    assert!(out.status.success(), "{arguments}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Number format of the full program's steps by name, as they really ran.
fn profiled(artifact: &Path) -> BTreeMap<String, String> {
    let bench = cqc(&format!("bench {} --profile --repeat 1 --threads 2 --device cpu --json", artifact.display()));
    let bench: Value = serde_json::from_str(&bench).unwrap();
    let steps = bench["profile"].as_array().unwrap().iter().filter(|step| step["program"] == "full");
    let format = |step: &Value| match step["op"].as_str().unwrap().split_once(' ') {
        Some((_, format)) => format.to_string(),
        None => "f32".to_string(),
    };
    steps.map(|step| (step["name"].as_str().unwrap().to_string(), format(step))).collect()
}

#[test]
fn inspect_and_the_report_say_what_the_engine_multiplies() {
    let dir = tempfile::tempdir().unwrap();
    for quant in ["w8a8", "bf16"] {
        let [artifact, page] = ["cq", "html"].map(|kind| dir.path().join(format!("{quant}.{kind}")));
        let recipe = "--steps 4 --interval 2 --labels 0,1 --calib-samples 2 --calib-batch 1 --schedule uniform";
        cqc(&format!(
            "compile {} -o {} --report {} {recipe} --quant {quant} --threads 2",
            model().display(),
            artifact.display(),
            page.display()
        ));
        let profile = profiled(&artifact);
        let view: Value = serde_json::from_str(&cqc(&format!("inspect {} --json", artifact.display()))).unwrap();
        let layers = view["quant"]["layers"].as_array().unwrap();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for layer in layers {
            let (name, said) = (layer["name"].as_str().unwrap(), layer["kernel"].as_str().unwrap());
            assert_eq!(said.trim_start_matches("rounded "), profile[name], "{quant} {name}");
            *counts.entry(said).or_default() += 1;
        }
        assert!(layers.iter().any(|layer| layer["op"] == "attention"), "attention is among the layers");
        let text = cqc(&format!("inspect {}", artifact.display()));
        let count = |kernel| counts.get(kernel).copied().unwrap_or(0);
        let said = match quant {
            "bf16" => format!("this CPU multiplies {} of them as such", count("bf16")),
            _ => format!("multiplies {} as integers, {} as bf16", count("int8"), count("bf16")),
        };
        assert!(text.contains(&said), "{said}: {text}");
        let page = std::fs::read_to_string(page).unwrap();
        let kinds = [("int8", "as integers"), ("bf16", "in bf16"), ("rounded f32", "in f32, their operands rounded")];
        for (kernel, words) in kinds.into_iter().filter(|(kernel, _)| count(kernel) > 0) {
            assert!(page.contains(&format!("{} {words}", count(kernel))), "{quant} {kernel}");
        }
    }
}
