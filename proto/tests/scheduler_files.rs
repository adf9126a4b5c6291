//! Reads the `scheduler_config.json` of public models, rebuilt from published values, into the
//! sampler for which each model was made.

use cqc_proto::sampler::{Betas, Prediction, SamplerConfig, SamplerKind, SigmaSchedule, Spacing};
use std::path::Path;

/// A file, its sampler, and a check on its configuration.
type Expected = (&'static str, SamplerKind, fn(&SamplerConfig) -> bool);

const FILES: &[Expected] = &[
    ("audioldm2", SamplerKind::Ddim, |c| c.betas == scaled(0.0015, 0.0195)),
    ("auraflow", SamplerKind::FlowEuler, |c| c.flow_shift == 1.73),
    ("chroma", SamplerKind::FlowEuler, |c| c.sigma_schedule == SigmaSchedule::Beta),
    ("cogvideox-2b", SamplerKind::CogVideoXDdim, |c| c.snr_shift_scale == 3.0),
    ("cogvideox-5b", SamplerKind::CogVideoXDpm, |c| {
        c.snr_shift_scale == 1.0 && c.rescale_betas_zero_snr && is_v(c)
    }),
    ("flux1-dev", SamplerKind::FlowEuler, |c| mu(c) == Some(1.15)),
    ("flux1-schnell", SamplerKind::FlowEuler, |c| c.flow_shift == 1.0 && mu(c).is_none()),
    ("flux2-dev", SamplerKind::FlowEuler, |c| mu(c) == Some(1.15)),
    ("hunyuandit", SamplerKind::Ddpm, |c| c.betas == scaled(0.00085, 0.03) && is_v(c)),
    ("kandinsky-2.2", SamplerKind::Ddpm, |c| {
        c.betas == Betas::Linear { start: 0.00085, end: 0.012 } && c.steps_offset == 1
    }),
    ("kandinsky-2.2-prior", SamplerKind::UnClip, |c| {
        c.clip_sample_range == 5.0 && c.prediction_type == Prediction::Sample
    }),
    ("lcm-sdxl", SamplerKind::Lcm, |c| c.original_inference_steps == 50),
    ("ltx", SamplerKind::FlowEuler, |c| mu(c) == Some(2.05) && c.shift_terminal == Some(0.1)),
    ("lumina-2", SamplerKind::FlowEuler, |c| c.flow_shift == 6.0 && mu(c).is_none()),
    ("pixart-alpha", SamplerKind::DpmMultistep, |c| c.lambda_min_clipped.is_none()),
    ("pixart-sigma", SamplerKind::DpmMultistep, |c| c.solver_order == 2),
    ("qwen-image", SamplerKind::FlowEuler, |c| {
        mu(c).is_some_and(|mu| (mu - 0.693_548_387).abs() < 1e-6) && c.shift_terminal == Some(0.02)
    }),
    ("sana", SamplerKind::DpmMultistep, |c| {
        c.sigma_schedule == SigmaSchedule::Flow && c.flow_shift == 3.0
    }),
    ("sana-sprint", SamplerKind::Scm, |c| c.sigma_data == 0.5 && is_v(c)),
    ("sd-1.5", SamplerKind::Plms, |c| c.betas == scaled(0.00085, 0.012) && c.steps_offset == 1),
    ("sd-2.1", SamplerKind::Ddim, |c| is_v(c) && !c.set_alpha_to_one && !c.clip_sample),
    ("sd3", SamplerKind::FlowEuler, |c| c.flow_shift == 3.0),
    ("sd3.5", SamplerKind::FlowEuler, |c| c.flow_shift == 3.0 && mu(c).is_none()),
    ("sdxl", SamplerKind::Euler, |c| c.timestep_spacing == Spacing::Leading && c.steps_offset == 1),
    ("sdxl-turbo", SamplerKind::EulerAncestral, |c| c.timestep_spacing == Spacing::Trailing),
    ("stable-audio", SamplerKind::CosineDpm, |c| {
        (c.sigma_data, c.sigma_min, c.sigma_max) == (1.0, Some(0.3), Some(500.0))
    }),
    ("stable-cascade", SamplerKind::Wuerstchen, |c| c.scaler == 1.0 && c.s == 0.008),
    ("wan2.1", SamplerKind::Unipc, |c| {
        c.sigma_schedule == SigmaSchedule::Flow && c.flow_shift == 3.0
    }),
    ("wan2.2", SamplerKind::Unipc, |c| {
        c.prediction_type == Prediction::Flow && c.flow_shift == 5.0
    }),
    ("z-image", SamplerKind::FlowEuler, |c| c.flow_shift == 3.0),
];

fn scaled(start: f64, end: f64) -> Betas {
    Betas::ScaledLinear { start, end }
}

fn is_v(config: &SamplerConfig) -> bool {
    config.prediction_type == Prediction::VPrediction
}

/// The shift for an image of 4096 tokens.
fn mu(config: &SamplerConfig) -> Option<f64> {
    config.dynamic_shift.map(|dynamic| dynamic.mu_of(4096))
}

#[test]
fn files_of_public_models_are_read_into_their_samplers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schedulers");
    for (name, kind, holds) in FILES {
        let json = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let config = SamplerConfig::from_diffusers_json(&json, None)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config.kind, *kind, "{name}");
        assert!(holds(&config), "{name}: {config:#?}");
    }
    let files = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(files, FILES.len(), "every file has its line");
}

