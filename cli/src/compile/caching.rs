//! `compile`: where to cut, when to compute what is cached, how to correct it.

use crate::args::{NamedFile, Threads};
use crate::artifact::{label_input, labels_as};
use crate::report::Failure;
use crate::request;
use crate::term::Progress;
use crate::text::bytes;
use clap::Args;
use cachequant::calibrate::{CalibrationOptions, Choice, Correct, Fit, Wanted, check_cut, choose, held_out};
use cachequant::compile::{CachedLoop, Lowered};
use cachequant::io::{FileError, read_array};
use cachequant::model::Model;
use cachequant::stages::Stages;
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::schedule::{Quadratic, Root, ScheduleKind};
use cqc_proto::Tensor;
use cqc_proto::cq::{CacheCorrection, CachedSchedule, Calibration};
use cqc_proto::plan::InputRole;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::{Loop, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

#[derive(Args, Debug)]
#[command(next_help_heading = "Caching and its calibration")]
pub struct CachingArgs {
    /// Cache interval: about one evaluation of N is computed in full, the others reuse its deep features; 1 caches nothing
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub interval: u32,
    /// Which evaluations are full: auto, dps-output, dps, dps-affine, uniform, quadratic[=CENTRE,POWER[,signed]], none, or a JSON file that
    /// holds a list of evaluations. auto takes whichever measures best on held-out calibration samples
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub schedule: ScheduleArg,
    /// What is cached: auto, shallow (most), deep (least), cost=SHARE (a cached step's share of a full one's work), or tensors as
    /// `cqc inspect` lists them
    #[arg(long, value_name = "SPEC", default_value = "auto")]
    pub cut: CutSpec,
    /// Form of the cache's correction: auto (whichever measures best, or none), teacher-forced (CacheQuant as published),
    /// sequential (fitted on the accelerated loop), or forecast (from the last two computations of what is cached)
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = ["auto", "teacher-forced", "sequential", "forecast"])]
    pub cache_fit: String,
    /// Calibration samples, half of which, at most 8, are held out to measure on [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub calib_samples: Option<u32>,
    /// Calibration samples computed at once
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub calib_batch: u32,
    /// Initial noise of the calibration samples instead of the seed's: .npy, or .npz with an array `noise`; its first axis is
    /// their number
    #[arg(long, value_name = "FILE", conflicts_with = "calib_samples")]
    pub calib_noise: Option<PathBuf>,
    /// Seed of the calibration samples' noise
    #[arg(long, value_name = "S", default_value_t = 1243)]
    pub seed: u64,
    /// Class labels of the calibration samples, repeated in turn [default: with --null-label K, 0 to K - 1]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    pub labels: Vec<i64>,
    /// Value of a conditioning input for the calibration samples, one row per sample or one for all. Repeatable
    #[arg(long, value_name = "NAME=FILE")]
    pub cond: Vec<NamedFile>,
    /// Calibrate within about this time, e.g. 20m or 90s: on fewer samples where all would take longer
    #[arg(long, value_name = "TIME", conflicts_with = "calib_noise", value_parser = humantime::parse_duration)]
    pub budget: Option<Duration>,
    /// Keep the results of calibration in this directory and go on from them after an interruption
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    #[command(flatten)]
    pub threads: Threads,
}

/// Calibration samples unless said otherwise.
const SAMPLES: usize = 16;

/// Samples on which all pairs of evaluations are tried.
pub const OUTPUT_SAMPLES: usize = 8;

/// `--schedule`.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleArg {
    /// Every evaluation is full.
    None,
    /// By a method.
    Method(ScheduleKind),
    /// DeepCache's, its centre chosen by the number of steps.
    Quadratic,
    /// From a file.
    File(PathBuf),
}

impl FromStr for ScheduleArg {
    type Err = String;

