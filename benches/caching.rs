//! What caching costs and saves: cut × interval × schedule × correction, on images that calibration has not seen.
//!
//! ```text
//! cargo bench --bench caching -- MODEL.onnx --out rows.jsonl [--steps 100] [--intervals 2,3,5] [--cuts auto,shallow]
//!     [--images 64] [--few 16] [--guidance 2 --null-label 8 --labels 0,1,2] [--features F.onnx --real-stats S.npz] [--only METHOD,..]
//! ```
//! The first two methods are run on all images, the others on the first few. Appends one JSON object per row to `--out` and leaves out rows that are there already, so that it can be broken off. Every row
//! is sampled by the engine from the lowered plan. `--table` prints the file as Markdown.

use cqc::calibrate::{CalibrationOptions, Choice, Correct, Fit, Study, Wanted};
use cqc::compile::{LoopOptions, compile_evaluation, compile_loop, cut_loop};
use cqc::eval::frechet::{Gaussian, frechet};
use cqc::eval::psnr::{mse, psnr};
use cqc::io::read_npz;
use cqc::model::{Model, ModelOptions};
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::schedule::{Quadratic, ScheduleKind};
use cqc_proto::Tensor;
use cqc_proto::plan::InputRole;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::{Loop, Request};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const BATCH: usize = 8;
const CALIBRATION: usize = 16;

type Options = BTreeMap<String, String>;

fn main() {
    // `cargo bench` adds `--bench`
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let Some((model, rest)) = arguments.split_first() else {
        println!("usage: cargo bench --bench caching -- MODEL.onnx --out rows.jsonl [options], see benches/caching.rs");
        return;
    };
    let options: Options =
        rest.chunks(2).map(|p| (p[0].trim_start_matches("--").into(), p.get(1).cloned().unwrap_or_default())).collect();
    if model == "--table" {
        return print_table(Path::new(&rest[0]));
    }
    run(Path::new(model), &options);
}

fn option<'a>(options: &'a Options, name: &str, default: &'a str) -> &'a str {
    options.get(name).map_or(default, String::as_str)
}

/// What is the same for all rows.
struct Bench {
    sampler: SamplerConfig,
    steps: usize,
    guidance: f32,
    request: Request,
    calibration: Request,
    features: Option<Features>,
    /// Ends of the uncached loop.
    reference: Vec<f32>,
}

/// An image feature extractor and the statistics of real images.
struct Features {
    engine: Engine,
    input: String,
    output: String,
    real: Gaussian,
}

impl Features {
    fn open(extractor: &Path, statistics: &Path) -> Features {
        let model = Model::load(extractor, &ModelOptions::default(), |_, _| {}).unwrap();
        let lowered = compile_evaluation(&model).unwrap();
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let engine = Engine::open(&weights, &EngineOptions { batch: BATCH, threads: 2, ..Default::default() }).unwrap();
        let arrays: BTreeMap<String, Tensor> = read_npz(statistics).unwrap().into_iter().collect();
        let numbers = |name: &str| arrays[name].to_f64_vec();
        let (input, output) = (model.inputs[0].name.clone(), model.outputs[0].name.clone());
        Features { engine, input, output, real: Gaussian::new(numbers("mean"), numbers("cov")).unwrap() }
    }

    /// Frechet distance of images `[n, ...]` to the real ones.
    fn distance(&mut self, images: &[f32]) -> f64 {
        let shape = self.engine.input_shape(0).to_vec();
        let len: usize = shape.iter().product();
        let clipped: Vec<f32> = images.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let mut rows = Vec::new();
        for batch in clipped.chunks_exact(len) {
            let inputs = BTreeMap::from([(self.input.clone(), Tensor::from_f32(&shape, batch))]);
            rows.extend(self.engine.run(&inputs).unwrap()[&self.output].to_f32_vec());
        }
        frechet(&Gaussian::of(&rows, self.real.dimensions()), &self.real).distance
    }
}

