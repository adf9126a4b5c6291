//! Where programs run if not on the CPU: what an engine asks of a [`Backend`], which knows one kind
//! of device.
//!
//! An engine with a device runs step programs there, and those preludes that the device has kernels
//! for; everything else of it (checks, layout of requests, the preludes that are left) stays the
//! same.

use super::{EngineError, EngineOptions, RequestLayout, Weights};
use crate::sampler::Table;
use cqc_kernels::arena::Arena;
use cqc_proto::Bindings;
use cqc_proto::plan::ProgramKind;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A device that engines can be opened on: `EngineOptions::device`.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Bytes of buffers that a prelude would need on the device, with sizes bound to `bindings`.
    ///
    /// # Errors
    /// [`EngineError::NoDeviceKernel`] for types of elements that the device does not know.
    fn prelude_bytes(
        &self,
        weights: &Weights,
        kind: ProgramKind,
        bindings: &Bindings,
    ) -> Result<usize, EngineError>;

    /// Makes the step programs ready, and those `preludes`, of which `prelude_steps` computes
    /// `chunk` evaluations at once.
    ///
    /// # Errors
    /// [`EngineError::NoDeviceKernel`], [`EngineError::Memory`], whatever the device reports.
    fn open(
        &self,
        weights: &Arc<Weights>,
        options: &EngineOptions,
        layout: &RequestLayout,
        preludes: DevicePreludes,
        chunk: usize,
    ) -> Result<Box<dyn DeviceEngine>, EngineError>;
}

/// Which of a plan's preludes run on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevicePreludes {
    /// The program that runs once per request.
    pub prelude: bool,
    /// The one that runs for every evaluation.
    pub prelude_steps: bool,
}

impl DevicePreludes {
    /// Both on the CPU.
    pub const NONE: DevicePreludes = DevicePreludes { prelude: false, prelude_steps: false };
    /// Both on the device.
    pub const ALL: DevicePreludes = DevicePreludes { prelude: true, prelude_steps: true };

    /// Whether the program is one of them.
    pub fn contains(self, kind: ProgramKind) -> bool {
        match kind {
            ProgramKind::Prelude => self.prelude,
            ProgramKind::PreludeSteps => self.prelude_steps,
            ProgramKind::Full | ProgramKind::Cached => false,
        }
    }
}

/// The programs of a plan on a device. It serves several requests, one call at a time in the order
/// of the calls.
pub trait DeviceEngine: fmt::Debug + Send + Sync {
    /// The device's name, for people.
    fn name(&self) -> String;

    /// Bytes on the device: weights, activations, requests.
    fn bytes(&self) -> usize;

    /// Kernels that an evaluation with `full` launches, and one with `cached`.
    fn launches(&self) -> [usize; 2];

    /// The preludes that run on the device; what has nothing to compute does not.
    fn preludes(&self) -> DevicePreludes;

    /// Takes a slot for a request, uploads what its `memory` holds (conditions, results of preludes
    /// that ran on the CPU) and runs the other preludes.
    ///
    /// # Errors
    /// [`EngineError::NoSlot`], [`EngineError::Fault`], whatever the device reports.
    fn begin(
        &self,
        memory: &Arena,
        layout: &RequestLayout,
        timesteps: &[f64],
    ) -> Result<DeviceRequest, EngineError>;

    /// Runs one evaluation and waits for it; `out` gets the first output.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], [`EngineError::NothingCached`], [`EngineError::Fault`],
    /// whatever the device reports.
    fn evaluate(&self, evaluation: &DeviceEvaluation, out: &mut [f32]) -> Result<(), EngineError>;

    /// Writes an input of the plan, as laid out in the request's memory: a condition for the
    /// evaluations to come.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], whatever the device reports.
    fn set_input(
        &self,
        request: &DeviceRequest,
        input: usize,
        bytes: &[u8],
    ) -> Result<(), EngineError>;

    /// Lets the device move samples from now on; those on their way are lost.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn set_sampling(&mut self, sampling: &DeviceSampling) -> Result<(), EngineError>;

    /// Begins a trajectory: the samples `x`, and what the network sees of them first.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], whatever the device reports.
    fn put_samples(
        &self,
        request: &DeviceRequest,
        x: &[f32],
        input: &[f32],
        guidance: f32,
    ) -> Result<(), EngineError>;

    /// Runs the program of evaluation `e`, the one that the device has counted to; `stored`: the
    /// request's cache has been filled before. Returns before that is done.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], [`EngineError::NothingCached`], whatever the device
    /// reports.
    fn replay(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        e: usize,
        stored: bool,
    ) -> Result<(), EngineError>;

    /// Moves the samples after that program, with noise if the sampler adds some here, and counts
    /// on.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], whatever the device reports.
    fn advance(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        noise: Option<&[f32]>,
    ) -> Result<(), EngineError>;

    /// The samples as they are when all that runs is done.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], [`EngineError::Fault`], whatever the device reports.
    fn get_samples(&self, request: &DeviceRequest, x: &mut [f32]) -> Result<(), EngineError>;

    /// Waits for all that runs.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn wait(&self) -> Result<(), EngineError>;
}

/// A request's slot on a device, given back when this is dropped. A clone has none: the device's
/// cache is not copied, and the engine refuses it.
pub struct DeviceRequest(Option<Box<dyn Any + Send + Sync>>);

impl DeviceRequest {
    /// A request that holds `slot`, whatever that is to the backend.
    pub fn new(slot: impl Any + Send + Sync) -> DeviceRequest {
        DeviceRequest(Some(Box::new(slot)))
    }

    /// The slot; `None` of a clone, or of another type of slot.
    pub fn slot<T: Any>(&self) -> Option<&T> {
        self.0.as_ref()?.downcast_ref()
    }
}

impl Clone for DeviceRequest {
    fn clone(&self) -> DeviceRequest {
        DeviceRequest(None)
    }
}

impl fmt::Debug for DeviceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRequest").field("has_slot", &self.0.is_some()).finish()
    }
}

/// One evaluation of the network on a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceEvaluation<'a> {
    /// `full` or `cached`.
    pub kind: ProgramKind,
    /// Whose conditions and cache it reads.
    pub request: &'a DeviceRequest,
    /// Its number, which selects rows of tables.
    pub evaluation: usize,
    /// Its time step, which plans without tables read.
    pub timestep: f64,
    /// The model's sample input.
    pub sample: &'a [f32],
    /// Whether the request's cache has been filled before.
    pub stored: bool,
}

/// How a device moves samples between evaluations.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSampling<'a> {
    /// The sampler's constants, a row per evaluation.
    pub table: &'a Table,
    /// Samples, elements of one, and its channels.
    pub sizes: [usize; 3],
    /// Elements of a sample's output.
    pub width: usize,
    /// Whether the batch has two halves, the unconditional one first.
    pub guided: bool,
    /// Factors and summands of the moved samples, `[evaluations · channels]` each.
    pub compensation: Option<[&'a [f32]; 2]>,
}
