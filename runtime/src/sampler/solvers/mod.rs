//! Solvers, one per file. Each makes the rows of a table from noise levels.

mod cogvideox;
mod consistency;
mod ddim;
mod ddim_inverse;
mod ddpm;
mod deis;
pub(super) mod direct;
mod dpm;
mod dpm_multistep;
mod dpm_sde;
mod dpm_singlestep;
mod edm_dpm;
mod edm_euler;
mod euler;
mod euler_ancestral;
mod flow_ancestral;
mod flow_euler;
mod flow_heun;
mod heun;
mod ipndm;
mod k_diffusion;
mod kdpm2;
mod lcm;
mod lms;
mod plms;
mod pndm;
mod res_shift;
mod sa;
mod scm;
mod tcd;
mod unclip;
mod unipc;
mod wuerstchen;

pub(super) use ddim::updates as ddim_updates;
pub(super) use pndm::MIN_STEPS as PNDM_MIN_STEPS;

use super::table::{Limit, Table};
use super::{Begin, SamplerError};
use cqc_proto::sampler::{Prediction, SamplerConfig, SamplerKind};

/// The table of `config` for `steps` steps of a loop that begins with evaluation `begin`.
pub(super) fn table(
    config: &SamplerConfig,
    steps: usize,
    begin: Begin,
) -> Result<Table, SamplerError> {
    match config.kind {
        SamplerKind::Ddim => ddim::table(config, steps),
        SamplerKind::Ddpm => ddpm::table(config, steps),
        SamplerKind::Plms => plms::table(config, steps, begin),
        SamplerKind::Euler => euler::table(config, steps),
        SamplerKind::DpmMultistep | SamplerKind::DpmMultistepInverse => {
            dpm_multistep::table(config, steps, begin)
        }
        SamplerKind::DpmSinglestep => dpm_singlestep::table(config, steps, begin),
        SamplerKind::Unipc => unipc::table(config, steps, begin),
        SamplerKind::Deis => deis::table(config, steps, begin),
        SamplerKind::Pndm => pndm::table(config, steps),
        SamplerKind::Sa => sa::table(config, steps, begin),
        SamplerKind::DdimInverse => ddim_inverse::table(config, steps),
        SamplerKind::FlowEuler | SamplerKind::FlowLcm => flow_euler::table(config, steps),
        SamplerKind::FlowHeun => flow_heun::table(config, steps),
        SamplerKind::FlowEulerAncestral => flow_ancestral::table(config, steps),
        SamplerKind::Scm => scm::table(config, steps),
        SamplerKind::Lcm => lcm::table(config, steps),
        SamplerKind::Tcd => tcd::table(config, steps),
        SamplerKind::Wuerstchen => wuerstchen::table(config, steps),
        SamplerKind::CogVideoXDdim => cogvideox::ddim(config, steps),
        SamplerKind::CogVideoXDpm => cogvideox::dpm(config, steps, begin),
        SamplerKind::UnClip => unclip::table(config, steps),
        SamplerKind::ResShift => res_shift::table(config, steps),
        SamplerKind::Direct => Ok(direct::table(steps)),
        SamplerKind::EulerAncestral => euler_ancestral::table(config, steps),
        SamplerKind::Heun => heun::table(config, steps),
        SamplerKind::Kdpm2 | SamplerKind::Kdpm2Ancestral => kdpm2::table(config, steps),
        SamplerKind::Lms => lms::table(config, steps, begin),
        SamplerKind::DpmSde => dpm_sde::table(config, steps),
        SamplerKind::Ipndm => ipndm::table(config, steps, begin),
        SamplerKind::EdmEuler => edm_euler::table(config, steps),
        SamplerKind::EdmDpm | SamplerKind::CosineDpm => edm_dpm::table(config, steps, begin),
        SamplerKind::Consistency => consistency::table(config, steps),
    }
}

/// The limit for predicted images.
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
