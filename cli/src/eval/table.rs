//! The figures of `eval` as text.

use super::figures::{Distance, Features, Figures, Score, Summary};
use crate::text::columns;
use std::fmt::Write;

pub fn text(figures: &Figures) -> String {
    let setup = &figures.setup;
    let of = if figures.measured < setup.samples {
        format!(" of {}", setup.samples)
    } else {
        String::new()
    };
    let mut out = format!(
        "{} against {}: {}{of} samples {:?}, {} steps against {}, seed {}, guidance {}\n",
        setup.artifact.path.display(),
        setup.reference.path.display(),
        figures.measured,
        setup.shape,
        setup.artifact.steps,
        setup.reference.steps,
        setup.seed,
        setup.guidance,
    );
    out.push_str(&columns(&pairs(figures)));
    if let Some(errors) = &figures.trajectory {
        let (at, most) = errors
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .expect("there is an evaluation");
        let (last, count) = (errors[errors.len() - 1], errors.len());
        let _ = writeln!(
            out,
            "  mean relative error of x: {last:.3e} at the end, largest {most:.3e} after evaluation {at} of {count}"
        );
    }
    if let Some(features) = &figures.features {
        let extractor = &features.extractor;
        let _ = writeln!(
            out,
            "{} features `{}`, extractor {:.16}",
            extractor.dimensions, extractor.output, extractor.blake3
        );
        out.push_str(&columns(&sets(features, figures.measured)));
    }
    out
}

fn pairs(figures: &Figures) -> Vec<Vec<String>> {
    let words = ["", "mean", "median", "min", "95 % of means", ""];
    let mut rows = vec![words.map(String::from).to_vec()];
    let mut row = |name: &str, s: &Summary, digits: usize, note: String| {
        let [mean, median, min] = [s.mean, s.median, s.min].map(|v| format!("{v:.digits$}"));
        let interval = format!("{:.digits$} to {:.digits$}", s.interval[0], s.interval[1]);
        rows.push(vec![name.into(), mean, median, min, interval, note]);
    };
    let psnr = &figures.psnr;
    let what = if psnr.on == "uint8" {
        "RGB bytes, rounded".to_string()
    } else {
        format!("floats, peak {:.4}", psnr.peak)
    };
    let note = match psnr.identical {
        0 => what,
        n => format!("{what}; {n} identical, as 100"),
    };
    row("PSNR dB", &psnr.of, 2, note);
    if let Some(ssim) = &figures.ssim {
        row("SSIM", ssim, 5, "11x11 Gaussian, per channel".into());
    }
    rows.push(vec!["SQNR dB".into(), format!("{:.2}", figures.sqnr_db)]);
    rows
}

fn sets(features: &Features, count: usize) -> Vec<Vec<String>> {
    let mut rows = vec![["", "artifact", "reference", ""].map(String::from).to_vec()];
    let distance = |d: &Distance| format!("{:.4}", d.distance);
    if let (Some(a), Some(r), Some(real)) =
        (&features.frechet_to_real, &features.reference_frechet_to_real, &features.real_stats)
    {
        let of = real.count.map_or(String::new(), |n| format!(" of {n} images"));
        rows.push(vec![
            "Frechet to real".into(),
            distance(a),
            distance(r),
            format!("{count} images to statistics{of}"),
        ]);
    }
    rows.push(vec!["Frechet to reference".into(), distance(&features.frechet_to_reference)]);
    if let Some(p) = &features.precision_recall {
        let note = format!(
            "k = {}, {} images against {} of the {}",
            p.k,
            p.generated,
            p.against_count,
            match p.against {
                "real" => "real ones",
                _ => "reference",
            }
        );
        rows.push(vec!["precision".into(), format!("{:.4}", p.precision), String::new(), note]);
        rows.push(vec!["recall".into(), format!("{:.4}", p.recall)]);
    }
    let score = |s: &Score| format!("{:.4}", s.mean);
    if let (Some(a), Some(r)) = (&features.inception_score, &features.reference_inception_score) {
        rows.push(vec![
            "inception score".into(),
            score(a),
            score(r),
            format!("splits of at most {} images: {}", a.split, a.splits),
        ]);
    }
    rows
}
