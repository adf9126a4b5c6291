//! Guidance on the command line, and inputs that the loop fills by itself. The loops were recorded
//! in ONNX Runtime by `tests/golden/fills/record.py`.

mod common;

use cachequant::Overwrite;
use cachequant::io::{read_array, read_npz, write_npy};
use common::{done, line, model, tests};
use cqc_proto::Tensor;
use std::path::{Path, PathBuf};

/// A directory with the recorded arrays as files.
struct Folder {
    dir: tempfile::TempDir,
    golden: Vec<(String, Tensor)>,
}

impl Folder {
    fn new() -> Folder {
        let golden = read_npz(&tests().join("golden/fills/loops.npz")).unwrap();
        Folder { dir: tempfile::tempdir().unwrap(), golden: golden.into_iter().collect() }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn array(&self, name: &str) -> &Tensor {
        let found = self.golden.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("no array {name}")).1
    }

    /// The recorded array as a file.
    fn put(&self, name: &str) -> String {
        let path = self.at(&format!("{}.npy", name.replace('/', "-")));
        if !Path::new(&path).exists() {
            write_npy(Path::new(&path), self.array(name), Overwrite::Refuse).unwrap();
        }
        path
    }

    /// The samples of an artifact.
    fn sample(&self, artifact: &str, options: &str) -> Vec<f32> {
        let out = self.at("out.npy");
        done(&format!("sample {artifact} {options} -o {out} --force"));
        read_array(Path::new(&out), "samples").unwrap().to_f32_vec()
    }

    fn check(&self, found: &[f32], expected: &str) {
        let expected_values = self.array(expected).to_f32_vec();
        let off = error(found, &expected_values);
        assert!(off < 1e-5, "{expected}: {off}");
    }
}

fn error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn of(name: &str) -> PathBuf {
    tests().join("golden/fills").join(name)
}

#[test]
fn a_model_that_returns_the_next_sample_is_told_the_number_of_steps() {
    let folder = Folder::new();
    let (onnx, artifact) = (of("direct.onnx").display().to_string(), folder.at("direct.cq"));
    let sizes =
        "--dim L=8 --dim T=3 --sampler direct --trust --quant none --interval 1 --any-steps";
    done(&format!("compile {onnx} {sizes} --steps 5 -o {artifact}"));
    let conditions = ["text_emb", "style_ttl", "latent_mask", "text_mask"];
    let conditions =
        conditions.map(|n| format!("--cond {n}={}", folder.put(&format!("direct/{n}"))));
    let request = format!("{} --noise {}", conditions.join(" "), folder.put("direct/noise"));
    folder.check(&folder.sample(&artifact, &request), "direct/5");
    for steps in [1, 2, 8] {
        let found = folder.sample(&artifact, &format!("{request} --steps {steps}"));
        folder.check(&found, &format!("direct/{steps}"));
    }
    // a given value replaces the filled one
    let given = folder.sample(&artifact, &format!("{request} --cond total_step=8"));
    assert!(error(&given, &folder.array("direct/5").to_f32_vec()) > 1e-3);

    let said = done(&format!("inspect {artifact}")).stdout;
    assert!(said.contains("fills      total_step with steps"), "{said}");
    // it also says that nothing in this network can be cached
    let said = line(&format!("doctor {onnx} --dim L=8 --dim T=3")).stdout;
    assert!(said.contains("fills      total_step with steps"), "{said}");

    let none = folder.at("none.cq");
    done(&format!("compile {onnx} {sizes} --steps 5 --fill total_step=none -o {none}"));
    let refused = line(&format!("sample {none} {request} -o {}", folder.at("x.npy")));
    assert!(refused.stderr.contains("input `total_step` is missing"), "{}", refused.stderr);
}