/// The keys of a file in addition to its class, and the name that the error message must contain.
#[test]
fn options_that_a_class_does_not_do_are_refused_by_name() {
    let cases = [
        (r#"{"_class_name": "FlowMatchLCMScheduler", "scale_factors": [0.5]}"#, "scale_factors"),
        (r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}"#, "flow_shift = 0"),
        (
            r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "flow_schedule": "sway=-3"}"#,
            "flow_schedule",
        ),
        (
            r#"{"_class_name": "FlowMatchHeunDiscreteScheduler", "flow_schedule": 3}"#,
            "linear-quadratic",
        ),
        (
            r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": true,
                "use_beta_sigmas": true}"#,
            "true beside another schedule",
        ),
        (
            r#"{"_class_name": "LCMScheduler", "original_inference_steps": 2000}"#,
            "original_inference_steps = 2000",
        ),
        (r#"{"_class_name": "UnCLIPScheduler", "beta_schedule": "linear"}"#, "squaredcos_cap_v2"),
        (r#"{"_class_name": "UnCLIPScheduler", "variance_type": "fixed_large"}"#, "learned_range"),
        (
            r#"{"_class_name": "UnCLIPScheduler", "prediction_type": "v_prediction"}"#,
            "epsilon, sample",
        ),
        (r#"{"_class_name": "SCMScheduler", "prediction_type": "epsilon"}"#, "trigflow"),
        (r#"{"_class_name": "DDPMWuerstchenScheduler", "scaler": -1}"#, "scaler = -1"),
        (r#"{"_class_name": "CogVideoXDPMScheduler", "beta_schedule": "sigmoid"}"#, "sigmoid"),
        (r#"{"_class_name": "RePaintScheduler", "eta": 0.5}"#, "--sampler ddim"),
        (r#"{"_class_name": "HeliosScheduler", "stages": 3}"#, "in stages"),
    ];
    for (json, expected) in cases {
        let error = SamplerConfig::from_diffusers_json(json, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}\n{error}");
    }
}

#[test]
fn lists_are_refused_where_they_mean_nothing() {
    let with = |kind, sigmas: &[f64], timesteps: &[f64]| {
        let list = |list: &[f64]| (!list.is_empty()).then(|| list.to_vec());
        let config = SamplerConfig {
            sigmas: list(sigmas),
            timesteps: list(timesteps),
            ..SamplerConfig::of_kind(kind)
        };
        config.validate().map_err(|error| error.to_string())
    };
    let flow = SamplerKind::FlowEuler;
    assert_eq!(with(flow, &[1.0, 0.5], &[]), Ok(()));
    assert_eq!(with(flow, &[1.0, 0.5], &[1000.0, 600.0]), Ok(()));
    assert_eq!(with(SamplerKind::Lcm, &[], &[999.0, 499.0]), Ok(()));
    let refused = [
        (with(flow, &[1.0, 0.5], &[1000.0]), "as many as there are sigmas"),
        (with(flow, &[999.0, 0.5], &[]), "0 to 1"),
        (with(flow, &[0.5, 1.0], &[]), "falling"),
        (with(SamplerKind::Ddim, &[14.6, 1.0], &[]), "sigmas"),
        (with(SamplerKind::Lcm, &[14.6, 1.0], &[]), "sigmas"),
        (with(SamplerKind::UnClip, &[], &[999.0, 1.0]), "timesteps"),
        (with(SamplerKind::Direct, &[], &[1.0, 0.0]), "timesteps"),
        (with(SamplerKind::Wuerstchen, &[], &[999.0, 500.0]), "0 to 1"),
        (with(SamplerKind::Scm, &[], &[999.0, 500.0]), "1.5708"),
    ];
    for (result, expected) in refused {
        let error = result.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
