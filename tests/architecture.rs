//! The dependency edges that ARCHITECTURE.md allows, checked against `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// The workspace crates on which a crate may depend, dev-dependencies included.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cqc-proto", &[]),
    ("cqc-kernels", &["cqc-proto"]),
    ("cqc-runtime", &["cqc-proto", "cqc-kernels"]),
    ("cqc-passes", &["cqc-proto", "cqc-kernels"]),
    ("cqc-pipeline", &["cqc-proto", "cqc-runtime"]),
    ("cachequant", &["cqc-proto", "cqc-kernels", "cqc-runtime", "cqc-pipeline", "cqc-passes"]),
    (
        "cachequant-cli",
        &["cachequant", "cqc-proto", "cqc-kernels", "cqc-runtime", "cqc-pipeline", "cqc-passes"],
    ),
    ("cachequant-python", &["cachequant", "cqc-proto", "cqc-runtime"]),
    ("cachequant-capi", &["cqc-proto", "cqc-runtime"]),
];

/// Crates that a program which embeds the runtime must not have to build.
const NOT_IN_RUNTIME: &[&str] = &[
    "prost",
    "clap",
    "petgraph",
    "indicatif",
    "miette",
    "tracing-subscriber",
    "png",
    "tokenizers",
    "cqc-passes",
];

fn metadata() -> serde_json::Value {
    // Only for this platform, because crates for other platforms were never downloaded.
    let platform = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let platform = String::from_utf8(platform.stdout).expect("rustc prints text");
    let host = platform
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            host,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn crates_depend_only_downwards() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let members: Vec<_> = packages.iter().filter(|p| p["source"].is_null()).collect();
    assert_eq!(
        members.len(),
        ALLOWED.len(),
        "a new crate needs a line in ALLOWED and in ARCHITECTURE.md"
    );
    for package in members {
        let name = package["name"].as_str().unwrap();
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(n, _)| *n == name)
            .unwrap_or_else(|| panic!("{name} is not in ALLOWED"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            assert!(
                !(on.starts_with("cqc") || on.starts_with("cachequant")) || allowed.contains(&on),
                "{name} depends on {on}, which ARCHITECTURE.md does not allow"
            );
        }
    }
}

#[test]
fn the_runtime_stays_light() {
    let metadata = metadata();
    let nodes: BTreeMap<&str, &serde_json::Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| (n["id"].as_str().unwrap(), n))
        .collect();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let start = *name_of.iter().find(|(_, n)| **n == "cqc-runtime").unwrap().0;
    let mut stack = vec![start];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let name = name_of[id];
        // Features are unified over the workspace here: proto depends on prost only with `onnx`,
        // which the runtime does not ask for.
        assert!(!NOT_IN_RUNTIME.contains(&name), "cqc-runtime reaches {name}");
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let normal =
                dependency["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null());
            let to = dependency["pkg"].as_str().unwrap();
            let optional_onnx = name == "cqc-proto" && name_of[to] == "prost";
            if normal && !optional_onnx {
                stack.push(to);
            }
        }
    }
}

#[test]
fn a_runtime_without_cuda_is_small() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "cqc-runtime",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--offline",
            "--locked",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    // name and version; a repeated crate has a mark after them
    let crates: BTreeSet<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
    assert!(crates.len() < 40, "cqc-runtime reaches {} crates", crates.len());
    let cuda = crates.iter().find(|name| name[0].contains("cuda") || name[0] == "libloading");
    assert_eq!(cuda, None, "the feature `cuda` is off");
    let named = WITHOUT_CUDA
        .iter()
        .flat_map(|folder| {
            rust_files(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        })
        .find(|path| std::fs::read_to_string(path).expect("a source is text").contains("cuda::"));
    assert_eq!(named, None, "only runtime/src/cuda names the backend");
}

/// Directories that may not name the CUDA backend.
const WITHOUT_CUDA: &[&str] = &["runtime/src/engine", "runtime/src/sampler"];

fn rust_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let paths = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path());
    let files = paths.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}