    fn from_str(text: &str) -> Result<ScheduleArg, String> {
        Ok(match text {
            "none" => ScheduleArg::None,
            "auto" => ScheduleArg::Method(ScheduleKind::Auto),
            "dps" => ScheduleArg::Method(ScheduleKind::Dps),
            "dps-affine" => ScheduleArg::Method(ScheduleKind::DpsAffine),
            "dps-output" => ScheduleArg::Method(ScheduleKind::DpsOutput),
            "uniform" => ScheduleArg::Method(ScheduleKind::Uniform),
            "quadratic" => ScheduleArg::Quadratic,
            _ if text.ends_with(".json") => ScheduleArg::File(text.into()),
            _ => match text.strip_prefix("quadratic=") {
                Some(form) => ScheduleArg::Method(ScheduleKind::Quadratic(quadratic(form)?)),
                None => {
                    return Err(
                        "expected auto, dps-output, dps, dps-affine, uniform, quadratic, none or FILE.json".into()
                    );
                }
            },
        })
    }
}

/// `15,1.4`, `none,1.5`, `15,1.4,signed`.
fn quadratic(text: &str) -> Result<Quadratic, String> {
    let wrong = || format!("`{text}`: expected CENTRE,POWER[,signed]: an evaluation or none, and a number above 1");
    let mut parts = text.split(',');
    let centre = match parts.next().ok_or_else(wrong)? {
        "none" => None,
        centre => Some(centre.parse::<f64>().ok().filter(|c| *c >= 0.0 && c.is_finite()).ok_or_else(wrong)?),
    };
    let power = parts.next().and_then(|p| p.parse::<f64>().ok()).filter(|p| *p > 1.0 && p.is_finite());
    let root = match parts.next() {
        None => Root::Principal,
        Some("signed") => Root::Signed,
        Some(_) => return Err(wrong()),
    };
    Ok(Quadratic { centre, power: power.ok_or_else(wrong)?, root })
}

impl CachingArgs {
    /// Calibration samples asked for.
    pub fn samples(&self) -> usize {
        self.calib_samples.map_or(SAMPLES, |n| n as usize)
    }

    /// Whether anything is cached.
    pub fn caches(&self) -> bool {
        self.interval > 1 && self.schedule != ScheduleArg::None
    }
}

/// A loop's sampler.
pub struct Trajectory<'a> {
    pub sampler: &'a SamplerConfig,
    pub steps: usize,
    /// Calibration samples, if their noise is not given.
    pub samples: usize,
    pub guidance: f32,
    pub null_label: Option<i64>,
    /// What guidance's unconditional half gets.
    pub unconditional: BTreeMap<String, Tensor>,
}

/// What was decided, on what.
pub struct Decision {
    pub choice: Choice,
    pub calibration: Calibration,
}

/// Calibrates.
pub fn decide(
    args: &CachingArgs,
    correct: bool,
    model: &Model,
    cached: &CachedLoop,
    trajectory: &Trajectory,
    stages: &Stages,
    quiet: bool,
) -> Result<Decision, Failure> {
    let request = calibration_request(args, model, trajectory)?;
    let sampler = Sampler::new(trajectory.sampler, trajectory.steps)?;
    let evaluations = sampler.evaluations().len();
    let schedule = wanted(args, evaluations)?;
    let mut denoiser = open_loop(args, &cached.uncorrected()?, trajectory, request.samples)?;
    check_cut(&denoiser, &request)?;

    let (samples, seed) = (request.samples, request.noise.is_none().then_some(args.seed));
    let mut shown: Option<Progress> = None;
    let correct = match (correct, &args.cache_fit[..]) {
        (false, _) => Correct::Never,
        (true, "teacher-forced") => Correct::Always(Fit::TeacherForced),
        (true, "sequential") => Correct::Always(Fit::Sequential),
        (true, "forecast") => Correct::Always(Fit::Forecast),
        (true, _) => Correct::Best,
    };
    let stages = stages.depending_on(&calibration_key(args, &request));
    let stages = stages.depending_on(format!("{} {schedule:?} {correct:?}", cached.cut_name).as_bytes());
    let choice = stages.run("schedule", || -> Result<Choice, Failure> {
        let options = CalibrationOptions {
            interval: args.interval as usize,
            schedule,
            correct,
            request,
            output_samples: OUTPUT_SAMPLES,
            progress: &mut |_, all| {
                shown.get_or_insert_with(|| Progress::new("calibrating", all, quiet)).step();
                ControlFlow::Continue(())
            },
        };
        Ok(choose(&mut denoiser, options)?)
    })?;
    drop(shown);
    Ok(Decision { choice, calibration: Calibration { samples, seed, select: "random".into() } })
}

