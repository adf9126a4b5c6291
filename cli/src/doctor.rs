//! `doctor`: will this export do, and what will it cost?

use super::args::{Sizes, Threads};
use super::device;
use super::inspect::{macs, per_sample};
use super::report::Failure;
use super::text::{bytes, short};
use super::{measure, term};
use cachequant::compile::bad_weights;
use cachequant::model::{Model, ModelError, ModelOptions};
use clap::Args;
use cqc_kernels::{Isa, memory};
use cqc_passes::ir::Graph;
use cqc_passes::onnx::ImportError;
use cqc_proto::plan::InputRole;
use cqc_proto::{Bindings, Dim};
use cqc_runtime::engine::EngineError;
use serde_json::json;
use std::path::PathBuf;

/// Check an export before compiling it: what is unsupported, what is baked in, what it will cost
#[derive(Args, Debug)]
#[command(
    after_help = "Exit code 3 if the model uses something unsupported; every such node is listed."
)]
pub struct DoctorArgs {
    /// An .onnx file; without one, only what this machine has for CUDA
    model: Option<PathBuf>,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    threads: Threads,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
struct Finding {
    topic: &'static str,
    verdict: Verdict,
    text: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Ok,
    Note,
    Bad,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Bad => "bad",
        }
    }
}

pub fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let Some(path) = &args.model else { return print(args, &cuda()) };
    let options = ModelOptions { import: args.sizes.import_options(), stop_after: None };
    match Model::load(path, &options, |_, _| {}) {
        Ok(model) => {
            let isa = Isa::detect().map_err(EngineError::from)?;
            let findings = [
                exporter(&model),
                shapes(&model),
                loop_inputs(&model),
                operators(&model),
                weights(&model),
                cost(&model, isa, args.threads.count()),
                cuda(),
            ];
            let findings: Vec<Finding> = findings.into_iter().flatten().collect();
            print(args, &findings)
        }
        Err(e) => {
            print(args, &unsupported(&e))?;
            Err(e.into())
        }
    }
}

fn print(args: &DoctorArgs, findings: &[Finding]) -> Result<(), Failure> {
    if args.json {
        let list = findings
            .iter()
            .map(|f| json!({"topic": f.topic, "verdict": f.verdict.name(), "text": f.text}));
        let supported = findings.iter().all(|f| f.verdict != Verdict::Bad);
        let list: Vec<_> = list.collect();
        return term::print_json(
            &json!({"model": args.model, "supported": supported, "findings": list}),
        );
    }
    let line = |f: &Finding| format!("{:5} {:10} {}\n", f.verdict.name(), f.topic, f.text);
    term::print(&findings.iter().map(line).collect::<String>())
}

/// What the error on stderr says, as findings: stdout alone tells the result.
fn unsupported(e: &ModelError) -> Vec<Finding> {
    let bad = |topic, text: String| Finding { topic, verdict: Verdict::Bad, text };
    match e {
        ModelError::Import { source: ImportError::Unsupported(nodes), .. } => {
            nodes.iter().map(|node| bad("operators", node.to_string())).collect()
        }
        ModelError::Import { source, .. } => vec![bad("import", source.to_string())],
        other => vec![bad("import", other.to_string())],
    }
}

fn ok(topic: &'static str, text: impl Into<String>) -> Finding {
    Finding { topic, verdict: Verdict::Ok, text: text.into() }
}

fn note(topic: &'static str, text: impl Into<String>) -> Finding {
    Finding { topic, verdict: Verdict::Note, text: text.into() }
}

/// What there is to run on besides the CPU.
fn cuda() -> Vec<Finding> {
    let lines = device::findings().into_iter();
    lines.map(|(well, text)| if well { ok("cuda", text) } else { note("cuda", text) }).collect()
}

fn exporter(model: &Model) -> Vec<Finding> {
    let producer = if model.producer.is_empty() { "unknown" } else { &model.producer };
    let mut found = vec![ok("exporter", format!("{producer}, opset {}", model.opset))];
    found.extend(model.warnings.iter().map(|w| note("exporter", w)));
    found
}

fn shapes(model: &Model) -> Vec<Finding> {
    let sizes: Vec<String> = model.inputs.iter().map(|i| format!("{}: {}", i.name, i.ty)).collect();
    let batch = match (&model.batch_symbol, model.fixed_batch) {
        (Some(symbol), _) => ok("batch", format!("free ({symbol})")),
        (None, Some(n)) => note(
            "batch",
            format!(
                "baked in: {n}. Export with dynamic axes to choose it later; guidance needs an even one"
            ),
        ),
        (None, None) => note("batch", "none of the inputs has one"),
    };
    vec![ok("inputs", sizes.join(", ")), batch]
}

