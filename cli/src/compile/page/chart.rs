//! The chart of errors along the trajectory: lines on a logarithmic axis. The drawing stretches
//! with the page, the text does not.

use super::markup::{number, percent};
use cachequant::report::trajectory::{Curve, Errors, Variant};
use std::fmt::Write;

/// The drawing is a square of this size and is stretched to its place.
const SIZE: f64 = 1000.0;

/// Errors that are smaller than the largest by more than this factor are not drawn.
const DYNAMIC_RANGE: f64 = 1e5;

/// Distance between two labels, as a share of the chart's height.
const LABEL: f64 = 0.062;

/// CSS class, short name and meaning of a curve.
pub fn described(of: Variant) -> [&'static str; 3] {
    match of {
        Variant::Cache => {
            ["cache", "cache", "The cache alone: float, the schedule above, uncorrected"]
        }
        Variant::Quantization => {
            ["quantization", "quant", "Quantization alone: every evaluation full, uncorrected"]
        }
        Variant::Both => ["both", "both", "Both, uncorrected"],
        Variant::Artifact => ["artifact", "artifact", "What remains in the artifact"],
    }
}

/// The chart, and a table of the values at the ends of its lines.
pub fn chart(errors: &Errors, full: Option<&[usize]>) -> String {
    let Some(axis) = Axis::of(&errors.curves) else {
        return "<p>All loops give what the ordinary one gives, bit for bit.</p>\n".into();
    };
    let evaluations = errors.curves[0].errors.len();
    let mut out = String::from("<div class=\"chart\">\n<div class=\"plot\">\n");
    axis.draw_labels(&mut out);
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {SIZE} {SIZE}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Relative error after each evaluation\">"
    );
    let grid: String = axis.ticks().map(|tick| format!("M0 {:.1}H{SIZE}", axis.y(tick))).collect();
    let _ = writeln!(out, "<path class=\"grid\" d=\"{grid}\"/>");
    for curve in &errors.curves {
        let [class, ..] = described(curve.of);
        let _ = writeln!(out, "<path class=\"line {class}\" d=\"{}\"/>", line(curve, &axis));
    }
    out.push_str("</svg>\n");
    end_labels(errors, &axis, &mut out);
    draw_steps(evaluations, full, &mut out);
    out.push_str("</div>\n</div>\n");
    out
}

/// The table of the values at the ends of the lines.
pub fn table(errors: &Errors) -> String {
    let mut out = String::from(
        "<table class=\"ends\">\n<thead><tr><th>Loop</th><th class=\"n\">Error at the end</th><th class=\"n\">PSNR</th></tr></thead>\n<tbody>\n",
    );
    for curve in &errors.curves {
        let [class, name, meaning] = described(curve.of);
        let _ = writeln!(
            out,
            "<tr><td><span class=\"swatch {class}\"></span><b>{name}</b><br/><span class=\"dim\">{meaning}</span></td><td class=\"n\">{}</td><td class=\"n\">{} dB</td></tr>",
            curve.errors.last().map_or(String::new(), |&e| percent(e)),
            number(curve.psnr),
        );
    }
    out.push_str("</tbody>\n</table>\n");
    out
}

/// The vertical axis. Both ends are 1, 2 or 5 times a power of ten.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// `None` if no error is above zero.
    fn of(curves: &[Curve]) -> Option<Axis> {
        let all =
            || curves.iter().flat_map(|c| &c.errors).copied().filter(|e| e.is_finite() && *e > 0.0);
        let most = all().reduce(f64::max)?;
        let least = all().filter(|e| *e >= most / DYNAMIC_RANGE).reduce(f64::min)?;
        let low = steps(least / 10.0).take_while(|&s| s <= least).last()?;
        let high = steps(most).find(|&s| s >= most && s > low)?;
        Some(Axis { low, high })
    }

    fn y(&self, error: f64) -> f64 {
        (1.0 - (error / self.low).ln() / (self.high / self.low).ln()) * SIZE
    }

    /// Powers of ten, or finer ticks where there would be few.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low * 0.999, self.high * 1.001);
        let fine = self.high / self.low < 300.0;
        let is_power = |s: &f64| (s.log10() - s.log10().round()).abs() < 1e-6;
        steps(self.low)
            .skip_while(move |&s| s < low)
            .take_while(move |&s| s <= high)
            .filter(move |s| fine || is_power(s))
    }

    fn draw_labels(&self, out: &mut String) {
        for tick in self.ticks() {
            let _ = writeln!(
                out,
                "<span class=\"y\" style=\"top:{:.1}%\">{} %</span>",
                self.y(tick) / SIZE * 100.0,
                plain(tick * 100.0)
            );
        }
    }
}

/// 1, 2 and 5 times powers of ten, from the power at or below `from`.
fn steps(from: f64) -> impl Iterator<Item = f64> {
    let first = (from.log10() + 1e-9).floor() as i32;
    (first..first + 20).flat_map(|power| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power)))
}

/// A number without rounding errors in its last digits.
fn plain(x: f64) -> String {
    let digits = (-x.log10().floor()).max(0.0) as usize;
    format!("{x:.digits$}")
}

