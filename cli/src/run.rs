//! `cqc run`: runs one evaluation of a model or an artifact.

use super::args::{MapArgs, ModelArgs, NamedFile, Threads};
use super::device::{Device, say_unused};
use super::report::Failure;
use super::{artifact, request, term, text};
use cachequant::compile::compile_evaluation;
use cachequant::io::{Overwrite, check_target, has_extension, write_npy, write_npz};
use cachequant::model::Model;
use cachequant::model::locate;
use clap::Args;
use cqc_proto::Tensor;
use cqc_proto::plan::{InputRole, ProgramKind};
use cqc_runtime::engine::{Engine, EngineOptions, InFlight, Weights};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Evaluate a model once, with any inputs, and write all outputs
#[derive(Args, Debug)]
#[command(
    after_help = "Without -o a summary of the outputs is printed: type, smallest, largest and mean element.\n\n\
    Examples:\n  \
    cqc run unet.onnx --input sample=x.npy --input timestep=t.npy -o out.npz\n  \
    cqc run unet.cq --step 10 --input sample=x.npy -o out.npz"
)]
pub struct RunArgs {
    /// An .onnx file, a .cq file, or a diffusers pipeline directory as for `compile`
    model: PathBuf,
    /// Value of an input: a .npy file, a .npz file with an array of that name, or a number
    ///
    /// Can be repeated.
    #[arg(short, long, value_name = "NAME=FILE")]
    input: Vec<NamedFile>,
    /// File for the outputs: .npz, or .npy if there is one output [default: print a summary]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Also write an inner value, by its name in the model
    ///
    /// Can be repeated.
    #[arg(long, value_name = "TENSOR")]
    tap: Vec<String>,
    /// .cq: index of the evaluation, whose time step comes from the artifact [default: 0]
    #[arg(long, value_name = "I")]
    step: Option<usize>,
    /// .cq: where the evaluation runs
    ///
    /// A GPU computes the first output only.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// .cq: run the GPU machine code that the artifact brings along
    ///
    /// Use it only for artifacts whose maker may run programs on this machine.
    #[arg(long)]
    artifact_kernels: bool,
    #[command(flatten)]
    map: MapArgs,
    /// .onnx: run only the first N passes
    ///
    /// Earlier graphs have more inner values for --tap.
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
    #[command(flatten)]
    threads: Threads,
    /// Print a summary of the outputs as a JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ModelArgs,
}

impl RunArgs {
    fn engine_options(&self, batch: usize) -> EngineOptions {
        EngineOptions {
            batch,
            threads: self.threads.count(),
            keep: self.tap.clone(),
            ..Default::default()
        }
    }
}

pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    if let Some(path) = &args.output {
        check_format(path)?;
        check_target(path, overwrite)?;
    }
    let inputs = request::read_named(&args.input)?;
    let results = if artifact::is_artifact(&args.model) {
        run_artifact(args, inputs)?
    } else {
        run_model(args, inputs)?
    };
    if let Some(path) = &args.output {
        write(path, &results, overwrite)?;
        tracing::info!("wrote {}", path.display());
    }
    report(args, &results)
}

fn check_format(path: &Path) -> Result<(), Failure> {
    if has_extension(path, "npz") || has_extension(path, "npy") {
        return Ok(());
    }
    Err(Failure::usage(format!("-o {} is neither .npz nor .npy", path.display())))
}

/// Outputs and then taps, each with its name.
type Results = Vec<(String, Tensor)>;

fn run_model(args: &RunArgs, inputs: BTreeMap<String, Tensor>) -> Result<Results, Failure> {
    if args.step.is_some() {
        return Err(Failure::usage(
            "--step is for .cq files; a model's time step is one of its inputs",
        ));
    }
    if args.device == Device::Cuda {
        return Err(Failure::usage("--device is for .cq files; a model runs on the CPU")
            .help("cqc compile makes a .cq"));
    }
    let mut options = args.reading.options(args.stop_after);
    options.import.known_inputs = inputs.clone();
    let model = Model::load(&locate(&args.model)?.model, &options, |_, _| {})?;
    model.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    let lowered = compile_evaluation(&model)?;
    let batch =
        request::batch_of(&model.inputs, model.batch_symbol.as_deref(), model.fixed_batch, &inputs);
    let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
    let mut engine = Engine::open(&weights, &args.engine_options(batch))?;
    let request = engine.run_at(0, &[], &inputs)?;
    Ok(collect(&engine, &request, &args.tap))
}

