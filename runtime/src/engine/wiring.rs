//! What the steps of a program read and write when they run, which is not always what the plan
//! says: a step may round its result at once, where nothing but a rounding reads it; that rounding
//! then has nothing left to do. Every executor wires its programs here and says what its kernels
//! can do ([`Fusion`]).

use super::kernel::Kernel;
use super::pairs;
use super::uses::Uses;
use super::values::Value;
use cqc_proto::op::operand::{CODES, RESULT_CODES, ROUNDING, WEIGHTS, X};
use cqc_proto::plan::{Program, Source, Step};
use std::collections::{HashMap, HashSet};

/// How a result is rounded; stored as codes or bf16, or as the floats that these stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResultRounding {
    /// To codes of `bits`, per segment of the last axis of these `sizes`, with the scale and the
    /// zero point of operands [`RESULT_CODES`].
    Codes { bits: u8, sizes: Vec<usize>, stored: bool },
    /// To bf16.
    Bf16 { stored: bool },
}

impl ResultRounding {
    /// Segments of the last axis that are rounded apart.
    pub fn segments(&self) -> usize {
        if let ResultRounding::Codes { sizes, .. } = self { sizes.len() } else { 1 }
    }
}

/// What a step reads and writes; without results it has nothing to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wiring {
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<usize>,
    /// How the result is rounded before it is stored.
    pub rounding: Option<ResultRounding>,
}

impl Wiring {
    /// Sets two inputs.
    pub fn put(&mut self, at: [usize; 2], values: [Option<usize>; 2]) {
        self.inputs.resize(self.inputs.len().max(at[1] + 1), None);
        self.inputs[at[0]] = values[0];
        self.inputs[at[1]] = values[1];
    }
}

/// What an executor can do about the roundings of a program; steps are told by their index.
pub(crate) struct Fusion<'a> {
    /// How a step rounds, if that is all it does and another step may do it.
    pub rounding: &'a dyn Fn(usize) -> Option<ResultRounding>,
    /// Whether the kernel of a step can round its result so.
    pub rounds_result: &'a dyn Fn(usize, &ResultRounding) -> bool,
    /// Whether a kernel was chosen for the distance between rows of the step's own result.
    pub keeps_distance: bool,
}

/// Of values that are the only result of a step: that step.
pub(crate) fn sole_makers(wirings: &[Wiring]) -> HashMap<usize, usize> {
    let sole = |(at, wiring): (usize, &Wiring)| match wiring.outputs[..] {
        [v] => Some((v, at)),
        _ => None,
    };
    wirings.iter().enumerate().filter_map(sole).collect()
}

/// Lets steps round what they compute where only a rounding reads it. Values in `kept` stay as they
/// are. Returns the roundings that have nothing left to do.
pub(crate) fn fuse_roundings(
    program: &Program,
    values: &[Value],
    uses: &Uses,
    kept: &[usize],
    wirings: &mut [Wiring],
    fusion: &Fusion,
) -> Vec<usize> {
    let kept: HashSet<usize> = kept.iter().copied().collect();
    let mut makers = sole_makers(wirings);
    let mut fused = Vec::new();
    for (at, step) in program.steps.iter().enumerate() {
        let Some(rounding) = (fusion.rounding)(at) else { continue };
        let (Some(x), y) = (step.inputs[X], step.outputs[0]) else { continue };
        let own = uses.own(values, x) && !kept.contains(&x);
        let same_distance = values[x].ld == values[y].ld || !fusion.keeps_distance;
        let numbers = match rounding {
            ResultRounding::Codes { .. } => ROUNDING.map(|i| step.inputs[i]),
            ResultRounding::Bf16 { .. } => [None; 2],
        };
        // what an earlier step reads must be there by then
        let known =
            numbers.iter().flatten().all(|&v| values[values[v].home].source != Source::Step);
        let Some(&maker) = makers.get(&x) else { continue };
        let may_round =
            program.steps[maker].op.traits().may_round_result && wirings[maker].rounding.is_none();
        let fits = uses.reads(x) == 1 && own && same_distance && known && may_round;
        if !fits || !(fusion.rounds_result)(maker, &rounding) {
            continue;
        }
        wirings[at] = Wiring::default();
        makers.remove(&x);
        makers.insert(y, maker);
        let maker = &mut wirings[maker];
        maker.outputs = vec![y];
        if numbers != [None; 2] {
            maker.put(RESULT_CODES, numbers);
        }
        maker.rounding = Some(rounding);
        fused.push(at);
    }
    fused
}

/// Wires a program for the CPU's kernels; steps that have nothing left to do lose theirs.
///
/// Without `fuses` only codes and bf16 are stored at once: what is rounded in f32 can still be
/// looked at before.
pub(crate) fn wire(
    program: &Program,
    values: &[Value],
    kernels: &mut [Kernel],
    uses: &Uses,
    pairs: &HashMap<usize, usize>,
    kept: &[usize],
    fuses: bool,
) -> Vec<Wiring> {
    let mut wirings: Vec<Wiring> =
        program.steps.iter().zip(&*kernels).map(|(step, kernel)| wiring(step, kernel)).collect();
    pairs::wire(pairs, kernels, &mut wirings);
    let rounding = |at: usize| match &kernels[at] {
        Kernel::FakeQuant { bits, segments, stored, .. } if fuses || *stored => {
            Some(ResultRounding::Codes { bits: *bits, sizes: segments.clone(), stored: *stored })
        }
        Kernel::RoundBf16 { stored, .. } if fuses || *stored => {
            Some(ResultRounding::Bf16 { stored: *stored })
        }
        _ => None,
    };
    let rounds_result = |maker: usize, rounding: &ResultRounding| {
        let traits = kernels[maker].traits();
        traits.rounds_result && !(traits.is_paired && rounding.segments() > 1)
    };
    let fusion =
        Fusion { rounding: &rounding, rounds_result: &rounds_result, keeps_distance: true };
    for at in fuse_roundings(program, values, uses, kept, &mut wirings, &fusion) {
        kernels[at] = Kernel::Nothing;
    }
    wirings
}

fn wiring(step: &Step, kernel: &Kernel) -> Wiring {
    let traits = kernel.traits();
    let mut wiring =
        Wiring { inputs: step.inputs.clone(), outputs: step.outputs.clone(), rounding: None };
    if traits.has_packed_weights {
        wiring.inputs[WEIGHTS] = None;
    }
    for (at, rounding) in CODES.into_iter().zip(traits.rounding_of_codes) {
        wiring.put(at, rounding.map(Some));
    }
    wiring
}
