//! What an artifact is, in plain values: for callers in other languages.

use crate::Artifact;
use crate::retime::{Possible, possible};
use crate::sampler::SamplerError;
use cqc_proto::cq::{Fill, Schedule};
use cqc_proto::plan::{InputRole, PlanInput};
use cqc_proto::sampler::SamplerConfig;
use cqc_proto::{DType, Dim};
use serde::Serialize;
use std::collections::BTreeMap;

/// An artifact as plain values. Serialized, it is what the C and Python interfaces call its info.
#[derive(Clone, Debug, Serialize)]
pub struct ArtifactInfo {
    /// Sampling steps that it was compiled for.
    pub steps: usize,
    /// Numbers of steps that it can be run with; `None`: any.
    pub possible_steps: Option<Vec<usize>>,
    /// The sampler.
    pub sampler: SamplerConfig,
    /// The time step of every evaluation.
    pub timesteps: Vec<f64>,
    /// Scale of guidance unless a request says otherwise; 1 is off.
    pub guidance: f32,
    /// Inputs of the network.
    pub inputs: Vec<InputInfo>,
    /// Inputs that the loop fills by itself where a request does not give them, and with what.
    pub fills: BTreeMap<String, Fill>,
    /// Sizes of one sample, channels first; `None` where one is open.
    pub sample_shape: Option<Vec<usize>>,
    /// The batch, where the model fixes it.
    pub batch: Option<usize>,
    /// Evaluations that run in full, ascending from 0.
    pub full_evaluations: Vec<usize>,
    /// Whether evaluations reuse what others have computed.
    pub cached: bool,
    /// Whether layers compute with integers.
    pub quantized: bool,
    /// Bytes of all constants.
    pub weight_bytes: u64,
    /// BLAKE3 of the source model, hexadecimal.
    pub model: String,
}

/// An input of the network.
#[derive(Clone, Debug, Serialize)]
pub struct InputInfo {
    /// Its name in the source model.
    pub name: String,
    /// Element type that callers give; floats of any type are taken for a float.
    pub dtype: DType,
    /// Sizes; the batch is a symbol.
    pub shape: Vec<Dim>,
    /// What it means to the loop.
    pub role: InputRole,
}

impl Artifact {
    /// What the artifact is.
    ///
    /// # Errors
    /// [`SamplerError`] if its sampler cannot be made.
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
