//! Why a model cannot be imported.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a model cannot be imported. Only [`ImportError::Unsupported`] and [`ImportError::Opset`]
/// blame cqc; the rest blames the file or the options.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// What was seen.
        reason: String,
    },
    /// The model is written in an operator set that the importer does not know.
    #[error("operator set {found} of `{domain}`; supported: {supported}")]
    Opset {
        /// The domain, `ai.onnx` for the standard one.
        domain: String,
        /// The version found.
        found: i64,
        /// What is supported.
        supported: String,
    },
    /// The model contradicts the standard or itself.
    #[error("{place}: {reason}")]
    Malformed {
        /// The node, tensor, input or attribute.
        place: String,
        /// What was expected and what was seen.
        reason: String,
    },
    /// An input has a size that neither the model nor the options fix.
    #[error("input `{input}`: size {symbol} of axis {axis} is not fixed; give {flag}")]
    UnboundDim {
        /// The input.
        input: String,
        /// The axis, counted from the front.
        axis: usize,
        /// The size's name, `?` if it has none.
        symbol: String,
        /// The command-line option that fixes it.
        flag: String,
    },
    /// An option contradicts the model.
    #[error("{option}: {reason}")]
    Option {
        /// The option, as given on the command line.
        option: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Parts of the model that cqc does not support: all of them.
    #[error("{}", list(.0))]
    Unsupported(Vec<Unsupported>),
}

/// A node that cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The node's name, or its first output's if it has none.
    pub node: String,
    /// The operator.
    pub op: String,
    /// Its domain, `ai.onnx` for the standard one.
    pub domain: String,
    /// What is missing.
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain =
            if self.domain == "ai.onnx" { String::new() } else { format!("{}.", self.domain) };
        write!(f, "`{}` ({domain}{}): {}", self.node, self.op, self.reason)
    }
}

fn list(nodes: &[Unsupported]) -> String {
    let mut text = format!("{} unsupported:", nodes.len());
    nodes.iter().for_each(|n| text.push_str(&format!("\n  {n}")));
    text
}

/// Why one node cannot be imported.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// The standard allows it, cqc does not know it.
    Unsupported(String),
    /// The standard does not allow it.
    Malformed(String),
    /// An operand's producer was refused; that has been reported.
    Poisoned,
}

/// The node is fine, cqc is not.
pub(super) fn unsupported<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(reason.into()))
}

/// The node is wrong.
pub(super) fn malformed<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Malformed(reason.into()))
}

impl ImportError {
    pub(super) fn malformed(place: impl Into<String>, reason: impl Into<String>) -> ImportError {
        ImportError::Malformed { place: place.into(), reason: reason.into() }
    }
}

/// A name as it appears in messages: bounded, and without control characters.
pub(super) fn shown(name: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut text: String = name.chars().take(120).map(clean).collect();
    if text.len() < name.len() {
        text.push('…');
    }
    text
}
