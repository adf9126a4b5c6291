//! The spacing of the noise levels of flow matching, before they are shifted.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The spacing of the noise levels of flow matching over `n` steps, before `flow_shift` and the
/// modifications after it. σ is 1 at noise and 0 at data, t = 1 − σ, and i counts from 0 to n − 1.
///
/// The text form is a name, or `NAME=NUMBER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowSchedule {
    /// The spacing of diffusers: from the shifted level of the last training step evenly to that of
    /// the first, so that a static shift acts twice on the levels between them.
    #[default]
    Trained,
    /// σ = 1 − i/n, so that a static shift acts once.
    Even,
    /// Sway sampling (F5-TTS, arXiv:2410.06885, section 3.3): t = u + s·(cos(π/2·u) − 1 + u) with u
    /// = i/n and −1 ≤ s ≤ 2/(π − 2). With −1, most steps are at high noise.
    Sway(f64),
    /// t = s·u / (1 + (s − 1)·u) with u = i/n. ZipVoice (arXiv:2506.13053) uses s = 0.5. It is the
    /// same as a shift of 1/s.
    TimeShift(f64),
    /// First linear, then quadratic (Mochi; Movie Gen, arXiv:2410.13720, section 3.4.2). The first
    /// half of the steps leads t to this threshold.
    LinearQuadratic(f64),
}

impl FlowSchedule {
    /// Examples of all text forms.
    pub const NAMES: &str = "trained, even, sway=-1, time-shift=0.5, linear-quadratic=0.025";

    /// Whether the parameter is in its range, and the range in words.
    pub(super) fn allowed(self) -> (bool, &'static str) {
        match self {
            Self::Trained | Self::Even => (true, ""),
            // beyond this range t would not rise everywhere
            Self::Sway(s) => ((-1.0..=1.75).contains(&s), "-1 to 1.75"),
            Self::TimeShift(s) => (s > 0.0 && s.is_finite(), "positive and finite"),
            Self::LinearQuadratic(t) => (t > 0.0 && t < 1.0, "between 0 and 1, both excluded"),
        }
    }
}

impl fmt::Display for FlowSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trained => f.write_str("trained"),
            Self::Even => f.write_str("even"),
            Self::Sway(s) => write!(f, "sway={s}"),
            Self::TimeShift(s) => write!(f, "time-shift={s}"),
            Self::LinearQuadratic(t) => write!(f, "linear-quadratic={t}"),
        }
    }
}

impl FromStr for FlowSchedule {
    type Err = String;

    /// Parses the text form. A name without a number has the parameter of the models that
    /// introduced it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once('=').map_or((text, None), |(n, x)| (n, Some(x)));
        let unknown = || format!("`{text}` is no schedule of flow levels ({})", Self::NAMES);
        let number = number.map(str::parse::<f64>).transpose().map_err(|_| unknown())?;
        let schedule = match (name, number) {
            ("trained", None) => Self::Trained,
            ("even", None) => Self::Even,
            ("sway", s) => Self::Sway(s.unwrap_or(-1.0)),
            ("time-shift", s) => Self::TimeShift(s.unwrap_or(0.5)),
            ("linear-quadratic", t) => Self::LinearQuadratic(t.unwrap_or(0.025)),
            _ => return Err(unknown()),
        };
        let (ok, allowed) = schedule.allowed();
        if ok { Ok(schedule) } else { Err(format!("{name} is {allowed}, not {text}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::FlowSchedule;

    #[test]
    fn a_schedule_survives_its_text_form() {
        for text in ["trained", "even", "sway=-0.5", "time-shift=3", "linear-quadratic=0.03"] {
            assert_eq!(text.parse::<FlowSchedule>().unwrap().to_string(), text);
        }
        assert_eq!("sway".parse(), Ok(FlowSchedule::Sway(-1.0)));
        for text in ["", "sway=", "sway=x", "sway=-2", "even=1", "time-shift=0", "sway=NaN"] {
            assert!(text.parse::<FlowSchedule>().is_err(), "{text}");
        }
    }
}
