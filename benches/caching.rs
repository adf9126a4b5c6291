//! Measures the cost and the savings of caching for cut × interval × schedule × correction, on
//! images that are not in the calibration set.
//!
//! ```text
//! cargo bench --bench caching -- MODEL.onnx --out rows.jsonl [--steps 100] [--intervals 2,3,5]
//!     [--cuts auto,shallow] [--images 64] [--few 16] [--guidance 2 --null-label 8 --labels 0,1,2]
//!     [--features F.onnx --real-stats S.npz] [--only METHOD,..]
//! ```
//! The first two methods are run on all images, the others on the first few. One JSON object per
//! row is appended to `--out`, and rows that are there already are left out, so that an interrupted
//! run can be continued. Every row is sampled from its artifact. `--table` prints the file as
//! Markdown.
//!
//! The rows of a cut and an interval share a [`Study`] of the calibration set, which a compilation
//! makes for one schedule. The schedule of a row is not measured on the holdout.

#[path = "common/mod.rs"]
mod common;

use cachequant::calibrate::{
    CachingChoice, CalibrationOptions, CorrectionFit, CorrectionPolicy, ScheduleSource, Study,
};
use cachequant::compile::Session;
use cachequant::recipe::{Quant, Recipe};
use common::{BATCH, Bench, Options, arguments, option, rows};
use cqc_passes::cache::schedule::{Quadratic, ScheduleKind};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CALIBRATION: usize = 16;

fn main() {
    let Some((model, rest, options)) = arguments() else {
        println!(
            "usage: cargo bench --bench caching -- MODEL.onnx --out rows.jsonl [options], see benches/caching.rs"
        );
        return;
    };
    if model == "--table" {
        return print_table(Path::new(&rest[0]));
    }
    run(Path::new(&model), &options);
}

fn run(path: &Path, options: &Options) {
    let out = PathBuf::from(option(options, "out", "rows.jsonl"));
    let (mut bench, model) = Bench::new(path, options, CALIBRATION);
    let (steps, images) = (bench.base.steps(), bench.request.samples);
    let few =
        option(options, "few", "16").parse::<usize>().unwrap().next_multiple_of(BATCH).min(images);
    let name = bench.name.clone();
    let done: BTreeSet<String> = rows(&out).iter().map(key).collect();
    let distance = bench.features.as_mut().map(|f| f.distance(&bench.reference));
    println!("uncached loop: Frechet {distance:?}");
    let only: Vec<&str> =
        option(options, "only", "").split(',').filter(|s| !s.is_empty()).collect();

    for cut in option(options, "cuts", "auto").split(',') {
        for interval in option(options, "intervals", "2,3,5,10,20").split(',') {
            let interval: usize = interval.parse().unwrap();
            let identity = |method: &str, correction: &str| {
                json!({"model": name, "steps": steps, "cut": cut, "interval": interval, "schedule": method,
                       "correction": correction})
            };
            let wanted: Vec<(&str, Option<CorrectionFit>)> = METHODS
                .into_iter()
                .filter(|(method, fit)| {
                    let row = identity(method, &correction_name(*fit));
                    !done.contains(&key(&row))
                        && (only.is_empty()
                            || only
                                .contains(&format!("{method}+{}", correction_name(*fit)).as_str()))
                })
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let recipe = bench.calibrated(&Recipe {
                interval: Some(interval),
                cut: Some(cut.parse().unwrap()),
                quant: Some(Quant::None),
                ..Recipe::default()
            });
            let session = Session::new(&model, &recipe).unwrap();
            let set = session.calibration_set().expect("caching is calibrated");
            let mut denoiser = session.open(&session.uncached().unwrap(), set.samples).unwrap();
            let started = Instant::now();
            let mut progress = |_, _| ControlFlow::Continue(());
            let mut study = Study::new(
                &mut denoiser,
                CalibrationOptions {
                    interval,
                    schedule: ScheduleSource::Method(ScheduleKind::Auto),
                    correct: CorrectionPolicy::Never,
                    request: set.clone(),
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
                let Ok(candidates) = study.candidates(&ScheduleSource::Method(kind)) else {
                    continue;
                };
                let candidate = candidates.into_iter().next().unwrap();
                let tables = fit.map(|fit| (fit, study.tables(fit, &candidate.full).unwrap()));
                let choice = CachingChoice {
                    full: candidate.full,
                    method: method.into(),
                    cost: candidate.cost,
                    tables,
                    measured: vec![],
                    held: None,
                };
                let compiled = Session::new(&model, &recipe)
                    .unwrap()
                    .into_compiled(Some(choice), None)
                    .unwrap();
                let cut_of = &compiled.session().cached().expect("something is cached").cut;
                let choice = compiled.choice().expect("something is cached");
                let mut row = identity(method, &correction_name(fit));
                let main = METHODS[..2].contains(&(method, fit));
                let (samples, ms) =
                    bench.sample(&compiled.artifact().unwrap(), if main { images } else { few });
                let full = choice.full.len() as i64;
                let rows_per_image = if recipe.guidance() == 1.0 { 1 } else { 2 };
                let macs = full * cut_of.macs_full + (steps as i64 - full) * cut_of.macs_cached;
                let added = json!({
                    "share": cut_of.share(), "full": choice.full, "macs_per_image": macs * rows_per_image,
                    "macs_ratio": macs as f64 / (steps as i64 * cut_of.macs_full) as f64,
                    "psnr_few": bench.psnr(&samples, few), "psnr": main.then(|| bench.psnr(&samples, images)), "loop_ms": ms,
                    "frechet": bench.features.as_mut().filter(|_| main).map(|f| f.distance(&samples)),
                    "frechet_uncached": distance, "images": images, "few": few,
                    "cost": choice.cost.map(|c| c.0), "uniform_cost": choice.cost.and_then(|c| c.1),
                });
                row.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
                let mut file = fs::OpenOptions::new().create(true).append(true).open(&out).unwrap();
                writeln!(file, "{row}").unwrap();
                println!(
                    "{cut} N={interval} {method} {}: {:.2} dB",
                    correction_name(fit),
                    row["psnr_few"]
                );
            }
        }
    }
}

const METHODS: [(&str, Option<CorrectionFit>); 9] = [
    ("uniform", None),
    ("dps-output", Some(CorrectionFit::Forecast)),
    ("dps", None),
    ("dps", Some(CorrectionFit::TeacherForced)),
    ("uniform", Some(CorrectionFit::TeacherForced)),
    ("quadratic", None),
    ("dps-output", None),
    ("uniform", Some(CorrectionFit::Forecast)),
    ("quadratic", Some(CorrectionFit::TeacherForced)),
];

fn correction_name(fit: Option<CorrectionFit>) -> String {
    fit.map_or("none".into(), |fit| fit.to_string())
}

fn key(row: &Value) -> String {
    ["model", "steps", "cut", "interval", "schedule", "correction"]
        .map(|k| row[k].to_string())
        .join("/")
}

/// One line per model, cut and interval; PSNR in dB.
fn print_table(path: &Path) {
    let rows = rows(path);
    let mut groups: BTreeMap<(String, i64, i64), BTreeMap<usize, &Value>> = BTreeMap::new();
    for row in &rows {
        let share = (row["share"].as_f64().unwrap() * -1e6) as i64;
        let group =
            (row["model"].as_str().unwrap().to_string(), share, row["interval"].as_i64().unwrap());
        let is = |(method, fit): &(&str, Option<CorrectionFit>)| {
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
        let few: Vec<String> =
            (0..METHODS.len()).map(|i| number(group.get(&i), "psnr_few", 1)).collect();
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
