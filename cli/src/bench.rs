//! `cqc bench`: measures how long a step and a loop take.

mod artifact_bench;
mod kernels;
mod model_bench;

use super::args::{ModelArgs, PackCacheArgs, Threads};
use super::device::DeviceArgs;
use super::report::Failure;
use super::text::{bytes, short};
use super::{artifact, measure, term};
use cachequant::io::{Overwrite, check_target};
use cachequant::report::cost::{StepWork, work_of_steps};
use clap::Args;
use cqc_kernels::Isa;
use cqc_proto::plan::{Plan, ProgramKind};
use cqc_runtime::engine::{Execution, StepProfile};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Measure the latency of an artifact's steps and loop, or of single evaluations of a model
#[derive(Args, Debug)]
#[command(
    after_help = "Times are medians over repeats, after a warm-up. Inputs are noise and zeros unless --inputs gives them. MACs are \
    multiply-accumulates per sample.\n\n\
    Examples:\n  cqc bench unet.cq --batch 8 --threads 2\n  cqc bench unet.onnx --batch 1 --json"
)]
pub struct BenchArgs {
    /// A .cq or an .onnx file
    model: PathBuf,
    /// Number of samples at once, at least 1 [default: 1, or the batch size that the model fixes]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    cache: PackCacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Number of loops (.cq) or evaluations (.onnx) to time [default: as many as take a few
    /// seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Also measure every operator
    ///
    /// Prints time, work and the share of the measured peak, per kind of operator and per step of a
    /// program. It slows the other measurements a little.
    #[arg(long)]
    profile: bool,
    /// Quantized .cq: time every layer both as it runs and in f32
    ///
    /// Names the layers that integers or bf16 make slower.
    #[arg(long, conflicts_with_all = ["profile", "inputs", "output"])]
    kernels: bool,
    /// .onnx: read the inputs from raw little-endian files PREFIX.in.NAME.bin
    #[arg(long, value_name = "PREFIX")]
    inputs: Option<String>,
    /// .onnx: write the first output as raw f32
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Print the measurements as a JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ModelArgs,
}

/// What was measured; the JSON of `--json`.
#[derive(Debug, Serialize)]
struct Measured {
    threads: usize,
    batch: usize,
    backend: String,
    dtype: &'static str,
    /// Median time of a full step: the network and its part of the sampler.
    full_step_ms: f64,
    /// Median time of a cached step; `None` if nothing is cached.
    cached_step_ms: Option<f64>,
    loop_ms: f64,
    /// From the file to an engine that is ready, in milliseconds. It includes the import of an
    /// .onnx.
    open_ms: f64,
    steps: usize,
    full_steps: usize,
    /// Every timed full step.
    ms: Vec<f64>,
    /// Multiply-accumulates per sample.
    macs_full: i64,
    macs_cached: Option<i64>,
    /// Per sample and loop: the work of the preludes, which depends on time steps or conditions
    /// alone and is not in tables.
    macs_prelude: i64,
    /// Bytes of activations and weights.
    peak_memory_bytes: u64,
    /// Bytes of weights, activations and requests on the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_memory_bytes: Option<usize>,
    peak_rss_mb: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<ProfiledStep>,
    /// Rows that one evaluation computes: twice the batch under guidance.
    #[serde(skip)]
    rows: usize,
    #[serde(skip)]
    isa: Option<Isa>,
}

/// One step of a program.
#[derive(Debug, Serialize)]
struct ProfiledStep {
    program: String,
    op: String,
    name: String,
    /// Mean over its calls, in milliseconds.
    ms: f64,
    calls: u64,
    /// The work of one call and row.
    #[serde(flatten)]
    work: StepWork,
    /// Whether it runs its slow definition, because no kernel fits.
    reference: bool,
}

pub fn bench(args: &BenchArgs, quiet: bool) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    args.output.iter().try_for_each(|path| check_target(path, overwrite))?;
    if args.kernels {
        return kernels::compare(args, quiet);
    }
    let measured = if artifact::is_artifact(&args.model) {
        artifact_bench::measure(args, quiet)?
    } else {
        model_bench::measure(args, overwrite)?
    };
    if args.json { term::print_json(&measured) } else { term::print(&text(&measured)) }
}

fn profiled(plan: &Plan, steps: Vec<StepProfile>) -> Vec<ProfiledStep> {
    let works = ProgramKind::ALL.map(|kind| work_of_steps(plan, plan.program(kind)));
    let called = steps.into_iter().filter(|s| s.calls > 0);
    let work = |s: &StepProfile| {
        let key = (s.name.clone(), s.op.clone());
        let StepWork { macs, bytes } =
            works[s.program as usize].get(&key).copied().unwrap_or_default();
        StepWork { macs: macs * s.evaluations as i64, bytes: bytes * s.evaluations as i64 }
    };
    let profiled = called.map(|s| ProfiledStep {
        work: work(&s),
        program: s.program.to_string(),
        op: if s.execution.is_low_precision() { format!("{} {}", s.op, s.execution) } else { s.op },
        name: s.name,
        ms: s.total.as_secs_f64() * 1e3 / s.calls as f64,
        calls: s.calls,
        reference: s.execution == Execution::Definition,
    });
    profiled.collect()
}

