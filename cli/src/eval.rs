//! `cqc eval`: measures the quality of an artifact against a reference.

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

/// Measure the quality of an artifact against a reference that starts from the same noise
#[derive(Args, Debug)]
#[command(
    after_help = "An artifact as --reference is sampled as it is. A model as --reference is compiled in memory without caching and \
    without quantization, with the artifact's sampler, steps and guidance.\n\n\
    PSNR and SSIM compare images as RGB bytes: samples are clipped to [-1,1] and rounded. The figures are means over images, \
    and identical images count as 100 dB. Samples that are not images, such as latents, have a PSNR of floats, whose peak is \
    the range of the reference, and no SSIM.\n\n\
    --features takes any model that reads images [N,C,H,W] in [-1,1]. Frechet distances depend on the number of images, so \
    only distances of equal numbers can be compared.\n\n\
    If a target is missed, the figures are printed and the exit code is 4.\n\n\
    Examples:\n  \
    cqc eval unet.cq --reference unet.onnx -n 64\n  \
    cqc eval unet.cq --reference float.cq -n 5000 --features inception.onnx --real-stats real.npz --max-frechet 20\n  \
    cqc eval unet.cq --reference unet.onnx -n 5000 --shard 0/4 --partial p0.npz\n  \
    cqc eval --merge p0.npz p1.npz p2.npz p3.npz --real-stats real.npz --json"
)]
pub struct EvalArgs {
    /// The artifact to measure, a .cq file
    #[arg(required_unless_present = "merge")]
    artifact: Option<PathBuf>,
    /// The reference: an .onnx file, a .cq file, or a pipeline directory as for `compile`
    #[arg(long, value_name = "R", required_unless_present = "merge")]
    reference: Option<PathBuf>,
    /// Number of sampler steps of the artifact, and of an .onnx reference [default: as compiled]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// An ONNX model that computes features of images, and possibly logits
    ///
    /// Needed for Frechet distances, precision, recall and inception scores.
    #[arg(long, value_name = "F.onnx")]
    features: Option<PathBuf>,
    /// The output of --features that holds the features [default: `features`, else the first]
    #[arg(long, value_name = "NAME", requires = "features")]
    features_output: Option<String>,
    /// The output of --features that holds the logits, for inception scores [default: `logits`, if
    /// there is one]
    #[arg(long, value_name = "NAME", requires = "features")]
    logits_output: Option<String>,
    /// Statistics of the features of real images
    ///
    /// Arrays `mean` or `mu`, and `cov` or `sigma`. Needs --features, here or in the merged parts.
    #[arg(long, value_name = "S.npz")]
    real_stats: Option<PathBuf>,
    /// Features [N,D] of real images, for precision and recall [default: those of the reference]
    ///
    /// Needs --features, here or in the merged parts.
    #[arg(long, value_name = "X.npy")]
    real_features: Option<PathBuf>,
    /// Fail if the Frechet distance is above this value
    ///
    /// The distance is measured to the real images if --real-stats is given, else to the reference.
    /// Needs --features, here or in the merged parts.
    #[arg(long, value_name = "X", value_parser = number)]
    max_frechet: Option<f64>,
    /// Fail if the mean PSNR is below this value, in dB
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    min_psnr: Option<f64>,
    /// Fail if the mean SSIM is below this value, at most 1
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    min_ssim: Option<f64>,
    /// Measure only part I of COUNT consecutive parts of the samples, I from 0
    #[arg(long, value_name = "I/COUNT")]
    shard: Option<Shard>,
    /// File for the intermediate results of this part, which --merge reads
    #[arg(long, value_name = "P.npz")]
    partial: Option<PathBuf>,
    /// Combine the --partial files of all shards instead of sampling
    ///
    /// The figures are those of all samples together.
    #[arg(long, value_name = "P.npz", num_args = 1.., conflicts_with_all = ["artifact", "reference", "shard", "partial", "features"])]
    merge: Vec<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    map: MapArgs,
    /// Print the figures as a JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    reading: ModelArgs,
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

/// Refuses before the work what cannot be computed after it.
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
    // written so that NaN misses the target
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
