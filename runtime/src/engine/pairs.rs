//! Finds the linear layers that also compute the GEGLU after them.
//!
//! The columns of such a layer are `[a, b]`. Vectors of both halves are packed side by side, so
//! both halves of a result are in registers at the same time, and only a · gelu_erf(b) is stored:
//! half of the elements, and codes if a product reads them. The sums are not stored, so no other
//! step may read them.

use super::kernel::Kernel;
use super::uses::Uses;
use super::values::Value;
use super::wiring::{Wiring, sole_makers};
use cqc_kernels::PAIRED_COLUMNS;
use cqc_proto::op::Act;
use cqc_proto::op::operand::{GATE, RESIDUAL};
use cqc_proto::plan::{Program, Step};
use cqc_proto::{DType, Op};
use std::collections::{HashMap, HashSet};

/// The result of each such layer with the result of its GEGLU. Values in `kept` are excluded,
/// because they must be stored.
pub(crate) fn find(
    program: &Program,
    values: &[Value],
    uses: &Uses,
    kept: &[usize],
) -> HashMap<usize, usize> {
    let kept: HashSet<usize> = kept.iter().copied().collect();
    let own = |v: usize| uses.own(values, v);
    let pair = |step: &Step| {
        let v = step.outputs[0];
        let &[reader] = uses.readers(v) else { return None };
        let reader = &program.steps[reader];
        let y = reader.outputs[0];
        let plain =
            [GATE, RESIDUAL].iter().all(|&i| step.inputs.get(i).copied().flatten().is_none());
        let suits = matches!(step.op, Op::Linear { act: Act::None })
            && matches!(reader.op, Op::Geglu { act: Act::GeluErf })
            && plain
            && values[v].cols.is_multiple_of(PAIRED_COLUMNS)
            && values[y].dtype == DType::F32
            && own(v)
            && own(y)
            && !kept.contains(&v);
        suits.then_some((v, y))
    };
    program.steps.iter().filter_map(pair).collect()
}

/// Makes the paired layers write the results of their GEGLUs, which then have nothing to do.
pub(crate) fn wire(pairs: &HashMap<usize, usize>, kernels: &mut [Kernel], wirings: &mut [Wiring]) {
    let paired: Vec<usize> =
        (0..kernels.len()).filter(|&i| kernels[i].traits().is_paired).collect();
    let makers = sole_makers(wirings);
    for product in paired {
        let y = pairs[&wirings[product].outputs[0]];
        let geglu = makers[&y];
        wirings[product].outputs = vec![y];
        kernels[geglu] = Kernel::Nothing;
        wirings[geglu] = Wiring::default();
    }
}
