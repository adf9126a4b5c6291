//! A recipe: everything that decides what an artifact becomes, as plain data.
//!
//! The keys of a recipe are the long options of `cqc compile`, so that a TOML file, a Python
//! dictionary and a command line say the same. Every field may be absent: it then has the default
//! that its documentation names, and [`Recipe::check`] knows that nobody asked for it.
//!
//! ```
//! use cachequant::recipe::{Quant, Recipe};
//!
//! let recipe = Recipe { steps: Some(20), quant: Some(Quant::None), ..Recipe::default() };
//! assert_eq!(recipe.check(), []);
//! // second-order rounding rounds the weights of quantized layers, and there are none
//! let recipe = Recipe { reconstruct: true, ..recipe };
//! assert_eq!(recipe.check()[0].option, "reconstruct");
//! ```

mod array;
mod check;
mod text;
mod values;

pub use array::Array;
pub use check::Contradiction;
pub use values::{
    CacheFit, Correct, CudaTarget, FillSpec, Named, ParseError, Quant, ScheduleSpec,
    SchedulerConfig, Selection,
};

pub use crate::calibrate::quantize::Grouping;
pub use cqc_passes::cache::CutSpec;
pub use cqc_passes::calib::compensate::CompensationMode;
pub use cqc_passes::quant::Migrate;
pub use cqc_proto::cq::GuidanceInterval;
pub use cqc_proto::sampler::{FlowSchedule, FlowTime, Prediction, SamplerKind};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Samples of the calibration set unless the recipe says otherwise.
const CALIBRATION_SAMPLES: usize = 16;

