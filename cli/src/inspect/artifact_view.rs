//! The text and the JSON that `inspect` prints of an artifact.

use super::{caching_view, quant_view};
use crate::report::Failure;
use crate::text::{bytes, columns, grouped, short};
use cqc_proto::ValueType;
use cqc_proto::cq::Manifest;
use cqc_proto::plan::{Alias, InputRole, Program, ProgramKind, Source};
use cqc_runtime::Artifact;
use cqc_runtime::engine::{Engine, EngineOptions};
use cqc_runtime::retime::{Possible, possible};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// The programs that are not empty, the full step first, with the bytes of their activations for
/// one sample (or for the batch size that the model fixes).
fn programs(artifact: &Artifact) -> Result<Vec<(ProgramKind, usize)>, Failure> {
    let plan = &artifact.manifest().plan;
    let batch = plan.fixed_batch.unwrap_or(1);
    let options = EngineOptions { batch, threads: 1, ..Default::default() };
    let sizes = Engine::sizes(artifact.weights(), &options)?;
    let kinds =
        [ProgramKind::Full, ProgramKind::Cached, ProgramKind::Prelude, ProgramKind::PreludeSteps];
    let used = kinds
        .into_iter()
        .filter(|&kind| kind == ProgramKind::Full || !plan.program(kind).steps.is_empty());
    let bytes = |kind| match kind {
        ProgramKind::Full | ProgramKind::Cached => {
            sizes.programs[kind as usize].saturating_add(sizes.request)
        }
        ProgramKind::Prelude => {
            written_bytes(plan.program(kind), batch as i64, plan.batch_symbol.as_deref())
        }
        ProgramKind::PreludeSteps => {
            let rows = batch.saturating_mul(plan.evaluations) as i64;
            written_bytes(plan.program(kind), rows, plan.batch_symbol.as_deref())
        }
    };
    Ok(used.map(|kind| (kind, bytes(kind))).collect())
}

/// Bytes of all values that the steps of a program write.
fn written_bytes(program: &Program, rows: i64, symbol: Option<&str>) -> usize {
    let bindings = symbol.into_iter().map(|s| (s.into(), rows)).collect();
    let written = program
        .values
        .iter()
        .filter(|v| v.source == Source::Step && !matches!(v.alias, Some(Alias::Same { .. })));
    written
        .filter_map(|v| {
            Some(v.ty.resolve(&bindings)?.iter().product::<usize>() * v.ty.dtype.size())
        })
        .fold(0, usize::saturating_add)
}

/// The constants that have a row per evaluation.
fn tables(artifact: &Artifact) -> BTreeSet<usize> {
    let plan = &artifact.manifest().plan;
    let values = ProgramKind::ALL.into_iter().flat_map(|kind| &plan.program(kind).values);
    let table = |source| if let Source::Table(i) = source { Some(i) } else { None };
    values.filter_map(|v| table(v.source)).collect()
}

/// Bytes of all constants if float ones were stored as f32.
fn float_bytes(artifact: &Artifact) -> usize {
    let size = |ty: &ValueType| {
        let element = if ty.dtype.is_float() { 4 } else { ty.dtype.size() };
        ty.fixed_shape().map_or(0, |s| s.iter().product::<usize>() * element)
    };
    let constants = artifact.manifest().plan.constants.iter();
    constants.map(|c| size(&c.ty)).fold(0, usize::saturating_add)
}

