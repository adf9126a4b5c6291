//! Every primitive of the kernels on given registers, to compare a GPU with the simulator.

use super::args::SelftestArgs;
use super::launch::Operands;
use super::{ElementType, Launch, Operand, State, list};

/// Words that [`selftest`] reads: 16 per lane, then 32 rows of 4.
pub const SELFTEST_IN: usize = 32 * 16 + 32 * 4;
/// Words that [`selftest`] writes: 32 per lane.
pub const SELFTEST_OUT: usize = 32 * 32;

/// Runs every primitive once: what they are given and give is written in `cuda/selftest.cu`.
///
/// # Panics
/// When an operand is too short, holds no 32-bit words or is not [wide](Operand::is_wide).
pub fn selftest(state: &State, input: &Operand, output: &Operand) -> Launch {
    let mut operands = Operands::new(state);
    for operand in [input, output] {
        assert!(operand.element == ElementType::I32 && operand.is_wide(), "words at multiples of 16 bytes");
    }
    let args = SelftestArgs {
        state: operands.state_address(),
        input: operands.rows("in", input, 1, SELFTEST_IN),
        output: operands.rows("out", output, 1, SELFTEST_OUT),
    };
    operands.launch(&list::selftest, [1, 1], 512, args)
}
