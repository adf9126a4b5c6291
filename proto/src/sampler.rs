//! The configuration of the sampler that runs the denoising loop. `cqc_runtime::sampler` contains
//! the code that computes with it.
//!
//! The fields have the names of diffusers' `scheduler_config.json`, where it has such a field, so
//! that both can be compared. [`SamplerConfig::from_diffusers_json`] reads that file.
//! [`SamplerConfig::default`] is the configuration that cqc assumes without one.

mod classes;
mod diffusers;
mod dpm;
mod error;
mod flow_schedule;
mod kind;
mod res_shift;
mod sigma_kinds;

pub use classes::{Class, Refused};
pub use error::SamplerConfigError;
pub use flow_schedule::FlowSchedule;
pub use kind::SamplerKind;
pub use res_shift::ResShift;

use serde::{Deserialize, Serialize};
use std::fmt;

/// The maximum number of noise levels in training. No table of a sampler is longer.
pub const MAX_TRAIN_TIMESTEPS: u32 = 1_000_000;

/// The maximum number of sampler steps.
pub const MAX_STEPS: usize = 10_000;

/// The noise that each training step adds: β of the steps 0..`num_train_timesteps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Betas {
    /// β is evenly spaced from `start` to `end`.
    Linear {
        /// β of step 0.
        start: f64,
        /// β of the last step.
        end: f64,
    },
    /// √β is evenly spaced from √`start` to √`end`, as in latent diffusion.
    ScaledLinear {
        /// β of step 0.
        start: f64,
        /// β of the last step.
        end: f64,
    },
    /// The cosine schedule of improved DDPM. Every β is at most 0.999.
    SquaredcosCapV2,
    /// β follows a sigmoid of −6 to 6 from `start` to `end` (GeoDiff).
    Sigmoid {
        /// The value for a sigmoid of 0.
        start: f64,
        /// The value for a sigmoid of 1.
        end: f64,
    },
    /// The log-SNR is at the quantiles of a Laplace distribution (arXiv:2407.03297). Every β is at
    /// most 0.999.
    Laplace,
    /// ᾱ falls as exp(−12·t). Every β is at most 0.999.
    Exp,
    /// A list with one β per training step.
    Trained(Vec<f32>),
}

/// The selection of the training time steps that are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// 0, r, 2r, … with r = ⌊training steps / steps⌋, plus `steps_offset`.
    Leading,
    /// Counted down from the noisiest step in even strides.
    Trailing,
    /// Evenly spaced from 0 to the noisiest step, both included.
    Linspace,
    /// Squares of evenly spaced numbers up to √(0.8 · training steps), as in the scripts of DDPM
    /// and CacheQuant. They are dense near the image, and repeat if there are many steps. diffusers
    /// does not have this option; only DDIM and DDPM support it here.
    Quadratic,
}

/// The meaning of the network's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise in the sample.
    Epsilon,
    /// v = √ᾱ·noise − √(1−ᾱ)·image.
    VPrediction,
    /// The image without noise.
    Sample,
    /// The velocity of a straight path, noise − image, as in SD3 and FLUX.
    Flow,
    /// The velocity with the opposite sign, image − noise, as in models whose time runs from noise
    /// to data.
    FlowToData,
}

/// The form in which a flow-matching model is told the noise level σ of its input (0 is data, 1 is
/// noise).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowTime {
    /// σ times the number of training steps, as in diffusers.
    #[default]
    Scaled,
    /// The level σ itself.
    Sigma,
    /// 1 − σ, for a time that runs from noise to data.
    OneMinusSigma,
    /// (1 − σ) times the number of training steps.
    ScaledReversed,
    /// Index of the step, from 0.
    Index,
}

/// The spacing of noise levels between the highest and the lowest, where the time steps do not
/// determine it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SigmaSchedule {
    /// The levels of the visited time steps.
    #[default]
    Plain,
    /// Evenly spaced in σ^(1/7) (Karras et al. 2022, equation 5).
    Karras,
    /// Evenly spaced in ln σ.
    Exponential,
    /// At the quantiles of a beta distribution with α = β = 0.6 (arXiv:2407.12173).
    Beta,
    /// Evenly spaced in the half log-SNR λ (Lu et al. 2022).
    LuLambdas,
    /// Levels of flow matching from 1 to 1/training steps, moved by `flow_shift`.
    Flow,
    /// Karras levels σ, converted to levels of flow matching σ / (1 + σ) (UniPC).
    KarrasFlow,
}

