//! The compiler: turns a model and a recipe into an artifact.
//!
//! [`compile`] does everything. [`Session`] does the same in stages. Below them are the parts:
//! [`compile_loop`] and [`cut_loop`] bind and cut the loop, and [`compile_evaluation`] lowers one
//! evaluation of any model.

mod budget;
mod conditions;
mod error;
mod filling;
mod manifest;
mod measure;
mod program;
mod quality;
mod session;
mod stages;
mod summary;
mod targets;
mod weights;

pub use conditions::ConditionError;
pub use error::CompileError;
pub use program::{
    Assembled, CacheTables, CachedLoop, LoopOptions, Lowered, ProgramError, Quantization,
    assemble_loop, compile_evaluation, compile_evaluation_bf16, compile_loop, cut_loop,
};
pub use quality::{FLOOR, Proposal, proposals};
pub use session::Session;
pub use stages::Stages;
pub use summary::{CachingSummary, LeftTheLoop, MeasuredSchedule, QuantSummary, Summary};
pub use weights::{BadWeight, bad_weights};

use crate::calibrate::CachingChoice;
use crate::calibrate::quantize::Quantized;
use crate::io::{FileError, Overwrite, write_atomic};
use crate::model::Model;
use crate::pipeline::Parts;
use crate::recipe::Recipe;
use cqc_passes::quant::AnnotateOptions;
use cqc_proto::cq::{self, Manifest, WriteError};
use cqc_runtime::Artifact;
use cqc_runtime::denoise::check_condition;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

/// A phase of a compilation that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Runs the calibration set to choose a schedule and to fit the correction of the cache.
    Calibrating,
    /// Fits ranges, rounding and corrections of the quantized loop.
    Quantizing,
    /// Runs the holdout to measure the compiled loop: [`Compiled::quality`].
    Measuring,
    /// Runs the holdout to find the sources of errors: [`Compiled::report`].
    Reporting,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Calibrating => "calibrating",
            Phase::Quantizing => "quantizing",
            Phase::Measuring => "measuring",
            Phase::Reporting => "reporting",
        })
    }
}

impl Phase {
    /// The name of the phase for people, such as `calibrating`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Calibrating => "calibrating",
            Phase::Quantizing => "quantizing",
            Phase::Measuring => "measuring",
            Phase::Reporting => "reporting",
        }
    }
}

/// Receives the progress of a compilation and may end it.
///
/// `()` ignores the progress. A closure with the three arguments of [`Progress::update`] is a
/// progress, too.
pub trait Progress {
    /// Reports that `done` of about `total` batched evaluations of the phase are done. `total` may
    /// change during the phase. [`ControlFlow::Break`] ends the compilation with an error for which
    /// [`CompileError::is_interrupted`] is true.
    fn update(&mut self, phase: Phase, done: u64, total: u64) -> ControlFlow<()>;
}

impl Progress for () {
    fn update(&mut self, _: Phase, _: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(Phase, u64, u64) -> ControlFlow<()>> Progress for F {
    fn update(&mut self, phase: Phase, done: u64, total: u64) -> ControlFlow<()> {
        self(phase, done, total)
    }
}

/// Compiles the sampling loop of a model: cuts it, chooses the schedule, fits the corrections,
/// quantizes, and lowers. The result depends on the model and the recipe only, not on the number of
/// threads.
///
/// # Errors
/// [`CompileError`]. Errors in the recipe are found before anything is computed.
pub fn compile<'m>(
    model: &'m Model,
    recipe: &Recipe,
    progress: &mut dyn Progress,
) -> Result<Compiled<'m>, CompileError> {
    let session = Session::new(model, recipe)?;
    let choice = session.decide(progress)?;
    let quantized = session.quantize(choice.as_ref(), progress)?;
    session.into_compiled(choice, quantized)
}

/// An artifact in memory, with the decisions that led to it.
pub struct Compiled<'m> {
    session: Session<'m>,
    choice: Option<CachingChoice>,
    quantized: Option<Quantized>,
    manifest: Manifest,
    lowered: Lowered,
}

impl<'m> Compiled<'m> {
    fn new(
        session: Session<'m>,
        choice: Option<CachingChoice>,
        quantized: Option<Quantized>,
    ) -> Result<Compiled<'m>, CompileError> {
        let assembled = session.assemble(choice.as_ref(), quantized.as_ref())?;
        let quantization =
            quantized.as_ref().map(|q| (&q.survey, &q.fitted.tables, AnnotateOptions::default()));
        let (mut lowered, corrections) = assembled.lower(quantization)?;
        let network = session.model.network().map_err(ProgramError::from)?;
        for (name, row) in &session.null.tensors(network) {
            check_condition(&lowered.plan, name, row)?;
        }
        let (choice_of, quantized_of) = (choice.as_ref(), quantized.as_ref());
        let manifest =
            manifest::manifest(&session, choice_of, quantized_of, corrections, &mut lowered)?;
        Ok(Compiled { session, choice, quantized, manifest, lowered })
    }

    /// The manifest of the artifact: plan, sampler, schedule, quantization.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The plan with its constants.
    pub fn lowered(&self) -> &Lowered {
        &self.lowered
    }

    /// The schedule and the correction of the cache; `None` if nothing is cached.
    pub fn choice(&self) -> Option<&CachingChoice> {
        self.choice.as_ref()
    }

    /// The quantized layers and their fitted tables; `None` if nothing is quantized to integers.
    pub fn quantized(&self) -> Option<&Quantized> {
        self.quantized.as_ref()
    }

    /// The session in which it was compiled.
    pub fn session(&self) -> &Session<'m> {
        &self.session
    }

    /// Writes the artifact. Either the whole file is written, or none.
    ///
    /// # Errors
    /// [`FileError`] if the file exists and `overwrite` refuses that, or if it cannot be written.
    pub fn write(&self, path: &Path, overwrite: Overwrite) -> Result<(), FileError> {
        write_atomic(path, overwrite, |out| self.encode(out, None))
    }

    /// Writes the artifact of a whole pipeline: the loop, and the parts around it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write_with(
        &self,
        parts: &Parts,
        path: &Path,
        overwrite: Overwrite,
    ) -> Result<(), FileError> {
        write_atomic(path, overwrite, |out| self.encode(out, Some(parts)))
    }

    /// The bytes that [`Compiled::write`] writes.
    ///
    /// # Errors
    /// Errors of [`std::io::Write`]; writing to memory does not fail.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = io::Cursor::new(Vec::new());
        self.encode(&mut out, None)?;
        Ok(out.into_inner())
    }

    fn encode(
        &self,
        out: &mut (impl io::Write + io::Seek),
        around: Option<&Parts>,
    ) -> io::Result<()> {
        let parts = &self.lowered.weights.parts;
        let constant = |i: usize| Ok(parts[i].1.bytes().clone());
        let kernels = self.session.kernels.as_deref();
        let pipeline = around.map(|parts| (&parts.about, &parts.attachments[..]));
        let attached = cq::Attached { kernels, pipeline };
        cq::encode_with(out, &self.manifest, &attached, constant).map_err(|e| match e {
            WriteError::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    }

    /// Opens the artifact without a file of its own, in order to sample from it.
    ///
    /// # Errors
    /// [`CompileError::Artifact`] if it cannot be opened, [`CompileError::Program`] if the
    /// temporary file of its weights cannot be written.
    pub fn artifact(&self) -> Result<Artifact, CompileError> {
        Ok(Artifact::from_parts(self.manifest.clone(), self.lowered.weight_bytes()?)?)
    }
}
