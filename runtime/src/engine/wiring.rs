//! The values that the steps of a program read and write when they run. These may differ from the
//! plan: a step may round its result while it stores it, if only a rounding reads the result, and
//! that rounding then has nothing to do. Every executor wires its programs here, and describes the
//! abilities of its kernels with [`Fusion`].

use super::kernel::Kernel;
use super::pairs;
use super::uses::Uses;
use super::values::Value;
use cqc_proto::op::operand::{CODES, RESULT_CODES, ROUNDING, WEIGHTS, X};
use cqc_proto::plan::{Program, Source, Step};
use std::collections::{HashMap, HashSet};

/// The rounding of a result, which is stored as codes or bf16, or as the f32 values of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResultRounding {
    /// Rounds to codes of `bits` bits, per segment of the last axis (`sizes`), with the scale and
    /// the zero point in the operands [`RESULT_CODES`].
    Codes { bits: u8, sizes: Vec<usize>, stored: bool },
    /// Rounds to bf16.
    Bf16 { stored: bool },
}

impl ResultRounding {
    /// The number of segments of the last axis that are rounded separately.
    pub fn segments(&self) -> usize {
        if let ResultRounding::Codes { sizes, .. } = self { sizes.len() } else { 1 }
    }
}

/// The values that a step reads and writes. A step without outputs has nothing to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wiring {
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<usize>,
    /// The rounding of the result before it is stored.
    pub rounding: Option<ResultRounding>,
}

impl Wiring {
    /// Sets the inputs at two positions.
    pub fn put(&mut self, at: [usize; 2], values: [Option<usize>; 2]) {
        self.inputs.resize(self.inputs.len().max(at[1] + 1), None);
        self.inputs[at[0]] = values[0];
        self.inputs[at[1]] = values[1];
    }
}

/// The abilities of an executor to fuse roundings. Steps are identified by their index.
pub(crate) struct Fusion<'a> {
    /// The rounding of a step, if the step does nothing else and another step may do it instead.
    pub rounding: &'a dyn Fn(usize) -> Option<ResultRounding>,
    /// Whether the kernel of a step can round its result in that way.
    pub rounds_result: &'a dyn Fn(usize, &ResultRounding) -> bool,
    /// Whether a kernel was chosen for the distance between the rows of its own result.
    pub keeps_distance: bool,
}

/// The step of each value that is the only result of a step.
pub(crate) fn sole_makers(wirings: &[Wiring]) -> HashMap<usize, usize> {
    let sole = |(at, wiring): (usize, &Wiring)| match wiring.outputs[..] {
        [v] => Some((v, at)),
        _ => None,
    };
    wirings.iter().enumerate().filter_map(sole).collect()
}

/// Fuses each rounding with the step before it, if only the rounding reads that step's result.
/// Values in `kept` are not changed. Returns the roundings that have nothing left to do.
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
        // an operand that an earlier step is to read must exist by then
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

/// Wires a program for the kernels of the CPU. Steps that have nothing left to do lose their
/// kernels.
///
/// Without `fuses`, only roundings whose results are stored as codes or bf16 are fused, so that
/// values that are rounded in f32 can still be watched before the rounding.
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