impl SigmaSchedule {
    /// Whether the levels are those of flow matching, x = (1 − σ)·image + σ·noise.
    pub fn is_flow(self) -> bool {
        matches!(self, Self::Flow | Self::KarrasFlow)
    }
}

/// The computation of levels between those of training, where time steps determine them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Linear in σ between the two nearest time steps.
    #[default]
    Linear,
    /// Evenly spaced in ln σ over all of training, with one level more than there are steps. The
    /// last step ends at the lowest level.
    LogLinear,
}

/// The form in which the network is told a noise level σ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// The time step of training that has this level.
    #[default]
    Discrete,
    /// ¼ ln σ if the network predicts v, else as `discrete`.
    Continuous,
}

/// The form of DPM-Solver that moves the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// DPM-Solver++, which integrates the predicted image. For SA-Solver it is `data_prediction`.
    #[default]
    #[serde(rename = "dpmsolver++")]
    DpmSolverPp,
    /// DPM-Solver, which integrates the predicted noise. For SA-Solver it is `noise_prediction`.
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// The stochastic form of DPM-Solver++.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPp,
    /// The stochastic form of DPM-Solver.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
}

/// Dynamic thresholding of the predicted image (Imagen, arXiv:2205.11487, section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholding {
    /// The quantile of the magnitudes of a sample, from 0 to 1.
    pub ratio: f64,
    /// The largest divisor, at least 1.
    pub max: f64,
}

/// The dependence of the levels of flow matching on the number of tokens (SD3, section 5.3.2;
/// FLUX).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicShift {
    /// The shift `mu` for `base_tokens`.
    pub base: f64,
    /// The shift `mu` for `max_tokens`.
    pub max: f64,
    /// The number of tokens of the smallest image.
    pub base_tokens: f64,
    /// The number of tokens of the largest image.
    pub max_tokens: f64,
    /// Whether σ is moved by `mu` itself instead of by exp(`mu`).
    pub linear: bool,
    /// The shift of this loop, which must be computed from the number of tokens before compilation.
    pub mu: Option<f64>,
}

impl DynamicShift {
    /// The shift `mu` for `tokens` tokens. It is linear between the two ends and beyond them.
    pub fn mu_of(&self, tokens: usize) -> f64 {
        let slope = (self.max - self.base) / (self.max_tokens - self.base_tokens);
        slope * tokens as f64 + (self.base - slope * self.base_tokens)
    }
}

/// The variance of the noise that DDPM and unCLIP add. The other kinds do not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior variance, at least 1e-20.
    FixedSmall,
    /// The posterior variance, computed through its logarithm.
    FixedSmallLog,
    /// β of the step.
    FixedLarge,
    /// The second half of the network's channels is the variance itself.
    Learned,
    /// The second half, in [-1, 1], interpolates between the logarithms of the small and the large
    /// variance.
    LearnedRange,
}

/// The noise level after the last step, for the kinds that integrate over noise levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// No noise, σ = 0.
    Zero,
    /// The lowest noise level of training.
    SigmaMin,
}

/// The rule of a multistep solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The midpoint rule of DPM-Solver.
    Midpoint,
    /// Heun's rule of DPM-Solver.
    Heun,
    /// UniPC with B(h) = h.
    Bh1,
    /// UniPC with B(h) = exp(h) − 1.
    Bh2,
    /// DEIS, integrated over ln ρ.
    Logrho,
}

