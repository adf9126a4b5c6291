//! Opens and checks `.cq` artifacts, and creates denoisers from them.

use crate::denoise::{Compensation, Defaults, DenoiseError, Denoiser, GuidanceError};
use crate::device::{Device, Found};
use crate::engine::{
    Backend, EngineError, EngineOptions, Execution, PackCache, StepExecution, Weights,
};
use crate::retime::{RetimeError, completed, retime, retime_to};
use crate::sampler::{Sampler, SamplerError};
use bytes::Bytes;
use cqc_proto::cq::{self, CqError, GuidanceInterval, MAGIC, Manifest, NullCondition};
use cqc_proto::op::operand::WEIGHTS;
use cqc_proto::plan::{InputRole, PlanInput, ProgramKind, Source, Step};
use cqc_proto::{DType, Tensor, ValueType};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why an artifact cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The path names a directory, a pipe or a device instead of a regular file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path that was given.
        path: PathBuf,
    },
    /// The bytes are not an artifact, or the artifact is damaged.
    #[error("not a valid artifact: {0}")]
    Invalid(#[from] CqError),
    /// The plan or the constants of the artifact are invalid.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A compiled loop with its constants, read from a `.cq` file that passed all checks.
///
/// Opening an artifact neither packs weights nor evaluates the network. The weights are packed for
/// this CPU when the first denoiser is opened, and all denoisers of the artifact share them. An
/// artifact is `Send` and `Sync`.
#[derive(Debug)]
pub struct Artifact {
    manifest: Arc<Manifest>,
    weights: Arc<Weights>,
    kernels: Option<Bytes>,
    constants: Bytes,
    pipeline: Option<cq::Pipeline>,
    attachments: Vec<Bytes>,
}

/// The options with which a denoiser is opened. They supply settings that the artifact does not
/// have, and override those that it has.
#[derive(Clone, Debug, Default)]
pub struct DenoiserOptions {
    /// Number of sampler steps. `None` takes the number that the artifact was compiled for;
    /// [`crate::retime::possible`] returns the numbers that are possible.
    pub steps: Option<usize>,
    /// The time steps that the caller's own solver visits, one per evaluation, in place of the
    /// sampler's. They serve [`Denoiser::begin_at`] and [`Denoiser::predict`]. If they are given,
    /// `steps` is ignored.
    pub timesteps: Option<Vec<f64>>,
    /// Guidance scale. `None` takes the artifact's. With any scale other than 1, both halves are
    /// computed, unless the network takes the scale as an input ([`Manifest::takes_guidance`]).
    pub guidance: Option<f32>,
    /// The degree of guidance rescaling, from 0 to 1, of requests that do not set one. `None` takes
    /// the artifact's.
    pub guidance_rescale: Option<f32>,
    /// The sampler steps in which guidance applies, for requests that do not set them. `None` takes
    /// the artifact's. With an interval, the two halves are computed apart, so that one of them can
    /// be skipped.
    pub guidance_interval: Option<GuidanceInterval>,
    /// The device on which evaluations run.
    pub device: Device,
    /// Runs the machine code for a GPU that the artifact contains ([`Artifact::kernels`]). That
    /// code is not restricted in any way, so set this only for artifacts from sources whose
    /// programs you would run as well. Otherwise the kernels are compiled from the sources in this
    /// library.
    pub artifact_kernels: bool,
    /// The options of the engine, such as the batch size and the number of threads.
    pub engine: EngineOptions,
}

/// The options with which an artifact is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactOptions {
    /// A folder that keeps packed weights from one process to the next: see
    /// [`Artifact::keep_packed`]. With `None`, every process packs them anew.
    pub pack_cache: Option<PathBuf>,
    /// Maps the file into memory, so that its weights are loaded only when they are packed. A
    /// mapped file must not be shortened or rewritten while it is in use: a read past its end kills
    /// the process. Otherwise the whole file is read into memory when it is opened.
    pub map: bool,
}

impl Default for ArtifactOptions {
    /// No cache of packed weights; the file is mapped.
    fn default() -> ArtifactOptions {
        ArtifactOptions { pack_cache: None, map: true }
    }
}

