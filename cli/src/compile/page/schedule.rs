//! The schedule, and the alternatives that were measured.

use super::markup::{Text, number};
use cachequant::report::{Caching, Candidate};
use std::fmt::Write;

/// Largest number of evaluations whose time steps are written into the strip.
const WRITTEN: usize = 120;

/// Explains the cells of the strip.
pub fn caption(timesteps: &[f64]) -> String {
    match timesteps {
        [first, .., last] if timesteps.len() > WRITTEN => format!("Time steps {first} to {last}."),
        _ => "Numbers are time steps.".into(),
    }
}

/// A strip with a cell per evaluation, which shows its time step.
pub fn strip(timesteps: &[f64], full: &[usize]) -> String {
    let small = if timesteps.len() > WRITTEN { " small" } else { "" };
    let mut out = format!("<ol class=\"strip{small}\">\n");
    for (t, &time) in timesteps.iter().enumerate() {
        let is_full = full.binary_search(&t).is_ok();
        let (class, kind) = if is_full { (" class=\"full\"", "full") } else { ("", "cached") };
        let time = if time.fract() == 0.0 { format!("{time}") } else { format!("{time:.1}") };
        let shown = if small.is_empty() { &time[..] } else { "" };
        let _ = writeln!(
            out,
            "<li{class} title=\"evaluation {t}, time step {time}: {kind}\">{shown}</li>"
        );
    }
    out.push_str("</ol>\n");
    out
}

/// The table of schedules that were measured on held-out samples.
pub fn candidates(caching: &Caching, evaluations: usize) -> String {
    let list = &caching.candidates;
    if list.is_empty() {
        return String::new();
    }
    let most = list.iter().map(|c| c.psnr).filter(|p| p.is_finite()).fold(1.0, f64::max);
    let mut out = String::from(
        "<h3>What was tried</h3>\n<div class=\"scroll\"><table class=\"candidates\">\n<thead><tr><th>Schedule</th><th class=\"wide\">Full evaluations</th><th>Correction</th><th class=\"n\">PSNR</th><th class=\"bars\"></th></tr></thead>\n<tbody>\n",
    );
    for candidate in list {
        let Candidate { method, full, correction, psnr, taken } = candidate;
        let (class, mark) = if *taken {
            (" class=\"taken\"", " <span class=\"mark\">taken</span>")
        } else {
            ("", "")
        };
        let _ = writeln!(
            out,
            "<tr{class}><td>{}{mark}</td><td class=\"wide\">{}</td><td>{}</td><td class=\"n\">{} dB</td><td class=\"bars\"><span class=\"bar\" style=\"width:{:.1}%\"></span></td></tr>",
            Text(method),
            marks(full, evaluations),
            correction.as_ref().map_or("none".into(), |c| Text(c).to_string()),
            number(*psnr),
            (psnr / most * 100.0).clamp(0.0, 100.0),
        );
    }
    out.push_str("</tbody>\n</table></div>\n");
    out
}

/// A small strip for a table.
fn marks(full: &[usize], evaluations: usize) -> String {
    let path: String = full.iter().map(|t| format!("M{t}.5 0V10")).collect();
    format!(
        "<svg class=\"mini\" viewBox=\"0 0 {evaluations} 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{} of {evaluations} full\"><path d=\"{path}\"/></svg>",
        full.len()
    )
}
