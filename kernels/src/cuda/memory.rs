//! Memory of a device, and operands that lie in it.

use super::args::RawOperand;
use super::{CudaError, Device};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A block of a device's memory, freed when the last one that refers to it is gone.
pub struct Memory {
    pub(super) device: u64,
    pub(super) address: u64,
    pub(super) len: usize,
    /// What frees it.
    #[cfg_attr(
        not(feature = "cuda-sim"),
        allow(dead_code, reason = "the simulator alone looks into it")
    )]
    pub(super) owner: Box<dyn Any + Send + Sync>,
}

impl Memory {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Panics unless `bytes` bytes from `offset` on lie in it and it is of that device.
    pub(super) fn check(&self, device: u64, offset: usize, bytes: usize) {
        assert_eq!(self.device, device, "memory of another device");
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "bytes {offset}..+{bytes} of {} on the device",
            self.len
        );
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Types of elements that kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// Codes, or truth values.
    U8,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
}

impl ElementType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            ElementType::U8 => 1,
            ElementType::F16 => 2,
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::I64 => 8,
        }
    }

    /// Whether it is a float.
    pub const fn is_float(self) -> bool {
        matches!(self, ElementType::F16 | ElementType::F32)
    }
}

/// Rows of elements in device memory, possibly other ones at every evaluation and for every
/// request.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Where they lie.
    pub memory: Arc<Memory>,
    /// First byte, at evaluation 0 and slot 0.
    pub offset: usize,
    /// Bytes from one evaluation to the next.
    pub per_step: usize,
    /// Bytes from the slot of one request to the next.
    pub per_slot: usize,
    /// Type of the elements.
    pub element: ElementType,
    /// Elements from one row to the next.
    pub ld: usize,
}

impl Operand {
    /// Rows that are the same for every evaluation and request.
    pub fn new(memory: &Arc<Memory>, offset: usize, element: ElementType, ld: usize) -> Operand {
        Operand { memory: Arc::clone(memory), offset, per_step: 0, per_slot: 0, element, ld }
    }

    /// Whether all addresses of rows are multiples of 16 bytes.
    pub fn is_wide(&self) -> bool {
        self.is_aligned(16)
    }

    /// Whether all addresses of rows are multiples of `bytes`.
    fn is_aligned(&self, bytes: usize) -> bool {
        let parts = [self.offset, self.per_step, self.per_slot, self.ld * self.element.size()];
        parts.iter().all(|p| p.is_multiple_of(bytes))
    }

    /// Whether kernels may read eight neighbours at once, the first one's column being a multiple
    /// of 8.
    pub(super) fn reads_eight(&self) -> bool {
        self.element.is_float() && self.is_wide()
    }

    /// Whether kernels may store eight neighbours at once: as fp16, or as codes.
    pub(super) fn stores_eight(&self) -> bool {
        match self.element {
            ElementType::F16 => self.is_wide(),
            ElementType::U8 => self.is_aligned(8),
            _ => false,
        }
    }

    /// Panics unless `rows` rows of `cols` elements lie in the memory, at every evaluation and
    /// slot.
    pub(super) fn raw(&self, what: &str, state: &State, rows: usize, cols: usize) -> RawOperand {
        assert!(
            rows == 1 || self.ld >= cols,
            "{what}: rows of {cols} elements cannot be {} apart",
            self.ld
        );
        let size = self.element.size();
        let elements = if rows == 0 { 0 } else { (rows - 1) * self.ld + cols };
        let last = (state.steps - 1) * self.per_step + (state.slots - 1) * self.per_slot;
        let need = self.offset + last + elements * size;
        assert!(
            need <= self.memory.len(),
            "{what}: needs {need} bytes of device memory, has {}",
            self.memory.len()
        );
        assert_eq!(self.memory.device, state.memory.device, "{what} lies on another device");
        let aligned =
            [self.offset, self.per_step, self.per_slot].iter().all(|p| p.is_multiple_of(size));
        assert!(aligned, "{what}: elements of {size} bytes at {}", self.offset);
        RawOperand {
            data: self.memory.address + self.offset as u64,
            per_step: self.per_step as i64,
            per_slot: self.per_slot as i64,
            element: match self.element {
                ElementType::F16 => 0,
                ElementType::F32 => 1,
                ElementType::U8 => 2,
                ElementType::I32 => 3,
                ElementType::I64 => 4,
            },
            ld: i32::try_from(self.ld).expect("rows are less than 2^31 elements apart"),
        }
    }
}

/// The evaluation and the slot of a request whose operands kernels use: two numbers in device
/// memory, which recorded launches read. Beside them kernels report a [`Fault`].
#[derive(Debug)]
pub struct State {
    pub(super) memory: Arc<Memory>,
    pub(super) steps: usize,
    pub(super) slots: usize,
}

/// As in `operands.cuh`: evaluation, slot, fault, unused.
const STATE_BYTES: usize = 16;
const FAULT_AT: usize = 8;

/// What a number that was computed or given made impossible. The kernels go on with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row was asked for that is not there.
    IndexOutside,
    /// An integer was divided by 0.
    DividesByZero,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::IndexOutside => "an index lies outside of what it chooses from",
            Fault::DividesByZero => "an integer is divided by 0",
        })
    }
}

impl State {
    /// Evaluation 0 of `steps` and slot 0 of `slots`.
    ///
    /// # Errors
    /// Those of [`Device::allocate`].
    pub fn new(device: &dyn Device, steps: usize, slots: usize) -> Result<State, CudaError> {
        Ok(State {
            memory: device.allocate(STATE_BYTES)?,
            steps: steps.max(1),
            slots: slots.max(1),
        })
    }

    /// Chooses the evaluation and the slot of what runs from now on.
    ///
    /// # Errors
    /// Those of [`Device::write`].
    ///
    /// # Panics
    /// When there is no such evaluation or slot.
    pub fn set(&self, device: &dyn Device, step: usize, slot: usize) -> Result<(), CudaError> {
        assert!(
            step < self.steps && slot < self.slots,
            "evaluation {step} of {}, slot {slot} of {}",
            self.steps,
            self.slots
        );
        let bytes: Vec<u8> =
            [step as i32, slot as i32].iter().flat_map(|v| v.to_le_bytes()).collect();
        device.write(&self.memory, 0, &bytes)
    }

    /// What has gone wrong since this was last asked, `None` if nothing has; waits for all that
    /// runs.
    ///
    /// # Errors
    /// Those of [`Device::read`] and [`Device::write`].
    pub fn take_fault(&self, device: &dyn Device) -> Result<Option<Fault>, CudaError> {
        let mut word = [0; 4];
        device.read(&self.memory, FAULT_AT, &mut word)?;
        let fault = match i32::from_le_bytes(word) {
            0 => return Ok(None),
            1 => Fault::IndexOutside,
            _ => Fault::DividesByZero,
        };
        device.write(&self.memory, FAULT_AT, &[0; 4])?;
        Ok(Some(fault))
    }

    /// Slots of requests.
    pub fn slots(&self) -> usize {
        self.slots
    }
}
