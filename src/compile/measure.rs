//! Collects the decisions of a compilation and measures the errors on the holdout: the data of `cqc
//! compile --report`.

use super::{CompileError, Compiled, Phase, Progress};
use crate::report::layers::{QuantizationFacts, bf16_layers, layers};
use crate::report::trajectory::{Errors, MeasuredLoop, Measurement, RangeOptions, errors};
use crate::report::{Caching, Candidate, Cost, FileFacts, ModelFacts, Report, Sampling};
use cqc_proto::cq::GuidanceInterval;
use cqc_runtime::sampler::Sampler;

impl Compiled<'_> {
    /// Collects what was decided, and runs the holdout through the loops with and without caching
    /// and quantization. `artifact` describes the file that was written.
    ///
    /// # Errors
    /// [`CompileError`] if a loop cannot be run.
    pub fn report(
        &self,
        artifact: FileFacts,
        progress: &mut dyn Progress,
    ) -> Result<Report, CompileError> {
        let model = self.session.model;
        Ok(Report {
            model: ModelFacts {
                file: model.path.display().to_string(),
                blake3: model.blake3.clone(),
                producer: model.producer.clone(),
                opset: model.opset,
                parameters: model.parameters,
            },
            sampling: self.sampling()?,
            artifact,
            caching: self.caching(),
            quantization: self.quantization()?,
            errors: self.errors(progress)?,
            cost: Cost::of(&self.lowered.plan, &self.guided()?),
        })
    }

    /// For every evaluation, whether guidance computes the unconditional half too.
    fn guided(&self) -> Result<Vec<bool>, CompileError> {
        let (manifest, options) = (&self.manifest, &self.session.options);
        let is_guided = manifest.classifier_free_scale() != 1.0;
        let steps =
            manifest.guidance_interval.unwrap_or(GuidanceInterval::ALL).steps(options.steps);
        let sampler = Sampler::new(&options.sampler, options.steps)?;
        Ok(sampler.evaluations().iter().map(|e| is_guided && steps.contains(&e.step)).collect())
    }

    fn sampling(&self) -> Result<Sampling, CompileError> {
        let (manifest, options) = (&self.manifest, &self.session.options);
        let sampler = Sampler::new(&options.sampler, options.steps)?;
        Ok(Sampling {
            sampler: options.sampler.kind.to_string(),
            steps: options.steps,
            timesteps: sampler.evaluations().iter().map(|e| e.timestep).collect(),
            guidance: manifest.guidance,
            takes_guidance: manifest.takes_guidance(),
            calibration: manifest.calibration.as_ref().map(|c| (c.samples, c.seed)),
        })
    }

    fn caching(&self) -> Option<Caching> {
        let (cached, choice) = self.session.cached.as_ref().zip(self.choice.as_ref())?;
        let fit = choice.tables.as_ref().map(|(fit, _)| *fit);
        let candidate = |m: &crate::calibrate::MeasuredCandidate| Candidate {
            method: m.method.clone(),
            full: m.full.clone(),
            correction: m.correction.map(|fit| fit.to_string()),
            psnr: m.psnr,
            taken: m.method == choice.method && m.full == choice.full && m.correction == fit,
        };
        Some(Caching {
            cut: cached.cut_name.clone(),
            interval: self.session.recipe.interval(),
            method: choice.method.clone(),
            full: choice.full.clone(),
            cost: choice.cost,
            correction: fit.map(|fit| fit.to_string()),
            candidates: choice.measured.iter().map(candidate).collect(),
        })
    }

    fn quantization(&self) -> Result<Option<QuantizationFacts>, CompileError> {
        if self.quantized.is_none() && self.lowered.bf16.is_none() {
            return Ok(None);
        }
        let executions = self.artifact()?.layer_executions()?;
        let (layers, float_layers) = match (&self.quantized, &self.lowered.bf16) {
            (Some(quantized), _) => {
                (layers(quantized, &executions), quantized.survey.float_layers.clone())
            }
            (None, Some(products)) => {
                (bf16_layers(products, &self.lowered, &executions), products.float_layers.clone())
            }
            (None, None) => return Ok(None),
        };
        let quant = self.manifest.quant.quantized();
        Ok(Some(QuantizationFacts {
            kind: self.manifest.quant.name().into(),
            rounding: quant.map(|q| q.rounding.clone()).unwrap_or_default(),
            compensation: quant.and_then(|q| Some(q.compensation.as_ref()?.mode.clone())),
            layers,
            float_layers,
        }))
    }

    /// The errors on the holdout. Without caching and quantization there is nothing to measure, and
    /// possibly no calibration set.
    fn errors(&self, progress: &mut dyn Progress) -> Result<Option<Errors>, CompileError> {
        let session = &self.session;
        if session.cached.is_none() && self.quantized.is_none() && self.lowered.bf16.is_none() {
            return Ok(None);
        }
        let request = match session.calibration_set() {
            Some(set) => set.clone(),
            None => session.calibration_set_of(session.recipe.calib_samples())?,
        };
        let engine = session.engine_options(request.samples);
        let grouping =
            session.recipe.share_ranges.unwrap_or(crate::recipe::Grouping::PerEvaluation);
        let ranges = RangeOptions { grouping, select: session.select() };
        let measured = MeasuredLoop {
            model: session.model,
            options: &session.options,
            cached: session.cached.as_ref().zip(self.choice.as_ref()),
            quantized: self.quantized.as_ref().map(|quantized| (quantized, &ranges)),
            lowered: &self.lowered,
        };
        let progress = &mut |done, total| progress.update(Phase::Reporting, done, total);
        Ok(errors(&measured, Measurement { request, engine, progress })?)
    }
}
