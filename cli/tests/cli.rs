//! Tests of the built `cqc`: what users see of it.

mod common;

use cachequant::io::{Overwrite, read_npy, read_npz, write_npy};
use common::{cqc, done, line, tests};
use cqc_proto::Tensor;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn model() -> PathBuf {
    common::model("ddpm-shapes32")
}

/// A directory with an uncached artifact of the model in the repository, with few steps.
fn compiled(steps: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.cq");
    let files = format!("{} -o {}", model().display(), path.display());
    done(&format!("compile {files} --steps {steps} --interval 1 --quant none"));
    (dir, path)
}

#[test]
fn help_and_versions_go_to_stdout() {
    for text in ["--help", "-h", "help compile", "sample --help", "--version"] {
        let ran = line(text);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{text}");
        assert!(!ran.stdout.is_empty());
    }
    for command in ["compile", "sample"] {
        assert!(line(&format!("{command} --help")).stdout.contains("Examples:"), "{command}");
    }
}

#[test]
fn usage_errors_exit_with_2_and_say_nothing_on_stdout() {
    for text in [
        "",
        "no-such-command",
        "compile",
        "compile m.onnx",
        "compile m.onnx -o a.cq --steps many",
        "compile m.onnx -o a.cq --sampler leapfrog",
        "compile m.onnx -o a.cq --calib-samples 1",
        "compile m.onnx -o a.cq --interval 0",
        "compile m.onnx -o a.cq --schedule sometimes",
        "compile m.onnx -o a.cq --schedule quadratic=15",
        "compile m.onnx -o a.cq --cut cost=2",
        "compile m.onnx -o a.cq --correct none,cache",
        "compile m.onnx -o a.cq --shape sample=1xx3",
        "sample a.cq -o a.png --shard 4/4",
        "sample a.cq -o a.gif",
        "run m.onnx --input x",
        "run m.onnx -o a.txt",
        "inspect m.onnx --dump-after no-such-pass",
        "bench m.cq --batch 0",
        "man no-such-command",
        "inspect m.onnx --json --dump-after import",
    ] {
        let ran = line(text);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{text}: {}", ran.stderr);
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for (option, said) in [
        ("--quant bf16 --reconstruct", "--reconstruct: with bf16 nothing is fitted (--quant bf16)"),
        (
            "--quant bf16 --keep-float auto",
            "--keep-float auto: with bf16 nothing is fitted (--quant bf16)",
        ),
        (
            "--quant bf16 --interval 1 --budget 1h",
            "--budget: nothing is calibrated (--interval 1, --quant bf16)",
        ),
        ("--correct none,cache", "--correct none,cache: none excludes everything else"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.cq");
        let ran = line(&format!("compile {} -o {} {option}", model().display(), out.display()));
        assert_eq!(ran.code, 2, "{option}");
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert!(!out.exists());
    }
}

#[test]
fn errors_have_facts_in_columns() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.onnx");
    std::fs::write(&text, "this is no model\n").unwrap();
    let ran = cqc([OsStr::new("inspect"), text.as_os_str()]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .starts_with(&format!("error: {} is not an ONNX model\n  seen    ", text.display())),
        "{}",
        ran.stderr
    );
    let ran = line("inspect /no/such/file.onnx");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("/no/such/file.onnx"), "{}", ran.stderr);
}

#[test]
fn generated_files_are_complete() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = line(&format!("completions {shell}"));
        assert!(ran.code == 0 && ran.stdout.contains("scheduler-config"), "{shell}");
    }
    assert!(line("man").stdout.contains(".TH cqc 1"));
    let page = line("man sample").stdout;
    assert!(page.contains("cqc\\-sample") && page.contains("\\-\\-labels"), "{page}");
}

#[test]
fn an_output_is_replaced_only_with_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.cq");
    std::fs::write(&out, "precious").unwrap();
    let command = format!(
        "compile {} -o {} --steps 2 --interval 1 --quant none",
        model().display(),
        out.display()
    );
    let ran = line(&command);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("exists already\n  help    --force"), "{}", ran.stderr);
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(line(&format!("{command} --force")).code, 0);
    assert_ne!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_recipe_is_read_and_the_command_line_wins() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, out) = (dir.path().join("r.toml"), dir.path().join("a.cq"));
    let compile = |extra: &str| {
        line(&format!(
            "compile {} -o {} --force --recipe {} {extra} --json",
            model().display(),
            out.display(),
            recipe.display()
        ))
    };
    std::fs::write(&recipe, "steps = 4\nsampler = 'ddpm'\ninterval = 1\nquant = 'none'\n").unwrap();
    assert_eq!(compile("").json()["steps"], 4);
    assert_eq!(compile("--steps 3").json()["steps"], 3);
    assert_eq!(
        line(&format!("inspect {} --json", out.display())).json()["sampler"]["kind"],
        "ddpm"
    );
    std::fs::write(&recipe, "stesp = 4\n").unwrap();
    let ran = compile("");
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("unknown key `stesp`"), "{}", ran.stderr);
}

