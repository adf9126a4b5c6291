//! The constants of a trajectory as a device reads them, a row per evaluation.

use super::{Rule, Sampler};
use cqc_proto::sampler::Prediction;

/// Numbers of a row.
pub const SAMPLER_ROW: usize = 8;

/// A row: the scale of the next input, signal, noise, four numbers and a kind, which the rules read
/// each in their own way.
pub(super) type Row = [f32; SAMPLER_ROW];

/// How samples move: the kinds of samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as the samplers are
pub enum SamplerRule {
    Ddim,
    Ddpm,
    Plms,
    Euler,
    DpmPp,
}

/// What a device needs to move samples as [`Sampler::advance`] does.
#[derive(Clone, Debug)]
pub struct SamplerTable {
    /// The kind of sampler.
    pub rule: SamplerRule,
    /// What the network predicts.
    pub predicted: Prediction,
    /// The largest magnitude of a predicted image; infinite where it is not clipped.
    pub clip: f32,
    /// A row per evaluation.
    pub rows: Vec<[f32; SAMPLER_ROW]>,
    /// Whether some evaluation adds noise.
    pub is_noisy: bool,
}

impl Sampler {
    pub(crate) fn table(&self) -> SamplerTable {
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
        let (predicted, is_noisy) = (self.config.prediction_type, self.config.is_stochastic());
        SamplerTable { rule, predicted, clip, rows, is_noisy }
    }
}
