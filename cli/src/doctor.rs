//! `cqc doctor`: says whether an exported model can be compiled, and what it will cost to run.

use super::args::{ModelArgs, Threads};
use super::device;
use super::inspect::{macs, per_sample};
use super::report::Failure;
use super::text::{bytes, short, shown};
use super::{measure, term};
use cachequant::compile::{CompileError, ConditionError, Session, bad_weights};
use cachequant::model::{Companion, Model, ModelError};
use cachequant::model::{Located, fills, locate};
use cachequant::reading::{self, Reading};
use cachequant::recipe::{Recipe, SchedulerConfig};
use clap::Args;
use cqc_kernels::{Isa, memory};
use cqc_passes::ir::Graph;
use cqc_passes::onnx::ImportError;
use cqc_proto::cq::Fill;
use cqc_proto::plan::{InputRole, PlanInput};
use cqc_proto::{Bindings, Dim};
use cqc_runtime::artifact::label_input;
use cqc_runtime::engine::EngineError;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Check an exported model before compiling it: unsupported nodes, fixed sizes, expected cost
#[derive(Args, Debug)]
#[command(
    after_help = "If `compile` would refuse the model, this command says why and what to do, and ends with the same exit code: \
    3 if the model uses something unsupported, in which case every such node is listed. Otherwise it prints the command to run \
    next."
)]
pub struct DoctorArgs {
    /// An .onnx file, or a pipeline directory as for `compile` [default: report only what this
    /// machine has for CUDA]
    model: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
    /// Also run the model: test on samples that it makes whether the prediction is what the sampler
    /// expects, as `compile` does
    #[arg(long)]
    deep: bool,
    /// Print the findings as a JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ModelArgs,
}

/// One line of the result.
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
    let Located { model: path, scheduler } = match locate(path) {
        Ok(located) => located,
        Err(e) => return refuse(args, vec![], e.into()),
    };
    let model = match Model::load(&path, &args.reading.options(None), |_, _| {}) {
        Ok(model) => model,
        Err(e) => {
            let nodes = unsupported(&e);
            return refuse(
                args,
                nodes,
                with_command(e.into(), args.model.as_ref().unwrap_or(&path)),
            );
        }
    };
    let isa = Isa::detect().map_err(EngineError::from)?;
    let findings = [
        exporter(&model),
        shapes(&model),
        companions(&model),
        loop_inputs(&model),
        filled(&model),
        operators(&model),
        weights(&model),
        cost(&model, isa, args.threads.count()),
        cuda(),
    ];
    let mut findings: Vec<Finding> = findings.into_iter().flatten().collect();
    match compilation(args, &model, scheduler) {
        Ok(next) => {
            findings.extend(next);
            print(args, &findings)
        }
        Err(failure) => refuse(args, findings, failure),
    }
}

/// Prints the findings and the refusal of `compile`, which is also the failure of this command.
fn refuse(args: &DoctorArgs, mut findings: Vec<Finding>, failure: Failure) -> Result<(), Failure> {
    // nodes that are not supported are findings of their own
    if findings.iter().all(|f| f.verdict != Verdict::Bad) {
        let text = failure.summary();
        findings.push(Finding { topic: "compile", verdict: Verdict::Bad, text });
    }
    findings.extend(failure.advice().map(|advice| note("next", advice)));
    print(args, &findings)?;
    Err(failure)
}

/// Adds the whole command to the failure where only the options for open sizes are advised.
fn with_command(failure: Failure, path: &Path) -> Failure {
    match failure.advice() {
        Some(options) if options.starts_with("--dim ") || options.starts_with("--shape ") => {
            failure.help(format!("cqc doctor {} {options}", path.display()))
        }
        _ => failure,
    }
}

/// What `compile` finds before it runs the loop, and the command to run next.
fn compilation(
    args: &DoctorArgs,
    model: &Model,
    scheduler: Option<PathBuf>,
) -> Result<Vec<Finding>, Failure> {
    let Ok(network) = model.network() else {
        return Ok(vec![note(
            "next",
            "`cqc run` evaluates it, with --input NAME=FILE.npy for every input",
        )]);
    };
    let recipe =
        Recipe { scheduler_config: scheduler.map(SchedulerConfig::File), ..Recipe::default() };
    let mut options = args.reading.to_options();
    let session = match args.deep {
        true => Session::new(model, &recipe),
        false => Session::untested(model, &recipe),
    };
    let mut findings = Vec::new();
    match session {
        Ok(session) => findings.extend(args.deep.then(|| tested(session.reading()))),
        // the only failure for which this command has no option
        Err(CompileError::Condition(ConditionError::Missing { .. })) => {
            let label = label_input(&network.inputs).map(|i| &i.name);
            let found = fills(&network.inputs, &Default::default(), false).unwrap_or_default();
            let open = network.conditions().filter(|i| !found.contains_key(&i.name));
            options.extend(open.map(|i| match Some(&i.name) == label {
                true => "--labels A,B,..".to_string(),
                false => format!("--cond {}=FILE.npy", i.name),
            }));
        }
        Err(e) => return Err(e.into()),
    }
    // A pipeline directory is given as such, because its scheduler configuration is in it.
    let path = args.model.as_ref().unwrap_or(&model.path);
    let stem = path.file_stem().map_or("model".into(), |s| s.to_string_lossy());
    let mut command = format!("cqc compile {} -o {stem}.cq", path.display());
    options.iter().for_each(|option| command += &format!(" {option}"));
    findings.push(ok("next", command));
    Ok(findings)
}

