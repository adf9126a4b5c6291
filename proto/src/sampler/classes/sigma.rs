//! The classes that step over noise levels σ.

use super::super::diffusers::{Reader, Result};
use super::super::{
    Algorithm, Betas, Prediction, SamplerConfig, SamplerKind, SigmaSchedule, Spacing,
};
use super::{Class, NOTHING, Refused};

#[rustfmt::skip]
pub(super) const CLASSES: &[Class] = &[
    Class {
        name: "EulerDiscreteScheduler",
        kind: SamplerKind::Euler,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "interpolation_type", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "sigma_min",
            "sigma_max", "timestep_spacing", "timestep_type", "steps_offset", "rescale_betas_zero_snr",
            "final_sigmas_type",
        ],
        defaults: |c| c.timestep_spacing = Spacing::Linspace,
        check: NOTHING,
    },
    Class {
        name: "EulerAncestralDiscreteScheduler",
        kind: SamplerKind::EulerAncestral,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
        ],
        defaults: |c| c.timestep_spacing = Spacing::Linspace,
        check: NOTHING,
    },
    Class {
        name: "HeunDiscreteScheduler",
        kind: SamplerKind::Heun,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "clip_sample", "clip_sample_range",
            "timestep_spacing", "steps_offset",
        ],
        defaults: latent,
        check: NOTHING,
    },
    Class {
        name: "KDPM2DiscreteScheduler",
        kind: SamplerKind::Kdpm2,
        keys: LATENT,
        defaults: latent,
        check: NOTHING,
    },
    Class {
        name: "KDPM2AncestralDiscreteScheduler",
        kind: SamplerKind::Kdpm2Ancestral,
        keys: LATENT,
        defaults: latent,
        check: NOTHING,
    },
    Class {
        name: "LMSDiscreteScheduler",
        kind: SamplerKind::Lms,
        keys: LATENT,
        defaults: |c| c.timestep_spacing = Spacing::Linspace,
        check: NOTHING,
    },
    Class {
        name: "DPMSolverSDEScheduler",
        kind: SamplerKind::DpmSde,
        // noise_sampler_seed is ignored, because noise is drawn from the seed of a request
        keys: LATENT,
        defaults: latent,
        check: NOTHING,
    },
    Class {
        name: "IPNDMScheduler",
        kind: SamplerKind::Ipndm,
        keys: &["num_train_timesteps", "trained_betas"],
        defaults: |_| {},
        check: levels_of_ipndm,
    },
    Class {
        name: "EDMEulerScheduler",
        kind: SamplerKind::EdmEuler,
        keys: &[
            "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "prediction_type", "rho",
            "final_sigmas_type",
        ],
        defaults: edm,
        check: NOTHING,
    },
    Class {
        name: "EDMDPMSolverMultistepScheduler",
        kind: SamplerKind::EdmDpm,
        keys: &[
            "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "prediction_type", "rho",
            "solver_order", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "algorithm_type",
            "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
        ],
        defaults: edm,
        check: NOTHING,
    },
    Class {
        name: "CosineDPMSolverMultistepScheduler",
        kind: SamplerKind::CosineDpm,
        keys: &[
            "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "solver_order",
            "prediction_type", "rho", "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
        ],
        defaults: |c| {
            (c.sigma_min, c.sigma_max, c.sigma_data) = (Some(0.3), Some(500.0), 1.0);
            c.sigma_schedule = SigmaSchedule::Exponential;
            c.prediction_type = Prediction::VPrediction;
            c.algorithm_type = Algorithm::SdeDpmSolverPp;
        },
        check: NOTHING,
    },
    Class {
        name: "CMStochasticIterativeScheduler",
        kind: SamplerKind::Consistency,
        keys: &["num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "s_noise", "rho", "clip_denoised"],
        defaults: |c| {
            edm(c);
            c.num_train_timesteps = 40;
            c.clip_sample = true;
        },
        check: NOTHING,
    },
];

#[rustfmt::skip]
const LATENT: &[&str] = &[
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "prediction_type", "timestep_spacing", "steps_offset",
];

/// The values of `prediction_type` for Euler. `original_sample` is an older name of `sample`, which
/// only this class still accepts.
pub(super) const OF_EULER: &[(&str, Prediction)] = &[
    ("epsilon", Prediction::Epsilon),
    ("v_prediction", Prediction::VPrediction),
    ("sample", Prediction::Sample),
    ("original_sample", Prediction::Sample),
];

/// β of latent diffusion, as in the classes that come from k-diffusion.
fn latent(c: &mut SamplerConfig) {
    c.betas = Betas::Linear { start: 0.00085, end: 0.012 };
    c.timestep_spacing = Spacing::Linspace;
}

fn edm(c: &mut SamplerConfig) {
    (c.sigma_min, c.sigma_max) = (Some(0.002), Some(80.0));
    c.sigma_schedule = SigmaSchedule::Karras;
}

/// Moves `trained_betas`, which in this class are the levels of one trajectory with the last one
/// included.
fn levels_of_ipndm(_: &Reader, c: &mut SamplerConfig) -> Result<()> {
    let none = SamplerConfig::of_kind(c.kind).betas;
    if let Betas::Trained(levels) = std::mem::replace(&mut c.betas, none) {
        c.sigmas = Some(levels.into_iter().map(f64::from).collect());
    }
    Ok(())
}

pub(super) const REFUSED: &[Refused] = &[
    Refused {
        name: "KarrasVeScheduler",
        reason: "its pipeline feeds the network (x + 1)/2 and scales its output, which the file does \
                 not say",
        nearest: None,
    },
    Refused {
        name: "ScoreSdeVeScheduler",
        reason: "its corrector steps as far as the norm of the network's output says",
        nearest: None,
    },
    Refused {
        name: "ScoreSdeVpScheduler",
        reason: "diffusers has no pipeline for it that says what the network is told of the time",
        nearest: Some(SamplerKind::Ddpm),
    },
];