#[test]
fn samples_do_not_depend_on_batch_threads_and_shard() {
    let (dir, artifact) = compiled(3);
    let sample = |name: &str, options: &str| {
        let out = dir.path().join(name);
        let ran =
            line(&format!("sample {} -o {} --seed 7 {options}", artifact.display(), out.display()));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout, "");
        out
    };
    let all = std::fs::read(sample("all.npy", "-n 3")).unwrap();
    assert_eq!(all, std::fs::read(sample("again.npy", "-n 3")).unwrap(), "run twice");
    assert_eq!(
        all,
        std::fs::read(sample("one.npy", "-n 3 --batch 1 --threads 1")).unwrap(),
        "batch 1, one thread"
    );
    assert_eq!(
        all,
        std::fs::read(sample("three.npy", "-n 3 --batch 2 --threads 3")).unwrap(),
        "batch 2, three threads"
    );
    let all = read_npy(&dir.path().join("all.npy")).unwrap();
    assert_eq!(all.shape(), [3, 3, 32, 32]);
    let part = |i: usize| {
        read_npy(&sample(&format!("part{i}.npy"), &format!("-n 3 --shard {i}/2"))).unwrap()
    };
    assert_eq!([part(0).to_f32_vec(), part(1).to_f32_vec()].concat(), all.to_f32_vec(), "shards");
}

#[test]
fn samples_are_written_in_every_format() {
    let (dir, artifact) = compiled(2);
    let path = |name: &str| dir.path().join(name);
    let sample = |name: &str, options: &str| {
        line(&format!("sample {} -o {} {options}", artifact.display(), path(name).display()))
    };
    assert_eq!(sample("a.png", "-n 5").code, 0);
    let png = std::fs::read(path("a.png")).unwrap();
    assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
    let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!(
        (size(16), size(20)),
        (2 + 3 * 34, 2 + 2 * 34),
        "three by two images, 2 pixels between and around"
    );

    let noise: Vec<f32> =
        (0..2 * 3 * 32 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
    write_npy(&path("noise.npy"), &Tensor::from_f32(&[2, 3, 32, 32], &noise), Overwrite::Refuse)
        .unwrap();
    let from_noise = format!("--noise {}", path("noise.npy").display());
    let report =
        sample("a.npz", &format!("{from_noise} --json --trace {}", path("t.json").display()))
            .json();
    assert_eq!((&report["samples"], &report["evaluations"]), (&2.into(), &2.into()));
    let arrays = read_npz(&path("a.npz")).unwrap();
    assert_eq!(
        (arrays.len(), arrays[0].0.as_str(), arrays[0].1.shape()),
        (1, "samples", &[2, 3, 32, 32][..])
    );
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("t.json")).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().len() > 10);

    assert_eq!(sample("b.npy", &format!("{from_noise} -n 3")).code, 2, "more samples than noise");
    assert_eq!(sample("b.npy", "--labels 1").code, 2, "the model takes no labels");
}

#[test]
fn a_model_is_run_on_arrays() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let check = tests().join("models/ddpm-shapes32.check.npz");
    let recorded = read_npz(&check).unwrap();
    let array =
        |name: &str| recorded.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone()).unwrap();
    write_npy(&path("x.npy"), &array("in_sample"), Overwrite::Refuse).unwrap();
    write_npy(&path("t.npy"), &array("in_timestep"), Overwrite::Refuse).unwrap();
    let inputs = format!(
        "--input sample={} --input timestep={}",
        path("x.npy").display(),
        path("t.npy").display()
    );
    let run = |options: &str| line(&format!("run {} {inputs} {options}", model().display()));
    assert_eq!(run(&format!("-o {}", path("y.npz").display())).code, 0);
    let outputs = read_npz(&path("y.npz")).unwrap();
    assert_eq!((outputs.len(), outputs[0].0.as_str()), (1, "out_sample"));
    let expected = array("out_out_sample").to_f32_vec();
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let difference = outputs[0]
        .1
        .to_f32_vec()
        .iter()
        .zip(&expected)
        .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference <= 1e-4 * largest, "{difference} of {largest}"); // float32, sums in another order than torch's

    assert!(run("").stdout.contains("out_sample"), "a summary without -o");
    assert_eq!(run("--json").json()["outputs"][0]["shape"], serde_json::json!([2, 3, 32, 32]));
    assert_eq!(run("--tap no-such-value").code, 2);
    let missing =
        line(&format!("run {} --input sample={}", model().display(), path("x.npy").display()));
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("input `timestep` is missing"), "{}", missing.stderr);
}

