//! One file per solver: how noise levels become the rows of a table.

mod ddim;
mod ddpm;
mod dpm_multistep;
mod euler;
mod flow_euler;
mod plms;

pub(super) use ddim::updates as ddim_updates;

use super::SamplerError;
use super::table::{Limit, Table};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};

/// The table of `config` in `steps` steps.
pub(super) fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    match config.kind {
        SamplerKind::Ddim => ddim::table(config, steps),
        SamplerKind::Ddpm => ddpm::table(config, steps),
        SamplerKind::Plms => plms::table(config, steps),
        SamplerKind::Euler => euler::table(config, steps),
        SamplerKind::DpmMultistep => dpm_multistep::table(config, steps),
        SamplerKind::FlowEuler => flow_euler::table(config, steps),
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
