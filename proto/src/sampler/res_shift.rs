//! Residual shifting (ResShift, arXiv:2307.12348): the constants of its chain from a low-resolution
//! image to a high-resolution one.

use super::{POSITIVE, SamplerConfigError, in_range, is_positive};
use serde::{Deserialize, Serialize};

/// The constants of η and κ in x = image + η·(input − image) + κ·√η·noise. The defaults are those
/// of the published models with 15 steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResShift {
    /// κ, the scale of the noise.
    pub kappa: f64,
    /// Exponent of the schedule. The smaller it is, the more steps have much noise.
    pub power: f64,
    /// The limit of the noise in the last step: √η and κ·√η are at most this number.
    pub min_noise_level: f64,
    /// √η of the first step.
    pub etas_end: f64,
    /// Whether the network sees the sample scaled to about unit size.
    pub normalize_input: bool,
    /// Whether samples are latents of about unit variance. Otherwise they are pixels from −1 to 1.
    pub latent_flag: bool,
}

impl Default for ResShift {
    fn default() -> ResShift {
        ResShift {
            kappa: 2.0,
            power: 0.3,
            min_noise_level: 0.04,
            etas_end: 0.99,
            normalize_input: true,
            latent_flag: true,
        }
    }
}

impl ResShift {
    /// √η of the last step, which has the least noise.
    pub fn sqrt_eta_start(&self) -> f64 {
        let least = self.min_noise_level.min(self.min_noise_level / self.kappa);
        least.min(0.001_f64.sqrt())
    }

    pub(super) fn validate(&self) -> Result<(), SamplerConfigError> {
        let bounded = |x: f64| is_positive(x) && x <= 1e6;
        for (key, value) in [("kappa", self.kappa), ("power", self.power)] {
            in_range(key, value, bounded(value), POSITIVE)?;
        }
        let least = self.min_noise_level;
        in_range("min_noise_level", least, bounded(least), POSITIVE)?;
        let ok = self.etas_end <= 1.0 && self.etas_end > self.sqrt_eta_start();
        in_range("etas_end", self.etas_end, ok, "more than min_noise_level, at most 1")
    }
}
