//! Turns a source model into the programs of a loop: binds, cuts, assembles and lowers it.

use crate::model::{Model, ModelError};
use bytes::Bytes;
use cqc_kernels::mapped;
use cqc_passes::bind::{self, BindError, Bound, Saved};
use cqc_passes::cache::affine::Affine;
use cqc_passes::cache::{self, Batch, Correction, Cut, CutError, CutSpec, Split};
use cqc_passes::lower::{Lowering, PlanIndex, WeightSection, lower};
use cqc_passes::quant::{
    self, AnnotateOptions, Annotation, Bf16Products, QuantSpec, QuantTables, Survey,
};
use cqc_proto::cq::CacheCorrection;
use cqc_proto::op::OpError;
use cqc_proto::plan::Plan;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::sampler::{Sampler, SamplerError};
use std::io::{self, Write};

/// The loop for which a model is compiled.
#[derive(Clone, Debug)]
pub struct LoopOptions {
    /// Configuration of the sampler.
    pub sampler: SamplerConfig,
    /// Number of sampler steps.
    pub steps: usize,
    /// Whether the plan keeps the part of the network that computes its tables, so that it can be
    /// run with any number of steps.
    pub any_steps: bool,
    /// The products whose operands are rounded to bf16; `None` means none.
    pub bf16: Option<QuantSpec>,
}

/// The correction of the cache: for every slot and evaluation, an affine map of the stored value.
/// At full evaluations it is the identity.
pub type CacheTables = Vec<Vec<Affine>>;

/// Why a loop cannot be turned into a plan.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The model cannot be loaded, or it is no denoiser.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The sampler cannot make the trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The tables of the time steps cannot be computed.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A step of a program does not type-check, which is a bug of the compiler.
    #[error("internal error in lowering: {0}; please report it with the model")]
    Lower(#[from] OpError),
    /// Nothing can be cached, or not at the given cut.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The temporary file for the weights cannot be written.
    #[error("cannot write the weights to a temporary file: {0}")]
    Temporary(#[from] io::Error),
}

/// A plan with its constants.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The plan.
    pub plan: Plan,
    /// The constants, not yet in one piece.
    pub weights: WeightSection,
    /// The work and the weights that have been moved out of the loop.
    pub saved: Saved,
    /// The layers that were rounded to bf16, if that was asked for.
    pub bf16: Option<Bf16Products>,
    /// The positions of the graphs' tables and nodes in the plan.
    pub index: PlanIndex,
    /// The tables of a quantized loop.
    pub annotation: Option<Annotation>,
}

impl Lowered {
    /// The constants in one piece, as an engine takes them. It is a mapped temporary file, so that
    /// weights that the engine has packed need not stay in memory.
    ///
    /// # Errors
    /// [`ProgramError::Temporary`] if the file cannot be written.
    pub fn weight_bytes(&self) -> Result<Bytes, ProgramError> {
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

/// Compiles the denoising loop without a cache.
///
/// # Errors
/// [`ProgramError`] if the model is no denoiser, if the sampler cannot make the trajectory, or if
/// its time steps do not suit the model.
pub fn compile_loop(model: &Model, options: &LoopOptions) -> Result<Lowered, ProgramError> {
    let (bound, evaluations) = bind_loop(model, options)?;
    lower_bound(model, bound, evaluations, options.any_steps, options.bf16.as_ref())
}

fn bind_loop(model: &Model, options: &LoopOptions) -> Result<(Bound, usize), ProgramError> {
    let network = model.network()?;
    let sampler = Sampler::new(&options.sampler, options.steps)?;
    let timesteps: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
    let batch = model.batch_symbol.as_deref();
    let bound = bind::bind(&network.graph, &network.roles(), batch, &timesteps)?;
    Ok((bound, timesteps.len()))
}

/// Compiles one evaluation of any model. The time step is an ordinary input of it.
///
/// # Errors
/// [`ProgramError::Lower`] if a step does not type-check.
pub fn compile_evaluation(model: &Model) -> Result<Lowered, ProgramError> {
    lower_bound(model, bind::unbound(&model.graph), 0, false, None)
}

/// [`compile_evaluation`] with the products rounded to bf16.
///
/// # Errors
/// [`ProgramError::Lower`].
pub fn compile_evaluation_bf16(model: &Model) -> Result<Lowered, ProgramError> {
    lower_bound(model, bind::unbound(&model.graph), 0, false, Some(&QuantSpec::new(16)))
}

/// A loop that has been cut into a cached part and a part that every evaluation computes. The
/// schedule is still open.
pub struct CachedLoop<'a> {
    model: &'a Model,
    bound: Bound,
    split: Split,
    evaluations: usize,
    any_steps: bool,
    bf16: Option<QuantSpec>,
    /// The cut.
    pub cut: Cut,
    /// Names of the cached tensors.
    pub cut_name: String,
}

/// Compiles the denoising loop up to the decision which evaluations are full.
///
/// # Errors
/// As [`compile_loop`], and [`ProgramError::Cut`].
pub fn cut_loop<'a>(
    model: &'a Model,
    options: &LoopOptions,
    spec: &CutSpec,
) -> Result<CachedLoop<'a>, ProgramError> {
    let (bound, evaluations) = bind_loop(model, options)?;
    let batch = match &model.batch_symbol {
        Some(symbol) => Batch::Symbol(symbol),
        None => Batch::Fixed(model.fixed_batch.unwrap_or(1)),
    };
    let roles = model.network()?.roles();
    let sample = cache::sample_value(&bound.full, &roles).ok_or(CutError::NoCandidates)?;
    let step = &bound.full.graph;
    let cut = cache::choose(&cache::candidates(step, sample, batch), spec, step, sample, batch)?;
    let (split, cut_name) = (cache::split(&bound.full, &cut)?, cut.name(step));
    let (any_steps, bf16) = (options.any_steps, options.bf16.clone());
    Ok(CachedLoop { model, bound, split, evaluations, any_steps, bf16, cut, cut_name })
}