fn text(m: &Measured) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}, {}, batch {}, {} threads", m.backend, m.dtype, m.batch, m.threads);
    let spread = |ms: &[f64]| {
        let (least, most) =
            ms.iter().fold((f64::INFINITY, 0.0f64), |(a, b), &x| (a.min(x), b.max(x)));
        format!("median of {}, {least:.2} to {most:.2}", ms.len())
    };
    let _ = writeln!(out, "full step    {:>9.2} ms   {}", m.full_step_ms, spread(&m.ms));
    match m.cached_step_ms {
        Some(ms) => drop(writeln!(out, "cached step  {ms:>9.2} ms")),
        None if m.steps > 1 => {
            out.push_str("cached step          none   the artifact caches nothing\n")
        }
        None => {}
    }
    if m.steps > 1 {
        let per = m.loop_ms / m.batch as f64;
        let _ = writeln!(
            out,
            "loop         {:>9.2} ms   {} steps, {} of them full; {per:.2} ms per sample",
            m.loop_ms, m.steps, m.full_steps
        );
    }
    let _ = writeln!(out, "opening      {:>9.2} ms", m.open_ms);
    if let (Some(isa), true) = (m.isa, m.macs_full > 0) {
        let flops = 2.0 * m.macs_full as f64 * m.rows as f64 / (m.full_step_ms / 1e3);
        let peak = measure::peak_flops(isa, m.threads);
        let share = flops / peak * 100.0;
        let macs = short(m.macs_full as f64);
        let _ = writeln!(
            out,
            "arithmetic   {macs} MACs per row: {} FLOP/s, {share:.0} % of this machine's measured {}",
            short(flops),
            short(peak)
        );
    }
    let _ = writeln!(
        out,
        "memory       {} of activations and weights, {:.0} MiB at most in the process",
        bytes(m.peak_memory_bytes),
        m.peak_rss_mb
    );
    if let Some(path) = &m.output {
        let _ = writeln!(out, "output       {}", path.display());
    }
    profile_text(m, &mut out);
    out
}

/// Time and work of the steps of one kind in a run of their program.
#[derive(Default)]
struct Kind {
    ms: f64,
    count: usize,
    work: StepWork,
}

fn profile_text(m: &Measured, out: &mut String) {
    let steps = &m.profile;
    if steps.is_empty() {
        return;
    }
    let mut kinds: BTreeMap<(&str, &str), Kind> = BTreeMap::new();
    for s in steps {
        let kind = kinds.entry((&s.program, &s.op)).or_default();
        kind.ms += s.ms;
        kind.count += 1;
        kind.work.macs += s.work.macs;
        kind.work.bytes += s.work.bytes;
    }
    // the peak is that of f32; products of integers or bf16 can exceed it, and their share 100 %
    let peak = m.isa.map(|isa| measure::peak_flops(isa, m.threads));
    let of_peak = |work: &StepWork, ms: f64| match peak {
        Some(peak) if work.macs > 0 && ms > 0.0 => {
            format!("{:4.0} %", 2.0 * work.macs as f64 * m.rows as f64 / (ms / 1e3) / peak * 100.0)
        }
        _ => String::new(),
    };
    let speed = |work: &StepWork, ms: f64| match ms > 0.0 {
        true => format!("{:.1}", work.bytes as f64 * m.rows as f64 / 1e6 / ms),
        false => String::new(),
    };
    let all: f64 = steps.iter().filter(|s| s.program == "full").map(|s| s.ms).sum();
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.ms.total_cmp(&a.1.ms));
    let _ = writeln!(
        out,
        "\nper kind of operator; columns: ms per run of its program, share of the full step, program, number of steps, operator, MACs per row,\n\
         share of the measured f32 peak, GB/s of operands and results counted as f32"
    );
    for ((program, op), Kind { ms, count, work }) in kinds {
        let share = if program == "full" {
            format!("{:5.1} %", ms / all * 100.0)
        } else {
            "       ".into()
        };
        let macs = if work.macs > 0 { short(work.macs as f64) } else { String::new() };
        let (peak, speed) = (of_peak(&work, ms), speed(&work, ms));
        let _ = writeln!(
            out,
            "  {ms:9.3}  {share}  {program:13} {count:4} {op:16} {macs:>8} {peak:>7} {speed:>6}"
        );
    }
    let _ = writeln!(
        out,
        "\nper step, in order; columns: ms, program, operator, share of the peak, GB/s, name"
    );
    for s in steps {
        let slow = if s.reference { "  (no kernel fits: runs the slow definition)" } else { "" };
        let (peak, speed) = (of_peak(&s.work, s.ms), speed(&s.work, s.ms));
        let _ = writeln!(
            out,
            "  {:9.3}  {:13} {:16} {peak:>7} {speed:>6}  {}{slow}",
            s.ms, s.program, s.op, s.name
        );
    }
}
