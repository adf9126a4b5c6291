//! The constants of a trajectory as a device reads them, a row per evaluation.

use super::{Rule, Sampler};
use cqc_kernels::cuda::{Predicted, SAMPLER_CONSTANTS, SamplerRule};
use cqc_proto::sampler::Prediction;

/// A row, as `kernels/cuda/sampler.cu` declares it: the scale of the next input, signal, noise, four numbers and a kind.
pub(super) type Row = [f32; SAMPLER_CONSTANTS];

/// How a device moves samples.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub rule: SamplerRule,
    pub predicted: Predicted,
    pub clip: f32,
    pub rows: Vec<Row>,
    /// Whether some evaluation adds noise.
    pub is_noisy: bool,
}

impl Sampler {
    /// What a device needs to move samples as [`Sampler::advance`] does.
    pub(crate) fn table(&self) -> Table {
        let (rule, clip, mut rows) = match &self.rule {
            Rule::Ddim(ddim) => (SamplerRule::Ddim, ddim.clip(), ddim.rows(self.config.eta > 0.0)),
            Rule::Ddpm(ddpm) => (SamplerRule::Ddpm, ddpm.clip(), ddpm.rows()),
            Rule::Plms(plms) => (SamplerRule::Plms, f32::INFINITY, plms.rows()),
            Rule::Euler(euler) => (SamplerRule::Euler, f32::INFINITY, euler.rows()),
            Rule::DpmPp(dpm) => (SamplerRule::DpmPp, f32::INFINITY, dpm.rows()),
        };
        for (row, next) in rows.iter_mut().zip(&self.evaluations[1..]) {
            row[0] = next.input_scale;
        }
        let predicted = match self.config.prediction_type {
            Prediction::Epsilon => Predicted::Noise,
            Prediction::VPrediction => Predicted::Velocity,
            Prediction::Sample => Predicted::Image,
        };
        Table { rule, predicted, clip, rows, is_noisy: self.config.is_stochastic() }
    }
}