/// The configuration of a sampler with all values resolved. A kind ignores the fields that do not
/// apply to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// The rule that moves the sample.
    pub kind: SamplerKind,
    /// The number of noise levels in training, 2 to [`MAX_TRAIN_TIMESTEPS`].
    pub num_train_timesteps: u32,
    /// The noise of each training step.
    pub betas: Betas,
    /// Shifts the schedule so that its last step is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// The visited time steps.
    pub timestep_spacing: Spacing,
    /// A number that is added to every `leading` time step.
    pub steps_offset: u32,
    /// The meaning of the network's output.
    pub prediction_type: Prediction,
    /// Clips the predicted image to ±`clip_sample_range` (DDIM, DDPM). The predicted noise is not
    /// computed again from the clipped image.
    pub clip_sample: bool,
    /// The limit for clipping, a positive number.
    pub clip_sample_range: f32,
    /// Whether ᾱ after the last step is 1 instead of that of training step 0 (DDIM, PLMS).
    pub set_alpha_to_one: bool,
    /// DDIM: the share of DDPM's noise, from 0 (none) to 1. Scheduler files of diffusers do not
    /// contain it; its pipelines pass it. Other kinds that read it are listed at
    /// [`SamplerKind::reads_eta`].
    pub eta: f64,
    /// DDPM: the variance of its noise.
    pub variance_type: Variance,
    /// The spacing of noise levels. Before version 5 of artifacts this was a boolean: Karras or
    /// plain.
    #[serde(alias = "use_karras_sigmas", deserialize_with = "karras_or_named")]
    pub sigma_schedule: SigmaSchedule,
    /// The lowest level of the spacing. `None` stands for the level of the plain schedule.
    pub sigma_min: Option<f64>,
    /// The highest level of the spacing. `None` stands for the level of the plain schedule.
    pub sigma_max: Option<f64>,
    /// Euler, DPM-Solver++: the level after the last step.
    pub final_sigmas_type: FinalSigma,
    /// The rule of a multistep solver, which is the second-order rule of DPM-Solver++.
    pub solver_type: SolverType,
    /// DPM-Solver++: the last step is of first order if there are fewer than 15 steps.
    pub lower_order_final: bool,
    /// DPM-Solver++: the last step is always of first order.
    pub euler_at_final: bool,
    /// DPM-Solver++: skips time steps whose half log-SNR is below this number. `None` skips none.
    pub lambda_min_clipped: Option<f64>,
    /// Solvers of DPM's family: the order, 1 to 3 (UniPC: to 4).
    #[serde(skip_serializing_if = "is_second")]
    pub solver_order: u32,
    /// DPM-Solver: the form of the solver.
    #[serde(skip_serializing_if = "is_default")]
    pub algorithm_type: Algorithm,
    /// Dynamic thresholding, which replaces clipping.
    #[serde(skip_serializing_if = "is_default")]
    pub thresholding: Option<Thresholding>,
    /// Flow matching: levels become shift·σ / (1 + (shift − 1)·σ). A shift of 1 does not change
    /// them.
    #[serde(skip_serializing_if = "is_one")]
    pub flow_shift: f64,
    /// Flow matching: a shift that depends on the number of tokens, instead of `flow_shift`.
    #[serde(skip_serializing_if = "is_default")]
    pub dynamic_shift: Option<DynamicShift>,
    /// Flow matching: stretches the levels so that the last one has this value.
    #[serde(skip_serializing_if = "is_default")]
    pub shift_terminal: Option<f64>,
    /// Flow matching: the form in which the model is told the level.
    #[serde(skip_serializing_if = "is_default")]
    pub flow_time: FlowTime,
    /// Flow matching: levels run from 0 (noise) to 1 (data), as in some video models.
    #[serde(skip_serializing_if = "is_default")]
    pub invert_sigmas: bool,
    /// Flow matching: adds new noise in every step.
    #[serde(skip_serializing_if = "is_default")]
    pub stochastic_sampling: bool,
    /// UniPC: integrates the predicted image instead of the predicted noise.
    #[serde(skip_serializing_if = "is_true")]
    pub predict_x0: bool,
    /// UniPC: the steps, from 0, whose result the next evaluation does not correct.
    #[serde(skip_serializing_if = "is_default")]
    pub disable_corrector: Vec<u32>,
    /// SA-Solver: the order of its predictor, 1 to 4.
    #[serde(skip_serializing_if = "is_second")]
    pub predictor_order: u32,
    /// SA-Solver: the order of its corrector, 1 to 4.
    #[serde(skip_serializing_if = "is_second")]
    pub corrector_order: u32,
    /// Euler: the computation of levels between those of training.
    #[serde(skip_serializing_if = "is_default")]
    pub interpolation_type: Interpolation,
    /// Euler: the form in which the network is told a level.
    #[serde(skip_serializing_if = "is_default")]
    pub timestep_type: TimestepType,
    /// EDM, consistency models, SCM: the standard deviation of the data.
    #[serde(skip_serializing_if = "is_half")]
    pub sigma_data: f64,
    /// EDM, consistency models: the exponent of the Karras levels.
    #[serde(skip_serializing_if = "is_seven")]
    pub rho: f64,
    /// Consistency models: the standard deviation of the noise in units of the next level.
    /// Ancestral steps of flow matching: a factor of the noise.
    #[serde(skip_serializing_if = "is_one")]
    pub s_noise: f64,
    /// The noise levels to visit, the highest first, instead of a schedule.
    #[serde(skip_serializing_if = "is_default")]
    pub sigmas: Option<Vec<f64>>,
    /// The time steps to visit, the noisiest first, instead of a spacing.
    #[serde(skip_serializing_if = "is_default")]
    pub timesteps: Option<Vec<f64>>,
    /// Flow matching: the spacing of the levels before they are shifted.
    #[serde(skip_serializing_if = "is_default")]
    pub flow_schedule: FlowSchedule,
    /// LCM, TCD: the number of steps of the distillation. The sampler steps are a subset of these.
    #[serde(skip_serializing_if = "is_fifty")]
    pub original_inference_steps: u32,
    /// LCM: a factor of the time step in the coefficients of the boundary, which decide how much of
    /// the sample is kept.
    #[serde(skip_serializing_if = "is_ten")]
    pub timestep_scaling: f64,
    /// CogVideoX: the divisor of signal-to-noise ratios. A divisor of 1 does not change them.
    #[serde(skip_serializing_if = "is_one")]
    pub snr_shift_scale: f64,
    /// Würstchen: above 1, more steps are at high noise; below 1, fewer.
    #[serde(skip_serializing_if = "is_one")]
    pub scaler: f64,
    /// Würstchen: the offset of its cosine schedule.
    #[serde(skip_serializing_if = "is_0_008")]
    pub s: f64,
    /// Residual shifting: the constants of its chain.
    #[serde(skip_serializing_if = "is_default")]
    pub res_shift: ResShift,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_second(order: &u32) -> bool {
    *order == 2
}

