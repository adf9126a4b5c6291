//! Tests of the built `cqc` and the files around it: links, placeholders, other formats, open
//! sizes, unfinished output, names that are not UTF-8.
#![cfg(unix)]

mod common;

use common::{Ran, cqc, done, line, model};
use cqc_proto::onnx::ModelProto;
use prost::Message;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn unet() -> PathBuf {
    model("ddpm-shapes32")
}

/// An artifact of two evaluations in `dir`.
fn artifact(dir: &Path) -> PathBuf {
    let path = dir.join("m.cq");
    let files = format!("{} -o {}", unet().display(), path.display());
    done(&format!("compile {files} --steps 2 --interval 1 --quant none"));
    path
}

fn names(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn says(ran: &Ran, parts: &[&str]) {
    parts.iter().for_each(|p| assert!(ran.stderr.contains(p), "`{p}` is not in: {}", ran.stderr));
}

/// The repository's model with its large weights in `model.onnx_data` beside it.
fn split(dir: &Path) -> (PathBuf, PathBuf) {
    use cqc_proto::onnx::StringStringEntryProto;
    let mut m = ModelProto::decode(std::fs::read(unet()).unwrap().as_slice()).unwrap();
    let mut data = Vec::new();
    for t in &mut m.graph.as_mut().unwrap().initializer {
        if t.raw_data.as_ref().is_none_or(|raw| raw.len() < 1024) {
            continue;
        }
        let Some(raw) = t.raw_data.take() else { continue };
        let entry =
            |key: &str, v: String| StringStringEntryProto { key: Some(key.into()), value: Some(v) };
        t.data_location = Some(1);
        t.external_data = vec![
            entry("location", "model.onnx_data".into()),
            entry("offset", data.len().to_string()),
            entry("length", raw.len().to_string()),
        ];
        data.extend_from_slice(&raw);
    }
    assert!(!data.is_empty());
    let (model, weights) = (dir.join("model.onnx"), dir.join("model.onnx_data"));
    std::fs::write(&model, m.encode_to_vec()).unwrap();
    std::fs::write(&weights, data).unwrap();
    (model, weights)
}

fn hash(path: &Path) -> String {
    let ran = cqc([OsStr::new("inspect"), path.as_os_str(), OsStr::new("--json")]);
    ran.json()["source"]["blake3"].as_str().unwrap().to_string()
}

#[test]
fn a_pipeline_of_links_compiles_and_its_hash_has_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, unet_dir) = (dir.path().join("blobs"), dir.path().join("snapshots/0/unet"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&unet_dir).unwrap();
    let (file, weights) = split(&blobs);
    std::fs::rename(&file, blobs.join("aa")).unwrap();
    std::fs::rename(&weights, blobs.join("bb")).unwrap();
    symlink("../../../blobs/aa", unet_dir.join("model.onnx")).unwrap();
    symlink("../../../blobs/bb", unet_dir.join("model.onnx_data")).unwrap();
    let pipeline = dir.path().join("snapshots/0");
    let out = dir.path().join("a.cq");
    let files = format!("{} -o {}", pipeline.display(), out.display());
    done(&format!("compile {files} --steps 2 --interval 1 --quant none"));
    let first = hash(&unet_dir.join("model.onnx"));
    assert_eq!(hash(&pipeline), first, "inspect takes the pipeline as well");
    done(&format!("eval {} --reference {} -n 1", out.display(), pipeline.display()));
    let mut data = std::fs::read(blobs.join("bb")).unwrap();
    data[0] ^= 1;
    std::fs::write(blobs.join("bb"), data).unwrap();
    assert_ne!(hash(&unet_dir.join("model.onnx")), first, "other weights are another model");
    assert_eq!(hash(&unet()), cachequant::io::file_hash(&unet()).unwrap(), "the file's alone");
    std::fs::remove_file(blobs.join("aa")).unwrap();
    let ran = line(&format!("compile {} -o {} --force", pipeline.display(), out.display()));
    says(&ran, &["is a link whose target does not exist"]);
}

#[test]
fn stages_are_not_taken_from_a_model_with_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (file, weights) = split(dir.path());
    let (out, work) = (dir.path().join("a.cq"), dir.path().join("work"));
    let compile = || {
        let files =
            format!("{} -o {} --work-dir {}", file.display(), out.display(), work.display());
        let ran = done(&format!(
            "compile {files} --force --steps 3 --interval 3 --quant none --calib-samples 2 --correct none --accept"
        ));
        (ran.stderr.contains("kept in"), names(&work).len())
    };
    assert_eq!(compile(), (false, 1));
    assert_eq!(compile(), (true, 1));
    let mut data = std::fs::read(&weights).unwrap();
    data[1] ^= 1;
    std::fs::write(&weights, data).unwrap();
    assert_eq!(compile(), (false, 2));
}

