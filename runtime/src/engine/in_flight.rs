//! A request between its beginning and its last evaluation.

use super::{DeviceRequest, RequestLayout};
use cqc_kernels::arena::{Arena, Pod, Span};
use cqc_proto::plan::ProgramKind;
use std::sync::Arc;

/// The state of one request: its conditions, the results of the preludes, and the cache, which is
/// empty at the beginning. [`Engine::begin`](super::Engine::begin) makes it.
#[derive(Clone)]
pub struct InFlight {
    pub(super) memory: Arena,
    pub(super) layout: Arc<RequestLayout>,
    pub(super) timesteps: Vec<f64>,
    /// Whether the full step has run, or the cache slots were set.
    pub(super) stored: bool,
    /// Indices of the step conditions that have no value yet.
    pub(super) unset: Vec<usize>,
    /// The program and the evaluation that ran last.
    pub(super) last: Option<(ProgramKind, usize)>,
    /// The slot on the device, if the engine has one.
    pub(super) device: Option<DeviceRequest>,
}

impl InFlight {
    /// The content of cache slot `i`, in the type and layout of the stored value.
    ///
    /// # Panics
    /// If the plan has no such slot, or if the request is on a device, where its cache stays.
    pub fn slot(&self, i: usize) -> &[f32] {
        assert!(self.device.is_none(), "the cache of a request on a device stays there");
        self.memory.get(self.layout.cache[i]).expect("the layout lies in the request's memory")
    }

    /// Overwrites cache slot `i`, which the next cached step reads.
    ///
    /// # Panics
    /// If the plan has no such slot, if the slot has another length, or if the request is on a
    /// device.
    pub fn set_slot(&mut self, i: usize, values: &[f32]) {
        assert!(self.device.is_none(), "the cache of a request on a device stays there");
        let span = self.layout.cache[i];
        self.bytes(span).copy_from_slice(values);
        self.stored = true;
    }

    /// The number of cache slots.
    pub fn slots(&self) -> usize {
        self.layout.cache.len()
    }

    /// Copies one slot to another of the same size.
    pub(super) fn copy(&mut self, from: Span, to: Span) {
        let (reads, [to]) =
            self.memory.split([to]).expect("slots lie apart in the request's memory");
        to.copy_from_slice(reads.get(from).expect("slots lie apart in the request's memory"));
    }

    pub(super) fn bytes<T: Pod>(&mut self, span: Span) -> &mut [T] {
        self.memory.get_mut(span).expect("the layout lies in the request's memory")
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFlight")
            .field("bytes", &self.memory.len())
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}
