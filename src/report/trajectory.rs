//! Measures the errors that caching and quantization make in the samples, evaluation by evaluation,
//! on the held-out calibration samples: of each alone, of both together, and of the artifact with
//! its corrections.

use crate::calibrate::quantize::{
    Grouping, QuantizeError, Quantized, Select, TunableLoop, ranges, select,
};
use crate::calibrate::{CachingChoice, EvaluationCounter, holdout_size};
use crate::compile::{CachedLoop, LoopOptions, Lowered, assemble_loop, compile_loop};
use crate::eval::psnr::psnr;
use crate::model::Model;
use cqc_passes::quant::{AnnotateOptions, QuantTables};
use cqc_runtime::denoise::{Compensation, Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::{Sampler, SamplerError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Errors against the ordinary float loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// Number of samples, all of them held out.
    pub samples: usize,
    /// One curve per loop. The last one is the artifact's.
    pub curves: Vec<Curve>,
}

/// The errors of one loop against the ordinary one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// The loop.
    pub of: Variant,
    /// |x − x′| / |x| over all samples, after each evaluation.
    pub errors: Vec<f64>,
    /// Mean PSNR of the ends, in dB. The peak is the range of the ordinary loop's ends, as in
    /// calibration.
    pub psnr: f64,
}

/// A loop whose errors are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Cached as scheduled, without corrections, in float. It is not measured for bf16.
    Cache,
    /// Quantized, with every evaluation full and without corrections.
    Quantization,
    /// Quantized and cached as scheduled, without corrections.
    Both,
    /// The artifact.
    Artifact,
}

/// The compiled loop that is measured.
pub struct MeasuredLoop<'a> {
    /// The source model.
    pub model: &'a Model,
    /// Sampler and number of steps of the loop.
    pub options: &'a LoopOptions,
    /// The cut loop and its schedule; `None` if nothing is cached.
    pub cached: Option<(&'a CachedLoop<'a>, &'a CachingChoice)>,
    /// The quantization, and the options with which its ranges were found.
    pub quantized: Option<(&'a Quantized, &'a RangeOptions)>,
    /// The plan of the artifact.
    pub lowered: &'a Lowered,
}

/// Options of the search for quantization ranges.
#[derive(Clone, Debug)]
pub struct RangeOptions {
    /// The evaluations that share ranges.
    pub grouping: Grouping,
    /// The samples and evaluations on which ranges are found.
    pub select: Select,
}

/// The samples of a measurement, and the engines that run them.
pub struct Measurement<'a> {
    /// The calibration samples, of which the last are held out.
    pub request: Request,
    /// Options of the engines.
    pub engine: EngineOptions,
    /// Called after every evaluation with the number of evaluations done and an estimate of all.
    /// [`ControlFlow::Break`] ends the measurement.
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

impl MeasuredLoop<'_> {
    /// Whether the artifact has corrections.
    fn is_corrected(&self) -> bool {
        let quantized = self.quantized.map(|(quantized, _)| &quantized.fitted);
        self.cached.is_some_and(|(_, choice)| choice.tables.is_some())
            || quantized
                .is_some_and(|f| !f.tables.corrections.is_empty() || f.compensation.is_some())
    }

    /// The loops that differ from each other.
    fn variants(&self) -> Vec<Variant> {
        let (cached, bf16, corrected) =
            (self.cached.is_some(), self.options.bf16.is_some(), self.is_corrected());
        let quantized = self.quantized.is_some() || bf16;
        let several = cached && quantized;
        let rows = [
            (Variant::Cache, cached && !bf16 && (several || corrected)),
            (Variant::Quantization, quantized && (several || corrected)),
            (Variant::Both, several && corrected),
            (Variant::Artifact, cached || quantized),
        ];
        rows.into_iter().filter(|(_, wanted)| *wanted).map(|(variant, _)| variant).collect()
    }
}

