//! The scheduler classes of diffusers: the sampler of each class, the keys that it reads with their
//! defaults, and the classes that are refused.

mod distilled;
mod dpm;
mod flow;
mod refused;
mod sigma;

pub(super) use refused::KEYS as OF_REFUSED;

use super::diffusers::{Reader, Result};
use super::{
    DynamicShift, FinalSigma, Interpolation, Prediction, SamplerConfig, SamplerKind, SigmaSchedule,
    Spacing, Thresholding, TimestepType, Variance,
};

/// A scheduler class of diffusers 0.42 that is supported.
#[derive(Debug)]
pub struct Class {
    /// The value of `_class_name` in its files.
    pub name: &'static str,
    /// The sampler that corresponds to it.
    pub kind: SamplerKind,
    /// The arguments of its constructor. Other known keys are ignored, as in `from_config`.
    pub keys: &'static [&'static str],
    /// Sets the defaults that differ from the common ones of [`SamplerConfig::of_kind`].
    pub(super) defaults: fn(&mut SamplerConfig),
    /// Checks and completes the configuration after all keys have been read.
    pub(super) check: fn(&Reader, &mut SamplerConfig) -> Result<()>,
}

/// A scheduler class of diffusers that is refused.
#[derive(Debug)]
pub struct Refused {
    /// The value of `_class_name` in its files.
    pub name: &'static str,
    /// The behaviour of the class that a table of coefficients cannot express.
    pub reason: &'static str,
    /// The sampler that makes correct images from the same model, if there is one.
    pub nearest: Option<SamplerKind>,
}

const FAMILIES: &[&[Class]] =
    &[CLASSES, sigma::CLASSES, dpm::CLASSES, flow::CLASSES, distilled::CLASSES];

impl Class {
    /// Every class that is supported. The first one of a kind has the defaults of
    /// [`SamplerConfig::of_kind`].
    pub fn all() -> impl Iterator<Item = &'static Class> {
        FAMILIES.iter().copied().flatten()
    }
}

const NOTHING: fn(&Reader, &mut SamplerConfig) -> Result<()> = |_, _| Ok(());

impl Refused {
    /// Every class that is refused.
    pub fn all() -> impl Iterator<Item = &'static Refused> {
        [refused::REFUSED, sigma::REFUSED].into_iter().flatten()
    }
}

/// The classes that belong to no other family.
#[rustfmt::skip]
const CLASSES: &[Class] = &[
    Class {
        name: "DDIMScheduler",
        kind: SamplerKind::Ddim,
        keys: DDIM,
        defaults: |c| c.clip_sample = true,
        check: NOTHING,
    },
    Class {
        name: "DDIMParallelScheduler",
        kind: SamplerKind::Ddim,
        keys: DDIM,
        defaults: |c| c.clip_sample = true,
        check: NOTHING,
    },
    Class {
        name: "DDPMScheduler",
        kind: SamplerKind::Ddpm,
        keys: DDPM,
        defaults: |c| c.clip_sample = true,
        check: NOTHING,
    },
    Class {
        name: "DDPMParallelScheduler",
        kind: SamplerKind::Ddpm,
        keys: DDPM,
        defaults: |c| c.clip_sample = true,
        check: NOTHING,
    },
];

#[rustfmt::skip]
const DDIM: &[&str] = &[
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
    "set_alpha_to_one", "steps_offset", "prediction_type", "thresholding", "dynamic_thresholding_ratio",
    "clip_sample_range", "sample_max_value", "timestep_spacing", "rescale_betas_zero_snr",
];

#[rustfmt::skip]
const DDPM: &[&str] = &[
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "variance_type", "clip_sample",
    "prediction_type", "thresholding", "dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value",
    "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
];

