//! The readings that are tried.

use crate::recipe::{Named, Recipe};
use cqc_proto::sampler::{
    Betas, FlowSchedule, FlowTime, Prediction, SamplerConfig, SamplerKind, SigmaSchedule, Spacing,
};

/// The deterministic loop that tests the reading of `config` for any solver: DDIM, or Euler steps
/// of flow matching. `None` if the sampler has noise levels of its own.
pub fn probe_of(config: &SamplerConfig) -> Option<SamplerConfig> {
    use SamplerKind::{
        Ddim, Ddpm, Deis, Direct, DpmMultistep, DpmSde, DpmSinglestep, Euler, EulerAncestral,
        FlowEuler, FlowLcm, Heun, Kdpm2, Kdpm2Ancestral, Lms, Plms, Pndm, Sa, Unipc,
    };
    let is_flow = config.kind.is_flow() || config.sigma_schedule == SigmaSchedule::Flow;
    match config.kind {
        // not denoisers of many steps
        FlowLcm | Direct => None,
        _ if is_flow => Some(SamplerConfig {
            num_train_timesteps: config.num_train_timesteps,
            prediction_type: config.prediction_type,
            flow_time: config.flow_time,
            ..SamplerConfig::of_kind(FlowEuler)
        }),
        Ddim | Ddpm | Plms | Pndm | Euler | EulerAncestral | Heun | Kdpm2 | Kdpm2Ancestral
        | Lms | DpmSde | DpmMultistep | DpmSinglestep | Deis | Unipc | Sa => Some(SamplerConfig {
            num_train_timesteps: config.num_train_timesteps,
            betas: config.betas.clone(),
            rescale_betas_zero_snr: config.rescale_betas_zero_snr,
            prediction_type: config.prediction_type,
            clip_sample: config.clip_sample,
            clip_sample_range: config.clip_sample_range,
            // the update of epsilon is not finite at pure noise
            timestep_spacing: Spacing::Leading,
            ..SamplerConfig::of_kind(Ddim)
        }),
        // noise levels or preconditioning of their own, or distilled to few steps
        _ => None,
    }
}

/// The readings to try where `stated` does not fit, the common ones first.
pub fn all(stated: &SamplerConfig) -> Vec<SamplerConfig> {
    let mut all = Vec::new();
    for prediction_type in [Prediction::Flow, Prediction::FlowToData] {
        for flow_time in
            [FlowTime::Sigma, FlowTime::Scaled, FlowTime::OneMinusSigma, FlowTime::ScaledReversed]
        {
            let flow = SamplerConfig::of_kind(SamplerKind::FlowEuler);
            all.push(SamplerConfig { prediction_type, flow_time, ..flow });
        }
    }
    let schedules = [
        Betas::Linear { start: 1e-4, end: 0.02 },
        Betas::ScaledLinear { start: 0.00085, end: 0.012 },
        Betas::SquaredcosCapV2,
    ];
    for prediction_type in [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample] {
        for betas in &schedules {
            let (betas, clip_sample) = (betas.clone(), stated.clip_sample);
            let ddim = SamplerConfig::of_kind(SamplerKind::Ddim);
            all.push(SamplerConfig { prediction_type, betas, clip_sample, ..ddim });
        }
    }
    all.retain(|c| c != stated);
    all
}

/// The same loop with the clipping of predicted images switched; `None` for loops that do not clip.
pub fn other_clipping(probe: &SamplerConfig) -> Option<SamplerConfig> {
    (probe.kind == SamplerKind::Ddim)
        .then(|| SamplerConfig { clip_sample: !probe.clip_sample, ..probe.clone() })
}

/// `config` with the clipping of the loop that fits, where no scheduler configuration sets it.
pub fn clipped_as(recipe: &Recipe, config: SamplerConfig, fits: &SamplerConfig) -> SamplerConfig {
    let clips = matches!(config.kind, SamplerKind::Ddim | SamplerKind::Ddpm);
    match recipe.scheduler_config {
        None if clips => SamplerConfig { clip_sample: fits.clip_sample, ..config },
        _ => config,
    }
}

