//! The caching of an artifact: schedule, cut and corrections.

use crate::text::{bytes, short};
use cachequant::report::cost;
use cqc_proto::cq::Schedule;
use cqc_runtime::Artifact;
use serde_json::{Value, json};
use std::fmt::Write;

/// Adds the keys `schedule`, `cut`, `corrections` and `calibration` of `inspect --json`.
pub fn add_json(artifact: &Artifact, view: &mut Value) {
    let (manifest, plan) = (&artifact.manifest(), &artifact.manifest().plan);
    let all: Vec<usize> = (0..plan.evaluations).collect();
    view["calibration"] = json!(manifest.calibration);
    let (Schedule::Cached(schedule), Some(cache)) = (&manifest.schedule, &plan.cache) else {
        view["schedule"] = json!({"kind": "none", "interval": 1, "full_steps": all});
        view["cut"] = Value::Null;
        view["corrections"] = Value::Null;
        return;
    };
    view["schedule"] = json!({
        "kind": schedule.method, "interval": schedule.interval, "full_steps": cache.full_evaluations,
        "cost": schedule.cost, "uniform_cost": schedule.uniform_cost,
    });
    let tensors = cache
        .slots
        .iter()
        .filter(|slot| slot.previous_of.is_none())
        .map(|slot| json!({"name": slot.name, "shape": plan.full.values[slot.value].ty.shape}));
    view["cut"] = json!({
        "tensors": tensors.collect::<Vec<_>>(), "macs_full": crate::artifact::macs(artifact, &plan.full),
        "macs_cached": crate::artifact::macs(artifact, &cache.cached), "bytes": cost::cache_bytes(plan),
    });
    let rows = |i: usize| crate::artifact::rows(artifact, i);
    let tables = schedule.corrections.iter().map(|table| {
        json!({
            "a": rows(table.scale), "b": rows(table.shift), "previous": table.previous_scale.map(rows),
        })
    });
    view["corrections"] = match &schedule.correction_method {
        None => Value::Null,
        Some(method) => {
            let tables: Vec<Value> = tables.collect();
            // Usually there is one cached tensor; its tables then stand alone.
            json!({"method": method, "cache": if tables.len() == 1 { tables[0].clone() } else { json!(tables) }})
        }
    };
}

/// The lines about caching in the text view.
pub fn text(artifact: &Artifact) -> String {
    let (manifest, plan) = (&artifact.manifest(), &artifact.manifest().plan);
    let (Schedule::Cached(schedule), Some(cache)) = (&manifest.schedule, &plan.cache) else {
        return "  schedule   none: every step is computed in full\n".into();
    };
    let full = &cache.full_evaluations;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "  schedule   {}, interval {}: {} of {} evaluations are full",
        schedule.method,
        schedule.interval,
        full.len(),
        plan.evaluations
    );
    // a strip with a mark per evaluation: # is full, · is cached
    let strip: String = (0..plan.evaluations)
        .map(|e| if full.binary_search(&e).is_ok() { '#' } else { '·' })
        .collect();
    let chars: Vec<char> = strip.chars().collect();
    for line in chars.chunks(80) {
        let _ = writeln!(out, "             {}", line.iter().collect::<String>());
    }
    if let (Some(cost), Some(uniform)) = (schedule.cost, schedule.uniform_cost) {
        let _ = writeln!(out, "  cost       {cost:.4}, of the uniform schedule {uniform:.4}");
    }
    let names: Vec<&str> =
        cache.slots.iter().filter(|s| s.previous_of.is_none()).map(|s| s.name.as_str()).collect();
    let (macs_full, macs_cached) = (
        crate::artifact::macs(artifact, &plan.full),
        crate::artifact::macs(artifact, &cache.cached),
    );
    let _ = writeln!(
        out,
        "  cached     {}, {} per sample",
        names.join(", "),
        bytes(cost::cache_bytes(plan))
    );
    let _ = writeln!(
        out,
        "  work       {} MACs full, {} cached ({:.1} %)",
        short(macs_full as f64),
        short(macs_cached as f64),
        macs_cached as f64 / macs_full.max(1) as f64 * 100.0
    );
    let _ =
        writeln!(out, "  correction {}", schedule.correction_method.as_deref().unwrap_or("none"));
    out
}
