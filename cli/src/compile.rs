//! `cqc compile`: reads a model and a recipe, compiles the loop and writes the artifact.
//!
//! The work is done by [`cachequant::compile()`]. This file maps the options to a recipe, shows the
//! progress, refuses an artifact whose quality is below the floor, and logs what was decided.

mod options;
mod page;

use super::args::ModelArgs;
use super::report::{Exit, Failure};
use super::text::{bytes, short};
use super::{term, text};
use cachequant::Model;
use cachequant::ModelOptions;
use cachequant::compile::{Compiled, FLOOR, Phase, Proposal, QuantSummary, Summary, proposals};
use cachequant::io::{FileError, Overwrite, check_target, write_atomic};
use cachequant::model::{Located, locate};
use cachequant::pipeline::{Directory, PartOptions, Parts, load_denoiser};
use cachequant::reading::{Reading, Verdict};
use cachequant::recipe::{Quant, Recipe, SchedulerConfig};
use cachequant::report::FileFacts;
use clap::Args;
use options::{CachingArgs, LoopArgs, QuantizingArgs};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Compile a model and its denoising loop into one file
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cqc compile unet.onnx -o unet.cq\n  \
    cqc compile unet.onnx --sampler dpm-multistep --steps 20 -o unet.cq\n  \
    cqc compile unet.onnx --scheduler-config scheduler_config.json -o unet.cq\n  \
    cqc compile dit.onnx --guidance 2.0 --null-label 8 -o dit.cq\n  \
    cqc compile unet.onnx --interval 10 --cut shallow -o unet.cq\n  \
    cqc compile unet.onnx --report unet.html -o unet.cq\n  \
    cqc compile unet.onnx --quant bf16 -o unet.cq\n  \
    cqc compile unet.onnx --dim height=64 --dim width=64 --recipe sd.toml -o sd.cq\n\n\
    Without --scheduler-config the sampler has the defaults of the diffusers scheduler class for --sampler: \
    1000 training steps, linear betas from 1e-4 to 0.02, and epsilon prediction. For ddim these are also leading spacing, \
    eta 0, clip_sample and set_alpha_to_one.")]
pub struct CompileArgs {
    /// The model: an .onnx file, or the directory of an exported diffusers pipeline
    ///
    /// The directory must hold an exported unet/model.onnx or transformer/model.onnx. If it also
    /// holds text encoders or a decoder, the artifact holds the whole pipeline.
    model: PathBuf,
    /// Compile only one network of a pipeline directory, e.g. unet or transformer
    ///
    /// FOLDER is a folder of the directory that holds a model.onnx. The artifact then holds the
    /// loop alone.
    #[arg(long, value_name = "FOLDER")]
    component: Option<PathBuf>,
    /// Prompts for the calibration set, one per line [default: a built-in list of 32 captions]
    ///
    /// `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The artifact to write, a .cq file
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Write the artifact even if its quality is below the limit
    ///
    /// The limit is --target-psnr; without that option it is 30 dB to the float loop on held-out
    /// samples, for models that pass the test of the prediction.
    #[arg(long)]
    accept: bool,
    /// A TOML file of options, whose keys are the long options of this command
    ///
    /// An option on the command line replaces the one in the file.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Also write an HTML page about the compiled loop
    ///
    /// It shows the schedule, the cost, the quantized layers, and the error that caching and
    /// quantization make on held-out samples at every step.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print a summary as a JSON object on stdout
    #[arg(long)]
    json: bool,
    // The groups come last, because a help heading holds for all options after it.
    #[command(flatten)]
    the_loop: LoopArgs,
    #[command(flatten)]
    reading: ModelArgs,
    #[command(flatten)]
    caching: CachingArgs,
    #[command(flatten)]
    quantizing: QuantizingArgs,
}

impl CompileArgs {
    /// The options as a recipe. `found` is the scheduler configuration of a pipeline directory,
    /// which is used unless an option names one.
    fn recipe(&self, found: Option<PathBuf>) -> Recipe {
        let mut recipe = Recipe::default();
        self.the_loop.put(&mut recipe);
        self.caching.put(&mut recipe);
        self.quantizing.put(&mut recipe);
        if recipe.scheduler_config.is_none() {
            recipe.scheduler_config = found.map(SchedulerConfig::File);
        }
        recipe
    }
}

