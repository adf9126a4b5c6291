//! What each part of the method is worth: float, int8 alone, a cache alone, both without care, and then one part after another.
//!
//! ```text
//! cargo bench --bench ablation -- MODEL.onnx --out rows.jsonl [--steps 100] [--interval 10] [--cut auto] [--images 512] [--calibration 32] [--only 'ROW;..']
//!     [--guidance 2 --null-label 8 --labels 0,1,2] [--features F.onnx --real-stats S.npz] [--threads 2] [--references DIR]
//! ```
//! All rows start from the same noise. Appends one JSON object per row to `--out` and leaves out rows that are there already. `--table FILE`
//! prints the rows as Markdown. `scripts/ablation` runs both trained models.

#[path = "common/mod.rs"]
mod common;

use cachequant::calibrate::quantize::{Grouping, Outputs, Select};
use cachequant::calibrate::{CalibrationOptions, Choice, Correct, Fit, Study, Tables, Wanted};
use cachequant::compile::{Assembled, CachedLoop, LoopOptions, assemble_loop, cut_loop};
use cachequant::model::Model;
use cachequant::quantize::{QuantizeOptions, quantize};
use cachequant::stages::Stages;
use common::{BATCH, Bench, Options, arguments, option, rows};
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::schedule::ScheduleKind;
use cqc_passes::calib::compensate::CompensationMode;
use cqc_passes::calib::select::Tap;
use cqc_passes::quant::{AnnotateOptions, QuantSpec};
use cqc_runtime::denoise::{Compensation, Denoiser, Request};
use cqc_runtime::engine::Weights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One row of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    schedule: Option<Schedule>,
    quant: Option<Quant>,
}

/// When the cached part is computed, and the correction of the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Schedule {
    Uniform,
    /// As published: distance between features, teacher-forced.
    Published,
    Dps,
    DpsForecast,
}

#[derive(Clone, Copy)]
struct Quant {
    bits: u8,
    /// Share of the multiplications whose inputs may be bf16: the rows of sensitive inputs (float, until there was bf16 for them).
    float_work: f64,
    grouping: Grouping,
    split: bool,
    outputs: Outputs,
    compensation: Option<CompensationMode>,
    reconstruct: bool,
    select: Samples,
    /// As published: the first and the last layer have 8 bits.
    edges: bool,
}

/// What ranges are found on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Samples {
    All,
    /// A quarter of all pairs of sample and evaluation, drawn at random.
    Quarter,
    /// As many, chosen by Q&C's clustering.
    Tap,
}

/// One scale for all evaluations, no splits, no corrections.
const NAIVE: Quant = Quant {
    bits: 8,
    float_work: 0.0,
    grouping: Grouping::Pooled,
    split: false,
    outputs: Outputs::None,
    compensation: None,
    reconstruct: false,
    edges: true,
    select: Samples::All,
};
const PER_STEP: Quant = Quant { grouping: Grouping::PerEvaluation, split: true, ..NAIVE };
const FLOAT_EDGES: Quant = Quant { edges: false, ..PER_STEP };
const DEC: Quant = Quant { outputs: Outputs::Cut, ..FLOAT_EDGES };
/// What `cqc compile` does.
const DEFAULT: Quant = Quant { float_work: 0.03, ..DEC };

