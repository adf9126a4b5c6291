//! Artifacts: `.cq` files, opened, checked, and ready to be sampled from.

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
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// The bytes are no artifact, or a damaged one.
    #[error("not a valid artifact: {0}")]
    Invalid(#[from] CqError),
    /// Its plan or its constants are wrong.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An artifact that passed all checks: a compiled loop with its constants.
///
/// Opening one packs nothing and evaluates nothing; weights are packed for this CPU when the first
/// denoiser is opened, and shared by all of them. An artifact is `Send` and `Sync`.
#[derive(Debug)]
pub struct Artifact {
    manifest: Arc<Manifest>,
    weights: Arc<Weights>,
    kernels: Option<Bytes>,
    constants: Bytes,
    pipeline: Option<cq::Pipeline>,
    attachments: Vec<Bytes>,
}

/// How a denoiser is opened: what the artifact leaves open, or what is to differ from it.
#[derive(Clone, Debug, Default)]
pub struct DenoiserOptions {
    /// Sampling steps; `None`: as compiled. [`crate::retime::possible`] says which there are.
    pub steps: Option<usize>,
    /// The time steps that the caller's own solver visits, one per evaluation, instead of those of
    /// the sampler: for [`Denoiser::begin_at`] and [`Denoiser::predict`]. `steps` is not looked at.
    pub timesteps: Option<Vec<f64>>,
    /// Scale of guidance; `None`: that of the artifact. Anything but 1 computes both halves, unless
    /// the network takes the scale as an input ([`Manifest::takes_guidance`]).
    pub guidance: Option<f32>,
    /// How far requests rescale guidance that do not say it, 0 to 1; `None`: as the artifact says.
    pub guidance_rescale: Option<f32>,
    /// Steps in which guidance applies for requests that do not say it; `None`: those of the
    /// artifact. With an interval the halves are computed apart, so that one of them can be left
    /// out.
    pub guidance_interval: Option<GuidanceInterval>,
    /// Where evaluations run.
    pub device: Device,
    /// Runs machine code for a GPU that the artifact brings along ([`Artifact::kernels`]), which can
    /// do there whatever it wants: only for artifacts from people whose programs would be run as
    /// well. Otherwise kernels are compiled from the sources of this library.
    pub artifact_kernels: bool,
    /// Batch, threads, and what else an engine takes.
    pub engine: EngineOptions,
}

/// How an artifact is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactOptions {
    /// A folder in which packed weights are kept from one process to the next: see
    /// [`Artifact::keep_packed`]. `None`: they are packed by every process.
    pub pack_cache: Option<PathBuf>,
    /// Maps the file, so that its weights come into memory when they are packed. A mapped file must
    /// not be shortened or rewritten while it is in use: reading beyond its end kills the process.
    /// Otherwise the whole file is read into memory when it is opened.
    pub map: bool,
}

impl Default for ArtifactOptions {
    /// Without a cache, mapped.
    fn default() -> ArtifactOptions {
        ArtifactOptions { pack_cache: None, map: true }
    }
}

impl DenoiserOptions {
    /// The default, for `batch` samples at once.
    pub fn with_batch(batch: usize) -> DenoiserOptions {
        DenoiserOptions {
            engine: EngineOptions { batch, ..EngineOptions::default() },
            ..DenoiserOptions::default()
        }
    }
}