/// Applies one key of a file to the configuration. The key's name is an argument because several
/// keys share a function.
type ReadKey = fn(&Reader, &'static str, &mut SamplerConfig) -> Result<()>;

const IGNORED: ReadKey = |_, _, _| Ok(());

/// Every key that a scheduler of diffusers reads, with its effect. Keys that apply only to refused
/// classes, or that the `check` of a class reads, are ignored here.
pub(super) const KEYS: &[(&str, ReadKey)] = &[
    ("num_train_timesteps", |r, key, c| {
        c.num_train_timesteps = r.integer(key, c.num_train_timesteps)?;
        Ok(())
    }),
    ("beta_start", read_betas),
    ("beta_end", read_betas),
    ("beta_schedule", read_betas),
    ("trained_betas", read_betas),
    ("prediction_type", |r, key, c| {
        let known = match c.kind {
            SamplerKind::Scm => flow::OF_SCM,
            SamplerKind::Euler => sigma::OF_EULER,
            _ => PREDICTIONS,
        };
        c.prediction_type = r.choice(key, c.prediction_type, known)?;
        Ok(())
    }),
    ("timestep_spacing", |r, key, c| {
        c.timestep_spacing = r.choice(key, c.timestep_spacing, SPACINGS)?;
        Ok(())
    }),
    ("steps_offset", |r, key, c| {
        c.steps_offset = r.integer(key, c.steps_offset)?;
        Ok(())
    }),
    ("rescale_betas_zero_snr", |r, key, c| {
        c.rescale_betas_zero_snr = r.flag(key, c.rescale_betas_zero_snr)?;
        Ok(())
    }),
    ("clip_sample", |r, key, c| {
        c.clip_sample = r.flag(key, c.clip_sample)?;
        Ok(())
    }),
    ("clip_sample_range", |r, key, c| {
        c.clip_sample_range = r.number(key, c.clip_sample_range.into())? as f32;
        Ok(())
    }),
    ("thresholding", read_thresholding),
    ("dynamic_thresholding_ratio", read_thresholding),
    ("sample_max_value", read_thresholding),
    ("set_alpha_to_one", |r, key, c| {
        c.set_alpha_to_one = r.flag(key, c.set_alpha_to_one)?;
        Ok(())
    }),
    ("variance_type", |r, key, c| {
        // the other kinds ignore the second half of the network's output
        if matches!(c.kind, SamplerKind::Ddpm | SamplerKind::UnClip) {
            c.variance_type = r.choice(key, c.variance_type, VARIANCES)?;
        }
        Ok(())
    }),
    ("skip_prk_steps", IGNORED),
    ("interpolation_type", |r, key, c| {
        c.interpolation_type = r.choice(key, c.interpolation_type, INTERPOLATIONS)?;
        Ok(())
    }),
    ("timestep_type", |r, key, c| {
        c.timestep_type = r.choice(key, c.timestep_type, TIMESTEP_TYPES)?;
        Ok(())
    }),
    ("final_sigmas_type", |r, key, c| {
        c.final_sigmas_type = r.choice(key, c.final_sigmas_type, FINAL_SIGMAS)?;
        Ok(())
    }),
    ("sigma_min", |r, key, c| {
        c.sigma_min = r.optional(key)?;
        Ok(())
    }),
    ("sigma_max", |r, key, c| {
        c.sigma_max = r.optional(key)?;
        Ok(())
    }),
    ("sigma_data", |r, key, c| {
        c.sigma_data = r.number(key, c.sigma_data)?;
        Ok(())
    }),
    ("rho", |r, key, c| {
        c.rho = r.number(key, c.rho)?;
        Ok(())
    }),
    ("s_noise", |r, key, c| {
        c.s_noise = r.number(key, c.s_noise)?;
        Ok(())
    }),
    ("clip_denoised", |r, key, c| {
        c.clip_sample = r.flag(key, c.clip_sample)?;
        Ok(())
    }),
    ("sigma_schedule", |r, key, c| {
        c.sigma_schedule = r.choice(key, c.sigma_schedule, EDM_SCHEDULES)?;
        Ok(())
    }),
    ("noise_sampler_seed", IGNORED),
    ("use_karras_sigmas", |r, key, c| r.schedule(key, SigmaSchedule::Karras, c)),
    ("use_exponential_sigmas", |r, key, c| r.schedule(key, SigmaSchedule::Exponential, c)),
    ("use_beta_sigmas", |r, key, c| r.schedule(key, SigmaSchedule::Beta, c)),
    ("use_lu_lambdas", |r, key, c| r.schedule(key, SigmaSchedule::LuLambdas, c)),
    ("use_flow_sigmas", |r, key, c| r.schedule(key, SigmaSchedule::Flow, c)),
    ("flow_shift", |r, key, c| {
        c.flow_shift = r.number(key, c.flow_shift)?;
        Ok(())
    }),
    ("algorithm_type", |r, key, c| {
        c.algorithm_type = r.choice(key, c.algorithm_type, dpm::algorithms(c.kind))?;
        Ok(())
    }),
    ("solver_order", |r, key, c| {
        c.solver_order = r.integer(key, c.solver_order)?;
        Ok(())
    }),
    ("solver_type", |r, key, c| {
        c.solver_type = r.choice(key, c.solver_type, dpm::solvers(c.kind))?;
        Ok(())
    }),
    ("lower_order_final", |r, key, c| {
        c.lower_order_final = r.flag(key, c.lower_order_final)?;
        Ok(())
    }),
    ("euler_at_final", |r, key, c| {
        c.euler_at_final = r.flag(key, c.euler_at_final)?;
        Ok(())
    }),
    ("lambda_min_clipped", |r, key, c| {
        c.lambda_min_clipped = r.optional(key)?.filter(|&lambda| lambda != f64::NEG_INFINITY);
        Ok(())
    }),
    ("shift", |r, key, c| {
        c.flow_shift = r.number(key, c.flow_shift)?;
        Ok(())
    }),
    ("shift_terminal", |r, key, c| {
        c.shift_terminal = r.optional(key)?.filter(|&terminal| terminal != 0.0);
        Ok(())
    }),
    ("invert_sigmas", |r, key, c| {
        c.invert_sigmas = r.flag(key, c.invert_sigmas)?;
        Ok(())
    }),
    ("stochastic_sampling", |r, key, c| {
        c.stochastic_sampling = r.flag(key, c.stochastic_sampling)?;
        Ok(())
    }),
    ("use_dynamic_shifting", IGNORED),
    ("base_shift", IGNORED),
    ("max_shift", IGNORED),
    ("base_image_seq_len", IGNORED),
    ("max_image_seq_len", IGNORED),
    ("time_shift_type", IGNORED),
    ("predict_x0", |r, key, c| {
        c.predict_x0 = r.flag(key, c.predict_x0)?;
        Ok(())
    }),
    ("disable_corrector", |r, key, c| {
        c.disable_corrector = r.integers(key)?;
        Ok(())
    }),
    ("solver_p", |r, key, _| r.absent(key, "null")),
    ("predictor_order", |r, key, c| {
        c.predictor_order = r.integer(key, c.predictor_order)?;
        Ok(())
    }),
    ("corrector_order", |r, key, c| {
        c.corrector_order = r.integer(key, c.corrector_order)?;
        Ok(())
    }),
    ("tau_func", |r, key, _| r.absent(key, "null, which is 1 for time steps 200 to 800")),
    ("set_alpha_to_zero", |r, key, c| {
        c.set_alpha_to_one = r.flag(key, c.set_alpha_to_one)?;
        Ok(())
    }),
    ("original_inference_steps", |r, key, c| {
        c.original_inference_steps = r.integer(key, c.original_inference_steps)?;
        Ok(())
    }),
    ("timestep_scaling", |r, key, c| {
        c.timestep_scaling = r.number(key, c.timestep_scaling)?;
        Ok(())
    }),
    ("snr_shift_scale", |r, key, c| {
        c.snr_shift_scale = r.number(key, c.snr_shift_scale)?;
        Ok(())
    }),
    ("eta", |r, key, c| {
        c.eta = r.number(key, c.eta)?;
        Ok(())
    }),
    ("scaler", |r, key, c| {
        c.scaler = r.number(key, c.scaler)?;
        Ok(())
    }),
    ("s", |r, key, c| {
        c.s = r.number(key, c.s)?;
        Ok(())
    }),
    ("flow_schedule", flow::read_schedule),
    ("kappa", |r, key, c| {
        c.res_shift.kappa = r.number(key, c.res_shift.kappa)?;
        Ok(())
    }),
    ("power", |r, key, c| {
        c.res_shift.power = r.number(key, c.res_shift.power)?;
        Ok(())
    }),
    ("min_noise_level", |r, key, c| {
        c.res_shift.min_noise_level = r.number(key, c.res_shift.min_noise_level)?;
        Ok(())
    }),
    ("etas_end", |r, key, c| {
        c.res_shift.etas_end = r.number(key, c.res_shift.etas_end)?;
        Ok(())
    }),
    ("normalize_input", |r, key, c| {
        c.res_shift.normalize_input = r.flag(key, c.res_shift.normalize_input)?;
        Ok(())
    }),
    ("latent_flag", |r, key, c| {
        c.res_shift.latent_flag = r.flag(key, c.res_shift.latent_flag)?;
        Ok(())
    }),
    ("scale_factors", IGNORED),
    ("upscale_mode", IGNORED),
];

fn read_betas(r: &Reader, _: &'static str, c: &mut SamplerConfig) -> Result<()> {
    // the four keys are read together, from the defaults of the class
    let default = SamplerConfig::of_kind(c.kind).betas;
    c.betas = r.betas(&default)?;
    Ok(())
}

fn read_thresholding(r: &Reader, _: &'static str, c: &mut SamplerConfig) -> Result<()> {
    let ratio = r.number("dynamic_thresholding_ratio", 0.995)?;
    let max = r.number("sample_max_value", 1.0)?;
    c.thresholding = r.flag("thresholding", false)?.then_some(Thresholding { ratio, max });
    Ok(())
}

impl Reader<'_> {
    /// Reads one of the flags that select the spacing of levels. Two of them contradict each other.
    fn schedule(
        &self,
        key: &'static str,
        schedule: SigmaSchedule,
        c: &mut SamplerConfig,
    ) -> Result<()> {
        if !self.flag(key, false)? {
            return Ok(());
        }
        let both = [c.sigma_schedule, schedule];
        if self.kind == SamplerKind::Unipc
            && both.contains(&SigmaSchedule::Karras)
            && both.contains(&SigmaSchedule::Flow)
        {
            c.sigma_schedule = SigmaSchedule::KarrasFlow;
            return Ok(());
        }
        if c.sigma_schedule != SigmaSchedule::Plain {
            return Err(self.unsupported(key, "true beside another schedule of sigmas", "one"));
        }
        c.sigma_schedule = schedule;
        Ok(())
    }

    /// Reads `use_dynamic_shifting` and its parameters. `defaults` are the two shifts and the two
    /// numbers of tokens.
    fn dynamic_shift(&self, c: &mut SamplerConfig, defaults: &[f64; 4]) -> Result<()> {
        if !self.flag("use_dynamic_shifting", false)? {
            return Ok(());
        }
        let kinds = [("exponential", false), ("linear", true)];
        c.dynamic_shift = Some(DynamicShift {
            base: self.number("base_shift", defaults[0])?,
            max: self.number("max_shift", defaults[1])?,
            base_tokens: self.number("base_image_seq_len", defaults[2])?,
            max_tokens: self.number("max_image_seq_len", defaults[3])?,
            linear: self.choice("time_shift_type", false, &kinds)?,
            mu: None,
        });
        Ok(())
    }
}

