//! `.cq` files: opened, and what commands ask of them.

use super::args::PackCacheArgs;
use super::report::Failure;
use bytes::Bytes;
use cachequant::io::FileError;
use cachequant::report::cost;
use cqc_proto::cq::{self, MAGIC, Manifest, NullCondition};
use cqc_proto::plan::{PlanInput, Program};
use cqc_proto::{DType, Tensor};
use cqc_runtime::denoise::Compensation;
use cqc_runtime::engine::{PackCache, Weights};
use cqc_runtime::retime::{RetimeError, retime};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// An artifact that passed all checks, ready for engines.
pub struct Artifact {
    /// Plan and constants.
    pub weights: Arc<Weights>,
    /// Everything but the constants.
    pub manifest: Manifest,
    /// Kernels for GPUs, if it has some.
    pub kernels: Option<Bytes>,
    constants: Bytes,
}

/// Whether the file is an artifact: by its first bytes, or by its name if it cannot be read.
pub fn is_artifact(path: &Path) -> bool {
    let begins = || {
        let mut first = [0; MAGIC.len()];
        std::fs::File::open(path)?.read_exact(&mut first).map(|()| first == MAGIC)
    };
    // opening a pipe would wait for a writer
    let by_content = path.is_file() && begins().unwrap_or(false);
    by_content || cachequant::io::has_extension(path, "cq")
}

/// Maps the file and checks all of it.
pub fn open(path: &Path) -> Result<Artifact, Failure> {
    open_cached(path, &PackCacheArgs::default())
}

/// [`open`], with what an earlier process has packed.
pub fn open_cached(path: &Path, cache: &PackCacheArgs) -> Result<Artifact, Failure> {
    let is_file = path.metadata().map_err(FileError::reading(path))?.is_file();
    if !is_file {
        return Err(Failure::failed(format!("{} is not a regular file", path.display())));
    }
    let bytes = cqc_kernels::map_file(path).map(Bytes::from_owner).map_err(FileError::reading(path))?;
    let read = cq::Artifact::read(bytes);
    let cq::Artifact { manifest, weights: constants, kernels, identity } = read.map_err(|e| {
        let help = match e {
            cq::CqError::NotCq => "cqc compile makes them",
            cq::CqError::Newer { .. } => "use a newer cqc, or compile the model again",
            _ => "compile the model again",
        };
        Failure::failed(format!("{} is not a valid artifact", path.display())).fact("seen", e).help(help)
    })?;
    let (plan, bytes) = (manifest.plan.clone(), constants.clone());
    let weights = match &cache.pack_cache {
        Some(folder) => Weights::with_cache(plan, bytes, &PackCache { folder: folder.clone(), identity })?,
        None => Weights::new(plan, bytes)?,
    };
    Ok(Artifact { weights, manifest, kernels, constants })
}

impl Artifact {
    /// Writes what engines have packed into the cache, if it was opened with one. A cache that cannot be written costs the next start
    /// some time, so that is only said.
    pub fn keep_packed(&self) {
        if let Err(error) = self.weights.keep_packed() {
            tracing::warn!("packed weights could not be kept: {error}");
        }
    }

    /// Its trajectory.
    pub fn sampler(&self) -> Result<Sampler, Failure> {
        Ok(Sampler::new(&self.manifest.sampler, self.manifest.steps)?)
    }

    /// Plan and constants for another number of sampling steps.
    pub fn retimed(&self, steps: usize) -> Result<Arc<Weights>, RetimeError> {
        retime(&self.manifest, &self.constants, steps).map(|(_, weights)| weights)
    }

    /// One per evaluation, as the network gets them.
    pub fn timesteps(&self) -> Result<Vec<f64>, Failure> {
        Ok(self.sampler()?.evaluations().iter().map(|e| e.timestep).collect())
    }

    /// What guidance's unconditional half gets, one row per input.
    pub fn null_conditions(&self) -> Result<BTreeMap<String, Tensor>, Failure> {
        let plan = &self.manifest.plan;
        let tensor = |(name, null): (&String, &NullCondition)| {
            let tensor = match *null {
                NullCondition::Label(label) => {
                    let input = plan.inputs.iter().find(|i| i.name == *name).expect("checked when the file was read");
                    labels_as(input, &[label])
                }
                NullCondition::Constant(i) => self.constant(i),
            };
            Ok((name.clone(), tensor))
        };
        self.manifest.null.iter().map(tensor).collect()
    }

    /// Constant number `i` of the plan, a quantized one as its codes; the bytes stay in the mapped file unless codes are unpacked.
    pub fn constant(&self, i: usize) -> Tensor {
        let constant = &self.manifest.plan.constants[i];
        let shape = constant.ty.fixed_shape().expect("checked when the file was read");
        let len = constant.stored_bytes().expect("checked when the file was read");
        let start = constant.offset as usize;
        let bytes = self.constants.slice(start..start + len);
        if let Some(how) = &constant.codes {
            let codes = how.unpack(&bytes, shape.iter().product());
            return Tensor::new(DType::I8, shape, codes.iter().map(|&c| c as u8).collect::<Vec<u8>>())
                .expect("a byte per code");
        }
        Tensor::new(constant.ty.dtype, shape, bytes).expect("as many bytes as the type has")
    }

    /// Correction of the samples behind every evaluation.
    pub fn compensation(&self) -> Option<Compensation> {
        let tables = self.manifest.quant.quantized()?.compensation.as_ref()?;
        let [scale, shift] = [tables.scale, tables.shift].map(|i| self.constant(i).to_f32_vec());
        Some(Compensation { scale, shift })
    }

    /// Bytes of all constants.
    pub fn weight_bytes(&self) -> u64 {
        self.constants.len() as u64
    }

    /// Multiply-accumulates of a program, per sample.
    pub fn macs(&self, program: &Program) -> i64 {
        cost::macs(&self.manifest.plan, program)
    }

    /// The rows of a table.
    pub fn rows(&self, table: usize) -> Vec<Vec<f32>> {
        let tensor = self.constant(table);
        let width = tensor.shape().get(1).copied().unwrap_or(1);
        tensor.to_f32_vec().chunks(width.max(1)).map(<[f32]>::to_vec).collect()
    }
}

/// Labels in the rank of an input, one per row. The engine narrows them to the input's own integer type.
pub fn labels_as(input: &PlanInput, labels: &[i64]) -> Tensor {
    let mut shape = vec![1; input.ty.rank().max(1)];
    shape[0] = labels.len();
    let bytes: Vec<u8> = labels.iter().flat_map(|l| l.to_le_bytes()).collect();
    Tensor::new(DType::I64, shape, bytes).expect("one element per row")
}

/// The conditioning input that takes labels: whole numbers, one per sample.
pub fn label_input(inputs: &[PlanInput]) -> Result<&PlanInput, Failure> {
    use cqc_proto::plan::InputRole::Condition;
    let conditions = || inputs.iter().filter(|i| i.role == Condition);
    let one = |i: &PlanInput| i.ty.rank() <= 2 && i.ty.shape.iter().skip(1).all(|d| d.is(1));
    conditions().find(|i| i.ty.dtype.is_integer() && one(i)).ok_or_else(|| {
        let list: Vec<String> = conditions().map(|i| format!("{}: {}", i.name, i.ty)).collect();
        let seen = if list.is_empty() { "no conditioning at all".to_string() } else { list.join(", ") };
        Failure::usage("the model has no input for labels").fact("seen", seen)
    })
}
