//! `export`: standard ONNX back out of an artifact.

use super::report::{Exit, Failure};
use super::{artifact, term};
use clap::{Args, ValueEnum};
use cqc::export::{self, Loop, LoopExportError, SCHEDULE};
use cqc::io::{Overwrite, check_directory};
use cqc_passes::onnx::export::{ExportError, Layout, OPSET};
use cqc_proto::Tensor;
use serde_json::json;
use std::path::PathBuf;

/// Write an artifact as standard ONNX models, for any other runtime
#[derive(Args, Debug)]
#[command(
    after_help = "The directory holds the models, weights.bin, schedule.json (how they connect) and sample.py. Examples:\n  \
    cqc export unet.cq -o unet\n  \
    python unet/sample.py noise.npy samples.npy\n  \
    cqc export unet.cq --layout if -o unet"
)]
pub struct ExportArgs {
    /// A .cq file
    artifact: PathBuf,
    /// The directory that is made
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// With a cache: full.onnx and cached.onnx, or one model.onnx that chooses by an ONNX If
    #[arg(long, value_name = "LAYOUT", value_enum, default_value = "split")]
    layout: LayoutArg,
    /// Replace an earlier export
    #[arg(long)]
    force: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Split,
    If,
}

pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    check_directory(&args.output, overwrite, SCHEDULE)?;
    let artifact = artifact::open(&args.artifact)?;
    let plan = &artifact.manifest.plan;
    let constants: Vec<Tensor> = (0..plan.constants.len()).map(|i| artifact.constant(i)).collect();
    let (sampler, null) = (artifact.sampler()?, artifact.null_conditions()?);
    let guidance = artifact.manifest.guidance;
    let exported = Loop { plan, constants: &constants, sampler: &sampler, guidance, null: &null };
    let (layout, name) = match args.layout {
        LayoutArg::Split => (Layout::Split, "split"),
        LayoutArg::If => (Layout::If, "if"),
    };
    let files = export::write(exported, layout, &args.output, overwrite)?;
    tracing::info!("{}: {}", args.output.display(), files.join(", "));
    if args.json {
        return term::print_json(&json!({ "output": args.output, "layout": name, "opset": OPSET, "files": files }));
    }
    Ok(())
}

impl From<LoopExportError> for Failure {
    fn from(e: LoopExportError) -> Failure {
        match e {
            LoopExportError::File(e) => e.into(),
            LoopExportError::Export(ExportError::Unspelled(steps)) => {
                let what = format!("{} steps cannot be written in standard ONNX", steps.len());
                steps.iter().fold(Failure::new(Exit::Unsupported, what), |failure, step| failure.fact("step", step))
            }
            LoopExportError::Export(e) => Failure::new(Exit::Unsupported, e.to_string()),
        }
    }
}
