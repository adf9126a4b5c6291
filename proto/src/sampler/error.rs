//! The error of a sampler configuration.

use super::SamplerKind;

/// The reason why a sampler configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum SamplerConfigError {
    /// The text is not JSON.
    #[error("the scheduler configuration is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The text is JSON, but not an object.
    #[error("the scheduler configuration is not a JSON object")]
    NotAnObject,
    /// No sampler has the name that was given to `--sampler`.
    #[error("no sampler is called `{name}` (there are {})", SamplerKind::names())]
    UnknownKind {
        /// The name that was given.
        name: String,
    },
    /// No kind was given, and `_class_name` is absent or not a class of diffusers.
    #[error(
        "scheduler class `{class}` is not known; --sampler chooses one of {}",
        SamplerKind::names()
    )]
    UnknownClass {
        /// The value of `_class_name`, empty if absent.
        class: String,
    },
    /// The steps of this class of diffusers cannot be written as a table.
    #[error("scheduler class `{class}` is not supported: {reason}; {}", instead(.nearest))]
    RefusedClass {
        /// The value of `_class_name`.
        class: &'static str,
        /// The behaviour that a table cannot express.
        reason: &'static str,
        /// The sampler that makes correct images from the same model, if there is one.
        nearest: Option<SamplerKind>,
    },
    /// No known scheduler has this key, so it may change the result.
    #[error("unknown key `{key}` in the scheduler configuration")]
    UnknownKey {
        /// Name of the key.
        key: String,
    },
    /// The value of a key has the wrong JSON type.
    #[error("`{key}` of the scheduler configuration is {seen}, expected {wanted}")]
    WrongType {
        /// Name of the key.
        key: &'static str,
        /// The expected JSON type, in words.
        wanted: &'static str,
        /// The value in the file, shortened.
        seen: String,
    },
    /// The sampler does not support this value of a known option.
    #[error("sampler {kind} does not support {key} = {value} (it supports {supported})")]
    Unsupported {
        /// The sampler that does not support the value.
        kind: SamplerKind,
        /// Name of the option.
        key: &'static str,
        /// The value of the option.
        value: String,
        /// The values that the sampler supports.
        supported: String,
    },
    /// A number is outside of its range.
    #[error("{key} = {value} is out of range (allowed: {allowed})")]
    OutOfRange {
        /// Name of the field.
        key: &'static str,
        /// The value of the field.
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
