//! Which sampler runs the denoising loop, and its constants: the data. `cqc_runtime::sampler` is
//! the code.
//!
//! The field names are those of diffusers' `scheduler_config.json`, where it has one, because that
//! is the file people compare with. [`SamplerConfig::from_diffusers_json`] reads it;
//! [`SamplerConfig::default`] is what cqc assumes without one.

mod diffusers;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// No model is trained with more noise levels than this; every table of a sampler is at most this
/// long.
pub const MAX_TRAIN_TIMESTEPS: u32 = 1_000_000;

/// The longest trajectory, in sampler steps.
pub const MAX_STEPS: usize = 10_000;

/// A sampling rule. The text form is what `--sampler` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// Denoising diffusion implicit models: deterministic at `eta` 0.
    Ddim,
    /// Ancestral sampling: new noise in every step.
    Ddpm,
    /// Linear multistep on the predicted noise; diffusers' `PNDMScheduler` with `skip_prk_steps`.
    Plms,
    /// One Euler step of the probability-flow ODE per noise level.
    Euler,
    /// DPM-Solver++ of second order, multistep.
    #[serde(rename = "dpmpp-2m")]
    DpmPp2m,
}

impl SamplerKind {
    /// Every kind, in the order `--help` shows them.
    pub const ALL: [SamplerKind; 5] =
        [Self::Ddim, Self::Ddpm, Self::Plms, Self::Euler, Self::DpmPp2m];

    /// The text form, e.g. `dpmpp-2m`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Plms => "plms",
            Self::Euler => "euler",
            Self::DpmPp2m => "dpmpp-2m",
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = SamplerConfigError;

    fn from_str(name: &str) -> Result<Self, SamplerConfigError> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| SamplerConfigError::UnknownKind { name: name.into() })
    }
}

/// Noise added per training step: β of steps 0..`num_train_timesteps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Betas {
    /// Evenly spaced from `start` to `end`.
    Linear {
        /// β of step 0.
        start: f64,
        /// β of the last step.
        end: f64,
    },
    /// √β evenly spaced from √`start` to √`end`: the schedule of latent diffusion.
    ScaledLinear {
        /// β of step 0.
        start: f64,
        /// β of the last step.
        end: f64,
    },
    /// The cosine schedule of improved DDPM, every β at most 0.999.
    SquaredcosCapV2,
    /// One value per training step.
    Trained(Vec<f32>),
}

/// Which of the training time steps are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// 0, r, 2r, … with r = ⌊training steps / steps⌋, moved up by `steps_offset`.
    Leading,
    /// Counted down from the noisiest step.
    Trailing,
    /// From 0 to the noisiest step, both included.
    Linspace,
    /// Squares of evenly spaced numbers up to √(0.8 · training steps), as in DDPM's and
    /// CacheQuant's scripts: dense near the image, and with repetitions when there are many steps.
    /// Not a diffusers option; DDIM and DDPM only.
    Quadratic,
}

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise in the sample.
    Epsilon,
    /// √ᾱ·noise − √(1−ᾱ)·image.
    VPrediction,
    /// The clean image.
    Sample,
}

/// Variance of the noise that DDPM adds; the other kinds do not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior variance, at least 1e-20.
    FixedSmall,
    /// The same through its logarithm.
    FixedSmallLog,
    /// β of the step.
    FixedLarge,
    /// The second half of the network's channels is the variance itself.
    Learned,
    /// The second half, in [-1, 1], interpolates between the logarithms of small and large.
    LearnedRange,
}

/// The noise level after the last step, for the kinds that integrate over noise levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// No noise.
    Zero,
    /// The lowest noise level of training.
    SigmaMin,
}

/// The second-order rule of DPM-Solver++.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The midpoint rule.
    Midpoint,
    /// Heun's rule.
    Heun,
}

