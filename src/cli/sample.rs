//! `sample`: the whole denoising loop.

use super::args::{NamedFile, Shard, Threads};
use super::artifact::{Artifact, label_input, labels_as};
use super::report::Failure;
use super::term::Progress;
use super::trace::Trace;
use super::{artifact, request, term};
use clap::Args;
use cqc::io::{Overwrite, check_target, has_extension, read_array, write_npy, write_npz, write_png};
use cqc_proto::Tensor;
use cqc_proto::plan::{InputRole, Plan};
use cqc_runtime::denoise::{Loop, Request};
use cqc_runtime::engine::EngineOptions;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run the denoising loop of an artifact: noise in, samples out
#[derive(Args, Debug)]
#[command(after_help = "Sample I of a seed is the same whatever --batch, --threads and --shard. Examples:\n  \
    cqc sample unet.cq -n 16 --seed 0 -o grid.png\n  \
    cqc sample dit.cq -n 8 --labels 0,1,2 --guidance 2.0 -o samples.npy\n  \
    cqc sample unet.cq -n 50000 --shard 3/8 --batch 16 -o part3.npz\n  \
    cqc sample unet.cq --noise x.npy -o y.npy")]
pub struct SampleArgs {
    /// A .cq file
    artifact: PathBuf,
    /// Number of samples [default: as many as --noise has, else 1]
    #[arg(short = 'n', long, value_name = "N")]
    samples: Option<usize>,
    /// Seed of all noise
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Initial noise of unit variance [N,C,H,W] instead of the seed's: .npy, or .npz with an array `noise`
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Where the samples go: .png (a grid; images only), .npy, or .npz (array `samples`)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Class labels, repeated over the samples in turn
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    labels: Vec<i64>,
    /// Value of a conditioning input, one row per sample or one for all. Repeatable
    #[arg(long, value_name = "NAME=FILE")]
    cond: Vec<NamedFile>,
    /// Classifier-free guidance scale, 1 is off [default: the artifact's]
    #[arg(long, value_name = "S")]
    guidance: Option<f32>,
    /// Label of guidance's unconditional half [default: the artifact's]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    null_label: Option<i64>,
    /// Value of an input for guidance's unconditional half [default: the artifact's]. Repeatable
    #[arg(long, value_name = "NAME=FILE")]
    null_cond: Vec<NamedFile>,
    /// Samples computed at once [default: 8, or all if there are fewer]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    #[command(flatten)]
    threads: Threads,
    /// Compute only part I of COUNT consecutive parts, I from 0
    #[arg(long, value_name = "I/COUNT")]
    shard: Option<Shard>,
    /// Write a Chrome trace of every evaluation and operator (chrome://tracing, ui.perfetto.dev)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

const DEFAULT_BATCH: usize = 8;

pub fn sample(args: &SampleArgs, quiet: bool) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_outputs(args, overwrite)?;
    let artifact = artifact::open(&args.artifact)?;
    let (request, range) = request_of(args, &artifact)?;
    check_image(args, &artifact)?;
    let guided = request.guidance != 1.0;
    let batch = args.batch.map_or(DEFAULT_BATCH.min(request.samples), |b| b as usize);
    let options =
        EngineOptions { batch, threads: args.threads.count(), profile: args.trace.is_some(), ..Default::default() };
    let mut denoiser = Loop::open(&artifact.weights, artifact.sampler()?, guided, &options)?;