impl Artifact {
    /// Opens a file and checks all of it, with the default [`ArtifactOptions`]: the file is mapped.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn open(path: &Path) -> Result<Artifact, ArtifactError> {
        Artifact::open_with(path, &ArtifactOptions::default())
    }

    /// [`Artifact::open`] as the options say.
    ///
    /// # Errors
    /// [`ArtifactError`]. A cache that cannot be used is passed over.
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

    /// The artifact in `bytes`, without a file.
    ///
    /// # Errors
    /// [`ArtifactError::Invalid`], [`ArtifactError::Engine`].
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Artifact, ArtifactError> {
        Artifact::read(bytes.into(), &ArtifactOptions::default())
    }

    /// The artifact that a compiler has in memory: a manifest, and the bytes of the constants that
    /// its plan names.
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

    /// Whether a file is an artifact, by its first bytes.
    ///
    /// # Errors
    /// What the system says of a file that cannot be read.
    pub fn is_artifact(path: &Path) -> io::Result<bool> {
        // opening a pipe would wait for a writer
        if !path.metadata()?.is_file() {
            return Ok(false);
        }
        let mut first = Vec::new();
        File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut first)?;
        Ok(first == MAGIC)
    }

    /// Everything but the constants' bytes: model, plan, sampler, schedule, quantization.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The plan with its constants, and with what has been packed of them.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Kernels for GPUs that the artifact brings along: machine code, packed. It runs only where
    /// [`DenoiserOptions::artifact_kernels`] says so.
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

    /// Bytes of all constants.
    pub fn weight_bytes(&self) -> u64 {
        self.constants.len() as u64
    }

    /// A denoiser as the artifact says: with its sampler, its guidance and null conditions, and its
    /// correction of the samples.
    ///
    /// # Errors
    /// [`DenoiseError`]: the artifact cannot be run with that number of steps, the device cannot be
    /// used, the sizes do not suit the plan.
    pub fn denoiser(&self, options: &DenoiserOptions) -> Result<Denoiser, DenoiseError> {
        self.denoiser_with(options, &mut |_| {})
    }

    /// [`Artifact::denoiser`]; `note` is told why a GPU that is there is not used.
    ///
    /// # Errors
    /// As [`Artifact::denoiser`].
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
        // a device takes tables as they are when it is opened
        let on_device = |engine: &EngineOptions| {
            // those for other time steps have all rows
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

    /// Looks for the device that evaluations of this artifact run on; `None` is the CPU. Machine
    /// code of the artifact is used only with `artifact_kernels`
    /// ([`DenoiserOptions::artifact_kernels`]). `note` is told why a GPU that is there is not used.
    ///
    /// # Errors
    /// [`DenoiseError::Device`] if [`Device::Cuda`] cannot be had.
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

    /// Writes what engines have packed into the cache, if the artifact was opened with one.
    ///
    /// # Errors
    /// What the system says. The next start packs again then, which only takes time.
    pub fn keep_packed(&self) -> io::Result<()> {
        self.weights.keep_packed().map(|_| ())
    }

    /// The sampler that it was compiled for.
    ///
    /// # Errors
    /// [`SamplerError`].
    pub fn sampler(&self) -> Result<Sampler, SamplerError> {
        Sampler::new(&self.manifest.sampler, self.manifest.steps)
    }

    /// The plan and its constants for another number of sampling steps.
    ///
    /// # Errors
    /// [`RetimeError`].
    pub fn retimed(&self, steps: usize) -> Result<Arc<Weights>, RetimeError> {
        retime(&self.manifest, &self.constants, steps).map(|(_, weights)| weights)
    }

    /// The plan and its constants for evaluations at these time steps.
    ///
    /// # Errors
    /// [`RetimeError`].
    pub fn retimed_to(&self, timesteps: &[f64]) -> Result<Arc<Weights>, RetimeError> {
        let own: Vec<f64> = self.sampler()?.evaluations().iter().map(|e| e.timestep).collect();
        if own == timesteps {
            return Ok(self.weights.clone());
        }
        retime_to(&self.manifest, &self.constants, timesteps).map(|(_, weights)| weights)
    }

    /// Type of the sample input; `None` if the artifact is no denoiser.
    pub fn sample_type(&self) -> Option<&ValueType> {
        self.manifest.plan.inputs.iter().find(|i| i.role == InputRole::Sample).map(|i| &i.ty)
    }

    /// Sizes of one sample, without the batch; `None` if one of them is open.
    pub fn sample_shape(&self) -> Option<Vec<usize>> {
        let sizes = self.sample_type()?.shape.iter().skip(1);
        sizes.map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect()
    }

    /// What the unconditional half of guidance gets, one row per input.
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

    /// Constant `i` of the plan, a quantized one as its codes; the bytes stay in the mapped file
    /// unless codes are unpacked.
    ///
    /// # Panics
    /// When there is no such constant.
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

    /// How this CPU executes each quantized layer in a full evaluation, in the order of
    /// [`cq::QuantizedLoop::layers`]: empty where nothing is quantized. A layer for whose sizes
    /// there is no kernel is computed in f32, its operands rounded. Packs the weights.
    ///
    /// # Errors
    /// Those of opening an engine.
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
        // the first step that reads the weights, or that has the name
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
        // the file may come from anywhere: a layer that no step computes is not executed at all
        let execution = |layer| step_of(layer).map_or(Execution::Fused, |i| full[i].execution);
        Ok(of.layers.iter().map(execution).collect())
    }

    /// Correction of the samples after every evaluation, if the artifact has one.
    pub fn compensation(&self) -> Option<Compensation> {
        let tables = self.manifest.quant.quantized()?.compensation.as_ref()?;
        let [scale, shift] = [tables.scale, tables.shift].map(|i| self.constant(i).to_f32_vec());
        Some(Compensation { scale, shift })
    }
}

/// Labels in the rank of an input, one per row. The engine converts them to the input's own integer
/// type.
pub fn labels(input: &PlanInput, labels: &[i64]) -> Tensor {
    let mut shape = vec![1; input.ty.rank().max(1)];
    shape[0] = labels.len();
    let bytes: Vec<u8> = labels.iter().flat_map(|l| l.to_le_bytes()).collect();
    Tensor::new(DType::I64, shape, bytes).expect("one element per row")
}

/// The conditioning input that takes class labels, if there is one: whole numbers, one per sample.
pub fn label_input(inputs: &[PlanInput]) -> Option<&PlanInput> {
    let one = |i: &PlanInput| i.ty.rank() <= 2 && i.ty.shape.iter().skip(1).all(|d| d.is(1));
    inputs.iter().find(|i| i.role == InputRole::Condition && i.ty.dtype.is_integer() && one(i))
}
