//! The slots of requests on a device: their layout, and which of them are in use.

use crate::engine::{DevicePreludes, DeviceRequest, EngineError, RequestLayout};
use cqc_kernels::arena::{Arena, Span, cast};
use cqc_proto::DType;
use cqc_proto::plan::Plan;
use half::f16;
use std::sync::{Arc, Mutex, PoisonError};

/// The free slots.
#[derive(Debug)]
pub(super) struct Slots(Mutex<Vec<usize>>);

impl Slots {
    pub fn new(count: usize) -> Arc<Slots> {
        Arc::new(Slots(Mutex::new((0..count).rev().collect())))
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a free slot.
    pub fn take(self: &Arc<Slots>) -> Option<DeviceRequest> {
        let index = self.free().pop()?;
        Some(DeviceRequest::new(Taken { index, slots: Arc::clone(self) }))
    }

    /// The index of the request's slot, or `None` if it has none of these.
    pub fn index(self: &Arc<Slots>, request: &DeviceRequest) -> Option<usize> {
        request
            .slot::<Taken>()
            .filter(|taken| Arc::ptr_eq(&taken.slots, self))
            .map(|taken| taken.index)
    }
}

/// A slot that is in use until this is dropped.
#[derive(Debug)]
struct Taken {
    index: usize,
    slots: Arc<Slots>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.slots.free().push(self.index);
    }
}

/// The layout of a slot, as offsets from its beginning in bytes.
#[derive(Debug)]
pub(super) struct SlotLayout {
    /// The model's inputs, in the types that programs read.
    pub inputs: Vec<Span>,
    /// The results of `prelude`. Floats are fp16.
    pub results: Vec<Span>,
    /// The results of `prelude_steps` for evaluation 0; those for the other evaluations follow.
    /// Floats are fp16.
    pub step_results: Vec<Span>,
    /// The cache, in fp16.
    pub cache: Vec<Span>,
    /// Whether each result of `prelude` and of `prelude_steps` is a float.
    floats: [Vec<bool>; 2],
    evaluations: usize,
    /// The size of a slot in bytes.
    pub bytes: usize,
}

impl SlotLayout {
    pub fn new(plan: &Plan, request: &RequestLayout) -> Result<SlotLayout, EngineError> {
        let mut end = 0usize;
        let mut push = |bytes: usize, times: usize| -> Result<Span, EngineError> {
            let begin = end;
            let all = bytes
                .checked_mul(times)
                .and_then(|all| all.checked_add(begin)?.checked_next_multiple_of(256));
            end = all.ok_or(EngineError::Memory { needed: usize::MAX, limit: usize::MAX })?;
            Ok(Span::new(begin, bytes))
        };
        let floats = [&plan.prelude, &plan.prelude_steps].map(|p| {
            p.results.iter().map(|&v| p.values[v].ty.dtype == DType::F32).collect::<Vec<_>>()
        });
        let stored = |span: &Span, float: &bool| if *float { span.bytes / 2 } else { span.bytes };
        let evaluations = plan.evaluations.max(1);
        let inputs =
            request.inputs.iter().map(|slot| push(slot.span.bytes, 1)).collect::<Result<_, _>>()?;
        let results = request.results.iter().zip(&floats[0]);
        let results =
            results.map(|(span, float)| push(stored(span, float), 1)).collect::<Result<_, _>>()?;
        let steps = request.step_results.iter().zip(&floats[1]);
        let step_results = steps
            .map(|(span, float)| push(stored(span, float), evaluations))
            .collect::<Result<_, _>>()?;
        let cache =
            request.cache.iter().map(|span| push(span.bytes / 2, 1)).collect::<Result<_, _>>()?;
        Ok(SlotLayout {
            inputs,
            results,
            step_results,
            cache,
            floats,
            evaluations,
            bytes: end.max(256),
        })
    }

    /// The content of the request's memory on the CPU as bytes for the slot, without the results of
    /// preludes that run on the device.
    pub fn upload(
        &self,
        memory: &Arena,
        request: &RequestLayout,
        preludes: DevicePreludes,
    ) -> Vec<(usize, Vec<u8>)> {
        let bytes = |span: Span| -> &[u8] {
            memory.get(span).expect("the layout lies in the request's memory")
        };
        let mut parts: Vec<(usize, Vec<u8>)> = Vec::new();
        for (slot, to) in request.inputs.iter().zip(&self.inputs) {
            parts.push((to.offset, bytes(slot.span).to_vec()));
        }
        let results = request
            .results
            .iter()
            .zip(&self.results)
            .zip(&self.floats[0])
            .map(|part| (part, 1))
            .filter(|_| !preludes.prelude);
        let steps = request.step_results.iter().zip(&self.step_results).zip(&self.floats[1]);
        let steps = steps.map(|part| (part, self.evaluations)).filter(|_| !preludes.prelude_steps);
        for (((from, to), &float), times) in results.chain(steps) {
            let all = bytes(Span::new(from.offset, from.bytes * times));
            parts.push((to.offset, if float { narrow(cast(all)) } else { all.to_vec() }));
        }
        parts
    }
}

/// Converts floats to fp16.
pub(super) fn narrow(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}
