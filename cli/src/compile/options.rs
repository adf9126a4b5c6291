//! The options of `compile`, each a key of the recipe.
//!
//! Every option may be absent, so that the recipe knows what was asked for: help states the
//! defaults, [`Recipe`] has them.

use crate::args::NamedFill;
use crate::args::{NamedFile, Threads, names};
use cachequant::recipe::{
    Array, CacheFit, CompensationMode, Correct, CudaTarget, CutSpec, FlowSchedule, FlowTime,
    Grouping, GuidanceInterval, Migrate, Prediction, Quant, Recipe, SamplerKind, ScheduleSpec,
    SchedulerConfig, Selection,
};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args, Debug)]
pub struct LoopArgs {
    /// Sampling steps [default: 50]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Keep the part of the network that depends only on the time step in the file, so that
    /// `sample --steps` takes any number; without it, those that lead to compiled time steps
    #[arg(long)]
    any_steps: bool,
    /// Sampler [default: that of the scheduler configuration, else ddim]
    #[arg(long, value_name = "NAME", value_parser = samplers())]
    sampler: Option<SamplerKind>,
    /// diffusers' scheduler_config.json; in a pipeline directory it is found by itself
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// What the network predicts: epsilon (the noise), v, sample (the clean image), flow (noise -
    /// image), or flow-to-data (image - noise) [default: what the scheduler configuration says, else
    /// what a test on the model's own samples finds]
    #[arg(long, value_name = "KIND", value_parser = names::<Prediction>())]
    prediction: Option<Prediction>,
    /// Flow matching: how the network is told the noise level sigma: scaled (1000 sigma), sigma,
    /// one-minus-sigma, scaled-reversed (1000 - 1000 sigma), or index (the number of the step)
    /// [default: as for --prediction]
    #[arg(long, value_name = "KIND", value_parser = names::<FlowTime>())]
    flow_time: Option<FlowTime>,
    /// Flow matching: shift of the noise levels towards noise, e.g. 3 for SD3 [default: that of the
    /// scheduler configuration, else 1]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    flow_shift: Option<f64>,
    /// Flow matching: how the noise levels are spread: trained (as diffusers' class does), even,
    /// sway=S (F5-TTS, S is -1), time-shift=S (ZipVoice), or linear-quadratic=T (Mochi, T is 0.025)
    /// [default: that of the scheduler configuration, else even]
    #[arg(long, value_name = "KIND", allow_hyphen_values = true)]
    flow_schedule: Option<FlowSchedule>,
    /// Flow matching with dynamic shifting: the shift's mu [default: that of the number of tokens
    /// of a sample in patches of 2 x 2]
    #[arg(long, value_name = "MU", allow_negative_numbers = true)]
    flow_mu: Option<f64>,
    /// Noise levels to visit, highest first, instead of those of the sampler
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    sigmas: Vec<f64>,
    /// Time steps to visit, noisiest first, instead of those of the sampler
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    timesteps: Vec<f64>,
    /// Compile even though the test on the model's own samples says that the sampler does not suit
    /// the model, e.g. one that was distilled to a single step
    #[arg(long)]
    trust: bool,
    /// How much noise the steps of ddim (share of DDPM's), tcd (gamma) and flow-euler-ancestral add, 0
    /// to 1 [default: 0, 0.3 and 1]
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// Classifier-free guidance scale that `sample` uses unless told otherwise; 1 is off [default:
    /// 1]. Where the network takes the scale as an input (see --fill), what that gets [default: 3.5,
    /// as an embedding 8.5]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// How far the guided prediction gets the standard deviation of the conditional one, 0 to 1, in
    /// `sample` unless told otherwise [default: 0]
    #[arg(long, value_name = "PHI", allow_negative_numbers = true)]
    guidance_rescale: Option<f32>,
    /// Guide only in these steps, in shares of their number, e.g. 0.2..0.8: the others compute the
    /// conditional half alone. `sample` may be told otherwise [default: 0..1]
    #[arg(long, value_name = "FROM..TO", allow_hyphen_values = true)]
    guidance_interval: Option<GuidanceInterval>,
    /// What the loop fills an input with by itself: guidance (the scale), guidance-embedding (sines
    /// and cosines of it, as for LCM), steps (how many there are), or none [default: by its name,
    /// e.g. guidance, timestep_cond, total_step]. Repeatable
    #[arg(long, value_name = "INPUT=KIND")]
    fill: Vec<NamedFill>,
    /// Class label that the unconditional half of guidance gets
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    null_label: Option<i64>,
    /// Value of an input for the unconditional half of guidance. Repeatable
    #[arg(long, value_name = "NAME=FILE|NUMBER")]
    null_cond: Vec<NamedFile>,
    /// Number format of convolutions, linear layers and attention [default: w8a8]. w8a8 and w4a8
    /// multiply integers (AVX2, AVX-VNNI, AVX-512 VNNI, AMX); bf16 multiplies bf16 (AMX, AVX-512
    /// BF16; elsewhere f32, rounded to bf16) and fits nothing
    #[arg(long, value_name = "KIND", value_parser = names::<Quant>())]
    quant: Option<Quant>,
    /// What may be corrected: cache (where it helps on held-out samples), quant (the sums of
    /// quantized layers that read the cache), quant=all (of all quantized layers), or none
    /// [default: cache,quant]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    correct: Option<Vec<Correct>>,
    /// Also put CUDA kernels for an architecture into the artifact, e.g. cuda:sm_90, so that a
    /// machine with such a GPU needs no compiler. Needs NVRTC and no GPU. Repeatable
    #[arg(long, value_name = "cuda:ARCH")]
    target: Vec<CudaTarget>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Caching and its calibration")]
pub struct CachingArgs {
    /// Cache interval N: about one evaluation of N is computed in full, the others reuse its deep
    /// features; 1 caches nothing [default: 5]
    #[arg(long, value_name = "N")]
    interval: Option<usize>,
    /// Which evaluations are full: auto, dps-output, dps, dps-affine, uniform,
    /// quadratic[=CENTRE,POWER[,signed]], none, or a JSON file that lists them [default: auto].
    /// auto takes whichever measures best on held-out samples
    #[arg(long, value_name = "KIND")]
    schedule: Option<ScheduleSpec>,
    /// What is cached: auto, shallow (most), deep (least), cost=SHARE (a cached step's share of a
    /// full one's work), or tensors as `cqc inspect` lists them [default: auto]
    #[arg(long, value_name = "SPEC")]
    cut: Option<CutSpec>,
    /// How the correction of the cache is fitted: auto (whichever measures best, or none),
    /// teacher-forced (CacheQuant as published), sequential (on the accelerated loop), or forecast
    /// (from the last two values that were cached) [default: auto]
    #[arg(long, value_name = "FORM", value_parser = names::<CacheFit>())]
    cache_fit: Option<CacheFit>,
    /// Size of the calibration set; half of it, at most 8 samples, is held out to measure on
    /// [default: 16]
    #[arg(long, value_name = "N")]
    calib_samples: Option<usize>,
    /// Calibration samples that are computed at once [default: 8]
    #[arg(long, value_name = "B")]
    calib_batch: Option<usize>,
    /// Initial noise of the calibration set instead of the seed's: .npy, or .npz with an array
    /// `noise`; its first axis is the number of samples
    #[arg(long, value_name = "FILE")]
    calib_noise: Option<PathBuf>,
    /// Seed of the calibration set's noise [default: 1243]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Class labels of the calibration set, repeated in turn [default: with --null-label K, 0 to K
    /// - 1]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    labels: Vec<i64>,
    /// Value of a conditioning input for the calibration set, one row per sample or one for all:
    /// .npy, .npz, one image as .png, or a number. Repeatable
    #[arg(long, value_name = "NAME=FILE|NUMBER")]
    cond: Vec<NamedFile>,
    /// Calibrate within about this time, e.g. 20m or 90s: on fewer samples where all would take
    /// longer
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// Keep the results of calibration in this directory and go on from them after an interruption
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Quantization")]
pub struct QuantizingArgs {
    /// Layers that are not quantized: names of nodes; auto, which adds those that hurt most until
    /// --target-psnr is reached (not with bf16); or none, which quantizes every layer, including
    /// layers with fewer than 16 channels, which are kept in float by default
    #[arg(long, value_name = "NODE,..", value_delimiter = ',')]
    keep_float: Vec<String>,
    /// The least mean PSNR to the float loop on held-out samples, dB: below it nothing is written
    /// [default: 30]. With --keep-float auto, layers are kept in float until it is reached [default:
    /// 35]
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    target_psnr: Option<f64>,
    /// Keep the most error-sensitive layer inputs in bf16 instead of int8, up to this fraction of
    /// all MACs [default: 0.03]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    float_work: Option<f64>,
    /// Divide channels of layer inputs that are much larger than their neighbours by powers of two,
    /// and multiply the weights by them: auto (where it helps on held-out samples), none, or the
    /// exponent of SmoothQuant, 0 to 1, for all layers [default: auto]
    #[arg(long, value_name = "HOW", allow_negative_numbers = true)]
    migrate: Option<Migrate>,
    /// Evaluations that share ranges of activations: none, a number of groups, or all [default:
    /// none]
    #[arg(long, value_name = "HOW")]
    share_ranges: Option<Grouping>,
    /// Correct the sample after every step (Q&C): mse, regression, variance or paper
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "mse",
          value_parser = names::<CompensationMode>())]
    variance_compensation: Option<CompensationMode>,
    /// Which samples ranges are found on: random (all of the calibration set, at every step),
    /// first=N, tap[=N] (Q&C's clustering) or tdac[=N] (EDA-DM's density and diversity), N being
    /// 800 pairs of sample and step unless given [default: random]
    #[arg(long, value_name = "HOW")]
    calib_select: Option<Selection>,
    /// Round weights by what their layers read (second order) instead of to the nearest code, which
    /// 4 bits need
    #[arg(long)]
    reconstruct: bool,
    /// Whether the inputs of layers that read a concat are split at its border, each part with a
    /// scale of its own [default: true]
    #[arg(long, value_name = "BOOL")]
    split_inputs: Option<bool>,
    /// Whether the correction of the cache may be fitted again to the quantized loop, where that
    /// measures better on held-out samples [default: true]
    #[arg(long, value_name = "BOOL")]
    refit_cache: Option<bool>,
}

