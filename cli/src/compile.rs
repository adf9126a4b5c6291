//! `compile`: a model becomes an artifact.

mod budget;
mod caching;
mod page;
mod quantizing;
mod reporting;

use super::args::{NamedFile, Sizes};
use super::artifact::{label_input, labels_as};
use super::device::{Target, compile_kernels};
use super::inspect::per_sample;
use super::report::Failure;
use super::text::{bytes, short};
use super::{request, term};
use caching::{CachingArgs, Decision, Trajectory, manifest_schedule};
use clap::{Args, ValueEnum};
use cachequant::calibrate::Choice;
use cachequant::compile::{CachedLoop, LoopOptions, Lowered, assemble_loop, compile_loop, cut_loop};
use cachequant::io::{FileError, Overwrite, check_target, write_atomic};
use cachequant::model::{Model, ModelOptions};
use cachequant::stages::Stages;
use cqc_proto::cq::{self, Manifest, NullCondition, Schedule, SourceModel, WriteError};
use cqc_proto::plan::{Constant, InputRole, PlanInput};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_proto::{Tensor, ValueType};
use quantizing::{QuantDecision, QuantizingArgs};
use reporting::Compilation;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};

/// Compile a model and its denoising loop into one file
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cqc compile unet.onnx -o unet.cq\n  \
    cqc compile unet.onnx --sampler dpmpp-2m --steps 20 -o unet.cq\n  \
    cqc compile unet.onnx --scheduler-config scheduler_config.json -o unet.cq\n  \
    cqc compile dit.onnx --guidance 2.0 --null-label 8 -o dit.cq\n  \
    cqc compile unet.onnx --interval 10 --cut shallow -o unet.cq\n  \
    cqc compile unet.onnx --report unet.html -o unet.cq\n  \
    cqc compile unet.onnx --quant bf16 -o unet.cq\n  \
    cqc compile unet.onnx --dim height=64 --dim width=64 --recipe sd.toml -o sd.cq\n\n\
    Without --scheduler-config the sampler has the defaults of diffusers' scheduler class for --sampler:\n\
    1000 training steps, linear betas 1e-4 to 0.02, epsilon prediction; for ddim leading spacing, eta 0, clip_sample \
    and set_alpha_to_one on.")]
pub struct CompileArgs {
    /// An .onnx file, or a diffusers pipeline directory with an exported unet/model.onnx or transformer/model.onnx
    pub model: PathBuf,
    /// The artifact, a .cq file
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// Sampling steps
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub steps: usize,
    /// Keep the part of the network that depends on the time step alone in the file, so that `sample --steps` takes any number; without it,
    /// those that lead to compiled time steps
    #[arg(long)]
    pub any_steps: bool,
    /// Sampler [default: that of the scheduler configuration, else ddim]
    #[arg(long, value_name = "NAME", value_parser = ["ddim", "ddpm", "plms", "euler", "dpmpp-2m"])]
    pub sampler: Option<String>,
    /// diffusers' scheduler_config.json; in a pipeline directory it is found by itself
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// DDIM: share of DDPM's noise added per step, 0 to 1 [default: 0]
    #[arg(long, value_name = "X")]
    pub eta: Option<f64>,
    /// Classifier-free guidance scale that `sample` uses unless told otherwise; 1 is off [default: 1]
    #[arg(long, value_name = "S")]
    pub guidance: Option<f32>,
    /// Label that the unconditional half of guidance gets
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub null_label: Option<i64>,
    /// Value of an input for the unconditional half of guidance. Repeatable
    #[arg(long, value_name = "NAME=FILE")]
    pub null_cond: Vec<NamedFile>,
    #[command(flatten)]
    pub sizes: Sizes,
    /// Number format: w8a8, w4a8, bf16 or none. With w8a8 and w4a8 convolutions, linear layers and attention multiply integers
    /// (AVX2, AVX-VNNI, AVX-512 VNNI, AMX). With bf16 they multiply bf16 (AMX, AVX-512 BF16; elsewhere in float, rounded to bf16), and
    /// nothing is fitted
    #[arg(long, value_name = "KIND", default_value = "w8a8")]
    pub quant: Quant,
    /// What may be corrected: cache (where it helps on held-out calibration samples), quant (sums of quantized layers that read the
    /// cache), quant=all (of all quantized layers), or none
    #[arg(long, value_name = "LIST", default_value = "cache,quant", value_delimiter = ',')]
    pub correct: Vec<Correct>,
    /// Also put CUDA kernels for an architecture into the artifact, e.g. cuda:sm_90, so that a machine with such a GPU needs no compiler.
    /// Needs NVRTC and no GPU. Repeatable
    #[arg(long, value_name = "cuda:ARCH")]
    pub target: Vec<Target>,
    /// A TOML file of options: its keys are the long options above. The command line wins
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Also write a page that shows what was decided, what it costs, and what caching and quantization do to held-out calibration samples,
    /// step by step and layer by layer
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    // last: what follows would stand under its heading
    #[command(flatten)]
    pub caching: CachingArgs,
    #[command(flatten)]
    pub quantizing: QuantizingArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    None,
    W8a8,
    W4a8,
    Bf16,
}