const SPACINGS: &[(&str, Spacing)] = &[
    ("leading", Spacing::Leading),
    ("trailing", Spacing::Trailing),
    ("linspace", Spacing::Linspace),
    ("quadratic", Spacing::Quadratic),
];

const INTERPOLATIONS: &[(&str, Interpolation)] =
    &[("linear", Interpolation::Linear), ("log_linear", Interpolation::LogLinear)];

const TIMESTEP_TYPES: &[(&str, TimestepType)] =
    &[("discrete", TimestepType::Discrete), ("continuous", TimestepType::Continuous)];

const EDM_SCHEDULES: &[(&str, SigmaSchedule)] =
    &[("karras", SigmaSchedule::Karras), ("exponential", SigmaSchedule::Exponential)];

const PREDICTIONS: &[(&str, Prediction)] = &[
    ("epsilon", Prediction::Epsilon),
    ("v_prediction", Prediction::VPrediction),
    ("sample", Prediction::Sample),
    ("flow_prediction", Prediction::Flow),
];

/// The list lacks `fixed_large_log`, for which diffusers takes the square root of a negative
/// logarithm.
const VARIANCES: &[(&str, Variance)] = &[
    ("fixed_small", Variance::FixedSmall),
    ("fixed_small_log", Variance::FixedSmallLog),
    ("fixed_large", Variance::FixedLarge),
    ("learned", Variance::Learned),
    ("learned_range", Variance::LearnedRange),
];

const FINAL_SIGMAS: &[(&str, FinalSigma)] =
    &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::SigmaMin)];
