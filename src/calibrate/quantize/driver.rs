//! Quantizes a loop whose schedule is decided.

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

/// Samples that corrections of what rounding does are fitted on at most: each brings all positions,
/// and rounding errs alike in all.
const CORRECTED: usize = 8;

/// How a loop is quantized.
pub struct QuantizeOptions<'a> {
    /// Which layers, with how many bits.
    pub spec: QuantSpec,
    /// Layers are left float, those first whose rounding moves the end of the trajectory most,
    /// until the held-out samples reach this mean PSNR in dB, or nothing is left.
    pub target_psnr: Option<f64>,
    /// Likewise in a loop of little work, unless there is a target.
    pub small_stays_exact: bool,
    /// Inputs of products are rounded to bf16, those first whose 8 bits move the end most for the
    /// work behind them, up to this share of all multiplications of the loop.
    pub float_work: f64,
    /// Which channels of inputs are divided by powers of two that weights are multiplied by.
    pub migrate: Migrate,
    /// Which evaluations share ranges.
    pub grouping: Grouping,
    /// Which layers' sums are corrected.
    pub outputs: Outputs,
    /// Whether the correction of the cache may be fitted again, to what the quantized loop stores;
    /// it is where that measures better on the samples behind `fit`.
    pub refit_cache: bool,
    /// The correction of the sample.
    pub compensation: Option<CompensationMode>,
    /// Whether weights are rounded by what layers read instead of to nearest.
    pub reconstruct: bool,
    /// Which of them are looked at for ranges.
    pub select: Select,
    /// Calibration samples; the first `fit` are used.
    pub request: Request,
    /// How many.
    pub fit: usize,
    /// How the float loop that computes everything ends on the others, if that has been found
    /// already.
    pub held: Option<Holdout>,
    /// How engines are opened; its batch is that of the float loop.
    pub engine: EngineOptions,
    /// Where results are kept.
    pub stages: &'a Stages,
    /// Called after every evaluation with the number done and an estimate of all; may break off.
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// A quantized loop, not yet lowered.
pub struct Quantized {
    /// Layers and their weights.
    pub survey: Survey,
    /// What was fitted.
    pub fitted: Fitted,
}

/// Why a loop was not quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// From calibration.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// From assembling or lowering the loop.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// From running it.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// From opening it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// From keeping results.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Evaluations, full and cached ones, of `batch` samples at once that [`quantize`] makes, about,
/// without the search for layers that stay float: to fit on `fit` samples and, where the cache has
/// a correction that may be fitted again, to measure on `held` others. One more round stands for
/// the inputs that are tried out.
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

/// Fits ranges and corrections. `assembled` has the corrections `cache` of the cache, if any;
/// `float` runs the same loop uncorrected.
///
/// # Errors
/// [`QuantizeError`].
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
    // what is rounded is looked at before and after
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

/// CacheTables that round nothing and change nothing.
fn unfitted(survey: &Survey, outputs: Outputs, evaluations: usize) -> QuantTables {
    let mut out = QuantTables::float(survey, evaluations);
    for layer in outputs.layers(survey) {
        out.corrections
            .insert(layer, OutputCorrection::identity(&survey.layers[layer], evaluations));
    }
    out
}

/// What corrections are fitted with.
struct CorrectionFitter<'a> {
    assembled: &'a Assembled<'a>,
    survey: &'a Survey,
    /// Ranges, and corrections that change nothing.
    tables: QuantTables,
    compensation: Option<CompensationMode>,
    request: &'a Request,
    /// Samples to fit on; those behind are held out.
    fit: usize,
}

impl CorrectionFitter<'_> {
    /// Fits with the correction of the cache as it is and fitted again, if it may be and there are
    /// samples to tell which is better. What is stored is noisy now, and least squares trusts it
    /// less: right where the noise is what errs, wrong where it averages out over steps and the
    /// forecast that is given up does not.
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
