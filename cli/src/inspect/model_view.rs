//! The text and the JSON that `inspect` prints of a model.

use crate::text::{bytes, columns, grouped, short};
use cachequant::model::{Companion, Model, count_ops};
use cqc_passes::bind::{self, Saved};
use cqc_passes::cache::{self, Batch, Cut, CutSpec};
use cqc_passes::ir::Graph;
use cqc_proto::{Bindings, Dim, ValueType};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Multiply-accumulates of one evaluation, as an expression in the batch.
pub fn macs(graph: &Graph) -> Dim {
    let costs = graph.nodes().map(|(_, node)| graph.cost(node).macs);
    costs.fold(Dim::default(), |sum, macs| sum.add(&macs).unwrap_or(sum))
}

/// The value of `dim` for one sample.
pub fn per_sample(dim: &Dim, batch_symbol: Option<&str>) -> i64 {
    let one: Bindings = batch_symbol.into_iter().map(|s| (s.into(), 1)).collect();
    dim.eval(&one).unwrap_or(0)
}

/// A model as the network of a denoising loop.
struct Denoiser {
    saved: Saved,
    step: Graph,
    cuts: Vec<Cut>,
    auto: Option<Cut>,
}

/// `None` if the model is no denoiser.
fn denoiser(model: &Model) -> Option<Denoiser> {
    let network = model.network().ok()?;
    let roles = network.roles();
    // The same nodes leave the loop for every sampler and number of steps, so one time step is
    // enough.
    let bound = bind::bind(&network.graph, &roles, model.batch_symbol.as_deref(), &[1.0]).ok()?;
    let batch = match &model.batch_symbol {
        Some(symbol) => Batch::Symbol(symbol),
        None => Batch::Fixed(model.fixed_batch.unwrap_or(1)),
    };
    let sample = cache::sample_value(&bound.full, &roles)?;
    let step = bound.full.graph;
    let cuts = cache::candidates(&step, sample, batch);
    let auto = cache::choose(&cuts, &CutSpec::Auto, &step, sample, batch).ok();
    Some(Denoiser { saved: bound.saved, step, cuts, auto })
}

pub fn json(model: &Model) -> Value {
    let batch = model.batch_symbol.as_deref();
    let value =
        |name: &str, ty: &ValueType| json!({"name": name, "dtype": ty.dtype, "shape": ty.shape});
    let inputs = model.inputs.iter().map(|i| {
        let mut input = value(&i.name, &i.ty);
        input["role"] = json!(i.role);
        input
    });
    let refusals = model
        .report
        .refusals
        .iter()
        .map(|r| json!({"pass": r.pass, "value": r.value, "reason": r.reason}));
    let replaced =
        model.report.replaced.iter().map(|(pass, n)| json!({"pass": pass, "replaced": n}));
    let denoiser = denoiser(model);
    let left = denoiser.as_ref().map(|d| {
        let s = &d.saved;
        json!({
            "table_macs": per_sample(&s.table_macs, batch), "table_weight_bytes": s.table_weight_bytes,
            "prelude_macs": per_sample(&s.prelude_macs, batch), "prelude_weight_bytes": s.prelude_weight_bytes,
        })
    });
    let mut out = json!({
        "source": {"blake3": model.blake3, "opset": model.opset, "producer": model.producer, "parameters": model.parameters, "nodes": model.source_nodes},
        "inputs": inputs.collect::<Vec<_>>(),
        "outputs": model.outputs.iter().map(|o| value(&o.name, &o.ty)).collect::<Vec<_>>(),
        "batch": {"symbol": model.batch_symbol, "fixed": model.fixed_batch},
        "ops": {"source_nodes": model.source_nodes, "imported": model.imported_ops, "final": count_ops(&model.graph)},
        "decomposed": model.left_over(),
        "passes": replaced.collect::<Vec<_>>(),
        "refusals": refusals.collect::<Vec<_>>(),
        "macs": per_sample(&macs(&model.graph), batch),
        "left_the_loop": left,
        "warnings": model.warnings,
    });
    if !model.companions.is_empty() {
        out["with"] = model.companions.iter().map(companion_json).collect();
    }
    if let Some(d) = &denoiser {
        out["cuts"] = d.cuts.iter().map(|cut| cut_json(d, cut)).collect();
    }
    out
}

fn companion_json(c: &Companion) -> Value {
    let wires: BTreeMap<&str, &str> =
        c.wires.iter().map(|w| (w.output.as_str(), w.input.as_str())).collect();
    let named = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeMap<_, _>>();
    json!({
        "path": c.path.display().to_string(), "label": c.label, "wires": wires,
        "shared": named(&c.shared), "conditions": named(&c.conditions),
    })
}

fn cut_json(d: &Denoiser, cut: &Cut) -> Value {
    let tensor = |c: &cache::Cached| json!({"name": c.name(&d.step), "shape": c.ty(&d.step).shape});
    json!({
        "kind": if cut.has_delta() { "delta" } else { "tensors" },
        "tensors": cut.tensors.iter().map(tensor).collect::<Vec<_>>(),
        "macs_full": cut.macs_full, "macs_cached": cut.macs_cached, "share": cut.share(), "bytes": cut.bytes,
        "auto": d.auto.as_ref() == Some(cut),
    })
}