pub fn json(artifact: &Artifact) -> Result<Value, Failure> {
    let manifest = &artifact.manifest();
    let (plan, sampler) = (&manifest.plan, &manifest.sampler);
    let value =
        |name: &str, ty: &ValueType| json!({"name": name, "dtype": ty.dtype, "shape": ty.shape});
    let inputs = plan.inputs.iter().map(|i| {
        let mut input = value(&i.name, &i.ty);
        input["role"] = json!(i.role);
        input
    });
    let programs = programs(artifact)?.into_iter().map(|(kind, bytes)| {
        let program = plan.program(kind);
        json!({
            "name": kind.to_string(), "instructions": program.steps.len(), "activation_bytes": bytes,
            "macs": crate::artifact::macs(artifact, program),
        })
    });
    let tables =
        tables(artifact).into_iter().map(|i| value(&plan.constants[i].name, &plan.constants[i].ty));
    let mut view = json!({
        "format_version": manifest.format_version,
        "source": manifest.source,
        "inputs": inputs.collect::<Vec<_>>(),
        "outputs": plan.outputs.iter().map(|o| value(&o.name, &o.ty)).collect::<Vec<_>>(),
        "sampler": {
            "kind": sampler.kind, "timesteps": timesteps(artifact)?, "prediction": sampler.prediction_type,
            "guidance": manifest.guidance, "guidance_rescale": manifest.guidance_rescale,
            "guidance_interval": manifest.guidance_interval.map(|i| i.to_string()), "clip_sample": sampler.clip_sample,
            "set_alpha_to_one": sampler.set_alpha_to_one, "steps": manifest.steps, "config": sampler,
            "possible_steps": match possible(manifest)? {
                Possible::Any => json!("any"),
                Possible::These(steps) => json!(steps),
            },
        },
        "null": manifest.null,
        "fills": manifest.fills,
        "programs": programs.collect::<Vec<_>>(),
        "tables": tables.collect::<Vec<_>>(),
        "weights": {"bytes": artifact.weight_bytes(), "float_bytes": float_bytes(artifact)},
        "kernels": artifact.kernels().map(|code| json!({"bytes": code.len()})),
    });
    caching_view::add_json(artifact, &mut view);
    quant_view::add_json(artifact, &mut view)?;
    Ok(view)
}

/// Time steps; whole ones as whole numbers.
fn timesteps(artifact: &Artifact) -> Result<Vec<Value>, Failure> {
    let number = |t: f64| if t.fract() == 0.0 { json!(t as i64) } else { json!(t) };
    Ok(crate::artifact::timesteps(artifact)?.into_iter().map(number).collect())
}

pub fn text(path: &Path, artifact: &Artifact) -> Result<String, Failure> {
    let (manifest, plan) = (&artifact.manifest(), &artifact.manifest().plan);
    let mut out = String::new();
    let source = &manifest.source;
    let producer = if source.producer.is_empty() { "unknown exporter" } else { &source.producer };
    let _ = writeln!(out, "{}: format version {}", path.display(), manifest.format_version);
    let _ = writeln!(
        out,
        "compiled from a model of {producer}, opset {}, {} parameters\nblake3 {}",
        source.opset,
        grouped(source.parameters),
        source.blake3
    );
    let role = |role: InputRole| format!("{role:?}").to_lowercase();
    let inputs = plan.inputs.iter().map(|i| vec![i.name.clone(), i.ty.to_string(), role(i.role)]);
    let _ = write!(out, "\ninputs\n{}", columns(&inputs.collect::<Vec<_>>()));
    let outputs = plan.outputs.iter().map(|o| vec![o.name.clone(), o.ty.to_string()]);
    let _ = write!(out, "\noutputs\n{}", columns(&outputs.collect::<Vec<_>>()));
    loop_text(artifact, &mut out)?;
    programs_text(artifact, &mut out)?;
    out.push_str(&quant_view::layers_text(artifact));
    tables_text(artifact, &mut out);
    let weights = artifact.weight_bytes();
    let _ = writeln!(
        out,
        "\nweights: {}, {} as f32",
        bytes(weights),
        bytes(float_bytes(artifact) as u64)
    );
    if let Some(code) = artifact.kernels() {
        let size = bytes(code.len() as u64);
        let _ = writeln!(
            out,
            "kernels: machine code for GPUs, {size}; it runs only with --artifact-kernels"
        );
    }
    Ok(out)
}

