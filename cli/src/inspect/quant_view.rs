//! The quantization of an artifact's layers.
//!
//! The key `quant` of `inspect --json` has a list of layers in the order of execution. Each has:
//!
//! * `weight_scale`: a number per output channel. If the inputs are in segments (the parts of a
//!   concatenation), it is a list of one number per segment. It is `null` without weights. A weight
//!   is code · scale.
//! * `activation_scale` and `activation_zero_point`: a number per evaluation. If the layer reads
//!   several inputs (q, k and v) or segments, it is a list of the inputs in their order, and of the
//!   segments of each. A value is (code − zero point) · scale, with codes from 0 to 255. A scale of
//!   0 means that the evaluation does not run the layer.
//!
//! `corrections.quant` lists the layers whose sums are corrected to `a · sum + b`. `b` includes the
//! layer's own bias. Both are `[evaluations][channels]`.

use crate::report::Failure;
use crate::text::{bytes, columns};
use cachequant::report::cost::StepCost;
use cachequant::report::layers::represented;
use cqc_proto::cq::{QuantizedLayer, QuantizedLoop};
use cqc_runtime::Artifact;
use cqc_runtime::engine::Execution;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The kernel that executes a quantized layer on this CPU.
fn kernel(execution: Execution) -> &'static str {
    match execution {
        Execution::Int8 => "int8",
        Execution::Bf16 => "bf16",
        // no kernel fits its sizes, or this CPU lacks the instructions
        Execution::F32 | Execution::Definition => "rounded f32",
        Execution::Fused => "none",
    }
}

/// Adds the keys `quant` and `corrections.quant`; `corrections` has its other keys already.
pub fn add_json(artifact: &Artifact, view: &mut Value) -> Result<(), Failure> {
    let quant = &artifact.manifest().quant;
    let Some(of) = quant.quantized() else {
        view["quant"] = json!({"kind": "none", "layers": []});
        return Ok(());
    };
    let layers = of.layers.iter().zip(artifact.layer_executions()?);
    let compensation = of.compensation.as_ref().map(
        |tables| json!({"mode": tables.mode, "scale": crate::artifact::rows(artifact, tables.scale), "shift": crate::artifact::rows(artifact, tables.shift)}),
    );
    view["quant"] = json!({
        "kind": quant.name(),
        "layers": layers.map(|(layer, execution)| layer_json(artifact, layer, execution)).collect::<Vec<_>>(),
        "float_layers": of.float_layers,
        "rounding": of.rounding,
        "compensation": compensation,
    });
    let corrected = of.layers.iter().filter_map(|layer| {
        let tables = layer.correction?;
        Some(json!({"layer": layer.name, "a": crate::artifact::rows(artifact, tables.a), "b": crate::artifact::rows(artifact, tables.bias)}))
    });
    let corrected: Vec<Value> = corrected.collect();
    if view["corrections"].is_null() && !corrected.is_empty() {
        view["corrections"] = json!({"cache": null});
    }
    if !view["corrections"].is_null() {
        view["corrections"]["quant"] = json!(corrected);
    }
    Ok(())
}

fn layer_json(artifact: &Artifact, layer: &QuantizedLayer, execution: Execution) -> Value {
    let scale =
        |weight: usize| Some(artifact.manifest().plan.constants[weight].codes.as_ref()?.scale);
    let weight_scale: Option<Vec<Value>> = layer
        .weight
        .and_then(scale)
        .map(|table| crate::artifact::rows(artifact, table).iter().map(|row| alone(row)).collect());
    let [scales, zeros] = activations(artifact, layer);
    json!({
        "name": layer.name, "op": layer.op, "weight_bits": layer.weight_bits, "activation_bits": (!layer.inputs.is_empty()).then_some(8), "weight_scale": weight_scale,
        "activation_scale": scales.iter().map(|row| alone(row)).collect::<Vec<_>>(),
        "activation_zero_point": zeros.iter().map(|row| whole(row)).collect::<Vec<_>>(),
        "kernel": kernel(execution),
    })
}

/// Scales and zero points, `[evaluations][inputs · segments]`; no rows where the input is float.
fn activations(artifact: &Artifact, layer: &QuantizedLayer) -> [Vec<Vec<f32>>; 2] {
    let joined = |table: &dyn Fn(usize) -> usize| {
        let evaluations =
            if layer.inputs.is_empty() { 0 } else { artifact.manifest().plan.evaluations };
        let mut rows = vec![vec![]; evaluations];
        for input in 0..layer.inputs.len() {
            rows.iter_mut()
                .zip(crate::artifact::rows(artifact, table(input)))
                .for_each(|(row, more)| row.extend(more));
        }
        rows
    };
    [joined(&|i| layer.inputs[i].scale), joined(&|i| layer.inputs[i].zero_point)]
}

