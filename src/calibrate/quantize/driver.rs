//! Quantizes a loop whose schedule has been decided.

use super::float_inputs::{InputWork, float_inputs};
use super::keep_float::{FloatLayerSearch, SMALL_WORK, Target, keep_float};
use super::migrate::migrations;
use super::{
    CacheRefit, Fitted, Grouping, Outputs, Select, Sequential, TunableLoop, ranges, reconstruct,
    reconstruct_preludes, select, sequential,
};
use crate::calibrate::{CacheTables, CalibrateError, EvaluationCounter, Holdout};
use crate::compile::{Assembled, ProgramError, Stages};
use crate::io::FileError;
use cqc_passes::calib::compensate::CompensationMode;
use cqc_passes::quant::migrate::{Migrate, migrate};
use cqc_passes::quant::{
    AnnotateOptions, OutputCorrection, QuantSpec, QuantTables, QuantizedWeight, Survey,
};
use cqc_runtime::denoise::{DenoiseError, Denoiser, Request};
use cqc_runtime::engine::{EngineError, EngineOptions};
use std::ops::ControlFlow;

/// Largest number of samples on which corrections of rounding errors are fitted. Each sample brings
/// all positions, and the errors are alike in all samples.
const CORRECTED: usize = 8;

/// Options of the quantization of a loop.
pub struct QuantizeOptions<'a> {
    /// The layers to quantize, and the bits of their weights.
    pub spec: QuantSpec,
    /// Mean PSNR in dB that the held-out samples should reach. Layers are left float until it is
    /// reached or no layer is left, those first whose rounding moves the end of the trajectory
    /// most.
    pub target_psnr: Option<f64>,
    /// Whether layers of a loop with little work are left float in the same way, if there is no
    /// target.
    pub small_stays_exact: bool,
    /// Share of all multiplications of the loop, 0 to 1, up to which inputs are rounded to bf16
    /// instead of int8: those first whose rounding to 8 bits moves the end of the trajectory most
    /// in relation to the work that reads them.
    pub float_work: f64,
    /// The channels of inputs that are divided by powers of two, by which the weights are
    /// multiplied.
    pub migrate: Migrate,
    /// The evaluations that share ranges.
    pub grouping: Grouping,
    /// The layers whose sums are corrected.
    pub outputs: Outputs,
    /// Whether the correction of the cache may be fitted again to the tensors that the quantized
    /// loop stores. It is kept if it is better on the held-out samples.
    pub refit_cache: bool,
    /// The mode of the sample compensation; `None` for none.
    pub compensation: Option<CompensationMode>,
    /// Whether weights are rounded with regard to the inputs of their layers (second order) instead
    /// of to the nearest code.
    pub reconstruct: bool,
    /// The samples and evaluations on which ranges are found.
    pub select: Select,
    /// The calibration samples. The first `fit` are fitted on.
    pub request: Request,
    /// Number of samples to fit on; the others are held out.
    pub fit: usize,
    /// The ends of the full float loop for the held-out samples, if they are known already.
    pub held: Option<Holdout>,
    /// Options of the engines. Their batch is that of the float loop.
    pub engine: EngineOptions,
    /// The directory that keeps results.
    pub stages: &'a Stages,
    /// Called after every evaluation with the number of evaluations done and an estimate of all.
    /// [`ControlFlow::Break`] ends the fitting.
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// A quantized loop that has not been lowered yet.
pub struct Quantized {
    /// The layers and their rounded weights.
    pub survey: Survey,
    /// The fitted tables.
    pub fitted: Fitted,
}

/// Why a loop cannot be quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// Ranges or corrections cannot be fitted.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The loop cannot be assembled or lowered.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The loop cannot be run.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// A program cannot be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Results cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
}

/// About how many evaluations, full and cached, of `batch` samples at once [`quantize`] makes,
/// without the search for layers that stay float: to fit on `fit` samples, and, if the correction
/// of the cache may be fitted again, to measure on `held` others. One more round stands for the
/// inputs that are tried out.
pub fn evaluations_to_come(
    evaluations: usize,
    [fit, held]: [usize; 2],
    batch: usize,
    corrects: bool,
    reconstructs: bool,
) -> usize {
    let refits = held > 0;
    let ranges = (1 + usize::from(reconstructs)) * fit.div_ceil(batch);
    let corrections = usize::from(corrects) * 2 + usize::from(refits) * (2 + usize::from(corrects));
    evaluations
        * (ranges + corrections * fit.min(CORRECTED).div_ceil(batch) + 2 * held.div_ceil(batch) + 1)
}

