//! Measures the effect of each part of the method: float, int8 alone, a cache alone, both without
//! any correction, and then one part after another.
//!
//! ```text
//! cargo bench --bench ablation -- MODEL.onnx --out rows.jsonl [--steps 100] [--interval 10]
//!     [--cut auto] [--images 512] [--calibration 32] [--only 'ROW;..']
//!     [--guidance 2 --null-label 8 --labels 0,1,2] [--features F.onnx --real-stats S.npz]
//!     [--threads 2] [--references DIR]
//! ```
//! All rows start from the same noise. Appends one JSON object per row to `--out` and leaves out
//! rows that are there already. `--table FILE` prints the rows as Markdown. `scripts/ablation` runs
//! both trained models.
//!
//! Each row is a [`Recipe`], and rows of the same schedule share its decisions. As in every
//! compilation, the last half of the calibration set, at most 8 samples, is the holdout, and all
//! others are fitted on: 24 of 32. Rows that were recorded before there were recipes fitted ranges
//! and the corrections of sums on half of the set, 16 of 32, which a recipe cannot express.

#[path = "common/mod.rs"]
mod common;

use cachequant::Model;
use cachequant::calibrate::{CachingChoice, holdout_size};
use cachequant::compile::Session;
use cachequant::recipe::{CacheFit, CompensationMode, Correct, Grouping, Quant, Recipe, Selection};
use common::{Bench, Options, arguments, option, rows};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One row of the table.
struct Row {
    name: &'static str,
    schedule: Option<Schedule>,
    /// The recipe of the row. Loop, interval, cut and calibration set are the same for all rows.
    recipe: Recipe,
    select: Samples,
}

/// The choice of the schedule, and the correction of the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Schedule {
    Uniform,
    /// As published: distance between features, and teacher-forced correction.
    Published,
    Dps,
    DpsForecast,
}

/// The samples on which ranges are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Samples {
    All,
    /// A quarter of all pairs of sample and evaluation, drawn at random.
    Quarter,
    /// The same number of pairs, chosen by Q&C's clustering.
    Tap,
}

impl Schedule {
    /// The recipe with this schedule. Its other corrections are not changed.
    fn of(self, recipe: Recipe) -> Recipe {
        let (schedule, cache_fit) = match self {
            Schedule::Uniform => ("uniform", None),
            Schedule::Published => ("dps", Some(CacheFit::TeacherForced)),
            Schedule::Dps => ("dps-output", None),
            Schedule::DpsForecast => ("dps-output", Some(CacheFit::Forecast)),
        };
        let mut correct = recipe.correct.clone().unwrap_or_default();
        if cache_fit.is_some() {
            correct.insert(0, Correct::Cache);
        }
        // as published, the correction of the cache is that of the float loop
        let as_published = self == Schedule::Published && recipe.quant().weight_bits().is_some();
        let refit_cache = as_published.then_some(false);
        let schedule = Some(schedule.parse().expect("it is a schedule"));
        Recipe { schedule, cache_fit, correct: Some(correct), refit_cache, ..recipe }
    }
}

fn unquantized() -> Recipe {
    Recipe { quant: Some(Quant::None), correct: Some(vec![]), ..Recipe::default() }
}

/// One scale for all evaluations, no splits, no corrections. The first and the last layer have 8
/// bits.
fn naive() -> Recipe {
    Recipe {
        quant: Some(Quant::W8a8),
        share_ranges: Some(Grouping::Pooled),
        split_inputs: Some(false),
        keep_float: vec!["none".into()],
        correct: Some(vec![]),
        ..Recipe::default()
    }
}

fn per_step() -> Recipe {
    Recipe { share_ranges: None, split_inputs: None, ..naive() }
}

fn float_edges() -> Recipe {
    Recipe { keep_float: vec![], float_work: Some(0.0), ..per_step() }
}

/// The sums of the layers that read the cache are corrected.
fn dec() -> Recipe {
    Recipe { correct: Some(vec![Correct::Quant]), ..float_edges() }
}

fn dec_of_all() -> Recipe {
    Recipe { correct: Some(vec![Correct::QuantAll]), ..float_edges() }
}

/// Some inputs are bf16. The rows are named after "sensitive inputs float", which they were before
/// there was bf16.
fn sensitive(recipe: Recipe) -> Recipe {
    Recipe { float_work: Some(0.03), ..recipe }
}

