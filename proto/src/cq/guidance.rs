//! Guidance in an artifact, and the inputs that the loop fills by itself.

use super::Manifest;
use crate::plan::{InputRole, PlanInput};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The part of the steps in which guidance applies (Kynkäänniemi et al. 2024, arXiv:2404.07724), as
/// shares of their number. Of `n` steps, it covers those from ⌊from · n⌋ up to but excluding ⌊to ·
/// n⌋, as in diffusers' guiders. Outside of it, the prediction is the conditional one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuidanceInterval {
    /// The beginning, at least 0 and less than `to`.
    pub from: f64,
    /// The end, at most 1.
    pub to: f64,
}

impl GuidanceInterval {
    /// The interval of all steps, from 0 to 1.
    pub const ALL: GuidanceInterval = GuidanceInterval { from: 0.0, to: 1.0 };

    /// Whether 0 ≤ from < to ≤ 1.
    pub fn is_valid(&self) -> bool {
        0.0 <= self.from && self.from < self.to && self.to <= 1.0
    }

    /// The steps, of `steps`, in which guidance applies. The range may be empty.
    pub fn steps(&self, steps: usize) -> Range<usize> {
        let at = |share: f64| ((share * steps as f64) as usize).min(steps);
        at(self.from)..at(self.to)
    }
}

/// The text form that is also parsed, such as `0.2..0.8`.
impl fmt::Display for GuidanceInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

impl FromStr for GuidanceInterval {
    type Err = String;

    fn from_str(text: &str) -> Result<GuidanceInterval, String> {
        let wrong =
            || format!("`{text}`: expected FROM..TO, shares of the steps with 0 <= FROM < TO <= 1");
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let share = |text: &str| text.trim().parse().map_err(|_| wrong());
        let interval = GuidanceInterval { from: share(from)?, to: share(to)? };
        if interval.is_valid() { Ok(interval) } else { Err(wrong()) }
    }
}

/// The value with which the loop fills a condition that a request does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// The guidance scale, for networks that were distilled to take it as an input, such as
    /// FLUX.1-dev.
    Guidance,
    /// Sines and cosines of 1000 · (scale − 1), `[N, D]`, as latent consistency models take the
    /// guidance scale (arXiv:2310.04378, section 4.2).
    GuidanceEmbedding,
    /// The number of sampler steps.
    Steps,
}

impl Fill {
    /// All kinds of fills.
    pub const ALL: [Fill; 3] = [Fill::Guidance, Fill::GuidanceEmbedding, Fill::Steps];

    /// The name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Fill::Guidance => "guidance",
            Fill::GuidanceEmbedding => "guidance-embedding",
            Fill::Steps => "steps",
        }
    }

    /// Whether the value stands for the guidance scale.
    pub fn is_guidance(self) -> bool {
        matches!(self, Fill::Guidance | Fill::GuidanceEmbedding)
    }

    /// The type and shape that an input must have, in words.
    pub fn expects(self) -> &'static str {
        match self {
            Fill::Guidance => "a float per sample, or one for all",
            Fill::GuidanceEmbedding => "floats [N, D], D being 4 or more",
            Fill::Steps => "a number per sample, or one for all",
        }
    }

    /// Whether the input can be filled with this value.
    pub fn fits(self, input: &PlanInput) -> bool {
        let (dtype, shape) = (input.ty.dtype, &input.ty.shape);
        let is_number = shape.iter().skip(1).all(|d| d.is(1));
        let is_condition = input.role == InputRole::Condition;
        is_condition
            && match self {
                Fill::Guidance => dtype.is_float() && is_number,
                Fill::GuidanceEmbedding => {
                    let width = shape.last().and_then(|d| d.as_const());
                    dtype.is_float() && shape.len() == 2 && width.is_some_and(|d| d >= 4)
                }
                Fill::Steps => (dtype.is_float() || dtype.is_integer()) && is_number,
            }
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Manifest {
    /// Whether the guidance scale is an input of the network. There are no two halves to mix then.
    pub fn takes_guidance(&self) -> bool {
        self.fills.values().any(|fill| fill.is_guidance())
    }

    /// The scale by which two halves are mixed. It is 1 if there is only one half.
    pub fn classifier_free_scale(&self) -> f32 {
        if self.takes_guidance() { 1.0 } else { self.guidance }
    }

    pub(super) fn check_guidance(&self) -> Result<(), String> {
        if !self.guidance.is_finite() {
            return Err(format!("the guidance scale is {}", self.guidance));
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return Err(format!("guidance is rescaled by {}", self.guidance_rescale));
        }
        if let Some(interval) = self.guidance_interval.filter(|i| !i.is_valid()) {
            return Err(format!("guidance applies in the interval {interval}"));
        }
        self.fills.iter().try_for_each(|(name, fill)| {
            let input = self.plan.inputs.iter().find(|i| i.name == *name);
            let input = input.ok_or_else(|| format!("fills `{name}`, which is no input"))?;
            match fill.fits(input) {
                true => Ok(()),
                false => Err(format!(
                    "fills `{name}` {} with {fill}: expected {}",
                    input.ty,
                    fill.expects()
                )),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_diffusers() {
        // int(start * n) <= i < int(stop * n)
        for (text, steps, expected) in [
            ("0..1", 10, 0..10),
            ("0.25..0.75", 10, 2..7),
            ("0.2..0.8", 50, 10..40),
            ("0..0.05", 10, 0..0),
            ("0.3..1", 10, 3..10),
        ] {
            let interval: GuidanceInterval = text.parse().unwrap();
            assert_eq!(interval.steps(steps), expected, "{text}");
            assert_eq!(interval.to_string().parse(), Ok(interval));
        }
        for bad in
            ["", "0.5", "0.5..0.5", "0.8..0.2", "-0.1..1", "0..1.1", "NaN..1", "a..b", "0...1..2"]
        {
            assert!(bad.parse::<GuidanceInterval>().is_err(), "{bad}");
        }
    }
}
