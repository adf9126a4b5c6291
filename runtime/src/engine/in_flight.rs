//! A request between its begin and its last evaluation.

use super::{DeviceRequest, RequestLayout};
use cqc_kernels::arena::{Arena, Pod, Span};
use cqc_proto::plan::ProgramKind;
use std::sync::Arc;

/// What belongs to one request: conditions, results of the preludes, and the cache, which nothing
/// has been stored in when it begins. Made by [`Engine::begin`](super::Engine::begin).
#[derive(Clone)]
pub struct InFlight {
    pub(super) memory: Arena,
    pub(super) layout: Arc<RequestLayout>,
    pub(super) timesteps: Vec<f64>,
    /// Whether `full` has run, or the slots were set.
    pub(super) stored: bool,
    /// Inputs with a value per evaluation that have none yet: their indices.
    pub(super) unset: Vec<usize>,
    /// The program and the evaluation that ran last.
    pub(super) last: Option<(ProgramKind, usize)>,
    /// Its slot on the device.
    pub(super) device: Option<DeviceRequest>,
}

impl InFlight {
    /// Slot `i` of the cache as it is now, in the type and layout of the value it stores.
    ///
    /// # Panics
    /// When the plan has no such slot, or the request is on a device, where its cache stays.
    pub fn slot(&self, i: usize) -> &[f32] {
        assert!(self.device.is_none(), "the cache of a request on a device stays there");
        self.memory.get(self.layout.cache[i]).expect("the layout lies in the request's memory")
    }

    /// Overwrites slot `i` of the cache: the next `cached` evaluation reads this.
    ///
    /// # Panics
    /// When the plan has no such slot, or one of another length, or the request is on a device.
    pub fn set_slot(&mut self, i: usize, values: &[f32]) {
        assert!(self.device.is_none(), "the cache of a request on a device stays there");
        let span = self.layout.cache[i];
        self.bytes(span).copy_from_slice(values);
        self.stored = true;
    }

    /// Number of slots of the cache.
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