fn all_rows() -> Vec<Row> {
    let row = |name, schedule, quant| Row { name, schedule, quant };
    let (uniform, dps, forecast) = (Some(Schedule::Uniform), Some(Schedule::Dps), Some(Schedule::DpsForecast));
    let recon = Quant { reconstruct: true, ..FLOAT_EDGES };
    vec![
        row("float", None, None),
        row("int8 only", None, Some(PER_STEP)),
        row("int8 only, edges float", None, Some(FLOAT_EDGES)),
        row("int8 only, sensitive inputs float", None, Some(Quant { float_work: 0.03, ..FLOAT_EDGES })),
        row("int8 only, DEC quant of all layers", None, Some(Quant { outputs: Outputs::All, ..DEC })),
        row("int8 only, reconstruction", None, Some(recon)),
        row("W4A8 only", None, Some(Quant { bits: 4, ..FLOAT_EDGES })),
        row("W4A8 only, reconstruction", None, Some(Quant { bits: 4, ..recon })),
        row(
            "W4A8 only, reconstruction, DEC quant of all layers",
            None,
            Some(Quant { bits: 4, outputs: Outputs::All, ..recon }),
        ),
        row("cache only", uniform, None),
        row("cache only, default", forecast, None),
        row("both, naive", uniform, Some(NAIVE)),
        row("+ per-step scales", uniform, Some(PER_STEP)),
        row("+ edges float", uniform, Some(FLOAT_EDGES)),
        row("+ DPS", dps, Some(FLOAT_EDGES)),
        row("+ DEC cache", forecast, Some(FLOAT_EDGES)),
        row("+ DEC quant", forecast, Some(DEC)),
        row("+ sensitive inputs float", forecast, Some(DEFAULT)),
        row(
            "sensitive inputs float, reconstruction",
            forecast,
            Some(Quant { reconstruct: true, outputs: Outputs::None, ..DEFAULT }),
        ),
        row(
            "sensitive inputs float, + VC (mse)",
            forecast,
            Some(Quant { compensation: Some(CompensationMode::Mse), ..DEFAULT }),
        ),
        row(
            "W4A8, sensitive inputs float, reconstruction",
            forecast,
            Some(Quant { bits: 4, reconstruct: true, outputs: Outputs::None, ..DEFAULT }),
        ),
        row("DEC quant of all layers", forecast, Some(Quant { outputs: Outputs::All, ..DEC })),
        row("+ VC (mse)", forecast, Some(Quant { compensation: Some(CompensationMode::Mse), ..DEC })),
        row("+ VC (regression)", forecast, Some(Quant { compensation: Some(CompensationMode::Regression), ..DEC })),
        row("+ VC (variance)", forecast, Some(Quant { compensation: Some(CompensationMode::Variance), ..DEC })),
        row("reconstruction", forecast, Some(recon)),
        row("reconstruction + DEC quant", forecast, Some(Quant { reconstruct: true, ..DEC })),
        row("as published", Some(Schedule::Published), Some(Quant { edges: true, ..DEC })),
        row("random quarter of the samples", forecast, Some(Quant { select: Samples::Quarter, ..DEC })),
        row("TAP, as many", forecast, Some(Quant { select: Samples::Tap, ..DEC })),
        row("W4A8", forecast, Some(Quant { bits: 4, ..DEC })),
        row("W4A8, reconstruction", forecast, Some(Quant { bits: 4, ..recon })),
        row(
            "W4A8, reconstruction + DEC quant of all layers",
            forecast,
            Some(Quant { bits: 4, outputs: Outputs::All, ..recon }),
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
    let calibration = option(&options, "calibration", "32").parse().unwrap();
    let (mut bench, model) = Bench::new(Path::new(&model), &options, calibration);
    let only: Vec<&str> = option(&options, "only", "").split(';').filter(|s| !s.is_empty()).collect();
    let interval = option(&options, "interval", "10").parse().unwrap();
    let identity = |row: &Row| {
        json!({"model": bench.name, "steps": bench.steps, "interval": interval, "cut": option(&options, "cut", "auto"),
               "images": bench.request.samples, "row": row.name})
    };
    let done: Vec<String> = rows(&out).iter().map(key).collect();
    let wanted: Vec<(Row, Value)> = all_rows()
        .into_iter()
        .filter(|row| only.is_empty() || only.contains(&row.name))
        .map(|row| (row, identity(&row)))
        .filter(|(_, identity)| !done.contains(&key(identity)))
        .collect();
    let mut ablation = Ablation::new(&bench, &model, &options, interval);
    for (row, mut json) in wanted {
        let started = Instant::now();
        let samples = match (row.schedule, row.quant) {
            (None, None) => bench.reference.clone(),
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

/// Loops compiled so far.
struct Ablation<'a> {
    cached: CachedLoop<'a>,
    plain: Assembled<'a>,
    interval: usize,
    choices: BTreeMap<Schedule, Choice>,
}

impl<'a> Ablation<'a> {
    fn new(bench: &Bench, model: &'a Model, options: &Options, interval: usize) -> Ablation<'a> {
        let options_of_loop =
            LoopOptions { sampler: bench.sampler.clone(), steps: bench.steps, any_steps: false, bf16: None };
        let cut: CutSpec = option(options, "cut", "auto").parse().unwrap();
        Ablation {
            cached: cut_loop(model, &options_of_loop, &cut).unwrap(),
            plain: assemble_loop(model, &options_of_loop).unwrap(),
            interval,
            choices: BTreeMap::new(),
        }
    }

    /// The float loop, which always computes everything.
    fn float(&self, bench: &Bench) -> Denoiser {
        let lowered = self.cached.uncorrected().unwrap();
        bench.open(&Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap())
    }

    fn choice(&mut self, bench: &Bench, schedule: Schedule) -> Choice {
        if let Some(choice) = self.choices.get(&schedule) {
            return choice.clone();
        }
        let mut denoiser = self.float(bench);
        let mut progress = |_, _| ControlFlow::Continue(());
        let needs = |s: Schedule| match s {
            Schedule::Uniform => ScheduleKind::Uniform,
            Schedule::Published => ScheduleKind::Dps,
            Schedule::Dps | Schedule::DpsForecast => ScheduleKind::DpsOutput,
        };
        let options = CalibrationOptions {
            interval: self.interval,
            schedule: Wanted::Method(needs(schedule)),
            correct: Correct::Never,
            request: bench.calibration.clone(),
            output_samples: BATCH,
            progress: &mut progress,
        };
        let mut study = Study::new(&mut denoiser, options).unwrap();
        let candidate = study.candidates(&Wanted::Method(needs(schedule))).unwrap().remove(0);
        let fit = match schedule {
            Schedule::Uniform | Schedule::Dps => None,
            Schedule::Published => Some(Fit::TeacherForced),
            Schedule::DpsForecast => Some(Fit::Forecast),
        };
        let choice = Choice {
            tables: fit.map(|fit| (fit, study.tables(fit, &candidate.full).unwrap())),
            full: candidate.full,
            method: candidate.method,
            cost: candidate.cost,
            measured: vec![],
            held: None,
        };
        self.choices.insert(schedule, choice.clone());
        choice
    }

    fn sample(&mut self, bench: &Bench, row: &Row) -> Vec<f32> {
        let choice = row.schedule.map(|s| self.choice(bench, s));
        let cache = choice.as_ref().and_then(|c| c.tables.as_ref()).map(|(_, tables)| tables);
        let (lowered, compensation) = match (&choice, row.quant) {
            (Some(choice), None) => (self.cached.decided(choice).unwrap().0, None),
            (None, None) => (self.plain.lower(None).unwrap().0, None),
            (choice, Some(quant)) => self.quantized(bench, choice.as_ref(), cache, quant, row),
        };
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        println!("{}: {} bytes of weights", row.name, lowered.weights.len);
        let mut denoiser = bench.open(&weights);
        denoiser.set_compensation(compensation).unwrap();
        denoiser.sample(&bench.request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
    }

    fn quantized(
        &self,
        bench: &Bench,
        choice: Option<&Choice>,
        cache: Option<&Tables>,
        quant: Quant,
        row: &Row,
    ) -> (cachequant::compile::Lowered, Option<Compensation>) {
        let assembled = choice.map(|c| self.cached.assemble(&c.full, cache).unwrap());
        let assembled = assembled.as_ref().unwrap_or(&self.plain);
        let mut float = self.float(bench);
        // the first half is fitted on
        let calibration = bench.calibration.samples;
        let spec = QuantSpec { split: quant.split, narrow_float: !quant.edges, ..QuantSpec::new(quant.bits) };
        let quantized = quantize(
            assembled,
            cache,
            &mut float,
            QuantizeOptions {
                spec,
                target_psnr: None,
                float_work: quant.float_work,
                grouping: quant.grouping,
                outputs: quant.outputs,
                refit_cache: row.schedule == Some(Schedule::DpsForecast),
                compensation: quant.compensation,
                reconstruct: quant.reconstruct,
                select: match quant.select {
                    Samples::All => Select::All,
                    Samples::Quarter => Select::First(calibration / 8),
                    Samples::Tap => Select::Tap(Tap { total: bench.steps * calibration / 8, ..Tap::default() }),
                },
                request: Request { ..bench.calibration.clone() },
                stages: &Stages::none(),
                fit: calibration / 2,
                held: None,
                engine: bench.engine.clone(),
                progress: &mut |_, _| ControlFlow::Continue(()),
            },
        )
        .unwrap();
        let refitted = quantized.fitted.cache.as_ref().or(cache);
        let again = choice.map(|c| self.cached.assemble(&c.full, refitted).unwrap());
        let assembled = again.as_ref().unwrap_or(&self.plain);
        let (lowered, _) =
            assembled.lower(Some((&quantized.survey, &quantized.fitted.tables, AnnotateOptions::default()))).unwrap();
        (lowered, quantized.fitted.compensation)
    }
}

/// Root mean square of the difference over that of the reference.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

fn key(row: &Value) -> String {
    ["model", "steps", "interval", "cut", "images", "row"].map(|k| row[k].to_string()).join("/")
}

fn print_table(path: &Path) {
    println!("| model, steps, N, images | | PSNR dB | latent error | Frechet |\n|---|---|---|---|---|");
    let number =
        |row: &Value, key: &str, digits: usize| row[key].as_f64().map_or("".into(), |v| format!("{v:.digits$}"));
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