/// A sampler's constants, all resolved. A kind does not read the fields that mean nothing to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// The sampling rule.
    pub kind: SamplerKind,
    /// Noise levels in training, 2 to [`MAX_TRAIN_TIMESTEPS`].
    pub num_train_timesteps: u32,
    /// Noise per training step.
    pub betas: Betas,
    /// Shift the schedule so that its last step is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// Which time steps are visited.
    pub timestep_spacing: Spacing,
    /// Added to every `leading` time step.
    pub steps_offset: u32,
    /// Meaning of the network's output.
    pub prediction_type: Prediction,
    /// Clip the predicted image to ±`clip_sample_range` (DDIM, DDPM). The predicted noise is not
    /// recomputed from it.
    pub clip_sample: bool,
    /// Positive.
    pub clip_sample_range: f32,
    /// After the last step ᾱ is 1, not that of training step 0 (DDIM, PLMS).
    pub set_alpha_to_one: bool,
    /// DDIM: share of DDPM's noise, 0 (none) to 1. No scheduler file has it; pipelines pass it.
    pub eta: f64,
    /// DDPM: the variance of its noise.
    pub variance_type: Variance,
    /// Euler, DPM-Solver++: the noise levels of Karras et al. (2022) with ρ = 7.
    pub use_karras_sigmas: bool,
    /// Lowest Karras level; else that of the plain schedule.
    pub sigma_min: Option<f64>,
    /// Highest Karras level; else that of the plain schedule.
    pub sigma_max: Option<f64>,
    /// Euler, DPM-Solver++: the level after the last step.
    pub final_sigmas_type: FinalSigma,
    /// DPM-Solver++: its second-order rule.
    pub solver_type: SolverType,
    /// DPM-Solver++: the last step is of first order if there are fewer than 15.
    pub lower_order_final: bool,
    /// DPM-Solver++: the last step is of first order always.
    pub euler_at_final: bool,
    /// DPM-Solver++: skip time steps whose half log-SNR is below this; `None` skips none.
    pub lambda_min_clipped: Option<f64>,
}

impl Default for SamplerConfig {
    /// [`SamplerConfig::of_kind`] of DDIM.
    fn default() -> Self {
        Self::of_kind(SamplerKind::Ddim)
    }
}

impl SamplerConfig {
    /// The defaults of diffusers' class for `kind` (for PLMS those of `PNDMScheduler`).
    pub fn of_kind(kind: SamplerKind) -> Self {
        let over_sigmas = matches!(kind, SamplerKind::Euler | SamplerKind::DpmPp2m);
        Self {
            kind,
            num_train_timesteps: 1000,
            betas: Betas::Linear { start: 1e-4, end: 0.02 },
            rescale_betas_zero_snr: false,
            timestep_spacing: if over_sigmas { Spacing::Linspace } else { Spacing::Leading },
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            clip_sample: matches!(kind, SamplerKind::Ddim | SamplerKind::Ddpm),
            clip_sample_range: 1.0,
            set_alpha_to_one: kind != SamplerKind::Plms,
            eta: 0.0,
            variance_type: Variance::FixedSmall,
            use_karras_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigma::Zero,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: None,
        }
    }

    /// Whether a step adds new noise.
    pub fn is_stochastic(&self) -> bool {
        match self.kind {
            SamplerKind::Ddim => self.eta > 0.0,
            SamplerKind::Ddpm => true,
            SamplerKind::Plms | SamplerKind::Euler | SamplerKind::DpmPp2m => false,
        }
    }

