//! Limits of the command line for memory, mapped files and machine code.

mod common;

use common::{done, line, tests};
use cqc_proto::cq::{Artifact, Attached, encode_with};
use std::io::Cursor;
use std::path::PathBuf;

fn artifact(name: &str) -> PathBuf {
    tests().join("artifacts").join(format!("{name}.cq"))
}

#[test]
fn an_artifact_that_is_read_gives_what_a_mapped_one_gives() {
    let dir = tempfile::tempdir().unwrap();
    let samples = |name: &str, option: &str| {
        let out = dir.path().join(name);
        let from =
            format!("{} -n 2 --labels 1,2 --threads 1 --device cpu", artifact("v4").display());
        done(&format!("sample {from} -o {} {option}", out.display()));
        std::fs::read(out).unwrap()
    };
    let mapped = samples("a.npy", "");
    assert!(mapped == samples("b.npy", "--no-mmap"));
    // written and read in turn
    let cache = format!("--no-mmap --pack-cache {}", dir.path().join("packed").display());
    assert!(mapped == samples("c.npy", &cache) && mapped == samples("d.npy", &cache));
    done(&format!("inspect {} --no-mmap", artifact("v4").display()));
}

#[test]
fn more_memory_than_allowed_is_refused_and_says_how_much() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.npy");
    let from = format!("{} --labels 1 --device cpu -o {}", artifact("v4").display(), out.display());
    let refused = line(&format!("sample {from} -n 1 --max-memory 1K"));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for part in ["not enough memory", "needed", "0 B left of what is allowed", "--max-memory"] {
        assert!(refused.stderr.contains(part), "{part} in {}", refused.stderr);
    }
    assert!(!out.exists());
    done(&format!("sample {from} -n 1 --max-memory 4G"));
    let wrong = line(&format!("sample {from} -n 1 --max-memory lots"));
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("512M"), "{}", wrong.stderr);
}

#[test]
fn inspect_says_that_an_artifact_has_machine_code() {
    let read = |path: &PathBuf| Artifact::read(std::fs::read(path).unwrap().into()).unwrap();
    let plain = artifact("v7");
    assert!(line(&format!("inspect {} --json", plain.display())).json()["kernels"].is_null());
    let Artifact { manifest, weights, .. } = read(&plain);
    let constant = |i: usize| {
        let constant = &manifest.plan.constants[i];
        let start = constant.offset as usize;
        Ok(weights.slice(start..start + constant.stored_bytes().unwrap()))
    };
    let mut file = Cursor::new(Vec::new());
    encode_with(
        &mut file,
        &manifest,
        &Attached { kernels: Some(b"code"), pipeline: None },
        constant,
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("with.cq");
    std::fs::write(&path, file.into_inner()).unwrap();
    let json = line(&format!("inspect {} --json", path.display())).json();
    assert_eq!(json["kernels"]["bytes"], 4);
    let text = done(&format!("inspect {}", path.display())).stdout;
    assert!(text.contains("machine code") && text.contains("--artifact-kernels"), "{text}");
}

#[test]
fn calibrated_artifacts_say_what_computed_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.cq");
    let model = common::model("ddpm-shapes32");
    let options = "--steps 4 --interval 2 --quant none --calib-samples 2";
    done(&format!("compile {} -o {} {options}", model.display(), path.display()));
    let by = &line(&format!("inspect {} --json", path.display())).json()["calibration"]["made_by"];
    assert!(by["build"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")), "{by}");
    let isa = by["isa"].as_str().unwrap();
    assert!(["portable", "avx2", "avx512", "amx"].contains(&isa), "{by}");
    let text = done(&format!("inspect {}", path.display())).stdout;
    assert!(text.contains(&format!("on {isa}")), "{text}");
    // an artifact of an older version says that it does not know
    let old = done(&format!("inspect {}", artifact("v4").display())).stdout;
    assert!(old.contains("calibrated by a cqc that did not say which"), "{old}");
}
