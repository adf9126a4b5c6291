//! A checked call of a kernel, and what runs it.

use super::args::RawOperand;
use super::{CudaError, EntryPoint, Memory, Operand, State};
use bytemuck::Pod;
use std::sync::Arc;

/// A kernel with its arguments: made by the functions of this module, which have checked that it
/// stays within the memory it refers to.
#[derive(Clone, Debug)]
pub struct Launch {
    pub(super) kernel: &'static EntryPoint,
    /// Blocks along x and y.
    pub(super) grid: [u32; 2],
    pub(super) shared_bytes: u32,
    /// The struct of arguments, whose size is a multiple of 8.
    pub(super) args: Box<[u64]>,
    pub(super) device: u64,
    /// What it reads and writes, which lives as long.
    _memory: Vec<Arc<Memory>>,
}

impl Launch {
    /// The entry point that it calls, with what profilers want to know of it.
    pub fn kernel(&self) -> &'static EntryPoint {
        self.kernel
    }
}

/// A GPU, or the simulator of one: it owns memory and runs launches in the order in which it gets
/// them.
pub trait Device: Send + Sync {
    /// Its name, for people.
    fn name(&self) -> String;

    /// How many blocks it runs side by side at least: its multiprocessors.
    fn multiprocessors(&self) -> usize;

    /// Zero bytes, aligned to 256.
    ///
    /// # Errors
    /// What the driver says.
    fn allocate(&self, bytes: usize) -> Result<Arc<Memory>, CudaError>;

    /// Writes to its memory, after all that was run before.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// When the bytes do not lie in the memory.
    fn write(&self, to: &Memory, offset: usize, bytes: &[u8]) -> Result<(), CudaError>;

    /// Reads from its memory when all that was run before is done.
    ///
    /// # Errors
    /// What the driver says, also of what was run before.
    ///
    /// # Panics
    /// When the bytes do not lie in the memory.
    fn read(&self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError>;

    /// Waits for all that was run before.
    ///
    /// # Errors
    /// What the driver says, also of what was run before.
    fn wait(&self) -> Result<(), CudaError>;

    /// Runs kernels one after the other.
    ///
    /// # Errors
    /// What the driver says.
    fn run(&self, launches: &[Launch]) -> Result<(), CudaError>;

    /// Makes a list of launches ready to be run many times.
    ///
    /// # Errors
    /// What the driver says.
    fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recorded>, CudaError>;
}

/// Launches made ready to be run as one.
pub trait Recorded: Send + Sync {
    /// Runs them.
    ///
    /// # Errors
    /// What the driver says.
    fn replay(&self) -> Result<(), CudaError>;

    /// How many kernels it runs.
    fn len(&self) -> usize;

    /// Whether it runs none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Collects the operands of a launch while they are checked.
#[derive(Clone)]
pub(super) struct Operands<'a> {
    pub state: &'a State,
    memory: Vec<Arc<Memory>>,
}

impl<'a> Operands<'a> {
    pub fn new(state: &'a State) -> Operands<'a> {
        Operands { state, memory: vec![Arc::clone(&state.memory)] }
    }

    /// Rows of an operand.
    pub fn rows(&mut self, what: &str, operand: &Operand, rows: usize, cols: usize) -> RawOperand {
        let raw = operand.raw(what, self.state, rows, cols);
        self.keep(&operand.memory);
        raw
    }

    /// Rows of an operand that may be absent.
    pub fn maybe(
        &mut self,
        what: &str,
        operand: Option<&Operand>,
        rows: usize,
        cols: usize,
    ) -> RawOperand {
        operand.map_or_else(RawOperand::default, |operand| self.rows(what, operand, rows, cols))
    }

    pub fn keep(&mut self, memory: &Arc<Memory>) {
        if !self.memory.iter().any(|known| Arc::ptr_eq(known, memory)) {
            self.memory.push(Arc::clone(memory));
        }
    }

    /// The address of the state.
    pub fn state_address(&self) -> u64 {
        self.state.memory.address
    }

    pub fn launch<A: Pod>(
        self,
        kernel: &'static EntryPoint,
        grid: [usize; 2],
        shared_bytes: usize,
        args: A,
    ) -> Launch {
        const { assert!(size_of::<A>().is_multiple_of(8)) };
        let mut words = vec![0u64; size_of::<A>() / 8].into_boxed_slice();
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(bytemuck::bytes_of(&args));
        let [x, y] = grid.map(|n| u32::try_from(n).expect("fewer than 2^31 blocks"));
        assert!(
            x >= 1 && y >= 1 && x < 1 << 31 && y < 1 << 16,
            "{}: a grid of {x} by {y} blocks",
            kernel.name
        );
        let (shared_bytes, device) = (shared_bytes as u32, self.state.memory.device);
        Launch { kernel, grid: [x, y], shared_bytes, args: words, device, _memory: self.memory }
    }
}

/// Blocks for `count` results, 256 each.
///
/// # Panics
/// When there are 2^31 or more, which kernels do not count to.
pub(super) fn blocks(count: usize) -> usize {
    assert!(count < 1 << 31, "{count} results of one kernel");
    count.div_ceil(256).max(1)
}

/// A size as kernels take it.
pub(super) fn int(n: usize) -> i32 {
    i32::try_from(n).expect("sizes are smaller than 2^31")
}
