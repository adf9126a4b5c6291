//! Which rounded activations are stored as codes or as bf16, so that kernels for these multiply them.
//!
//! A plan says what quantized layers compute: `FakeQuant` rounds an activation to what its codes stand for, constants hold codes of weights, and a
//! product multiplies the two. Where all products that read such an activation have an integer kernel for it, the activation is stored as codes
//! instead, and the products multiply integers: the same result up to the order of additions in f32. Likewise `RoundBf16` and constants of bf16, where the
//! CPU multiplies bf16.

use super::kernel::{CODES, Kernel, RESULT_CODES};
use super::pairs;
use super::program::{Ready, Rounds, Wiring};
use super::values::Value;
use super::weights::Weights;
use cqc_kernels::arena::cast;
use cqc_proto::op::{ConvLayout, SOFTMAX_BF16};
use cqc_proto::plan::{Alias, Plan, Program, ProgramKind, Source, Step, WeightCodes};
use cqc_proto::{DType, Op};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// What has kernels for codes.
#[derive(Clone, Copy)]
pub(crate) struct Takes<'a> {
    /// Whether products over so many taps and segments of such sizes have.
    pub products: &'a dyn Fn(usize, &[usize]) -> bool,
    /// Whether attention has; those sizes that it has not are found when kernels are chosen.
    pub attention: bool,
}

/// Whether products of bf16 over so many channels and columns have a kernel that is worth it.
pub(crate) type TakesBf16<'a> = &'a dyn Fn(usize, usize) -> bool;

/// How codes are stored, and which of them have kernels.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    pub dtype: DType,
    pub takes: Takes<'a>,
}

/// Sets [`Value::codes`] of those activations. Values in `keep` stay as they are.
pub(crate) fn choose(
    weights: &Weights,
    kind: ProgramKind,
    values: &mut [Value],
    keep: &[usize],
    codes: Option<Codes>,
    bf16: Option<TakesBf16>,
) {
    if !kind.is_step() {
        return;
    }
    let program = weights.plan().program(kind);
    let mut aliased = vec![false; values.len()];
    for value in &program.values {
        if let Some(Alias::Same { of } | Alias::Columns { of, .. }) = &value.alias {
            aliased[*of] = true;
        }
    }
    for step in &program.steps {
        let v = step.outputs[0];
        let own = values.iter().filter(|other| other.home == v).count() == 1 && values[v].home == v && !aliased[v];
        let mut readers = program.steps.iter().filter(|s| s.inputs.contains(&Some(v)));
        let lasts = keep.contains(&v) || program.results.contains(&v);
        if !own || lasts {
            continue;
        }
        let stored = match (&step.op, codes, bf16) {
            (Op::FakeQuant { segments, bits }, Some(Codes { dtype, takes }), _) => {
                let sizes = sizes(segments, &values[v]);
                let attention = takes.attention && *bits <= 8 && sizes.len() == 1;
                let multiplied = |s: &Step| {
                    attention && attends(s, v, 1..=8)
                        || is_product_of_codes(weights, program, values, s, v, &sizes, takes.products)
                };
                (always_rounds(weights, kind, program, step) && readers.all(multiplied)).then_some(dtype)
            }
            (Op::RoundBf16, _, Some(takes)) => {
                let multiplied = |s: &Step| {
                    attends(s, v, SOFTMAX_BF16..=SOFTMAX_BF16)
                        || is_product_of_bf16(weights.plan(), program, values, s, v, takes)
                };
                readers.all(multiplied).then_some(DType::BF16)
            }
            _ => None,
        };
        values[v].codes = stored.or(values[v].codes);
    }
}

/// A value stored as codes that some step cannot write or read as such: a size the rules above do not look at is in the way.
pub(crate) fn misplaced(program: &Program, values: &[Value], kernels: &[Kernel]) -> Option<usize> {
    let coded = |v: &&usize| values[**v].codes.is_some();
    program.steps.iter().zip(kernels).find_map(|(step, kernel)| match kernel {
        Kernel::Quantize { .. }
        | Kernel::ConvCodes { .. }
        | Kernel::LinearCodes { .. }
        | Kernel::AttentionCodes { .. } => None,
        Kernel::RoundBf16 { .. } | Kernel::ConvBf16 { .. } | Kernel::LinearBf16 { .. } | Kernel::AttentionBf16(_) => {
            None
        }
        _ => step.outputs.iter().chain(step.inputs.iter().flatten()).find(coded).copied(),
    })
}

