//! The report of `compile --report` as one HTML page. It has no scripts, loads nothing from
//! elsewhere, and is well-formed XML.

mod chart;
mod layers;
mod markup;
mod schedule;

use crate::text::{bytes, grouped, short};
use cachequant::calibrate::holdout_size;
use cachequant::report::cost::StepCost;
use cachequant::report::layers::QuantizationFacts;
use cachequant::report::{Caching, Cost, Report};
use markup::{Text, counted, facts, number, percent, section};
use std::fmt::Write;

const STYLE: &str = include_str!("page/style.css");

/// The whole page.
pub fn page(report: &Report) -> String {
    let title = Text(file_name(&report.model.file));
    let mut body = format!(
        "<header>\n<p class=\"dim\">cqc compile</p>\n<h1>{title}</h1>\n<p class=\"dim\">{}</p>\n</header>\n{}",
        Text(&report.artifact.path),
        tiles(report)
    );
    body += &section("compiled", "What was compiled", &compiled(report));
    if let Some(caching) = &report.caching {
        body += &section("schedule", "Schedule", &schedule_section(report, caching));
    }
    if let Some(errors) = &report.errors {
        let full = report.caching.as_ref().map(|c| &c.full[..]);
        let marks =
            if full.is_some() { " Full evaluations are marked below the axis." } else { "" };
        let note = format!(
            "<p>Relative root mean square error of the samples after each evaluation, against the ordinary float loop, on {}.{marks}</p>\n",
            counted(errors.samples, "held-out calibration sample")
        );
        body += &section(
            "errors",
            "Error along the trajectory",
            &(note + &chart::chart(errors, full) + &chart::table(errors)),
        );
    }
    body += &section("cost", "Cost", &cost(&report.cost, report));
    if let Some(quantization) = &report.quantization {
        body += &section("layers", "Quantized layers", &layers_section(quantization, report));
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title} – cqc</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<footer>Written by cqc {}.</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(path)
}

/// The most important figures.
fn tiles(report: &Report) -> String {
    let cost = &report.cost;
    let mut tiles: Vec<(&str, String, String)> = Vec::new();
    if let Some(curve) = report.errors.as_ref().and_then(|errors| errors.curves.last()) {
        tiles.push((
            "Quality",
            format!("{} dB", number(curve.psnr)),
            "PSNR to the float loop, held-out samples".into(),
        ));
    }
    if report.caching.is_some() {
        let less = format!("{} × fewer MACs", number(cost.speed_up()));
        tiles.push((
            "Work",
            percent(1.0 / cost.speed_up()),
            format!("of the uncached loop: {less}"),
        ));
        let full = format!("{} of {}", cost.full_evaluations, cost.evaluations);
        tiles.push(("Schedule", full, "evaluations are full, the others cached".into()));
    }
    if let Some(quantization) = &report.quantization {
        let share = percent(cost.full.quantized_macs as f64 / cost.full.macs.max(1) as f64);
        tiles.push((
            "Quantized",
            share,
            format!("of a full evaluation's MACs, {}", quantization.kind),
        ));
    }
    let float = bytes(4 * report.model.parameters);
    tiles.push((
        "Artifact",
        bytes(report.artifact.bytes),
        format!("the model's parameters as f32: {float}"),
    ));
    let tile = |(name, value, note): &(&str, String, String)| {
        format!(
            "<div class=\"tile\"><span class=\"dim\">{name}</span><b>{value}</b><span class=\"dim\">{note}</span></div>\n"
        )
    };
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.iter().map(tile).collect::<String>())
}

fn compiled(report: &Report) -> String {
    let (model, sampling) = (&report.model, &report.sampling);
    let evaluations = sampling.timesteps.len();
    let counted = if evaluations == sampling.steps {
        String::new()
    } else {
        format!(", {evaluations} evaluations")
    };
    let guidance = if sampling.takes_guidance {
        format!("{}, an input of the network", sampling.guidance)
    } else if sampling.guidance == 1.0 {
        "off".to_string()
    } else {
        format!("{}, both halves computed", sampling.guidance)
    };
    let producer = if model.producer.is_empty() { "unknown exporter" } else { &model.producer };
    let mut rows = vec![
        ("Model", format!("<code>{}</code>", Text(&model.file))),
        ("Exported by", format!("{}, opset {}", Text(producer), model.opset)),
        ("Parameters", grouped(model.parameters)),
        ("BLAKE3", format!("<code>{}</code>", Text(&model.blake3))),
        ("Sampler", format!("{}, {} steps{counted}", Text(&sampling.sampler), sampling.steps)),
        ("Guidance", guidance),
    ];
    rows.push(match &report.caching {
        None => ("Caching", "none: every evaluation is computed in full".into()),
        Some(caching) => (
            "Cached",
            format!("<code>{}</code>, interval {}", Text(&caching.cut), caching.interval),
        ),
    });
    rows.push(match &report.quantization {
        None => ("Quantization", "none".into()),
        Some(q) => {
            let compensation =
                q.compensation.as_ref().map(|mode| format!(", samples corrected ({})", Text(mode)));
            let (kind, rounding) = (Text(&q.kind), Text(&q.rounding));
            (
                "Quantization",
                format!("{kind}, weights rounded {rounding}{}", compensation.unwrap_or_default()),
            )
        }
    });
    if let Some((samples, seed)) = sampling.calibration {
        let noise = seed.map_or("given noise".to_string(), |seed| format!("seed {seed}"));
        rows.push((
            "Calibrated on",
            format!("{samples} samples, {noise}; {} of them held out", holdout_size(samples)),
        ));
    }
    facts(&rows)
}

