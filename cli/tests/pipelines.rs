//! Whole pipelines: a directory becomes one artifact, and prompts become pictures.
//!
//! `tests/golden/text_to_image/record.py` recorded what diffusers draws with the same weights.

mod common;

use cachequant::Overwrite;
use cachequant::io::{read_npy, read_npz, write_npy};
use common::{Ran, cqc, done, line, tests};
use cqc_proto::Tensor;
use std::path::{Path, PathBuf};

const PROMPTS: [&str; 2] = ["a red circle", "It's two BLUE squares, and 3 more!"];

/// A recorded pipeline, compiled in float.
struct Case {
    dir: tempfile::TempDir,
    golden: Vec<(String, Tensor)>,
}

impl Case {
    fn new(name: &str) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(name);
        let golden = read_npz(&folder.join("golden.npz")).unwrap();
        let case = Case { dir, golden };
        write_npy(&case.path("noise.npy"), case.golden("latents"), Overwrite::Refuse).unwrap();
        let options = "--quant none --interval 1 --steps 6 --guidance 3 --trust --quiet";
        done(&format!("compile {} -o {} {options}", folder.display(), case.shown("p.cq")));
        case
    }

    fn golden(&self, name: &str) -> &Tensor {
        &self.golden.iter().find(|(n, _)| n == name).unwrap().1
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Samples with both prompts and these options.
    fn sample(&self, out: &str, options: &[&str]) -> Ran {
        let (artifact, out, noise) = (self.shown("p.cq"), self.shown(out), self.shown("noise.npy"));
        let mut all = vec!["sample", &artifact, "-o", &out, "--force", "--quiet"];
        all.extend(["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "-n", "2", "--noise", &noise]);
        all.extend(options);
        cqc(all)
    }

    fn check(&self, name: &str, options: &[&str]) {
        let ran = self.sample("y.npy", options);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let found = read_npy(&self.path("y.npy")).unwrap();
        let expected = self.golden(name);
        assert_eq!(found.shape(), expected.shape());
        let (found, expected) = (found.to_f32_vec(), expected.to_f32_vec());
        let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = found.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // sums in another order, over a few steps
        assert!(error <= 2e-6 * largest.max(1.0), "{name}: {error:e} of {largest}");
    }
}

fn folder(name: &str) -> PathBuf {
    tests().join("golden/text_to_image").join(name)
}

#[test]
fn pictures_are_those_of_diffusers() {
    for name in ["sd", "sdxl"] {
        let case = Case::new(name);
        case.check("plain_latents", &["--latents"]);
        case.check("plain_image", &[]);
        case.check("negative_latents", &["--latents", "--negative", "green"]);
        case.check("negative_image", &["--negative", "green"]);
    }
}

#[test]
fn pixels_are_encoded_where_a_loop_begins_with_an_image() {
    let case = Case::new("sd");
    for (from, to) in [("plain_image", "pixels.npy"), ("encoded", "encoded.npy")] {
        write_npy(&case.path(to), case.golden(from), Overwrite::Refuse).unwrap();
    }
    let run = |init: &str, out: &str| {
        let (artifact, init, out) = (case.shown("p.cq"), case.shown(init), case.shown(out));
        let options = "--prompt red --strength 0.5 --seed 3 --latents --quiet";
        done(&format!("sample {artifact} --init {init} -o {out} {options}"));
    };
    run("pixels.npy", "a.npy");
    run("encoded.npy", "b.npy");
    let [a, b] = ["a.npy", "b.npy"].map(|f| read_npy(&case.path(f)).unwrap().to_f32_vec());
    let error = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn prompts_come_from_files_and_samples_do_not_depend_on_the_batch() {
    let case = Case::new("sd");
    assert_eq!(case.sample("together.npy", &[]).code, 0);
    std::fs::write(case.path("prompts.txt"), PROMPTS.join("\n\n") + "\n").unwrap();
    let (artifact, noise) = (case.shown("p.cq"), case.shown("noise.npy"));
    let prompts = format!("--prompts {}", case.shown("prompts.txt"));
    let out = case.shown("apart.npy");
    done(&format!("sample {artifact} {prompts} --noise {noise} --batch 1 --threads 1 -o {out}"));
    let read = |name: &str| std::fs::read(case.path(name)).unwrap();
    assert_eq!(read("together.npy"), read("apart.npy"));
    // a picture per prompt, as a grid
    done(&format!("sample {artifact} {prompts} -o {}", case.shown("grid.png")));
}

#[test]
fn the_default_recipe_compiles_a_pipeline() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name).display().to_string();
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, "a red circle\nblue squares\n").unwrap();
    let options = "--steps 6 --interval 2 --calib-samples 4 --trust --accept --quiet";
    let model = folder("sd");
    let model = model.display();
    let prompts = format!("--prompts {}", prompts.display());
    done(&format!("compile {model} -o {} {options} {prompts}", out("a.cq")));
    done(&format!("compile {model} -o {} {options} {prompts} --threads 1", out("b.cq")));
    let read = |name: &str| std::fs::read(out(name)).unwrap();
    assert_eq!(read("a.cq"), read("b.cq"), "the bytes do not depend on the threads");
    done(&format!("sample {} --prompt red -o {}", out("a.cq"), out("y.png")));
    // the loop alone
    let dims = "--dim height=8 --dim width=8 --dim sequence_length=12 --interval 1 --quant none";
    let component = "--component unet --trust --steps 4 --quiet";
    done(&format!("compile {model} -o {} {component} {dims}", out("c.cq")));
    let refused = line(&format!("sample {} --prompt red -o {}", out("c.cq"), out("z.npy")));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("no text encoder"), "{}", refused.stderr);
    let refused = line(&format!("compile {model} -o {} --component nothing", out("d.cq")));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
}

#[test]
fn unknown_classes_and_damaged_parts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("sd");
    copy_folder(&folder("sd"), &copy);
    let out = dir.path().join("p.cq");
    let compile = || {
        let options = "--quant none --interval 1 --steps 2 --trust --quiet --force";
        line(&format!("compile {} -o {} {options}", copy.display(), out.display()))
    };
    std::fs::write(copy.join("model_index.json"), r#"{"_class_name": "NewPipeline"}"#).unwrap();
    let refused = compile();
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("NewPipeline"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--component"), "{}", refused.stderr);

    let index = r#"{"_class_name": "StableDiffusionPipeline"}"#;
    std::fs::write(copy.join("model_index.json"), index).unwrap();
    std::fs::write(copy.join("tokenizer/merges.txt"), "#version: 0.2\nx y\n").unwrap();
    let refused = compile();
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("tokenizer"), "{}", refused.stderr);
    assert!(!out.exists());
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}
