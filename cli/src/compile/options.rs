//! The options of `compile` that are keys of the recipe.
//!
//! Every field is an `Option`, an empty list or `false` when the option is not given, so that the
//! recipe knows what was asked for. The help texts state the defaults; [`Recipe`] applies them.

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
#[command(next_help_heading = "Sampler and guidance")]
pub struct LoopArgs {
    /// Number of sampler steps, at least 1 [default: 50]
    ///
    /// With --sigmas or --timesteps the default is the length of that list.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Keep the part of the network that computes the tables of the time steps in the artifact
    ///
    /// `sample --steps` then takes any number of steps. Without this option it takes only the
    /// numbers whose time steps are among the compiled ones.
    #[arg(long)]
    any_steps: bool,
    /// The sampler [default: that of the scheduler configuration, else ddim]
    #[arg(long, value_name = "NAME", value_parser = samplers())]
    sampler: Option<SamplerKind>,
    /// A scheduler_config.json of diffusers: sampler, noise schedule and kind of prediction
    ///
    /// In a pipeline directory the file scheduler/scheduler_config.json is used without this
    /// option.
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// What the network predicts [default: what the scheduler configuration says, else tested]
    ///
    /// epsilon: the noise; v: the velocity of diffusion models; sample: the clean image; flow:
    /// noise - image; flow-to-data: image - noise. Where nothing says which, a test on samples that
    /// the model itself makes decides.
    #[arg(long, value_name = "KIND", value_parser = names::<Prediction>())]
    prediction: Option<Prediction>,
    /// Flow matching: the form in which the network gets the noise level sigma (0 to 1)
    ///
    /// scaled: 1000 sigma; sigma: sigma itself; one-minus-sigma: 1 - sigma; scaled-reversed: 1000 -
    /// 1000 sigma; index: the number of the step. The default is found as for --prediction.
    #[arg(long, value_name = "KIND", value_parser = names::<FlowTime>())]
    flow_time: Option<FlowTime>,
    /// Flow matching: shift of the noise levels towards noise, above 0, e.g. 3 for SD3 [default:
    /// that of the scheduler configuration, else 1, which shifts nothing]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    flow_shift: Option<f64>,
    /// Flow matching: the spacing of the noise levels [default: that of the scheduler
    /// configuration, else even]
    ///
    /// trained: the spacing of diffusers' scheduler class; even; sway=S: F5-TTS, where S is -1;
    /// time-shift=S: ZipVoice; linear-quadratic=T: Mochi, where T is 0.025.
    #[arg(long, value_name = "KIND", allow_hyphen_values = true)]
    flow_schedule: Option<FlowSchedule>,
    /// Flow matching with dynamic shifting: the value of mu [default: computed from the number of
    /// tokens of a sample]
    ///
    /// The tokens of a sequence are its rows, those of an image its patches of 2 x 2.
    #[arg(long, value_name = "MU", allow_negative_numbers = true)]
    flow_mu: Option<f64>,
    /// Noise levels to visit, highest first, instead of those of the sampler
    ///
    /// Their number is the number of steps. Cannot be combined with --timesteps.
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    sigmas: Vec<f64>,
    /// Time steps to visit, noisiest first, instead of those of the sampler
    ///
    /// Their number is the number of steps. Cannot be combined with --sigmas.
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    timesteps: Vec<f64>,
    /// Accept the sampler and the prediction even if the test of the model rejects them
    ///
    /// `compile` tests on samples that the model itself makes whether the network predicts what the
    /// sampler expects. A model that was distilled to a single step, for example, fails that test.
    #[arg(long)]
    trust: bool,
    /// Amount of noise that a step of ddim, tcd or flow-euler-ancestral adds, 0 to 1
    ///
    /// For ddim it is a share of the noise that DDPM adds, for tcd it is gamma. The defaults are 0
    /// for ddim, 0.3 for tcd and 1 for flow-euler-ancestral. Other samplers do not take it.
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// Scale of classifier-free guidance, 0 or more; 1 means no guidance [default: 1]
    ///
    /// This is the default of `sample --guidance`. If the network takes the scale as an input (see
    /// --fill), the scale goes to that input instead; its default is then 3.5, or 8.5 where the
    /// input is an embedding of the scale.
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// How far guidance rescales its prediction to the standard deviation of the conditional one, 0
    /// to 1 [default: 0]
    ///
    /// This is the default of `sample --guidance-rescale` (arXiv:2305.08891, section 3.4). Needs
    /// --guidance.
    #[arg(long, value_name = "PHI", allow_negative_numbers = true)]
    guidance_rescale: Option<f32>,
    /// The part of the steps in which guidance applies, as shares of their number, e.g. 0.2..0.8
    /// [default: 0..1]
    ///
    /// The other steps compute the conditional half alone. This is the default of `sample
    /// --guidance-interval`. Needs --guidance.
    #[arg(long, value_name = "FROM..TO", allow_hyphen_values = true)]
    guidance_interval: Option<GuidanceInterval>,
    /// A value that the loop gives to an input by itself [default: decided by the input's name]
    ///
    /// guidance: the guidance scale; guidance-embedding: sines and cosines of it, as for LCM;
    /// steps: the number of steps; none: nothing, so that --cond has to give it. The names that are
    /// recognised include guidance, timestep_cond and total_step. Can be repeated.
    #[arg(long, value_name = "INPUT=KIND")]
    fill: Vec<NamedFill>,
    /// Class label for the unconditional half of guidance, 0 or more
    ///
    /// It is stored in the artifact. Models with class labels need it for guidance.
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    null_label: Option<i64>,
    /// Value of an input for the unconditional half of guidance: an array of one row, or a number
    ///
    /// FILE is a .npy or .npz file. It is stored in the artifact. Can be repeated.
    #[arg(long, value_name = "NAME=FILE|NUMBER")]
    null_cond: Vec<NamedFile>,
    /// Number format of convolutions, linear layers and attention [default: w8a8]
    ///
    /// w8a8 and w4a8 multiply integers, with 8-bit activations and 8-bit or 4-bit weights; they use
    /// AVX2, AVX-VNNI, AVX-512 VNNI or AMX. bf16 multiplies bf16 with AMX or AVX-512 BF16, and f32
    /// rounded to bf16 on other CPUs; it needs no calibration. none computes in f32.
    #[arg(long, value_name = "KIND", value_parser = names::<Quant>(),
          help_heading = "Quantization")]
    quant: Option<Quant>,
    /// Errors that may be corrected, a comma-separated list [default: cache,quant]
    ///
    /// cache: the cached tensors, if that helps on held-out samples; quant: the sums of the
    /// quantized layers that read the cache; quant=all: the sums of all quantized layers; none:
    /// nothing.
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Corrections")]
    correct: Option<Vec<Correct>>,
    /// Also compile CUDA kernels for a GPU architecture into the artifact, e.g. cuda:sm_90
    ///
    /// A machine with such a GPU then needs no compiler (see `sample --artifact-kernels`).
    /// Compiling them needs the library NVRTC, but no GPU. Can be repeated.
    #[arg(long, value_name = "cuda:ARCH", help_heading = "CUDA kernels")]
    target: Vec<CudaTarget>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Caching and its calibration")]
