//! Constants and weights on a device. Each is uploaded once for all programs.

use crate::engine::{EngineError, Weights};
use cqc_kernels::arena::cast;
use cqc_kernels::cuda::{Device, Filter, FilterKind, Memory};
use cqc_proto::DType;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Constants<'a> {
    weights: &'a Weights,
    device: Arc<dyn Device>,
    plain: HashMap<usize, Arc<Memory>>,
    filters: HashMap<(usize, FilterUse), Arc<Filter>>,
    zero: Option<Arc<Memory>>,
}

/// The use for which a filter was made: its kind, and whether it belongs to a linear layer
/// (`[k, n]`).
type FilterUse = (u8, bool);

impl<'a> Constants<'a> {
    pub fn new(weights: &'a Weights, device: &Arc<dyn Device>) -> Constants<'a> {
        let device = Arc::clone(device);
        Constants { weights, device, plain: HashMap::new(), filters: HashMap::new(), zero: None }
    }

    /// The number of uploaded bytes.
    pub fn bytes(&self) -> usize {
        let plain: usize = self.plain.values().map(|m| m.len()).sum();
        plain + self.filters.values().map(|f| f.bytes()).sum::<usize>()
    }

    /// A constant in the type that programs read.
    pub fn plain(&mut self, constant: usize, dtype: DType) -> Result<Arc<Memory>, EngineError> {
        if let Some(known) = self.plain.get(&constant) {
            return Ok(Arc::clone(known));
        }
        let bytes = crate::engine::program::constant_bytes(self.weights, constant, dtype);
        let memory = self.device.allocate(bytes.len())?;
        self.device.write(&memory, 0, &bytes)?;
        self.plain.insert(constant, Arc::clone(&memory));
        Ok(memory)
    }

    /// Eight zero bytes.
    pub fn zero(&mut self) -> Result<Arc<Memory>, EngineError> {
        if self.zero.is_none() {
            self.zero = Some(self.device.allocate(8)?);
        }
        Ok(Arc::clone(self.zero.as_ref().expect("made above")))
    }

    /// The weights of a product: `[cout, channels, taps]`, or `[channels, cout]` for a linear
    /// layer.
    pub fn filter(
        &mut self,
        constant: usize,
        kind: FilterKind,
        linear: bool,
        taps: usize,
        channels: usize,
        cout: usize,
    ) -> Result<Arc<Filter>, EngineError> {
        let used = (kind as u8, linear);
        if let Some(known) = self.filters.get(&(constant, used)) {
            return Ok(Arc::clone(known));
        }
        let device = &*self.device;
        let index = move |t: usize, c: usize, o: usize| {
            if linear { c * cout + o } else { (o * channels + c) * taps + t }
        };
        let filter = match kind {
            FilterKind::Codes => {
                let how = self.weights.plan().constants[constant]
                    .codes
                    .as_ref()
                    .expect("a product of codes");
                let codes = how.unpack(&self.weights.stored(constant), taps * channels * cout);
                let segments =
                    if how.segments.is_empty() { vec![channels] } else { how.segments.clone() };
                let scale = self.weights.constant(how.scale);
                Filter::codes(device, taps, &segments, cout, cast(&scale), |t, c, o| {
                    codes[index(t, c, o)]
                })
            }
            _ => {
                let bytes = self.weights.constant(constant);
                let values: &[f32] = cast(&bytes);
                let at = |t: usize, c: usize, o: usize| values[index(t, c, o)];
                match kind {
                    FilterKind::Halves => Filter::halves(device, taps, channels, cout, at),
                    _ => Filter::direct(device, taps, channels, cout, at),
                }
            }
        }?;
        let filter = Arc::new(filter);
        self.filters.insert((constant, used), Arc::clone(&filter));
        Ok(filter)
    }
}