/// The schedule asked for.
///
/// # Panics
/// When nothing is cached.
pub fn wanted(args: &CachingArgs, evaluations: usize) -> Result<Wanted, Failure> {
    Ok(match &args.schedule {
        ScheduleArg::None => unreachable!("nothing would be cached"),
        ScheduleArg::Quadratic => Wanted::Method(ScheduleKind::Quadratic(Quadratic::around(evaluations))),
        ScheduleArg::Method(kind) => Wanted::Method(kind.clone()),
        ScheduleArg::File(path) => Wanted::Given(read_schedule(path)?),
    })
}

/// What calibration depends on besides the loop: the samples and how many are computed at once.
pub fn calibration_key(args: &CachingArgs, request: &Request) -> Vec<u8> {
    let Request { samples, seed, first, noise, conditions, unconditional, guidance } = request;
    let text = format!("{} {} {samples} {seed} {first} {guidance}", args.interval, args.calib_batch);
    let mut key = text.into_bytes();
    let tensors = noise.iter().chain(conditions.values()).chain(unconditional.values());
    for tensor in tensors {
        key.extend(format!(" {} ", tensor.value_type()).bytes());
        key.extend_from_slice(tensor.bytes());
    }
    key
}

/// How engines of calibration are opened.
pub fn engine_options(args: &CachingArgs, samples: usize) -> EngineOptions {
    let batch = batch(args.calib_batch as usize, samples);
    EngineOptions { batch, threads: args.threads.count(), ..Default::default() }
}

/// A loop that calibration runs.
pub fn open_loop(
    args: &CachingArgs,
    lowered: &Lowered,
    trajectory: &Trajectory,
    samples: usize,
) -> Result<Loop, Failure> {
    let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
    let sampler = Sampler::new(trajectory.sampler, trajectory.steps)?;
    Ok(Loop::open(&weights, sampler, trajectory.guidance != 1.0, &engine_options(args, samples))?)
}

/// What the artifact says about its schedule.
pub fn manifest_schedule(args: &CachingArgs, choice: &Choice, corrections: Vec<CacheCorrection>) -> CachedSchedule {
    CachedSchedule {
        method: choice.method.clone(),
        interval: args.interval as usize,
        cost: choice.cost.map(|(cost, _)| cost),
        uniform_cost: choice.cost.and_then(|(_, uniform)| uniform),
        correction_method: choice.tables.as_ref().map(|(fit, _)| fit.to_string()),
        corrections,
    }
}

/// At most `most` at once, or a little less if then no batch of fitted or held-out samples has to be filled up.
fn batch(most: usize, samples: usize) -> usize {
    let held = held_out(samples);
    let most = most.min(held).max(1);
    let even = |b: &usize| held.is_multiple_of(*b) && (samples - held).is_multiple_of(*b);
    (most / 2 + 1..=most).rev().find(even).unwrap_or(most)
}