fn reconstruct(recipe: Recipe) -> Recipe {
    Recipe { reconstruct: true, ..recipe }
}

fn w4a8(recipe: Recipe) -> Recipe {
    Recipe { quant: Some(Quant::W4a8), ..recipe }
}

fn compensated(mode: CompensationMode, recipe: Recipe) -> Recipe {
    Recipe { variance_compensation: Some(mode), ..recipe }
}

fn all_rows() -> Vec<Row> {
    use CompensationMode::{Mse, Regression, Variance};
    let row = |name, schedule: Option<Schedule>, recipe: Recipe| {
        let recipe = match schedule {
            Some(schedule) => schedule.of(recipe),
            None => Recipe { interval: Some(1), ..recipe },
        };
        Row { name, schedule, recipe, select: Samples::All }
    };
    let (uniform, dps, forecast) =
        (Some(Schedule::Uniform), Some(Schedule::Dps), Some(Schedule::DpsForecast));
    vec![
        row("float", None, unquantized()),
        row("int8 only", None, per_step()),
        row("int8 only, edges float", None, float_edges()),
        row("int8 only, sensitive inputs float", None, sensitive(float_edges())),
        row("int8 only, DEC quant of all layers", None, dec_of_all()),
        row("int8 only, reconstruction", None, reconstruct(float_edges())),
        row("W4A8 only", None, w4a8(float_edges())),
        row("W4A8 only, reconstruction", None, w4a8(reconstruct(float_edges()))),
        row(
            "W4A8 only, reconstruction, DEC quant of all layers",
            None,
            w4a8(reconstruct(dec_of_all())),
        ),
        row("cache only", uniform, unquantized()),
        row("cache only, default", forecast, unquantized()),
        row("both, naive", uniform, naive()),
        row("+ per-step scales", uniform, per_step()),
        row("+ edges float", uniform, float_edges()),
        row("+ DPS", dps, float_edges()),
        row("+ DEC cache", forecast, float_edges()),
        row("+ DEC quant", forecast, dec()),
        // the recipe of `cqc compile`
        row("+ sensitive inputs float", forecast, sensitive(dec())),
        row(
            "sensitive inputs float, reconstruction",
            forecast,
            sensitive(reconstruct(float_edges())),
        ),
        row("sensitive inputs float, + VC (mse)", forecast, sensitive(compensated(Mse, dec()))),
        row(
            "W4A8, sensitive inputs float, reconstruction",
            forecast,
            w4a8(sensitive(reconstruct(float_edges()))),
        ),
        row("DEC quant of all layers", forecast, dec_of_all()),
        row("+ VC (mse)", forecast, compensated(Mse, dec())),
        row("+ VC (regression)", forecast, compensated(Regression, dec())),
        row("+ VC (variance)", forecast, compensated(Variance, dec())),
        row("reconstruction", forecast, reconstruct(float_edges())),
        row("reconstruction + DEC quant", forecast, reconstruct(dec())),
        row(
            "as published",
            Some(Schedule::Published),
            Recipe { correct: dec().correct, ..per_step() },
        ),
        Row { select: Samples::Quarter, ..row("random quarter of the samples", forecast, dec()) },
        Row { select: Samples::Tap, ..row("TAP, as many", forecast, dec()) },
        row("W4A8", forecast, w4a8(dec())),
        row("W4A8, reconstruction", forecast, w4a8(reconstruct(float_edges()))),
        row(
            "W4A8, reconstruction + DEC quant of all layers",
            forecast,
            w4a8(reconstruct(dec_of_all())),
        ),
    ]
}