#[test]
fn placeholders_are_named_wherever_a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n";
    let put = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pointer).unwrap();
        path.display().to_string()
    };
    let (out, good) = (dir.path().join("o.cq").display().to_string(), unet().display().to_string());
    let compiled = artifact(dir.path()).display().to_string();
    let (model, cq, npy, npz) = (put("m.onnx"), put("a.cq"), put("x.npy"), put("x.npz"));
    let json = put("scheduler_config.json");
    for command in [
        format!("compile {model} -o {out}"),
        format!("doctor {model}"),
        format!("inspect {model}"),
        format!("sample {cq} -o {out}.npy"),
        format!("sample {compiled} --noise {npy} -o {out}.npy"),
        format!("sample {compiled} --noise {npz} -o {out}.npy"),
        format!("run {good} --input sample={npy}"),
        format!("compile {good} -o {out} --scheduler-config {json}"),
    ] {
        let ran = line(&command);
        assert_ne!(ran.code, 0, "{command}");
        says(&ran, &["Git LFS pointer", "git lfs pull"]);
    }
    assert!(line(&format!("doctor {model}")).stdout.contains("git lfs pull"));
}

#[test]
fn inputs_that_are_no_files_are_errors_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.npy");
    if !Command::new("mkfifo").arg(&pipe).status().is_ok_and(|made| made.success()) {
        eprintln!("skipped: no mkfifo");
        return;
    }
    let long = dir.path().join("long.npy");
    // a header that promises more than the file holds, in a sparse file of 1 TiB
    std::fs::File::create(&long).unwrap().set_len(1 << 40).unwrap();
    let compiled = artifact(dir.path()).display().to_string();
    let folder = dir.path().join("folder.npz");
    std::fs::create_dir(&folder).unwrap();
    let good = unet().display().to_string();
    for file in [&pipe, &folder, &long, &PathBuf::from("/dev/zero")].map(|p| p.display()) {
        for command in [
            format!("sample {compiled} --noise {file} -o {}/o.npy", dir.path().display()),
            format!("sample {compiled} --cond c={file} -o {}/o.npy", dir.path().display()),
            format!("run {good} --input sample={file}"),
            format!("compile {good} -o {}/o.cq --calib-noise {file}", dir.path().display()),
        ] {
            let ran = line(&command);
            assert!(ran.code == 1 || ran.code == 2, "{command}: {}", ran.stderr);
            assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
        }
    }
}

/// The model with the sizes of its sample left open.
fn open_sizes(path: &Path) {
    let mut m = ModelProto::decode(std::fs::read(unet()).unwrap().as_slice()).unwrap();
    let input = &mut m.graph.as_mut().unwrap().input[0];
    let shape = input.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut();
    for (dim, name) in shape.unwrap().dim[1..].iter_mut().zip(["channels", "height", "width"]) {
        (dim.dim_value, dim.dim_param) = (None, Some(name.into()));
    }
    std::fs::write(path, m.encode_to_vec()).unwrap();
}

#[test]
fn open_sizes_are_asked_for_at_once_and_proposed_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    open_sizes(&path);
    let out = dir.path().join("a.cq").display().to_string();
    let ran = line(&format!("compile {} -o {out}", path.display()));
    assert_eq!(ran.code, 2);
    says(&ran, &["help    --dim channels=SIZE --dim height=SIZE --dim width=SIZE"]);
    std::fs::write(dir.path().join("config.json"), r#"{"in_channels": 3, "sample_size": 32}"#)
        .unwrap();
    let options = "--dim channels=3 --dim height=32 --dim width=32";
    let ran = line(&format!("compile {} -o {out}", path.display()));
    says(&ran, &[&format!("help    {options}"), "sample_size = 32", "config.json"]);
    // `doctor` says the same, and then prints the command to run
    let ran = line(&format!("doctor {}", path.display()));
    assert_eq!(ran.code, 2);
    assert!(ran.stdout.contains(&format!("cqc doctor {} {options}", path.display())));
    let ran = done(&format!("doctor {} {options}", path.display()));
    let next = format!("cqc compile {} -o model.cq {options}", path.display());
    assert!(ran.stdout.contains(&next), "{}", ran.stdout);
}

#[test]
fn the_doctor_names_the_conditions_that_compiling_needs() {
    let ran = done(&format!("doctor {}", model("mobius-dit").display()));
    let next = ran.stdout.lines().find(|l| l.contains("next")).unwrap();
    assert!(next.contains("cqc compile") && next.contains("--cond"), "{next}");
    // labels are drawn from the model's own table
    let ran = done(&format!("doctor {}", model("dit-dy23").display()));
    let next = ran.stdout.lines().find(|l| l.contains("next")).unwrap();
    assert!(next.contains("cqc compile") && !next.contains("--labels"), "{next}");
}

