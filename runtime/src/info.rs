//! The properties of an artifact as plain values, for callers in other languages.

use crate::Artifact;
use crate::retime::{Possible, possible};
use crate::sampler::SamplerError;
use cqc_proto::cq::{Fill, Schedule};
use cqc_proto::plan::{InputRole, PlanInput};
use cqc_proto::sampler::SamplerConfig;
use cqc_proto::{DType, Dim};
use serde::Serialize;
use std::collections::BTreeMap;

/// The properties of an artifact as plain values. The C and Python interfaces return it serialized,
/// as the artifact's info.
#[derive(Clone, Debug, Serialize)]
pub struct ArtifactInfo {
    /// Number of sampler steps that the artifact was compiled for.
    pub steps: usize,
    /// Numbers of sampler steps with which the artifact can be run, or `None` if any number is
    /// possible.
    pub possible_steps: Option<Vec<usize>>,
    /// Configuration of the sampler.
    pub sampler: SamplerConfig,
    /// The time step of every evaluation, in the order of the loop.
    pub timesteps: Vec<f64>,
    /// Guidance scale of requests that do not set one. A scale of 1 means no guidance.
    pub guidance: f32,
    /// The inputs of the network.
    pub inputs: Vec<InputInfo>,
    /// The inputs that the loop fills by itself if a request does not give them, by name.
    pub fills: BTreeMap<String, Fill>,
    /// The shape of one sample without the batch, channels first, or `None` if one of its sizes is
    /// symbolic.
    pub sample_shape: Option<Vec<usize>>,
    /// The batch size, if the model fixes it.
    pub batch: Option<usize>,
    /// Indices of the full evaluations, ascending from 0.
    pub full_evaluations: Vec<usize>,
    /// Whether the artifact caches, so that some evaluations run the cached step.
    pub cached: bool,
    /// Whether the artifact has quantized layers.
    pub quantized: bool,
    /// Size of all constants in bytes.
    pub weight_bytes: u64,
    /// BLAKE3 hash of the source model, in hexadecimal.
    pub model: String,
}

/// Properties of one input of the network.
#[derive(Clone, Debug, Serialize)]
pub struct InputInfo {
    /// Name of the input in the source model.
    pub name: String,
    /// Element type that callers give. An input of a float type accepts all float types.
    pub dtype: DType,
    /// Shape of the input. The batch is a symbolic size.
    pub shape: Vec<Dim>,
    /// Role of the input in the loop.
    pub role: InputRole,
}

impl Artifact {
    /// The properties of the artifact as plain values.
    ///
    /// # Errors
    /// A [`SamplerError`] if the sampler cannot be made.
    pub fn info(&self) -> Result<ArtifactInfo, SamplerError> {
        let manifest = self.manifest();
        let sampler = self.sampler()?;
        let timesteps: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
        let input = |PlanInput { name, ty, role }: &PlanInput| InputInfo {
            name: name.clone(),
            dtype: ty.dtype,
            shape: ty.shape.to_vec(),
            role: *role,
        };
        Ok(ArtifactInfo {
            steps: manifest.steps,
            possible_steps: match possible(manifest) {
                Ok(Possible::These(these)) => Some(these),
                Ok(Possible::Any) | Err(_) => None,
            },
            sampler: manifest.sampler.clone(),
            full_evaluations: match &manifest.plan.cache {
                Some(cache) => cache.full_evaluations.clone(),
                None => (0..timesteps.len()).collect(),
            },
            timesteps,
            guidance: manifest.guidance,
            inputs: manifest.plan.inputs.iter().map(input).collect(),
            fills: manifest.fills.clone(),
            sample_shape: self.sample_shape(),
            batch: manifest.plan.fixed_batch,
            cached: matches!(manifest.schedule, Schedule::Cached(_)),
            quantized: manifest.quant.quantized().is_some(),
            weight_bytes: self.weight_bytes(),
            model: manifest.source.blake3.clone(),
        })
    }
}
