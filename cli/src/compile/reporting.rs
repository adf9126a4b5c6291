//! `compile --report`: collects what was decided, measures what it does, and writes the page.

use super::caching::{self, Decision, Trajectory};
use super::quantizing::QuantDecision;
use super::{CompileArgs, page};
use crate::report::Failure;
use crate::term::Progress;
use cachequant::compile::{CachedLoop, LoopOptions, Lowered};
use cachequant::io::{FileError, Overwrite, check_target, write_atomic};
use cachequant::model::Model;
use cachequant::report::layers::{Quantization, bf16_layers, layers};
use cachequant::report::trajectory::{Compiled, Errors, Measurement, RangeOptions, errors};
use cachequant::report::{Caching, Candidate, Cost, FileFacts, ModelFacts, Report, Sampling};
use cqc_proto::cq::Manifest;
use cqc_runtime::sampler::Sampler;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

/// Everything that was made.
pub struct Compilation<'a> {
    pub args: &'a CompileArgs,
    pub model: &'a Model,
    pub options: &'a LoopOptions,
    pub trajectory: &'a Trajectory<'a>,
    pub cached: Option<(&'a CachedLoop<'a>, &'a Decision)>,
    pub quantized: Option<&'a QuantDecision>,
    pub manifest: &'a Manifest,
    pub lowered: &'a Lowered,
}

/// Says before the long work what [`write`] would refuse after it.
pub fn check(args: &CompileArgs, overwrite: Overwrite) -> Result<(), Failure> {
    let Some(path) = &args.report else { return Ok(()) };
    let same =
        path == &args.output || path.canonicalize().is_ok_and(|p| args.output.canonicalize().is_ok_and(|o| o == p));
    if same {
        return Err(Failure::usage("--report and --output name the same file").fact("seen", path.display()));
    }
    Ok(check_target(path, overwrite)?)
}

/// Measures and writes; the artifact is there already.
pub fn write(path: &Path, of: &Compilation, overwrite: Overwrite, quiet: bool) -> Result<(), Failure> {
    let report = Report {
        model: ModelFacts {
            file: of.model.path.display().to_string(),
            blake3: of.model.blake3.clone(),
            producer: of.model.producer.clone(),
            opset: of.model.opset,
            parameters: of.model.parameters,
        },
        sampling: sampling(of)?,
        artifact: artifact(&of.args.output)?,
        caching: of.cached.map(|(cached, decision)| caching(of.args, cached, decision)),
        quantization: quantization(of),
        errors: measure(of, quiet)?,
        cost: Cost::of(&of.lowered.plan, of.trajectory.guidance != 1.0),
    };
    write_atomic(path, overwrite, |out| out.write_all(page::page(&report).as_bytes()))?;
    tracing::info!("wrote {}", path.display());
    Ok(())
}

fn artifact(path: &Path) -> Result<FileFacts, Failure> {
    let bytes = path.metadata().map_err(FileError::reading(path))?.len();
    Ok(FileFacts { path: path.display().to_string(), bytes })
}

fn sampling(of: &Compilation) -> Result<Sampling, Failure> {
    let sampler = Sampler::new(of.trajectory.sampler, of.trajectory.steps)?;
    Ok(Sampling {
        sampler: of.trajectory.sampler.kind.to_string(),
        steps: of.trajectory.steps,
        timesteps: sampler.evaluations().iter().map(|e| e.timestep).collect(),
        guidance: of.trajectory.guidance,
        calibration: of.manifest.calibration.as_ref().map(|c| (c.samples, c.seed)),
    })
}

fn caching(args: &CompileArgs, cached: &CachedLoop, decision: &Decision) -> Caching {
    let choice = &decision.choice;
    let fit = choice.tables.as_ref().map(|(fit, _)| *fit);
    let candidate = |m: &cachequant::calibrate::Measured| Candidate {
        method: m.method.clone(),
        full: m.full.clone(),
        correction: m.correction.map(|fit| fit.to_string()),
        psnr: m.psnr,
        taken: m.method == choice.method && m.full == choice.full && m.correction == fit,
    };
    Caching {
        cut: cached.cut_name.clone(),
        interval: args.caching.interval as usize,
        method: choice.method.clone(),
        full: choice.full.clone(),
        cost: choice.cost,
        correction: fit.map(|fit| fit.to_string()),
        candidates: choice.measured.iter().map(candidate).collect(),
    }
}

fn quantization(of: &Compilation) -> Option<Quantization> {
    let (layers, float_layers) = match (of.quantized, &of.lowered.bf16) {
        (Some(decision), _) => (layers(&decision.quantized), decision.quantized.survey.float_layers.clone()),
        (None, Some(products)) => (bf16_layers(products, &of.lowered.plan), products.float_layers.clone()),
        (None, None) => return None,
    };
    let quant = of.manifest.quant.quantized();
    Some(Quantization {
        kind: of.manifest.quant.name().into(),
        rounding: quant.map(|q| q.rounding.clone()).unwrap_or_default(),
        compensation: quant.and_then(|q| Some(q.compensation.as_ref()?.mode.clone())),
        layers,
        float_layers,
    })
}

/// Without caching and quantization there is nothing to measure, and perhaps no calibration samples.
fn measure(of: &Compilation, quiet: bool) -> Result<Option<Errors>, Failure> {
    if of.cached.is_none() && of.quantized.is_none() && of.lowered.bf16.is_none() {
        return Ok(None);
    }
    let request = caching::calibration_request(&of.args.caching, of.model, of.trajectory)?;
    let engine = caching::engine_options(&of.args.caching, request.samples);
    let quantizing = &of.args.quantizing;
    let ranges = RangeOptions { grouping: quantizing.share_ranges, select: quantizing.select(of.args.caching.seed) };
    let compiled = Compiled {
        model: of.model,
        options: of.options,
        cached: of.cached.map(|(cached, decision)| (cached, &decision.choice)),
        quantized: of.quantized.map(|decision| (&decision.quantized, &ranges)),
        lowered: of.lowered,
    };
    let mut shown: Option<Progress> = None;
    let progress = &mut |_, all| {
        shown.get_or_insert_with(|| Progress::new("reporting", all, quiet)).step();
        ControlFlow::Continue(())
    };
    Ok(errors(&compiled, Measurement { request, engine, progress })?)
}
