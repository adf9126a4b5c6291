//! Which steps round what they compute at once: the step that would round it has nothing left to do.

use crate::engine::values::Value;
use cqc_proto::Op;
use cqc_proto::plan::{Program, Source};

/// How a result is rounded.
#[derive(Clone, Debug)]
pub(super) struct Rounding {
    pub bits: u8,
    pub segments: Vec<usize>,
    /// The values that hold scale and zero point.
    pub scale: usize,
    pub zero_point: usize,
}

/// What a step does.
#[derive(Clone, Debug)]
pub(super) struct Wired {
    /// Its result; none: another step has done it all.
    pub output: Option<usize>,
    pub rounding: Option<Rounding>,
}

/// Joins roundings with the steps before them.
pub(super) fn wire(program: &Program, values: &[Value], kept: &[usize]) -> Vec<Wired> {
    let plain = program.steps.iter().map(|step| Wired { output: step.outputs.first().copied(), rounding: None });
    let mut wired: Vec<Wired> = plain.collect();
    for (at, step) in program.steps.iter().enumerate() {
        let Op::FakeQuant { bits, segments } = &step.op else { continue };
        let [Some(x), Some(scale), Some(zero_point)] = step.inputs[..] else { continue };
        let y = step.outputs[0];
        let segments = crate::engine::codes::sizes(segments, &values[y]);
        wired[at].rounding = Some(Rounding { bits: *bits, segments, scale, zero_point });
        let Some(maker) = program.steps.iter().position(|s| s.outputs == [x]) else { continue };
        let reads = program.steps.iter().flat_map(|s| s.inputs.iter().flatten()).filter(|v| **v == x).count();
        let own = values.iter().filter(|v| v.home == x).count() == 1 && values[x].home == x && !kept.contains(&x);
        // what an earlier step reads must be there by then
        let known = [scale, zero_point].iter().all(|&v| values[values[v].home].source != Source::Step);
        if reads == 1 && own && known && rounds(&program.steps[maker].op) {
            wired[maker] = Wired { output: Some(y), rounding: wired[at].rounding.take() };
            wired[at].output = None;
        }
    }
    wired
}

/// Whether the operator's kernels can store rounded results.
fn rounds(op: &Op) -> bool {
    matches!(
        op,
        Op::Conv { .. }
            | Op::Linear { .. }
            | Op::GroupNorm { .. }
            | Op::LayerNorm { .. }
            | Op::RmsNorm { .. }
            | Op::Geglu { .. }
    )
}
