//! Caching from the model to the samples: schedules, corrections, samplers, guidance, bytes.

mod common;

use cachequant::calibrate::{CalibrationOptions, Choice, Correct, Fit, Wanted, check_cut, choose};
use cachequant::compile::{CachedLoop, LoopOptions, Lowered, compile_loop, cut_loop};
use cachequant::model::{Model, ModelOptions};
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::schedule::{Quadratic, ScheduleKind};
use cqc_proto::Tensor;
use cqc_proto::plan::ProgramKind;
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(format!("{name}.onnx"))
}

fn load(name: &str) -> Model {
    Model::load(&path(name), &ModelOptions::default(), |_, _| {}).unwrap()
}

/// A loop to calibrate.
struct Case<'a> {
    options: LoopOptions,
    cached: CachedLoop<'a>,
    request: Request,
}

impl<'a> Case<'a> {
    fn new(model: &'a Model, kind: SamplerKind, steps: usize, cut: &str, request: Request) -> Case<'a> {
        let options = LoopOptions { sampler: SamplerConfig::of_kind(kind), steps, any_steps: false, bf16: None };
        let cached = cut_loop(model, &options, &cut.parse::<CutSpec>().unwrap()).unwrap();
        Case { options, cached, request }
    }

    fn open(&self, lowered: &Lowered, threads: usize) -> Denoiser {
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let options = EngineOptions { batch: 2, threads, ..Default::default() };
        let sampler = Sampler::new(&self.options.sampler, self.options.steps).unwrap();
        Denoiser::open(&weights, sampler, self.request.guidance != 1.0, &options).unwrap()
    }

    fn sample(&self, lowered: &Lowered, seed: u64) -> Vec<f32> {
        let request = Request { seed, ..self.request.clone() };
        let samples = self.open(lowered, 1).sample(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        samples.to_f32_vec()
    }

    fn choose(&self, interval: usize, schedule: ScheduleKind, correct: Correct) -> Choice {
        let mut denoiser = self.open(&self.cached.uncorrected().unwrap(), 2);
        check_cut(&denoiser, &self.request).unwrap();
        let (schedule, request) = (Wanted::Method(schedule), Request { seed: 1000, ..self.request.clone() });
        let progress = &mut |_, _| ControlFlow::Continue(());
        choose(&mut denoiser, CalibrationOptions { interval, schedule, correct, request, output_samples: 2, progress })
            .unwrap()
    }
}

fn plain(samples: usize) -> Request {
    Request { samples, guidance: 1.0, ..Request::default() }
}

fn rms(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

#[test]
fn a_schedule_of_full_evaluations_is_the_uncached_loop_bit_for_bit() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 4, "auto", plain(2));
    let uncached = compile_loop(&model, &case.options).unwrap();
    assert_eq!(case.sample(&case.cached.uncorrected().unwrap(), 5), case.sample(&uncached, 5));
}

#[test]
fn what_is_decided_comes_closer_to_the_uncached_loop_than_the_uniform_schedule() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 20, "auto", plain(4));
    let uncached = case.sample(&compile_loop(&model, &case.options).unwrap(), 5);
    let error = |schedule, correct| {
        let (decided, _) = case.cached.decided(&case.choose(4, schedule, correct)).unwrap();
        rms(&case.sample(&decided, 5), &uncached)
    };
    let uniform = error(ScheduleKind::Uniform, Correct::Never);
    let best = error(ScheduleKind::Auto, Correct::Best);
    assert!(best < 0.7 * uniform, "{best}, uniform {uniform}");
}