impl CompileArgs {
    /// The denoiser and the configuration of its scheduler.
    fn located(&self) -> Result<Located, Failure> {
        let Some(component) = &self.component else { return Ok(locate(&self.model)?) };
        let model = self.model.join(component).join("model.onnx");
        if !model.is_file() {
            let what = format!("--component {}: there is no such network", component.display());
            return Err(Failure::usage(what).fact("expected", model.display()));
        }
        let scheduler = self.model.join("scheduler/scheduler_config.json");
        Ok(Located { model, scheduler: Some(scheduler).filter(|path| path.is_file()) })
    }

    /// The parts of a pipeline around its denoiser, compiled; they complete the recipe.
    fn parts(
        &self,
        directory: &Directory,
        model: &Model,
        options: &ModelOptions,
        recipe: &mut Recipe,
    ) -> Result<Parts, Failure> {
        let bf16 = recipe.quant() != Quant::None;
        let threads = recipe.threads();
        let options = PartOptions { bf16, model: options.clone(), threads };
        let parts = Parts::compile(directory, model, &options)?;
        let prompts = match &self.prompts {
            Some(path) => text::lines(path)?,
            None => vec![],
        };
        parts.prepare(recipe, &prompts)?;
        Ok(parts)
    }
}

pub fn compile(args: &CompileArgs, quiet: bool) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_target(&args.output, overwrite)?;
    check_report(args, overwrite)?;
    let directory = match args.component {
        Some(_) => None,
        None => Directory::find(&args.model)?,
    };
    let Located { model: path, scheduler } = args.located()?;
    if directory.is_none() && args.prompts.is_some() {
        return Err(Failure::usage("--prompts is for pipeline directories with a text encoder"));
    }
    let mut recipe = args.recipe(scheduler);
    // before the model is read, because that can take long
    let contradictions = recipe.check();
    if !contradictions.is_empty() {
        return Err(cachequant::CompileError::Recipe(contradictions).into());
    }
    let options = args.reading.options(None);
    let model = match &directory {
        Some(directory) => load_denoiser(directory, &options)?,
        None => Model::load(&path, &options, |_, _| {})?,
    };
    let parts = directory.map(|of| args.parts(&of, &model, &options, &mut recipe)).transpose()?;
    model.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    let mut progress = Bars { quiet, shown: None };
    let compiled = cachequant::compile(&model, &recipe, &mut progress)?;
    let quality = compiled.quality(&mut progress)?;
    match (quality.filter(|_| !args.accept), compiled.floor()) {
        (Some(psnr), Some(floor)) if psnr < floor => {
            let proposals = proposals(&model, &recipe, floor, &mut progress)?;
            drop(progress);
            return Err(below(psnr, floor, &proposals));
        }
        (Some(psnr), None) if psnr < FLOOR => tracing::warn!(
            "held-out samples reach {psnr:.1} dB to the float loop, less than the {FLOOR:.1} dB that \
             a model whose reading fits would need"
        ),
        _ => {}
    }
    drop(progress);
    match &parts {
        Some(parts) => compiled.write_with(parts, &args.output, overwrite)?,
        None => compiled.write(&args.output, overwrite)?,
    }
    let size = args.output.metadata().map_err(FileError::reading(&args.output))?.len();
    if let Some(report) = &args.report {
        let artifact = FileFacts { path: args.output.display().to_string(), bytes: size };
        let report_of = compiled.report(artifact, &mut Bars { quiet, shown: None })?;
        write_atomic(report, overwrite, |out| out.write_all(page::page(&report_of).as_bytes()))?;
        tracing::info!("wrote {}", report.display());
    }
    say(args, &compiled, size, quality)
}

/// The failure for a loop whose quality is below the floor, with the proposals that were measured.
fn below(psnr: f64, floor: f64, proposals: &[Proposal]) -> Failure {
    let what =
        format!("held-out samples reach {psnr:.1} dB to the float loop, which is below {floor:.1}");
    let mut failure = Failure::new(Exit::Missed, what);
    for Proposal { options, psnr } in proposals {
        failure = failure.fact("measured", format!("{psnr:.1} dB with {options}"));
    }
    match proposals {
        [one] if one.psnr >= floor => failure.help(&one.options),
        _ => failure,
    }
    .help("--accept writes the artifact nevertheless")
}

/// One progress bar at a time, for the current phase.
struct Bars {
    quiet: bool,
    shown: Option<(Phase, term::ProgressBar)>,
}

impl cachequant::Progress for Bars {
    fn update(&mut self, phase: Phase, _: u64, total: u64) -> ControlFlow<()> {
        if self.shown.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            self.shown = Some((phase, term::ProgressBar::new(phase.name(), total, self.quiet)));
        }
        if let Some((_, bar)) = &mut self.shown {
            bar.set_total(total);
            bar.step();
        }
        ControlFlow::Continue(())
    }
}

