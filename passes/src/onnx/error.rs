//! Why a model cannot be imported.

use crate::recognize::Format;
use cqc_kernels::memory::NoMemory;
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
    /// The file is something else, and it is known what.
    #[error("not an ONNX model: {format}; {}", format.help())]
    OtherFormat {
        /// What it is.
        format: Format,
    },
    /// There is no memory for what the file holds besides weights.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// Files of the model's external data that cannot be read: all of them.
    #[error("{}", .0.iter().map(DataFile::to_string).collect::<Vec<_>>().join("; "))]
    Data(Vec<DataFile>),
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
    /// Inputs have sizes that neither the model nor the options fix: all of them, each symbol once.
    #[error("{}", .0.iter().map(OpenSize::to_string).collect::<Vec<_>>().join("; "))]
    OpenSizes(Vec<OpenSize>),
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

/// What an option has to fix: sizes that neither the model nor other options do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSize {
    /// The first input that has them.
    pub input: String,
    /// All of that input's sizes as the model declares them, `?` for one without a name.
    pub shape: Vec<String>,
    /// The axes of that input which the option fixes, counted from the front.
    pub axes: Vec<usize>,
    /// The size's name. `None` where a size has none: then the input's shape has to be given.
    pub symbol: Option<String>,
}

impl OpenSize {
    /// The command-line option that fixes them, with these values for the axes, or a placeholder.
    pub fn option(&self, values: &[Option<i64>]) -> String {
        let known = |at: usize| values.get(at).copied().flatten();
        let value = |at: usize| known(at).map_or("SIZE".into(), |v| v.to_string());
        if let Some(name) = &self.symbol {
            return format!("--dim {name}={}", value(0));
        }
        let size = |(axis, declared): (usize, &String)| {
            match self.axes.iter().position(|&open| open == axis) {
                Some(at) => value(at),
                // the batch, by whatever name
                None if axis == 0 && declared.parse::<u32>().is_err() => super::BATCH.into(),
                None => declared.clone(),
            }
        };
        let sizes: Vec<String> = self.shape.iter().enumerate().map(size).collect();
        format!("--shape {}={}", self.input, sizes.join("x"))
    }
}

impl fmt::Display for OpenSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenSize { input, shape, axes, symbol } = self;
        let (axes, shape): (Vec<String>, _) =
            (axes.iter().map(usize::to_string).collect(), shape.join(", "));
        let s = if axes.len() == 1 { "is" } else { "es" };
        let axes = axes.join(", ");
        let size = symbol.as_deref().map_or(String::new(), |name| format!("{name}, "));
        write!(f, "input `{input}` [{shape}]: {size}ax{s} {axes}, has no fixed size; give ")?;
        f.write_str(&self.option(&[]))
    }
}

/// A file of external data that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Its name in the model.
    pub location: String,
    /// The first tensor whose data it holds.
    pub tensor: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub help: Option<String>,
}

impl fmt::Display for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor `{}`: its external data is in `{}`: ", self.tensor, self.location)?;
        f.write_str(&self.reason)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
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