/// Runs all loops that differ; `None` if the artifact is the ordinary float loop.
///
/// # Errors
/// [`QuantizeError`] if a loop cannot be compiled or run.
pub fn errors(
    compiled: &MeasuredLoop,
    measurement: Measurement,
) -> Result<Option<Errors>, QuantizeError> {
    let variants = compiled.variants();
    if variants.is_empty() {
        return Ok(None);
    }
    let Measurement { request, engine, progress } = measurement;
    let held = holdout_size(request.samples);
    let mut runner = Runner {
        compiled,
        fit: request.samples - held,
        guided: request.guidance.is_some_and(|scale| scale != 1.0),
        request,
        engine,
        progress: EvaluationCounter { done: 0, all: 0, call: progress },
    };
    let evaluations =
        Sampler::new(&compiled.options.sampler, compiled.options.steps)?.evaluations().len();
    let batches = held.div_ceil(runner.engine.batch.max(1));
    let finds_ranges = variants.contains(&Variant::Quantization) && compiled.quantized.is_some();
    let runs = variants.len() + 1 + usize::from(finds_ranges);
    runner.progress.all = (evaluations * batches * runs) as u64;
    let ordinary = runner.path(&runner.ordinary()?, None)?;
    let curve = |of: Variant| {
        let (lowered, compensation) = runner.variant(of)?;
        let path = runner.path(lowered.as_ref().unwrap_or(compiled.lowered), compensation)?;
        Ok(Curve {
            of,
            errors: relative_errors(&path, &ordinary),
            psnr: mean_psnr(&path, &ordinary, held),
        })
    };
    let curves = variants.into_iter().map(curve).collect::<Result<_, QuantizeError>>()?;
    Ok(Some(Errors { samples: held, curves }))
}

struct Runner<'a> {
    compiled: &'a MeasuredLoop<'a>,
    request: Request,
    guided: bool,
    /// Index of the first held-out sample.
    fit: usize,
    engine: EngineOptions,
    progress: EvaluationCounter<'a>,
}

/// The samples after each evaluation.
type Path = Vec<Vec<f32>>;

