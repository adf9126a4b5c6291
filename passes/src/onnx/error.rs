//! The errors of an import.

use crate::recognize::Format;
use cqc_kernels::memory::NoMemory;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a model cannot be imported. [`ImportError::Unsupported`] and [`ImportError::Opset`] are
/// limits of cqc. All others are errors of the file, of the options or of the system.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// The difference from an ONNX model.
        reason: String,
    },
    /// The file has another, known format.
    #[error("not an ONNX model: {format}; {}", format.help())]
    OtherFormat {
        /// The format.
        format: Format,
    },
    /// There is not enough memory for the content of the file besides the weights.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// All files of the model's external data that cannot be read.
    #[error("{}", .0.iter().map(DataFile::to_string).collect::<Vec<_>>().join("; "))]
    Data(Vec<DataFile>),
    /// The importer does not support the model's version of an operator set.
    #[error("operator set {found} of `{domain}`; supported: {supported}")]
    Opset {
        /// The domain, `ai.onnx` for the standard one.
        domain: String,
        /// The version of the model.
        found: i64,
        /// The supported versions.
        supported: String,
    },
    /// The model contradicts the standard or itself.
    #[error("{place}: {reason}")]
    Malformed {
        /// The node, tensor, input or attribute.
        place: String,
        /// The expected and the actual form.
        reason: String,
    },
    /// All sizes of inputs that neither the model nor the options fix, each symbol once.
    #[error("{}", .0.iter().map(OpenSize::to_string).collect::<Vec<_>>().join("; "))]
    OpenSizes(Vec<OpenSize>),
    /// An option contradicts the model.
    #[error("{option}: {reason}")]
    Option {
        /// The option, as on the command line.
        option: String,
        /// The contradiction.
        reason: String,
    },
    /// All parts of the model that cqc does not support.
    #[error("{}", list(.0))]
    Unsupported(Vec<Unsupported>),
}

/// Sizes of an input that neither the model nor an option fixes, and that one option can fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSize {
    /// Name of the first input that has them.
    pub input: String,
    /// All sizes of that input as the model declares them; `?` for one without a name.
    pub shape: Vec<String>,
    /// The axes of that input that the option fixes, counted from the front.
    pub axes: Vec<usize>,
    /// Name of the size. It is `None` if the size has no name; the shape of the input must then be
    /// given.
    pub symbol: Option<String>,
}

impl OpenSize {
    /// The command-line option that fixes the sizes, with these values for the axes, or with a
    /// placeholder.
    pub fn option(&self, values: &[Option<i64>]) -> String {
        let known = |at: usize| values.get(at).copied().flatten();
        let value = |at: usize| known(at).map_or("SIZE".into(), |v| v.to_string());
        if let Some(name) = &self.symbol {
            return format!("--dim {name}={}", value(0));
        }
        let size = |(axis, declared): (usize, &String)| {
            match self.axes.iter().position(|&open| open == axis) {
                Some(at) => value(at),
                // the batch, whatever its name
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
    /// Name of the first tensor whose data it holds.
    pub tensor: String,
    /// The reason.
    pub reason: String,
    /// Advice, if there is any.
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
    /// Name of the node, or of its first output if it has none.
    pub node: String,
    /// The operator.
    pub op: String,
    /// Its domain, `ai.onnx` for the standard one.
    pub domain: String,
    /// The reason.
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
    /// The standard allows it, but cqc does not support it.
    Unsupported(String),
    /// The standard does not allow it.
    Malformed(String),
    /// The producer of an operand was refused, which has been reported already.
    Poisoned,
}

/// Refuses a node that is valid and that cqc does not support.
pub(super) fn unsupported<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(reason.into()))
}

/// Refuses a node that is invalid.
pub(super) fn malformed<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Malformed(reason.into()))
}

impl ImportError {
    pub(super) fn malformed(place: impl Into<String>, reason: impl Into<String>) -> ImportError {
        ImportError::Malformed { place: place.into(), reason: reason.into() }
    }
}

/// A name in the form for messages: of limited length, and without control characters.
pub(super) fn shown(name: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut text: String = name.chars().take(120).map(clean).collect();
    if text.len() < name.len() {
        text.push('…');
    }
    text
}
