//! A recipe is everything that decides what an artifact becomes, as plain data.
//!
//! The keys of a recipe are the long options of `cqc compile`, so a TOML file, a Python dictionary
//! and a command line express the same. Every field may be absent. It then has the default that its
//! documentation states, and [`Recipe::check`] knows that the caller did not ask for it.
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

/// Number of samples in the calibration set unless the recipe sets it.
const CALIBRATION_SAMPLES: usize = 16;

/// Everything that decides what an artifact becomes, and the resources to compute it with.
///
/// With serde, keys are written in kebab-case, absent fields are left out, and unknown keys are
/// refused. [`Recipe::check`] finds values out of range and keys that contradict each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Recipe {
    // ---- the loop
    /// Number of sampler steps, at least 1. The default is the length of [`Recipe::sigmas`] or
    /// [`Recipe::timesteps`], else 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Keeps the part of the network that computes the tables of the time steps in the artifact, so
    /// that the artifact can be run with any number of steps. The default is `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub any_steps: bool,
    /// The sampler. The default is that of the scheduler configuration, or DDIM without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<SamplerKind>,
    /// A `scheduler_config.json` of diffusers, as a path or as its content. It says the sampler,
    /// the noise schedule and the kind of prediction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_config: Option<SchedulerConfig>,
    /// The quantity that the network predicts. The default is that of the scheduler configuration;
    /// without one, the test of the reading finds it.
    #[serde(with = "text::named", skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Flow matching: the form in which the network gets the noise level. The default is found as
    /// for [`Recipe::prediction`].
    #[serde(with = "text::named", skip_serializing_if = "Option::is_none")]
    pub flow_time: Option<FlowTime>,
    /// Flow matching: the shift of the noise levels towards noise, above 0. The default is that of
    /// the scheduler configuration, else 1, which shifts nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_shift: Option<f64>,
    /// Flow matching: the spacing of the noise levels. The default is that of the scheduler
    /// configuration, else even.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub flow_schedule: Option<FlowSchedule>,
    /// Flow matching with dynamic shifting: the value of `mu`. The default is computed from the
    /// number of tokens of a sample: its rows if it is a sequence, else its patches of 2 x 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_mu: Option<f64>,
    /// Noise levels to visit, highest first, instead of those of the sampler. Cannot be combined
    /// with [`Recipe::timesteps`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sigmas: Vec<f64>,
    /// Time steps to visit, noisiest first, instead of those of the sampler. Cannot be combined
    /// with [`Recipe::sigmas`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timesteps: Vec<f64>,
    /// Accepts the sampler and the prediction even if the test of the reading rejects them. The
    /// default is `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub trust: bool,
    /// Amount of noise that a step adds, 0 to 1: for DDIM a share of the noise of DDPM (default 0),
    /// for TCD its gamma (default 0.3), for ancestral Euler steps of flow matching a share (default
    /// 1). Other samplers do not take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Scale of classifier-free guidance, 0 or more. The default, 1, means no guidance. If the
    /// network takes the scale as an input ([`Recipe::fill`]), the scale goes there; the default is
    /// then 3.5, or 8.5 for an embedding of the scale. A request may give another scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
    /// How far guidance rescales its prediction to the standard deviation of the conditional one, 0
    /// to 1 (arXiv:2305.08891, section 3.4). The default is 0. A request may give another value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f32>,
    /// The part of the steps in which guidance applies. The default is all steps. A request may
    /// give another interval.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// Inputs that the loop fills by itself, with the kind of value. The default for an input
    /// follows from its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fill: BTreeMap<String, FillSpec>,
    /// Class label for the unconditional half of guidance, 0 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_label: Option<i64>,
    /// Values of inputs for the unconditional half of guidance, one row each, by the name of the
    /// input.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub null_cond: BTreeMap<String, Array>,

    // ---- caching
    /// Cache interval N, from 1 to the number of steps: about one evaluation of N is computed in
    /// full. The default is 5; 1 caches nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<usize>,
    /// The method that chooses the full evaluations. By default several methods are run on the
    /// holdout and the best one is taken.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleSpec>,
    /// The tensors that are cached. By default it is the cut whose cached step does nearest to 15 %
    /// of the work of a full one.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutSpec>,
    /// The method that fits the correction of the cache. By default the best one on the holdout is
    /// taken, or none.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub cache_fit: Option<CacheFit>,
    /// The errors that may be corrected. By default these are the cached tensors and the sums of
    /// the quantized layers that read them.
    #[serde(with = "text::list", skip_serializing_if = "Option::is_none")]
    pub correct: Option<Vec<Correct>>,

    // ---- the calibration set
    /// Number of samples in the calibration set, at least 2. The default is 16. Half of them, at
    /// most 8, are the holdout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_samples: Option<usize>,
    /// Largest number of calibration samples that are computed at once, at least 1. The default is
    /// 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_batch: Option<usize>,
    /// Initial noise of the calibration set, `[samples, ...]` of unit variance, instead of noise
    /// from `seed`. Its number of rows replaces `calib-samples`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_noise: Option<Array>,
    /// Seed of the calibration set's initial noise. The default is 1243.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Class labels of the calibration set, 0 or more, repeated in turn. The default is 0 to K - 1
    /// with a null label K, else all labels that the model's table of labels has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<i64>,
    /// Values of the conditions for the calibration set, by the name of the input: one row per
    /// sample, or one row for all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cond: BTreeMap<String, Array>,
    /// Time in seconds that calibration may take. Fewer samples are used if all of them would take
    /// longer. By default there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,

    // ---- quantization
    /// Number format of convolutions, linear layers and attention. The default is W8A8.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub quant: Option<Quant>,
    /// Layers that are not quantized, by the name of their node. By default these are the layers
    /// with fewer than 16 channels. `auto` adds the layers whose quantization costs most, until
    /// [`Recipe::target_psnr`] is reached. `none`, which must stand alone, quantizes every layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_float: Vec<String>,
    /// The least mean PSNR to the float loop on the holdout, in dB. The default is 30. With
    /// `keep-float = ["auto"]`, layers are kept in float until it is reached, and the default is
    /// 35.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_psnr: Option<f64>,
    /// Largest share of the loop's multiply-accumulates whose layers keep bf16 inputs because
    /// rounding them to int8 costs most, 0 to 1. The default is 0.03.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float_work: Option<f64>,
    /// How large input channels of layers are divided by powers of two before rounding, by which
    /// the weights are multiplied. By default this is done where it helps on held-out rows.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub migrate: Option<Migrate>,
    /// Evaluations that share the quantization ranges of activations. By default every evaluation
    /// has ranges of its own.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub share_ranges: Option<Grouping>,
    /// Corrects the sample after every step (Q&C section 3). By default it does not.
    #[serde(with = "text::named", skip_serializing_if = "Option::is_none")]
    pub variance_compensation: Option<CompensationMode>,
    /// The samples and evaluations on which quantization ranges are found. The default is the whole
    /// calibration set at every evaluation.
    #[serde(with = "text::option", skip_serializing_if = "Option::is_none")]
    pub calib_select: Option<Selection>,
    /// Rounds weights so that the results of their layers change least (second-order rounding,
    /// GPTQ) instead of to the nearest code. The default is `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub reconstruct: bool,
    /// Whether a layer input that is a concatenation gets a scale for each of its two parts (the
    /// shortcut splitting of Q-Diffusion). The default is `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_inputs: Option<bool>,
    /// Whether the correction of the cache may be fitted again on the quantized loop, where that is
    /// better on the holdout. The default is `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refit_cache: Option<bool>,

    // ---- the artifact
    /// GPU architectures for which the artifact gets CUDA kernels. The default is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<CudaTarget>,

    // ---- how it is computed, which does not decide what the artifact becomes
    /// Number of threads, at least 1. The default is one per core. The artifact does not depend on
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Directory that keeps the results of finished stages, so that an interrupted compilation
    /// continues from them. By default nothing is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<PathBuf>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Recipe {
    /// The key `steps`, or its default.
    pub fn steps(&self) -> usize {
        let listed = [&self.sigmas, &self.timesteps].map(Vec::len).into_iter().find(|&n| n > 0);
        self.steps.or(listed).unwrap_or(50)
    }

    /// The key `guidance`, or 1.
    pub fn guidance(&self) -> f32 {
        self.guidance.unwrap_or(1.0)
    }

    /// The key `interval`, or its default.
    pub fn interval(&self) -> usize {
        self.interval.unwrap_or(5)
    }

    /// The key `schedule`, or its default.
    pub fn schedule(&self) -> ScheduleSpec {
        self.schedule.clone().unwrap_or(ScheduleSpec::Auto)
    }

    /// The key `cut`, or its default.
    pub fn cut(&self) -> CutSpec {
        self.cut.clone().unwrap_or(CutSpec::Auto)
    }

    /// The key `quant`, or its default.
    pub fn quant(&self) -> Quant {
        self.quant.unwrap_or(Quant::W8a8)
    }

    /// Whether something is cached: the interval is above 1 and the schedule is not `none`.
    pub fn caches(&self) -> bool {
        self.interval() > 1 && self.schedule() != ScheduleSpec::None
    }

    /// Whether the loop has to be run in order to fit something: something is cached, or layers are
    /// quantized to integers.
    pub fn calibrates(&self) -> bool {
        self.caches() || self.quant().weight_bits().is_some()
    }

    /// Whether `what` may be corrected.
    pub fn corrects(&self, what: Correct) -> bool {
        self.correct.as_deref().unwrap_or(&[Correct::Cache, Correct::Quant]).contains(&what)
    }

    /// Whether `keep-float` has `auto`.
    pub fn keeps_float_by_error(&self) -> bool {
        self.keep_float.iter().any(|name| name == "auto")
    }

    /// Whether `keep-float` has `none`: layers with few channels are quantized, too, and no input
    /// is kept in bf16.
    pub fn quantizes_all(&self) -> bool {
        self.keep_float.iter().any(|name| name == "none")
    }

    /// The names of nodes in [`Recipe::keep_float`], without `auto` and `none`.
    pub fn float_nodes(&self) -> impl Iterator<Item = &str> {
        self.keep_float.iter().map(String::as_str).filter(|name| !["auto", "none"].contains(name))
    }

    /// The key `float-work`, or its default, which is 0 if `keep-float` has `none`.
    pub fn float_work(&self) -> f64 {
        if self.quantizes_all() { 0.0 } else { self.float_work.unwrap_or(0.03) }
    }

    /// The key `calib-samples`, or its default.
    pub fn calib_samples(&self) -> usize {
        self.calib_samples.unwrap_or(CALIBRATION_SAMPLES)
    }

    /// The key `seed`, or its default.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(1243)
    }

    /// The key `threads`, or the number of cores.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores)
    }
}