#[test]
fn the_scale_goes_to_networks_that_take_it_as_an_input() {
    let folder = Folder::new();
    let plain = "--trust --quant none --interval 1";
    let flow = format!("--scheduler-config {}", of("flow.json").display());
    for (name, options, usual, others) in [
        ("embedded", format!("--steps 6 {flow}"), "3.5", ["1.0", "7.0"]),
        ("lcm", "--steps 5 --sampler ddim --prediction epsilon".to_string(), "8.5", ["1.0", "2.0"]),
    ] {
        let onnx = of(&format!("{name}.onnx")).display().to_string();
        let artifact = folder.at(&format!("{name}.cq"));
        done(&format!("compile {onnx} {options} {plain} -o {artifact}"));
        let noise = format!("--noise {}", folder.put(&format!("{name}/noise")));
        folder.check(&folder.sample(&artifact, &noise), &format!("{name}/{usual}"));
        for scale in others {
            let found = folder.sample(&artifact, &format!("{noise} --guidance {scale}"));
            folder.check(&found, &format!("{name}/{scale}"));
        }
        let inspected = done(&format!("inspect {artifact}")).stdout;
        assert!(inspected.contains(&format!("{usual}, an input of the network")), "{inspected}");
        let default = folder.at("default.cq");
        done(&format!(
            "compile {onnx} {options} {plain} --guidance {} -o {default} --force",
            others[1]
        ));
        folder.check(&folder.sample(&default, &noise), &format!("{name}/{}", others[1]));
        for option in ["--guidance-rescale 0.5", "--guidance-interval 0.2..0.8"] {
            let x = folder.at("x.npy");
            let refused = line(&format!("sample {artifact} {noise} {option} -o {x}"));
            assert_eq!(refused.code, 2, "{}", refused.stderr);
            assert!(refused.stderr.contains("takes its scale as an input"), "{}", refused.stderr);
        }
    }
    let onnx = of("embedded.onnx").display().to_string();
    let refused = line(&format!(
        "compile {onnx} {flow} {plain} --guidance 2 --guidance-rescale 0.5 --guidance-interval 0.2..0.8 -o x.cq"
    ));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    for option in ["--guidance-rescale", "--guidance-interval"] {
        assert!(refused.stderr.contains(option), "{}", refused.stderr);
    }
}

#[test]
fn guidance_is_left_out_outside_of_its_interval_and_at_scale_one() {
    let folder = Folder::new();
    let (onnx, artifact) = (model("dit-dy23").display().to_string(), folder.at("a.cq"));
    let guided =
        "--guidance 3 --null-label 0 --labels 1,2 --trust --steps 8 --quant none --interval 1";
    done(&format!("compile {onnx} {guided} --guidance-interval 0.25..0.75 -o {artifact}"));
    let request = "-n 3 --labels 1,2 --batch 2";
    let inner = folder.sample(&artifact, request);
    let same = format!("{request} --guidance-interval 0.25..0.75");
    assert_eq!(folder.sample(&artifact, &same), inner);
    let whole = folder.sample(&artifact, &format!("{request} --guidance-interval 0..1"));
    let off = folder.sample(&artifact, &format!("{request} --guidance 1"));
    assert!(whole != inner && off != inner && off != whole);
    // none of the eight steps is in the interval
    assert_eq!(folder.sample(&artifact, &format!("{request} --guidance-interval 0..0.1")), off);
    // with a scale of 1 the null condition has no effect
    assert_eq!(folder.sample(&artifact, &format!("{request} --guidance 1 --null-label 3")), off);
    let rescaled = folder.sample(&artifact, &format!("{request} --guidance-rescale 0.7"));
    assert!(rescaled != inner && rescaled.iter().all(|v| v.is_finite()));
    let inspected = done(&format!("inspect {artifact}")).stdout;
    assert!(inspected.contains("3, in 0.25..0.75 of the steps (2 to 5)"), "{inspected}");
}

