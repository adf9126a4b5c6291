//! `eval`: quality against a reference.

mod extractor;
mod figures;
mod measure;
mod partial;
mod real;
mod table;

use super::args::{MapArgs, ModelArgs, Shard};
use super::report::{Exit, Failure};
use super::sampling::SamplingArgs;
use super::term;
use cachequant::io::{Overwrite, check_target};
use clap::Args;
use figures::Figures;
use partial::Setup;
use real::Real;
use std::path::PathBuf;

/// Measure the quality of an artifact against a reference, from the same noise
#[derive(Args, Debug)]
#[command(
    after_help = "An artifact given as --reference is sampled as it is; a model is compiled in memory without caching, with the \
    artifact's sampler, steps and guidance.\n\
    PSNR and SSIM are of RGB bytes, clipped to [-1,1] and rounded once, means over images; identical images count as 100 dB. \
    Samples that are no images (latents) have a PSNR of floats, whose peak is the reference's range, and no SSIM.\n\
    --features takes any model of images [N,C,H,W] in [-1,1]. Frechet distances depend on the number of images: compare equal \
    ones.\n\
    A missed target exits with 4, after the figures are printed. Examples:\n  \
    cqc eval unet.cq --reference unet.onnx -n 64\n  \
    cqc eval unet.cq --reference float.cq -n 5000 --features inception.onnx --real-stats real.npz --max-frechet 20\n  \
    cqc eval unet.cq --reference unet.onnx -n 5000 --shard 0/4 --partial p0.npz\n  \
    cqc eval --merge p0.npz p1.npz p2.npz p3.npz --real-stats real.npz --json"
)]
pub struct EvalArgs {
    /// A .cq file
    #[arg(required_unless_present = "merge")]
    artifact: Option<PathBuf>,
    /// What its samples should be: an .onnx or a .cq file, or a pipeline directory as for `compile`
    #[arg(long, value_name = "R", required_unless_present = "merge")]
    reference: Option<PathBuf>,
    /// Sampling steps of the artifact, and of an .onnx reference [default: as compiled]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A model that makes features of images, and perhaps logits
    #[arg(long, value_name = "F.onnx")]
    features: Option<PathBuf>,
    /// Which of its outputs the features are [default: `features`, else the first]
    #[arg(long, value_name = "NAME", requires = "features")]
    features_output: Option<String>,
    /// Which of its outputs the logits are, for inception scores [default: `logits`, if it is
    /// there]
    #[arg(long, value_name = "NAME", requires = "features")]
    logits_output: Option<String>,
    /// Statistics of real images' features: arrays `mean` or `mu`, and `cov` or `sigma`
    #[arg(long, value_name = "S.npz")]
    real_stats: Option<PathBuf>,
    /// Real images' features [N,D], for precision and recall [default: the reference's]
    #[arg(long, value_name = "X.npy")]
    real_features: Option<PathBuf>,
    /// Largest Frechet distance, to the real images if they are given, else to the reference
    #[arg(long, value_name = "X", value_parser = number)]
    max_frechet: Option<f64>,
    /// Smallest mean PSNR, in decibels
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    min_psnr: Option<f64>,
    /// Smallest mean SSIM
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    min_ssim: Option<f64>,
    /// Measure only part I of COUNT consecutive parts, I from 0
    #[arg(long, value_name = "I/COUNT")]
    shard: Option<Shard>,
    /// Write what --merge needs of this part
    #[arg(long, value_name = "P.npz")]
    partial: Option<PathBuf>,
    /// Put together the parts of all shards, instead of sampling: the figures are those of the
    /// whole
    #[arg(long, value_name = "P.npz", num_args = 1.., conflicts_with_all = ["artifact", "reference", "shard", "partial", "features"])]
    merge: Vec<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reading: ModelArgs,
    #[command(flatten)]
    map: MapArgs,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| "expected a number".into())
}

pub fn eval(args: &EvalArgs, quiet: bool) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    args.partial.iter().try_for_each(|path| check_target(path, overwrite))?;
    let real = Real::read(args.real_stats.as_deref(), args.real_features.as_deref())?;
    let (setup, rows) = match (&args.artifact, &args.reference) {
        (Some(artifact), Some(reference)) => {
            let mut measure = measure::Measure::open(args, artifact, reference)?;
            check(args, &measure.setup, &real)?;
            let rows = measure.run(quiet)?;
            (measure.setup, rows)
        }
        _ => {
            let (setup, rows) = partial::merge(&args.merge)?;
            check(args, &setup, &real)?;
            (setup, rows)
        }
    };
    if let Some(path) = &args.partial {
        partial::write(path, &setup, &rows, overwrite)?;
    }
    let figures = figures::of(setup, &rows, &real);
    figures.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    if args.json {
        term::print_json(&figures)?
    } else {
        term::print(&table::text(&figures))?
    }
    check_targets(args, &figures)
}

/// Refuses before the work what could not be computed after it.
fn check(args: &EvalArgs, setup: &Setup, real: &Real) -> Result<(), Failure> {
    let wants_features = [
        ("--max-frechet", args.max_frechet.is_some()),
        ("--real-stats", args.real_stats.is_some()),
        ("--real-features", args.real_features.is_some()),
    ];
    let wanted = wants_features.iter().find(|(_, given)| *given);
    match (wanted, &setup.extractor) {
        (Some((option, _)), None) => {
            return Err(Failure::usage(format!("{option} needs features of the images"))
                .help("--features F.onnx"));
        }
        (_, Some(extractor)) => real.check_dimensions(extractor.dimensions)?,
        _ => {}
    }
    if args.min_ssim.is_some() && !setup.has_ssim() {
        return Err(Failure::usage(
            "--min-ssim needs images of at least 11x11 pixels with 1 or 3 channels",
        )
        .fact("seen", format!("{:?}", setup.shape)));
    }
    Ok(())
}

fn check_targets(args: &EvalArgs, figures: &Figures) -> Result<(), Failure> {
    let frechet = figures
        .features
        .as_ref()
        .map(|f| f.frechet_to_real.unwrap_or(f.frechet_to_reference).distance);
    // written so that NaN misses
    let missed = [
        (
            "Frechet",
            args.max_frechet,
            frechet,
            args.max_frechet.zip(frechet).is_none_or(|(most, x)| x <= most),
        ),
        (
            "PSNR",
            args.min_psnr,
            Some(figures.psnr.of.mean),
            args.min_psnr.is_none_or(|l| figures.psnr.of.mean >= l),
        ),
        (
            "SSIM",
            args.min_ssim,
            figures.ssim.map(|s| s.mean),
            args.min_ssim.zip(figures.ssim).is_none_or(|(least, s)| s.mean >= least),
        ),
    ];
    let mut failure = None;
    for (what, target, found, reached) in missed {
        if let (false, Some(target), Some(found)) = (reached, target, found) {
            let so_far = failure
                .unwrap_or_else(|| Failure::new(Exit::Missed, "a quality target was missed"));
            failure = Some(so_far.fact(what, format!("{found:.6}, the target is {target}")));
        }
    }
    failure.map_or(Ok(()), Err)
}