impl DenoiserOptions {
    /// The default options with a batch of `batch` samples.
    pub fn with_batch(batch: usize) -> DenoiserOptions {
        DenoiserOptions {
            engine: EngineOptions { batch, ..EngineOptions::default() },
            ..DenoiserOptions::default()
        }
    }
}

impl Artifact {
    /// Opens a file with the default [`ArtifactOptions`], which map it, and checks all of it.
    ///
    /// # Errors
    /// An [`ArtifactError`] if the file cannot be read or is not a valid artifact.
    pub fn open(path: &Path) -> Result<Artifact, ArtifactError> {
        Artifact::open_with(path, &ArtifactOptions::default())
    }

    /// Opens a file with the given options, and checks all of it.
    ///
    /// # Errors
    /// An [`ArtifactError`], as for [`Artifact::open`]. A cache of packed weights that cannot be
    /// used is ignored.
    pub fn open_with(path: &Path, options: &ArtifactOptions) -> Result<Artifact, ArtifactError> {
        let io = |source| ArtifactError::Io { path: path.to_path_buf(), source };
        if !path.metadata().map_err(io)?.is_file() {
            return Err(ArtifactError::NotAFile { path: path.to_path_buf() });
        }
        let bytes = match options.map {
            true => cqc_kernels::map_file(path).map(Bytes::from_owner),
            false => cqc_kernels::mapped::read_file(path).map(Bytes::from_owner),
        };
        Artifact::read(bytes.map_err(io)?, options)
    }

