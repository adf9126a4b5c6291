//! Compares what `inspect` and the report say about the engine with `bench --profile`.

mod common;

use common::{done, model};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Number format of the full program's steps by name, as they were executed.
fn profiled(artifact: &Path) -> BTreeMap<String, String> {
    let options = "--profile --repeat 1 --threads 2 --device cpu --json";
    let bench = done(&format!("bench {} {options}", artifact.display())).json();
    let steps =
        bench["profile"].as_array().unwrap().iter().filter(|step| step["program"] == "full");
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
        let [artifact, page] =
            ["cq", "html"].map(|kind| dir.path().join(format!("{quant}.{kind}")));
        let recipe = "--steps 4 --interval 2 --labels 0,1 --calib-samples 2 --calib-batch 1 --schedule uniform";
        done(&format!(
            "compile {} -o {} --report {} {recipe} --quant {quant} --threads 2",
            model("dit-dy23").display(),
            artifact.display(),
            page.display()
        ));
        let profile = profiled(&artifact);
        let view = done(&format!("inspect {} --json", artifact.display())).json();
        let layers = view["quant"]["layers"].as_array().unwrap();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for layer in layers {
            let (name, said) = (layer["name"].as_str().unwrap(), layer["kernel"].as_str().unwrap());
            assert_eq!(said.trim_start_matches("rounded "), profile[name], "{quant} {name}");
            *counts.entry(said).or_default() += 1;
        }
        assert!(
            layers.iter().any(|layer| layer["op"] == "attention"),
            "attention is among the layers"
        );
        let text = done(&format!("inspect {}", artifact.display())).stdout;
        let count = |kernel| counts.get(kernel).copied().unwrap_or(0);
        let said = match quant {
            "bf16" => format!("this CPU multiplies {} of them in bf16", count("bf16")),
            _ => format!("multiplies {} as integers, {} as bf16", count("int8"), count("bf16")),
        };
        assert!(text.contains(&said), "{said}: {text}");
        let page = std::fs::read_to_string(page).unwrap();
        let kinds = [
            ("int8", "as integers"),
            ("bf16", "in bf16"),
            ("rounded f32", "in f32, their operands rounded"),
        ];
        for (kernel, words) in kinds.into_iter().filter(|(kernel, _)| count(kernel) > 0) {
            assert!(page.contains(&format!("{} {words}", count(kernel))), "{quant} {kernel}");
        }
    }
}
