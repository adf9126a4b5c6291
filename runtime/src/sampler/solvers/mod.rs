//! One file per solver: how noise levels become the rows of a table.

mod cogvideox;
mod ddim;
mod ddim_inverse;
mod ddpm;
mod deis;
mod direct;
mod dpm;
mod dpm_multistep;
mod dpm_singlestep;
mod euler;
mod flow_ancestral;
mod flow_euler;
mod flow_heun;
mod lcm;
mod plms;
mod pndm;
mod sa;
mod scm;
mod tcd;
mod unclip;
mod unipc;
mod wuerstchen;

pub(super) use ddim::updates as ddim_updates;
pub(super) use pndm::MIN_STEPS as PNDM_MIN_STEPS;

use super::SamplerError;
use super::table::{Limit, Table};
use cqc_proto::sampler::{Prediction, SamplerConfig, SamplerKind};

/// The table of `config` in `steps` steps.
pub(super) fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    match config.kind {
        SamplerKind::Ddim => ddim::table(config, steps),
        SamplerKind::Ddpm => ddpm::table(config, steps),
        SamplerKind::Plms => plms::table(config, steps),
        SamplerKind::Euler => euler::table(config, steps),
        SamplerKind::DpmMultistep | SamplerKind::DpmMultistepInverse => {
            dpm_multistep::table(config, steps)
        }
        SamplerKind::DpmSinglestep => dpm_singlestep::table(config, steps),
        SamplerKind::Unipc => unipc::table(config, steps),
        SamplerKind::Deis => deis::table(config, steps),
        SamplerKind::Pndm => pndm::table(config, steps),
        SamplerKind::Sa => sa::table(config, steps),
        SamplerKind::DdimInverse => ddim_inverse::table(config, steps),
        SamplerKind::FlowEuler | SamplerKind::FlowLcm => flow_euler::table(config, steps),
        SamplerKind::FlowHeun => flow_heun::table(config, steps),
        SamplerKind::FlowEulerAncestral => flow_ancestral::table(config, steps),
        SamplerKind::Scm => scm::table(config, steps),
        SamplerKind::Lcm => lcm::table(config, steps),
        SamplerKind::Tcd => tcd::table(config, steps),
        SamplerKind::Wuerstchen => wuerstchen::table(config, steps),
        SamplerKind::CogVideoXDdim => cogvideox::ddim(config, steps),
        SamplerKind::CogVideoXDpm => cogvideox::dpm(config, steps),
        SamplerKind::UnClip => unclip::table(config, steps),
        SamplerKind::Direct => Ok(direct::table(steps)),
    }
}

/// What is done to predicted images.
fn image_limit(config: &SamplerConfig) -> Limit {
    match config.thresholding {
        Some(t) => Limit::Threshold { ratio: t.ratio, max: t.max as f32 },
        None if config.clip_sample => Limit::Clip(config.clip_sample_range),
        None => Limit::None,
    }
}

/// 1 if the velocity points to noise, −1 if it points to data.
fn flow_sign(config: &SamplerConfig) -> f32 {
    if config.prediction_type == Prediction::FlowToData { -1.0 } else { 1.0 }
}