/// Fits ranges and corrections. `assembled` has the correction `cache` of the cache, if there is
/// one; `float` runs the same loop uncorrected.
///
/// # Errors
/// [`QuantizeError`] if the loop cannot be lowered, run or fitted.
pub fn quantize(
    assembled: &Assembled,
    cache: Option<&CacheTables>,
    float: &mut Denoiser,
    options: QuantizeOptions,
) -> Result<Quantized, QuantizeError> {
    let QuantizeOptions {
        mut spec,
        grouping,
        outputs,
        refit_cache,
        compensation,
        request,
        fit,
        engine,
        ..
    } = options;
    // values are looked at before and after they are rounded
    let engine = EngineOptions { low_precision: false, ..engine };
    let (stages, evaluations) = (options.stages, assembled.evaluations());
    let mut progress =
        EvaluationCounter { done: 0, all: (3 * evaluations * fit) as u64, call: options.progress };
    let all = assembled.survey(&spec);
    let open = |survey: &Survey, float: &Denoiser| -> Result<_, QuantizeError> {
        let start = unfitted(survey, outputs, evaluations);
        let with_sums = AnnotateOptions { reference_sums: true };
        let (lowered, places) = assembled.lower(Some((survey, &start, with_sums)))?;
        Ok((TunableLoop::open(&lowered, float, &engine)?, places))
    };
    let (mut study, mut places) = open(&all, float)?;
    let exponents = stages.run("migrations", || -> Result<_, QuantizeError> {
        Ok(migrations(&study, &all, &request, fit, options.migrate, &mut progress)?)
    })?;
    let migrated = |spec: &QuantSpec| {
        let mut found = assembled.survey(spec);
        let of_site = |site| exponents[all.sites.iter().position(|s| s == site)?].clone();
        let exponents: Vec<_> = found.sites.iter().map(of_site).collect();
        migrate(&mut found, &exponents);
        found
    };
    let small = all.layers.iter().map(|l| l.macs).sum::<i64>() < SMALL_WORK;
    let small = (options.small_stays_exact && small).then_some(Target::Small);
    let target = options.target_psnr.map(Target::Psnr).or(small);
    if let Some(target) = target {
        let (survey, request) = (&migrated, &request);
        let trial = FloatLayerSearch { assembled, survey, request, fit, engine: &engine };
        spec.keep_float = stages.run("layers", || -> Result<_, QuantizeError> {
            Ok(keep_float(&trial, float, spec.clone(), target, &mut progress)?.keep_float)
        })?;
    }
    let mut survey = all.clone();
    if target.is_some() || exponents.iter().any(Option::is_some) {
        survey = migrated(&spec);
        let count = survey.layers.iter().filter(|layer| !layer.exponents.is_empty()).count();
        tracing::info!("scales migrate from the inputs to the weights of {count} layers");
        (study, places) = open(&survey, float)?;
    }
    let codes = stages.run("preludes", || -> Result<_, QuantizeError> {
        let mut rounded = survey.clone();
        let found = reconstruct_preludes(&mut study, &mut rounded, &request, fit)?;
        Ok(found.then(|| {
            rounded.preludes.iter().map(|p| p.weight.code_values()).collect::<Vec<Vec<i8>>>()
        }))
    })?;
    if let Some(codes) = codes {
        survey
            .preludes
            .iter_mut()
            .zip(codes)
            .for_each(|(p, codes)| p.weight = p.weight.with_codes(&codes));
        (study, places) = open(&survey, float)?;
    }
    let corrects = !outputs.layers(&survey).is_empty();
    let held = if cache.is_some() && refit_cache { request.samples - fit } else { 0 };
    let all = evaluations_to_come(
        evaluations,
        [fit, held],
        study.denoiser.width(),
        corrects,
        options.reconstruct,
    );
    progress.all = progress.done + all as u64;
    let (mut tables, codes) = stages.run("ranges", || -> Result<_, QuantizeError> {
        let selected = select(&options.select, &mut study.denoiser, &request, fit, &mut progress)?;
        let is_selected =
            |sample, t| selected.as_ref().is_none_or(|pairs| pairs.contains(&(sample, t)));
        let tables =
            ranges(&mut study, &survey, &request, fit, grouping, &is_selected, &mut progress)?;
        if !options.reconstruct {
            return Ok((tables, None));
        }
        let mut rounded = survey.clone();
        reconstruct(&mut study, &mut rounded, &tables, &request, fit, &mut progress)?;
        let codes = rounded
            .layers
            .iter()
            .map(|layer| layer.weight.as_ref().map(QuantizedWeight::code_values));
        Ok((tables, Some(codes.collect::<Vec<Option<Vec<i8>>>>())))
    })?;
    if let Some(codes) = &codes {
        let layers = survey.layers.iter_mut().zip(codes);
        layers.for_each(|(layer, codes)| {
            layer.weight = layer.weight.as_ref().zip(codes.as_ref()).map(|(w, c)| w.with_codes(c))
        });
    }
    let passed = stages.run("inputs", || -> Result<_, QuantizeError> {
        let work = InputWork::new(assembled, &survey, options.float_work);
        Ok(float_inputs(&study, &survey, &tables, &request, &work, &mut progress)?)
    })?;
    if codes.is_some() || !passed.is_empty() {
        let rounded = survey.without(&passed);
        tables = tables.of_other(&survey, &rounded);
        survey = rounded;
        (study, places) = open(&survey, float)?;
    }
    tables.corrections = unfitted(&survey, outputs, evaluations).corrections;
    let refit =
        cache.filter(|_| refit_cache).map(|tables| CacheRefit { places, tables: tables.clone() });
    let fitted = stages.run("corrections", || -> Result<_, QuantizeError> {
        let fit = CorrectionFitter {
            assembled,
            survey: &survey,
            tables,
            compensation,
            request: &request,
            fit,
        };
        fit.corrections(float, &mut study, refit, options.held, &mut progress)
    })?;
    Ok(Quantized { survey, fitted })
}