#[test]
fn every_condition_may_have_a_negative_one_which_scale_one_does_not_compute() {
    let folder = Folder::new();
    let (onnx, artifact) = (model("mobius-dit").display().to_string(), folder.at("a.cq"));
    let name = "encoder_hidden_states";
    done(&format!(
        "compile {onnx} --guidance 3 --null-cond {name}=0.125 --trust --steps 4 --quant none --interval 1 -o {artifact}"
    ));
    // a row per sample, which replaces the artifact's null condition
    let rows: Vec<f32> = (0..2 * 60).map(|i| if i < 60 { 0.125 } else { -0.5 }).collect();
    let file = folder.at("rows.npy");
    write_npy(Path::new(&file), &Tensor::from_f32(&[2, 5, 12], &rows), Overwrite::Refuse).unwrap();
    let request = format!("-n 2 --cond {name}=0.75");
    let own = folder.sample(&artifact, &request);
    let rowwise = folder.sample(&artifact, &format!("{request} --null-cond {name}={file}"));
    let other = folder.sample(&artifact, &format!("{request} --null-cond {name}=-0.5"));
    let half = own.len() / 2;
    assert!(rowwise[..half] == own[..half] && rowwise[half..] == other[half..]);
    assert!(own[half..] != other[half..]);
    let off = folder.sample(&artifact, &format!("{request} --guidance 1"));
    assert!(
        folder.sample(&artifact, &format!("{request} --guidance 1 --null-cond {name}={file}"))
            == off
    );
    let same = folder.sample(&artifact, &format!("{request} --null-cond {name}=0.75"));
    assert!(error(&same, &off) < 1e-4, "against itself, guidance changes nothing");
}

#[test]
fn an_interval_begins_with_a_full_evaluation() {
    let folder = Folder::new();
    let (onnx, artifact) = (model("dit-dy23").display().to_string(), folder.at("a.cq"));
    let guided = "--guidance 3 --null-label 0 --labels 1,2 --trust --steps 12 --calib-samples 4";
    let cached = "--interval 4 --schedule uniform --cut shallow --target-psnr 0";
    for quant in ["none", "w8a8"] {
        let options = format!("{guided} {cached} --quant {quant}");
        done(&format!("compile {onnx} {options} --guidance-interval 0.5..1 -o {artifact} --force"));
        let said = done(&format!("inspect {artifact} --json")).json();
        assert_eq!(said["schedule"]["full_steps"].to_string(), "[0,4,6,8]");
        // other intervals begin where the schedule caches
        for interval in ["0.5..1", "0.42..0.9", "0.1..0.3"] {
            let options = format!("-n 2 --labels 1,2 --guidance-interval {interval}");
            let found = folder.sample(&artifact, &options);
            assert!(found.iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn contradictions_are_said_with_what_to_do() {
    let folder = Folder::new();
    let (onnx, artifact) = (model("dit-dy23").display().to_string(), folder.at("a.cq"));
    let plain = format!("compile {onnx} --trust --quant none --interval 1 --steps 4 -o {artifact}");
    done(&plain);
    let (compile, sample) = (
        format!("{plain} --force"),
        format!("sample {artifact} --labels 1 -o {}", folder.at("y.npy")),
    );
    for (command, said) in [
        (format!("{compile} --guidance-rescale 0.5"), "there is no guidance"),
        (format!("{compile} --guidance-interval 0.2..0.8"), "there is no guidance"),
        (format!("{compile} --guidance 2 --guidance-rescale 1.5"), "from 0 to 1"),
        (format!("{compile} --guidance 2 --guidance-interval 0.8..0.2"), "0 <= FROM < TO <= 1"),
        (format!("{compile} --fill nothing=steps"), "no conditioning input `nothing`"),
        (format!("{compile} --fill sample=steps"), "no conditioning input `sample`"),
        (format!("{compile} --fill labels"), "expected INPUT=KIND"),
        (format!("{compile} --fill labels=scale"), "expected one of none, guidance"),
        (format!("{sample} --guidance-rescale 0.5"), "a rescale of guidance without guidance"),
        (
            format!("{sample} --guidance-interval 0..0.5"),
            "an interval of guidance without guidance",
        ),
        (format!("{sample} --guidance-interval 0.5..0.5"), "0 <= FROM < TO <= 1"),
        (format!("{sample} --guidance 2 --null-label 0 --guidance-rescale -1"), "expected 0 to 1"),
    ] {
        let refused = line(&command);
        assert_eq!(refused.code, 2, "{command}: {}", refused.stderr);
        let text = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(said), "{command}: {text}");
    }
    // everything at once
    let both = line(&format!("{sample} --guidance-rescale 0.5 --guidance-interval 0..0.5")).stderr;
    assert!(
        both.contains("rescale of guidance") && both.contains("interval of guidance"),
        "{both}"
    );
}
