//! The `scheduler_config.json` of public models, rebuilt from what is published about them, is read
//! into the sampler that the model was made for.

use cqc_proto::sampler::{Betas, Prediction, SamplerConfig, SamplerKind, SigmaSchedule, Spacing};
use std::path::Path;

/// What a file says, and what must have been read of it.
const FILES: &[(&str, SamplerKind, fn(&SamplerConfig) -> bool)] = &[
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
    ("stable-cascade", SamplerKind::Wuerstchen, |c| c.scaler == 1.0 && c.s == 0.008),
    ("z-image", SamplerKind::FlowEuler, |c| c.flow_shift == 3.0),
];

fn scaled(start: f64, end: f64) -> Betas {
    Betas::ScaledLinear { start, end }
}

fn is_v(config: &SamplerConfig) -> bool {
    config.prediction_type == Prediction::VPrediction
}

/// The shift of an image of 4096 tokens.
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
