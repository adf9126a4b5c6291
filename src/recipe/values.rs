//! The types of a recipe's values, and their text forms.

use cqc_passes::cache::schedule::ScheduleKind;
use cqc_passes::calib::compensate::CompensationMode;
use cqc_proto::cq;
use cqc_proto::sampler::{FlowTime, Prediction};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A text that is not a value of its option. The message says what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// A choice between a few values, each of which has a name.
pub trait Named: Copy + PartialEq + Send + Sync + 'static {
    /// Every value with its name, in the order in which the help lists them.
    const ALL: &'static [(&'static str, Self)];

    /// The value's name.
    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, value)| *value == self).expect("every value is listed").0
    }

    /// The value of that name.
    ///
    /// # Errors
    /// [`ParseError`] with the known names.
    fn named(name: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        let names = || Self::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| ParseError(format!("`{name}`: expected one of {}", names())))
    }
}

/// Implements [`Named`] for a type, and the text form that belongs to it.
macro_rules! named {
    ($kind:ty { $($name:literal => $value:expr),+ $(,)? }) => {
        impl Named for $kind {
            const ALL: &'static [(&'static str, $kind)] = &[$(($name, $value)),+];
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<$kind, ParseError> {
                <$kind>::named(text)
            }
        }
    };
}

/// Number format of convolutions, linear layers and attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// f32.
    None,
    /// Integers: weights and activations of 8 bits.
    W8a8,
    /// Integers: weights of 4 bits and activations of 8 bits.
    W4a8,
    /// Operands rounded to bf16. It needs no calibration.
    Bf16,
}

named!(Quant { "w8a8" => Quant::W8a8, "w4a8" => Quant::W4a8, "bf16" => Quant::Bf16, "none" => Quant::None });

impl Quant {
    /// Bits of integer weights; `None` for a float format.
    pub fn weight_bits(self) -> Option<u8> {
        match self {
            Quant::None | Quant::Bf16 => None,
            Quant::W8a8 => Some(8),
            Quant::W4a8 => Some(4),
        }
    }

    /// The form in an artifact, with the layers `of` the loop. [`Quant::None`] has no layers.
    pub(crate) fn with_layers(self, of: cq::QuantizedLoop) -> cq::Quant {
        match self {
            Quant::None => cq::Quant::None,
            Quant::W8a8 => cq::Quant::W8a8(of),
            Quant::W4a8 => cq::Quant::W4a8(of),
            Quant::Bf16 => cq::Quant::Bf16(of),
        }
    }
}

/// An error that may be corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correct {
    /// Nothing is corrected.
    None,
    /// The cached tensors (CacheQuant section 7.3), if that helps on the holdout.
    Cache,
    /// The sums of the quantized layers that read the cache (CacheQuant section 7.4).
    Quant,
    /// The sums of all quantized layers.
    QuantAll,
}

/// A value with which the loop fills an input by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FillSpec {
    /// Nothing: every request gives the input.
    None,
    /// The guidance scale.
    Guidance,
    /// The embedding of the guidance scale `[N, D]` that latent consistency models take.
    GuidanceEmbedding,
    /// The number of sampler steps.
    Steps,
}

impl FillSpec {
    /// The form in an artifact; `None` if nothing is filled.
    pub fn fill(self) -> Option<cq::Fill> {
        match self {
            FillSpec::None => None,
            FillSpec::Guidance => Some(cq::Fill::Guidance),
            FillSpec::GuidanceEmbedding => Some(cq::Fill::GuidanceEmbedding),
            FillSpec::Steps => Some(cq::Fill::Steps),
        }
    }
}

named!(FillSpec {
    "none" => FillSpec::None,
    "guidance" => FillSpec::Guidance,
    "guidance-embedding" => FillSpec::GuidanceEmbedding,
    "steps" => FillSpec::Steps,
});

impl Named for Correct {
    const ALL: &'static [(&'static str, Correct)] = &[
        ("none", Correct::None),
        ("cache", Correct::Cache),
        ("quant", Correct::Quant),
        ("quant=all", Correct::QuantAll),
    ];
}