#[test]
fn one_step_of_an_artifact_is_the_model_at_its_time_step() {
    let (dir, artifact) = compiled(5);
    let path = |name: &str| dir.path().join(name);
    let values: Vec<f32> = (0..3 * 32 * 32).map(|i| ((i * 53 % 89) as f32 - 44.0) / 40.0).collect();
    write_npy(&path("x.npy"), &Tensor::from_f32(&[1, 3, 32, 32], &values), Overwrite::Refuse)
        .unwrap();
    // leading spacing: 5 steps of 1000 are 800, 600, 400, 200, 0
    write_npy(&path("t.npy"), &Tensor::from_i64(&[1], &[600]), Overwrite::Refuse).unwrap();
    let input = format!("--input sample={}", path("x.npy").display());
    let run = |text: String| {
        let ran = line(&text);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    };
    run(format!("run {} {input} --step 1 -o {}", artifact.display(), path("a.npy").display()));
    let time = format!("--input timestep={}", path("t.npy").display());
    run(format!("run {} {input} {time} -o {}", model().display(), path("b.npy").display()));
    let [a, b] = ["a.npy", "b.npy"].map(|name| read_npy(&path(name)).unwrap().to_f32_vec());
    let difference = a.iter().zip(&b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference < 1e-5, "{difference}"); // tables are computed by the definitions, not by the kernels
    assert_eq!(
        line(&format!("run {} {input} --step 5", artifact.display())).code,
        2,
        "there are five"
    );
}

#[test]
fn models_and_artifacts_can_be_inspected() {
    let (dir, artifact) = compiled(4);
    let model = model();
    let text = line(&format!("inspect {}", model.display()));
    assert_eq!(text.code, 0, "{}", text.stderr);
    for part in
        ["group_norm", "multiply-accumulates", "moves out of the denoising loop", "f32[N,3,32,32]"]
    {
        assert!(text.stdout.contains(part), "{part} in {}", text.stdout);
    }
    let json = line(&format!("inspect {} --json", model.display())).json();
    assert_eq!(json["inputs"][0]["shape"], serde_json::json!(["N", 3, 32, 32]));
    assert!(json["macs"].as_i64().unwrap() > 500_000_000);
    let cuts = json["cuts"].as_array().unwrap();
    let auto: Vec<_> = cuts.iter().filter(|c| c["auto"] == true).collect();
    assert_eq!((cuts.len(), auto.len()), (8, 1));
    assert_eq!(auto[0]["kind"], "tensors");
    assert_eq!(auto[0]["tensors"][0]["shape"], serde_json::json!(["N", 32, 32, 32]));
    let name = auto[0]["tensors"][0]["name"].as_str().unwrap();
    assert!(text.stdout.contains(&format!("auto  {name}")), "{}", text.stdout);

    let dump = line(&format!("inspect {} --dump-after fuse-silu", model.display()));
    assert!(dump.stdout.starts_with("; after fuse-silu\ngraph("), "{}", dump.stdout);
    let first = line(&format!("inspect {} --stop-after 0", model.display()));
    assert!(
        first.stdout.contains("graph(") && first.stdout.contains("sigmoid("),
        "nothing is fused yet"
    );

    let json = line(&format!("inspect {} --json", artifact.display())).json();
    assert_eq!(json["format_version"], cqc_proto::cq::VERSION);
    assert_eq!(json["sampler"]["timesteps"], serde_json::json!([750, 500, 250, 0]));
    assert_eq!(json["sampler"]["clip_sample"], true);
    assert_eq!(
        (&json["schedule"]["kind"], &json["quant"]["kind"]),
        (&"none".into(), &"none".into())
    );
    assert_eq!(json["programs"][0]["name"], "full");
    let text = line(&format!("inspect {}", artifact.display()));
    assert!(text.code == 0 && text.stdout.contains("ddim"), "{}{}", text.stdout, text.stderr);

    for (source, name) in [(&model, "m.dot"), (&artifact, "a.dot")] {
        let dot = dir.path().join(name);
        assert_eq!(line(&format!("inspect {} --dot {}", source.display(), dot.display())).code, 0);
        let drawn = std::fs::read_to_string(&dot).unwrap();
        assert!(drawn.starts_with("digraph") && drawn.contains("conv") && drawn.ends_with("}\n"));
    }
}