/// What the steps read and write, and which of them do more at once: linear layers their GEGLU (`pairs`), and what a product or a normalisation computes for a rounding alone is rounded
/// before it is stored, and the step that would round it has nothing left to do.
///
/// Without `fuses` only codes and bf16 are stored at once: what is rounded in f32 can still be looked at before.
pub(crate) fn wire(
    program: &Program,
    values: &[Value],
    kernels: &mut [Kernel],
    pairs: &HashMap<usize, usize>,
    kept: &[usize],
    fuses: bool,
) -> Vec<Wiring> {
    let mut wirings: Vec<Wiring> =
        program.steps.iter().zip(&*kernels).map(|(step, kernel)| wiring(step, kernel)).collect();
    pairs::wire(pairs, kernels, &mut wirings);
    for (at, rounding) in program.steps.iter().enumerate() {
        let rounds = match &kernels[at] {
            Kernel::Quantize { bits, segments, .. } => {
                Rounds::Codes { bits: *bits, sizes: segments.clone(), stored: true }
            }
            Kernel::FakeQuant { bits, segments, .. } if fuses => {
                Rounds::Codes { bits: *bits, sizes: segments.clone(), stored: false }
            }
            Kernel::RoundBf16 { stored, .. } if fuses || *stored => Rounds::Bf16 { stored: *stored },
            _ => continue,
        };
        let (Some(x), y) = (rounding.inputs[0], rounding.outputs[0]) else { continue };
        let readers = program.steps.iter().flat_map(|s| s.inputs.iter().flatten()).filter(|v| **v == x).count();
        let own = values.iter().filter(|v| v.home == x).count() == 1 && values[x].home == x && !kept.contains(&x);
        let same = values[x].ld == values[y].ld;
        let Some(maker) = wirings.iter().position(|wiring| wiring.outputs == [x]) else { continue };
        let in_segments = matches!(&rounds, Rounds::Codes { sizes, .. } if sizes.len() > 1);
        if readers != 1 || !own || !same || !stores_codes(&kernels[maker]) || in_segments && kernels[maker].is_paired()
        {
            continue;
        }
        let maker = &mut wirings[maker];
        maker.outputs = vec![y];
        if let Rounds::Codes { .. } = rounds {
            put(&mut maker.inputs, RESULT_CODES, [rounding.inputs[1], rounding.inputs[2]]);
        }
        maker.rounds = Some(rounds);
        kernels[at] = Kernel::Nothing;
        wirings[at] = Wiring { inputs: vec![], outputs: vec![], rounds: None };
    }
    wirings
}

fn wiring(step: &Step, kernel: &Kernel) -> Wiring {
    let mut inputs = step.inputs.clone();
    if kernel.has_packed() {
        inputs[1] = None;
    }
    for (at, rounding) in CODES.into_iter().zip(kernel.rounding_of_codes()) {
        put(&mut inputs, at, rounding.map(Some));
    }
    Wiring { inputs, outputs: step.outputs.clone(), rounds: None }
}

/// Sets two inputs.
fn put(inputs: &mut Vec<Option<usize>>, at: [usize; 2], values: [Option<usize>; 2]) {
    inputs.resize(inputs.len().max(at[1] + 1), None);
    inputs[at[0]] = values[0];
    inputs[at[1]] = values[1];
}

/// Whether the kernel can store codes and bf16.
fn stores_codes(kernel: &Kernel) -> bool {
    use Kernel as K;
    matches!(
        kernel,
        K::Conv { .. }
            | K::Linear { .. }
            | K::ConvCodes { .. }
            | K::LinearCodes { .. }
            | K::AttentionCodes { .. }
            | K::ConvBf16 { .. }
            | K::LinearBf16 { .. }
            | K::AttentionBf16(_)
            | K::GroupNorm { .. }
            | K::LayerNorm { .. }
            | K::RmsNorm { .. }
    )
}

/// The sizes of segments of the last axis.
pub(crate) fn sizes(segments: &[usize], value: &Value) -> Vec<usize> {
    if segments.is_empty() { vec![value.cols] } else { segments.to_vec() }
}

/// The codes of a product's weights.
pub(crate) fn weight_codes<'a>(plan: &'a Plan, program: &Program, step: &Step) -> Option<(usize, &'a WeightCodes)> {
    let weight = step.inputs.get(1).copied().flatten()?;
    let Source::Constant(constant) = program.values[weight].source else { return None };
    Some((constant, plan.constants[constant].codes.as_ref()?))
}