impl fmt::Display for Correct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Correct {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Correct, ParseError> {
        if text == "quant=cut" { Ok(Correct::Quant) } else { Correct::named(text) }
    }
}

/// The method that fits the correction of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFit {
    /// The best of the other methods on the holdout, or no correction.
    Auto,
    /// On the trajectory of the float loop, as CacheQuant publishes it (section 7.3).
    TeacherForced,
    /// On the trajectory of the accelerated loop.
    Sequential,
    /// On the trajectory of the accelerated loop, from the last two stored values.
    Forecast,
}

named!(CacheFit {
    "auto" => CacheFit::Auto,
    "teacher-forced" => CacheFit::TeacherForced,
    "sequential" => CacheFit::Sequential,
    "forecast" => CacheFit::Forecast,
});

impl Named for Prediction {
    const ALL: &'static [(&'static str, Prediction)] = &[
        ("epsilon", Prediction::Epsilon),
        ("v", Prediction::VPrediction),
        ("sample", Prediction::Sample),
        ("flow", Prediction::Flow),
        ("flow-to-data", Prediction::FlowToData),
    ];
}

impl Named for FlowTime {
    const ALL: &'static [(&'static str, FlowTime)] = &[
        ("scaled", FlowTime::Scaled),
        ("sigma", FlowTime::Sigma),
        ("one-minus-sigma", FlowTime::OneMinusSigma),
        ("scaled-reversed", FlowTime::ScaledReversed),
        ("index", FlowTime::Index),
    ];
}

impl Named for CompensationMode {
    const ALL: &'static [(&'static str, CompensationMode)] = &[
        ("mse", CompensationMode::Mse),
        ("regression", CompensationMode::Regression),
        ("variance", CompensationMode::Variance),
        ("paper", CompensationMode::PaperExact),
    ];
}

/// The samples of the calibration set on which quantization ranges of activations are found. The
/// text forms are `random`, `first=N`, `tap[=N]` and `tdac[=N]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All samples, at every evaluation.
    All,
    /// The first N samples, at every evaluation, as CacheQuant draws them.
    First(usize),
    /// Pairs of sample and evaluation that Q&C's clustering selects (section 2): their number, 800
    /// if it is `None`.
    Tap(Option<usize>),
    /// Pairs of sample and evaluation by EDA-DM's density and diversity: their number, 800 if it is
    /// `None`.
    Tdac(Option<usize>),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::All => f.write_str("random"),
            Selection::First(n) => write!(f, "first={n}"),
            Selection::Tap(None) => f.write_str("tap"),
            Selection::Tap(Some(n)) => write!(f, "tap={n}"),
            Selection::Tdac(None) => f.write_str("tdac"),
            Selection::Tdac(Some(n)) => write!(f, "tdac={n}"),
        }
    }
}

impl FromStr for Selection {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Selection, ParseError> {
        let wrong =
            || ParseError(format!("`{text}`: expected random, first=N, tap[=N] or tdac[=N]"));
        let (name, count) = match text.split_once('=') {
            Some((name, count)) => {
                (name, Some(count.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?))
            }
            None => (text, None),
        };
        match (name, count) {
            ("random", None) => Ok(Selection::All),
            ("first", Some(n)) => Ok(Selection::First(n)),
            ("tap", n) => Ok(Selection::Tap(n)),
            ("tdac", n) => Ok(Selection::Tdac(n)),
            _ => Err(wrong()),
        }
    }
}

/// The full evaluations of a loop, or the method that chooses them.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleSpec {
    /// All evaluations are full, and nothing is cached.
    None,
    /// The best of several methods on the holdout.
    Auto,
    /// A given method.
    Method(ScheduleKind),
    /// DeepCache's quadratic schedule, whose centre follows from the number of evaluations.
    Quadratic,
    /// A JSON file with a list of evaluations: the list alone, or as the value of `full_steps`, as
    /// `cqc inspect --json` prints it.
    File(PathBuf),
    /// These evaluations, in ascending order from 0.
    Given(Vec<usize>),
}