    /// Opens the artifact whose file contents are `bytes`.
    ///
    /// # Errors
    /// [`ArtifactError::Invalid`] if the container or the manifest is not valid,
    /// [`ArtifactError::Engine`] if the plan or the constants are not.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Artifact, ArtifactError> {
        Artifact::read(bytes.into(), &ArtifactOptions::default())
    }

    /// Makes an artifact from a manifest and the bytes of the constants that its plan names, as a
    /// compiler holds them in memory.
    ///
    /// # Errors
    /// [`ArtifactError::Engine`] if the plan is invalid.
    pub fn from_parts(manifest: Manifest, constants: Bytes) -> Result<Artifact, ArtifactError> {
        let manifest = Arc::new(manifest);
        let weights = Weights::of_manifest(manifest.clone(), constants.clone(), None)?;
        let (kernels, pipeline, attachments) = (None, None, vec![]);
        Ok(Artifact { manifest, weights, kernels, constants, pipeline, attachments })
    }

    fn read(bytes: Bytes, options: &ArtifactOptions) -> Result<Artifact, ArtifactError> {
        let cq::Artifact { manifest, weights: constants, kernels, pipeline, attachments, identity } =
            cq::Artifact::read(bytes)?;
        let folder = options.pack_cache.clone();
        let cache = folder.map(|folder| PackCache { folder, identity, map: options.map });
        let manifest = Arc::new(manifest);
        let weights = Weights::of_manifest(manifest.clone(), constants.clone(), cache.as_ref())?;
        Ok(Artifact { manifest, weights, kernels, constants, pipeline, attachments })
    }

    /// Whether a file begins with the first bytes of an artifact. The result is false for anything
    /// but a regular file.
    ///
    /// # Errors
    /// The operating system's error if the file cannot be read.
    pub fn is_artifact(path: &Path) -> io::Result<bool> {
        // opening a pipe would wait for a writer
        if !path.metadata()?.is_file() {
            return Ok(false);
        }
        let mut first = Vec::new();
        File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut first)?;
        Ok(first == MAGIC)
    }

    /// The manifest, which is everything except the bytes of the constants: the source model, the
    /// plan, the sampler, the schedule and the quantization.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The plan with its constants and with the weights that have been packed so far.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// The GPU kernels in the artifact, as packed machine code. They run only if
    /// [`DenoiserOptions::artifact_kernels`] is set.
    pub fn kernels(&self) -> Option<&[u8]> {
        self.kernels.as_deref()
    }

    /// The parts of a pipeline around the loop, if the artifact holds a whole pipeline.
    pub fn pipeline(&self) -> Option<&cq::Pipeline> {
        self.pipeline.as_ref()
    }

    /// The attachments that [`Artifact::pipeline`] names by index: networks, which are artifacts of
    /// their own ([`Artifact::from_bytes`]), and tokenizers.
    pub fn attachments(&self) -> &[Bytes] {
        &self.attachments
    }

    /// Size of all constants in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.constants.len() as u64
    }

    /// Opens a denoiser with the artifact's sampler, guidance, null conditions and sample
    /// compensation, except where the options override them.
    ///
    /// # Errors
    /// A [`DenoiseError`] if the artifact cannot be run with that number of steps or at those time
    /// steps, if an option of guidance is out of range, if the device cannot be used, or if the
    /// batch size does not suit the plan.
    pub fn denoiser(&self, options: &DenoiserOptions) -> Result<Denoiser, DenoiseError> {
        self.denoiser_with(options, &mut |_| {})
    }

    /// Opens a denoiser as [`Artifact::denoiser`] does, and calls `note` with the reason if there
    /// is a GPU that is not used.
    ///
    /// # Errors
    /// Those of [`Artifact::denoiser`].
    pub fn denoiser_with(
        &self,
        options: &DenoiserOptions,
        note: &mut dyn FnMut(&str),
    ) -> Result<Denoiser, DenoiseError> {
        let steps = options.steps.unwrap_or(self.manifest.steps);
        let (weights, sampler) = match &options.timesteps {
            Some(timesteps) => {
                let sampler = Sampler::of_caller(&self.manifest.sampler, timesteps);
                (self.retimed_to(timesteps)?, sampler)
            }
            None => {
                let sampler = Sampler::new(&self.manifest.sampler, steps)?;
                let own = steps == self.manifest.steps;
                (if own { self.weights.clone() } else { self.retimed(steps)? }, sampler)
            }
        };
        let guidance = options.guidance.unwrap_or(self.manifest.guidance);
        let guided = guidance != 1.0 && !self.manifest.takes_guidance();
        let rescale = options.guidance_rescale.unwrap_or(self.manifest.guidance_rescale);
        let interval = options.guidance_interval.or(self.manifest.guidance_interval);
        let interval = interval.unwrap_or(GuidanceInterval::ALL);
        let wrong = (!interval.is_valid()).then_some(GuidanceError::Interval(interval));
        let wrong: Vec<_> = wrong
            .into_iter()
            .chain((!(0.0..=1.0).contains(&rescale)).then_some(GuidanceError::Rescale(rescale)))
            .collect();
        if !wrong.is_empty() {
            return Err(DenoiseError::Guiding(wrong));
        }
        let apart = guided && interval != GuidanceInterval::ALL;
        let open =
            |weights: &Arc<Weights>, engine: &EngineOptions| -> Result<Denoiser, DenoiseError> {
                let mut denoiser = match apart {
                    true => Denoiser::open_apart(weights, sampler.clone(), engine)?,
                    false => Denoiser::open(weights, sampler.clone(), guided, engine)?,
                };
                denoiser.set_defaults(Defaults {
                    guidance,
                    rescale,
                    interval,
                    null: self.null_conditions(),
                    fills: self.manifest.fills.clone(),
                });
                denoiser.set_compensation(self.compensation())?;
                denoiser.set_manifest(self.manifest.clone());
                Ok(denoiser)
            };
        // a device reads the tables once, when it is opened, so they must be complete by then
        let on_device = |engine: &EngineOptions| {
            // tables that were made for other time steps already have all rows
            let completed = match Arc::ptr_eq(&weights, &self.weights) {
                true => completed(&self.manifest, &self.constants, &weights)?,
                false => None,
            };
            open(completed.as_ref().unwrap_or(&weights), engine)
        };
        if options.engine.device.is_some() {
            return on_device(&options.engine);
        }
        let timed = options.engine.profile;
        if timed && options.device == Device::Cuda {
            let reason = "steps are timed one by one on the CPU only".into();
            return Err(DenoiseError::Device { reason });
        }
        let wanted = if timed { Device::Cpu } else { options.device };
        let found = self.find_device(wanted, options.artifact_kernels, note)?;
        let Some(device) = found else { return open(&weights, &options.engine) };
        match on_device(&EngineOptions { device: Some(device), ..options.engine.clone() }) {
            Err(e) if options.device == Device::Auto => {
                note(&e.to_string());
                open(&weights, &options.engine)
            }
            opened => opened,
        }
    }

    /// Finds the device on which the evaluations of this artifact run. `None` is the CPU. The
    /// artifact's own machine code is used only with `artifact_kernels`
    /// ([`DenoiserOptions::artifact_kernels`]). `note` is called with the reason if there is a GPU
    /// that is not used.
    ///
    /// # Errors
    /// [`DenoiseError::Device`] if [`Device::Cuda`] is asked for and not available.
    pub fn find_device(
        &self,
        device: Device,
        artifact_kernels: bool,
        note: &mut dyn FnMut(&str),
    ) -> Result<Option<Arc<dyn Backend>>, DenoiseError> {
        let kernels = self.kernels().filter(|_| artifact_kernels);
        match device.find(kernels).map_err(|reason| DenoiseError::Device { reason })? {
            Found::Device(device) => Ok(Some(device)),
            Found::Cpu(why) => {
                why.iter().for_each(|why| note(why));
                Ok(None)
            }
        }
    }

    /// Writes the weights that engines have packed into the cache, if the artifact was opened with
    /// one.
    ///
    /// # Errors
    /// The operating system's error. The next process then packs the weights again, which only
    /// takes time.
    pub fn keep_packed(&self) -> io::Result<()> {
        self.weights.keep_packed().map(|_| ())
    }

    /// The sampler that the artifact was compiled for, with the compiled number of steps.
    ///
    /// # Errors
    /// A [`SamplerError`] if the sampler cannot be made.
    pub fn sampler(&self) -> Result<Sampler, SamplerError> {
        Sampler::new(&self.manifest.sampler, self.manifest.steps)
    }

    /// The plan and its constants for `steps` sampler steps.
    ///
    /// # Errors
    /// A [`RetimeError`] if the artifact cannot be run with that number of steps.
    pub fn retimed(&self, steps: usize) -> Result<Arc<Weights>, RetimeError> {
        retime(&self.manifest, &self.constants, steps).map(|(_, weights)| weights)
    }

    /// The plan and its constants for evaluations at the given time steps.
    ///
    /// # Errors
    /// A [`RetimeError`] if the artifact cannot be run at these time steps.
    pub fn retimed_to(&self, timesteps: &[f64]) -> Result<Arc<Weights>, RetimeError> {
        let own: Vec<f64> = self.sampler()?.evaluations().iter().map(|e| e.timestep).collect();
        if own == timesteps {
            return Ok(self.weights.clone());
        }
        retime_to(&self.manifest, &self.constants, timesteps).map(|(_, weights)| weights)
    }

    /// The type of the sample input, or `None` if the artifact is not of a denoiser.
    pub fn sample_type(&self) -> Option<&ValueType> {
        self.manifest.plan.inputs.iter().find(|i| i.role == InputRole::Sample).map(|i| &i.ty)
    }

    /// The shape of one sample, without the batch, or `None` if one of its sizes is symbolic.
    pub fn sample_shape(&self) -> Option<Vec<usize>> {
        let sizes = self.sample_type()?.shape.iter().skip(1);
        sizes.map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect()
    }

    /// The null conditions by input name, each with a batch of 1.
    pub fn null_conditions(&self) -> BTreeMap<String, Tensor> {
        let plan = &self.manifest.plan;
        let tensor = |(name, null): (&String, &NullCondition)| {
            let tensor = match *null {
                NullCondition::Label(label) => {
                    let input = plan
                        .inputs
                        .iter()
                        .find(|i| i.name == *name)
                        .expect("checked when the file was read");
                    labels(input, &[label])
                }
                NullCondition::Constant(i) => self.constant(i),
            };
            (name.clone(), tensor)
        };
        self.manifest.null.iter().map(tensor).collect()
    }

    /// Constant `i` of the plan. A quantized constant is returned as its codes, of type I8. The
    /// bytes stay in the mapped file, unless codes have to be unpacked.
    ///
    /// # Panics
    /// If the plan has no constant `i`.
    pub fn constant(&self, i: usize) -> Tensor {
        let constant = &self.manifest.plan.constants[i];
        let shape = constant.ty.fixed_shape().expect("checked when the file was read");
        let len = constant.stored_bytes().expect("checked when the file was read");
        let start = constant.offset as usize;
        let bytes = self.constants.slice(start..start + len);
        if let Some(how) = &constant.codes {
            let codes = how.unpack(&bytes, shape.iter().product());
            return Tensor::new(
                DType::I8,
                shape,
                codes.iter().map(|&c| c as u8).collect::<Vec<u8>>(),
            )
            .expect("a byte per code");
        }
        Tensor::new(constant.ty.dtype, shape, bytes).expect("as many bytes as the type has")
    }

    /// How this CPU executes each quantized layer in a full step, in the order of
    /// [`cq::QuantizedLoop::layers`]. The list is empty if the artifact is not quantized. A layer
    /// for whose sizes there is no integer kernel is computed in f32 with rounded operands. This
    /// call packs the weights.
    ///
    /// # Errors
    /// An [`EngineError`] if an engine cannot be opened.
    pub fn layer_executions(&self) -> Result<Vec<Execution>, EngineError> {
        let Some(of) = self.manifest.quant.quantized() else { return Ok(vec![]) };
        let steps = self.weights.steps()?;
        let full: Vec<&StepExecution> =
            steps.iter().filter(|s| s.program == ProgramKind::Full).collect();
        let program = &self.manifest.plan.full;
        let weight_of = |step: &Step| {
            let weight = step.inputs.get(WEIGHTS).copied().flatten()?;
            if let Source::Constant(i) = program.values[weight].source { Some(i) } else { None }
        };
        // The first step that reads the weights, or that has the name.
        let (mut by_weight, mut by_name) = (HashMap::new(), HashMap::new());
        for (at, step) in program.steps.iter().enumerate() {
            if let Some(weight) = weight_of(step) {
                by_weight.entry(weight).or_insert(at);
            }
            by_name.entry((&step.name[..], step.op.name())).or_insert(at);
        }
        let step_of = |layer: &cq::QuantizedLayer| match layer.weight {
            Some(weight) => by_weight.get(&weight).copied(),
            None => by_name.get(&(&layer.name[..], layer.op.clone())).copied(),
        };
        // The file may come from an untrusted source, so a layer may have no step that computes it.
        let execution = |layer| step_of(layer).map_or(Execution::Fused, |i| full[i].execution);
        Ok(of.layers.iter().map(execution).collect())
    }

    /// The sample compensation, if the artifact has one.
    pub fn compensation(&self) -> Option<Compensation> {
        let tables = self.manifest.quant.quantized()?.compensation.as_ref()?;
        let [scale, shift] = [tables.scale, tables.shift].map(|i| self.constant(i).to_f32_vec());
        Some(Compensation { scale, shift })
    }
}

/// Class labels as a tensor for `input`, of the input's rank, with one label per row. The type is
/// I64; the engine converts labels to the input's own integer type.
pub fn labels(input: &PlanInput, labels: &[i64]) -> Tensor {
    let mut shape = vec![1; input.ty.rank().max(1)];
    shape[0] = labels.len();
    let bytes: Vec<u8> = labels.iter().flat_map(|l| l.to_le_bytes()).collect();
    Tensor::new(DType::I64, shape, bytes).expect("one element per row")
}

/// The condition that takes class labels, if there is one: the first condition of an integer type
/// with one number per sample.
pub fn label_input(inputs: &[PlanInput]) -> Option<&PlanInput> {
    let one = |i: &PlanInput| i.ty.rank() <= 2 && i.ty.shape.iter().skip(1).all(|d| d.is(1));
    inputs.iter().find(|i| i.role == InputRole::Condition && i.ty.dtype.is_integer() && one(i))
}