fn is_half(value: &f64) -> bool {
    *value == 0.5
}

fn is_seven(value: &f64) -> bool {
    *value == 7.0
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn is_ten(value: &f64) -> bool {
    *value == 10.0
}

fn is_0_008(value: &f64) -> bool {
    *value == 0.008
}

fn is_fifty(steps: &u32) -> bool {
    *steps == 50
}

/// Reads a name, or the boolean of `use_karras_sigmas`.
fn karras_or_named<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SigmaSchedule, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Karras(bool),
        Named(SigmaSchedule),
    }
    Ok(match Either::deserialize(from)? {
        Either::Karras(true) => SigmaSchedule::Karras,
        Either::Karras(false) => SigmaSchedule::Plain,
        Either::Named(schedule) => schedule,
    })
}

impl Default for SamplerConfig {
    /// The default of diffusers' DDIM class, [`SamplerConfig::of_kind`].
    fn default() -> Self {
        Self::of_kind(SamplerKind::Ddim)
    }
}

impl SamplerConfig {
    /// The defaults of diffusers' class for `kind` (for PLMS those of `PNDMScheduler`).
    pub fn of_kind(kind: SamplerKind) -> Self {
        let mut config = Self {
            kind,
            num_train_timesteps: 1000,
            betas: Betas::Linear { start: 1e-4, end: 0.02 },
            rescale_betas_zero_snr: false,
            timestep_spacing: Spacing::Leading,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            clip_sample: false,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            eta: 0.0,
            variance_type: Variance::FixedSmall,
            sigma_schedule: SigmaSchedule::Plain,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigma::Zero,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: None,
            solver_order: 2,
            algorithm_type: Algorithm::DpmSolverPp,
            thresholding: None,
            flow_shift: 1.0,
            dynamic_shift: None,
            shift_terminal: None,
            flow_time: FlowTime::Scaled,
            invert_sigmas: false,
            stochastic_sampling: false,
            predict_x0: true,
            disable_corrector: Vec::new(),
            predictor_order: 2,
            corrector_order: 2,
            interpolation_type: Interpolation::Linear,
            timestep_type: TimestepType::Discrete,
            sigma_data: 0.5,
            rho: 7.0,
            s_noise: 1.0,
            sigmas: None,
            timesteps: None,
            flow_schedule: FlowSchedule::Trained,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            snr_shift_scale: 1.0,
            scaler: 1.0,
            s: 0.008,
            res_shift: ResShift::default(),
        };
        (Class::of_kind(kind).defaults)(&mut config);
        config
    }

