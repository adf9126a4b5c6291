//! Chooses the layers that stay float so that a target of quality is met.

use super::{Grouping, QuantizeError, TunableLoop, ranges, sensitivity};
use crate::calibrate::{EvaluationCounter, Holdout, PartialBatches};
use crate::compile::Assembled;
use cqc_passes::quant::{AnnotateOptions, QuantSpec, QuantTables, Survey};
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::EngineOptions;

/// The loop and the samples on which the layers are chosen.
pub struct FloatLayerSearch<'a> {
    /// The loop.
    pub assembled: &'a Assembled<'a>,
    /// Surveys its layers, with the migration of scales.
    pub survey: &'a dyn Fn(&QuantSpec) -> Survey,
    /// The calibration samples: the first `fit` for ranges, the others to measure on.
    pub request: &'a Request,
    /// Number of samples for ranges.
    pub fit: usize,
    /// Options of the engines.
    pub engine: &'a EngineOptions,
}

/// The quality that is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Mean PSNR to the full float loop, in dB.
    Psnr(f64),
    /// That of a small loop ([`SMALL_WORK`]): [`SMALL_PSNR`], or [`CACHE_MARGIN`] less than the
    /// cached float loop reaches.
    Small,
}

/// Multiplications of the layers, per sample and evaluation, below which quality comes before time.
/// A step then takes a few tenths of a millisecond at most (docs/quantization.md has figures).
pub(super) const SMALL_WORK: i64 = 8_000_000;

/// Mean PSNR that the quantized layers of a small loop should reach on held-out samples, in dB.
const SMALL_PSNR: f64 = 38.0;

/// Loss of PSNR that quantization may add to that of the cache, in dB.
const CACHE_MARGIN: f64 = 1.0;

/// Adds as many layers to `spec.keep_float` as it takes to reach `target`, those first whose
/// rounding moves the end of the trajectory most. It tries none, one, two, four and so on.
///
/// # Errors
/// [`QuantizeError`] if the loop cannot be lowered, run or fitted.
pub fn keep_float(
    trial: &FloatLayerSearch,
    float: &mut Denoiser,
    mut spec: QuantSpec,
    target: Target,
    progress: &mut EvaluationCounter,
) -> Result<QuantSpec, QuantizeError> {
    let FloatLayerSearch { assembled, request, fit, .. } = *trial;
    let survey = (trial.survey)(&spec);
    // Weights stay as they are: rounding them makes about the same error in all layers, which does
    // not hold for inputs.
    let mut inputs_only = survey.clone();
    inputs_only.layers.iter_mut().for_each(|layer| layer.weight = None);
    let nothing = QuantTables::float(&survey, assembled.evaluations());
    let mut study = open(trial, float, &inputs_only, &nothing)?;
    let all = |_, _| true;
    let tables =
        ranges(&mut study, &survey, request, fit, Grouping::PerEvaluation, &all, progress)?;
    let count = PartialBatches::new(1, 1);
    let effects = sensitivity(&mut study, &survey, &tables, request, &|_| true, count, progress)?;
    let ranked = ranked(&survey, &effects);

    let held = Holdout::new(float, request, fit, progress)?;
    let full = match assembled.full_evaluations() {
        [] => (0..assembled.evaluations()).collect(),
        full => full.to_vec(),
    };
    let target = match target {
        Target::Psnr(target) => target,
        Target::Small => {
            let nothing = Survey::default();
            let mut float_loop = open(trial, float, &nothing, &tables.of_other(&survey, &nothing))?;
            let psnr = held.psnr(&mut float_loop.denoiser, request, &full, None, progress)?;
            SMALL_PSNR.min(psnr - CACHE_MARGIN)
        }
    };
    let given = spec.keep_float.len();
    let mut count = 0;
    loop {
        spec.keep_float.truncate(given);
        spec.keep_float.extend(ranked.iter().take(count).cloned());
        let kept = (trial.survey)(&spec);
        let mut kept_loop = open(trial, float, &kept, &tables.of_other(&survey, &kept))?;
        let psnr = held.psnr(&mut kept_loop.denoiser, request, &full, None, progress)?;
        tracing::info!("{count} more layers in float: {psnr:.2} dB on held-out samples");
        if psnr >= target || count >= ranked.len() {
            return Ok(spec);
        }
        count = (count * 2).clamp(1, ranked.len());
    }
}

fn open(
    trial: &FloatLayerSearch,
    float: &Denoiser,
    survey: &Survey,
    tables: &QuantTables,
) -> Result<TunableLoop, QuantizeError> {
    let lowered = trial.assembled.lower(Some((survey, tables, AnnotateOptions::default())))?.0;
    TunableLoop::open(&lowered, float, trial.engine)
}

/// Names of layers, those first whose inputs have the greatest effect.
fn ranked(survey: &Survey, effects: &[f64]) -> Vec<String> {
    let effect = |sites: &[usize]| sites.iter().map(|&site| effects[site]).fold(0.0, f64::max);
    let mut layers: Vec<(f64, &str)> =
        survey.layers.iter().map(|l| (effect(&l.sites), l.name.as_str())).collect();
    layers.sort_by(|a, b| b.0.total_cmp(&a.0));
    layers.into_iter().map(|(_, name)| name.to_string()).collect()
}