fn schedule_section(report: &Report, caching: &Caching) -> String {
    let timesteps = &report.sampling.timesteps;
    let mut out = format!(
        "<p>{} evaluations of {} are full, found by {}; correction of the cache: {}. {}</p>\n",
        caching.full.len(),
        timesteps.len(),
        Text(&caching.method),
        caching.correction.as_ref().map_or("none".into(), |c| Text(c).to_string()),
        schedule::caption(timesteps),
    );
    out += "<p class=\"legend\"><span class=\"key full\"></span>full <span class=\"key\"></span>cached</p>\n";
    out += &schedule::strip(timesteps, &caching.full);
    if let Some((cost, uniform)) = caching.cost {
        let uniform =
            uniform.map_or(String::new(), |u| format!(", of the uniform schedule {}", number(u)));
        let _ = writeln!(
            out,
            "<p class=\"dim\">What {} minimises: {}{uniform}.</p>",
            Text(&caching.method),
            number(cost)
        );
    }
    out + &schedule::candidates(caching, timesteps.len())
}

fn cost(cost: &Cost, report: &Report) -> String {
    let quantized = report.quantization.is_some();
    let mut rows: Vec<(&str, StepCost)> = vec![("Full", cost.full)];
    rows.extend(cost.cached.map(|cached| ("Cached", cached)));
    let mut out = String::from(
        "<div class=\"scroll\"><table>\n<thead><tr><th>Evaluation</th><th class=\"n\">MACs</th>",
    );
    out += if quantized { "<th class=\"n\">Quantized</th>" } else { "" };
    out += "<th class=\"n\">Weights</th><th class=\"n wide\">As f32</th></tr></thead>\n<tbody>\n";
    for (name, step) in rows {
        let share = percent(step.quantized_macs as f64 / step.macs.max(1) as f64);
        let share = if quantized { format!("<td class=\"n\">{share}</td>") } else { String::new() };
        let _ = writeln!(
            out,
            "<tr><td>{name}</td><td class=\"n\">{}</td>{share}<td class=\"n\">{}</td><td class=\"n wide\">{}</td></tr>",
            short(step.macs as f64),
            bytes(step.weight_bytes),
            bytes(step.float_weight_bytes)
        );
    }
    out += "</tbody>\n</table></div>\n";
    let guided = if report.sampling.guidance == 1.0 || report.sampling.takes_guidance {
        ""
    } else {
        ", both halves of guidance"
    };
    let mut rows = vec![("MACs per image", format!("{}{guided}", short(cost.macs as f64)))];
    if cost.cached.is_some() {
        rows.push(("Uncached", short(cost.full_macs as f64)));
        rows.push(("Predicted speed-up", format!("{} ×, by MACs", number(cost.speed_up()))));
        rows.push(("Cache", format!("{} per image{guided}", bytes(cost.cache_bytes))));
    }
    let less = match cost.weight_bytes == cost.float_weight_bytes {
        true => String::new(),
        false => format!("; uncached and in f32 {}", bytes(cost.float_weight_bytes)),
    };
    let read = format!("{} per image at batch 1{less}", bytes(cost.weight_bytes));
    rows.push(("Weights read", read));
    out += &facts(&rows);
    if let Some(quantization) = &report.quantization {
        out += &executions(quantization);
    }
    out
}

/// The kernels with which this CPU executes the quantized layers.
fn executions(quantization: &QuantizationFacts) -> String {
    let count = |of: &str| quantization.layers.iter().filter(|layer| layer.execution == of).count();
    let (all, integers, bf16) = (quantization.layers.len(), count("int8"), count("bf16"));
    let mut parts = Vec::new();
    if integers > 0 {
        parts.push(format!("{integers} as integers"));
    }
    if bf16 > 0 {
        parts.push(format!("{bf16} in bf16"));
    }
    if all > integers + bf16 {
        parts.push(format!(
            "{} in f32, their operands rounded, for want of a kernel",
            all - integers - bf16
        ));
    }
    format!(
        "<p class=\"dim\">Of {}, this CPU multiplies {}. The predicted speed-up counts MACs alone.</p>\n",
        counted(all, "quantized layer"),
        parts.join(", ")
    )
}

fn layers_section(quantization: &QuantizationFacts, report: &Report) -> String {
    let corrected = quantization.layers.iter().filter(|layer| layer.is_corrected).count();
    let caches = report.caching.is_some();
    let gaps = if caches { " Gaps are evaluations that do not run it." } else { "" };
    format!(
        "<p>{}, the sums of {corrected} corrected. Work: share of a full evaluation's MACs. SQNR: signal to noise of the rounded weights. Ranges: what 8 bits hold at each evaluation, first to last.{gaps}</p>\n{}<h3>Layers that stay float</h3>\n{}",
        counted(quantization.layers.len(), "layer"),
        layers::table(quantization, report.cost.full.macs, caches),
        layers::float(quantization),
    )
}
