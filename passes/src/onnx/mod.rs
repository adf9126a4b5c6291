//! Imports ONNX models into a [`Graph`], and exports plans as ONNX.
//!
//! Shapes, and everything that is computed from them, are evaluated at import, so that the graph
//! has no shape arithmetic. A value is known only at run time, known at import, or made of sizes
//! that may contain the batch `N` (`item.rs`). Operators are emitted through `cx`, which folds
//! constants on the way; `ops` has one function per ONNX operator. The idioms of exporters are left
//! to passes.
//!
//! A model is untrusted: whatever its bytes are, the import ends with a graph or an
//! [`ImportError`], within the bounds of [`limits`].

mod call;
mod control;
mod cx;
mod error;
pub mod export;
mod inputs;
mod item;
pub mod limits;
mod load;
mod narrow;
mod ops;
mod order;
mod partial;
mod quantized;
pub(crate) mod scan;
mod tensors;
mod walk;

pub use error::{DataFile, ImportError, OpenSize, Unsupported};
pub use load::External;

use crate::ir::Graph;
use bytes::Bytes;
use cqc_proto::onnx::{ModelProto, TensorProto};
use cqc_proto::{DType, Dim, Tensor};
use load::Files;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The symbol of the batch in imported graphs.
pub const BATCH: &str = "N";

/// Options of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Sizes by symbol (`--dim height=64`). The key [`BATCH`] fixes the batch.
    pub dims: BTreeMap<String, i64>,
    /// Shapes by input (`--shape sample=1x3x32x32`).
    pub shapes: BTreeMap<String, Vec<Dim>>,
    /// Values of inputs. They are used only where an operand must be known at compile time.
    pub known_inputs: BTreeMap<String, Tensor>,
    /// The budget for constants and unrolled loops, beyond the size of the model.
    pub budget: limits::Budget,
    /// Whether the options are for several models. Names that this model does not have are then no
    /// errors, but are listed in [`Imported::skipped`].
    pub for_several: bool,
}

/// An imported model.
#[derive(Debug)]
pub struct Imported {
    /// The computation. Values and nodes keep the names of the model.
    pub graph: Graph,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Name of the exporter and its version.
    pub producer: String,
    /// Number of elements of all float initializers.
    pub parameters: u64,
    /// Number of nodes of the model. Function bodies and branches count where they are used.
    pub node_count: usize,
    /// Keys of [`ImportOptions::known_inputs`] whose values became constants in the graph.
    pub consumed_inputs: BTreeSet<String>,
    /// Warnings for the user, one sentence each.
    pub warnings: Vec<String>,
    /// The options, as on the command line, whose names this model does not have.
    pub skipped: BTreeSet<String>,
    /// The external data that was read, in the order in which the model names it, each once.
    pub external: Vec<External>,
}

/// Domain and name of every operator that can be imported.
pub fn operators() -> impl Iterator<Item = (&'static str, &'static str)> {
    ops::names()
}

/// Imports the model at `path`. Weights in the file and in external data beside it are mapped, not
/// read.
///
/// External data is a file whose name the model gives. It is looked for in the directory of `path`
/// as given, and, if `path` is a symbolic link, in the directory of every file on the way to its
/// target. The name must not leave that directory: it may not be an absolute path or contain `..`,
/// and no directory that it names may be a link that leads out. The file itself may be a link to
/// anywhere, as in the caches of model hubs: its target was chosen by the person who made the link,
/// not by the model.
///
/// # Errors
/// [`ImportError`]. [`ImportError::Unsupported`] has all nodes that are not supported.
pub fn load(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Imported, ImportError> {
    let path = path.as_ref();
    let model = load::decode(load::map(path)?)?;
    let files = Files::beside(path);
    if let Some(graph) = &model.graph {
        files.check(&graph.initializer)?;
    }
    let mut imported = import_with(&model, &files, options)?;
    imported.external = files.into_used();
    Ok(imported)
}

/// Imports a model from memory. It must not have external data. Weights keep borrowing from
/// `bytes`.
///
/// # Errors
/// As [`load`].
pub fn import_bytes(
    bytes: impl Into<Bytes>,
    options: &ImportOptions,
) -> Result<Imported, ImportError> {
    import(&load::decode(bytes.into())?, options)
}

/// Imports a decoded model. It must not have external data.
///
/// # Errors
/// As [`load`].
pub fn import(model: &ModelProto, options: &ImportOptions) -> Result<Imported, ImportError> {
    import_with(model, &Files::default(), options)
}

/// Reads a tensor message, as in the `.pb` files of ONNX's tests.
///
/// # Errors
/// [`ImportError::NotOnnx`] or [`ImportError::Malformed`].
pub fn read_tensor(bytes: impl Into<Bytes>) -> Result<Tensor, ImportError> {
    let proto = <TensorProto as prost::Message>::decode(bytes.into());
    let proto = proto.map_err(|e| ImportError::NotOnnx { reason: e.to_string() })?;
    tensors::read(&proto, &Files::default()).map_err(|e| {
        let (tensors::BadTensor::Malformed(reason) | tensors::BadTensor::Unsupported(reason)) = e;
        ImportError::malformed(format!("tensor `{}`", error::shown(proto.name())), reason)
    })
}

fn import_with(
    model: &ModelProto,
    files: &Files,
    options: &ImportOptions,
) -> Result<Imported, ImportError> {
    let Some(graph) = &model.graph else {
        return Err(ImportError::NotOnnx { reason: "it holds no graph".into() });
    };
    let opset = walk::opset(&model.opset_import)?;
    let (options, skipped) = if options.for_several {
        let (known, skipped) = inputs::known_options(&graph.input, options);
        (&{ known }, skipped)
    } else {
        (options, BTreeSet::new())
    };
    let walked = walk::model(model, graph, opset, files, options)?;
    let producer =
        format!("{} {}", model.producer_name(), model.producer_version()).trim().to_string();
    Ok(Imported {
        graph: walked.graph,
        opset,
        producer: error::shown(&producer),
        parameters: graph.initializer.iter().map(parameters).sum(),
        node_count: walked.node_count,
        consumed_inputs: walked.consumed,
        warnings: walked.warnings,
        skipped,
        external: Vec::new(),
    })
}

fn parameters(t: &TensorProto) -> u64 {
    let float = tensors::dtype(t.data_type()).is_ok_and(DType::is_float);
    if float { t.dims.iter().map(|&d| d.max(0) as u64).fold(1, u64::saturating_mul) } else { 0 }
}