pub struct CachingArgs {
    /// Cache interval N: about one evaluation of N is computed in full, at least 1 [default: 5]
    ///
    /// The evaluations between them reuse the cached deep features. 1 caches nothing. N may not
    /// exceed the number of steps.
    #[arg(long, value_name = "N")]
    interval: Option<usize>,
    /// The method that chooses the full evaluations, or a JSON file that lists them [default: auto]
    ///
    /// auto, dps-output, dps, dps-affine, uniform, quadratic[=CENTRE,POWER[,signed]], none or
    /// FILE.json. auto runs several methods on held-out samples and takes the best. docs/caching.md
    /// describes the methods.
    #[arg(long, value_name = "KIND")]
    schedule: Option<ScheduleSpec>,
    /// The tensors that are cached [default: auto]
    ///
    /// auto: the cut whose cached step does nearest to 15 % of the work of a full one; shallow: the
    /// cheapest cached step; deep: the most expensive one; cost=SHARE: nearest to this share of the
    /// work, between 0 and 1; or the names of tensors as `cqc inspect` lists them, separated by
    /// commas.
    #[arg(long, value_name = "SPEC")]
    cut: Option<CutSpec>,
    /// The method that fits the correction of the cache [default: auto]
    ///
    /// auto: whichever is best on held-out samples, or no correction; teacher-forced: on the
    /// trajectory of the float loop, as CacheQuant publishes it; sequential: on the trajectory of
    /// the accelerated loop; forecast: on the accelerated loop, from the last two cached values.
    #[arg(long, value_name = "FORM", value_parser = names::<CacheFit>())]
    cache_fit: Option<CacheFit>,
    /// Number of samples in the calibration set, at least 2 [default: 16]
    ///
    /// Half of them, at most 8, are held out: nothing is fitted on them, and alternatives are
    /// compared on them.
    #[arg(long, value_name = "N")]
    calib_samples: Option<usize>,
    /// Number of calibration samples that are computed at once, at least 1 [default: 8]
    ///
    /// A smaller number needs less memory.
    #[arg(long, value_name = "B")]
    calib_batch: Option<usize>,
    /// Initial noise of the calibration set, of unit variance, instead of noise from --seed
    ///
    /// A .npy file, or a .npz file with an array `noise`. Its first axis is the number of samples,
    /// which replaces --calib-samples.
    #[arg(long, value_name = "FILE")]
    calib_noise: Option<PathBuf>,
    /// Seed of the calibration set's initial noise [default: 1243]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Class labels of the calibration set, 0 or more, repeated in turn [default: with --null-label
    /// K, 0 to K - 1; else all labels of the model's table]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    labels: Vec<i64>,
    /// Value of a conditioning input for the calibration set
    ///
    /// FILE is a .npy or .npz array with one row per sample, or one row for all samples, or a .png
    /// with one image. A number fills the whole input. Can be repeated.
    #[arg(long, value_name = "NAME=FILE|NUMBER")]
    cond: Vec<NamedFile>,
    /// Time that calibration may take, e.g. 20m or 90s [default: no limit]
    ///
    /// If all samples of the calibration set would take longer, fewer are used. The time is an
    /// estimate, not a hard limit.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// Directory that keeps the results of finished calibration stages
    ///
    /// After an interruption the same command continues from them.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Quantization")]
pub struct QuantizingArgs {
    /// Layers that are not quantized, a comma-separated list [default: layers with fewer than 16
    /// channels]
    ///
    /// Names of nodes as `cqc inspect MODEL --stop-after 99` prints them; or auto, which also keeps
    /// those layers in float whose quantization costs most, until --target-psnr is reached (not
    /// with bf16); or none, which quantizes every layer.
    #[arg(long, value_name = "NODE,..", value_delimiter = ',')]
    keep_float: Vec<String>,
    /// The least mean PSNR to the float loop on held-out samples, in dB [default: 30]
    ///
    /// Below it no artifact is written (see --accept). With --keep-float auto, layers are kept in
    /// float until it is reached, and the default is 35. Without this option the limit of 30
    /// applies only to models that pass the test of the prediction (see --trust).
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    target_psnr: Option<f64>,
    /// Largest share of all multiply-accumulates whose layers keep bf16 inputs, 0 to 1 [default:
    /// 0.03]
    ///
    /// The inputs whose rounding to int8 costs most are kept in bf16, up to this share.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    float_work: Option<f64>,
    /// How large input channels of layers are scaled down before rounding [default: auto]
    ///
    /// Channels that are much larger than their neighbours are divided by powers of two, and the
    /// weights are multiplied by them. auto: where it helps on held-out rows; none: nowhere; a
    /// number from 0 to 1: the exponent of SmoothQuant, for all layers.
    #[arg(long, value_name = "HOW", allow_negative_numbers = true)]
    migrate: Option<Migrate>,
    /// Evaluations that share the quantization ranges of activations [default: none]
    ///
    /// none: every evaluation has its own; a number: this many groups of consecutive evaluations;
    /// all: one range for all evaluations.
    #[arg(long, value_name = "HOW")]
    share_ranges: Option<Grouping>,
    /// Correct the sample after every step, as Q&C does [default: off]
    ///
    /// mse, regression, variance or paper selects what the correction minimises; without a value it
    /// is mse.
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "mse",
          value_parser = names::<CompensationMode>())]
    variance_compensation: Option<CompensationMode>,
    /// The samples on which quantization ranges are found [default: random]
    ///
    /// random: the whole calibration set, at every evaluation; first=N: its first N samples;
    /// tap[=N]: pairs of sample and evaluation that Q&C's clustering selects; tdac[=N]: pairs by
    /// EDA-DM's density and diversity. N is the number of pairs, 800 unless given.
    #[arg(long, value_name = "HOW")]
    calib_select: Option<Selection>,
    /// Round weights so that the layer's result changes least (second order, GPTQ), instead of to
    /// the nearest code
    ///
    /// Weights of 4 bits need it.
    #[arg(long)]
    reconstruct: bool,
    /// Give the two parts of a concatenated layer input a scale each [default: true]
    #[arg(long, value_name = "BOOL")]
    split_inputs: Option<bool>,
    /// Fit the correction of the cache again on the quantized loop, where that is better on
    /// held-out samples [default: true]
    #[arg(long, value_name = "BOOL")]
    refit_cache: Option<bool>,
}

/// A parser of sampler names. The help lists them as possible values.
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