fn read_schedule(path: &Path) -> Result<Vec<usize>, Failure> {
    let text = std::fs::read_to_string(path).map_err(FileError::reading(path))?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Failure::failed(format!("{} is not valid JSON", path.display())).fact("seen", e))?;
    // what `inspect --json` prints is understood as well
    let list = [Some(&value), value.get("full_steps"), value.pointer("/schedule/full_steps")];
    let list = list.into_iter().flatten().find_map(|v| serde_json::from_value(v.clone()).ok());
    list.ok_or_else(|| {
        Failure::failed(format!("{} holds no schedule", path.display()))
            .fact("wants", "a list of the evaluations that are full, such as [0, 4, 9], alone or as `full_steps`")
    })
}

/// The calibration samples.
pub fn calibration_request(args: &CachingArgs, model: &Model, trajectory: &Trajectory) -> Result<Request, Failure> {
    let noise = args.calib_noise.as_ref().map(|path| read_array(path, "noise")).transpose()?;
    let rows = noise.as_ref().map(|t| t.shape().first().copied().unwrap_or(0));
    let samples = rows.unwrap_or(trajectory.samples);
    let mut conditions = request::read_named(&args.cond)?;
    let labels: Vec<i64> = match (&args.labels[..], trajectory.null_label) {
        ([], Some(null)) if conditions.is_empty() && null > 0 => (0..null).collect(),
        (labels, _) => labels.to_vec(),
    };
    if !labels.is_empty() {
        let input = label_input(&model.inputs)?;
        let labels: Vec<i64> = (0..samples).map(|i| labels[i % labels.len()]).collect();
        conditions.insert(input.name.clone(), labels_as(input, &labels));
    }
    let mut missing = model.inputs.iter().filter(|i| i.role == InputRole::Condition);
    if let Some(input) = missing.find(|i| !conditions.contains_key(&i.name)) {
        let labels = if input.ty.dtype.is_integer() { "--labels A,B,.. or " } else { "" };
        return Err(Failure::usage(format!("calibration needs input `{}`", input.name)).fact("wants", &input.ty).help(
            format!("{labels}--cond {}=FILE.npy; or --interval 1 --quant none, which needs no calibration", input.name),
        ));
    }
    Ok(Request {
        samples,
        seed: args.seed,
        first: 0,
        noise,
        conditions,
        unconditional: trajectory.unconditional.clone(),
        guidance: trajectory.guidance,
    })
}

/// Says what was decided and why; the same as JSON.
pub fn report(cached: &CachedLoop, decision: &Decision) -> serde_json::Value {
    let (cut, choice) = (&cached.cut, &decision.choice);
    let evaluations = cached.evaluations();
    tracing::info!(
        "cached: {}; a cached step does {:.1} % of a full one's work and reads {} per sample",
        cached.cut_name,
        cut.share() * 100.0,
        bytes(cut.bytes as u64)
    );
    let measured: Vec<String> = choice
        .measured
        .iter()
        .map(|m| {
            let correction = m.correction.map_or(String::new(), |fit| format!(" + {fit} correction"));
            format!("{}{correction} {:.2} dB", m.method, m.psnr)
        })
        .collect();
    tracing::info!("held-out samples against the uncached loop: {}", measured.join(", "));
    tracing::info!(
        "schedule: {}, {} of {evaluations} evaluations are full; correction: {}",
        choice.method,
        choice.full.len(),
        choice.tables.as_ref().map_or("none, it does not help".to_string(), |(fit, _)| fit.to_string())
    );
    json!({
        "cut": cached.cut_name, "macs_full": cut.macs_full, "macs_cached": cut.macs_cached, "cache_bytes": cut.bytes,
        "schedule": choice.method, "full_steps": choice.full,
        "cost": choice.cost.map(|c| c.0), "uniform_cost": choice.cost.and_then(|c| c.1),
        "correction": choice.tables.as_ref().map(|(fit, _)| fit.to_string()),
        "measured": choice.measured.iter().map(|m| json!({
            "schedule": m.method, "correction": m.correction.map(|fit| fit.to_string()), "psnr": m.psnr,
        })).collect::<Vec<_>>(),
    })
}