impl Quant {
    /// Bits of integer weights, where there are such.
    fn weight_bits(self) -> Option<u8> {
        match self {
            Quant::None | Quant::Bf16 => None,
            Quant::W8a8 => Some(8),
            Quant::W4a8 => Some(4),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Correct {
    None,
    Cache,
    #[value(alias = "quant=cut")]
    Quant,
    #[value(name = "quant=all")]
    QuantAll,
}

/// Refuses options that contradict each other.
fn check_options(args: &CompileArgs) -> Result<(), Failure> {
    if args.quant == Quant::Bf16 {
        args.quantizing.check_bf16()?;
    }
    if args.correct.len() > 1 && args.correct.contains(&Correct::None) {
        return Err(Failure::usage("--correct none excludes everything else"));
    }
    Ok(())
}

pub fn compile(args: &CompileArgs, quiet: bool) -> Result<(), Failure> {
    check_options(args)?;
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_target(&args.output, overwrite)?;
    reporting::check(args, overwrite)?;
    let kernels = compile_kernels(&args.target)?;
    let (path, found_config) = locate(&args.model)?;
    let sampler = sampler_config(args, found_config.as_deref())?;

    let model = Model::load(&path, &ModelOptions { import: args.sizes.import_options(), stop_after: None }, |_, _| {})?;
    model.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    check_guidance(args, &model)?;
    let bf16 = (args.quant == Quant::Bf16).then(|| args.quantizing.spec(16, &model)).transpose()?;
    let options = LoopOptions { sampler: sampler.clone(), steps: args.steps, any_steps: args.any_steps, bf16 };
    let null = null_rows(args, &model)?;
    let cached = match args.caching.caches() {
        true => Some(cut_loop(&model, &options, &args.caching.cut)?),
        false => None,
    };
    let mut trajectory = trajectory(args, &model, &sampler, &null);
    let stages = stages(args, &model, &options)?;
    trajectory.samples = afforded(args, &model, &options, cached.as_ref(), &trajectory, &stages)?;
    let trajectory = trajectory;
    let correct = args.correct.contains(&Correct::Cache);
    let decide =
        |cached: &CachedLoop| caching::decide(&args.caching, correct, &model, cached, &trajectory, &stages, quiet);
    let decision = cached.as_ref().map(decide).transpose()?;
    let quantized = match args.quant.weight_bits() {
        None => None,
        Some(_) => {
            let cached = cached.as_ref().zip(decision.as_ref().map(|d| &d.choice));
            Some(quantize(args, args.quant, &model, &options, cached, &trajectory, &stages, quiet)?)
        }
    };
    let (mut lowered, corrections) = match (&quantized, &cached, &decision) {
        (Some(quantized), Some(cached), Some(decision)) => {
            let refitted = quantized.quantized.fitted.cache.as_ref();
            let tables = refitted.or(decision.choice.tables.as_ref().map(|(_, tables)| tables));
            quantizing::lower(&cached.assemble(&decision.choice.full, tables)?, &quantized.quantized)?
        }
        (Some(quantized), ..) => quantizing::lower(&assemble_loop(&model, &options)?, &quantized.quantized)?,
        (None, Some(cached), Some(decision)) => cached.decided(&decision.choice)?,
        _ => (compile_loop(&model, &options)?, vec![]),
    };
    let null = null_conditions(null, &mut lowered);
    let source = SourceModel {
        blake3: model.blake3.clone(),
        opset: model.opset,
        producer: model.producer.clone(),
        parameters: model.parameters,
    };
    let mut manifest = Manifest::new(source, lowered.plan.clone(), sampler.clone(), args.steps);
    manifest.guidance = args.guidance.unwrap_or(1.0);
    manifest.null = null;
    if let Some(Decision { choice, calibration }) = &decision {
        manifest.schedule = Schedule::Cached(manifest_schedule(&args.caching, choice, corrections));
        manifest.calibration = Some(calibration.clone());
    }
    if let Some(decision) = &quantized {
        manifest.quant = quantizing::manifest_quant(&args.quantizing, args.quant, &decision.quantized, &mut lowered);
        manifest.plan = lowered.plan.clone();
        manifest.calibration = Some(decision.calibration.clone());
    }
    if let Some(products) = &lowered.bf16 {
        manifest.quant = quantizing::manifest_bf16(products, &lowered.plan);
    }
    write(&args.output, &manifest, &lowered, kernels.as_deref(), overwrite)?;
    let (cached, quantized) = (cached.as_ref().zip(decision.as_ref()), quantized.as_ref());
    if let Some(path) = &args.report {
        let (model, options, trajectory, manifest, lowered) = (&model, &options, &trajectory, &manifest, &lowered);
        let compilation = Compilation { args, model, options, trajectory, cached, quantized, manifest, lowered };
        reporting::write(path, &compilation, overwrite, quiet)?;
    }
    report(args, &model, &manifest, &lowered, cached, quantized)
}

fn quantize(
    args: &CompileArgs,
    kind: Quant,
    model: &Model,
    options: &LoopOptions,
    cached: Option<(&CachedLoop, &Choice)>,
    trajectory: &Trajectory,
    stages: &Stages,
    quiet: bool,
) -> Result<QuantDecision, Failure> {
    let wanted = (&args.caching, &args.quantizing, kind, &args.correct[..]);
    match cached {
        Some((cached, choice)) => {
            let tables = choice.tables.as_ref().map(|(_, tables)| tables);
            let assembled = cached.assemble(&choice.full, tables)?;
            let float = cached.uncorrected()?;
            quantizing::decide(wanted, model, &assembled, Some(choice), &float, trajectory, stages, quiet)
        }
        None => {
            let float = compile_loop(model, options)?;
            quantizing::decide(wanted, model, &assemble_loop(model, options)?, None, &float, trajectory, stages, quiet)
        }
    }
}

/// Calibration samples that `--budget` is enough for.
fn afforded(
    args: &CompileArgs,
    model: &Model,
    options: &LoopOptions,
    cached: Option<&CachedLoop>,
    trajectory: &Trajectory,
    stages: &Stages,
) -> Result<usize, Failure> {
    let Some(budget) = args.caching.budget else { return Ok(trajectory.samples) };
    let (quant, correct) = (args.quant, &args.correct[..]);
    if cached.is_none() && quant.weight_bits().is_none() {
        return Err(Failure::usage("--budget: nothing is calibrated").help("leave it out"));
    }
    let float = cached.map_or_else(|| compile_loop(model, options), CachedLoop::uncorrected)?;
    let work = budget::Work { caching: &args.caching, quantizing: &args.quantizing, quant, correct };
    budget::samples(budget, &work, model, &float, trajectory, stages)
}

/// Where results of calibration are kept, for this model and loop.
fn stages(args: &CompileArgs, model: &Model, options: &LoopOptions) -> Result<Stages, Failure> {
    let Some(directory) = &args.caching.work_dir else { return Ok(Stages::none()) };
    let shapes: Vec<String> = model.inputs.iter().map(|i| i.ty.to_string()).collect();
    let sampler = serde_json::to_vec(&options.sampler).expect("a sampler's configuration is plain data");
    let text = format!("{} {} {shapes:?} {:?}", env!("CARGO_PKG_VERSION"), options.steps, options.bf16);
    let stages = Stages::new(directory)?.depending_on(model.blake3.as_bytes()).depending_on(&sampler);
    Ok(stages.depending_on(text.as_bytes()))
}

/// What calibration runs.
fn trajectory<'a>(args: &CompileArgs, model: &Model, sampler: &'a SamplerConfig, null: &NullRows) -> Trajectory<'a> {
    let tensor = |(name, row): (&String, &NullRow)| {
        let input = model.inputs.iter().find(|i| i.name == *name).expect("it was looked up there");
        let tensor = match row {
            NullRow::Label(label) => labels_as(input, &[*label]),
            NullRow::Row(row) => row.clone(),
        };
        (name.clone(), tensor)
    };
    Trajectory {
        sampler,
        steps: args.steps,
        samples: args.caching.samples(),
        guidance: args.guidance.unwrap_or(1.0),
        null_label: args.null_label,
        unconditional: null.iter().map(tensor).collect(),
    }
}

/// The model's file and, in a pipeline directory, its scheduler configuration.
fn locate(path: &Path) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    if !path.is_dir() {
        return Ok((path.to_path_buf(), None));
    }
    const PLACES: [&str; 3] = ["unet/model.onnx", "transformer/model.onnx", "model.onnx"];
    let model = PLACES.iter().map(|place| path.join(place)).find(|p| p.is_file());
    let model = model.ok_or_else(|| {
        Failure::failed(format!("{} holds no exported denoiser", path.display()))
            .fact("wants", PLACES.join(", "))
            .help("export the pipeline to ONNX first, e.g. with optimum-cli export onnx")
    })?;
    let config = path.join("scheduler/scheduler_config.json");
    let config = if config.is_file() { Some(config) } else { None };
    Ok((model, config))
}