/// `config` with the reading of `best`; `None` if the recipe excludes that reading.
pub fn adopt(
    recipe: &Recipe,
    config: &SamplerConfig,
    best: &SamplerConfig,
) -> Option<SamplerConfig> {
    // a scheduler configuration leaves nothing open
    if recipe.scheduler_config.is_some() {
        return None;
    }
    if recipe.prediction.is_some_and(|p| p != best.prediction_type)
        || recipe.flow_time.is_some_and(|t| t != best.flow_time)
    {
        return None;
    }
    let is_flow = best.kind == SamplerKind::FlowEuler;
    let base = match recipe.sampler {
        Some(kind) if kind.is_flow() != is_flow => return None,
        Some(_) => config.clone(),
        None => SamplerConfig {
            flow_shift: config.flow_shift,
            flow_schedule: match is_flow {
                true => recipe.flow_schedule.unwrap_or(FlowSchedule::Even),
                false => FlowSchedule::Trained,
            },
            ..best.clone()
        },
    };
    Some(SamplerConfig {
        betas: best.betas.clone(),
        prediction_type: best.prediction_type,
        clip_sample: best.clip_sample && matches!(base.kind, SamplerKind::Ddim | SamplerKind::Ddpm),
        flow_time: best.flow_time,
        ..base
    })
}

/// The reading in words.
pub fn name(config: &SamplerConfig) -> String {
    let is_flow = matches!(config.prediction_type, Prediction::Flow | Prediction::FlowToData);
    if is_flow {
        let velocity = match config.prediction_type {
            Prediction::FlowToData => "image - noise",
            _ => "noise - image",
        };
        let time = match config.flow_time {
            FlowTime::Scaled => format!("{} sigma", config.num_train_timesteps),
            FlowTime::Sigma => "sigma".into(),
            FlowTime::OneMinusSigma => "1 - sigma".into(),
            FlowTime::ScaledReversed => format!("{0} - {0} sigma", config.num_train_timesteps),
            FlowTime::Index => "number of the step".into(),
        };
        return format!("flow matching, velocity {velocity}, time {time}");
    }
    let prediction = match config.prediction_type {
        Prediction::Epsilon => "epsilon",
        Prediction::VPrediction => "v-prediction",
        _ => "image",
    };
    let betas = match &config.betas {
        Betas::Linear { start, end } => format!("linear betas {start} to {end}"),
        Betas::ScaledLinear { start, end } => format!("scaled linear betas {start} to {end}"),
        Betas::SquaredcosCapV2 => "cosine betas".into(),
        Betas::Sigmoid { start, end } => format!("sigmoid betas {start} to {end}"),
        Betas::Laplace => "Laplace betas".into(),
        Betas::Exp => "exponential betas".into(),
        Betas::Trained(_) => "trained betas".into(),
    };
    format!("{prediction} prediction, {betas}").replace("v-prediction prediction", "v-prediction")
}

/// The options of `compile` that choose this reading, as far as there are such options.
pub fn options(best: &SamplerConfig) -> String {
    let prediction = best.prediction_type.name();
    match (best.kind, &best.betas) {
        (SamplerKind::FlowEuler, _) => {
            let time = best.flow_time.name();
            format!("--sampler flow-euler --prediction {prediction} --flow-time {time}")
        }
        (_, Betas::Linear { .. }) => format!("--prediction {prediction}"),
        (_, betas) => {
            let schedule = match betas {
                Betas::ScaledLinear { .. } => "scaled_linear",
                _ => "squaredcos_cap_v2",
            };
            format!(
                "--prediction {prediction} and a --scheduler-config with beta_schedule {schedule}"
            )
        }
    }
}
