//! `cqc bisect`: finds the first evaluation and the first node at which two artifacts or models
//! differ.

mod nodes;

use super::args::{MapArgs, ModelArgs};
use super::lockstep::{Lockstep, crosses};
use super::report::Failure;
use super::sampling::SamplingArgs;
use super::source::{LoopSettings, SampleSource};
use super::text::columns;
use super::{artifact, term};
use clap::Args;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::Request;
use cqc_runtime::noise::Noise;
use nodes::Nodes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Find the first evaluation and node where two artifacts or models differ by more than a limit
#[derive(Args, Debug)]
#[command(
    after_help = "First, both run from the same noise, to find the first evaluation after which a sample x' of B differs from the \
    sample x of A by |x − x'| / |x| > --tolerance. Then both get A's sample before that evaluation, and the values that both \
    compute are compared by name, in A's order. Evaluations that read a cache are not compared node by node.\n\n\
    A model beside an artifact is compiled in memory without caching, for the artifact's sampler and steps. Two models are run \
    with ddim.\n\n\
    Examples:\n  \
    cqc bisect unet.onnx unet.cq\n  \
    cqc bisect old.cq new.cq --tolerance 1e-2 -n 4 --seed 7 --json"
)]
pub struct BisectArgs {
    /// The first one (A), a .cq or an .onnx file
    a: PathBuf,
    /// The second one (B), a .cq or an .onnx file
    b: PathBuf,
    /// Largest relative error that does not count as a difference
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    tolerance: f64,
    /// Number of sampler steps, for two models [default: 50]
    ///
    /// An artifact has its own number of steps.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    #[command(flatten)]
    map: MapArgs,
    /// Print a JSON object on stdout instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    reading: ModelArgs,
}

/// The JSON of `--json`.
#[derive(Debug, Serialize)]
struct Found {
    #[serde(serialize_with = "crate::text::lossy")]
    a: PathBuf,
    #[serde(serialize_with = "crate::text::lossy")]
    b: PathBuf,
    tolerance: f64,
    samples: usize,
    /// Largest relative error of a sample, per evaluation.
    errors: Vec<f64>,
    crossing: Option<Crossing>,
}

#[derive(Debug, Serialize)]
struct Crossing {
    evaluation: usize,
    timestep: f64,
    /// The sample with the largest error at that evaluation.
    sample: usize,
    error: f64,
    nodes: Nodes,
}

pub fn bisect(args: &BisectArgs, quiet: bool) -> Result<(), Failure> {
    let (a, b) = open(args)?;
    let mut lockstep = Lockstep::open(&a, &b, &args.sampling, None)?;
    if !lockstep.in_step() {
        return Err(Failure::usage("the two have different evaluations")
            .fact("seen", format!("{} and {} steps", a.steps, b.steps))
            .help("compile both with the same --steps"));
    }
    let mut progress = lockstep.progress("sampling", quiet);
    let evaluations = lockstep.evaluations();
    let mut errors = vec![0.0f64; evaluations];
    // the earliest evaluation that crosses the limit, and there the largest error, its sample, and
    // A's x before the evaluation
    let mut first: Option<(usize, f64, usize, Vec<f32>)> = None;
    for range in lockstep.chunks() {
        let chunk = lockstep.run(&range, &mut progress)?;
        let len = chunk.reference.len() / range.len();
        for (i, row) in chunk.errors.chunks_exact(evaluations).enumerate() {
            let sample = range.start + i;
            errors
                .iter_mut()
                .zip(row)
                .for_each(|(most, &e)| *most = if e.is_nan() { e } else { most.max(e) });
            let Some(at) = row.iter().position(|&e| crosses(e, args.tolerance)) else { continue };
            if first.as_ref().is_none_or(|(e, error, ..)| at < *e || (at == *e && row[at] > *error))
            {
                let x = match at {
                    0 => initial(&lockstep.request, &a, sample, len)?,
                    _ => chunk.trajectory[at - 1][i * len..][..len].to_vec(),
                };
                first = Some((at, row[at], sample, x));
            }
        }
    }
    drop(progress);
    let crossing = first.map(|(evaluation, error, sample, x)| {
        let timestep = a.sampler()?.evaluations()[evaluation].timestep;
        let nodes = nodes::compare([&a, &b], &lockstep.request, sample, evaluation, &x, args)?;
        Ok::<_, Failure>(Crossing { evaluation, timestep, sample, error, nodes })
    });
    let found = Found {
        a: a.path.clone(),
        b: b.path.clone(),
        tolerance: args.tolerance,
        samples: lockstep.request.samples,
        errors,
        crossing: crossing.transpose()?,
    };
    if args.json { term::print_json(&found) } else { term::print(&text(&found)) }
}