impl Runner<'_> {
    fn open(&self, lowered: &Lowered) -> Result<Denoiser, QuantizeError> {
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
        let options = self.compiled.options;
        let sampler = Sampler::new(&options.sampler, options.steps)?;
        // the measurement looks at values before they are rounded
        let options = EngineOptions { low_precision: false, ..self.engine.clone() };
        Ok(Denoiser::open(&weights, sampler, self.guided, &options)?)
    }

    /// The float loop in which every evaluation is full.
    fn ordinary(&self) -> Result<Lowered, QuantizeError> {
        let MeasuredLoop { model, options, cached, .. } = *self.compiled;
        Ok(match cached.filter(|_| options.bf16.is_none()) {
            Some((cached, _)) => cached.uncorrected()?,
            None => compile_loop(model, &LoopOptions { bf16: None, ..options.clone() })?,
        })
    }

    /// The plan of a variant, or `None` for the artifact's, and its sample compensation.
    fn variant(
        &mut self,
        of: Variant,
    ) -> Result<(Option<Lowered>, Option<Compensation>), QuantizeError> {
        let MeasuredLoop { cached, quantized, .. } = *self.compiled;
        let lowered = match (of, cached, quantized) {
            (Variant::Quantization, Some((cached, _)), None) => cached.uncorrected()?,
            (Variant::Cache, Some((cached, choice)), _)
            | (Variant::Both, Some((cached, choice)), None) => {
                cached.assemble(&choice.full, None)?.lower(None)?.0
            }
            (Variant::Both, Some((cached, choice)), Some((quantized, _))) => {
                let tables =
                    QuantTables { corrections: BTreeMap::new(), ..quantized.fitted.tables.clone() };
                let quantization = (&quantized.survey, &tables, AnnotateOptions::default());
                cached.assemble(&choice.full, None)?.lower(Some(quantization))?.0
            }
            (Variant::Quantization, _, Some((quantized, how))) => {
                self.quantized_alone(quantized, how)?
            }
            _ => {
                return Ok((
                    None,
                    quantized.and_then(|(quantized, _)| quantized.fitted.compensation.clone()),
                ));
            }
        };
        Ok((Some(lowered), None))
    }

    /// The quantized loop in which every evaluation is full. Ranges are found anew, because the
    /// artifact has none for layers that an evaluation does not run.
    fn quantized_alone(
        &mut self,
        quantized: &Quantized,
        how: &RangeOptions,
    ) -> Result<Lowered, QuantizeError> {
        let MeasuredLoop { model, options, cached, .. } = *self.compiled;
        let assembled = match cached {
            Some((cached, _)) => {
                cached.assemble(&(0..cached.evaluations()).collect::<Vec<_>>(), None)?
            }
            None => assemble_loop(model, options)?,
        };
        let survey = &quantized.survey;
        let float = QuantTables::float(survey, assembled.evaluations());
        let (lowered, _) = assembled.lower(Some((survey, &float, AnnotateOptions::default())))?;
        let mut study = TunableLoop::new(self.open(&lowered)?, &lowered);
        let (request, progress) = (&self.request, &mut self.progress);
        let selected = select(&how.select, &mut study.denoiser, request, self.fit, progress)?;
        let is_selected =
            |sample, t| selected.as_ref().is_none_or(|pairs| pairs.contains(&(sample, t)));
        let tables =
            ranges(&mut study, survey, request, self.fit, how.grouping, &is_selected, progress)?;
        Ok(assembled.lower(Some((survey, &tables, AnnotateOptions::default())))?.0)
    }

    /// The held-out samples after each evaluation of a loop.
    fn path(
        &mut self,
        lowered: &Lowered,
        compensation: Option<Compensation>,
    ) -> Result<Path, QuantizeError> {
        let mut denoiser = self.open(lowered)?;
        denoiser.set_compensation(compensation)?;
        let evaluations = denoiser.sampler().evaluations().len();
        let len: usize = denoiser.sample_shape().iter().product();
        let mut path = vec![Vec::new(); evaluations];
        for first in (self.fit..self.request.samples).step_by(denoiser.width()) {
            let count = denoiser.width().min(self.request.samples - first) * len;
            let mut trajectory = denoiser.begin(&self.request, first)?;
            for x in &mut path {
                denoiser.step(&mut trajectory)?;
                self.progress.step()?;
                x.extend_from_slice(&trajectory.x()[..count]);
            }
        }
        Ok(path)
    }
}

impl From<SamplerError> for QuantizeError {
    fn from(e: SamplerError) -> QuantizeError {
        QuantizeError::Program(e.into())
    }
}

fn relative_errors(found: &Path, expected: &Path) -> Vec<f64> {
    let square = |x: f64| x * x;
    let error = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let noise: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
        let size: f64 = b.iter().map(|&b| square(b.into())).sum();
        if noise == 0.0 { 0.0 } else { (noise / size).sqrt() }
    };
    found.iter().zip(expected).map(error).collect()
}

/// Mean over the samples at the end.
fn mean_psnr(found: &Path, expected: &Path, samples: usize) -> f64 {
    let (Some(found), Some(expected)) = (found.last(), expected.last()) else { return f64::NAN };
    let (low, high) =
        expected.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
    let len = expected.len() / samples;
    let pairs = found.chunks_exact(len).zip(expected.chunks_exact(len));
    let sum: f64 =
        pairs.map(|(a, b)| psnr(crate::eval::psnr::mse(a, b), f64::from(high - low))).sum();
    sum / samples as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_and_of_all_samples() {
        let expected = vec![vec![3.0, 4.0], vec![1.0, -1.0]];
        let found = vec![vec![3.0, 4.0], vec![1.0, 0.0]];
        assert_eq!(relative_errors(&found, &expected), [0.0, 0.5f64.sqrt()]);
        assert_eq!(mean_psnr(&expected, &expected, 2), 100.0);
        // one sample of two is off by half the range: 6.02 dB and the cap
        assert!((mean_psnr(&found, &expected, 2) - 53.01).abs() < 0.01);
    }
}