impl fmt::Display for ScheduleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScheduleSpec::None => f.write_str("none"),
            ScheduleSpec::Auto => f.write_str("auto"),
            ScheduleSpec::Quadratic => f.write_str("quadratic"),
            ScheduleSpec::Method(ScheduleKind::Quadratic(form)) => write!(f, "quadratic={form}"),
            ScheduleSpec::Method(kind) => write!(f, "{kind}"),
            ScheduleSpec::File(path) => write!(f, "{}", path.display()),
            ScheduleSpec::Given(full) => {
                let list: Vec<String> = full.iter().map(usize::to_string).collect();
                write!(f, "[{}]", list.join(","))
            }
        }
    }
}

impl FromStr for ScheduleSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<ScheduleSpec, ParseError> {
        let wrong = || {
            let names: Vec<&str> = ScheduleKind::NAMED.iter().map(|(name, _)| *name).collect();
            ParseError(format!("expected {}, quadratic, none or FILE.json", names.join(", ")))
        };
        Ok(match text {
            "none" => ScheduleSpec::None,
            "auto" => ScheduleSpec::Auto,
            "quadratic" => ScheduleSpec::Quadratic,
            _ if text.ends_with(".json") => ScheduleSpec::File(text.into()),
            _ if text.starts_with('[') => {
                let list = serde_json::from_str(text).map_err(|_| wrong())?;
                ScheduleSpec::Given(list)
            }
            _ if text.starts_with("quadratic=") => {
                ScheduleSpec::Method(text.parse().map_err(ParseError)?)
            }
            _ => ScheduleSpec::Method(text.parse().map_err(|_| wrong())?),
        })
    }
}

/// A `scheduler_config.json` of diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SchedulerConfig {
    /// The path of the file.
    File(PathBuf),
    /// The content of the file.
    Json(serde_json::Map<String, serde_json::Value>),
}

/// A GPU architecture for which kernels are compiled, written as `cuda:sm_90`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaTarget {
    /// Name of the architecture, as in `sm_90`.
    pub arch: String,
}

impl fmt::Display for CudaTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.arch)
    }
}

impl FromStr for CudaTarget {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<CudaTarget, ParseError> {
        let is_arch = |arch: &&str| {
            arch.strip_prefix("sm_").is_some_and(|n| {
                n.starts_with(|c: char| c.is_ascii_digit())
                    && n.bytes().all(|b| b.is_ascii_alphanumeric())
            })
        };
        let arch = text.strip_prefix("cuda:").filter(is_arch);
        let wrong = || ParseError("expected cuda:sm_NN, as in cuda:sm_90".into());
        arch.map(|arch| CudaTarget { arch: arch.into() }).ok_or_else(wrong)
    }
}

impl Serialize for CudaTarget {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CudaTarget {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<CudaTarget, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_are_read_as_they_are_written() {
        let schedules = [
            "none",
            "auto",
            "dps",
            "dps-affine",
            "dps-output",
            "uniform",
            "quadratic",
            "quadratic=15,1.4",
        ];
        for text in schedules.into_iter().chain(["quadratic=none,1.5,signed", "a.json", "[0,4,9]"])
        {
            assert_eq!(text.parse::<ScheduleSpec>().unwrap().to_string(), text);
        }
        for text in ["random", "first=3", "tap", "tap=40", "tdac", "tdac=7"] {
            assert_eq!(text.parse::<Selection>().unwrap().to_string(), text);
        }
        assert_eq!("quant=cut".parse(), Ok(Correct::Quant));
        for (bad, expected) in
            [("quadratic=15", "CENTRE,POWER"), ("quadratic=15,1", "CENTRE"), ("x", "dps-output")]
        {
            let error = bad.parse::<ScheduleSpec>().unwrap_err();
            assert!(error.to_string().contains(expected), "{bad}: {error}");
        }
        for bad in ["first", "tap=0", "tap=x", "random=3"] {
            assert!(bad.parse::<Selection>().is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_name_an_architecture() {
        assert_eq!("cuda:sm_90a".parse(), Ok(CudaTarget { arch: "sm_90a".into() }));
        for bad in ["", "cuda", "cuda:", "cuda:90", "cuda:sm_", "cuda:sm_x", "cuda:sm_90 -v", "cpu"]
        {
            assert!(bad.parse::<CudaTarget>().is_err(), "{bad}");
        }
    }
}