#[test]
fn a_forecast_on_the_engine_is_what_calibration_measured() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 10, "shallow", plain(4));
    let choice = case.choose(3, ScheduleKind::Uniform, Correct::Always(Fit::Forecast));
    let (decided, corrections) = case.cached.decided(&choice).unwrap();
    assert!(corrections[0].previous_scale.is_some());
    let cache = decided.plan.cache.as_ref().unwrap();
    assert_eq!(cache.slots.len(), 2);
    // the correction is part of what loads the cache: the cached step has one operator more at most
    let names: Vec<String> = cache.cached.steps.iter().map(|s| s.op.name()).collect();
    assert_eq!(names.iter().filter(|n| *n == "affine").count(), 1, "{names:?}");

    // the tables by hand, on the plan without corrections
    let mut denoiser = case.open(&case.cached.uncorrected().unwrap(), 1);
    let request = Request { seed: 5, ..case.request.clone() };
    let mut trajectory = denoiser.begin(&request, 0).unwrap();
    let (_, tables) = choice.tables.as_ref().unwrap();
    let (mut last, mut before) = (vec![], vec![]);
    for (t, table) in tables[0].iter().enumerate() {
        if choice.full.contains(&t) {
            denoiser.evaluate_as(ProgramKind::Full, &mut trajectory).unwrap();
            before = std::mem::replace(&mut last, trajectory.requests[0].slot(0).to_vec());
        } else {
            let before = if before.is_empty() { &last } else { &before };
            trajectory.requests[0].set_slot(0, &table.apply(&last, before));
            denoiser.evaluate_as(ProgramKind::Cached, &mut trajectory).unwrap();
        }
        denoiser.advance(&mut trajectory, denoiser.output());
    }
    let sampled = case.sample(&decided, 5);
    assert!(rms(&sampled[..trajectory.x().len()], trajectory.x()) < 1e-5);
}

#[test]
fn samplers_that_evaluate_a_step_twice_can_be_cached() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Plms, 8, "auto", plain(4));
    for schedule in [ScheduleKind::Uniform, ScheduleKind::Dps, ScheduleKind::DpsOutput] {
        let choice = case.choose(2, schedule.clone(), Correct::Always(Fit::TeacherForced));
        assert_eq!((case.cached.evaluations(), choice.full.len(), choice.full[0]), (9, 4, 0), "{schedule}");
        let (decided, _) = case.cached.decided(&choice).unwrap();
        assert!(case.sample(&decided, 5).iter().all(|x| x.is_finite()));
    }
    let uniform = case.choose(2, ScheduleKind::Uniform, Correct::Never);
    assert_eq!(uniform.full, [0, 3, 5, 7]);
}

#[test]
fn schedules_that_are_searched_cost_no_more_than_the_uniform_one() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 12, "shallow", plain(4));
    for schedule in [ScheduleKind::Dps, ScheduleKind::DpsAffine, ScheduleKind::DpsOutput] {
        let (cost, uniform) = case.choose(3, schedule, Correct::Never).cost.unwrap();
        assert!(cost <= uniform.unwrap(), "{cost}, uniform {uniform:?}");
    }
    let quadratic = case.choose(3, ScheduleKind::Quadratic(Quadratic::around(12)), Correct::Never);
    assert_eq!((quadratic.full.len(), quadratic.cost), (4, None));
}

/// A transformer with class labels: a delta cut, both halves of guidance in the cache, joined in one batch or apart.
#[test]
fn guided_transformers_cache_deltas_in_both_halves() {
    for name in ["dit-dy23", "dit-ts14-static"] {
        let model = load(name);
        let input = model.inputs.iter().find(|i| i.role == cqc_proto::plan::InputRole::Condition).unwrap();
        let labels = |values: &[i64]| BTreeMap::from([(input.name.clone(), Tensor::from_i64(&[values.len()], values))]);
        let (conditions, unconditional) = (labels(&[1, 0, 1, 2]), labels(&[2]));
        let request = Request { samples: 4, guidance: 2.0, conditions, unconditional, ..Request::default() };
        let case = Case::new(&model, SamplerKind::Ddim, 8, "auto", request);
        assert!(case.cached.cut.has_delta(), "{name}");
        let uncached = case.sample(&compile_loop(&model, &case.options).unwrap(), 5);
        let identical = case.sample(&case.cached.uncorrected().unwrap(), 5);
        assert!(rms(&identical, &uncached) < 1e-5, "{name}: a delta is added in another order");
        let choice = case.choose(2, ScheduleKind::Auto, Correct::Always(Fit::Forecast));
        let (decided, _) = case.cached.decided(&choice).unwrap();
        let error = rms(&case.sample(&decided, 5), &uncached);
        assert!(error < 0.2 * rms(&uncached, &vec![0.0; uncached.len()]), "{name}: {error}");
    }
}