/// Whether no evaluation that runs the program lets a segment pass, which codes could not say, and all zero points are codes.
fn always_rounds(weights: &Weights, kind: ProgramKind, program: &Program, step: &Step) -> bool {
    let plan = weights.plan();
    let all = |input: usize, fits: fn(f32) -> bool| {
        let Some(v) = step.inputs.get(input).copied().flatten() else { return false };
        let fit = |bytes: &[u8]| cast::<f32>(bytes).iter().all(|&x| fits(x));
        match program.values[v].source {
            Source::Constant(c) => fit(&weights.constant(c)),
            Source::Table(c) => {
                let bytes = weights.constant(c);
                let row = bytes.len() / plan.evaluations.max(1);
                (0..plan.evaluations).filter(|&e| plan.program_at(e) == kind).all(|e| fit(&bytes[e * row..][..row]))
            }
            _ => false,
        }
    };
    all(1, is_scale) && all(2, |zero| (0.0..=255.0).contains(&zero) && zero.fract() == 0.0)
}

/// Whether codes can have that scale.
pub(crate) fn is_scale(scale: f32) -> bool {
    scale > 0.0
}

/// Whether the table `constant` has scales of codes.
pub(crate) fn scales_codes(ready: &Ready, constant: usize) -> bool {
    let of = |v: Option<usize>| v.is_some_and(|v| ready.values[v].source == Source::Table(constant));
    ready.steps.iter().any(|step| {
        let read = |i: usize| of(step.inputs.get(i).copied().flatten());
        (matches!(step.kernel, Kernel::Quantize { .. }) && read(1))
            || CODES.iter().any(|at| read(at[0]))
            || (read(RESULT_CODES[0]) && matches!(step.rounds, Some(Rounds::Codes { stored: true, .. })))
    })
}

/// Whether the step is attention with weights of so many bits that reads `v` once, as queries, keys or values.
fn attends(step: &Step, v: usize, bits: RangeInclusive<u8>) -> bool {
    let Op::Attention { softmax_bits, .. } = step.op else { return false };
    if !bits.contains(&softmax_bits) {
        return false;
    }
    let reads = |range: &[Option<usize>]| range.iter().filter(|i| **i == Some(v)).count();
    reads(&step.inputs) == 1 && reads(&step.inputs[..3]) == 1
}

/// Whether the step multiplies `v`, and only that, with integers that have a kernel.
fn is_product_of_codes(
    weights: &Weights,
    program: &Program,
    values: &[Value],
    step: &Step,
    v: usize,
    segments: &[usize],
    takes: &dyn Fn(usize, &[usize]) -> bool,
) -> bool {
    let Some((_, codes)) = weight_codes(weights.plan(), program, step) else { return false };
    let w = &values[step.inputs[1].expect("it has codes")];
    let once = step.inputs.iter().filter(|i| **i == Some(v)).count() == 1 && step.inputs[0] == Some(v);
    let (taps, output_axis) = match &step.op {
        Op::Linear { .. } => (1, 1),
        Op::Conv { groups: 1, layout: ConvLayout::ChannelsLast, .. } => (w.shape[2..].iter().product(), 0),
        _ => return false,
    };
    let same = if codes.segments.is_empty() { segments.len() == 1 } else { codes.segments == segments };
    once && same && codes.output_axis == output_axis && takes(taps, segments)
}

/// Whether the weights of a product are numbers of bf16: as they stand, or codes with one scale per output, by which the sums can be multiplied.
fn has_weights_of_bf16(plan: &Plan, program: &Program, step: &Step) -> bool {
    let input = |i: usize| step.inputs.get(i).copied().flatten();
    let Some(Source::Constant(constant)) = input(1).map(|weight| program.values[weight].source) else { return false };
    let output_axis = if matches!(step.op, Op::Linear { .. }) { 1 } else { 0 };
    match &plan.constants[constant].codes {
        None => plan.constants[constant].ty.dtype == DType::BF16,
        Some(codes) => codes.segments.len() <= 1 && codes.output_axis == output_axis && input(6).is_none(),
    }
}

/// Whether the step multiplies `v`, and only that, by weights that are bf16, with a kernel for it.
fn is_product_of_bf16(
    plan: &Plan,
    program: &Program,
    values: &[Value],
    step: &Step,
    v: usize,
    takes: TakesBf16,
) -> bool {
    let dense = matches!(step.op, Op::Linear { .. } | Op::Conv { groups: 1, layout: ConvLayout::ChannelsLast, .. });
    let once = step.inputs.iter().filter(|i| **i == Some(v)).count() == 1 && step.inputs[0] == Some(v);
    let columns = values[step.outputs[0]].cols;
    dense && once && has_weights_of_bf16(plan, program, step) && takes(values[v].cols, columns)
}
