//! `compile`: a model becomes an artifact.

use super::args::{NamedFile, Sizes};
use super::artifact::label_input;
use super::inspect::per_sample;
use super::report::Failure;
use super::text::{bytes, short};
use super::{request, term};
use clap::{Args, ValueEnum};
use cqc::compile::{LoopOptions, Lowered, compile_loop};
use cqc::io::{FileError, Overwrite, check_target, write_atomic};
use cqc::model::{Model, ModelOptions};
use cqc_proto::cq::{self, Manifest, NullCondition, SourceModel, WriteError};
use cqc_proto::plan::{Constant, InputRole, PlanInput};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_proto::{Tensor, ValueType};
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
    /// Evaluations per computation of what is cached. This version caches nothing: 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub interval: u32,
    /// Number format. This version has float only: none
    #[arg(long, value_name = "KIND", default_value = "none")]
    pub quant: Quant,
    /// Corrections of what caching and quantization change. This version does neither: none
    #[arg(long, value_name = "LIST", default_value = "none", value_delimiter = ',')]
    pub correct: Vec<Correct>,
    /// A TOML file of options: its keys are the long options above. The command line wins
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    None,
    #[value(hide = true)]
    W8a8,
    #[value(hide = true)]
    W4a8,
    #[value(hide = true)]
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Correct {
    None,
    #[value(hide = true)]
    Cache,
    #[value(hide = true)]
    Quant,
}

/// Refuses what the contract of the command line promises and this version lacks.
fn refuse_later_features(args: &CompileArgs) -> Result<(), Failure> {
    let later = |option: &str, value: String, instead: &str| {
        Err(Failure::usage(format!("{option} {value} comes in a later version; use {option} {instead}")))
    };
    let name = |v: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        v().map(|v| v.get_name().to_string()).unwrap_or_default()
    };
    if args.interval != 1 {
        return later("--interval", args.interval.to_string(), "1");
    }
    if args.quant != Quant::None {
        return later("--quant", name(&|| args.quant.to_possible_value()), "none");
    }
    if args.correct.iter().any(|c| *c != Correct::None) {
        let list: Vec<String> = args.correct.iter().map(|c| name(&|| c.to_possible_value())).collect();
        return later("--correct", list.join(","), "none");
    }
    Ok(())
}

pub fn compile(args: &CompileArgs) -> Result<(), Failure> {
    refuse_later_features(args)?;
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_target(&args.output, overwrite)?;
    let (path, found_config) = locate(&args.model)?;
    let sampler = sampler_config(args, found_config.as_deref())?;

    let model = Model::load(&path, &ModelOptions { import: args.sizes.import_options(), stop_after: None }, |_, _| {})?;
    model.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    check_guidance(args, &model)?;
    let mut lowered = compile_loop(&model, &LoopOptions { sampler: sampler.clone(), steps: args.steps })?;
    let null = null_conditions(args, &model, &mut lowered)?;
    let source = SourceModel {
        blake3: model.blake3.clone(),
        opset: model.opset,
        producer: model.producer.clone(),
        parameters: model.parameters,
    };
    let mut manifest = Manifest::new(source, lowered.plan.clone(), sampler, args.steps);
    manifest.guidance = args.guidance.unwrap_or(1.0);
    manifest.null = null;
    write(&args.output, &manifest, &lowered, overwrite)?;
    report(args, &model, &manifest, &lowered)
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

type Nulls = std::collections::BTreeMap<String, NullCondition>;

/// What the unconditional half gets; arrays become constants of the plan.
fn null_conditions(args: &CompileArgs, model: &Model, lowered: &mut Lowered) -> Result<Nulls, Failure> {
    let mut null = Nulls::new();
    if let Some(label) = args.null_label {
        let input = label_input(&model.inputs).map_err(|e| e.help("--null-cond NAME=FILE.npy"))?;
        null.insert(input.name.clone(), NullCondition::Label(label));
    }
    for (name, tensor) in request::read_named(&args.null_cond)? {
        let input = model.inputs.iter().find(|i| i.name == name && i.role == InputRole::Condition);
        let input = input
            .ok_or_else(|| Failure::usage(format!("--null-cond: the model has no conditioning input `{name}`")))?;
        let row = null_row(input, &tensor)?;
        let offset = lowered.weights.len.next_multiple_of(64);
        lowered.plan.constants.push(Constant { name: format!("null of {name}"), ty: row.value_type(), offset });
        lowered.weights.len = offset + row.bytes().len() as u64;
        lowered.weights.parts.push((offset, row));
        null.insert(name, NullCondition::Constant(lowered.plan.constants.len() - 1));
    }
    Ok(null)
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

fn write(path: &Path, manifest: &Manifest, lowered: &Lowered, overwrite: Overwrite) -> Result<(), Failure> {
    let parts = &lowered.weights.parts;
    let written = write_atomic(path, overwrite, |out| {
        cq::encode(out, manifest, |i| Ok(parts[i].1.bytes().clone())).map_err(|e| match e {
            WriteError::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    });
    Ok(written?)
}

fn report(args: &CompileArgs, model: &Model, manifest: &Manifest, lowered: &Lowered) -> Result<(), Failure> {
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
    if !args.json {
        return Ok(());
    }
    term::print_json(&json!({
        "output": args.output, "bytes": size, "sampler": manifest.sampler.kind, "steps": manifest.steps,
        "guidance": manifest.guidance, "parameters": model.parameters,
        "left_the_loop": {
            "table_macs": tables, "table_weight_bytes": saved.table_weight_bytes,
            "prelude_macs": preludes, "prelude_weight_bytes": saved.prelude_weight_bytes,
        },
    }))
}
