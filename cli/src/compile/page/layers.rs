//! The quantized layers, and those that stay float.

use super::markup::{Text, counted, number, percent};
use cachequant::report::layers::{InputRanges, LayerFacts, QuantizationFacts};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A table with a row per layer.
pub fn table(quantization: &QuantizationFacts, macs: i64, caches: bool) -> String {
    let mut out = String::from(
        "<table class=\"layers\">\n<thead><tr><th>Layer</th><th class=\"n\">Work</th><th>Bits</th><th class=\"n\">Weights SQNR</th><th>Range of what it reads, by evaluation</th><th>Notes</th></tr></thead>\n<tbody>\n",
    );
    for layer in &quantization.layers {
        row(layer, macs, caches, &mut out);
    }
    out.push_str("</tbody>\n</table>\n");
    out
}

fn row(layer: &LayerFacts, macs: i64, caches: bool, out: &mut String) {
    let sqnr = layer.weight_sqnr.map_or("–".into(), |db| {
        if db.is_finite() { format!("{} dB", number(db)) } else { "exact".into() }
    });
    let bits = match (layer.weight_bits, &layer.inputs[..]) {
        (Some(16), []) => "bf16".into(),
        (Some(bits), []) => format!("w{bits} bf16"),
        (Some(bits), _) => format!("w{bits} a8"),
        (None, _) => "a8".into(),
    };
    let mut notes: Vec<&str> = Vec::new();
    if layer.is_corrected {
        notes.push("<span class=\"tag corrected\">corrected</span>");
    }
    if layer.execution == "f32" {
        notes.push("<span class=\"tag\">rounded f32</span>");
    }
    if caches && !layer.is_live {
        notes.push("<span class=\"tag\">full only</span>");
    }
    let ranges: String = layer.inputs.iter().map(input).collect();
    let _ = writeln!(
        out,
        "<tr><td class=\"name\"><code>{}</code> <span class=\"dim\">{}</span></td><td class=\"n\" data-label=\"work\">{}</td><td class=\"bits\" data-label=\"bits\">{bits}</td><td class=\"n\" data-label=\"SQNR\">{sqnr}</td><td class=\"ranges\">{ranges}</td><td class=\"notes\">{}</td></tr>",
        Text(&layer.name),
        Text(&layer.op),
        percent(layer.macs as f64 / macs.max(1) as f64),
        notes.join(" "),
    );
}

/// A small picture of an input's ranges over the evaluations, with their ends.
fn input(input: &InputRanges) -> String {
    let read = || input.ranges.iter().flatten();
    let name = input.name.as_ref().map_or(String::new(), |name| format!("<i>{}</i>", Text(name)));
    let Some([low, high]) = read().copied().reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]) else {
        return format!("<div class=\"range\">{name}<span class=\"dim\">never run</span></div>");
    };
    let span = f64::from(high - low).max(1e-30);
    let y = |x: f32| f64::from(high - x) / span * 100.0;
    let mut path = String::new();
    for (t, range) in input.ranges.iter().enumerate() {
        if let Some([low, high]) = range {
            let _ = write!(path, "M{t}.5 {:.0}V{:.0}", y(*high), y(*low));
        }
    }
    let evaluations = input.ranges.len();
    let zero = if low < 0.0 && high > 0.0 {
        format!("<path class=\"zero\" d=\"M0 {0:.0}H{evaluations}\"/>", y(0.0))
    } else {
        String::new()
    };
    let ends = [low, high].map(|x| number(f64::from(x)));
    format!(
        "<div class=\"range\">{name}<svg class=\"spark\" viewBox=\"0 0 {evaluations} 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{0} to {1}\"><path class=\"band\" d=\"{path}\"/>{zero}</svg><span>{0} … {1}</span></div>",
        ends[0], ends[1]
    )
}

/// The layers that stay float, by reason.
pub fn float(quantization: &QuantizationFacts) -> String {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    quantization
        .float_layers
        .iter()
        .for_each(|(name, why)| reasons.entry(why).or_default().push(name));
    if reasons.is_empty() {
        return "<p>No layer stays float.</p>\n".into();
    }
    let mut out = String::from("<ul class=\"float\">\n");
    for (why, names) in reasons {
        let names: Vec<String> =
            names.iter().map(|name| format!("<code>{}</code>", Text(name))).collect();
        let _ = writeln!(
            out,
            "<li>{}: {}<br/>{}</li>",
            counted(names.len(), "layer"),
            Text(why),
            names.join(", ")
        );
    }
    out.push_str("</ul>\n");
    out
}
