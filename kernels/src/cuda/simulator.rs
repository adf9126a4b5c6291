//! The kernels on a CPU: their sources compiled as C++, a fibre per thread (`cuda/sim.hpp`). Slow,
//! and strict about barriers.

use super::{CudaError, Device, Launch, Memory, Recorded, list::entries};
use crate::arena::{Arena, Span};
use std::sync::{Arc, Mutex, PoisonError};

/// Runs launches on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulator;

/// What memory of the simulator belongs to.
const DEVICE: u64 = u64::MAX;

/// The simulator's fibres and shared memory exist once, and kernels write memory that others could
/// read.
static RUNNING: Mutex<()> = Mutex::new(());

/// A block of memory, reached through its address only.
struct Block(*mut Arena);

// SAFETY: the pointer is freed once, by `drop`; what it points to is touched only while `RUNNING`
// is held.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw`, and nobody has freed it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// Runs `f` on the bytes of a block of memory, which nobody else touches meanwhile.
fn with_bytes(memory: &Memory, offset: usize, bytes: usize, f: impl FnOnce(&mut [u8])) {
    memory.check(DEVICE, offset, bytes);
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let block: &Block = memory.owner.downcast_ref().expect("memory of the simulator is a block");
    // SAFETY: the block is alive, and `RUNNING` keeps everybody else away.
    let arena = unsafe { &mut *block.0 };
    f(arena.get_mut(Span::new(offset, bytes)).expect("checked above"));
}

impl Device for Simulator {
    fn name(&self) -> String {
        "CUDA simulator".into()
    }

    fn multiprocessors(&self) -> usize {
        4
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<Memory>, CudaError> {
        let mut arena = Arena::new(bytes);
        let first: &mut [u8] = arena.get_mut(Span::new(0, bytes)).expect("an arena holds itself");
        let address = first.as_mut_ptr() as u64;
        let owner = Box::new(Block(Box::into_raw(Box::new(arena))));
        Ok(Arc::new(Memory { device: DEVICE, address, len: bytes, owner }))
    }

    fn write(&self, to: &Memory, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        with_bytes(to, offset, bytes.len(), |to| to.copy_from_slice(bytes));
        Ok(())
    }

    fn read(&self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        with_bytes(from, offset, bytes.len(), |from| bytes.copy_from_slice(from));
        Ok(())
    }

    fn wait(&self) -> Result<(), CudaError> {
        Ok(())
    }

    fn run(&self, launches: &[Launch]) -> Result<(), CudaError> {
        let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        for launch in launches {
            assert_eq!(launch.device, DEVICE, "a launch for another device");
            let name = launch.kernel.name;
            let (_, entry) = entries::ENTRIES
                .iter()
                .find(|(n, _)| *n == name)
                .expect("every kernel has an entry");
            let grid = [launch.grid[0], launch.grid[1], launch.shared_bytes];
            // SAFETY: the entry takes the struct that the launch was made with; its operands were
            // checked against memory that the launch keeps alive; `RUNNING` keeps others from that
            // memory and from the simulator's own state.
            unsafe { entry(launch.args.as_ptr().cast(), grid.as_ptr()) };
        }
        Ok(())
    }

    fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recorded>, CudaError> {
        Ok(Box::new(List(launches)))
    }
}

/// Launches one by one.
struct List(Vec<Launch>);

impl Recorded for List {
    fn replay(&self) -> Result<(), CudaError> {
        Simulator.run(&self.0)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}
