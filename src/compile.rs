//! The pipeline from a source model to a plan.

use crate::model::{Model, ModelError};
use bytes::Bytes;
use cqc_kernels::mapped;
use cqc_passes::bind::{self, BindError, Bound, Saved};
use cqc_passes::lower::{Weights, lower};
use cqc_proto::op::OpError;
use cqc_proto::plan::Plan;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::sampler::{Sampler, SamplerError};
use std::io::{self, Write};

/// What a loop is compiled for.
#[derive(Clone, Debug)]
pub struct LoopOptions {
    /// The sampler.
    pub sampler: SamplerConfig,
    /// Sampling steps.
    pub steps: usize,
}

/// Why a model cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// From loading it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No such trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// Tables cannot be computed.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A step does not type-check.
    #[error("internal error in lowering: {0}; please report it with the model")]
    Lower(#[from] OpError),
    /// No temporary file for the weights.
    #[error("cannot write the weights to a temporary file: {0}")]
    Temporary(#[from] io::Error),
}

/// A plan with its constants.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The plan.
    pub plan: Plan,
    /// Constants, not yet in one piece.
    pub weights: Weights,
    /// What left the loop.
    pub saved: Saved,
}

impl Lowered {
    /// The constants in one piece, as an engine takes them: a mapped temporary file, so that what the engine has packed need
    /// not stay in memory.
    ///
    /// # Errors
    /// [`CompileError::Temporary`].
    pub fn weight_bytes(&self) -> Result<Bytes, CompileError> {
        let mut file = io::BufWriter::new(tempfile::tempfile()?);
        let mut end = 0;
        for (offset, tensor) in &self.weights.parts {
            file.write_all(&vec![0; (offset - end) as usize])?;
            file.write_all(tensor.bytes())?;
            mapped::release(tensor.bytes());
            end = offset + tensor.bytes().len() as u64;
        }
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Bytes::from_owner(mapped::map(&file)?))
    }
}

/// Compiles the denoising loop.
///
/// # Errors
/// [`CompileError`]: the model is no denoiser, the sampler has no such trajectory, or its time steps do not suit the model.
pub fn compile_loop(model: &Model, options: &LoopOptions) -> Result<Lowered, CompileError> {
    model.check_denoiser()?;
    let sampler = Sampler::new(&options.sampler, options.steps)?;
    let timesteps: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
    let roles: Vec<_> = model.inputs.iter().map(|i| i.role).collect();
    let bound = bind::bind(&model.graph, &roles, model.batch_symbol.as_deref(), &timesteps)?;
    finish(model, bound, timesteps.len())
}

/// Compiles one evaluation of any model, time step an ordinary input.
///
/// # Errors
/// [`CompileError::Lower`].
pub fn compile_evaluation(model: &Model) -> Result<Lowered, CompileError> {
    finish(model, bind::unbound(&model.graph), 0)
}

fn finish(model: &Model, bound: Bound, evaluations: usize) -> Result<Lowered, CompileError> {
    let (inputs, outputs) = (model.inputs.clone(), model.outputs.clone());
    let (plan, weights) =
        lower(&bound, inputs, outputs, model.batch_symbol.as_deref(), model.fixed_batch, evaluations)?;
    Ok(Lowered { plan, weights, saved: bound.saved })
}
