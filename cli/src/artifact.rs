//! `.cq` files, opened as the command line says.

use super::args::{MapArgs, PackCacheArgs};
use super::report::Failure;
use cachequant::report::cost;
use cqc_proto::cq::CqError;
use cqc_proto::plan::{PlanInput, Program};
use cqc_runtime::artifact::{ArtifactError, label_input};
use cqc_runtime::{Artifact, ArtifactOptions};
use std::path::Path;

/// Whether the file is an artifact: by its first bytes, or by its name if it cannot be read.
pub fn is_artifact(path: &Path) -> bool {
    Artifact::is_artifact(path).unwrap_or(false) || cachequant::io::has_extension(path, "cq")
}

/// Maps the file, or reads it, and checks all of it.
pub fn open(path: &Path, map: MapArgs) -> Result<Artifact, Failure> {
    open_cached(path, &PackCacheArgs { map, pack_cache: None })
}

/// [`open`], with what an earlier process has packed.
pub fn open_cached(path: &Path, cache: &PackCacheArgs) -> Result<Artifact, Failure> {
    let options = ArtifactOptions { pack_cache: cache.pack_cache.clone(), map: !cache.map.no_mmap };
    Artifact::open_with(path, &options).map_err(|e| match e {
        ArtifactError::Invalid(e) => {
            let help = match e {
                CqError::NotCq => "cqc compile makes them",
                CqError::Newer { .. } => "use a newer cqc, or compile the model again",
                _ => "compile the model again",
            };
            Failure::failed(format!("{} is not a valid artifact", path.display()))
                .fact("seen", e)
                .help(help)
        }
        ArtifactError::Engine(e) => e.into(),
        ArtifactError::Io { .. } | ArtifactError::NotAFile { .. } => Failure::failed(e.to_string()),
    })
}

/// Writes what engines have packed into the cache, if the artifact was opened with one. A cache
/// that cannot be written costs the next start some time, so that is only said.
pub fn keep_packed(artifact: &Artifact) {
    if let Err(error) = artifact.keep_packed() {
        tracing::warn!("packed weights could not be kept: {error}");
    }
}

/// One time step per evaluation, as the network gets them.
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

/// The conditioning input that takes labels.
pub fn expect_label_input(inputs: &[PlanInput]) -> Result<&PlanInput, Failure> {
    use cqc_proto::plan::InputRole::Condition;
    label_input(inputs).ok_or_else(|| {
        let conditions = inputs.iter().filter(|i| i.role == Condition);
        let list: Vec<String> = conditions.map(|i| format!("{}: {}", i.name, i.ty)).collect();
        no_labels(&list)
    })
}

/// The model has no input for labels; its conditioning inputs.
pub fn no_labels(conditions: &[String]) -> Failure {
    let seen = if conditions.is_empty() {
        "no conditioning at all".to_string()
    } else {
        conditions.join(", ")
    };
    Failure::usage("the model has no input for labels").fact("seen", seen)
}