fn sampler_config(args: &CompileArgs, found: Option<&Path>) -> Result<SamplerConfig, Failure> {
    let kind: Option<SamplerKind> = args.sampler.as_deref().map(str::parse).transpose()?;
    let mut config = match args.scheduler_config.as_deref().or(found) {
        None => SamplerConfig::of_kind(kind.unwrap_or(SamplerKind::Ddim)),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(FileError::reading(path))?;
            let read = SamplerConfig::from_diffusers_json(&text, kind);
            read.map_err(|e| Failure::from(e).fact("file", path.display()))?
        }
    };
    if let Some(eta) = args.eta {
        if config.kind != SamplerKind::Ddim {
            return Err(Failure::usage(format!("--eta is for ddim, the sampler is {}", config.kind)));
        }
        config.eta = eta;
    }
    config.validate().map_err(|e| Failure::usage(e.to_string()))?;
    Ok(config)
}

fn check_guidance(args: &CompileArgs, model: &Model) -> Result<(), Failure> {
    let guidance = args.guidance.unwrap_or(1.0);
    if !guidance.is_finite() {
        return Err(Failure::usage(format!("--guidance {guidance} is no number")));
    }
    if guidance != 1.0 && model.input(InputRole::Condition).is_none() {
        let inputs: Vec<&str> = model.inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(Failure::usage(format!("--guidance {guidance}: the model has no conditioning input"))
            .fact("inputs", inputs.join(", ")));
    }
    Ok(())
}