/// The inputs that the loop fills by itself.
fn filled(model: &Model) -> Vec<Finding> {
    let Ok(network) = model.network() else { return vec![] };
    let found = fills(&network.inputs, &Default::default(), false).unwrap_or_default();
    let says = |(name, fill): (&String, &Fill)| {
        let note = match fill.is_guidance() {
            true => ": --guidance sets it, and no unconditional half is computed",
            false => "",
        };
        ok("fills", format!("{name} with {fill}{note}; with --fill {name}=none, --cond gives it"))
    };
    found.iter().map(says).collect()
}

/// The result of the test of the network's prediction.
fn tested(found: &Reading) -> Finding {
    match &found.verdict {
        reading::Verdict::Fits(score) => ok("reading", format!("{}; {score}", found.name)),
        reading::Verdict::Trusted(score) => note("reading", format!("{}; {score}", found.name)),
        reading::Verdict::Untested { reason } => {
            note("reading", format!("{}, not tested: {reason}", found.name))
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
            &json!({"model": args.model.as_deref().map(shown), "supported": supported, "findings": list}),
        );
    }
    let line = |f: &Finding| format!("{:5} {:10} {}\n", f.verdict.name(), f.topic, f.text);
    term::print(&findings.iter().map(line).collect::<String>())
}

/// The unsupported nodes, one finding each, so that stdout alone tells the result.
fn unsupported(e: &ModelError) -> Vec<Finding> {
    let bad = |text: String| Finding { topic: "operators", verdict: Verdict::Bad, text };
    match e {
        ModelError::Import { source: ImportError::Unsupported(nodes), .. } => {
            nodes.iter().map(|node| bad(node.to_string())).collect()
        }
        _ => vec![],
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
                "fixed to {n} by the export. Export with dynamic axes to choose it later; guidance needs an even batch"
            ),
        ),
        (None, None) => note("batch", "no input has an axis for the batch"),
    };
    vec![ok("inputs", sizes.join(", ")), batch]
}

fn companions(model: &Model) -> Vec<Finding> {
    let pairs = |pairs: &[(String, String)]| {
        let one = |(a, b): &(String, String)| match a == b {
            true => format!("`{a}`"),
            false => format!("`{a}` as `{b}`"),
        };
        pairs.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let said = |c: &Companion| {
        // `inspect` lists all of them
        let wires = c.wires.iter().take(2).map(|w| (w.output.clone(), w.input.clone()));
        let mut wires = pairs(&wires.collect::<Vec<_>>());
        match c.wires.len().saturating_sub(2) {
            0 => {}
            more => wires += &format!(" and {more} more"),
        }
        let own = match c.conditions.is_empty() {
            true => String::new(),
            false => format!("; has conditions of its own: {}", pairs(&c.conditions)),
        };
        let shared = pairs(&c.shared);
        ok("with", format!("{}: feeds {wires}; reads {shared}{own}", c.label))
    };
    model.companions.iter().map(said).collect()
}

fn weights(model: &Model) -> Vec<Finding> {
    let bad = bad_weights(&model.graph);
    let finding = |bad| Finding { topic: "weights", verdict: Verdict::Bad, text: format!("{bad}") };
    bad.iter().map(finding).collect()
}

fn loop_inputs(model: &Model) -> Vec<Finding> {
    let network = match model.network() {
        Ok(network) => network,
        Err(ModelError::NotADenoiser { reason, .. }) => {
            let reasons = reason.lines();
            let only_run = |reason| {
                note("loop", format!("not a denoiser, so only `cqc run` accepts it: {reason}"))
            };
            return reasons.map(only_run).collect();
        }
        Err(other) => return vec![note("loop", other.to_string())],
    };
    let mut found = Vec::new();
    for input in &network.inputs {
        let Some((topic, text)) = role_of(input) else { continue };
        found.push(ok(topic, text));
    }
    let conditions: Vec<String> =
        network.conditions().map(|i| format!("`{}` {}", i.name, i.ty)).collect();
    if !conditions.is_empty() {
        found.push(ok("conditions", conditions.join(", ")));
    }
    found.push(ok("prediction", format!("`{}` {}", network.output.name, network.output.ty)));
    found.push(ok("loop", "the model is a denoiser: `cqc compile` accepts it"));
    found
}

/// What the loop gives to the sample input and the time step input.
fn role_of(input: &PlanInput) -> Option<(&'static str, String)> {
    let PlanInput { name, ty, role } = input;
    match role {
        InputRole::Sample => Some(("sample", format!("`{name}` {ty}"))),
        InputRole::Timestep => {
            let samplers =
                if ty.dtype.is_float() { "any sampler" } else { "samplers with whole time steps" };
            let shape = if ty.shape.is_empty() { "scalar" } else { "vector" };
            Some(("time step", format!("`{name}`, {} {shape}: {samplers}", ty.dtype)))
        }
        InputRole::StepCondition => {
            Some(("per step", format!("`{name}` {ty}: has another value at every evaluation")))
        }
        InputRole::Condition => None,
    }
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
            format!("not fused, and therefore slower than necessary: {}", list.join(", ")),
        ));
    }
    found
}

/// The share of the peak that an evaluation is expected to reach. Measured steps of U-Nets and DiTs
/// lie between 0.5 and 0.9.
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
            note("memory", format!("{memory}, but only {there} are {}", available.bound))
        }
    };
    vec![memory, ok("time", time)]
}

/// The most bytes that are needed at once for one sample, when the nodes run in the graph's order.
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