fn run(path: &Path, options: &Options) {
    let out = PathBuf::from(option(options, "out", "rows.jsonl"));
    let model = Model::load(path, &ModelOptions::default(), |_, _| {}).unwrap();
    let number = |name: &str, default: &str| option(options, name, default).parse::<usize>().unwrap();
    let (steps, images) = (number("steps", "100"), number("images", "64").next_multiple_of(BATCH));
    let few = number("few", "16").next_multiple_of(BATCH).min(images);
    let guidance: f32 = option(options, "guidance", "1").parse().unwrap();
    let mut bench = Bench {
        sampler: SamplerConfig::default(),
        steps,
        guidance,
        request: request(&model, options, images, 7_000_000),
        calibration: request(&model, options, CALIBRATION, 0),
        features: options
            .get("features")
            .map(|f| Features::open(f.as_ref(), option(options, "real-stats", "").as_ref())),
        reference: vec![],
    };
    let plain = compile_loop(&model, &LoopOptions { sampler: bench.sampler.clone(), steps }).unwrap();
    let weights = Weights::new(plain.plan.clone(), plain.weight_bytes().unwrap()).unwrap();
    let (reference, _) = bench.sample(&weights, images);
    bench.reference = reference;
    let name = path.parent().and_then(Path::file_name).map_or("model".into(), |n| n.to_string_lossy().into_owned());
    let done: BTreeSet<String> = rows(&out).iter().map(key).collect();
    let distance = bench.features.as_mut().map(|f| f.distance(&bench.reference));
    println!("uncached loop: Frechet {distance:?}");
    let only: Vec<&str> = option(options, "only", "").split(',').filter(|s| !s.is_empty()).collect();

    for cut in option(options, "cuts", "auto").split(',') {
        let spec: CutSpec = cut.parse().unwrap();
        let cached = cut_loop(&model, &LoopOptions { sampler: bench.sampler.clone(), steps }, &spec).unwrap();
        let lowered = cached.uncorrected().unwrap();
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        for interval in option(options, "intervals", "2,3,5,10,20").split(',') {
            let interval: usize = interval.parse().unwrap();
            let identity = |method: &str, correction: &str| {
                json!({"model": name, "steps": steps, "cut": cut, "interval": interval, "schedule": method,
                       "correction": correction})
            };
            let wanted: Vec<(&str, Option<Fit>)> = METHODS
                .into_iter()
                .filter(|(method, fit)| {
                    let row = identity(method, &correction_name(*fit));
                    !done.contains(&key(&row))
                        && (only.is_empty() || only.contains(&format!("{method}+{}", correction_name(*fit)).as_str()))
                })
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let mut denoiser = bench.open(&weights);
            let started = Instant::now();
            let mut progress = |_, _| ControlFlow::Continue(());
            let mut study = Study::new(
                &mut denoiser,
                CalibrationOptions {
                    interval,
                    schedule: Wanted::Method(ScheduleKind::Auto),
                    correct: Correct::Never,
                    request: bench.calibration.clone(),
                    output_samples: BATCH,
                    progress: &mut progress,
                },
            )
            .unwrap();
            println!("{cut} N={interval}: observed in {:.0} s", started.elapsed().as_secs_f64());
            for (method, fit) in wanted {
                let kind = match method {
                    "uniform" => ScheduleKind::Uniform,
                    "quadratic" => ScheduleKind::Quadratic(Quadratic::around(steps)),
                    "dps" => ScheduleKind::Dps,
                    _ => ScheduleKind::DpsOutput,
                };
                let Ok(candidates) = study.candidates(&Wanted::Method(kind)) else { continue };
                let candidate = candidates.into_iter().next().unwrap();
                let tables = fit.map(|fit| (fit, study.tables(fit, &candidate.full).unwrap()));
                let choice = Choice {
                    full: candidate.full,
                    method: method.into(),
                    cost: candidate.cost,
                    tables,
                    measured: vec![],
                };
                let (decided, _) = cached.decided(&choice).unwrap();
                let weights = Weights::new(decided.plan.clone(), decided.weight_bytes().unwrap()).unwrap();
                let mut row = identity(method, &correction_name(fit));
                let main = METHODS[..2].contains(&(method, fit));
                let (samples, ms) = bench.sample(&weights, if main { images } else { few });
                let full = choice.full.len() as i64;
                let rows_per_image = if guidance == 1.0 { 1 } else { 2 };
                let macs = full * cached.cut.macs_full + (steps as i64 - full) * cached.cut.macs_cached;
                let added = json!({
                    "share": cached.cut.share(), "full": choice.full, "macs_per_image": macs * rows_per_image,
                    "macs_ratio": macs as f64 / (steps as i64 * cached.cut.macs_full) as f64,
                    "psnr_few": bench.psnr(&samples, few), "psnr": main.then(|| bench.psnr(&samples, images)), "loop_ms": ms,
                    "frechet": bench.features.as_mut().filter(|_| main).map(|f| f.distance(&samples)),
                    "frechet_uncached": distance, "images": images, "few": few,
                    "cost": choice.cost.map(|c| c.0), "uniform_cost": choice.cost.and_then(|c| c.1),
                });
                row.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
                let mut file = fs::OpenOptions::new().create(true).append(true).open(&out).unwrap();
                writeln!(file, "{row}").unwrap();
                println!("{cut} N={interval} {method} {}: {:.2} dB", correction_name(fit), row["psnr_few"]);
            }
        }
    }
}

const METHODS: [(&str, Option<Fit>); 9] = [
    ("uniform", None),
    ("dps-output", Some(Fit::Forecast)),
    ("dps", None),
    ("dps", Some(Fit::TeacherForced)),
    ("uniform", Some(Fit::TeacherForced)),
    ("quadratic", None),
    ("dps-output", None),
    ("uniform", Some(Fit::Forecast)),
    ("quadratic", Some(Fit::TeacherForced)),
];

fn correction_name(fit: Option<Fit>) -> String {
    fit.map_or("none".into(), |fit| fit.to_string())
}