/// Parses the names of samplers; help lists them.
fn samplers() -> impl clap::builder::TypedValueParser<Value = SamplerKind> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(SamplerKind::ALL.iter().map(|kind| kind.name()))
        .map(|name| name.parse().expect("it is listed"))
}

fn arrays(files: &[NamedFile]) -> BTreeMap<String, Array> {
    files.iter().map(|f| (f.name.clone(), f.array())).collect()
}

impl LoopArgs {
    pub fn put(&self, recipe: &mut Recipe) {
        recipe.steps = self.steps;
        recipe.any_steps = self.any_steps;
        recipe.sampler = self.sampler;
        recipe.scheduler_config = self.scheduler_config.clone().map(SchedulerConfig::File);
        recipe.prediction = self.prediction;
        recipe.flow_time = self.flow_time;
        recipe.flow_shift = self.flow_shift;
        recipe.flow_schedule = self.flow_schedule;
        recipe.flow_mu = self.flow_mu;
        recipe.sigmas = self.sigmas.clone();
        recipe.timesteps = self.timesteps.clone();
        recipe.trust = self.trust;
        recipe.eta = self.eta;
        recipe.guidance = self.guidance;
        recipe.guidance_rescale = self.guidance_rescale;
        recipe.guidance_interval = self.guidance_interval;
        recipe.fill = self.fill.iter().map(|f| (f.name.clone(), f.spec)).collect();
        recipe.null_label = self.null_label;
        recipe.null_cond = arrays(&self.null_cond);
        recipe.quant = self.quant;
        recipe.correct = self.correct.clone();
        recipe.target = self.target.clone();
    }
}

