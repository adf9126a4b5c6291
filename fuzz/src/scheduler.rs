//! Target `scheduler`: diffusers' `scheduler_config.json` → sampler → all of its time steps.

use crate::{Random, json};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_runtime::sampler::Sampler;

/// Reads a configuration, as of its own kind and as of every other, and makes the sampler.
pub fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut is_read = false;
    for kind in [None].into_iter().chain(SamplerKind::ALL.iter().copied().map(Some)) {
        let Ok(config) = SamplerConfig::from_diffusers_json(text, kind) else { continue };
        is_read = true;
        for steps in [1, 2, 7] {
            let Ok(sampler) = Sampler::new(&config, steps) else { continue };
            let finite = sampler.evaluations().iter().all(|e| e.timestep.is_finite());
            assert!(finite, "time steps are numbers");
        }
    }
    if is_read {
        crate::depth::read();
    }
    is_read
}

/// One file of every class, with the keys that it reads.
pub fn seeds() -> Vec<Vec<u8>> {
    let common = r#""num_train_timesteps":100,"beta_start":0.0001,"beta_end":0.02,"prediction_type":"epsilon","steps_offset":1"#;
    let files = [
        r#""_class_name":"DDIMScheduler","beta_schedule":"linear","clip_sample":true,"clip_sample_range":1.0,"set_alpha_to_one":false,"timestep_spacing":"leading""#,
        r#""_class_name":"DDPMScheduler","beta_schedule":"squaredcos_cap_v2","variance_type":"fixed_small","timestep_spacing":"linspace","rescale_betas_zero_snr":true"#,
        r#""_class_name":"PNDMScheduler","beta_schedule":"scaled_linear","skip_prk_steps":true,"set_alpha_to_one":false,"trained_betas":null"#,
        r#""_class_name":"EulerDiscreteScheduler","beta_schedule":"scaled_linear","use_karras_sigmas":true,"timestep_spacing":"trailing","sigma_min":0.1,"sigma_max":Infinity,"final_sigmas_type":"zero""#,
        r#""_class_name":"DPMSolverMultistepScheduler","beta_schedule":"linear","algorithm_type":"dpmsolver++","solver_order":2,"solver_type":"midpoint","lower_order_final":true,"euler_at_final":false,"lambda_min_clipped":-5.1,"use_karras_sigmas":true"#,
        r#""_class_name":"UniPCMultistepScheduler","use_flow_sigmas":true,"flow_shift":3.0,"solver_type":"bh2","predict_x0":true,"disable_corrector":[0],"solver_p":null,"shift_terminal":0.1"#,
        r#""_class_name":"DEISMultistepScheduler","algorithm_type":"deis","solver_type":"logrho","solver_order":3,"use_beta_sigmas":true"#,
        r#""_class_name":"SASolverScheduler","algorithm_type":"noise_prediction","predictor_order":3,"corrector_order":4,"tau_func":null"#,
        r#""_class_name":"DPMSolverSinglestepScheduler","algorithm_type":"sde-dpmsolver++","solver_order":3,"solver_type":"heun","use_exponential_sigmas":true"#,
        r#""_class_name":"DDIMScheduler","trained_betas":[0.1,0.2,0.3,0.4],"thresholding":false,"timestep_spacing":"quadratic""#,
    ];
    files.iter().map(|file| format!("{{{file},{common}}}").into_bytes()).collect()
}

/// Keys and values of such files.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "clip_sample", "clip_sample_range", "thresholding",
    "dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one", "variance_type", "skip_prk_steps",
    "interpolation_type", "timestep_type", "final_sigmas_type", "sigma_min", "sigma_max", "use_karras_sigmas",
    "algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final", "lambda_min_clipped",
    "use_lu_lambdas", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "epsilon", "sample", "v_prediction",
    "leading", "trailing", "linspace", "quadratic", "fixed_small", "fixed_large", "learned", "learned_range", "midpoint",
    "heun", "zero", "sigma_min", "Infinity", "log_linear", "DDIMScheduler", "DDPMScheduler", "PNDMScheduler",
    "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "use_exponential_sigmas", "flow_shift",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler",
    "DPMSolverMultistepInverseScheduler", "DDIMInverseScheduler", "use_flow_sigmas", "use_beta_sigmas", "predict_x0",
    "disable_corrector", "solver_p", "predictor_order", "corrector_order", "shift_terminal", "use_dynamic_shifting",
    "time_shift_type", "exponential", "flow_prediction", "dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++",
    "noise_prediction", "data_prediction", "bh1", "bh2", "logrho", "sigma_max",
];

/// Changes keys and values.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    json::mutate_text(data, WORDS, random)
}