fn main() {
    let Some((model, rest, options)) = arguments() else {
        println!(
            "usage: cargo bench --bench ablation -- MODEL.onnx --out rows.jsonl [options], see benches/ablation.rs"
        );
        return;
    };
    if model == "--table" {
        return print_table(Path::new(&rest[0]));
    }
    let out = PathBuf::from(option(&options, "out", "rows.jsonl"));
    let calibration: usize = option(&options, "calibration", "32").parse().unwrap();
    let (mut bench, model) = Bench::new(Path::new(&model), &options, calibration);
    let only: Vec<&str> =
        option(&options, "only", "").split(';').filter(|s| !s.is_empty()).collect();
    let interval = option(&options, "interval", "10").parse().unwrap();
    let identity = |row: &Row| {
        json!({"model": bench.name, "steps": bench.base.steps(), "interval": interval, "cut": option(&options, "cut", "auto"),
               "images": bench.request.samples, "row": row.name})
    };
    let done: Vec<String> = rows(&out).iter().map(key).collect();
    let wanted: Vec<(Row, Value)> = all_rows()
        .into_iter()
        .filter(|row| only.is_empty() || only.contains(&row.name))
        .map(|row| (identity(&row), row))
        .filter(|(identity, _)| !done.contains(&key(identity)))
        .map(|(identity, row)| (row, identity))
        .collect();
    let mut ablation = Ablation::new(&model, &options, interval, calibration);
    for row in all_rows().iter().filter(|row| row.name != "float") {
        assert_eq!(ablation.recipe(&bench, row).check(), [], "{}", row.name);
    }
    for (row, mut json) in wanted {
        let started = Instant::now();
        let samples = match row.name {
            "float" => bench.reference.clone(),
            _ => ablation.sample(&bench, &row),
        };
        let added = json!({
            "psnr": bench.psnr(&samples, bench.request.samples),
            "latent_error": relative_error(&samples, &bench.reference),
            "frechet": bench.features.as_mut().map(|f| f.distance(&samples)),
            "seconds": started.elapsed().as_secs_f64(),
        });
        json.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&out).unwrap();
        writeln!(file, "{json}").unwrap();
        println!("{json}");
    }
}

/// The schedules and corrections that have been decided so far.
struct Ablation<'a> {
    model: &'a Model,
    interval: usize,
    cut: &'a str,
    /// Number of calibration samples that are fitted on.
    fit: usize,
    choices: BTreeMap<Schedule, CachingChoice>,
}

impl<'a> Ablation<'a> {
    fn new(
        model: &'a Model,
        options: &'a Options,
        interval: usize,
        calibration: usize,
    ) -> Ablation<'a> {
        let (cut, fit) = (option(options, "cut", "auto"), calibration - holdout_size(calibration));
        Ablation { model, interval, cut, fit, choices: BTreeMap::new() }
    }

    /// The whole recipe of a row.
    fn recipe(&self, bench: &Bench, row: &Row) -> Recipe {
        let mut recipe = bench.calibrated(&row.recipe);
        if row.schedule.is_some() {
            recipe.interval = Some(self.interval);
            recipe.cut = Some(self.cut.parse().unwrap());
        }
        recipe.calib_select = match row.select {
            Samples::All => None,
            Samples::Quarter => Some(Selection::First((self.fit / 4).max(1))),
            Samples::Tap => Some(Selection::Tap(Some(recipe.steps() * self.fit / 4))),
        };
        recipe
    }

    fn sample(&mut self, bench: &Bench, row: &Row) -> Vec<f32> {
        let session = Session::new(self.model, &self.recipe(bench, row)).unwrap();
        let choice = row.schedule.map(|schedule| {
            let decide = || session.decide(&mut ()).unwrap().expect("something is cached");
            self.choices.entry(schedule).or_insert_with(decide).clone()
        });
        let quantized = session.quantize(choice.as_ref(), &mut ()).unwrap();
        let compiled = session.into_compiled(choice, quantized).unwrap();
        println!("{}: {} bytes of weights", row.name, compiled.lowered().weights.len);
        bench.sample(&compiled.artifact().unwrap(), bench.request.samples).0
    }
}

/// Root mean square of the difference, relative to that of the reference.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

fn key(row: &Value) -> String {
    ["model", "steps", "interval", "cut", "images", "row"].map(|k| row[k].to_string()).join("/")
}

fn print_table(path: &Path) {
    println!(
        "| model, steps, N, images | | PSNR dB | latent error | Frechet |\n|---|---|---|---|---|"
    );
    let number = |row: &Value, key: &str, digits: usize| {
        row[key].as_f64().map_or("".into(), |v| format!("{v:.digits$}"))
    };
    for row in rows(path) {
        println!(
            "| {}, {}, {}, {} | {} | {} | {} | {} |",
            row["model"].as_str().unwrap(),
            row["steps"],
            row["interval"],
            row["images"],
            row["row"].as_str().unwrap(),
            number(&row, "psnr", 1),
            number(&row, "latent_error", 4),
            number(&row, "frechet", 2)
        );
    }
}
