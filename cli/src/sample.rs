//! `cqc sample`: runs the whole denoising loop of an artifact and writes the samples.

use super::args::{PackCacheArgs, Shard};
use super::device::DeviceArgs;
use super::prompt::{Pictures, PromptArgs};
use super::report::Failure;
use super::sampling::{SamplingArgs, Selected};
use super::source::SampleSource;
use super::start::StartArgs;
use super::term::ProgressBar;
use super::trace::Trace;
use super::{artifact, term, text};
use cachequant::identity::identity;
use cachequant::io::{
    Overwrite, RowFile, check_grid, check_target, has_extension, write_npy, write_npz, write_png,
};
use clap::Args;
use cqc_proto::Tensor;
use cqc_proto::cq::Computed;
use cqc_runtime::Denoiser;
use cqc_runtime::denoise::{Moment, Request};
use cqc_runtime::engine::{EngineError, EngineOptions};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run the denoising loop of an artifact: noise in, samples out
#[derive(Args, Debug)]
#[command(
    after_help = "Sample I of a seed is the same for any --batch, --threads and --shard.\n\n\
    Samples are written as they are made, to OUTPUT.partial, which is described in OUTPUT.partial.json. When all samples \
    are there, the file is renamed to OUTPUT. After an interruption the same command continues from the finished samples. \
    Another command with the same output is refused, unless --force discards them.\n\n\
    Examples:\n  \
    cqc sample unet.cq -n 16 --seed 0 -o grid.png\n  \
    cqc sample dit.cq -n 8 --labels 0,1,2 --guidance 2.0 -o samples.npy\n  \
    cqc sample unet.cq -n 50000 --shard 3/8 --batch 16 -o part3.npz\n  \
    cqc sample unet.cq --noise x.npy -o y.npy\n  \
    cqc sample unet.cq --init photo.png --strength 0.6 -o other.png\n  \
    cqc sample unet.cq --init photo.png --mask hole.png -o filled.png\n  \
    cqc sample base.cq --to 0.8 -o half.npy && cqc sample refiner.cq --from 0.8 --noise half.npy -o whole.npy"
)]
pub struct SampleArgs {
    /// The artifact, a .cq file
    artifact: PathBuf,
    /// Number of sampler steps [default: as compiled]
    ///
    /// `cqc inspect` lists the numbers that the artifact can run.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// File for the samples: .png (a grid of images), .npy, or .npz (array `samples`)
    ///
    /// PNG needs samples with 1 or 3 channels.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace existing files, and discard the unfinished samples of another command
    #[arg(long)]
    force: bool,
    /// Compute only part I of COUNT consecutive parts of the samples, I from 0
    #[arg(long, value_name = "I/COUNT")]
    shard: Option<Shard>,
    #[command(flatten)]
    cache: PackCacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Also write a Chrome trace of every evaluation and operator
    ///
    /// It can be opened in chrome://tracing or ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print a summary as a JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    start: StartArgs,
}

