//! What was decided when a loop was compiled, what it costs and what it does to the samples: the
//! data of `compile --report`.

pub mod cost;
pub mod layers;
pub mod trajectory;

use cost::{StepCost, cache_bytes, loop_macs};
use cqc_proto::plan::Plan;
use layers::QuantizationFacts;
use serde::Serialize;
use trajectory::Errors;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The source model.
    pub model: ModelFacts,
    /// The loop.
    pub sampling: Sampling,
    /// The artifact's file.
    pub artifact: FileFacts,
    /// What is cached and when; `None`: nothing.
    pub caching: Option<Caching>,
    /// Which layers are quantized; `None`: none.
    pub quantization: Option<QuantizationFacts>,
    /// Errors along the trajectory; `None`: nothing makes any.
    pub errors: Option<Errors>,
    /// Work and bytes.
    pub cost: Cost,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// Its path as given.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// The source model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelFacts {
    /// Its file.
    pub file: String,
    /// BLAKE3 of it, hexadecimal.
    pub blake3: String,
    /// Its exporter.
    pub producer: String,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Elements of all float initializers.
    pub parameters: u64,
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Name of the sampler.
    pub sampler: String,
    /// Sampling steps.
    pub steps: usize,
    /// One per evaluation.
    pub timesteps: Vec<f64>,
    /// Guidance scale; 1 = off.
    pub guidance: f32,
    /// Whether the scale is an input of the network: there is one half only.
    pub takes_guidance: bool,
    /// Calibration samples and the seed of their noise, if there was a calibration.
    pub calibration: Option<(usize, Option<u64>)>,
}

/// What is cached and when.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Caching {
    /// Names of what is cached.
    pub cut: String,
    /// Cache interval.
    pub interval: usize,
    /// How the schedule was found.
    pub method: String,
    /// Full evaluations, ascending from 0.
    pub full: Vec<usize>,
    /// What the method minimises, for this schedule and for the uniform one.
    pub cost: Option<(f64, Option<f64>)>,
    /// How the cache is corrected.
    pub correction: Option<String>,
    /// What was tried.
    pub candidates: Vec<Candidate>,
}

/// A schedule with a correction that was measured on held-out samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// How the schedule was found.
    pub method: String,
    /// Full evaluations.
    pub full: Vec<usize>,
    /// How the cache was corrected.
    pub correction: Option<String>,
    /// Mean PSNR to the ordinary loop's ends, dB.
    pub psnr: f64,
    /// Whether it was taken.
    pub taken: bool,
}

/// Work and bytes, per sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// A full evaluation.
    pub full: StepCost,
    /// A cached one.
    pub cached: Option<StepCost>,
    /// Bytes of the cache, both halves of guidance.
    pub cache_bytes: u64,
    /// Full evaluations.
    pub full_evaluations: usize,
    /// All evaluations.
    pub evaluations: usize,
    /// Multiply-accumulates of the loop, both halves of guidance.
    pub macs: i64,
    /// The same if every evaluation were full.
    pub full_macs: i64,
    /// Bytes of weights that the loop's evaluations read for a batch of one.
    pub weight_bytes: u64,
    /// The same if every evaluation were full and in f32.
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

    /// How many times less there is to multiply than if every evaluation were full.
    pub fn speed_up(&self) -> f64 {
        self.full_macs as f64 / self.macs.max(1) as f64
    }
}
