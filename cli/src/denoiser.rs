//! Something to sample from: an artifact as it is, or a model compiled in memory, without caching.

use super::args::Sizes;
use super::artifact::{self, Artifact};
use super::report::Failure;
use cachequant::compile::{LoopOptions, compile_loop};
use cachequant::model::{Model, ModelOptions};
use cqc_proto::Tensor;
use cqc_proto::plan::{InputRole, Plan};
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::{Compensation, Loop};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A plan with everything that a request's defaults come from.
pub struct Denoiser {
    /// Its file.
    pub path: PathBuf,
    /// Plan and constants.
    pub weights: Arc<Weights>,
    /// Its sampler.
    pub config: SamplerConfig,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale unless told otherwise.
    pub guidance: f32,
    /// What guidance's unconditional half gets, one row per input.
    pub null: BTreeMap<String, Tensor>,
    /// Correction of the samples.
    pub compensation: Option<Compensation>,
}

/// The trajectory that a model is compiled for.
pub struct Like {
    /// Sampler.
    pub config: SamplerConfig,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f32,
    /// See [`Denoiser::null`].
    pub null: BTreeMap<String, Tensor>,
    /// Sizes that the model leaves open.
    pub sizes: Sizes,
}

impl Denoiser {
    /// An artifact's.
    pub fn of(path: &Path, artifact: &Artifact) -> Result<Denoiser, Failure> {
        Ok(Denoiser {
            path: path.to_path_buf(),
            weights: artifact.weights.clone(),
            config: artifact.manifest.sampler.clone(),
            steps: artifact.manifest.steps,
            guidance: artifact.manifest.guidance,
            null: artifact.null_conditions()?,
            compensation: artifact.compensation(),
        })
    }

    /// An artifact's, with so many sampling steps, if given, instead of its own.
    pub fn with_steps(path: &Path, artifact: &Artifact, steps: Option<usize>) -> Result<Denoiser, Failure> {
        let denoiser = Denoiser::of(path, artifact)?;
        let Some(steps) = steps.filter(|&steps| steps != denoiser.steps) else { return Ok(denoiser) };
        let weights = artifact.retimed(steps).map_err(|e| Failure::from(e).fact("file", path.display()))?;
        Ok(Denoiser { weights, steps, ..denoiser })
    }

    /// Its loop, ready to sample.
    pub fn open_loop(&self, guided: bool, options: &EngineOptions) -> Result<Loop, Failure> {
        let mut denoiser = Loop::open(&self.weights, self.sampler()?, guided, options)?;
        denoiser.set_compensation(self.compensation.clone())?;
        Ok(denoiser)
    }

    /// Opens an artifact, or compiles a model.
    pub fn open(path: &Path, like: impl FnOnce() -> Like) -> Result<Denoiser, Failure> {
        if artifact::is_artifact(path) {
            return Denoiser::of(path, &artifact::open(path)?);
        }
        let Like { config, steps, guidance, null, sizes } = like();
        let model = Model::load(path, &ModelOptions { import: sizes.import_options(), stop_after: None }, |_, _| {})?;
        model.warnings.iter().for_each(|w| tracing::warn!("{w}"));
        let lowered =
            compile_loop(&model, &LoopOptions { sampler: config.clone(), steps, any_steps: false, bf16: None })?;
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
        Ok(Denoiser { path: path.to_path_buf(), weights, config, steps, guidance, null, compensation: None })
    }

    /// For a model that is compared with this one: its trajectory and, where the command line is silent, its sizes.
    pub fn like(&self, sizes: &Sizes) -> Like {
        let mut sizes = sizes.clone();
        if sizes.shape.is_empty() && sizes.dim.is_empty() {
            sizes = Sizes::of(&self.plan().inputs);
        }
        Like { config: self.config.clone(), steps: self.steps, guidance: self.guidance, null: self.null.clone(), sizes }
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        self.weights.plan()
    }

    /// Its trajectory.
    pub fn sampler(&self) -> Result<Sampler, Failure> {
        Ok(Sampler::new(&self.config, self.steps)?)
    }

    /// Type of the sample input.
    pub fn sample_type(&self) -> Result<&cqc_proto::ValueType, Failure> {
        let sample = self.plan().inputs.iter().find(|i| i.role == InputRole::Sample);
        let none = || Failure::failed(format!("{} has no input for samples", self.path.display()));
        sample.map(|i| &i.ty).ok_or_else(none)
    }

    /// Sizes of one sample.
    pub fn sample_shape(&self) -> Result<Vec<usize>, Failure> {
        let ty = self.sample_type()?;
        let sizes = ty.shape.iter().skip(1).map(|d| d.as_const().and_then(|d| usize::try_from(d).ok()));
        let shape: Option<Vec<usize>> = sizes.collect();
        shape.ok_or_else(|| Failure::failed("the sample has an open size").fact("seen", ty))
    }
}

/// Says what keeps the samples of two denoisers from being compared. Their steps may differ.
pub fn check_comparable(a: &Denoiser, b: &Denoiser) -> Result<(), Failure> {
    let fact = |what: &str, f: &dyn Fn(&Denoiser) -> String| {
        let both = [a, b].map(|d| format!("{}   {}", f(d), d.path.display()));
        Failure::usage(what).fact("seen", both.join("\n"))
    };
    if a.sample_shape()? != b.sample_shape()? {
        let shape = |d: &Denoiser| d.sample_type().map(|ty| ty.to_string()).unwrap_or_default();
        return Err(fact("the two make samples of different shapes", &shape));
    }
    let keys = sampler_differences(&a.config, &b.config);
    if let Some((key, _, _)) = keys.first() {
        let value = |d: &Denoiser| format!("{key} = {}", as_json(&d.config)[key]);
        return Err(fact("the two have different samplers", &value).help("compile both with the same sampler"));
    }
    Ok(())
}

/// Settings in which two samplers differ, with both values.
pub fn sampler_differences(a: &SamplerConfig, b: &SamplerConfig) -> Vec<(String, String, String)> {
    let (a, b) = (as_json(a), as_json(b));
    let differing = a.iter().filter(|(key, value)| b.get(*key) != Some(value));
    differing.map(|(key, value)| (key.clone(), value.to_string(), b[key].to_string())).collect()
}

fn as_json(config: &SamplerConfig) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => unreachable!("a struct of numbers and names is an object"),
    }
}