#[test]
fn bench_prints_what_the_comparison_with_peers_reads() {
    let (dir, artifact) = compiled(3);
    let (model, out) = (model(), dir.path().join("y.bin"));
    for source in [&artifact, &model] {
        let json =
            line(&format!("bench {} --repeat 2 --threads 1 --json", source.display())).json();
        for key in
            ["full_step_ms", "loop_ms", "open_ms", "macs_full", "peak_memory_bytes", "peak_rss_mb"]
        {
            assert!(json[key].as_f64().unwrap() > 0.0, "{key} in {json}");
        }
        assert_eq!(
            (&json["threads"], &json["batch"], &json["dtype"]),
            (&1.into(), &1.into(), &"f32".into())
        );
        assert!(json["ms"].as_array().unwrap().len() >= 2);
        assert_eq!(json["cached_step_ms"], serde_json::Value::Null);
    }
    let prefix = dir.path().join("p");
    std::fs::write(dir.path().join("p.in.sample.bin"), vec![0u8; 2 * 3 * 32 * 32 * 4]).unwrap();
    std::fs::write(dir.path().join("p.in.timestep.bin"), [5i64, 6].map(i64::to_le_bytes).concat())
        .unwrap();
    let options = format!(
        "--repeat 1 --batch 2 --inputs {} --output {} --json",
        prefix.display(),
        out.display()
    );
    let json = line(&format!("bench {} {options}", model.display())).json();
    assert_eq!(json["output"], out.to_str().unwrap());
    assert_eq!(std::fs::metadata(out).unwrap().len(), 2 * 3 * 32 * 32 * 4);
    let text = line(&format!("bench {} --repeat 1 --profile", artifact.display()));
    assert!(
        text.code == 0 && text.stdout.contains("conv") && text.stdout.contains("per step"),
        "{}",
        text.stdout
    );
}

#[test]
fn packed_weights_are_kept_where_one_says() {
    let (dir, artifact) = compiled(3);
    let cache = dir.path().join("packed");
    let samples = |name: &str, cache: &Path| {
        let out = dir.path().join(name);
        let options =
            format!("-n 1 --threads 1 -o {} --pack-cache {}", out.display(), cache.display());
        let ran = line(&format!("sample {} {options}", artifact.display()));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (std::fs::read(out).unwrap(), ran.stderr)
    };
    let (first, _) = samples("1.npy", &cache);
    let files = || cache.read_dir().unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>();
    let kept = files();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let written = std::fs::metadata(&kept[0]).unwrap().modified().unwrap();
    let (second, said) = samples("2.npy", &cache);
    assert!(first == second && !said.contains("packed"), "{said}");
    assert_eq!(
        std::fs::metadata(&kept[0]).unwrap().modified().unwrap(),
        written,
        "not written again"
    );
    // a file is not a directory: a warning says so, but the samples are made
    let (third, said) = samples("3.npy", &kept[0]);
    assert!(first == third && said.contains("packed weights could not be kept"), "{said}");
}

#[test]
fn the_doctor_forecasts_and_finds_nothing_wrong() {
    let ran = line(&format!("doctor {}", model().display()));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in ["exporter", "free (N)", "i64 vector", "a denoiser", "ms per evaluation"] {
        assert!(ran.stdout.contains(part), "{part} in {}", ran.stdout);
    }
    assert_eq!(line(&format!("doctor {} --json", model().display())).json()["supported"], true);
}

