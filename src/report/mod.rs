//! The data of `compile --report`: the decisions of a compilation, the cost of the compiled loop,
//! and the errors of its samples.

pub mod cost;
pub mod layers;
pub mod trajectory;

use cost::{StepCost, cache_bytes, loop_macs};
use cqc_proto::plan::Plan;
use layers::QuantizationFacts;
use serde::Serialize;
use trajectory::Errors;

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The source model.
    pub model: ModelFacts,
    /// The loop.
    pub sampling: Sampling,
    /// The artifact's file.
    pub artifact: FileFacts,
    /// The caching; `None` if nothing is cached.
    pub caching: Option<Caching>,
    /// The quantization; `None` if no layer is quantized.
    pub quantization: Option<QuantizationFacts>,
    /// The errors along the trajectory; `None` if neither caching nor quantization makes any.
    pub errors: Option<Errors>,
    /// Work and bytes.
    pub cost: Cost,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// Its path, as given.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// The source model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelFacts {
    /// Path of its file.
    pub file: String,
    /// BLAKE3 of the model, in hexadecimal ([`Model::blake3`](crate::Model::blake3)).
    pub blake3: String,
    /// Name of its exporter.
    pub producer: String,
    /// Version of the standard ONNX operator set.
    pub opset: i64,
    /// Number of elements of all float initializers.
    pub parameters: u64,
}

/// The compiled loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Name of the sampler.
    pub sampler: String,
    /// Number of sampler steps.
    pub steps: usize,
    /// The time step of every evaluation.
    pub timesteps: Vec<f64>,
    /// Guidance scale; 1 means no guidance.
    pub guidance: f32,
    /// Whether the network takes the scale as an input, so that no unconditional half is computed.
    pub takes_guidance: bool,
    /// Number of calibration samples and the seed of their noise; `None` if nothing was calibrated.
    /// The seed is `None` if the noise was given.
    pub calibration: Option<(usize, Option<u64>)>,
}

/// The cut, the schedule and the correction of the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Caching {
    /// Names of the cached tensors.
    pub cut: String,
    /// The cache interval.
    pub interval: usize,
    /// Name of the method that found the schedule.
    pub method: String,
    /// The full evaluations, in ascending order from 0.
    pub full: Vec<usize>,
    /// The cost that the method minimises, of this schedule and of the uniform one.
    pub cost: Option<(f64, Option<f64>)>,
    /// Name of the correction of the cache; `None` if it is not corrected.
    pub correction: Option<String>,
    /// The candidates that were measured.
    pub candidates: Vec<Candidate>,
}

/// A schedule with a correction that was measured on held-out samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Name of the method that found the schedule.
    pub method: String,
    /// The full evaluations, in ascending order from 0.
    pub full: Vec<usize>,
    /// Name of the correction of the cache; `None` if it was not corrected.
    pub correction: Option<String>,
    /// Mean PSNR to the ends of the ordinary loop, in dB.
    pub psnr: f64,
    /// Whether this candidate was taken.
    pub taken: bool,
}

/// Work and bytes of the loop, per sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The cost of a full evaluation.
    pub full: StepCost,
    /// The cost of a cached evaluation; `None` if nothing is cached.
    pub cached: Option<StepCost>,
    /// Bytes of the cache, for both halves of guidance.
    pub cache_bytes: u64,
    /// Number of full evaluations.
    pub full_evaluations: usize,
    /// Number of all evaluations.
    pub evaluations: usize,
    /// Multiply-accumulates of the loop, with both halves of guidance.
    pub macs: i64,
    /// Multiply-accumulates of the loop if every evaluation were full.
    pub full_macs: i64,
    /// Bytes of weights that the evaluations of the loop read for a batch of one.
    pub weight_bytes: u64,
    /// Bytes of weights that they would read if every evaluation were full and in f32.
    pub float_weight_bytes: u64,
}

impl Cost {
    /// The cost of a plan's loop. `guided` says for every evaluation whether classifier-free
    /// guidance computes the unconditional half too.
    pub fn of(plan: &Plan, guided: &[bool]) -> Cost {
        let evaluations = plan.evaluations;
        let is_full =
            |e: &usize| plan.cache.as_ref().is_none_or(|cache| cache.full_evaluations.contains(e));
        let full_evaluations = (0..evaluations).filter(is_full).count();
        let rest = evaluations - full_evaluations;
        let full = StepCost::of(plan, &plan.full);
        let cached = plan.cache.as_ref().map(|cache| StepCost::of(plan, &cache.cached));
        let halves: Vec<usize> = (0..evaluations).filter(|e| guided[*e]).collect();
        let full_halves = halves.iter().filter(|e| is_full(e)).count();
        // the unconditional half has a prelude and a cache of its own
        let second = |full, cached| match halves.is_empty() {
            true => 0,
            false => loop_macs(plan, full, cached),
        };
        let caches = if halves.is_empty() { 1 } else { 2 };
        Cost {
            full,
            cached,
            cache_bytes: caches * cache_bytes(plan) / plan.fixed_batch.unwrap_or(1) as u64,
            full_evaluations,
            evaluations,
            macs: loop_macs(plan, full_evaluations, rest)
                + second(full_halves, halves.len() - full_halves),
            full_macs: loop_macs(plan, evaluations, 0) + second(halves.len(), 0),
            weight_bytes: full.weight_bytes * full_evaluations as u64
                + cached.map_or(0, |cached| cached.weight_bytes * rest as u64),
            float_weight_bytes: full.float_weight_bytes * evaluations as u64,
        }
    }

    /// The ratio of multiply-accumulates if every evaluation were full to those of the loop.
    pub fn speed_up(&self) -> f64 {
        self.full_macs as f64 / self.macs.max(1) as f64
    }
}
