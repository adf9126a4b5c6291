//! The interface between an engine and a device other than the CPU. A [`Backend`] implements it for
//! one kind of device.
//!
//! An engine with a device runs the step programs there, and those preludes for which the device
//! has kernels. Everything else, such as checks, the layout of requests and the remaining preludes,
//! is the same as on the CPU.

use super::{EngineError, EngineOptions, RequestLayout, Weights};
use crate::sampler::Table;
use cqc_kernels::arena::Arena;
use cqc_proto::Bindings;
use cqc_proto::plan::ProgramKind;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A kind of device on which engines can be opened: see `EngineOptions::device`.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The size in bytes of the buffers that a prelude would need on the device, with symbolic
    /// sizes bound to `bindings`.
    ///
    /// # Errors
    /// [`EngineError::NoDeviceKernel`] for element types that the device does not support.
    fn prelude_bytes(
        &self,
        weights: &Weights,
        kind: ProgramKind,
        bindings: &Bindings,
    ) -> Result<usize, EngineError>;

    /// Prepares the step programs and the given `preludes`. `prelude_steps` computes `chunk`
    /// evaluations at once.
    ///
    /// # Errors
    /// [`EngineError::NoDeviceKernel`], [`EngineError::Memory`] and errors of the device.
    fn open(
        &self,
        weights: &Arc<Weights>,
        options: &EngineOptions,
        layout: &RequestLayout,
        preludes: DevicePreludes,
        chunk: usize,
    ) -> Result<Box<dyn DeviceEngine>, EngineError>;
}

/// The preludes of a plan that run on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevicePreludes {
    /// Whether the program that runs once per request runs on the device.
    pub prelude: bool,
    /// Whether the program that computes all evaluations of a request runs on the device.
    pub prelude_steps: bool,
}

impl DevicePreludes {
    /// Both preludes run on the CPU.
    pub const NONE: DevicePreludes = DevicePreludes { prelude: false, prelude_steps: false };
    /// Both preludes run on the device.
    pub const ALL: DevicePreludes = DevicePreludes { prelude: true, prelude_steps: true };

    /// Whether the program is a prelude that runs on the device.
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
    /// Name of the device, for messages.
    fn name(&self) -> String;

    /// The number of bytes on the device, for weights, activations and requests.
    fn bytes(&self) -> usize;

    /// The number of kernels that a full step launches, and the number that a cached step launches.
    fn launches(&self) -> [usize; 2];

    /// The preludes that run on the device. A prelude without steps is not among them.
    fn preludes(&self) -> DevicePreludes;

    /// Takes a slot for a request, uploads the conditions and the results of preludes that ran on
    /// the CPU from `memory`, and runs the other preludes.
    ///
    /// # Errors
    /// [`EngineError::NoSlot`], [`EngineError::Fault`] and errors of the device.
    fn begin(
        &self,
        memory: &Arena,
        layout: &RequestLayout,
        timesteps: &[f64],
    ) -> Result<DeviceRequest, EngineError>;

    /// Runs one evaluation and waits for it. `out` receives the first output.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], [`EngineError::NothingCached`], [`EngineError::Fault`] and
    /// errors of the device.
    fn evaluate(&self, evaluation: &DeviceEvaluation, out: &mut [f32]) -> Result<(), EngineError>;

    /// Writes an input of the plan in the layout of the request's memory. It is used for step
    /// conditions.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`] and errors of the device.
    fn set_input(
        &self,
        request: &DeviceRequest,
        input: usize,
        bytes: &[u8],
    ) -> Result<(), EngineError>;

    /// Sets up the device to move the samples itself. Trajectories that are under way are lost.
    ///
    /// # Errors
    /// Errors of the device.
    fn set_sampling(&mut self, sampling: &DeviceSampling) -> Result<(), EngineError>;

    /// Begins a trajectory with the samples `x`. `input` is the network's first input, which is `x`
    /// scaled for the first evaluation, for every half of the batch.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`] and errors of the device.
    fn put_samples(
        &self,
        request: &DeviceRequest,
        x: &[f32],
        input: &[f32],
        guidance: f32,
    ) -> Result<(), EngineError>;

    /// Starts the program of evaluation `e`, which must be the one that the device has counted to,
    /// and returns before it is done. `stored` says whether the cache of the request has been
    /// filled.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], [`EngineError::NothingCached`] and errors of the device.
    fn replay(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        e: usize,
        stored: bool,
    ) -> Result<(), EngineError>;

    /// Moves the samples after that program, with noise if the sampler adds some at this
    /// evaluation, and advances the counter.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`] and errors of the device.
    fn advance(
        &self,
        kind: ProgramKind,
        request: &DeviceRequest,
        noise: Option<&[f32]>,
    ) -> Result<(), EngineError>;

    /// Waits for all running work and copies the samples into `x`.
    ///
    /// # Errors
    /// [`EngineError::ForeignRequest`], [`EngineError::Fault`] and errors of the device.
    fn get_samples(&self, request: &DeviceRequest, x: &mut [f32]) -> Result<(), EngineError>;

    /// Waits for all running work.
    ///
    /// # Errors
    /// Errors of the device.
    fn wait(&self) -> Result<(), EngineError>;
}

/// A request's slot on a device, which is freed when this is dropped. A clone has no slot, because
/// the device's cache is not copied, and the engine refuses it.
pub struct DeviceRequest(Option<Box<dyn Any + Send + Sync>>);

impl DeviceRequest {
    /// A request that holds `slot`, a type of the backend.
    pub fn new(slot: impl Any + Send + Sync) -> DeviceRequest {
        DeviceRequest(Some(Box::new(slot)))
    }

    /// The slot, or `None` for a clone and for a slot of another type.
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
    /// The full or the cached step.
    pub kind: ProgramKind,
    /// The request whose conditions and cache are read.
    pub request: &'a DeviceRequest,
    /// Index of the evaluation, which selects the rows of tables.
    pub evaluation: usize,
    /// The time step, for plans without tables.
    pub timestep: f64,
    /// The model's sample input.
    pub sample: &'a [f32],
    /// Whether the cache of the request has been filled.
    pub stored: bool,
}

/// The parameters with which a device moves samples between evaluations.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSampling<'a> {
    /// The sampler table, one row per evaluation.
    pub table: &'a Table,
    /// The number of samples, of elements per sample, and of channels per sample.
    pub sizes: [usize; 3],
    /// The number of elements in the output for one sample.
    pub width: usize,
    /// Whether the batch has two halves, the unconditional one first.
    pub guided: bool,
    /// The factors and summands of the sample compensation, `[evaluations · channels]` each.
    pub compensation: Option<[&'a [f32]; 2]>,
}