#[test]
fn every_unsupported_node_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.onnx");
    let mut bytes = std::fs::read(model()).unwrap();
    let (known, odd) = (b"\"\x07Softmax", b"\"\x07Softmay"); // the field `op_type` of a node
    let places: Vec<usize> =
        (0..bytes.len() - known.len()).filter(|&i| bytes[i..].starts_with(known)).collect();
    places.iter().for_each(|&at| bytes[at..at + odd.len()].copy_from_slice(odd));
    std::fs::write(&path, bytes).unwrap();
    assert!(places.len() > 1);
    for command in ["doctor", "inspect"] {
        let ran = line(&format!("{command} {}", path.display()));
        assert_eq!(ran.code, 3);
        assert_eq!(ran.stderr.matches("Softmay").count(), places.len(), "{}", ran.stderr);
    }
}

#[test]
fn a_damaged_artifact_is_an_error() {
    let (dir, artifact) = compiled(1);
    let whole = std::fs::read(&artifact).unwrap();
    let broken = dir.path().join("broken.cq");
    for bytes in [&whole[..whole.len() / 2], &whole[..40], b"", b"text"] {
        std::fs::write(&broken, bytes).unwrap();
        let ran =
            line(&format!("sample {} -o {}", broken.display(), dir.path().join("x.png").display()));
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    let (dir, artifact) = compiled(300);
    let out = dir.path().join("x.npy");
    let arguments = [
        "sample".as_ref(),
        artifact.as_os_str(),
        "-n".as_ref(),
        "64".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ];
    let mut running = Command::new(env!("CARGO_BIN_EXE_cqc"))
        .args(arguments)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let sent = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(running.wait().unwrap().code(), Some(5));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the artifact and nothing else");
}

#[test]
fn export_writes_a_directory_that_explains_itself() {
    let (dir, artifact) = compiled(3);
    let out = dir.path().join("out");
    let command = format!("export {} -o {} --json", artifact.display(), out.display());
    let json = line(&command).json();
    let files = json["files"].as_array().unwrap();
    assert!(files.iter().all(|f| out.join(f.as_str().unwrap()).is_file()), "{files:?}");
    let schedule: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("schedule.json")).unwrap()).unwrap();
    assert_eq!(schedule["evaluations"].as_array().unwrap().len(), 3);
    assert_eq!(schedule["models"][0]["inputs"][0]["shape"], serde_json::json!(["N", 3, 32, 32]));

    let refused = line(&command);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    line(&format!("{command} --force --layout if")).json();
    assert!(out.join("model.onnx").is_file() && !out.join("full.onnx").exists());
    let elsewhere =
        line(&format!("export {} -o {} --force", artifact.display(), dir.path().display()));
    assert_eq!(elsewhere.code, 1, "a directory that is no export is not replaced");
    assert!(artifact.exists());
}

#[test]
fn a_budget_decides_how_many_samples_are_calibrated_on() {
    let dir = tempfile::tempdir().unwrap();
    let compile = |name: &str, options: &str| {
        let output = dir.path().join(name);
        let schedule = "--steps 4 --interval 2 --quant none --schedule uniform --cache-fit teacher-forced --accept";
        let ran = line(&format!(
            "compile {} -o {} {schedule} {options}",
            model().display(),
            output.display()
        ));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (std::fs::read(&output).unwrap(), ran.stderr)
    };
    let (hurried, said) = compile("hurried.cq", "--calib-samples 6 --budget 1ms");
    assert!(
        said.contains("two calibration samples")
            && said.contains("on 2 samples instead of 6; calib-samples 2"),
        "{said}"
    );
    assert!(hurried == compile("two.cq", "--calib-samples 2").0, "the budget is not in the file");
    assert!(
        compile("patient.cq", "--calib-samples 4 --budget 2h").0
            == compile("four.cq", "--calib-samples 4").0
    );
    let output = dir.path().join("n.cq");
    let ran = line(&format!(
        "compile {} -o {} --interval 1 --quant none --budget 1h",
        model().display(),
        output.display()
    ));
    assert_eq!(ran.code, 2, "{}", ran.stderr);
}

#[test]
fn kernels_are_compared_layer_by_layer() {
    let artifact = tests().join("artifacts/v4.cq");
    let json = line(&format!("bench {} --kernels --repeat 2 --json", artifact.display())).json();
    let layers = json["layers"].as_array().unwrap();
    assert!(
        layers.iter().any(|l| l["program"] == "full")
            && layers.iter().any(|l| l["program"] == "cached")
    );
    for layer in layers {
        let is_positive = |key: &str| layer[key].as_f64().is_some_and(|v| v > 0.0);
        assert!(["ms", "f32_ms", "macs", "bytes"].into_iter().all(is_positive), "{layer}");
    }
    let text = line(&format!("bench {} --kernels --repeat 1", artifact.display()));
    assert!(
        text.stdout.contains("full: ") && text.stdout.contains("than a tenth"),
        "{}",
        text.stdout
    );
    let (_dir, float) = compiled(4);
    assert_eq!(line(&format!("bench {} --kernels", float.display())).code, 2);
    assert_eq!(line(&format!("bench {} --kernels", model().display())).code, 2);
}