impl CachedLoop<'_> {
    /// Number of evaluations of the loop.
    pub fn evaluations(&self) -> usize {
        self.evaluations
    }

    /// The loop in which every evaluation is full and nothing is corrected, on which calibration
    /// runs. Its operands are rounded to bf16 if those of the compiled loop are.
    ///
    /// # Errors
    /// [`ProgramError::Lower`] if a step does not type-check.
    pub fn uncorrected(&self) -> Result<Lowered, ProgramError> {
        let full: Vec<usize> = (0..self.evaluations).collect();
        Ok(self.assemble(&full, None)?.lower(None)?.0)
    }

    /// The graphs of the loop with the full evaluations `full` and the correction of the cache.
    ///
    /// # Errors
    /// [`ProgramError::Lower`] if a step does not type-check.
    pub fn assemble(
        &self,
        full: &[usize],
        tables: Option<&CacheTables>,
    ) -> Result<Assembled<'_>, ProgramError> {
        let rows = tables.map(Vec::as_slice);
        let (bound, corrections) = cache::assemble(&self.bound, &self.split, full, rows)?;
        Ok(Assembled {
            model: self.model,
            bound,
            evaluations: self.evaluations,
            any_steps: self.any_steps,
            bf16: self.bf16.clone(),
            corrections,
        })
    }
}

/// A loop whose schedule has been decided. Its graphs can still be quantized.
pub struct Assembled<'a> {
    model: &'a Model,
    bound: Bound,
    evaluations: usize,
    any_steps: bool,
    bf16: Option<QuantSpec>,
    corrections: Vec<Correction>,
}

/// The layers that [`Assembled::lower`] quantizes, with their tables.
pub type Quantization<'a> = (&'a Survey, &'a QuantTables, AnnotateOptions);

/// The graphs of a loop without a cache.
///
/// # Errors
/// As [`compile_loop`].
pub fn assemble_loop<'a>(
    model: &'a Model,
    options: &LoopOptions,
) -> Result<Assembled<'a>, ProgramError> {
    let (bound, evaluations) = bind_loop(model, options)?;
    let (any_steps, bf16) = (options.any_steps, options.bf16.clone());
    Ok(Assembled { model, bound, evaluations, any_steps, bf16, corrections: vec![] })
}

impl Assembled<'_> {
    /// Number of evaluations of the loop.
    pub fn evaluations(&self) -> usize {
        self.evaluations
    }

    /// The full evaluations; empty without a cache.
    pub fn full_evaluations(&self) -> &[usize] {
        self.bound.cached.as_ref().map_or(&[], |cached| &cached.full_evaluations)
    }

    /// The layers of the loop that can be quantized, and those that stay float.
    pub fn survey(&self, spec: &QuantSpec) -> Survey {
        quant::survey(&self.bound, spec, self.model.batch_symbol.as_deref())
    }

    /// Lowers the loop to a plan, and returns the tables that correct the cache, one per slot, if
    /// there are any.
    ///
    /// # Errors
    /// [`ProgramError::Lower`] if a step does not type-check.
    pub fn lower(
        &self,
        quantization: Option<Quantization>,
    ) -> Result<(Lowered, Vec<CacheCorrection>), ProgramError> {
        let mut bound = self.bound.clone();
        let mut annotation = None;
        if let Some((survey, tables, options)) = quantization {
            // Tables that do not choose a quantization level bear the precision of f16; fits are
            // made in f32.
            if !options.reference_sums {
                quant::narrow_tables(&mut bound);
            }
            annotation = Some(quant::annotate(&mut bound, survey, tables, options)?);
        }
        let mut lowered =
            lower_bound(self.model, bound, self.evaluations, self.any_steps, self.bf16.as_ref())?;
        lowered.annotation = annotation;
        let index = &lowered.index;
        let constants = self.corrections.iter().map(|c| {
            let previous_scale = c.previous.map(|(_, table)| index.table(table));
            CacheCorrection {
                scale: index.table(c.scale),
                shift: index.table(c.shift),
                previous_scale,
            }
        });
        let constants = constants.collect();
        Ok((lowered, constants))
    }
}

fn lower_bound(
    model: &Model,
    mut bound: Bound,
    evaluations: usize,
    any_steps: bool,
    bf16: Option<&QuantSpec>,
) -> Result<Lowered, ProgramError> {
    let bf16 = bf16.map(|spec| quant::round_products(&mut bound, spec)).transpose()?;
    let (inputs, outputs) = if evaluations == 0 {
        (model.inputs.clone(), model.outputs.clone())
    } else {
        let network = model.network()?;
        (network.inputs.clone(), vec![network.output.clone()])
    };
    let Lowering { plan, weights, index } = lower(
        &bound,
        inputs,
        outputs,
        model.batch_symbol.as_deref(),
        model.fixed_batch,
        evaluations,
        any_steps,
    )?;
    Ok(Lowered { plan, weights, saved: bound.saved, bf16, index, annotation: None })
}
