//! `bench --kernels`: the time that integers or bf16 save or cost, layer by layer.

use super::BenchArgs;
use super::artifact_bench::{conditions, request};
use crate::measure::{backend, median, peak_flops};
use crate::report::Failure;
use crate::term::ProgressBar;
use crate::text::short;
use crate::{artifact, term};
use cachequant::report::cost::{StepWork, work_of_steps};
use cqc_proto::plan::{Plan, ProgramKind};
use cqc_runtime::denoise::Denoiser;
use cqc_runtime::engine::EngineOptions;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Number of rounds without --repeat.
const ROUNDS: usize = 15;

/// A layer that is slower than in f32 by this factor is named.
const SLOWER: f64 = 1.1;

/// The JSON of `--json`.
#[derive(Debug, Serialize)]
struct Compared {
    threads: usize,
    batch: usize,
    backend: String,
    layers: Vec<Layer>,
    /// Names of the layers that are slower than in f32, as `compile --keep-float` takes them.
    slower: Vec<String>,
}

/// A layer that multiplies integers or bf16.
#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    program: ProgramKind,
    op: String,
    /// The kind of its operands: `int8` or `bf16`.
    kind: &'static str,
    /// Median time of one evaluation of the layer as it runs; `f32_ms` is that in f32.
    ms: f64,
    f32_ms: f64,
    #[serde(flatten)]
    work: StepWork,
}

impl Layer {
    fn gain(&self) -> f64 {
        self.f32_ms / self.ms
    }
}

pub fn compare(args: &BenchArgs, quiet: bool) -> Result<(), Failure> {
    if !artifact::is_artifact(&args.model) {
        return Err(Failure::usage("--kernels is for .cq files: a model has no quantized layers"));
    }
    let artifact = artifact::open(&args.model, args.cache.map)?;
    let plan = artifact.weights().plan();
    let guidance = artifact.manifest().classifier_free_scale();
    let (batch, threads) =
        (args.batch.map_or(plan.fixed_batch.unwrap_or(1), |b| b as usize), args.threads.count());
    let open = |low_precision| -> Result<Denoiser, Failure> {
        let options =
            EngineOptions { batch, threads, profile: true, low_precision, ..Default::default() };
        Ok(Denoiser::open(artifact.weights(), artifact.sampler()?, guidance != 1.0, &options)?)
    };
    let [mut narrow, mut floats] = [open(true)?, open(false)?];
    if !narrow.engine().profile().iter().any(|step| step.execution.is_low_precision()) {
        return Err(Failure::usage(
            "--kernels: no layer of the artifact multiplies integers or bf16 on this CPU",
        )
        .help("`cqc compile --quant w8a8`, and `cqc inspect` for what became of each layer"));
    }
    let rounds = args.repeat.map_or(ROUNDS, |n| n as usize);
    let request = request(&narrow, conditions(plan, narrow.width())?, guidance);
    let mut times = [BTreeMap::new(), BTreeMap::new()];
    let mut progress = ProgressBar::new("timing", rounds as u64, quiet);
    for _ in 0..rounds {
        for (denoiser, times) in [&mut narrow, &mut floats].into_iter().zip(&mut times) {
            round(denoiser, &request, times)?;
        }
        progress.step();
    }
    drop(progress);
    let layers = layers(plan, &narrow, &times);
    let mut slower: Vec<String> = layers
        .iter()
        .filter(|layer| layer.gain() * SLOWER < 1.0)
        .map(|layer| layer.name.clone())
        .collect();
    slower.sort();
    slower.dedup();
    let isa = artifact.weights().isa();
    let rows = narrow.engine().batch() * narrow.halves();
    let compared =
        Compared { threads, batch: narrow.width(), backend: backend(isa), layers, slower };
    if args.json {
        return term::print_json(&compared);
    }
    term::print(&text(&compared, rows as f64, peak_flops(isa, threads)))
}

/// Milliseconds of every step in every round, by program and name.
type Times = BTreeMap<(ProgramKind, String), Vec<f64>>;

/// Runs a full evaluation and, if there is one, a cached one, after one of each that is not timed.
fn round(
    denoiser: &mut Denoiser,
    request: &cqc_runtime::denoise::Request,
    times: &mut Times,
) -> Result<(), Failure> {
    let mut at = denoiser.begin(request, 0)?;
    let cached = denoiser.engine().plan().cache.is_some();
    for timed in [false, true] {
        denoiser.reset_profile();
        denoiser.evaluate_as(ProgramKind::Full, &mut at)?;
        if cached {
            denoiser.evaluate_as(ProgramKind::Cached, &mut at)?;
        }
        if timed {
            for step in denoiser.engine().profile().into_iter().filter(|step| step.calls > 0) {
                let ms = step.total.as_secs_f64() * 1e3 / step.calls as f64;
                times.entry((step.program, step.name)).or_default().push(ms);
            }
        }
    }
    Ok(())
}

fn layers(plan: &Plan, narrow: &Denoiser, [as_such, float]: &[Times; 2]) -> Vec<Layer> {
    let works = ProgramKind::ALL.map(|kind| work_of_steps(plan, plan.program(kind)));
    let steps =
        narrow.engine().profile().into_iter().filter(|step| step.execution.is_low_precision());
    let layer = |step: cqc_runtime::engine::StepProfile| {
        let key = (step.program, step.name.clone());
        let (ms, f32_ms) = (median(as_such.get(&key)?), median(float.get(&key)?));
        let kind = step.execution.name();
        let work = works[step.program as usize]
            .get(&(step.name.clone(), step.op.clone()))
            .copied()
            .unwrap_or_default();
        Some(Layer { name: step.name, program: step.program, op: step.op, kind, ms, f32_ms, work })
    };
    steps.filter_map(layer).collect()
}

fn text(c: &Compared, rows: f64, peak: f64) -> String {
    let mut out = format!("{}, batch {}, {} threads\n", c.backend, c.batch, c.threads);
    let _ = writeln!(
        out,
        "\nlayers that multiply integers or bf16: ms, ms of the same product in f32, gain, share of the measured f32 peak, MACs per row, program, operands, operator"
    );
    for layer in &c.layers {
        let share = 2.0 * layer.work.macs as f64 * rows / (layer.ms / 1e3) / peak * 100.0;
        let _ = writeln!(
            out,
            "  {:8.3} {:8.3} {:6.2}x {share:5.0} % {:>8}  {:7} {} {:7} {}",
            layer.ms,
            layer.f32_ms,
            layer.gain(),
            short(layer.work.macs as f64),
            layer.program.to_string(),
            layer.kind,
            layer.op,
            layer.name
        );
    }
    for program in [ProgramKind::Full, ProgramKind::Cached] {
        let of = || c.layers.iter().filter(|layer| layer.program == program);
        let (ms, float): (f64, f64) = (of().map(|l| l.ms).sum(), of().map(|l| l.f32_ms).sum());
        if ms > 0.0 {
            let _ =
                writeln!(out, "{program}: {ms:.2} ms, in f32 {float:.2} ms: {:.2}x", float / ms);
        }
    }
    let _ = match &c.slower[..] {
        [] => writeln!(out, "no layer is more than a tenth slower than in f32"),
        slower => writeln!(
            out,
            "slower than in f32 by more than a tenth, here and at this batch: compile with --keep-float {}",
            slower.join(",")
        ),
    };
    out
}
