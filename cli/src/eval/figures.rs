//! Computes the figures from the measured rows. [`Figures`] is the JSON of `--json`.

use super::extractor;
use super::partial::{Rows, Setup};
use super::real::{Real, Source};
use crate::measure::median;
use cachequant::eval::bootstrap;
use cachequant::eval::frechet::{Frechet, Gaussian, frechet};
use cachequant::eval::inception::{InceptionScore, SPLIT, inception_score};
use cachequant::eval::precision_recall::{K, precision_recall};
use cachequant::eval::psnr::{CAP, psnr, sqnr};
use serde::Serialize;

/// Largest number of images per side in precision and recall, whose cost grows with its square.
const MOST_NEIGHBOURS: usize = 10_000;

/// Above this share of clipped eigenvalues, a distance comes with a warning.
const MOST_CLIPPED: f64 = 1e-3;

#[derive(Debug, Serialize)]
pub struct Figures {
    #[serde(flatten)]
    pub setup: Setup,
    /// Number of samples that were measured; `first` is the index of the first one.
    pub measured: usize,
    pub first: usize,
    pub psnr: Psnr,
    pub ssim: Option<Summary>,
    /// Signal-to-noise ratio of all samples together, on floats; infinite (null) for identical
    /// ones.
    pub sqnr_db: f64,
    /// Mean relative error after every evaluation; `None` if the two make different evaluations.
    pub trajectory: Option<Vec<f64>>,
    pub features: Option<Features>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    pub mean: f64,
    pub median: f64,
    pub min: f64,
    /// 95 % interval of the mean from a bootstrap over images with 1000 resamples.
    pub interval: [f64; 2],
}

