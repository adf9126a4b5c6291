//! The classes of DPM-Solver's family, and those of PNDM and of inversion.

use super::super::diffusers::{Reader, Result};
use super::super::{
    Algorithm, FinalSigma, SamplerConfig, SamplerKind, SigmaSchedule, SolverType, Spacing,
};
use super::{Class, NOTHING};

#[rustfmt::skip]
pub(super) const CLASSES: &[Class] = &[
    Class {
        name: "PNDMScheduler",
        kind: SamplerKind::Plms,
        keys: PNDM,
        defaults: |c| c.set_alpha_to_one = false,
        check: |reader, config| {
            // without the flag, the first three steps are Runge-Kutta steps, unless --sampler plms
            // was given
            if !reader.flag("skip_prk_steps", false)? && !reader.kind_given {
                config.kind = SamplerKind::Pndm;
            }
            Ok(())
        },
    },
    // the same class, selected by --sampler pndm
    Class {
        name: "PNDMScheduler",
        kind: SamplerKind::Pndm,
        keys: PNDM,
        defaults: |c| c.set_alpha_to_one = false,
        check: NOTHING,
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        kind: SamplerKind::DpmMultistep,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "algorithm_type",
            "solver_type", "lower_order_final", "euler_at_final", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "final_sigmas_type",
            "lambda_min_clipped", "variance_type", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
            "use_dynamic_shifting", "time_shift_type", "sigma_min", "sigma_max",
        ],
        defaults: |c| c.timestep_spacing = Spacing::Linspace,
        check: dynamic_shift,
    },
    Class {
        name: "DPMSolverSinglestepScheduler",
        kind: SamplerKind::DpmSinglestep,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "algorithm_type",
            "solver_type", "lower_order_final", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
            "use_flow_sigmas", "flow_shift", "final_sigmas_type", "lambda_min_clipped", "variance_type",
            "use_dynamic_shifting", "time_shift_type", "sigma_min", "sigma_max",
        ],
        defaults: |c| {
            c.timestep_spacing = Spacing::Linspace;
            c.lower_order_final = false;
        },
        check: dynamic_shift,
    },
    Class {
        name: "UniPCMultistepScheduler",
        kind: SamplerKind::Unipc,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "predict_x0",
            "solver_type", "lower_order_final", "disable_corrector", "solver_p", "use_karras_sigmas",
            "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "flow_shift", "timestep_spacing",
            "steps_offset", "final_sigmas_type", "rescale_betas_zero_snr", "use_dynamic_shifting", "time_shift_type",
            "sigma_min", "sigma_max", "shift_terminal",
        ],
        defaults: |c| {
            c.timestep_spacing = Spacing::Linspace;
            c.solver_type = SolverType::Bh2;
        },
        check: dynamic_shift,
    },
    Class {
        name: "DEISMultistepScheduler",
        kind: SamplerKind::Deis,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "algorithm_type",
            "solver_type", "lower_order_final", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
            "use_flow_sigmas", "flow_shift", "timestep_spacing", "steps_offset", "use_dynamic_shifting",
            "time_shift_type", "sigma_min", "sigma_max",
        ],
        defaults: |c| {
            c.timestep_spacing = Spacing::Linspace;
            c.algorithm_type = Algorithm::DpmSolver;
            c.solver_type = SolverType::Logrho;
            c.final_sigmas_type = FinalSigma::SigmaMin;
        },
        check: dynamic_shift,
    },
    Class {
        name: "SASolverScheduler",
        kind: SamplerKind::Sa,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "predictor_order",
            "corrector_order", "prediction_type", "tau_func", "thresholding", "dynamic_thresholding_ratio",
            "sample_max_value", "algorithm_type", "lower_order_final", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "use_flow_sigmas", "flow_shift", "lambda_min_clipped", "variance_type",
            "timestep_spacing", "steps_offset", "sigma_min", "sigma_max",
        ],
        defaults: |c| {
            c.timestep_spacing = Spacing::Linspace;
            c.final_sigmas_type = FinalSigma::SigmaMin;
        },
        check: NOTHING,
    },
    Class {
        name: "DPMSolverMultistepInverseScheduler",
        kind: SamplerKind::DpmMultistepInverse,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "algorithm_type",
            "solver_type", "lower_order_final", "euler_at_final", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "use_flow_sigmas", "flow_shift", "lambda_min_clipped", "variance_type",
            "timestep_spacing", "steps_offset", "sigma_min", "sigma_max",
        ],
        defaults: |c| {
            c.timestep_spacing = Spacing::Linspace;
            c.final_sigmas_type = FinalSigma::SigmaMin;
        },
        check: NOTHING,
    },
    Class {
        name: "DDIMInverseScheduler",
        kind: SamplerKind::DdimInverse,
        keys: &[
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
            "set_alpha_to_one", "set_alpha_to_zero", "steps_offset", "prediction_type", "clip_sample_range",
            "timestep_spacing", "rescale_betas_zero_snr",
        ],
        defaults: |c| c.clip_sample = true,
        check: NOTHING,
    },
];