/// Opens both sides. A model beside an artifact gets the artifact's trajectory.
fn open(args: &BisectArgs) -> Result<(SampleSource, SampleSource), Failure> {
    if args.steps.is_some() && [&args.a, &args.b].iter().any(|path| artifact::is_artifact(path)) {
        return Err(Failure::usage(
            "--steps is for two models; an artifact has its own number of steps",
        ));
    }
    let own = || LoopSettings {
        config: SamplerConfig::default(),
        steps: args.steps.unwrap_or(50),
        guidance: 1.0,
        rescale: 0.0,
        interval: None,
        fills: BTreeMap::new(),
        null: BTreeMap::new(),
        reading: args.reading.clone(),
    };
    if artifact::is_artifact(&args.b) {
        let b = SampleSource::open(&args.b, args.map, own)?;
        return Ok((SampleSource::open(&args.a, args.map, || b.trajectory(&args.reading))?, b));
    }
    let a = SampleSource::open(&args.a, args.map, own)?;
    let b = SampleSource::open(&args.b, args.map, || a.trajectory(&args.reading))?;
    Ok((a, b))
}

/// The sample before the first evaluation.
fn initial(
    request: &Request,
    denoiser: &SampleSource,
    sample: usize,
    len: usize,
) -> Result<Vec<f32>, Failure> {
    let mut x = vec![0.0; len];
    match &request.noise {
        Some(noise) => x.copy_from_slice(&noise.to_f32_vec()[sample * len..][..len]),
        None => Noise::new(request.seed, request.first.wrapping_add(sample as u64), 1).fill(&mut x),
    }
    let scale = denoiser.sampler()?.initial_scale();
    x.iter_mut().for_each(|x| *x *= scale);
    Ok(x)
}

/// Number of nodes in the table of the largest errors.
const MOST_ROWS: usize = 5;

fn text(found: &Found) -> String {
    let most = found.errors.iter().copied().fold(0.0, f64::max);
    let last = found.errors.last().copied().unwrap_or(0.0);
    let mut out = format!(
        "{} and {}: {} samples, {} evaluations; relative error of x at most {most:.3e}, {last:.3e} at the end\n",
        found.a.display(),
        found.b.display(),
        found.samples,
        found.errors.len()
    );
    let Some(crossing) = &found.crossing else {
        let _ = writeln!(out, "nothing differs by more than {:e}", found.tolerance);
        return out;
    };
    let _ = writeln!(
        out,
        "first evaluation that differs by more than {:e}: {} (time step {}), sample {}, by {:.3e}",
        found.tolerance, crossing.evaluation, crossing.timestep, crossing.sample, crossing.error
    );
    let nodes = &crossing.nodes;
    if let Some(why) = &nodes.not_compared {
        let _ = writeln!(out, "nodes are not compared: {why}");
        return out;
    }
    let _ = writeln!(
        out,
        "starting from A's sample before it, {} values that both compute are compared:",
        nodes.compared
    );
    match nodes.first.map(|first| &nodes.values[first]) {
        Some(node) => {
            let half = node.half.map_or(String::new(), |half| format!(", {half} half"));
            let _ = writeln!(out, "first node: {} ({}){half}, by {:.3e}", node.name, node.op, node.error);
        }
        None => out.push_str(
            "no value differs by more: the error comes from earlier evaluations, from guidance, or from values that only one side has\n",
        ),
    }
    let mut worst: Vec<_> = nodes.values.iter().filter(|n| n.error != 0.0).collect();
    worst.sort_by(|a, b| b.error.total_cmp(&a.error));
    let rows = worst
        .iter()
        .take(MOST_ROWS)
        .map(|n| vec![format!("{:.3e}", n.error), n.op.clone(), n.name.clone()]);
    if !worst.is_empty() {
        out.push_str("largest errors\n");
    }
    out.push_str(&columns(&rows.collect::<Vec<_>>()));
    out
}