/// bf16 from the model to samples, to a report, and to models for other runtimes.
#[test]
fn a_loop_rounded_to_bf16_is_half_the_size_and_goes_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (model, calibration) = (model().display().to_string(), "--calib-samples 4 --calib-batch 2");
    let size = |name: &str| std::fs::metadata(file(name)).unwrap().len();
    let how = format!("--steps 4 --interval 2 --schedule uniform --accept {calibration}");
    done(&format!("compile {model} -o {} {how} --quant none", file("float.cq")));
    let json = done(&format!(
        "compile {model} -o {} {how} --quant bf16 --any-steps --report {} --json",
        file("bf16.cq"),
        file("report.html")
    ))
    .json();
    assert!(
        json["quant"]["layers"].as_u64().unwrap() > 20
            && json["quant"]["macs"].as_u64().unwrap() > 0,
        "{json}"
    );
    assert!(
        size("bf16.cq") * 10 < size("float.cq") * 6,
        "{} of {}",
        size("bf16.cq"),
        size("float.cq")
    );
    let page = std::fs::read_to_string(file("report.html")).unwrap();
    assert!(
        page.contains("bf16, weights rounded nearest")
            && !page.contains("rounded to what integers stand for")
    );

    let view = done(&format!("inspect {} --json", file("bf16.cq"))).json();
    assert_eq!(view["quant"]["kind"], "bf16");
    let layers = view["quant"]["layers"].as_array().unwrap();
    assert!(
        layers
            .iter()
            .all(|l| l["weight_bits"] == 16 && l["activation_scale"] == serde_json::json!([])),
        "{layers:?}"
    );
    assert!(done(&format!("inspect {}", file("bf16.cq"))).stdout.contains("quant      bf16, "));

    let sample = |artifact: &str, more: &str| {
        let out = file("samples.npy");
        done(&format!(
            "sample {} -n 2 --seed 3 --device cpu --force -o {out} {more}",
            file(artifact)
        ));
        cachequant::io::read_npy(Path::new(&out)).unwrap().to_f32_vec()
    };
    let (float, bf16) = (sample("float.cq", ""), sample("bf16.cq", ""));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let noise: f64 = float.iter().zip(&bf16).map(|(a, b)| square(a - b)).sum();
    let sqnr = 10.0 * (float.iter().map(|&x| square(x)).sum::<f64>() / noise).log10();
    assert!((25.0..80.0).contains(&sqnr), "{sqnr:.1} dB after 4 steps");
    assert!(sample("bf16.cq", "--steps 3").iter().all(|x| x.is_finite()));

    let bench = done(&format!("bench {} --repeat 1 --threads 1 --json", file("bf16.cq"))).json();
    let multiplies = cqc_kernels::Isa::detect().unwrap().has_bf16();
    assert_eq!(bench["dtype"], if multiplies { "bf16" } else { "f32" });
    let kernels = line(&format!("bench {} --kernels --repeat 1", file("bf16.cq")));
    assert_eq!(kernels.code, if multiplies { 0 } else { 2 }, "{}", kernels.stderr);

    let exported = done(&format!("export {} -o {} --json", file("bf16.cq"), file("onnx"))).json();
    assert!(exported["files"].as_array().unwrap().len() > 3, "{exported}");
    assert!(size("onnx/weights.bin") * 10 < size("float.cq") * 6);
    let refused =
        line(&format!("export {} -o {} --scales constant", file("bf16.cq"), file("none")));
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("bf16 has none"), "{}", refused.stderr);
}

#[test]
fn an_instruction_set_that_does_not_exist_is_refused() {
    let (_dir, artifact) = compiled(2);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cqc"));
    let ran = command
        .arg("inspect")
        .arg(artifact)
        .env("CQC_ISA", "sse")
        .output()
        .expect("the binary runs");
    assert_eq!(ran.status.code(), Some(2));
    let stderr = String::from_utf8(ran.stderr).expect("output is text");
    assert!(stderr.contains("CQC_ISA=sse: there is no such instruction set"), "{stderr}");
}