/// What one input of the unconditional half gets.
enum NullRow {
    Label(i64),
    Row(Tensor),
}

type NullRows = std::collections::BTreeMap<String, NullRow>;

/// What the unconditional half gets.
fn null_rows(args: &CompileArgs, model: &Model) -> Result<NullRows, Failure> {
    let mut null = NullRows::new();
    if let Some(label) = args.null_label {
        let input = label_input(&model.inputs).map_err(|e| e.help("--null-cond NAME=FILE.npy"))?;
        null.insert(input.name.clone(), NullRow::Label(label));
    }
    for (name, tensor) in request::read_named(&args.null_cond)? {
        let input = model.inputs.iter().find(|i| i.name == name && i.role == InputRole::Condition);
        let input = input
            .ok_or_else(|| Failure::usage(format!("--null-cond: the model has no conditioning input `{name}`")))?;
        let row = null_row(input, &tensor)?;
        null.insert(name, NullRow::Row(row));
    }
    Ok(null)
}

/// As the manifest has it; arrays become constants of the plan.
fn null_conditions(rows: NullRows, lowered: &mut Lowered) -> std::collections::BTreeMap<String, NullCondition> {
    let condition = |(name, row): (String, NullRow)| {
        let row = match row {
            NullRow::Label(label) => return (name, NullCondition::Label(label)),
            NullRow::Row(row) => row,
        };
        let offset = lowered.weights.len.next_multiple_of(64);
        lowered.plan.constants.push(Constant {
            name: format!("null of {name}"),
            ty: row.value_type(),
            offset,
            codes: None,
        });
        lowered.weights.len = offset + row.bytes().len() as u64;
        lowered.weights.parts.push((offset, row));
        (name, NullCondition::Constant(lowered.plan.constants.len() - 1))
    };
    rows.into_iter().map(condition).collect()
}