/// Finds out before the long work whether the report can be written.
fn check_report(args: &CompileArgs, overwrite: Overwrite) -> Result<(), Failure> {
    let Some(path) = &args.report else { return Ok(()) };
    let same = path == &args.output
        || path.canonicalize().is_ok_and(|p| args.output.canonicalize().is_ok_and(|o| o == p));
    if same {
        return Err(
            Failure::usage("--report and --output name the same file").fact("seen", path.display())
        );
    }
    Ok(check_target(path, overwrite)?)
}

/// Logs what was decided and why, and prints the summary with `--json`.
fn say(
    args: &CompileArgs,
    compiled: &Compiled,
    size: u64,
    quality: Option<f64>,
) -> Result<(), Failure> {
    let summary = compiled.summary();
    let Summary { sampler, steps, guidance, left_the_loop: left, .. } = &summary;
    let output = args.output.display();
    tracing::info!(
        "{output}: {}, {sampler} with {steps} steps, guidance scale {guidance}",
        bytes(size)
    );
    tracing::info!(
        "moved out of the loop: {} MACs and {} of weights into tables, {} MACs and {} of weights into preludes",
        short(left.table_macs as f64),
        bytes(left.table_weight_bytes),
        short(left.prelude_macs as f64),
        bytes(left.prelude_weight_bytes)
    );
    for (name, fill) in &summary.fills {
        tracing::info!("the loop fills `{name}` with {fill}, unless a request gives it");
    }
    say_reading(&summary.reading);
    say_caching(&summary);
    if let Some(quant) = &summary.quant {
        say_quantization(quant, compiled.session().recipe().quant());
    }
    if let Some(psnr) = quality {
        tracing::info!(
            "held-out samples of the compiled loop against the float loop: {psnr:.2} dB"
        );
    }
    if !args.json {
        return Ok(());
    }
    let mut json = serde_json::json!({
        "output": super::text::shown(&args.output), "bytes": size, "psnr": quality,
    });
    let of = serde_json::to_value(&summary)
        .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
    if let (Some(json), serde_json::Value::Object(of)) = (json.as_object_mut(), of) {
        json.extend(of);
    }
    term::print_json(&json)
}

fn say_reading(reading: &Reading) {
    match &reading.verdict {
        Verdict::Fits(score) => tracing::info!("reading: {}; {score}", reading.name),
        Verdict::Trusted(score) => {
            tracing::warn!(
                "reading: {}, as the options say, although the test rejects it; {score}",
                reading.name
            );
        }
        Verdict::Untested { reason } => {
            tracing::warn!("reading: {}, not tested: {reason}", reading.name);
        }
    }
}

fn say_caching(summary: &Summary) {
    let Some(caching) = &summary.caching else { return };
    tracing::info!(
        "cached: {}; a cached step does {:.1} % of the work of a full one and reads {} per sample",
        caching.cut,
        caching.share * 100.0,
        bytes(caching.cache_bytes)
    );
    let measured = caching.measured.iter().map(|m| {
        let correction =
            m.correction.as_ref().map_or(String::new(), |fit| format!(" + {fit} correction"));
        format!("{}{correction} {:.2} dB", m.schedule, m.psnr)
    });
    let measured: Vec<String> = measured.collect();
    tracing::info!("held-out samples against the uncached loop: {}", measured.join(", "));
    tracing::info!(
        "schedule: {}, {} of {} evaluations are full; correction: {}",
        caching.schedule,
        caching.full_steps.len(),
        caching.evaluations,
        caching.correction.as_deref().unwrap_or("none, because it does not help")
    );
}

fn say_quantization(quant: &QuantSummary, kind: Quant) {
    let (layers, float) = (quant.layers, quant.float_layers.len());
    if kind == Quant::Bf16 {
        tracing::info!("bf16: {layers} layers; float: {float}");
    } else {
        let bits = kind.weight_bits().filter(|&bits| bits < 8);
        let bits = bits.map_or_else(String::new, |bits| format!(", weights of {bits} bits"));
        let bf16 = quant.inputs_bf16.len();
        tracing::info!(
            "quantized: {layers} layers{bits}, {bf16} of them with inputs in bf16; float: {float}"
        );
        for name in &quant.inputs_bf16 {
            tracing::debug!(
                "input stays bf16: {name}: rounding it to 8 bits would cost too much quality"
            );
        }
    }
    for layer in &quant.float_layers {
        tracing::debug!("stays float: {}: {}", layer.name, layer.why);
    }
}