fn weights(model: &Model) -> Vec<Finding> {
    let bad = bad_weights(&model.graph);
    let finding = |bad| Finding { topic: "weights", verdict: Verdict::Bad, text: format!("{bad}") };
    bad.iter().map(finding).collect()
}

fn loop_inputs(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(time) = model.input(InputRole::Timestep) {
        let fractions =
            if time.ty.dtype.is_float() { "any sampler" } else { "samplers with whole time steps" };
        let shape = if time.ty.shape.is_empty() { "scalar" } else { "vector" };
        found.push(ok(
            "time step",
            format!("`{}`, {} {shape}: {fractions}", time.name, time.ty.dtype),
        ));
    }
    let conditions: Vec<String> = model
        .inputs
        .iter()
        .filter(|i| i.role == InputRole::Condition)
        .map(|i| format!("`{}` {}", i.name, i.ty))
        .collect();
    if !conditions.is_empty() {
        found.push(ok("conditions", conditions.join(", ")));
    }
    match model.check_denoiser() {
        Ok(()) => found.push(ok("loop", "a denoiser: compile and sample will take it")),
        Err(ModelError::NotADenoiser { reason, .. }) => {
            found.push(note("loop", format!("no denoiser, only `run` will take it: {reason}")))
        }
        Err(other) => found.push(note("loop", other.to_string())),
    }
    found
}

fn operators(model: &Model) -> Vec<Finding> {
    let (source, left): (usize, usize) = (model.source_nodes, model.graph.node_count());
    let mut found =
        vec![ok("operators", format!("all of {source} nodes supported; {left} after the passes"))];
    let decomposed = model.left_over();
    if !decomposed.is_empty() {
        let list: Vec<String> = decomposed.iter().map(|(op, n)| format!("{n} {op}")).collect();
        found.push(note(
            "operators",
            format!("not fused, so slower than need be: {}", list.join(", ")),
        ));
    }
    found
}

/// Share of the peak that a step is expected to reach; measured steps of U-Nets and DiTs lie
/// between 0.5 and 0.9.
const EXPECTED_SHARE: f64 = 0.6;

fn cost(model: &Model, isa: Isa, threads: usize) -> Vec<Finding> {
    let batch = model.batch_symbol.as_deref();
    let macs = per_sample(&macs(&model.graph), batch);
    let activations = peak_activations(&model.graph, batch);
    let weights: usize = model
        .graph
        .values()
        .filter_map(|(id, _)| model.graph.tensor(id))
        .map(|t| t.bytes().len())
        .sum();
    let flops = measure::peak_flops(isa, threads);
    let ms = 2.0 * macs as f64 / (flops * EXPECTED_SHARE) * 1e3;
    let memory = format!(
        "about {} of weights, {} of activations per sample",
        bytes(weights as u64),
        bytes(activations)
    );
    let time = format!(
        "about {ms:.2} ms per evaluation of one sample: {} MACs at {:.0} % of this machine's {} FLOP/s on {threads} threads",
        short(macs as f64),
        EXPECTED_SHARE * 100.0,
        short(flops)
    );
    let available = memory::available();
    let needed = (weights as u64).saturating_add(activations);
    let memory = match needed > available.bytes as u64 {
        false => ok("memory", memory),
        true => {
            let there = bytes(available.bytes as u64);
            note("memory", format!("{memory}, but {there} are {}", available.bound))
        }
    };
    vec![memory, ok("time", time)]
}

/// Most bytes that are needed at once, for one sample, in the graph's order.
fn peak_activations(g: &Graph, batch_symbol: Option<&str>) -> u64 {
    let one: Bindings = batch_symbol.into_iter().map(|s| (s.into(), 1)).collect();
    let size = |v: cqc_passes::ir::ValueId| {
        let ty = g.ty(v);
        let elements = ty.elements().as_ref().and_then(|n: &Dim| n.eval(&one)).unwrap_or(0);
        elements.max(0) as u64 * ty.dtype.size() as u64
    };
    let mut readers = g.reader_counts();
    let mut live: u64 = g.inputs.iter().map(|&v| size(v)).sum();
    let mut peak = live;
    for (_, node) in g.nodes() {
        live += node.outputs.iter().map(|&v| size(v)).sum::<u64>();
        peak = peak.max(live);
        for v in node.inputs.iter().flatten().filter(|v| g.producer(**v).is_some()) {
            let left = &mut readers[v.0 as usize];
            *left -= 1;
            if *left == 0 {
                live -= size(*v);
            }
        }
    }
    peak
}