fn request(model: &Model, options: &Options, samples: usize, first: u64) -> Request {
    let label = |values: &[i64]| -> BTreeMap<String, Tensor> {
        let input = model.inputs.iter().find(|i| i.role == InputRole::Condition).expect("a model that takes labels");
        BTreeMap::from([(input.name.clone(), Tensor::from_i64(&[values.len()], values))])
    };
    let mut request = Request { samples, seed: 1, first, guidance: 1.0, ..Request::default() };
    if let Some(labels) = options.get("labels") {
        let labels: Vec<i64> = labels.split(',').map(|l| l.parse().unwrap()).collect();
        request.conditions = label(&(0..samples).map(|i| labels[i % labels.len()]).collect::<Vec<_>>());
        request.guidance = option(options, "guidance", "1").parse().unwrap();
    }
    if let Some(null) = options.get("null-label") {
        request.unconditional = label(&[null.parse().unwrap()]);
    }
    request
}

impl Bench {
    fn open(&self, weights: &Arc<Weights>) -> Loop {
        let options = EngineOptions { batch: BATCH, threads: 2, ..Default::default() };
        let sampler = Sampler::new(&self.sampler, self.steps).unwrap();
        Loop::open(weights, sampler, self.guidance != 1.0, &options).unwrap()
    }

    /// The first images, and the median time of a batch's loop.
    fn sample(&self, weights: &Arc<Weights>, images: usize) -> (Vec<f32>, f64) {
        let (mut denoiser, evaluations) = (self.open(weights), weights.plan().evaluations);
        let (mut times, mut last) = (vec![], Instant::now());
        let conditions =
            self.request.conditions.iter().map(|(name, t)| (name.clone(), first_rows(t, images))).collect();
        let request = Request { samples: images, conditions, ..self.request.clone() };
        let images = denoiser.sample(&request, &mut |moment| {
            if moment.evaluation + 1 == evaluations {
                times.push(last.elapsed().as_secs_f64() * 1e3);
                last = Instant::now();
            }
            ControlFlow::Continue(())
        });
        times.sort_by(f64::total_cmp);
        (images.unwrap().to_f32_vec(), times[times.len() / 2])
    }

    /// Mean over the first `count` images, as `cqc eval` computes it: 8 bits per channel.
    fn psnr(&self, images: &[f32], count: usize) -> f64 {
        let len = self.reference.len() / self.request.samples;
        let bytes =
            |x: &[f32]| x.iter().map(|x| ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8).collect::<Vec<u8>>();
        let pairs = images.chunks_exact(len).zip(self.reference.chunks_exact(len)).take(count);
        let sum: f64 = pairs.map(|(a, b)| psnr(mse(&bytes(a), &bytes(b)), 255.0)).sum();
        sum / count as f64
    }
}

fn first_rows(t: &Tensor, rows: usize) -> Tensor {
    let mut shape = t.shape().to_vec();
    let row = t.bytes().len() / shape[0];
    shape[0] = rows;
    Tensor::new(t.dtype(), shape, t.bytes().slice(..rows * row)).unwrap()
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn key(row: &Value) -> String {
    ["model", "steps", "cut", "interval", "schedule", "correction"].map(|k| row[k].to_string()).join("/")
}

/// One line per model, cut and interval; PSNR in dB.
fn print_table(path: &Path) {
    let rows = rows(path);
    let mut groups: BTreeMap<(String, i64, i64), BTreeMap<usize, &Value>> = BTreeMap::new();
    for row in &rows {
        let share = (row["share"].as_f64().unwrap() * -1e6) as i64;
        let group = (row["model"].as_str().unwrap().to_string(), share, row["interval"].as_i64().unwrap());
        let is = |(method, fit): &(&str, Option<Fit>)| {
            row["schedule"] == **method && row["correction"] == correction_name(*fit)
        };
        groups.entry(group).or_default().insert(METHODS.iter().position(is).unwrap(), row);
    }
    let names = METHODS.map(|(method, fit)| match fit {
        None => method.to_string(),
        Some(fit) => format!("{method} + {fit}"),
    });
    println!(
        "| cut | N | GMACs per image | {} | all: {} | {} | Frechet: {} | {} |",
        names.join(" | "),
        names[0],
        names[1],
        names[0],
        names[1]
    );
    println!("|---|---|---|{}---|---|---|---|", "---|".repeat(METHODS.len()));
    let number = |row: Option<&&Value>, key: &str, digits: usize| {
        row.and_then(|r| r[key].as_f64()).map_or("".to_string(), |v| format!("{v:.digits$}"))
    };
    for ((model, share, interval), group) in &groups {
        let any = group.values().next().unwrap();
        let few: Vec<String> = (0..METHODS.len()).map(|i| number(group.get(&i), "psnr_few", 1)).collect();
        let main = |key, digits| [0, 1].map(|i| number(group.get(&i), key, digits)).join(" | ");
        println!(
            "| {model}, {:.1} % | {interval} | {:.1} | {} | {} | {} |",
            *share as f64 / -1e4,
            any["macs_per_image"].as_f64().unwrap() / 1e9,
            few.join(" | "),
            main("psnr", 1),
            main("frechet", 2)
        );
    }
}
