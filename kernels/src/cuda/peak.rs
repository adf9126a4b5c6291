//! What a device's tensor cores do at most, to hold the other kernels' speed against.

use super::args::PeakArgs;
use super::launch::{Operands, int};
use super::{ElementType, Launch, Operand, State, list};

/// Words that [`mma_peak`] reads: 16 per lane of a warp.
pub const PEAK_IN: usize = 32 * 16;
/// Words that a block of [`mma_peak`] writes, one per thread.
pub const PEAK_OUT: usize = 256;
/// Products of tiles that a warp computes per round.
const TILES: usize = 8;

/// The types that tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeakOf {
    /// Unsigned by signed bytes, 32-bit sums.
    Bytes,
    /// fp16, sums in f32.
    Halves,
}

impl PeakOf {
    /// Multiplications with their additions that [`mma_peak`] does.
    pub fn macs(self, blocks: usize, rounds: usize) -> usize {
        let depth = if self == PeakOf::Bytes { 32 } else { 16 };
        blocks * (PEAK_OUT / 32) * rounds * TILES * 16 * 8 * depth
    }
}

/// Products of registers in `blocks` blocks of 8 warps: two tiles of a by four of b, `rounds`
/// times. A lane takes eight words of a and eight of b from `input`; a thread writes what all its
/// sums come to, an integer or an f32.
///
/// # Panics
/// When an operand is too short or holds no 32-bit words.
pub fn mma_peak(
    state: &State,
    of: PeakOf,
    blocks: usize,
    rounds: usize,
    input: &Operand,
    output: &Operand,
) -> Launch {
    let mut operands = Operands::new(state);
    let (kernel, sums) = match of {
        PeakOf::Bytes => (&list::mma_peak_s8, ElementType::I32),
        PeakOf::Halves => (&list::mma_peak_f16, ElementType::F32),
    };
    assert!(input.element == ElementType::I32 && output.element == sums, "words, and {sums:?}");
    let args = PeakArgs {
        state: operands.state_address(),
        input: operands.rows("in", input, 1, PEAK_IN),
        output: operands.rows("out", output, 1, blocks * PEAK_OUT),
        rounds: int(rounds),
        unused: 0,
    };
    operands.launch(kernel, [blocks, 1], 0, args)
}