/// Tables that round nothing and correct nothing.
fn unfitted(survey: &Survey, outputs: Outputs, evaluations: usize) -> QuantTables {
    let mut out = QuantTables::float(survey, evaluations);
    for layer in outputs.layers(survey) {
        out.corrections
            .insert(layer, OutputCorrection::identity(&survey.layers[layer], evaluations));
    }
    out
}

/// The inputs of the fit of corrections.
struct CorrectionFitter<'a> {
    assembled: &'a Assembled<'a>,
    survey: &'a Survey,
    /// Ranges, and corrections that change nothing.
    tables: QuantTables,
    compensation: Option<CompensationMode>,
    request: &'a Request,
    /// Number of samples to fit on; the others are held out.
    fit: usize,
}

impl CorrectionFitter<'_> {
    /// Fits with the correction of the cache as it is, and with one that is fitted again, if that
    /// is allowed and there are held-out samples to compare the two. The stored tensors are noisy
    /// now, so least squares gives them less weight. That is right where the error is in the noise,
    /// and wrong where the noise averages out over the steps and the forecast, which is given up,
    /// would not have been wrong.
    fn corrections(
        &self,
        float: &mut Denoiser,
        study: &mut TunableLoop,
        refit: Option<CacheRefit>,
        held: Option<Holdout>,
        progress: &mut EvaluationCounter,
    ) -> Result<Fitted, QuantizeError> {
        if refit.is_none() || self.fit >= self.request.samples {
            return self.once(float, study, refit, progress);
        }
        let full = self.assembled.full_evaluations();
        let held = match held.filter(|held| held.from() == self.fit) {
            Some(held) => held,
            None => Holdout::new(float, self.request, self.fit, progress)?,
        };
        let as_given = self.once(float, study, None, progress)?;
        let plain = held.psnr(&mut study.denoiser, self.request, full, None, progress)?;
        let again = self.once(float, study, refit, progress)?;
        let refitted = held.psnr(&mut study.denoiser, self.request, full, None, progress)?;
        tracing::info!(
            "held-out samples: {plain:.2} dB with the cache's correction of the float loop, {refitted:.2} dB with one fitted again"
        );
        Ok(if refitted > plain { again } else { as_given })
    }

    fn once(
        &self,
        float: &mut Denoiser,
        study: &mut TunableLoop,
        cache: Option<CacheRefit>,
        progress: &mut EvaluationCounter,
    ) -> Result<Fitted, QuantizeError> {
        study.denoiser.set_compensation(None)?;
        let wanted =
            Sequential { cache, compensation: self.compensation, fit: self.fit.min(CORRECTED) };
        let fitted = sequential(
            float,
            study,
            self.survey,
            self.tables.clone(),
            self.request,
            wanted,
            progress,
        )?;
        study.denoiser.set_compensation(fitted.compensation.clone())?;
        Ok(fitted)
    }
}