pub fn text(model: &Model) -> String {
    let mut out = String::new();
    let producer = if model.producer.is_empty() { "unknown exporter" } else { &model.producer };
    let _ = writeln!(out, "{}: {producer}, opset {}", model.path.display(), model.opset);
    let (macs, parameters) = (macs(&model.graph), model.parameters);
    let macs = per_sample(&macs, model.batch_symbol.as_deref());
    let per = if model.batch_symbol.is_some() { "sample" } else { "evaluation" };
    let _ = writeln!(
        out,
        "{} parameters, {} multiply-accumulates per {per}",
        grouped(parameters),
        grouped(macs)
    );
    let _ = writeln!(out, "blake3 {}", model.blake3);
    model.warnings.iter().for_each(|w| {
        let _ = writeln!(out, "warning: {w}");
    });
    let inputs = model
        .inputs
        .iter()
        .map(|i| vec![i.name.clone(), i.ty.to_string(), format!("{:?}", i.role).to_lowercase()]);
    let _ = write!(out, "\ninputs\n{}", columns(&inputs.collect::<Vec<_>>()));
    for c in &model.companions {
        let wires = c.wires.iter().map(|w| vec![w.output.clone(), "feeds".into(), w.input.clone()]);
        let _ = write!(out, "\nwith {}\n{}", c.path.display(), columns(&wires.collect::<Vec<_>>()));
    }
    let outputs = model.outputs.iter().map(|o| vec![o.name.clone(), o.ty.to_string()]);
    let _ = write!(out, "\noutputs\n{}", columns(&outputs.collect::<Vec<_>>()));
    let _ = write!(out, "\nnodes of the model: {}\n", model.source_nodes);
    let _ =
        write!(out, "\noperators after import and after the passes\n{}", columns(&op_rows(model)));
    let left = model.left_over();
    if !left.is_empty() {
        let _ = writeln!(out, "  not fused: {}", listed(&left));
    }
    let _ = write!(out, "\npasses\n{}", columns(&pass_rows(model)));
    refusals(model, &mut out);
    match denoiser(model) {
        None => out.push_str(
            "\nnot a denoiser: `cqc run` can evaluate it, but it cannot be sampled from\n",
        ),
        Some(d) => {
            left_the_loop(model, &d.saved, &mut out);
            cuts(&d, &mut out);
        }
    }
    out
}

fn listed(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(op, n)| format!("{n} {op}")).collect::<Vec<_>>().join(", ")
}

fn op_rows(model: &Model) -> Vec<Vec<String>> {
    let (before, after) = (&model.imported_ops, count_ops(&model.graph));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let count = |m: &BTreeMap<String, usize>, op: &String| {
        m.get(op).map_or("-".to_string(), usize::to_string)
    };
    let mut rows: Vec<Vec<String>> = names
        .into_iter()
        .map(|op| vec![op.clone(), count(before, op), count(&after, op)])
        .collect();
    let sum = |m: &BTreeMap<String, usize>| m.values().sum::<usize>().to_string();
    rows.push(vec!["all".into(), sum(before), sum(&after)]);
    rows
}

fn pass_rows(model: &Model) -> Vec<Vec<String>> {
    model.report.replaced.iter().map(|(pass, n)| vec![pass.to_string(), n.to_string()]).collect()
}

/// Number of refused cuts that are shown at most.
const SHOWN: usize = 20;

fn refusals(model: &Model, out: &mut String) {
    let refusals = &model.report.refusals;
    for r in refusals.iter().take(SHOWN) {
        let _ = writeln!(out, "  refused by {} at {}: {}", r.pass, r.value, r.reason);
    }
    if refusals.len() > SHOWN {
        let _ = writeln!(out, "  … and {} more; all of them with --json", refusals.len() - SHOWN);
    }
}

fn left_the_loop(model: &Model, s: &Saved, out: &mut String) {
    let row = |what: &str, macs: &Dim, weights: u64| {
        let macs = per_sample(macs, model.batch_symbol.as_deref());
        vec![
            what.to_string(),
            format!("{} MACs", short(macs as f64)),
            format!("{} of weights", bytes(weights)),
        ]
    };
    let rows = [
        row("tables, per time step", &s.table_macs, s.table_weight_bytes),
        row("preludes, per request", &s.prelude_macs, s.prelude_weight_bytes),
    ];
    let _ = write!(out, "\nmoves out of the denoising loop\n{}", columns(&rows));
}

fn cuts(d: &Denoiser, out: &mut String) {
    if d.cuts.is_empty() {
        out.push_str("\nthere is no skip connection or residual chain to cache across\n");
        return;
    }
    let row = |cut: &Cut| {
        let types: Vec<String> = cut.tensors.iter().map(|c| c.ty(&d.step).to_string()).collect();
        vec![
            format!("{:.1} %", cut.share() * 100.0),
            format!("{} MACs", short(cut.macs_cached as f64)),
            bytes(cut.bytes as u64),
            types.join(" "),
            if d.auto.as_ref() == Some(cut) { "auto" } else { "" }.to_string(),
            cut.name(&d.step),
        ]
    };
    let head = ["cached step", "", "cached", "type", "", "--cut"].map(str::to_string).to_vec();
    let rows: Vec<_> = [head].into_iter().chain(d.cuts.iter().map(row)).collect();
    let _ =
        write!(out, "\nwhere a step can be cut (per sample, deep to shallow)\n{}", columns(&rows));
}
