//! The classes of flow matching.

use super::super::diffusers::{Reader, Result};
use super::super::{FlowSchedule, FlowTime, Prediction, SamplerConfig, SamplerKind, Spacing};
use super::{Class, NOTHING};

/// The default shifts and numbers of tokens of dynamic shifting.
const SHIFTS: &[f64; 4] = &[0.5, 1.15, 256.0, 4096.0];

#[rustfmt::skip]
pub(super) const CLASSES: &[Class] = &[
    Class {
        name: "FlowMatchEulerDiscreteScheduler",
        kind: SamplerKind::FlowEuler,
        keys: &[
            "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
            "max_image_seq_len", "invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "time_shift_type", "stochastic_sampling", "flow_schedule",
        ],
        defaults: straight,
        check: |reader, config| reader.dynamic_shift(config, SHIFTS),
    },
    Class {
        name: "FlowMatchHeunDiscreteScheduler",
        kind: SamplerKind::FlowHeun,
        keys: &["num_train_timesteps", "shift", "flow_schedule"],
        defaults: straight,
        check: NOTHING,
    },
    Class {
        name: "FlowMatchLCMScheduler",
        kind: SamplerKind::FlowLcm,
        keys: &[
            "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
            "max_image_seq_len", "invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "time_shift_type", "scale_factors", "upscale_mode", "flow_schedule",
        ],
        defaults: straight,
        check: |reader, config| {
            if reader.present("scale_factors").is_some_and(|list| list.as_array().is_none_or(|l| !l.is_empty())) {
                return Err(reader.unsupported("scale_factors", "a list", "null: the sample keeps its size"));
            }
            reader.dynamic_shift(config, SHIFTS)
        },
    },
    // from_config passes the keys that this class does not know to the
    // FlowMatchEulerDiscreteScheduler that makes its levels
    Class {
        name: "LTXEulerAncestralRFScheduler",
        kind: SamplerKind::FlowEulerAncestral,
        keys: &[
            "num_train_timesteps", "eta", "s_noise", "shift", "use_dynamic_shifting", "base_shift", "max_shift",
            "base_image_seq_len", "max_image_seq_len", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "time_shift_type", "flow_schedule", "invert_sigmas",
        ],
        defaults: |c| {
            straight(c);
            c.eta = 1.0;
        },
        check: |reader, config| reader.dynamic_shift(config, SHIFTS),
    },
    // the flow map of arXiv:2506.14603 and others: the sampler is Euler's method, and the network
    // is also told the end of the step
    Class {
        name: "FlowMapEulerDiscreteScheduler",
        kind: SamplerKind::FlowEuler,
        keys: &["num_train_timesteps", "shift"],
        defaults: |c| {
            straight(c);
            c.flow_schedule = FlowSchedule::Even;
        },
        check: NOTHING,
    },
    Class {
        name: "MiniMaxH3Scheduler",
        kind: SamplerKind::FlowEuler,
        keys: &["shift"],
        defaults: |c| {
            straight(c);
            c.flow_schedule = FlowSchedule::Even;
            c.flow_time = FlowTime::OneMinusSigma;
            c.prediction_type = Prediction::FlowToData;
            c.flow_shift = 12.0;
        },
        check: NOTHING,
    },
    Class {
        name: "SCMScheduler",
        kind: SamplerKind::Scm,
        keys: &["num_train_timesteps", "prediction_type", "sigma_data"],
        defaults: |c| c.prediction_type = Prediction::VPrediction,
        check: NOTHING,
    },
];

/// The values of `prediction_type` for SCM. As in v prediction, the image is cos(t)·x −
/// sin(t)·output. diffusers does not have `flow_prediction`: it stands for the velocity of a Sana
/// transformer, which the pipeline of SANA-Sprint converts.
pub(super) const OF_SCM: &[(&str, Prediction)] =
    &[("trigflow", Prediction::VPrediction), ("flow_prediction", Prediction::Flow)];

fn straight(config: &mut SamplerConfig) {
    config.prediction_type = Prediction::Flow;
    config.timestep_spacing = Spacing::Linspace;
}

/// Reads `flow_schedule`, which no class of diffusers has. It expresses the levels that diffusers'
/// pipelines and other programs use.
pub(super) fn read_schedule(
    reader: &Reader,
    key: &'static str,
    config: &mut SamplerConfig,
) -> Result<()> {
    let Some(value) = reader.present(key) else { return Ok(()) };
    let name = value.as_str().unwrap_or_default();
    config.flow_schedule = name
        .parse()
        .map_err(|_| reader.unsupported(key, &value.to_string(), FlowSchedule::NAMES))?;
    Ok(())
}
