//! Why a sampler configuration is refused.

use super::SamplerKind;

/// Why a sampler configuration was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SamplerConfigError {
    /// The text is not JSON.
    #[error("the scheduler configuration is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The text is JSON, but not an object.
    #[error("the scheduler configuration is not a JSON object")]
    NotAnObject,
    /// `--sampler` with a name that is no sampler.
    #[error("no sampler is called `{name}` (there are {})", SamplerKind::names())]
    UnknownKind {
        /// As given.
        name: String,
    },
    /// No kind was given, and `_class_name` is absent or no class of diffusers.
    #[error(
        "scheduler class `{class}` is not known; --sampler chooses one of {}",
        SamplerKind::names()
    )]
    UnknownClass {
        /// The value of `_class_name`, empty if absent.
        class: String,
    },
    /// A class of diffusers whose steps cannot be written as a table.
    #[error("scheduler class `{class}` is not supported: {reason}; {}", instead(.nearest))]
    RefusedClass {
        /// The value of `_class_name`.
        class: &'static str,
        /// What it does that a table cannot.
        reason: &'static str,
        /// The sampler that draws the right images from the same model, if there is one.
        nearest: Option<SamplerKind>,
    },
    /// A key that no known scheduler has: it may change the result.
    #[error("unknown key `{key}` in the scheduler configuration")]
    UnknownKey {
        /// As in the file.
        key: String,
    },
    /// A key with a value of the wrong JSON type.
    #[error("`{key}` of the scheduler configuration is {seen}, expected {wanted}")]
    WrongType {
        /// As in the file.
        key: &'static str,
        /// The type it should have.
        wanted: &'static str,
        /// The value, shortened.
        seen: String,
    },
    /// A known option that this sampler does not do.
    #[error("sampler {kind} does not support {key} = {value} (it supports {supported})")]
    Unsupported {
        /// The sampler.
        kind: SamplerKind,
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values that would work.
        supported: String,
    },
    /// A number outside its range.
    #[error("{key} = {value} is out of range (allowed: {allowed})")]
    OutOfRange {
        /// The field.
        key: &'static str,
        /// Its value.
        value: String,
        /// The range, in words.
        allowed: &'static str,
    },
}

fn instead(kind: &Option<SamplerKind>) -> String {
    match kind {
        Some(kind) => format!("--sampler {kind} is the nearest that draws right images"),
        None => "no sampler of cqc is near to it".into(),
    }
}