/// Starts `sample`, and kills it when its unfinished output has more than `bytes` bytes.
fn killed(arguments: &str, partial: &Path, bytes: u64) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cqc"))
        .args(arguments.split_whitespace())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while partial.metadata().map_or(0, |m| m.len()) <= bytes {
        assert!(child.try_wait().unwrap().is_none(), "it was killed before it was done");
        assert!(begun.elapsed() < Duration::from_secs(300), "no sample in five minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_sample_is_continued_and_its_bytes_are_those_of_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = artifact(dir.path()).display().to_string();
    for extension in ["npy", "npz"] {
        let whole = dir.path().join(format!("whole.{extension}"));
        let part = dir.path().join(format!("part.{extension}"));
        let sample = |path: &Path| {
            format!("sample {artifact} -n 11 --batch 2 --seed 5 -o {}", path.display())
        };
        done(&sample(&whole));
        let partial = dir.path().join(format!("part.{extension}.partial"));
        killed(&sample(&part), &partial, 2 * 3 * 32 * 32 * 4);
        assert!(!part.exists(), "whole or absent");
        let other = line(&sample(&part).replace("--seed 5", "--seed 6"));
        assert_eq!(other.code, 1);
        says(&other, &["another command", "seed: 5 there, 6 here", "--force"]);
        let ran = done(&format!("{} --json", sample(&part)));
        assert!(ran.json()["resumed"].as_u64().unwrap() >= 2, "{}", ran.stdout);
        assert_eq!(std::fs::read(&part).unwrap(), std::fs::read(&whole).unwrap(), "{extension}");
    }
    assert_eq!(names(dir.path()), ["m.cq", "part.npy", "part.npz", "whole.npy", "whole.npz"]);
}

#[test]
fn a_grid_that_is_too_large_is_refused_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = artifact(dir.path()).display().to_string();
    let out = dir.path().join("a.png").display().to_string();
    let ran = line(&format!("sample {artifact} -n 500000 -o {out}"));
    assert_eq!(ran.code, 2);
    says(&ran, &["500000 samples", "a.npy"]);
    assert_eq!(names(dir.path()), ["m.cq"]);
}

#[test]
fn json_and_errors_survive_names_that_are_not_utf_8() {
    let dir = tempfile::tempdir().unwrap();
    let named = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
    let model = named(b"m\xff.onnx");
    if std::fs::copy(unet(), &model).is_err() {
        eprintln!("skipped: the file system wants UTF-8");
        return;
    }
    let run = |words: &str, more: &[(&str, OsString)]| {
        let mut arguments: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        for (option, value) in more {
            arguments.extend((!option.is_empty()).then(|| OsString::from(option)));
            arguments.push(value.clone());
        }
        cqc(arguments)
    };
    let (m, a, b) = (model.into_os_string(), named(b"a\xff.cq"), named(b"b\xff.cq"));
    let (a, b) = (a.into_os_string(), b.into_os_string());
    let compiled = "compile --json --steps 2 --interval 1 --quant none";
    for out in [&a, &b] {
        let json = run(compiled, &[("", m.clone()), ("-o", out.clone())]).json();
        assert!(json["output"].as_str().unwrap().ends_with("\u{fffd}.cq"), "{json}");
    }
    let npy = named(b"x\xff.npy").into_os_string();
    let sampled = run("sample --json -n 2", &[("", a.clone()), ("-o", npy.clone())]).json();
    assert!(sampled["output"].as_str().unwrap().ends_with("\u{fffd}.npy"));
    let mut noise = OsString::from("sample=");
    noise.push(&npy);
    let t = dir.path().join("t.npy");
    let time = cqc_proto::Tensor::from_i64(&[2], &[1, 2]);
    cachequant::io::write_npy(&t, &time, cachequant::io::Overwrite::Refuse).unwrap();
    let mut time = OsString::from("timestep=");
    time.push(&t);
    let inputs = [("--input", noise), ("--input", time)];
    let npz = named(b"y\xff.npz").into_os_string();
    let ran = [vec![("", m.clone()), ("-o", npz)], inputs.to_vec()].concat();
    run("run --json", &ran).json();
    for (words, files) in [
        ("doctor --json", vec![("", m.clone())]),
        ("inspect --json", vec![("", m.clone())]),
        ("inspect --json", vec![("", a.clone())]),
        ("diff --json", vec![("", a.clone()), ("", b.clone())]),
        ("bisect --json -n 1", vec![("", a.clone()), ("", b.clone())]),
        ("eval --json -n 1", vec![("", a.clone()), ("--reference", m.clone())]),
        ("export --json", vec![("", a.clone()), ("-o", named(b"e\xff").into_os_string())]),
    ] {
        run(words, &files).json();
    }
    let missing = named(b"none\xff.onnx").into_os_string();
    let ran = run("compile", &[("", missing), ("-o", a.clone())]);
    assert_eq!(ran.code, 1);
    says(&ran, &["a\u{fffd}.cq exists already"]);
}