#[derive(Debug, Serialize)]
pub struct Psnr {
    #[serde(flatten)]
    pub of: Summary,
    /// Number of images that are identical and count as 100 dB.
    pub identical: usize,
    /// The peak: the largest possible difference of two elements.
    pub peak: f64,
    /// The form that is compared: `uint8` or `float`.
    pub on: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Features {
    pub extractor: extractor::Identity,
    pub real_stats: Option<Source>,
    pub real_features: Option<Source>,
    pub frechet_to_real: Option<Distance>,
    pub reference_frechet_to_real: Option<Distance>,
    pub frechet_to_reference: Distance,
    pub precision_recall: Option<PrecisionRecall>,
    pub inception_score: Option<Score>,
    pub reference_inception_score: Option<Score>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Distance {
    pub distance: f64,
    pub mean_term: f64,
    pub clipped: f64,
}

impl From<Frechet> for Distance {
    fn from(Frechet { distance, mean_term, clipped }: Frechet) -> Distance {
        Distance { distance, mean_term, clipped }
    }
}

#[derive(Debug, Serialize)]
pub struct PrecisionRecall {
    pub precision: f64,
    pub recall: f64,
    pub k: usize,
    /// Number of generated images that were used.
    pub generated: usize,
    /// The other side: real images, or those of the reference.
    pub against: &'static str,
    pub against_count: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Score {
    pub mean: f64,
    pub deviation: f64,
    pub splits: usize,
    /// Number of images of a split; the last split may have fewer.
    pub split: usize,
}

impl From<InceptionScore> for Score {
    fn from(InceptionScore { mean, deviation, splits }: InceptionScore) -> Score {
        Score { mean, deviation, splits, split: SPLIT }
    }
}

pub fn of(setup: Setup, rows: &Rows, real: &Real) -> Figures {
    let mut warnings = Vec::new();
    let features = setup.extractor.clone().map(|e| features(e, rows, real, &mut warnings));
    Figures {
        measured: rows.count(),
        first: rows.first,
        psnr: psnr_of(&setup, rows),
        ssim: (!rows.ssim.is_empty()).then(|| summary(&rows.ssim, setup.seed)),
        sqnr_db: sqnr(rows.signal.iter().sum(), rows.noise.iter().sum()),
        trajectory: (setup.evaluations > 0).then(|| mean_rows(&rows.trajectory, setup.evaluations)),
        features,
        warnings,
        setup,
    }
}

fn psnr_of(setup: &Setup, rows: &Rows) -> Psnr {
    let least = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let images = setup.image_size().is_some();
    let (peak, on) =
        if images { (255.0, "uint8") } else { (most(&rows.high) - least(&rows.low), "float") };
    let values: Vec<f64> = rows.mse.iter().map(|&mse| psnr(mse, peak)).collect();
    Psnr {
        of: summary(&values, setup.seed),
        identical: values.iter().filter(|&&v| v == CAP).count(),
        peak,
        on,
    }
}

fn summary(values: &[f64], seed: u64) -> Summary {
    Summary {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        median: median(values),
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        interval: bootstrap::interval(values, seed),
    }
}

fn mean_rows(values: &[f64], width: usize) -> Vec<f64> {
    let count = (values.len() / width) as f64;
    (0..width).map(|e| values.iter().skip(e).step_by(width).sum::<f64>() / count).collect()
}

fn features(
    extractor: extractor::Identity,
    rows: &Rows,
    real: &Real,
    warnings: &mut Vec<String>,
) -> Features {
    let (d, n) = (extractor.dimensions, rows.count());
    if n <= d {
        warnings.push(format!(
            "{n} images for {d} features: the covariance is singular and Frechet distances are far too large; use -n {} or more",
            d + 1
        ));
    }
    let [a, r] = [&rows.features[0], &rows.features[1]].map(|rows| Gaussian::of(rows, d));
    let to_real =
        |g: &Gaussian| real.statistics.as_ref().map(|(_, s)| Distance::from(frechet(g, s)));
    let (frechet_to_real, reference_frechet_to_real) = (to_real(&a), to_real(&r));
    let frechet_to_reference = Distance::from(frechet(&a, &r));
    for distance in [frechet_to_real, reference_frechet_to_real, Some(frechet_to_reference)]
        .into_iter()
        .flatten()
    {
        if distance.clipped > MOST_CLIPPED {
            warnings.push(format!(
                "eigenvalues of {:.3e} in all were negative: doubtful statistics",
                distance.clipped
            ));
        }
        if distance.distance.is_nan() {
            warnings.push(
                "a Frechet distance is not finite: fewer than two images, or features that are not"
                    .into(),
            );
        }
    }
    let classes = extractor.classes;
    let score = |logits: &[f32]| inception_score(logits, classes, SPLIT).map(Score::from);
    Features {
        real_stats: real.statistics.as_ref().map(|(source, _)| source.clone()),
        real_features: real.features.as_ref().map(|(source, ..)| source.clone()),
        frechet_to_real,
        reference_frechet_to_real,
        frechet_to_reference,
        precision_recall: neighbours(rows, real, d, warnings),
        inception_score: score(&rows.logits[0]),
        reference_inception_score: score(&rows.logits[1]),
        extractor,
    }
}

fn neighbours(
    rows: &Rows,
    real: &Real,
    d: usize,
    warnings: &mut Vec<String>,
) -> Option<PrecisionRecall> {
    let (against, other) = match &real.features {
        Some((_, features, _)) => ("real", &features[..]),
        None => ("reference", &rows.features[1][..]),
    };
    let first = |features: &[f32]| (features.len() / d).min(MOST_NEIGHBOURS);
    let (generated, against_count) = (first(&rows.features[0]), first(other));
    let found =
        precision_recall(&other[..against_count * d], &rows.features[0][..generated * d], d, K);
    if found.is_none() {
        warnings.push(format!("precision and recall need more than {K} images"));
    }
    let found = found?;
    let (precision, recall) = (found.precision, found.recall);
    Some(PrecisionRecall { precision, recall, k: K, generated, against, against_count })
}