fn cqc(arguments: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cqc"));
    let out = command.args(arguments.split_whitespace()).env_remove("CQC_LOG").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn the_same_recipe_gives_the_same_bytes_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let recipe = "--steps 10 --interval 3 --calib-samples 4 --calib-batch 2";
    for threads in [1, 2] {
        let out = file(&format!("{threads}.cq"));
        let ran = cqc(&format!(
            "compile {} -o {} {recipe} --threads {threads}",
            path("ddpm-shapes32").display(),
            out.display()
        ));
        assert_eq!(ran.0, 0, "{}", ran.2);
        let npy = file(&format!("{threads}.npy"));
        let ran =
            cqc(&format!("sample {} -n 3 --batch {threads} --threads {threads} -o {}", out.display(), npy.display()));
        assert_eq!(ran.0, 0, "{}", ran.2);
    }
    for kind in ["cq", "npy"] {
        let read = |threads: u32| std::fs::read(file(&format!("{threads}.{kind}"))).unwrap();
        assert!(read(1) == read(2), "{kind}");
    }

    let (code, stdout, stderr) = cqc(&format!("inspect {} --json", file("1.cq").display()));
    assert_eq!(code, 0, "{stderr}");
    let view: Value = serde_json::from_str(&stdout).unwrap();
    let full = view["schedule"]["full_steps"].as_array().unwrap();
    assert_eq!((full.len(), &full[0], &view["schedule"]["interval"]), (4, &0.into(), &3.into()));
    assert!(view["cut"]["macs_cached"].as_i64() < view["cut"]["macs_full"].as_i64());
    assert_eq!(view["calibration"]["samples"], 4);
    let programs: Vec<&str> =
        view["programs"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(programs, ["full", "cached"]);
    if !view["corrections"].is_null() {
        assert_eq!(view["corrections"]["cache"]["a"].as_array().unwrap().len(), 10);
    }
    let (_, text, _) = cqc(&format!("inspect {}", file("1.cq").display()));
    assert!(text.contains("interval 3: 4 of 10 evaluations are full"), "{text}");

    let (_, bench, _) = cqc(&format!("bench {} --repeat 1 --json", file("1.cq").display()));
    let bench: Value = serde_json::from_str(&bench).unwrap();
    assert!(bench["cached_step_ms"].as_f64().unwrap() < bench["full_step_ms"].as_f64().unwrap());
    assert_eq!((&bench["full_steps"], &bench["steps"]), (&4.into(), &10.into()));
}

#[test]
fn schedules_come_from_files_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (schedule, out) = (dir.path().join("s.json"), dir.path().join("a.cq"));
    let model = path("ddpm-shapes32");
    let compile = |text: &str, more: &str| {
        std::fs::write(&schedule, text).unwrap();
        let fixed = "--steps 6 --calib-samples 2 --calib-batch 1 --force";
        cqc(&format!(
            "compile {} -o {} {fixed} --schedule {} {more}",
            model.display(),
            out.display(),
            schedule.display()
        ))
    };
    let (code, _, stderr) = compile("[0, 1, 4]", "--correct none");
    assert_eq!(code, 0, "{stderr}");
    let view: Value = serde_json::from_str(&cqc(&format!("inspect {} --json", out.display())).1).unwrap();
    assert_eq!(view["schedule"]["full_steps"], serde_json::json!([0, 1, 4]));
    assert_eq!((&view["schedule"]["kind"], &view["corrections"]), (&"file".into(), &Value::Null));
    for (text, more, said) in [
        ("[1, 2]", "", "the first evaluation, 0, must be full"),
        ("[0, 9]", "", "evaluation 9 is full, the last one is 5"),
        ("{}", "", "holds no schedule"),
        ("[0]", "--cut no-such-tensor", "no tensor `no-such-tensor`"),
    ] {
        let (code, _, stderr) = compile(text, more);
        assert!(code != 0 && stderr.contains(said), "{said}: {stderr}");
    }
    let ran = cqc(&format!("compile {} -o {} --force --steps 4", path("sdxl-ts17").display(), out.display()));
    assert!(ran.0 == 2 && ran.2.contains("calibration needs input"), "{}", ran.2);
}