/// Everything that decides what an artifact becomes, and what it takes to compute it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Recipe {
    // ---- the loop
    /// Sampling steps, 50 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Keeps the part of the network that depends only on the time step in the artifact, so that
    /// it can be run with any number of steps later.
    #[serde(skip_serializing_if = "is_false")]
    pub any_steps: bool,
    /// Sampler; by default that of the scheduler configuration, or DDIM where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<SamplerKind>,
    /// diffusers' `scheduler_config.json`, as a path or as its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_config: Option<SchedulerConfig>,
    /// What the network predicts; by default what the scheduler configuration says, or else what
    /// the test of the reading finds.
    #[serde(with = "text::named", skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Flow matching: how the network is told the noise level; by default as for `prediction`.
    #[serde(with = "text::named", skip_serializing_if = "Option::is_none")]
    pub flow_time: Option<FlowTime>,
    /// Flow matching: the shift of the noise levels, 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_shift: Option<f64>,
    /// Flow matching: how levels are spread; by default as the scheduler configuration says, else
    /// evenly.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub flow_schedule: Option<FlowSchedule>,
    /// Flow matching with dynamic shifting: the shift's `mu`; by default that of the number of
    /// tokens of the sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_mu: Option<f64>,
    /// Noise levels to visit, highest first, instead of those of the sampler.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sigmas: Vec<f64>,
    /// Time steps to visit, noisiest first, instead of those of the sampler.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timesteps: Vec<f64>,
    /// The reading of the network is right even where the test says that it is not.
    #[serde(skip_serializing_if = "is_false")]
    pub trust: bool,
    /// DDIM: share of DDPM's noise that is added per step, 0 to 1; 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Scale of classifier-free guidance; 1, the default, is off. Where the network takes the scale
    /// as an input ([`Recipe::fill`]), what it gets by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
    /// How far the guided prediction gets the standard deviation of the conditional one, 0 to 1
    /// (arXiv:2305.08891, section 3.4); 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f32>,
    /// Steps in which guidance applies; all by default.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// What the loop fills inputs with by itself; by default as their names say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fill: BTreeMap<String, FillSpec>,
    /// Class label of the unconditional half of guidance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_label: Option<i64>,
    /// Values of inputs for the unconditional half of guidance: one row each, by input.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub null_cond: BTreeMap<String, Array>,

    // ---- caching
    /// Cache interval N: about one evaluation of N is full, 5 by default; 1 caches nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<usize>,
    /// Which evaluations are full; by default whatever measures best on the holdout.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleSpec>,
    /// What is cached; by default the cut whose cached step costs about 15 % of a full one.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutSpec>,
    /// How the correction of the cache is fitted; by default whatever measures best.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub cache_fit: Option<CacheFit>,
    /// What may be corrected: the cache and the sums of layers that read it by default.
    #[serde(with = "text::list", skip_serializing_if = "Option::is_none")]
    pub correct: Option<Vec<Correct>>,

    // ---- the calibration set
    /// Number of samples, 16 by default; half of them, at most 8, are the holdout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_samples: Option<usize>,
    /// Samples that are computed at once, at most 8 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_batch: Option<usize>,
    /// Initial noise `[samples, ...]` of unit variance, instead of the seed's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_noise: Option<Array>,
    /// Seed of the noise, 1243 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Class labels, repeated in turn; with a null label K by default 0 to K - 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<i64>,
    /// Values of the other inputs, by input: one row per sample, or one for all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cond: BTreeMap<String, Array>,
    /// Seconds that calibration should take at most: it uses fewer samples where all of them would
    /// take longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,

    // ---- quantization
    /// Number format of the products, W8A8 by default.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub quant: Option<Quant>,
    /// Layers that are not quantized, by name of their node; `auto` adds those that hurt most
    /// until [`Recipe::target_psnr`] is reached, `none` quantizes even layers with fewer than 16
    /// channels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_float: Vec<String>,
    /// The least mean PSNR to the float loop on the holdout, 30 dB by default; with `keep-float =
    /// ["auto"]` layers are kept in float until it is reached, 35 dB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_psnr: Option<f64>,
    /// Largest share of the loop's multiplications whose inputs are kept in bf16 because 8 bits
    /// hurt most there, 0.03 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float_work: Option<f64>,
    /// Which channels of layers' inputs are divided by powers of two that the weights are
    /// multiplied by; by default those where that helps on held-out samples.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub migrate: Option<Migrate>,
    /// Which evaluations share ranges of activations; none by default.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub share_ranges: Option<Grouping>,
    /// Corrects the sample after every step (Q&C section 3); not done by default.
    #[serde(with = "text::named", skip_serializing_if = "Option::is_none")]
    pub variance_compensation: Option<CompensationMode>,
    /// Which samples of the calibration set ranges are found on; all of them by default.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub calib_select: Option<Selection>,
    /// Rounds weights by what their layers read (second order) instead of to the nearest code.
    #[serde(skip_serializing_if = "is_false")]
    pub reconstruct: bool,
    /// Whether the inputs of layers that read a concat are split at its border, each part with a
    /// scale of its own (Q-Diffusion's shortcut splitting); they are by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_inputs: Option<bool>,
    /// Whether the correction of the cache may be fitted again to the quantized loop, where that
    /// measures better on the holdout; it may by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refit_cache: Option<bool>,

    // ---- the artifact
    /// GPU architectures whose CUDA kernels the artifact brings along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<CudaTarget>,

    // ---- how it is computed, which does not decide what the artifact becomes
    /// Threads, one per core by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Directory that keeps the results of finished stages, so that an interrupted compilation goes
    /// on where it stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<PathBuf>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Recipe {
    /// Sampling steps.
    pub fn steps(&self) -> usize {
        let listed = [&self.sigmas, &self.timesteps].map(Vec::len).into_iter().find(|&n| n > 0);
        self.steps.or(listed).unwrap_or(50)
    }

    /// Scale of classifier-free guidance.
    pub fn guidance(&self) -> f32 {
        self.guidance.unwrap_or(1.0)
    }

    /// Cache interval.
    pub fn interval(&self) -> usize {
        self.interval.unwrap_or(5)
    }

    /// Which evaluations are full.
    pub fn schedule(&self) -> ScheduleSpec {
        self.schedule.clone().unwrap_or(ScheduleSpec::Auto)
    }

    /// Where the network is cut.
    pub fn cut(&self) -> CutSpec {
        self.cut.clone().unwrap_or(CutSpec::Auto)
    }

    /// Number format of the products.
    pub fn quant(&self) -> Quant {
        self.quant.unwrap_or(Quant::W8a8)
    }

    /// Whether something is cached.
    pub fn caches(&self) -> bool {
        self.interval() > 1 && self.schedule() != ScheduleSpec::None
    }

    /// Whether the loop has to be run to fit something.
    pub fn calibrates(&self) -> bool {
        self.caches() || self.quant().weight_bits().is_some()
    }

    /// Whether `what` may be corrected.
    pub fn corrects(&self, what: Correct) -> bool {
        self.correct.as_deref().unwrap_or(&[Correct::Cache, Correct::Quant]).contains(&what)
    }

    /// Whether layers are added to those that are not quantized until a quality is reached.
    pub fn keeps_float_by_error(&self) -> bool {
        self.keep_float.iter().any(|name| name == "auto")
    }

    /// Whether even layers of few channels are quantized, and all inputs.
    pub fn quantizes_all(&self) -> bool {
        self.keep_float.iter().any(|name| name == "none")
    }

    /// Names of nodes among [`Recipe::keep_float`].
    pub fn float_nodes(&self) -> impl Iterator<Item = &str> {
        self.keep_float.iter().map(String::as_str).filter(|name| !["auto", "none"].contains(name))
    }

    /// Largest share of the loop's multiplications whose inputs are kept in bf16.
    pub fn float_work(&self) -> f64 {
        if self.quantizes_all() { 0.0 } else { self.float_work.unwrap_or(0.03) }
    }

    /// Size of the calibration set, unless its noise is given.
    pub fn calib_samples(&self) -> usize {
        self.calib_samples.unwrap_or(CALIBRATION_SAMPLES)
    }

    /// Seed of the calibration set's noise.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(1243)
    }

    /// Threads to calibrate with.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores)
    }
}
