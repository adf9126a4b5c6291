//! The wiring of a program for the device. It comes before the choice of the device's kernels.

use crate::engine::uses::Uses;
use crate::engine::values::{Value, segment_sizes};
use crate::engine::wiring::{Fusion, ResultRounding, Wiring, fuse_roundings};
use cqc_proto::Op;
use cqc_proto::op::operand::{RESULT_CODES, ROUNDING};
use cqc_proto::plan::{Program, Step};

/// The rounding of a result to codes.
#[derive(Clone, Debug)]
pub(super) struct Rounding {
    pub bits: u8,
    pub segments: Vec<usize>,
    /// The values that hold the scale and the zero point.
    pub scale: usize,
    pub zero_point: usize,
}

/// The rounding to codes of a wired step's result, if there is one.
pub(super) fn rounding(wiring: &Wiring) -> Option<Rounding> {
    let Some(ResultRounding::Codes { bits, sizes, .. }) = &wiring.rounding else { return None };
    let [scale, zero_point] =
        RESULT_CODES.map(|at| wiring.inputs[at].expect("it was put there with the rounding"));
    Some(Rounding { bits: *bits, segments: sizes.clone(), scale, zero_point })
}

/// Wires a program. A step that quantizes rounds its own result, unless another step does it. A
/// step without a result has nothing to do.
pub(super) fn wire(
    program: &Program,
    values: &[Value],
    uses: &Uses,
    kept: &[usize],
) -> Vec<Wiring> {
    let rounding = |at: usize| {
        let step = &program.steps[at];
        let Op::FakeQuant { bits, segments } = &step.op else { return None };
        let y = &values[step.outputs[0]];
        let sizes = segment_sizes(segments, y);
        Some(ResultRounding::Codes { bits: *bits, sizes, stored: y.stored_as.is_some() })
    };
    let plain = |(at, step): (usize, &Step)| {
        let outputs = step.outputs.iter().take(1).copied().collect();
        let mut wiring = Wiring { inputs: step.inputs.clone(), outputs, rounding: rounding(at) };
        if wiring.rounding.is_some() {
            wiring.put(RESULT_CODES, ROUNDING.map(|i| step.inputs[i]));
        }
        wiring
    };
    let mut wirings: Vec<Wiring> = program.steps.iter().enumerate().map(plain).collect();
    let rounds_result = |maker: usize, _: &ResultRounding| rounds_result(&program.steps[maker].op);
    let fusion =
        Fusion { rounding: &rounding, rounds_result: &rounds_result, keeps_distance: false };
    fuse_roundings(program, values, uses, kept, &mut wirings, &fusion);
    wirings
}

/// Whether the device's kernel of an operator can round its result. Its products of computed
/// matrices and its attention store only fp16. Lowering checks that every fused rounding is done.
fn rounds_result(op: &Op) -> bool {
    !matches!(op, Op::MatMul | Op::Attention { .. })
}