    let evaluations = denoiser.sampler().evaluations().len();
    let rounds = request.samples.div_ceil(denoiser.width());
    let mut progress = Progress::new("sampling", (rounds * evaluations) as u64, quiet);
    let mut trace = args.trace.as_ref().map(|_| Trace::begin());
    let start = Instant::now();
    let samples = denoiser.sample(&request, &mut |moment| {
        progress.step();
        if let Some(trace) = &mut trace {
            trace.after_evaluation(moment);
        }
        ControlFlow::Continue(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    drop(progress);

    write(&args.output, samples, overwrite)?;
    if let (Some(trace), Some(path)) = (trace, &args.trace) {
        trace.write(path, overwrite)?;
    }
    let per_evaluation = seconds * 1e3 / (rounds * evaluations) as f64;
    tracing::info!(
        "{} samples in {seconds:.2} s, {per_evaluation:.2} ms per evaluation of {}: {}",
        request.samples,
        denoiser.width(),
        args.output.display()
    );
    if args.json {
        return term::print_json(&json!({
            "output": args.output, "samples": request.samples, "first": range.start, "seed": args.seed,
            "guidance": request.guidance, "evaluations": evaluations, "batch": denoiser.width(),
            "seconds": seconds, "ms_per_evaluation": per_evaluation,
        }));
    }
    Ok(())
}

fn check_outputs(args: &SampleArgs, overwrite: Overwrite) -> Result<(), Failure> {
    if !["png", "npy", "npz"].iter().any(|e| has_extension(&args.output, e)) {
        return Err(Failure::usage(format!("-o {} is neither .png nor .npy nor .npz", args.output.display())));
    }
    check_target(&args.output, overwrite)?;
    args.trace.iter().try_for_each(|path| check_target(path, overwrite))?;
    Ok(())
}

/// Latents are refused before the work, not after it.
fn check_image(args: &SampleArgs, artifact: &Artifact) -> Result<(), Failure> {
    let sample = artifact.weights.plan().inputs.iter().find(|i| i.role == InputRole::Sample);
    let shape = sample.map(|i| &i.ty.shape[..]);
    let image = matches!(shape, Some([_, c, _, _]) if c.is(1) || c.is(3));
    if image || !has_extension(&args.output, "png") {
        return Ok(());
    }
    let seen = sample.map_or("no sample".to_string(), |i| i.ty.to_string());
    Err(Failure::usage(format!(
        "{} cannot hold the samples: a PNG takes [N,1,H,W] or [N,3,H,W]",
        args.output.display()
    ))
    .fact("seen", seen)
    .help(format!("-o {}", args.output.with_extension("npy").display())))
}

/// What to compute, and which samples of the whole that is.
fn request_of(args: &SampleArgs, artifact: &Artifact) -> Result<(Request, Range<usize>), Failure> {
    let noise = args.noise.as_ref().map(|path| read_array(path, "noise")).transpose()?;
    let rows = noise.as_ref().map(|t| t.shape().first().copied().unwrap_or(0));
    let total = args.samples.or(rows).unwrap_or(1);
    if total == 0 {
        return Err(Failure::usage("no samples are asked for").help("-n 1 or more"));
    }
    if let Some(rows) = rows.filter(|&rows| rows < total) {
        return Err(Failure::usage(format!("--noise has {rows} samples, -n asks for {total}")));
    }
    let range = args.shard.map_or(0..total, |shard| shard.range(total));
    if range.is_empty() {
        return Err(Failure::usage(format!("the shard holds none of the {total} samples")).help("fewer shards"));
    }
    let plan = artifact.weights.plan();
    let mut conditions = request::read_named(&args.cond)?;
    if !args.labels.is_empty() {
        let input = label_input(&plan.inputs)?;
        let labels: Vec<i64> = range.clone().map(|i| args.labels[i % args.labels.len()]).collect();
        conditions.insert(input.name.clone(), labels_as(input, &labels));
    }
    check_conditions(plan, &conditions)?;
    let guidance = args.guidance.unwrap_or(artifact.manifest.guidance);
    if guidance != 1.0 && conditions.is_empty() {
        return Err(Failure::usage(format!("--guidance {guidance}: the model has no conditioning to guide it by")));
    }
    let noise = noise.map(|t| part(t, &range, None)).transpose()?;
    let conditions = conditions.into_iter().map(|(name, t)| Ok((name, part(t, &range, Some(total))?)));
    let request = Request {
        samples: range.len(),
        seed: args.seed,
        first: range.start as u64,
        noise,
        conditions: conditions.collect::<Result<_, Failure>>()?,
        unconditional: unconditional(args, artifact)?,
        guidance,
    };
    Ok((request, range))
}

fn check_conditions(plan: &Plan, given: &BTreeMap<String, Tensor>) -> Result<(), Failure> {
    let mut conditions = plan.inputs.iter().filter(|i| i.role == InputRole::Condition);
    let Some(missing) = conditions.find(|i| !given.contains_key(&i.name)) else { return Ok(()) };
    let labels = if missing.ty.dtype.is_integer() { "--labels A,B,.. or " } else { "" };
    Err(Failure::usage(format!("input `{}` is missing", missing.name))
        .fact("wants", &missing.ty)
        .help(format!("{labels}--cond {}=FILE.npy", missing.name)))
}

/// The rows of `range`. Where `total` is given, only of a tensor with as many rows; others are for all samples, or wrong.
fn part(t: Tensor, range: &Range<usize>, total: Option<usize>) -> Result<Tensor, Failure> {
    let rows = t.shape().first().copied().unwrap_or(0);
    if total.is_some_and(|total| rows != total) || rows < range.end {
        return Ok(t);
    }
    let size = t.bytes().len() / rows;
    let mut shape = t.shape().to_vec();
    shape[0] = range.len();
    let bytes = t.bytes().slice(range.start * size..range.end * size);
    Tensor::new(t.dtype(), shape, bytes).map_err(|e| Failure::failed(e.to_string()))
}

/// What the unconditional half gets: the artifact's, and over it the command line's.
fn unconditional(args: &SampleArgs, artifact: &Artifact) -> Result<BTreeMap<String, Tensor>, Failure> {
    let mut values = artifact.null_conditions()?;
    if let Some(label) = args.null_label {
        let input = label_input(&artifact.manifest.plan.inputs)?;
        values.insert(input.name.clone(), labels_as(input, &[label]));
    }
    values.extend(request::read_named(&args.null_cond)?);
    Ok(values)
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
