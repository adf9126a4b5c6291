//! `cqc export`: writes the loop of an artifact as standard ONNX models.

use super::report::{Exit, Failure};
use super::{artifact, term, text};
use cachequant::export::{self, ExportedLoop, Form, LoopExportError, SCHEDULE};
use cachequant::io::{Overwrite, check_directory};
use clap::{Args, ValueEnum};
use cqc_passes::onnx::export::{ExportError, Layout, OPSET, Qdq, Scales};
use cqc_proto::Tensor;
use cqc_proto::cq::Quant;
use serde_json::json;
use std::path::PathBuf;

/// Write an artifact as standard ONNX models that any runtime can run
#[derive(Args, Debug)]
#[command(
    after_help = "The directory gets the models, weights.bin, schedule.json, which describes how the loop calls the models, and \
    sample.py, which runs the loop with ONNX Runtime for DDIM without noise.\n\n\
    Examples:\n  \
    cqc export unet.cq -o unet\n  \
    python unet/sample.py noise.npy samples.npy\n  \
    cqc export unet.cq --layout if -o unet\n  \
    cqc export unet-w8a8.cq --scales constant -o unet-int8"
)]
pub struct ExportArgs {
    /// The artifact, a .cq file
    artifact: PathBuf,
    /// The directory to create
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The files of an artifact with a cache
    #[arg(long, value_name = "LAYOUT", value_enum, default_value = "split")]
    layout: LayoutArg,
    /// The form in which the rounding of a quantized artifact is written [default: ort]
    #[arg(long, value_name = "KIND", value_enum)]
    qdq: Option<QdqArg>,
    /// Scales of activations, with --qdq ort [default: table]
    #[arg(long, value_name = "SCALES", value_enum)]
    scales: Option<ScalesArg>,
    /// Replace an earlier export
    #[arg(long)]
    force: bool,
    /// Print a summary as a JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    /// Two models, full.onnx and cached.onnx
    Split,
    /// One model.onnx that chooses with an ONNX If
    If,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QdqArg {
    /// QuantizeLinear and DequantizeLinear in the form that ONNX Runtime fuses: u8 activations, s8
    /// or INT4 weights
    Ort,
    /// QuantizeLinear and DequantizeLinear in the form that TensorRT needs: s8 activations and
    /// weights, no zero points, constant scales
    Trt,
    /// No rounding: float models, whose weights are the quantized ones and which keep the
    /// corrections. The other two also cast bf16 operands to BFLOAT16 and back
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScalesArg {
    /// As calibrated: tables that are indexed by the number of the evaluation
    Table,
    /// One scale for all evaluations, wide enough for each. It is less exact, and meant for
    /// runtimes that fuse constant scales only
    Constant,
}

impl ExportArgs {
    fn qdq(&self, quant: &Quant) -> Result<Qdq, Failure> {
        let is_quantized = quant.quantized().is_some();
        if !is_quantized {
            return match (self.qdq, self.scales) {
                (None | Some(QdqArg::None), None) => Ok(Qdq::None),
                _ => Err(Failure::usage(format!("{} is not quantized", self.artifact.display()))
                    .help("cqc compile --quant w8a8, or --qdq none")),
            };
        }
        if is_quantized && !quant.has_integers() && self.scales.is_some() {
            return Err(Failure::usage("--scales: bf16 has none"));
        }
        match (self.qdq.unwrap_or(QdqArg::Ort), self.scales) {
            (QdqArg::Ort, None | Some(ScalesArg::Table)) => Ok(Qdq::Ort(Scales::Table)),
            (QdqArg::Ort, Some(ScalesArg::Constant)) => Ok(Qdq::Ort(Scales::Constant)),
            (QdqArg::Trt, None | Some(ScalesArg::Constant)) => Ok(Qdq::Trt),
            (QdqArg::Trt, Some(ScalesArg::Table)) => {
                Err(Failure::usage("--qdq trt has constant scales only"))
            }
            (QdqArg::None, None) => Ok(Qdq::None),
            (QdqArg::None, Some(_)) => Err(Failure::usage("--qdq none has no scales")),
        }
    }
}

pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_directory(&args.output, overwrite, SCHEDULE)?;
    let artifact = artifact::open(&args.artifact, Default::default())?;
    let qdq = args.qdq(&artifact.manifest().quant)?;
    let plan = &artifact.manifest().plan;
    let constants: Vec<Tensor> = (0..plan.constants.len()).map(|i| artifact.constant(i)).collect();
    let (sampler, null) = (artifact.sampler()?, artifact.null_conditions());
    let compensation = artifact.compensation();
    let manifest = artifact.manifest();
    let exported = ExportedLoop {
        plan,
        constants: &constants,
        sampler: &sampler,
        guidance: manifest.classifier_free_scale(),
        rescale: manifest.guidance_rescale,
        interval: manifest.guidance_interval,
        fills: &manifest.fills,
        null: &null,
        compensation: compensation.as_ref(),
    };
    let (layout, name) = match args.layout {
        LayoutArg::Split => (Layout::Split, "split"),
        LayoutArg::If => (Layout::If, "if"),
    };
    let files = export::write(exported, Form { layout, qdq }, &args.output, overwrite)?;
    tracing::info!("{}: {}", args.output.display(), files.join(", "));
    if args.json {
        return term::print_json(
            &json!({ "output": text::shown(&args.output), "layout": name, "opset": OPSET, "files": files }),
        );
    }
    Ok(())
}

impl From<LoopExportError> for Failure {
    fn from(e: LoopExportError) -> Failure {
        match e {
            LoopExportError::File(e) => e.into(),
            LoopExportError::Export(ExportError::Unsupported(steps)) => {
                let what = format!("{} steps cannot be written in standard ONNX", steps.len());
                steps.iter().fold(Failure::new(Exit::Unsupported, what), |failure, step| {
                    failure.fact("step", step)
                })
            }
            LoopExportError::Export(e) => Failure::new(Exit::Unsupported, e.to_string()),
        }
    }
}