pub fn sample(args: &SampleArgs, quiet: bool) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_outputs(args, overwrite)?;
    let artifact = artifact::open_cached(&args.artifact, &args.cache)?;
    let source = SampleSource::new(&args.artifact, artifact, args.steps)?;
    let images = args.start.read()?;
    let threads = args.sampling.threads.count();
    let pictures = args.prompt.open(&source, threads)?;
    let images = images.encoded(&pictures)?;
    let mut sampling = args.sampling.clone();
    if sampling.noise.is_none() {
        sampling.samples = sampling.samples.or(images.rows()).or(pictures.samples());
    }
    let mut selected = sampling.request(&source, args.shard, &pictures)?;
    let course = args.start.apply(images, &source, &mut selected)?;
    let Selected { request, range, .. } = selected;
    let shape = pictures.shape(source.sample_shape()?)?;
    check_image(args, &source, request.samples, &shape)?;
    let batch = args.sampling.batch(request.samples);
    let profile = args.trace.is_some();
    let engine = EngineOptions { batch, threads, profile, ..Default::default() };
    let mut denoiser = args.device.open(&source.artifact, source.options(&request, engine))?;
    artifact::keep_packed(&source.artifact);

    denoiser.check(&request)?;
    let evaluations = course.evaluations.len();
    let mut rows = begin(args, &source, &denoiser, &request, (&pictures, &shape), overwrite)?;
    let resumed = rows.as_ref().map_or(0, RowFile::done);
    let rounds = (request.samples - resumed).div_ceil(denoiser.width());
    let mut progress = ProgressBar::new("sampling", (rounds * evaluations) as u64, quiet);
    let mut trace = args.trace.as_ref().map(|_| Trace::begin());
    let start = Instant::now();
    let mut observe = |moment: &Moment| {
        progress.step();
        if let Some(trace) = &mut trace {
            trace.after_evaluation(moment);
        }
        ControlFlow::Continue(())
    };
    let whole = match &mut rows {
        None => Some(pictures.of(denoiser.sample(&request, &mut observe)?)?),
        Some(rows) => {
            while rows.done() < request.samples {
                let end = request.samples.min(rows.done() + denoiser.width());
                let part = request.part(rows.done()..end);
                rows.push(&pictures.of(denoiser.sample(&part, &mut observe)?)?)?;
            }
            None
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    drop(progress);

    rows.map(|rows| rows.finish(overwrite)).transpose()?;
    whole.map(|samples| write(&args.output, samples, overwrite)).transpose()?;
    if let (Some(trace), Some(path)) = (trace, &args.trace) {
        trace.write(path, overwrite)?;
    }
    let per_evaluation = seconds * 1e3 / (rounds * evaluations).max(1) as f64;
    tracing::info!(
        "{} samples in {seconds:.2} s, {per_evaluation:.2} ms per evaluation of {}: {}",
        request.samples - resumed,
        denoiser.width(),
        args.output.display()
    );
    if args.json {
        return term::print_json(&json!({
            "output": text::shown(&args.output), "samples": request.samples, "resumed": resumed, "first": range.start, "seed": args.sampling.seed,
            "guidance": request.guidance,
            "guidance_rescale": request.guidance_rescale.unwrap_or(source.artifact.manifest().guidance_rescale),
            "guidance_interval": request.guidance_interval.or(source.artifact.manifest().guidance_interval).map(|i| i.to_string()),
            "steps": source.steps, "evaluations": evaluations, "batch": denoiser.width(),
            "seconds": seconds, "ms_per_evaluation": per_evaluation,
            "device": denoiser.engine().device().map_or("cpu".into(), |d| d.name()),
        }));
    }
    Ok(())
}

/// The file to which samples are written batch by batch. `None` if the output is not a regular file
/// (`/dev/null`, a pipe): all samples are then written at the end.
fn begin(
    args: &SampleArgs,
    source: &SampleSource,
    denoiser: &Denoiser,
    request: &Request,
    (pictures, shape): (&Pictures, &[usize]),
    overwrite: Overwrite,
) -> Result<Option<RowFile>, Failure> {
    if args.output.metadata().is_ok_and(|found| !found.is_file()) {
        return Ok(None);
    }
    let mut command = command(args, source, denoiser, request)?;
    command.extend(pictures.facts());
    let shape: Vec<usize> = [request.samples].iter().chain(shape).copied().collect();
    let rows = RowFile::open(&args.output, overwrite, &command, &shape, denoiser.width())?;
    if rows.done() > 0 {
        tracing::info!("going on after {} of {} samples", rows.done(), request.samples);
    }
    Ok(Some(rows))
}

/// Everything that the bytes of the output depend on, as text by name. An interrupted command is
/// continued only if all of it is the same.
fn command(
    args: &SampleArgs,
    source: &SampleSource,
    denoiser: &Denoiser,
    request: &Request,
) -> Result<BTreeMap<String, String>, Failure> {
    let Request { samples, seed, first, guidance, strength, from, to, .. } = request;
    let hash = |t: &Tensor| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(t.value_type().to_string().as_bytes()).update(t.bytes());
        hasher.finalize().to_hex().to_string()
    };
    let guidance = guidance.unwrap_or(source.guidance());
    let Computed { build, isa } = identity().map_err(EngineError::from)?;
    let device = denoiser.engine().device().map_or("cpu".into(), |d| d.name());
    let mut command: BTreeMap<String, String> = [
        ("artifact", artifact::identity(&args.artifact)?),
        ("samples", samples.to_string()),
        ("seed", seed.to_string()),
        ("first sample", first.to_string()),
        ("guidance", guidance.to_string()),
        ("steps", source.steps.to_string()),
        ("device", device.to_string()),
        ("instruction set", isa),
        ("cqc", build),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into();
    command.extend(strength.map(|strength| ("strength".to_string(), strength.to_string())));
    let places = [("from", from), ("to", to)];
    command.extend(
        places.iter().filter_map(|(key, at)| Some((key.to_string(), at.as_ref()?.to_string()))),
    );
    let manifest = source.artifact.manifest();
    let rescale = request.guidance_rescale.unwrap_or(manifest.guidance_rescale);
    if rescale != 0.0 {
        command.insert("guidance rescale".into(), rescale.to_string());
    }
    if let Some(interval) = request.guidance_interval.or(manifest.guidance_interval) {
        command.insert("guidance interval".into(), interval.to_string());
    }
    let tensors = request.tensors();
    let tensors = tensors.filter(|(what, _)| guidance != 1.0 || !what.starts_with("null "));
    command.extend(tensors.map(|(what, t)| (what, hash(t))));
    Ok(command)
}

fn check_outputs(args: &SampleArgs, overwrite: Overwrite) -> Result<(), Failure> {
    if !["png", "npy", "npz"].iter().any(|e| has_extension(&args.output, e)) {
        return Err(Failure::usage(format!(
            "-o {} is neither .png nor .npy nor .npz",
            args.output.display()
        )));
    }
    check_target(&args.output, overwrite)?;
    args.trace.iter().try_for_each(|path| check_target(path, overwrite))?;
    Ok(())
}

/// Refuses a PNG for samples that are no images before they are computed.
fn check_image(
    args: &SampleArgs,
    source: &SampleSource,
    samples: usize,
    shape: &[usize],
) -> Result<(), Failure> {
    if !has_extension(&args.output, "png") {
        return Ok(());
    }
    if matches!(shape, [1 | 3, _, _]) {
        let shape: Vec<usize> = [samples].iter().chain(shape).copied().collect();
        return check_grid(&shape).map_err(|what| {
            Failure::usage(format!("{} cannot hold {what}", args.output.display()))
                .help(format!("-o {}", args.output.with_extension("npy").display()))
        });
    }
    let seen = source.artifact.sample_type().map_or("no sample".to_string(), ToString::to_string);
    Err(Failure::usage(format!(
        "{} cannot hold the samples: a PNG takes [N,1,H,W] or [N,3,H,W]",
        args.output.display()
    ))
    .fact("seen", seen)
    .help(format!("-o {}", args.output.with_extension("npy").display())))
}

fn write(path: &Path, samples: Tensor, overwrite: Overwrite) -> Result<(), Failure> {
    if has_extension(path, "png") {
        write_png(path, &samples, overwrite)?;
    } else if has_extension(path, "npy") {
        write_npy(path, &samples, overwrite)?;
    } else {
        write_npz(path, &[("samples".to_string(), samples)], overwrite)?;
    }
    Ok(())
}