/// A row of one number as that number, another row as a list.
fn alone(row: &[f32]) -> Value {
    if let [one] = row { json!(one) } else { json!(row) }
}

fn whole(row: &[f32]) -> Value {
    let row: Vec<i64> = row.iter().map(|&z| z as i64).collect();
    if let [one] = row[..] { json!(one) } else { json!(row) }
}

/// The lines about quantization in the text view.
pub fn text(artifact: &Artifact) -> Result<String, Failure> {
    let quant = &artifact.manifest().quant;
    let Some(of) = quant.quantized() else { return Ok("  quant      none\n".into()) };
    let executions = artifact.layer_executions()?;
    let count = |of: Execution| executions.iter().filter(|execution| **execution == of).count();
    let corrected = of.layers.iter().filter(|layer| layer.correction.is_some()).count();
    let compensation = of
        .compensation
        .as_ref()
        .map_or(String::new(), |c| format!(", samples corrected ({})", c.mode));
    let layers = of.layers.len();
    if !quant.has_integers() {
        let bf16 = count(Execution::Bf16);
        return Ok(format!(
            "  quant      {}, {layers} layers; this CPU multiplies {bf16} of them in bf16\n",
            quant.name()
        ));
    }
    let (integers, bf16) = (count(Execution::Int8), count(Execution::Bf16));
    Ok(format!(
        "  quant      {}, weights rounded {}, {corrected} layers corrected{compensation}; of {layers} layers \
         this CPU multiplies {integers} as integers, {bf16} as bf16\n",
        quant.name(),
        of.rounding
    ))
}

/// Number of layers that are shown at most.
const SHOWN: usize = 8;

/// The layers that are quantized and those that stay float.
pub fn layers_text(artifact: &Artifact) -> String {
    let Some(of) = artifact.manifest().quant.quantized() else { return String::new() };
    let plan = &artifact.manifest().plan;
    let full = StepCost::of(plan, &plan.full);
    let all = of.layers.len() + of.float_layers.len();
    let mut out = format!(
        "\nquantized: {} of {all} layers, {:.1} % of a full step's MACs; weights of a full step {}, {} as f32\n",
        of.layers.len(),
        full.quantized_macs as f64 / full.macs.max(1) as f64 * 100.0,
        bytes(full.weight_bytes),
        bytes(full.float_weight_bytes),
    );
    let rows = of.layers.iter().take(SHOWN).map(|layer| {
        let bits = |bits| if bits == 16 { "bf16".into() } else { format!("w{bits}") };
        let weights = layer.weight_bits.map_or(String::new(), bits);
        let inputs = match (layer.inputs.is_empty(), layer.weight_bits) {
            (false, _) => "a8",
            (true, Some(16)) => "",
            (true, _) => " bf16",
        };
        let corrected = if layer.correction.is_some() { "corrected" } else { "" };
        vec![
            layer.name.clone(),
            layer.op.clone(),
            format!("{weights}{inputs}"),
            ranges(artifact, layer).join("; "),
            corrected.into(),
        ]
    });
    out.push_str(&columns(&rows.collect::<Vec<_>>()));
    if of.layers.len() > SHOWN {
        let _ = writeln!(out, "  … and {} more; all of them with --json", of.layers.len() - SHOWN);
    }
    out.push_str(&float_text(of));
    out
}

/// The range of each input or segment over all evaluations.
fn ranges(artifact: &Artifact, layer: &QuantizedLayer) -> Vec<String> {
    let [scales, zeros] = activations(artifact, layer);
    let columns = scales.first().map_or(0, Vec::len);
    let range = |column: usize| {
        let rows = scales.iter().zip(&zeros).filter_map(|(s, z)| represented(s[column], z[column]));
        rows.reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])])
    };
    let text = |[low, high]: [f32; 2]| format!("{low:.3} … {high:.3}");
    (0..columns).map(|column| range(column).map_or("not run".into(), text)).collect()
}

/// The layers that stay float, by reason.
fn float_text(of: &QuantizedLoop) -> String {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    of.float_layers
        .iter()
        .for_each(|layer| reasons.entry(&layer.why).or_default().push(&layer.name));
    let mut out = String::new();
    for (why, names) in reasons {
        let shown = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
        let more =
            if names.len() > 4 { format!(" and {} more", names.len() - 4) } else { String::new() };
        let _ = writeln!(out, "  float: {} because {why}: {shown}{more}", names.len());
    }
    out
}