    /// Checks every field by itself, and refuses combinations that have no meaning. The fields are
    /// public and artifacts are untrusted, so code that computes with a configuration must call
    /// this first.
    ///
    /// # Errors
    /// [`SamplerConfigError::OutOfRange`] and [`SamplerConfigError::Unsupported`], with the name of
    /// the field.
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
        for (key, order) in [
            ("solver_order", self.solver_order),
            ("predictor_order", self.predictor_order),
            ("corrector_order", self.corrector_order),
        ] {
            in_range(key, order, (1..=4).contains(&order), "1..=4")?;
        }
        for (key, value) in [("sigma_data", self.sigma_data), ("rho", self.rho)] {
            in_range(key, value, is_positive(value), POSITIVE)?;
        }
        let ok = self.s_noise >= 0.0 && self.s_noise.is_finite();
        in_range("s_noise", self.s_noise, ok, "finite and not negative")?;
        let shift = self.flow_shift;
        in_range("flow_shift", shift, is_positive(shift), POSITIVE)?;
        if let Some(terminal) = self.shift_terminal {
            let ok = (0.0..1.0).contains(&terminal);
            in_range("shift_terminal", terminal, ok, "0 to 1, exclusive")?;
        }
        if let Some(t) = &self.thresholding {
            let ok = (0.0..=1.0).contains(&t.ratio);
            in_range("dynamic_thresholding_ratio", t.ratio, ok, "0..=1")?;
            in_range("sample_max_value", t.max, t.max >= 1.0 && t.max.is_finite(), "at least 1")?;
        }
        if let Some(d) = &self.dynamic_shift {
            let ends = [d.base, d.max, d.base_tokens, d.max_tokens, d.mu.unwrap_or(0.0)];
            let ok = ends.iter().all(|x| x.is_finite() && x.abs() <= 1e6);
            let ok = ok && d.base_tokens < d.max_tokens;
            in_range("base_shift", d.base, ok, "finite, base_image_seq_len < max_image_seq_len")?;
        }
        self.validate_lists()?;
        self.validate_distilled()?;
        self.res_shift.validate()?;
        let lambda = self.lambda_min_clipped.unwrap_or(0.0);
        in_range("lambda_min_clipped", lambda, lambda.is_finite(), "a number, or -Infinity")?;
        self.validate_betas()?;
        self.validate_combination()
    }

    fn validate_betas(&self) -> Result<(), SamplerConfigError> {
        match &self.betas {
            Betas::Linear { start, end }
            | Betas::ScaledLinear { start, end }
            | Betas::Sigmoid { start, end } => {
                in_range("beta_start", start, is_beta(*start), BETA)?;
                in_range("beta_end", end, is_beta(*end), BETA)
            }
            Betas::SquaredcosCapV2 | Betas::Exp | Betas::Laplace => Ok(()),
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

    /// Checks the fields of flow matching and of distilled models.
    fn validate_distilled(&self) -> Result<(), SamplerConfigError> {
        let positive = [
            ("timestep_scaling", self.timestep_scaling),
            ("snr_shift_scale", self.snr_shift_scale),
            ("scaler", self.scaler),
        ];
        for (key, value) in positive {
            in_range(key, value, is_positive(value), POSITIVE)?;
        }
        in_range("s", self.s, (0.0..=1.0).contains(&self.s), "0..=1")?;
        let (ok, allowed) = self.flow_schedule.allowed();
        in_range("flow_schedule", self.flow_schedule, ok, allowed)?;
        let original = self.original_inference_steps;
        let ok = !matches!(self.kind, SamplerKind::Lcm | SamplerKind::Tcd)
            || (1..=self.num_train_timesteps).contains(&original);
        in_range("original_inference_steps", original, ok, "1 to num_train_timesteps")
    }

    /// Checks the lists of levels and of time steps: they must be finite, falling, and not longer
    /// than a trajectory may be.
    fn validate_lists(&self) -> Result<(), SamplerConfigError> {
        for (key, list) in [("sigmas", &self.sigmas), ("timesteps", &self.timesteps)] {
            let Some(list) = list else { continue };
            let ok = (1..=MAX_STEPS).contains(&list.len());
            in_range(key, format!("{} values", list.len()), ok, "1 to 10000 values")?;
            let bad = list.iter().find(|x| !x.is_finite() || **x < 0.0);
            bad.map_or(Ok(()), |x| in_range(key, x, false, "finite and not negative"))?;
            let rising = list.windows(2).find(|pair| pair[0] <= pair[1]);
            rising.map_or(Ok(()), |pair| {
                in_range(key, format!("{}, {}", pair[0], pair[1]), false, "falling")
            })?;
        }
        let limits = [
            ("sigmas", &self.sigmas, self.kind.is_flow(), 1.0, "0 to 1"),
            ("timesteps", &self.timesteps, self.kind == SamplerKind::Wuerstchen, 1.0, "0 to 1"),
            (
                "timesteps",
                &self.timesteps,
                self.kind == SamplerKind::Scm,
                std::f64::consts::FRAC_PI_2 + 1e-5,
                "0 to 1.5708",
            ),
        ];
        for (key, list, applies, limit, allowed) in limits {
            let first = list.as_ref().map_or(0.0, |list| list[0]);
            in_range(key, first, !applies || first <= limit, allowed)?;
        }
        let (sigmas, timesteps) = self.kind.lists();
        if self.sigmas.is_some() && !sigmas {
            return Err(self.unsupported("sigmas", "a list", "no list of levels"));
        }
        if self.timesteps.is_some() && !timesteps {
            return Err(self.unsupported("timesteps", "a list", "no list of time steps"));
        }
        if let (Some(sigmas), Some(timesteps)) = (&self.sigmas, &self.timesteps) {
            if !self.kind.is_flow() {
                return Err(self.unsupported("sigmas", "beside timesteps", "one of the two"));
            }
            let seen = format!("{} values", timesteps.len());
            let ok = sigmas.len() == timesteps.len();
            in_range("timesteps", seen, ok, "as many as there are sigmas")?;
        }
        Ok(())
    }

    fn validate_combination(&self) -> Result<(), SamplerConfigError> {
        use SamplerKind::{Ddim, Ddpm, Direct, Plms, Pndm, ResShift, Scm, UnClip, Wuerstchen};
        let (prediction, flow_levels) = (self.prediction_type, self.sigma_schedule.is_flow());
        let is_straight = matches!(prediction, Prediction::Flow | Prediction::FlowToData);
        self.validate_sigma_kinds()?;
        let wanted = match self.kind {
            kind if kind.is_flow() => "flow, flow_to_data",
            Wuerstchen => "epsilon",
            UnClip => "epsilon, sample",
            Direct | ResShift => "sample",
            Scm => "v_prediction, flow",
            Plms | Pndm => "epsilon, v_prediction",
            _ if flow_levels => "flow, flow_to_data, sample, epsilon",
            _ => "epsilon, v_prediction, sample",
        };
        let fits = match self.kind {
            kind if kind.is_flow() => is_straight,
            Wuerstchen => prediction == Prediction::Epsilon,
            UnClip => matches!(prediction, Prediction::Epsilon | Prediction::Sample),
            Direct | ResShift => prediction == Prediction::Sample,
            Scm => matches!(prediction, Prediction::VPrediction | Prediction::Flow),
            Plms | Pndm => !is_straight && prediction != Prediction::Sample,
            // a straight path has images and noise, but not the velocity of a circle
            _ if flow_levels => prediction != Prediction::VPrediction,
            _ => !is_straight,
        };
        if !fits {
            let name = serde_json::to_value(prediction).unwrap_or_default();
            let name = name.as_str().unwrap_or_default().to_owned();
            return Err(self.unsupported("prediction_type", &name, wanted));
        }
        if matches!(self.kind, Plms | Pndm) && self.rescale_betas_zero_snr {
            return Err(self.unsupported("rescale_betas_zero_snr", "true", "false"));
        }
        let learned = matches!(self.variance_type, Variance::Learned | Variance::LearnedRange);
        let log = matches!(self.variance_type, Variance::FixedSmallLog | Variance::LearnedRange);
        if self.kind == UnClip && !log {
            let name = if learned { "learned" } else { "fixed" };
            return Err(self.unsupported("variance_type", name, "fixed_small_log, learned_range"));
        }
        if self.timestep_spacing == Spacing::Quadratic && !matches!(self.kind, Ddim | Ddpm) {
            return Err(self.unsupported(
                "timestep_spacing",
                "quadratic",
                "leading, trailing, linspace",
            ));
        }
        self.validate_dpm()
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