/// One row in the input's type; the axis of rows may be left out.
fn null_row(input: &PlanInput, given: &Tensor) -> Result<Tensor, Failure> {
    let mut shape = given.shape().to_vec();
    if shape.len() + 1 == input.ty.rank() {
        shape.insert(0, 1);
    }
    let wanted: Vec<_> = [1.into()].into_iter().chain(input.ty.shape.iter().skip(1).cloned()).collect();
    let wanted = ValueType::new(input.ty.dtype, wanted);
    let both_float = given.dtype().is_float() && wanted.dtype.is_float();
    if (given.dtype() != wanted.dtype && !both_float) || wanted.fixed_shape().as_ref() != Some(&shape) {
        return Err(Failure::failed(format!("--null-cond: `{}` has the wrong type", input.name))
            .fact("wants", wanted)
            .fact("seen", given.value_type()));
    }
    let row = if both_float { given.to_float(wanted.dtype) } else { given.clone() };
    row.reshaped(shape).map_err(|e| Failure::failed(e.to_string()))
}

fn write(
    path: &Path,
    manifest: &Manifest,
    lowered: &Lowered,
    kernels: Option<&[u8]>,
    overwrite: Overwrite,
) -> Result<(), Failure> {
    let parts = &lowered.weights.parts;
    let written = write_atomic(path, overwrite, |out| {
        cq::encode_with(out, manifest, kernels, |i| Ok(parts[i].1.bytes().clone())).map_err(|e| match e {
            WriteError::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    });
    Ok(written?)
}

fn report(
    args: &CompileArgs,
    model: &Model,
    manifest: &Manifest,
    lowered: &Lowered,
    cached: Option<(&CachedLoop, &Decision)>,
    quantized: Option<&QuantDecision>,
) -> Result<(), Failure> {
    let size = args.output.metadata().map_or(0, |m| m.len());
    let batch = model.batch_symbol.as_deref();
    let saved = &lowered.saved;
    let [tables, preludes] = [&saved.table_macs, &saved.prelude_macs].map(|macs| per_sample(macs, batch));
    tracing::info!(
        "{}: {}, {} in {} steps, guidance {}",
        args.output.display(),
        bytes(size),
        manifest.sampler.kind,
        manifest.steps,
        manifest.guidance
    );
    tracing::info!(
        "left the loop: {} MACs and {} of weights to tables, {} MACs and {} of weights to preludes",
        short(tables as f64),
        bytes(saved.table_weight_bytes),
        short(preludes as f64),
        bytes(saved.prelude_weight_bytes)
    );
    let caching = cached.map(|(cached, decision)| caching::report(cached, decision));
    let quantized = match (quantized, &lowered.bf16) {
        (Some(decision), _) => Some(quantizing::report(decision, args.quant)),
        (None, products) => products.as_ref().map(|products| quantizing::report_bf16(products, &lowered.plan)),
    };
    if !args.json {
        return Ok(());
    }
    term::print_json(&json!({
        "output": args.output, "bytes": size, "sampler": manifest.sampler.kind, "steps": manifest.steps,
        "guidance": manifest.guidance, "parameters": model.parameters, "caching": caching, "quant": quantized,
        "left_the_loop": {
            "table_macs": tables, "table_weight_bytes": saved.table_weight_bytes,
            "prelude_macs": preludes, "prelude_weight_bytes": saved.prelude_weight_bytes,
        },
    }))
}
