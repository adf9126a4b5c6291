//! The classes of distilled models, and those that few models use.

use super::super::{Betas, Prediction, SamplerConfig, SamplerKind, Variance};
use super::{Class, NOTHING};

/// β of latent diffusion.
const LATENT: Betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };

#[rustfmt::skip]
pub(super) const CLASSES: &[Class] = &[
    // `set_alpha_to_one`, `steps_offset` and `timestep_spacing` have no effect in diffusers
    Class {
        name: "LCMScheduler",
        kind: SamplerKind::Lcm,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "original_inference_steps",
            "clip_sample", "clip_sample_range", "prediction_type", "thresholding", "dynamic_thresholding_ratio",
            "sample_max_value", "timestep_scaling", "rescale_betas_zero_snr",
        ],
        defaults: |c| c.betas = LATENT,
        check: NOTHING,
    },
    // the same, and the keys of clipping have no effect either
    Class {
        name: "TCDScheduler",
        kind: SamplerKind::Tcd,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "original_inference_steps",
            "prediction_type", "rescale_betas_zero_snr",
        ],
        defaults: |c| {
            c.betas = LATENT;
            c.eta = 0.3;
        },
        check: NOTHING,
    },
    Class {
        name: "DDPMWuerstchenScheduler",
        kind: SamplerKind::Wuerstchen,
        keys: &["scaler", "s"],
        defaults: |_| {},
        check: NOTHING,
    },
    // diffusers does not clip in these two classes, whatever `clip_sample` says
    Class {
        name: "CogVideoXDDIMScheduler",
        kind: SamplerKind::CogVideoXDdim,
        keys: COG_VIDEO,
        defaults: cog_video,
        check: NOTHING,
    },
    Class {
        name: "CogVideoXDPMScheduler",
        kind: SamplerKind::CogVideoXDpm,
        keys: COG_VIDEO,
        defaults: cog_video,
        check: NOTHING,
    },
    Class {
        name: "UnCLIPScheduler",
        kind: SamplerKind::UnClip,
        keys: &[
            "num_train_timesteps", "variance_type", "clip_sample", "clip_sample_range", "prediction_type",
            "beta_schedule",
        ],
        defaults: |c| {
            c.betas = Betas::SquaredcosCapV2;
            c.variance_type = Variance::FixedSmallLog;
            c.clip_sample = true;
        },
        check: |reader, config| {
            reader.choice("beta_schedule", (), &[("squaredcos_cap_v2", ())])?;
            let known =
                [("fixed_small_log", Variance::FixedSmallLog), ("learned_range", Variance::LearnedRange)];
            config.variance_type = reader.choice("variance_type", Variance::FixedSmallLog, &known)?;
            Ok(())
        },
    },
    // these two are not classes of diffusers; a scheduler file for cqc may name them
    Class {
        name: "ResShift",
        kind: SamplerKind::ResShift,
        keys: &[
            "num_train_timesteps", "kappa", "power", "min_noise_level", "etas_end", "normalize_input", "latent_flag",
            "clip_sample", "clip_sample_range",
        ],
        defaults: |c| {
            c.num_train_timesteps = 15;
            c.prediction_type = Prediction::Sample;
        },
        check: NOTHING,
    },
    Class {
        name: "DirectStep",
        kind: SamplerKind::Direct,
        keys: &[],
        defaults: |c| c.prediction_type = Prediction::Sample,
        check: NOTHING,
    },
];

#[rustfmt::skip]
const COG_VIDEO: &[&str] = &[
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "set_alpha_to_one",
    "steps_offset", "prediction_type", "timestep_spacing", "rescale_betas_zero_snr", "snr_shift_scale",
];

fn cog_video(config: &mut SamplerConfig) {
    config.betas = LATENT;
    config.snr_shift_scale = 3.0;
}
