//! Graphviz drawings of graphs and of plans.

use cqc_passes::ir::{Def, Graph};
use cqc_proto::plan::{Plan, ProgramKind, Source};
use std::fmt::Write;

const HEAD: &str =
    "  rankdir=TB; node [shape=box, fontname=\"sans-serif\", fontsize=10]; edge [fontsize=8];\n";

/// A box per node, an ellipse per input and output, and an edge per value with its type. Constants
/// are left out.
pub fn of_graph(g: &Graph) -> String {
    let mut out = format!("digraph {} {{\n{HEAD}", quoted(&g.name));
    for &v in &g.inputs {
        ellipse(&mut out, &format!("i{}", v.0), &g.value(v).name);
    }
    for (id, node) in g.nodes() {
        let _ = writeln!(
            out,
            "  n{} [label={}];",
            id.0,
            quoted(&format!("{}\n{}", node.op.name(), node.name))
        );
        for v in node.inputs.iter().flatten() {
            let from = match g.value(*v).def {
                Def::Input => format!("i{}", v.0),
                Def::Node(from, _) => format!("n{}", from.0),
                Def::Constant(_) => continue,
            };
            edge(&mut out, &from, &format!("n{}", id.0), &g.ty(*v).to_string());
        }
    }
    for (i, (name, v)) in g.outputs.iter().enumerate() {
        ellipse(&mut out, &format!("o{i}"), name);
        if let Some(from) = g.producer(*v) {
            edge(&mut out, &format!("n{}", from.0), &format!("o{i}"), &g.ty(*v).to_string());
        }
    }
    out + "}\n"
}

/// A cluster per program that has steps. Edges are drawn as in [`of_graph`]; tables and the results
/// of preludes are ellipses.
pub fn of_plan(plan: &Plan) -> String {
    let mut out = format!("digraph plan {{\n{HEAD}");
    for kind in ProgramKind::ALL {
        let program = plan.program(kind);
        if program.steps.is_empty() {
            continue;
        }
        let _ = writeln!(out, "  subgraph cluster_{kind} {{ label={};", quoted(&kind.to_string()));
        let mut from: Vec<Option<String>> = vec![None; program.values.len()];
        for (v, value) in program.values.iter().enumerate() {
            let (prefix, id) = match value.source {
                Source::Step | Source::Constant(_) => continue,
                Source::Input(_) => ("", format!("{kind}_v{v}")),
                Source::Table(_) => ("table ", format!("{kind}_v{v}")),
                Source::Prelude(_) | Source::PreludeSteps(_) => {
                    ("prelude ", format!("{kind}_v{v}"))
                }
                Source::Cache(_) => ("cache ", format!("{kind}_v{v}")),
            };
            ellipse(&mut out, &id, &format!("{prefix}{}", value.name));
            from[v] = Some(id);
        }
        for (i, step) in program.steps.iter().enumerate() {
            let id = format!("{kind}_s{i}");
            let _ = writeln!(
                out,
                "  {id} [label={}];",
                quoted(&format!("{}\n{}", step.op.name(), step.name))
            );
            for &v in step.inputs.iter().flatten() {
                let home = home(program, v);
                if let Some(from) = &from[home] {
                    edge(&mut out, from, &id, &program.values[v].ty.to_string());
                }
            }
            step.outputs.iter().for_each(|&v| from[v] = Some(id.clone()));
        }
        out.push_str("  }\n");
        if kind == ProgramKind::Full {
            for (i, output) in plan.outputs.iter().enumerate() {
                ellipse(&mut out, &format!("o{i}"), &output.name);
                if let Some(from) = &from[home(program, output.value)] {
                    edge(&mut out, from, &format!("o{i}"), &output.ty.to_string());
                }
            }
        }
    }
    out + "}\n"
}

/// The value whose step also writes `v`, which may be a view of it.
fn home(program: &cqc_proto::plan::Program, v: usize) -> usize {
    match &program.values[v].alias {
        Some(cqc_proto::plan::Alias::Same { of }) => *of,
        _ => v,
    }
}

fn ellipse(out: &mut String, id: &str, label: &str) {
    let _ = writeln!(out, "  {id} [shape=ellipse, label={}];", quoted(label));
}

fn edge(out: &mut String, from: &str, to: &str, label: &str) {
    let _ = writeln!(out, "  {from} -> {to} [label={}];", quoted(label));
}

fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}
