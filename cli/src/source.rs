//! A source of samples: an artifact as it is, or a model that is compiled in memory without
//! caching.

use super::args::{MapArgs, ModelArgs};
use super::artifact;
use super::report::Failure;
use cachequant::Model;
use cachequant::compile::{LoopOptions, compile_loop};
use cachequant::io::file_hash;
use cachequant::model::locate;
use cqc_proto::cq::{Fill, GuidanceInterval, Manifest, SourceModel};
use cqc_proto::plan::Plan;
use cqc_proto::sampler::SamplerConfig;
use cqc_proto::{Tensor, ValueType};
use cqc_runtime::denoise::Request;
use cqc_runtime::engine::EngineOptions;
use cqc_runtime::sampler::Sampler;
use cqc_runtime::{Artifact, DenoiserOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An artifact with everything from which a request takes its defaults.
pub struct SampleSource {
    /// Path of the artifact or of the model.
    pub path: PathBuf,
    /// The artifact that makes the samples.
    pub artifact: Artifact,
    /// Number of sampler steps.
    pub steps: usize,
    /// The null conditions, one row per input.
    pub null: BTreeMap<String, Tensor>,
}

/// The loop for which a model is compiled.
pub struct LoopSettings {
    pub config: SamplerConfig,
    /// Number of sampler steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f32,
    /// Guidance rescale, 0 to 1.
    pub rescale: f32,
    /// Steps in which guidance applies; `None` means all of them.
    pub interval: Option<GuidanceInterval>,
    /// Conditions that the loop fills by itself.
    pub fills: BTreeMap<String, Fill>,
    /// See [`SampleSource::null`].
    pub null: BTreeMap<String, Tensor>,
    /// Options that read the model.
    pub reading: ModelArgs,
}

impl SampleSource {
    /// An artifact with `steps` sampler steps, or with its own number.
    pub fn new(
        path: &Path,
        artifact: Artifact,
        steps: Option<usize>,
    ) -> Result<SampleSource, Failure> {
        let (null, compiled) = (artifact.null_conditions(), artifact.manifest().steps);
        let source = SampleSource {
            path: path.to_path_buf(),
            artifact,
            steps: steps.unwrap_or(compiled),
            null,
        };
        if source.steps != compiled {
            // Opening a denoiser would fail in the same way, but only after the request has been
            // read.
            let retimed = source.artifact.retimed(source.steps);
            retimed.map_err(|e| Failure::from(e).fact("file", path.display()))?;
        }
        Ok(source)
    }

    /// Opens an artifact, or compiles a model with the given trajectory.
    pub fn open(
        path: &Path,
        map: MapArgs,
        trajectory: impl FnOnce() -> LoopSettings,
    ) -> Result<SampleSource, Failure> {
        if artifact::is_artifact(path) {
            return SampleSource::new(path, artifact::open(path, map)?, None);
        }
        let LoopSettings { config, steps, guidance, rescale, interval, fills, null, reading } =
            trajectory();
        let options = reading.options(None);
        let model = Model::load(&locate(path)?.model, &options, |_, _| {})?;
        model.warnings.iter().for_each(|w| tracing::warn!("{w}"));
        let options = LoopOptions { sampler: config.clone(), steps, any_steps: false, bf16: None };
        let lowered = compile_loop(&model, &options)?;
        let source = SourceModel {
            blake3: model.blake3.clone(),
            opset: model.opset,
            producer: model.producer.clone(),
            parameters: model.parameters,
        };
        let mut manifest = Manifest::new(source, lowered.plan.clone(), config, steps);
        manifest.guidance = guidance;
        manifest.guidance_rescale = rescale;
        manifest.guidance_interval = interval;
        // The other side may fill inputs that this model lacks.
        let has = |(name, fill): &(String, Fill)| {
            manifest.plan.inputs.iter().any(|i| i.name == *name && fill.fits(i))
        };
        manifest.fills = fills.into_iter().filter(has).collect();
        let artifact = Artifact::from_parts(manifest, lowered.weight_bytes()?)
            .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        Ok(SampleSource { path: path.to_path_buf(), artifact, steps, null })
    }

    /// The hash that identifies the source: of the artifact's file, or of the model with its data.
    pub fn identity(&self) -> Result<String, Failure> {
        if artifact::is_artifact(&self.path) {
            return Ok(file_hash(&self.path)?);
        }
        Ok(self.artifact.manifest().source.blake3.clone())
    }

    /// Options to open its denoiser for a request, whose guidance decides the width.
    pub fn options(&self, request: &Request, engine: EngineOptions) -> DenoiserOptions {
        DenoiserOptions {
            steps: Some(self.steps),
            guidance: request.guidance,
            guidance_rescale: request.guidance_rescale,
            guidance_interval: request.guidance_interval,
            engine,
            ..DenoiserOptions::default()
        }
    }

    /// The settings with which a model is compiled that is compared with this source. Where
    /// `reading` has no options, the model is read with the sizes and roles of this source.
    pub fn trajectory(&self, reading: &ModelArgs) -> LoopSettings {
        let reading = reading.or_like(self.plan());
        let config = self.artifact.manifest().sampler.clone();
        LoopSettings {
            config,
            steps: self.steps,
            guidance: self.guidance(),
            rescale: self.artifact.manifest().guidance_rescale,
            interval: self.artifact.manifest().guidance_interval,
            fills: self.artifact.manifest().fills.clone(),
            null: self.null.clone(),
            reading,
        }
    }

    /// Guidance scale unless a request gives another one.
    pub fn guidance(&self) -> f32 {
        self.artifact.manifest().guidance
    }

    /// The plan, as compiled.
    pub fn plan(&self) -> &Plan {
        &self.artifact.manifest().plan
    }

    /// The sampler with this source's number of steps.
    pub fn sampler(&self) -> Result<Sampler, Failure> {
        Ok(Sampler::new(&self.artifact.manifest().sampler, self.steps)?)
    }

    /// Type of the sample input.
    pub fn sample_type(&self) -> Result<&ValueType, Failure> {
        let none = || Failure::failed(format!("{} has no input for samples", self.path.display()));
        self.artifact.sample_type().ok_or_else(none)
    }

    /// Shape of one sample, without the axis of the batch.
    pub fn sample_shape(&self) -> Result<Vec<usize>, Failure> {
        let ty = self.sample_type()?;
        let shape = self.artifact.sample_shape();
        shape.ok_or_else(|| Failure::failed("the sample has an open size").fact("seen", ty))
    }
}

/// Refuses two sources whose samples cannot be compared. Their numbers of steps may differ.
pub fn check_comparable(a: &SampleSource, b: &SampleSource) -> Result<(), Failure> {
    let fact = |what: &str, f: &dyn Fn(&SampleSource) -> String| {
        let both = [a, b].map(|s| format!("{}   {}", f(s), s.path.display()));
        Failure::usage(what).fact("seen", both.join("\n"))
    };
    if a.sample_shape()? != b.sample_shape()? {
        let shape = |s: &SampleSource| s.sample_type().map(|ty| ty.to_string()).unwrap_or_default();
        return Err(fact("the two make samples of different shapes", &shape));
    }
    let config = |s: &SampleSource| s.artifact.manifest().sampler.clone();
    let keys = sampler_differences(&config(a), &config(b));
    if let Some((key, _, _)) = keys.first() {
        let value = |s: &SampleSource| format!("{key} = {}", as_json(&config(s))[key]);
        return Err(fact("the two have different samplers", &value)
            .help("compile both with the same sampler"));
    }
    Ok(())
}

/// The settings in which two samplers differ, each with both values.
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
