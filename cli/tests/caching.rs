//! Caching from the command line: bytes that do not depend on threads, views, schedules from files.

mod common;

use common::{done, line, model};
use serde_json::{Value, json};

#[test]
fn the_same_recipe_gives_the_same_bytes_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let recipe = "--steps 6 --interval 2 --calib-samples 2";
    for threads in [1, 2] {
        let (model, out) = (model("ddpm-shapes32"), file(&format!("{threads}.cq")));
        done(&format!("compile {} -o {out} {recipe} --threads {threads}", model.display()));
        let npy = file(&format!("{threads}.npy"));
        done(&format!("sample {out} -n 3 --batch {threads} --threads {threads} -o {npy}"));
    }
    for kind in ["cq", "npy"] {
        let read = |threads: u32| std::fs::read(file(&format!("{threads}.{kind}"))).unwrap();
        assert!(read(1) == read(2), "{kind}");
    }

    let view = done(&format!("inspect {} --json", file("1.cq"))).json();
    let full = view["schedule"]["full_steps"].as_array().unwrap();
    let found = (full.len(), &full[0], &view["schedule"]["interval"]);
    assert_eq!(found, (3, &0.into(), &2.into()));
    assert!(view["cut"]["macs_cached"].as_i64() < view["cut"]["macs_full"].as_i64());
    assert_eq!(view["calibration"]["samples"], 2);
    let programs = view["programs"].as_array().unwrap();
    let programs: Vec<&str> = programs.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(programs, ["full", "cached"]);
    if !view["corrections"].is_null() {
        assert_eq!(view["corrections"]["cache"]["a"].as_array().unwrap().len(), 6);
    }
    let text = done(&format!("inspect {}", file("1.cq"))).stdout;
    assert!(text.contains("interval 2: 3 of 6 evaluations are full"), "{text}");

    let bench = done(&format!("bench {} --repeat 1 --json", file("1.cq"))).json();
    assert!(bench["cached_step_ms"].as_f64().unwrap() < bench["full_step_ms"].as_f64().unwrap());
    assert_eq!((&bench["full_steps"], &bench["steps"]), (&3.into(), &6.into()));
}

#[test]
fn schedules_come_from_files_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (schedule, out) = (dir.path().join("s.json"), dir.path().join("a.cq"));
    let compile = |text: &str, more: &str| {
        std::fs::write(&schedule, text).unwrap();
        let fixed = "--steps 6 --calib-samples 2 --calib-batch 1 --force --accept";
        let files = format!("{} -o {}", model("ddpm-shapes32").display(), out.display());
        line(&format!("compile {files} {fixed} --schedule {} {more}", schedule.display()))
    };
    let ran = compile("[0, 1, 4]", "--correct none");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let view = done(&format!("inspect {} --json", out.display())).json();
    assert_eq!(view["schedule"]["full_steps"], json!([0, 1, 4]));
    assert_eq!((&view["schedule"]["kind"], &view["corrections"]), (&"file".into(), &Value::Null));
    for (text, more, said) in [
        ("[1, 2]", "", "the first evaluation, 0, must be full"),
        ("[0, 9]", "", "evaluation 9 is full, the last one is 5"),
        ("{}", "", "expected a list of the full evaluations"),
        ("[0]", "--cut no-such-tensor", "no tensor `no-such-tensor`"),
    ] {
        let ran = compile(text, more);
        assert!(ran.code != 0 && ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    let ran = line(&format!(
        "compile {} -o {} --force --steps 4",
        model("sdxl-ts17").display(),
        out.display()
    ));
    assert!(ran.code == 2 && ran.stderr.contains("calibration needs input"), "{}", ran.stderr);
}
