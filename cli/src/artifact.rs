//! Opening `.cq` files with the options of the command line, and small questions about them.

use super::args::{MapArgs, PackCacheArgs};
use super::report::Failure;
use cachequant::io::FileError;
use cachequant::report::cost;
use cqc_passes::recognize::Format;
use cqc_proto::cq::CqError;
use cqc_proto::plan::{PlanInput, Program};
use cqc_runtime::artifact::{ArtifactError, label_input};
use cqc_runtime::{Artifact, ArtifactOptions};
use std::io::Read;
use std::path::Path;

/// Whether the file is an artifact: by its first bytes, or by its extension if it cannot be read.
pub fn is_artifact(path: &Path) -> bool {
    Artifact::is_artifact(path).unwrap_or(false) || cachequant::io::has_extension(path, "cq")
}

/// The format of a file that is not an artifact, if its first bytes tell.
fn other_format(path: &Path) -> Option<Format> {
    let mut first = Vec::new();
    cachequant::io::open_regular(path).ok()?.take(1 << 12).read_to_end(&mut first).ok()?;
    Format::of(&first)
}

/// Maps the file, or reads it, and checks it completely.
pub fn open(path: &Path, map: MapArgs) -> Result<Artifact, Failure> {
    open_cached(path, &PackCacheArgs { map, pack_cache: None })
}

/// [`open`], with a directory of packed weights.
pub fn open_cached(path: &Path, cache: &PackCacheArgs) -> Result<Artifact, Failure> {
    let options = ArtifactOptions { pack_cache: cache.pack_cache.clone(), map: !cache.map.no_mmap };
    Artifact::open_with(path, &options).map_err(|e| match e {
        ArtifactError::Invalid(e) => {
            let failure = Failure::failed(format!("{} is not a valid artifact", path.display()));
            match (&e, other_format(path)) {
                (CqError::NotCq, Some(format)) => {
                    let placeholder = matches!(
                        format,
                        Format::GitLfsPointer | Format::GitAnnexPointer | Format::Html
                    );
                    let help =
                        if placeholder { format.help() } else { "cqc compile makes artifacts" };
                    failure.fact("seen", format).help(help)
                }
                (CqError::NotCq, None) => {
                    failure.fact("seen", e).help("cqc compile makes artifacts")
                }
                (CqError::Newer { .. }, _) => {
                    failure.fact("seen", e).help("use a newer cqc, or compile the model again")
                }
                _ => failure.fact("seen", e).help("compile the model again"),
            }
        }
        ArtifactError::Engine(e) => e.into(),
        ArtifactError::Io { .. } | ArtifactError::NotAFile { .. } => Failure::failed(e.to_string()),
    })
}

/// A hash of the whole file, in hexadecimal. Only the header and the table of sections are hashed:
/// the table holds the hashes of everything else, and opening has checked those.
pub fn identity(path: &Path) -> Result<String, Failure> {
    let mut first = Vec::new();
    let file = cachequant::io::open_regular(path)?;
    file.take(1 << 12).read_to_end(&mut first).map_err(FileError::reading(path))?;
    Ok(blake3::hash(&first).to_hex().to_string())
}

/// Writes the weights that engines have packed into the cache, if the artifact was opened with one.
/// A cache that cannot be written only costs the next start some time, so that is a warning.
pub fn keep_packed(artifact: &Artifact) {
    if let Err(error) = artifact.keep_packed() {
        tracing::warn!("packed weights could not be kept: {error}");
    }
}

/// One time step per evaluation, as the network gets it.
pub fn timesteps(artifact: &Artifact) -> Result<Vec<f64>, Failure> {
    Ok(artifact.sampler()?.evaluations().iter().map(|e| e.timestep).collect())
}

/// Multiply-accumulates of a program, per sample.
pub fn macs(artifact: &Artifact, program: &Program) -> i64 {
    cost::macs(&artifact.manifest().plan, program)
}

/// The rows of a table.
pub fn rows(artifact: &Artifact, table: usize) -> Vec<Vec<f32>> {
    let tensor = artifact.constant(table);
    let width = tensor.shape().get(1).copied().unwrap_or(1);
    tensor.to_f32_vec().chunks(width.max(1)).map(<[f32]>::to_vec).collect()
}

/// The conditioning input that takes class labels.
pub fn expect_label_input(inputs: &[PlanInput]) -> Result<&PlanInput, Failure> {
    use cqc_proto::plan::InputRole::Condition;
    label_input(inputs).ok_or_else(|| {
        let conditions = inputs.iter().filter(|i| i.role == Condition);
        let list: Vec<String> = conditions.map(|i| format!("{}: {}", i.name, i.ty)).collect();
        no_labels(&list)
    })
}

/// The failure for a model without an input for labels. `conditions` are its conditioning inputs.
pub fn no_labels(conditions: &[String]) -> Failure {
    let seen = if conditions.is_empty() {
        "no conditioning input".to_string()
    } else {
        conditions.join(", ")
    };
    Failure::usage("the model has no input for labels").fact("seen", seen)
}