fn run_artifact(args: &RunArgs, inputs: BTreeMap<String, Tensor>) -> Result<Results, Failure> {
    if args.stop_after.is_some() || !args.reading.is_default() {
        return Err(Failure::usage(
            "--stop-after and the options that say how a model is read are for models; a .cq is compiled already",
        ));
    }
    let artifact = artifact::open(&args.model, args.map)?;
    let plan = artifact.weights().plan();
    let batch =
        request::batch_of(&plan.inputs, plan.batch_symbol.as_deref(), plan.fixed_batch, &inputs);
    let (step, timesteps) = (args.step.unwrap_or(0), artifact::timesteps(&artifact)?);
    // inner values can be read on the CPU only
    let on = if args.tap.is_empty() || args.device == Device::Cuda {
        artifact.find_device(args.device.into(), args.artifact_kernels, &mut say_unused)?
    } else {
        None
    };
    let options = EngineOptions { device: on, ..args.engine_options(batch) };
    let mut engine = Engine::open(artifact.weights(), &options)?;
    if engine.device().is_some() {
        return evaluate(&mut engine, step, &timesteps, &inputs);
    }
    let request = engine.run_at(step, &timesteps, &inputs)?;
    Ok(collect(&engine, &request, &args.tap))
}

/// Runs one full evaluation on a device and returns the first output.
fn evaluate(
    engine: &mut Engine,
    step: usize,
    timesteps: &[f64],
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Results, Failure> {
    let sample = engine.plan().inputs.iter().find(|i| i.role == InputRole::Sample);
    let sample = sample
        .ok_or_else(|| Failure::usage("a plan without a sample runs on the CPU: --device cpu"))?;
    let missing =
        || Failure::usage(format!("input `{}` is missing", sample.name)).fact("wants", &sample.ty);
    let x = inputs.get(&sample.name).ok_or_else(missing)?.to_f32_vec();
    let mut request = engine.begin(inputs, timesteps)?;
    let mut out = vec![0.0; engine.output_shape(0).iter().product()];
    engine.evaluate_as(ProgramKind::Full, &mut request, step, &x, &mut out)?;
    let output = &engine.plan().outputs[0];
    let tensor = Tensor::from_f32(engine.output_shape(0), &out).to_float(output.ty.dtype);
    Ok(vec![(output.name.clone(), tensor)])
}

fn collect(engine: &Engine, request: &InFlight, taps: &[String]) -> Results {
    let mut outputs = engine.outputs(request);
    let order = engine.plan().outputs.iter().map(|o| &o.name);
    let mut results: Results = order.filter_map(|name| outputs.remove_entry(name)).collect();
    for name in taps {
        if let (false, Some(tensor)) =
            (results.iter().any(|(n, _)| n == name), engine.tap(request, name))
        {
            results.push((name.clone(), tensor));
        }
    }
    results
}

fn write(path: &Path, results: &Results, overwrite: Overwrite) -> Result<(), Failure> {
    match &results[..] {
        _ if has_extension(path, "npz") => Ok(write_npz(path, results, overwrite)?),
        [(_, only)] => Ok(write_npy(path, only, overwrite)?),
        _ => Err(Failure::usage(format!(
            "{} can hold one array, there are {}",
            path.display(),
            results.len()
        ))
        .help(format!("-o {}", path.with_extension("npz").display()))),
    }
}

fn report(args: &RunArgs, results: &Results) -> Result<(), Failure> {
    if args.json {
        let entries = results.iter().map(|(name, t)| {
            let [min, max, mean] = text::range(t).map_or([None; 3], |r| r.map(Some));
            json!({"name": name, "dtype": t.dtype(), "shape": t.shape(), "min": min, "max": max, "mean": mean})
        });
        return term::print_json(
            &json!({"output": args.output.as_deref().map(text::shown), "outputs": entries.collect::<Vec<_>>()}),
        );
    }
    if args.output.is_some() {
        return Ok(());
    }
    let rows = results.iter().map(|(name, t)| {
        let numbers = text::range(t)
            .map_or("empty".into(), |[a, b, m]| format!("min {a:.6}  max {b:.6}  mean {m:.6}"));
        vec![name.clone(), t.value_type().to_string(), numbers]
    });
    term::print(&text::columns(&rows.collect::<Vec<_>>()))
}