impl CachingArgs {
    pub fn put(&self, recipe: &mut Recipe) {
        recipe.interval = self.interval;
        recipe.schedule = self.schedule.clone();
        recipe.cut = self.cut.clone();
        recipe.cache_fit = self.cache_fit;
        recipe.calib_samples = self.calib_samples;
        recipe.calib_batch = self.calib_batch;
        recipe.calib_noise = self.calib_noise.clone().map(Array::File);
        recipe.seed = self.seed;
        recipe.labels = self.labels.clone();
        recipe.cond = arrays(&self.cond);
        recipe.budget = self.budget.map(|time| time.as_secs_f64());
        recipe.work_dir = self.work_dir.clone();
        recipe.threads = self.threads.given();
    }
}

impl QuantizingArgs {
    pub fn put(&self, recipe: &mut Recipe) {
        recipe.keep_float = self.keep_float.clone();
        recipe.target_psnr = self.target_psnr;
        recipe.float_work = self.float_work;
        recipe.migrate = self.migrate;
        recipe.share_ranges = self.share_ranges;
        recipe.variance_compensation = self.variance_compensation;
        recipe.calib_select = self.calib_select;
        recipe.reconstruct = self.reconstruct;
        recipe.split_inputs = self.split_inputs;
        recipe.refit_cache = self.refit_cache;
    }
}