    /// Checks every field by itself and the combinations that have no meaning. The fields are
    /// public, and artifacts are untrusted, so whoever computes with a configuration calls this
    /// first.
    ///
    /// # Errors
    /// [`SamplerConfigError::OutOfRange`] and [`SamplerConfigError::Unsupported`] name the field.
    pub fn validate(&self) -> Result<(), SamplerConfigError> {
        let train = self.num_train_timesteps;
        in_range(
            "num_train_timesteps",
            train,
            (2..=MAX_TRAIN_TIMESTEPS).contains(&train),
            "2..=1000000",
        )?;
        in_range(
            "steps_offset",
            self.steps_offset,
            self.steps_offset < train,
            "below num_train_timesteps",
        )?;
        in_range(
            "clip_sample_range",
            self.clip_sample_range,
            is_positive(self.clip_sample_range.into()),
            POSITIVE,
        )?;
        in_range("eta", self.eta, (0.0..=1.0).contains(&self.eta), "0..=1")?;
        for (key, sigma) in [("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)] {
            let sigma = sigma.unwrap_or(1.0);
            in_range(key, sigma, is_positive(sigma), POSITIVE)?;
        }
        let lambda = self.lambda_min_clipped.unwrap_or(0.0);
        in_range("lambda_min_clipped", lambda, lambda.is_finite(), "a number, or -Infinity")?;
        self.validate_betas()?;
        self.validate_combination()
    }

    fn validate_betas(&self) -> Result<(), SamplerConfigError> {
        match &self.betas {
            Betas::Linear { start, end } | Betas::ScaledLinear { start, end } => {
                in_range("beta_start", start, is_beta(*start), BETA)?;
                in_range("beta_end", end, is_beta(*end), BETA)
            }
            Betas::SquaredcosCapV2 => Ok(()),
            Betas::Trained(betas) => {
                let seen = format!("{} values", betas.len());
                in_range(
                    "trained_betas",
                    seen,
                    betas.len() == self.num_train_timesteps as usize,
                    "one per train step",
                )?;
                let bad = betas.iter().find(|&&beta| !is_beta(beta.into()));
                bad.map_or(Ok(()), |beta| in_range("trained_betas", beta, false, BETA))
            }
        }
    }

    fn validate_combination(&self) -> Result<(), SamplerConfigError> {
        use SamplerKind::{Ddim, Ddpm, Plms};
        if self.kind == Plms && self.prediction_type == Prediction::Sample {
            return Err(self.unsupported("prediction_type", "sample", "epsilon, v_prediction"));
        }
        if self.kind == Plms && self.rescale_betas_zero_snr {
            return Err(self.unsupported("rescale_betas_zero_snr", "true", "false"));
        }
        if self.timestep_spacing == Spacing::Quadratic && !matches!(self.kind, Ddim | Ddpm) {
            return Err(self.unsupported(
                "timestep_spacing",
                "quadratic",
                "leading, trailing, linspace",
            ));
        }
        Ok(())
    }

    fn unsupported(&self, key: &'static str, value: &str, supported: &str) -> SamplerConfigError {
        SamplerConfigError::Unsupported {
            kind: self.kind,
            key,
            value: value.into(),
            supported: supported.into(),
        }
    }
}

const POSITIVE: &str = "positive and finite";
const BETA: &str = "between 0 and 1, both excluded";

fn is_positive(x: f64) -> bool {
    x > 0.0 && x.is_finite()
}

fn is_beta(x: f64) -> bool {
    x > 0.0 && x < 1.0
}

fn in_range(
    key: &'static str,
    value: impl fmt::Display,
    ok: bool,
    allowed: &'static str,
) -> Result<(), SamplerConfigError> {
    if ok {
        Ok(())
    } else {
        Err(SamplerConfigError::OutOfRange { key, value: value.to_string(), allowed })
    }
}

/// Why a sampler configuration was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SamplerConfigError {
    /// The text is not JSON.
    #[error("the scheduler configuration is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The text is JSON, but not an object.
    #[error("the scheduler configuration is not a JSON object")]
    NotAnObject,
    /// `--sampler` with a name that is no sampler.
    #[error("no sampler is called `{name}` (there are ddim, ddpm, plms, euler, dpmpp-2m)")]
    UnknownKind {
        /// As given.
        name: String,
    },
    /// No kind was given, and `_class_name` selects none.
    #[error("scheduler class `{class}` is not supported; choose the nearest with --sampler")]
    UnknownClass {
        /// The value of `_class_name`, empty if absent.
        class: String,
    },
    /// A key that no known scheduler has: it may change the result.
    #[error("unknown key `{key}` in the scheduler configuration")]
    UnknownKey {
        /// As in the file.
        key: String,
    },
    /// A key with a value of the wrong JSON type.
    #[error("`{key}` of the scheduler configuration is {seen}, expected {wanted}")]
    WrongType {
        /// As in the file.
        key: &'static str,
        /// The type it should have.
        wanted: &'static str,
        /// The value, shortened.
        seen: String,
    },
    /// A known option that this sampler does not do.
    #[error("sampler {kind} does not support {key} = {value} (it supports {supported})")]
    Unsupported {
        /// The sampler.
        kind: SamplerKind,
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values that would work.
        supported: String,
    },
    /// A number outside its range.
    #[error("{key} = {value} is out of range (allowed: {allowed})")]
    OutOfRange {
        /// The field.
        key: &'static str,
        /// Its value.
        value: String,
        /// The range, in words.
        allowed: &'static str,
    },
}