#[rustfmt::skip]
const PNDM: &[&str] = &[
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "skip_prk_steps",
    "set_alpha_to_one", "prediction_type", "timestep_spacing", "steps_offset",
];

/// Reads the dynamic shift. The defaults are those of the pipelines that shift levels by the number
/// of tokens; the classes have none.
fn dynamic_shift(reader: &Reader, config: &mut SamplerConfig) -> Result<()> {
    reader.dynamic_shift(config, &[0.5, 1.15, 256.0, 4096.0])?;
    let is_moved = config.sigma_schedule == SigmaSchedule::Flow;
    if config.dynamic_shift.is_some() && !is_moved {
        let supported = "false, or true with use_flow_sigmas";
        return Err(reader.unsupported("use_dynamic_shifting", "true", supported));
    }
    Ok(())
}

/// Names of `solver_type`. A file of another class has names of that class's rules, which diffusers
/// reads as the default rule.
pub(super) fn solvers(kind: SamplerKind) -> &'static [(&'static str, SolverType)] {
    use SolverType::{Bh1, Bh2, Heun, Logrho, Midpoint};
    match kind {
        SamplerKind::Unipc => {
            &[("bh1", Bh1), ("bh2", Bh2), ("midpoint", Bh2), ("heun", Bh2), ("logrho", Bh2)]
        }
        SamplerKind::Deis => &[
            ("logrho", Logrho),
            ("midpoint", Logrho),
            ("heun", Logrho),
            ("bh1", Logrho),
            ("bh2", Logrho),
        ],
        _ => &[
            ("midpoint", Midpoint),
            ("heun", Heun),
            ("logrho", Midpoint),
            ("bh1", Midpoint),
            ("bh2", Midpoint),
        ],
    }
}

/// Names of `algorithm_type`, including those in files of other classes.
pub(super) fn algorithms(kind: SamplerKind) -> &'static [(&'static str, Algorithm)] {
    use Algorithm::{DpmSolver, DpmSolverPp, SdeDpmSolver, SdeDpmSolverPp};
    match kind {
        SamplerKind::Deis => {
            &[("deis", DpmSolver), ("dpmsolver", DpmSolver), ("dpmsolver++", DpmSolver)]
        }
        // diffusers refuses the names of DPM-Solver for this class, although they mean the same
        SamplerKind::Sa => &[
            ("data_prediction", DpmSolverPp),
            ("noise_prediction", DpmSolver),
            ("dpmsolver++", DpmSolverPp),
            ("dpmsolver", DpmSolver),
        ],
        SamplerKind::DpmSinglestep => &[
            ("dpmsolver++", DpmSolverPp),
            ("deis", DpmSolverPp),
            ("dpmsolver", DpmSolver),
            ("sde-dpmsolver++", SdeDpmSolverPp),
        ],
        _ => &[
            ("dpmsolver++", DpmSolverPp),
            ("deis", DpmSolverPp),
            ("dpmsolver", DpmSolver),
            ("sde-dpmsolver++", SdeDpmSolverPp),
            ("sde-dpmsolver", SdeDpmSolver),
        ],
    }
}
