//! Measures the quality of a compiled loop, and proposes recipes with a better one.

use super::{CompileError, Compiled, LoopOptions, Phase, Progress, compile, compile_loop};
use crate::calibrate::measure::Holdout;
use crate::calibrate::{EvaluationCounter, holdout_size};
use crate::model::Model;
use crate::reading::Verdict;
use crate::recipe::{Quant, Recipe};
use cqc_runtime::artifact::DenoiserOptions;
use cqc_runtime::denoise::Denoiser;
use cqc_runtime::engine::Weights;
use cqc_runtime::sampler::Sampler;

/// Mean PSNR on the holdout, in dB, below which a caller should not call [`Compiled::write`] unless
/// asked to. Below it, the samples of a trained model no longer have the distribution of the float
/// loop's samples (docs/caching.md).
pub const FLOOR: f64 = 30.0;

/// Another recipe and its quality.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The options that differ, e.g. `--interval 2`.
    pub options: String,
    /// Mean PSNR on the holdout, in dB.
    pub psnr: f64,
}

impl Compiled<'_> {
    /// The least [`Compiled::quality`] that the loop may have, in dB: that of the recipe, or else
    /// [`FLOOR`] for a network whose reading fits. It is `None` for other networks, because the
    /// samples of an untrained network have nothing to be near to.
    pub fn floor(&self) -> Option<f64> {
        let fits = matches!(self.session.reading().verdict, Verdict::Fits(_));
        self.session.recipe.target_psnr.or(fits.then_some(FLOOR))
    }

    /// Mean PSNR of the compiled loop to the uncached float loop on the holdout, in dB; `None` if
    /// nothing was calibrated.
    ///
    /// # Errors
    /// [`CompileError`] if a loop cannot be run.
    pub fn quality(&self, progress: &mut dyn Progress) -> Result<Option<f64>, CompileError> {
        let session = &self.session;
        let Some(request) = session.calibration_set() else { return Ok(None) };
        let engine = session.engine_options(request.samples);
        let (options, guided) = (&session.options, session.recipe.guidance() != 1.0);
        let sampler = Sampler::new(&options.sampler, options.steps)?;
        let from = request.samples - holdout_size(request.samples);
        let batches = (request.samples - from).div_ceil(engine.batch.max(1)) as u64;
        let all = 2 * batches * sampler.evaluations().len() as u64;
        let call = &mut |done, total| progress.update(Phase::Measuring, done, total);
        let mut counter = EvaluationCounter { done: 0, all, call };
        let held = {
            let float = LoopOptions { bf16: None, ..options.clone() };
            let lowered = compile_loop(session.model, &float)?;
            let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
            let mut denoiser = Denoiser::open(&weights, sampler, guided, &engine)?;
            Holdout::new(&mut denoiser, request, from, &mut counter)?
        };
        let opened = DenoiserOptions { engine, ..DenoiserOptions::default() };
        let mut denoiser = self.artifact()?.denoiser(&opened)?;
        Ok(Some(held.psnr_of(&mut denoiser, request, &mut counter)?))
    }
}

/// Compiles and measures other recipes until one reaches `floor`, the nearest first: smaller
/// intervals, then no cache, then no quantization. Returns the one that reaches it, or all that
/// were tried if none does.
///
/// # Errors
/// [`CompileError`] if a recipe cannot be compiled or measured.
pub fn proposals(
    model: &Model,
    recipe: &Recipe,
    floor: f64,
    progress: &mut dyn Progress,
) -> Result<Vec<Proposal>, CompileError> {
    let mut tried = Vec::new();
    let mut interval = if recipe.caches() { recipe.interval() } else { 1 };
    let mut others = Vec::new();
    while interval > 2 {
        interval = (interval / 2).max(2);
        let less = Recipe { interval: Some(interval), ..recipe.clone() };
        others.push((format!("--interval {interval}"), less));
    }
    if recipe.caches() && recipe.quant().weight_bits().is_some() {
        let whole = Recipe {
            interval: Some(1),
            cut: None,
            cache_fit: None,
            schedule: None,
            ..recipe.clone()
        };
        let whole = Recipe { correct: None, refit_cache: None, ..whole };
        others.push(("--interval 1".into(), whole));
    }
    if recipe.caches() && recipe.quant() == Quant::W8a8 {
        let interval = interval.min(2);
        let float = Recipe { quant: Some(Quant::None), interval: Some(interval), ..recipe.clone() };
        others.push((format!("--quant none --interval {interval}"), float));
    }
    // an option that has no meaning in the other recipe takes that recipe out of the comparison
    for (options, other) in others.into_iter().filter(|(_, other)| other.check().is_empty()) {
        let compiled = compile(model, &other, progress)?;
        let Some(psnr) = compiled.quality(progress)? else { continue };
        tried.push(Proposal { options, psnr });
        if psnr >= floor {
            tried.drain(..tried.len() - 1);
            break;
        }
    }
    Ok(tried)
}