fn loop_text(artifact: &Artifact, out: &mut String) -> Result<(), Failure> {
    let manifest = &artifact.manifest();
    let steps: Vec<String> = timesteps(artifact)?.iter().map(Value::to_string).collect();
    let shown = match &steps[..] {
        [first @ .., last] if first.len() > 6 => format!("{}, … {last}", first[..4].join(", ")),
        all => all.join(", "),
    };
    let prediction = serde_json::to_value(manifest.sampler.prediction_type).unwrap_or_default();
    let calibrated = manifest.calibration.as_ref().map(|calibration| {
        let by = calibration.made_by.as_ref().map(ToString::to_string);
        format!("  calibrated by {}\n", by.as_deref().unwrap_or("a cqc that did not say which"))
    });
    let _ = write!(
        out,
        "\nloop\n  sampler    {}, {} steps, {} evaluations, prediction {}\n  time steps {shown}\n  other steps {}\n  guidance   {}\n{}{}{}",
        manifest.sampler.kind,
        manifest.steps,
        steps.len(),
        prediction.as_str().unwrap_or("?"),
        other_steps(artifact)?,
        guidance(manifest),
        caching_view::text(artifact),
        quant_view::text(artifact)?,
        calibrated.unwrap_or_default(),
    );
    Ok(())
}

/// The guidance scale, where it goes, and the other inputs that the loop fills by itself.
fn guidance(manifest: &Manifest) -> String {
    let mut text = match manifest.guidance {
        scale if manifest.takes_guidance() => format!("{scale}, an input of the network"),
        1.0 => "off".to_string(),
        scale => scale.to_string(),
    };
    if manifest.guidance_rescale != 0.0 {
        let _ = write!(text, ", rescaled by {}", manifest.guidance_rescale);
    }
    if let Some(interval) = manifest.guidance_interval {
        let steps = interval.steps(manifest.steps);
        let _ = write!(
            text,
            ", in {interval} of the steps ({} to {})",
            steps.start,
            steps.end.saturating_sub(1)
        );
    }
    for (name, fill) in &manifest.fills {
        let _ = write!(text, "\n  fills      {name} with {fill}");
    }
    text
}

/// The other numbers of steps that `sample --steps` takes, and what becomes of the fitted tables.
fn other_steps(artifact: &Artifact) -> Result<String, Failure> {
    let manifest = &artifact.manifest();
    let possible = match possible(manifest)? {
        Possible::Any => "any".to_string(),
        Possible::These(steps) => {
            let others =
                steps.iter().filter(|&&steps| steps != manifest.steps).map(usize::to_string);
            others.collect::<Vec<_>>().join(", ")
        }
    };
    let is_fitted = manifest.calibration.is_some();
    Ok(match &possible[..] {
        "" => "none".to_string(),
        _ if is_fitted => {
            format!("{possible}; ranges and corrections are then interpolated between time steps")
        }
        _ => possible,
    })
}

fn programs_text(artifact: &Artifact, out: &mut String) -> Result<(), Failure> {
    let plan = &artifact.manifest().plan;
    out.push_str("\nprograms, for one sample\n");
    let programs = programs(artifact)?;
    let rows = programs.iter().map(|(kind, size)| {
        let program = plan.program(*kind);
        vec![
            kind.to_string(),
            format!("{} steps", program.steps.len()),
            format!("{} MACs", short(crate::artifact::macs(artifact, program) as f64)),
            format!("{} of activations", bytes(*size as u64)),
        ]
    });
    out.push_str(&columns(&rows.collect::<Vec<_>>()));
    for (kind, _) in programs {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        plan.program(kind).steps.iter().for_each(|s| *counts.entry(s.op.name()).or_default() += 1);
        let list: Vec<String> = counts.iter().map(|(op, n)| format!("{n} {op}")).collect();
        let _ = writeln!(out, "  {kind}: {}", list.join(", "));
    }
    Ok(())
}

/// Number of tables that are shown at most.
const SHOWN: usize = 12;

fn tables_text(artifact: &Artifact, out: &mut String) {
    let constants = &artifact.manifest().plan.constants;
    let tables: Vec<usize> = tables(artifact).into_iter().collect();
    let _ = writeln!(out, "\ntables: {} with a row per evaluation", tables.len());
    let rows = tables
        .iter()
        .take(SHOWN)
        .map(|&i| vec![constants[i].name.clone(), constants[i].ty.to_string()]);
    out.push_str(&columns(&rows.collect::<Vec<_>>()));
    if tables.len() > SHOWN {
        let _ = writeln!(out, "  … and {} more; all of them with --json", tables.len() - SHOWN);
    }
}