fn x(t: usize, evaluations: usize) -> f64 {
    if evaluations < 2 { SIZE / 2.0 } else { t as f64 / (evaluations - 1) as f64 * SIZE }
}

/// A line, interrupted where there is no error to draw, and a dot at its end.
fn line(curve: &Curve, axis: &Axis) -> String {
    let (mut path, mut pen_is_down, mut end) = (String::new(), false, None);
    for (t, &error) in curve.errors.iter().enumerate() {
        let drawn = error.is_finite() && error >= axis.low * 0.999;
        if drawn {
            let (x, y) = (x(t, curve.errors.len()), axis.y(error));
            let _ = write!(path, "{}{x:.1} {y:.1}", if pen_is_down { 'L' } else { 'M' });
            end = Some((x, y));
        }
        pen_is_down = drawn;
    }
    end.map_or(path.clone(), |(x, y)| format!("{path}M{x:.1} {y:.1}h0"))
}

/// Names at the ends of the lines, moved apart where they would overlap.
fn end_labels(errors: &Errors, axis: &Axis, out: &mut String) {
    let mut labels: Vec<(f64, Variant)> = Vec::new();
    for curve in &errors.curves {
        if let Some(&last) =
            curve.errors.iter().rev().find(|e| e.is_finite() && **e >= axis.low * 0.999)
        {
            labels.push((axis.y(last) / SIZE, curve.of));
        }
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    for i in 1..labels.len() {
        labels[i].0 = labels[i].0.max(labels[i - 1].0 + LABEL);
    }
    let mut most = 1.0;
    for label in labels.iter_mut().rev() {
        label.0 = label.0.min(most);
        most = label.0 - LABEL;
    }
    for (at, of) in labels {
        let [class, name, _] = described(of);
        let _ = writeln!(
            out,
            "<span class=\"end {class}\" style=\"top:{:.1}%\">{name}</span>",
            at * 100.0
        );
    }
}

/// The numbers of evaluations, and a mark for each full one.
fn draw_steps(evaluations: usize, full: Option<&[usize]>, out: &mut String) {
    if let Some(full) = full {
        let marks: String =
            full.iter().map(|&t| format!("M{:.1} 0V10", x(t, evaluations))).collect();
        let _ = writeln!(
            out,
            "<svg class=\"marks\" viewBox=\"0 0 {SIZE} 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><path d=\"{marks}\"/></svg>"
        );
    }
    let step = [1, 2, 5, 10, 20, 50, 100, 200, 500]
        .into_iter()
        .find(|step| evaluations / step <= 6)
        .unwrap_or(1000);
    for t in (0..evaluations).step_by(step) {
        let _ = writeln!(
            out,
            "<span class=\"x\" style=\"left:{:.1}%\">{t}</span>",
            x(t, evaluations) / SIZE * 100.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(of: Variant, errors: &[f64]) -> Curve {
        Curve { of, errors: errors.to_vec(), psnr: 30.0 }
    }

    #[test]
    fn the_axis_begins_and_ends_at_round_numbers() {
        let axis = Axis::of(&[curve(Variant::Cache, &[0.0, 0.013, 0.3])]).unwrap();
        assert!((axis.low - 0.01).abs() < 1e-9 && (axis.high - 0.5).abs() < 1e-9);
        let ticks: Vec<String> = axis.ticks().map(|t| plain(t * 100.0)).collect();
        assert_eq!(ticks, ["1", "2", "5", "10", "20", "50"]);
        assert_eq!((axis.y(axis.low).round(), axis.y(axis.high).round()), (SIZE, 0.0));
        let wide = Axis::of(&[curve(Variant::Cache, &[1e-9, 2e-4, 0.9])]).unwrap();
        assert_eq!(
            wide.ticks().map(|t| plain(t * 100.0)).collect::<Vec<_>>(),
            ["0.1", "1", "10", "100"]
        );
        assert!(Axis::of(&[curve(Variant::Cache, &[0.0, f64::NAN])]).is_none());
        let flat = Axis::of(&[curve(Variant::Cache, &[0.1])]).unwrap();
        assert!(flat.low < flat.high);
    }

    #[test]
    fn lines_break_where_there_is_no_error() {
        let errors = [0.1, 0.0, 0.2, 0.2];
        let curves = [curve(Variant::Cache, &errors)];
        let path = line(&curves[0], &Axis::of(&curves).unwrap());
        assert_eq!(path.matches('M').count(), 3, "two pieces and a dot: {path}");
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        let curves: Vec<Curve> = [Variant::Cache, Variant::Both, Variant::Artifact]
            .map(|of| curve(of, &[0.1, 0.01]))
            .into();
        let axis = Axis::of(&curves).unwrap();
        let mut out = String::new();
        end_labels(&Errors { samples: 1, curves }, &axis, &mut out);
        let tops: Vec<f64> = out
            .split("top:")
            .skip(1)
            .map(|s| s.split('%').next().unwrap().parse().unwrap())
            .collect();
        assert!(tops.windows(2).all(|w| w[1] - w[0] > 6.0) && tops[2] <= 100.0, "{tops:?}");
    }
}
