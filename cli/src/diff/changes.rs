//! Differences in everything but the constants.

use super::side::Side;
use crate::source::sampler_differences;
use cqc_proto::cq::{Manifest, NullCondition, Schedule};
use cqc_proto::plan::{Plan, Program, ProgramKind};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One difference. A side is `None` if it has nothing of that name.
#[derive(Debug, PartialEq, Serialize)]
pub struct Change {
    /// The part of the artifact, such as `inputs`, `sampler` or `program full`.
    pub part: String,
    /// Its name within the part.
    pub what: String,
    pub a: Option<String>,
    pub b: Option<String>,
}

pub fn between(a: &Side, b: &Side) -> Vec<Change> {
    let mut out = Vec::new();
    compare(&mut out, "source", source(a), source(b));
    compare(&mut out, "inputs", inputs(&a.plan), inputs(&b.plan));
    compare(&mut out, "outputs", outputs(&a.plan), outputs(&b.plan));
    if let (Some(ma), Some(mb)) = (&a.manifest, &b.manifest) {
        let sampler = sampler_differences(&ma.sampler, &mb.sampler);
        out.extend(sampler.into_iter().map(|(what, a, b)| Change {
            part: "sampler".into(),
            what,
            a: Some(a),
            b: Some(b),
        }));
        compare(&mut out, "settings", settings(ma, a), settings(mb, b));
        compare(&mut out, "schedule", schedule(ma), schedule(mb));
    }
    compare(&mut out, "full evaluations", evaluations(&a.plan), evaluations(&b.plan));
    compare(&mut out, "cut", cut(&a.plan), cut(&b.plan));
    for kind in ProgramKind::ALL {
        programs(&mut out, kind, a.plan.program(kind), b.plan.program(kind));
    }
    out
}

/// Values as text, by name.
type Things = BTreeMap<String, String>;

/// Adds a change for every name with different values.
fn compare(out: &mut Vec<Change>, part: &str, a: Things, b: Things) {
    for what in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
        let (a, b) = (a.get(what).cloned(), b.get(what).cloned());
        if a != b {
            out.push(Change { part: part.into(), what: what.clone(), a, b });
        }
    }
}

fn things<const N: usize>(list: [(&str, String); N]) -> Things {
    list.map(|(name, value)| (name.to_string(), value)).into()
}

fn source(side: &Side) -> Things {
    let s = &side.source;
    things([
        ("blake3", s.blake3.clone()),
        ("opset", s.opset.to_string()),
        ("producer", s.producer.clone()),
        ("parameters", s.parameters.to_string()),
    ])
}

fn inputs(plan: &Plan) -> Things {
    plan.inputs
        .iter()
        .map(|i| (i.name.clone(), format!("{} {:?}", i.ty, i.role).to_lowercase()))
        .collect()
}

fn outputs(plan: &Plan) -> Things {
    plan.outputs.iter().map(|o| (o.name.clone(), o.ty.to_string())).collect()
}

fn settings(manifest: &Manifest, side: &Side) -> Things {
    let null = |null: &NullCondition| match *null {
        NullCondition::Label(label) => format!("label {label}"),
        NullCondition::Constant(i) => {
            format!("array {:.16}", blake3::hash(side.constants[i].bytes()).to_hex())
        }
    };
    let mut list = things([
        ("steps", manifest.steps.to_string()),
        ("guidance", manifest.guidance.to_string()),
        ("guidance rescale", manifest.guidance_rescale.to_string()),
        ("guidance interval", json(&manifest.guidance_interval)),
        ("fills", json(&manifest.fills)),
        ("quantization", json(&manifest.quant)),
        ("calibration", json(&manifest.calibration)),
    ]);
    list.extend(manifest.null.iter().map(|(name, n)| (format!("null of {name}"), null(n))));
    list
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn schedule(manifest: &Manifest) -> Things {
    let Schedule::Cached(s) = &manifest.schedule else {
        return things([("method", "none".into())]);
    };
    things([
        ("method", s.method.clone()),
        ("interval", s.interval.to_string()),
        ("cost", json(&s.cost)),
        (
            "corrections",
            format!("{} {}", s.corrections.len(), s.correction_method.as_deref().unwrap_or("none")),
        ),
    ])
}

/// The kind of every evaluation, `full` or `cached`.
fn evaluations(plan: &Plan) -> Things {
    let kind = |e| if plan.program_at(e) == ProgramKind::Full { "full" } else { "cached" };
    (0..plan.evaluations).map(|e| (format!("{e:4}"), kind(e).to_string())).collect()
}

fn cut(plan: &Plan) -> Things {
    let cache = plan.cache.as_ref();
    let slots = cache.iter().flat_map(|c| &c.slots);
    slots.map(|slot| (slot.name.clone(), plan.full.values[slot.value].ty.to_string())).collect()
}

fn programs(out: &mut Vec<Change>, kind: ProgramKind, a: &Program, b: &Program) {
    let before = out.len();
    let part = |what: &str| format!("program {kind}: {what}");
    let counts = |program: &Program| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        program.steps.iter().for_each(|s| *counts.entry(s.op.name()).or_default() += 1);
        counts.into_iter().map(|(op, n)| (op, n.to_string())).collect::<Things>()
    };
    compare(out, &part("operators"), counts(a), counts(b));
    compare(out, &part("nodes"), nodes(a), nodes(b));
    if out.len() == before && a != b {
        let (what, other) =
            ("order, attributes or operands".to_string(), Some("differ".to_string()));
        out.push(Change { part: part("wiring"), what, a: other.clone(), b: other });
    }
}

/// Operators by the name of their node. Several operators with one name are joined.
fn nodes(program: &Program) -> Things {
    let mut nodes = Things::new();
    for step in &program.steps {
        let ops = nodes.entry(step.name.clone()).or_default();
        let comma = if ops.is_empty() { "" } else { ", " };
        *ops += &format!("{comma}{}", step.op.name());
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differing_names_are_reported() {
        let mut out = Vec::new();
        let a = things([("x", "f32[N]".into()), ("y", "1".into()), ("z", "1".into())]);
        let b = things([("w", "0".into()), ("x", "f32[N]".into()), ("y", "2".into())]);
        compare(&mut out, "inputs", a, b);
        let found: Vec<_> =
            out.iter().map(|c| (c.what.as_str(), c.a.as_deref(), c.b.as_deref())).collect();
        assert_eq!(
            found,
            [("w", None, Some("0")), ("y", Some("1"), Some("2")), ("z", Some("1"), None)]
        );
    }
}
