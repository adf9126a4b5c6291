//! The decisions of a compilation in a few numbers, as `cqc compile --json` prints them.

use super::Compiled;
use crate::calibrate::quantize::Quantized;
use crate::reading::Reading;
use crate::report::cost::StepCost;
use cqc_passes::quant::{Bf16Products, Layer};
use cqc_proto::cq::Fill;
use cqc_proto::plan::Plan;
use cqc_proto::{Bindings, Dim};
use serde::Serialize;
use std::collections::BTreeMap;

/// The decisions of a compilation in a few numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the sampler.
    pub sampler: String,
    /// The meaning of the network's output, and the result of its test.
    pub reading: Reading,
    /// Number of sampler steps.
    pub steps: usize,
    /// Guidance scale; 1 means no guidance.
    pub guidance: f32,
    /// Conditions that the loop fills by itself, with the kind of value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fills: BTreeMap<String, Fill>,
    /// Number of elements of all float initializers of the model.
    pub parameters: u64,
    /// The caching; `None` if nothing is cached.
    pub caching: Option<CachingSummary>,
    /// The quantization; `None` if nothing is quantized.
    pub quant: Option<QuantSummary>,
    /// Work that has been moved out of the loop.
    pub left_the_loop: LeftTheLoop,
}

/// The cut, the schedule and the correction of the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CachingSummary {
    /// Names of the cached tensors.
    pub cut: String,
    /// Multiply-accumulates of a full step, per sample.
    pub macs_full: i64,
    /// Multiply-accumulates of a cached step, per sample.
    pub macs_cached: i64,
    /// Bytes of the cache, per sample.
    pub cache_bytes: u64,
    /// Name of the method that found the schedule.
    pub schedule: String,
    /// The full evaluations, in ascending order from 0.
    pub full_steps: Vec<usize>,
    /// The cost of this schedule, as its method measures it.
    pub cost: Option<f64>,
    /// The cost of the uniform schedule, measured in the same way.
    pub uniform_cost: Option<f64>,
    /// Name of the correction of the cache; `None` if it is not corrected.
    pub correction: Option<String>,
    /// Every candidate that was measured on the holdout.
    pub measured: Vec<MeasuredSchedule>,
    /// Number of evaluations of the loop.
    #[serde(skip)]
    pub evaluations: usize,
    /// Multiply-accumulates of a cached step as a share of those of a full step.
    #[serde(skip)]
    pub share: f64,
}

/// A schedule with a correction, and its quality on the holdout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredSchedule {
    /// Name of the method that found the schedule.
    pub schedule: String,
    /// Name of the correction of the cache; `None` if it was not corrected.
    pub correction: Option<String>,
    /// Mean PSNR to the ends of the uncached float loop, in dB.
    pub psnr: f64,
}

/// The quantized layers of a loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantSummary {
    /// Number of quantized layers.
    pub layers: usize,
    /// Multiply-accumulates of these layers in a full step, per sample.
    pub macs: i64,
    /// Layers that are not quantized.
    pub float_layers: Vec<FloatLayerSummary>,
    /// Names of the quantized layers whose inputs are rounded to bf16.
    pub inputs_bf16: Vec<String>,
    /// Number of layers whose sums are corrected.
    pub corrected_layers: usize,
}

/// A layer that is not quantized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FloatLayerSummary {
    /// Name of its node.
    pub name: String,
    /// The reason.
    pub why: String,
}

/// Work that has been moved out of the loop, per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LeftTheLoop {
    /// Multiply-accumulates whose results are tables.
    pub table_macs: i64,
    /// Bytes of weights that only the tables needed.
    pub table_weight_bytes: u64,
    /// Multiply-accumulates that preludes do once per request.
    pub prelude_macs: i64,
    /// Bytes of weights that only preludes read.
    pub prelude_weight_bytes: u64,
}

impl Compiled<'_> {
    /// The decisions of this compilation.
    pub fn summary(&self) -> Summary {
        let (model, manifest, lowered) = (self.session.model, &self.manifest, &self.lowered);
        let (saved, batch) = (&lowered.saved, model.batch_symbol.as_deref());
        let quant = match (&self.quantized, &lowered.bf16) {
            (Some(quantized), _) => Some(of_quantized(quantized)),
            (None, products) => products.as_ref().map(|products| of_bf16(products, &lowered.plan)),
        };
        Summary {
            sampler: manifest.sampler.kind.to_string(),
            reading: self.session.reading.clone(),
            steps: manifest.steps,
            guidance: manifest.guidance,
            fills: manifest.fills.clone(),
            parameters: model.parameters,
            caching: self.caching_summary(),
            quant,
            left_the_loop: LeftTheLoop {
                table_macs: per_sample(&saved.table_macs, batch),
                table_weight_bytes: saved.table_weight_bytes,
                prelude_macs: per_sample(&saved.prelude_macs, batch),
                prelude_weight_bytes: saved.prelude_weight_bytes,
            },
        }
    }

    fn caching_summary(&self) -> Option<CachingSummary> {
        let (cached, choice) = self.session.cached.as_ref().zip(self.choice.as_ref())?;
        let cut = &cached.cut;
        let measured = choice.measured.iter().map(|m| MeasuredSchedule {
            schedule: m.method.clone(),
            correction: m.correction.map(|fit| fit.to_string()),
            psnr: m.psnr,
        });
        Some(CachingSummary {
            cut: cached.cut_name.clone(),
            macs_full: cut.macs_full,
            macs_cached: cut.macs_cached,
            cache_bytes: cut.bytes as u64,
            schedule: choice.method.clone(),
            full_steps: choice.full.clone(),
            cost: choice.cost.map(|(cost, _)| cost),
            uniform_cost: choice.cost.and_then(|(_, uniform)| uniform),
            correction: choice.tables.as_ref().map(|(fit, _)| fit.to_string()),
            measured: measured.collect(),
            evaluations: cached.evaluations(),
            share: cut.share(),
        })
    }
}

fn float_layers(layers: &[(String, String)]) -> Vec<FloatLayerSummary> {
    layers
        .iter()
        .map(|(name, why)| FloatLayerSummary { name: name.clone(), why: why.clone() })
        .collect()
}

fn of_quantized(quantized: &Quantized) -> QuantSummary {
    let survey = &quantized.survey;
    let bf16 = survey.layers.iter().filter(|layer| layer.reads_bf16());
    QuantSummary {
        layers: survey.layers.len(),
        macs: survey.layers.iter().map(|layer: &Layer| layer.macs).sum(),
        float_layers: float_layers(&survey.float_layers),
        inputs_bf16: bf16.map(|layer| layer.name.clone()).collect(),
        corrected_layers: quantized.fitted.tables.corrections.len(),
    }
}

fn of_bf16(products: &Bf16Products, plan: &Plan) -> QuantSummary {
    QuantSummary {
        layers: products.layers.len(),
        macs: StepCost::of(plan, &plan.full).quantized_macs,
        float_layers: float_layers(&products.float_layers),
        inputs_bf16: products.layers.iter().map(|layer| layer.name.clone()).collect(),
        corrected_layers: 0,
    }
}

/// The value at a batch of one.
fn per_sample(macs: &Dim, batch: Option<&str>) -> i64 {
    let one: Bindings = batch.iter().map(|&s| (s.into(), 1)).collect();
    macs.eval(&one).unwrap_or(0)
}
