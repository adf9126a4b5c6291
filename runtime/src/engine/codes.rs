//! Chooses the rounded activations that are stored as codes or as bf16, so that kernels for these
//! formats can multiply them.
//!
//! A plan expresses quantization in float. `FakeQuant` rounds an activation to the values of its
//! codes, constants hold codes of weights, and a product multiplies the two. If every product that
//! reads such an activation has an integer kernel for it, the activation is stored as codes, and
//! the products multiply integers. The result is the same up to the order of additions in f32. The
//! same is done with `RoundBf16` and constants of bf16 if the CPU multiplies bf16.

use super::kernel::Kernel;
use super::program::PreparedProgram;
use super::uses::Uses;
use super::values::{Value, segment_sizes};
use super::weights::Weights;
use super::wiring::ResultRounding;
use cqc_kernels::arena::cast;
use cqc_proto::op::operand::{CODES, QKV, RESULT_CODES, ROUNDING, SCALE, WEIGHTS, X};
use cqc_proto::op::{ConvLayout, SOFTMAX_BF16};
use cqc_proto::plan::{Alias, Plan, Program, ProgramKind, Source, Step, WeightCodes};
use cqc_proto::{DType, Op};
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

/// The kernels for codes that an executor has.
#[derive(Clone, Copy)]
pub(crate) struct CodeKernels<'a> {
    /// Whether there is a kernel for products over a number of taps and segments of the given
    /// sizes.
    pub products: &'a dyn Fn(usize, &[usize]) -> bool,
    /// Whether there are kernels for attention. Sizes that they do not support are found when
    /// kernels are chosen.
    pub attention: bool,
}

/// Whether there is a worthwhile kernel for products of bf16 over a number of channels and columns.
pub(crate) type Bf16Kernels<'a> = &'a dyn Fn(usize, usize) -> bool;

/// The formats other than f32 in which an executor stores activations. `None` stands for a format
/// that it does not use.
#[derive(Clone, Copy, Default)]
pub(crate) struct Storage<'a> {
    /// The type of codes, and the kernels for them.
    pub codes: Option<(DType, CodeKernels<'a>)>,
    pub bf16: Option<Bf16Kernels<'a>>,
}

/// Sets [`Value::stored_as`] of these activations. Values in `keep` are not changed.
pub(crate) fn choose_storage(
    weights: &Weights,
    kind: ProgramKind,
    values: &mut [Value],
    uses: &Uses,
    keep: &[usize],
    storage: Storage,
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
    let lasting: HashSet<usize> = keep.iter().copied().collect();
    let mut roundings = Roundings { weights, kind, known: HashMap::new() };
    for step in &program.steps {
        let v = step.outputs[0];
        if !uses.own(values, v) || aliased[v] || lasting.contains(&v) {
            continue;
        }
        let mut readers = uses.readers(v).iter().map(|&at| &program.steps[at]);
        let stored = match (&step.op, storage.codes, storage.bf16) {
            (Op::FakeQuant { segments, bits }, Some((dtype, kernels)), _) => {
                let sizes = segment_sizes(segments, &values[v]);
                let attention = kernels.attention && *bits <= 8 && sizes.len() == 1;
                let multiplied = |s: &Step| {
                    attention && attends(s, v, 1..=8)
                        || is_product_of_codes(
                            weights,
                            program,
                            values,
                            s,
                            v,
                            &sizes,
                            kernels.products,
                        )
                };
                (roundings.always_round(program, step) && readers.all(multiplied)).then_some(dtype)
            }
            (Op::RoundBf16, _, Some(has_kernel)) => {
                let multiplied = |s: &Step| {
                    attends(s, v, SOFTMAX_BF16..=SOFTMAX_BF16)
                        || is_product_of_bf16(weights.plan(), program, values, s, v, has_kernel)
                };
                readers.all(multiplied).then_some(DType::BF16)
            }
            _ => None,
        };
        values[v].stored_as = stored.or(values[v].stored_as);
    }
}

/// A value of a step that is stored as codes or bf16 although the step's kernel cannot read or
/// write that format. The reason is a size that [`choose_storage`] does not look at.
pub(crate) fn without_kernel(step: &Step, values: &[Value], kernel: &Kernel) -> Option<usize> {
    if kernel.traits().takes_narrow {
        return None;
    }
    let mut touched = step.outputs.iter().chain(step.inputs.iter().flatten());
    touched.find(|&&v| values[v].stored_as.is_some()).copied()
}

/// The constant with the weights of a product, and their codes.
pub(crate) fn weight_codes<'a>(
    plan: &'a Plan,
    program: &Program,
    step: &Step,
) -> Option<(usize, &'a WeightCodes)> {
    let weight = step.inputs.get(WEIGHTS).copied().flatten()?;
    let Source::Constant(constant) = program.values[weight].source else { return None };
    Some((constant, plan.constants[constant].codes.as_ref()?))
}

/// Whether constants and tables are valid scales and zero points of codes. Each is checked once.
struct Roundings<'a> {
    weights: &'a Weights,
    kind: ProgramKind,
    /// The results by source, for scales (`true`) and zero points (`false`).
    known: HashMap<(Source, bool), bool>,
}

impl Roundings<'_> {
    /// Whether every evaluation that runs the program rounds all segments, and all zero points are
    /// codes. A scale of 0 stands for a segment that is not rounded, which codes cannot represent.
    fn always_round(&mut self, program: &Program, step: &Step) -> bool {
        let [scale, zero_point] = ROUNDING;
        let mut all = |input: usize, is_scale: bool| {
            let Some(v) = step.inputs.get(input).copied().flatten() else { return false };
            let source = program.values[v].source;
            if let Some(&known) = self.known.get(&(source, is_scale)) {
                return known;
            }
            let fits = self.all_fit(source, if is_scale { self::is_scale } else { is_zero_point });
            self.known.insert((source, is_scale), fits);
            fits
        };
        all(scale, true) && all(zero_point, false)
    }

    /// Whether all numbers that the program reads from the source fit.
    fn all_fit(&self, source: Source, fits: fn(f32) -> bool) -> bool {
        let (plan, kind) = (self.weights.plan(), self.kind);
        let fit = |bytes: &[u8]| cast::<f32>(bytes).iter().all(|&x| fits(x));
        match source {
            Source::Constant(c) => fit(&self.weights.constant(c)),
            Source::Table(c) => {
                let bytes = self.weights.constant(c);
                let row = bytes.len() / plan.evaluations.max(1);
                (0..plan.evaluations)
                    .filter(|&e| plan.program_at(e) == kind)
                    .all(|e| fit(&bytes[e * row..][..row]))
            }
            _ => false,
        }
    }
}

/// Whether a zero point is a code, that is, a whole number from 0 to 255.
fn is_zero_point(zero: f32) -> bool {
    (0.0..=255.0).contains(&zero) && zero.fract() == 0.0
}

/// Whether codes can have that scale.
pub(crate) fn is_scale(scale: f32) -> bool {
    scale > 0.0
}

/// Whether the table `constant` holds scales of codes.
pub(crate) fn scales_codes(program: &PreparedProgram, constant: usize) -> bool {
    let of =
        |v: Option<usize>| v.is_some_and(|v| program.values[v].source == Source::Table(constant));
    program.steps.iter().any(|step| {
        let read = |i: usize| of(step.inputs.get(i).copied().flatten());
        let quantizes = matches!(step.kernel, Kernel::FakeQuant { stored: true, .. });
        let stores_codes =
            matches!(step.rounding, Some(ResultRounding::Codes { stored: true, .. }));
        quantizes && read(ROUNDING[0])
            || CODES.iter().any(|at| read(at[0]))
            || stores_codes && read(RESULT_CODES[0])
    })
}

/// Whether the step is attention whose softmax has `bits` bits, and reads `v` exactly once, as
/// queries, keys or values.
fn attends(step: &Step, v: usize, bits: RangeInclusive<u8>) -> bool {
    let Op::Attention { softmax_bits, .. } = step.op else { return false };
    if !bits.contains(&softmax_bits) {
        return false;
    }
    let reads = |range: &[Option<usize>]| range.iter().filter(|i| **i == Some(v)).count();
    reads(&step.inputs) == 1 && reads(&step.inputs[..QKV.len()]) == 1
}

/// Whether the step is a product that reads `v` as its only data operand and has an integer kernel.
fn is_product_of_codes(
    weights: &Weights,
    program: &Program,
    values: &[Value],
    step: &Step,
    v: usize,
    segments: &[usize],
    has_kernel: &dyn Fn(usize, &[usize]) -> bool,
) -> bool {
    let Some((_, codes)) = weight_codes(weights.plan(), program, step) else { return false };
    let Some(output_axis) = dense_output_axis(step) else { return false };
    let taps = match &step.op {
        Op::Conv { .. } => {
            values[step.inputs[WEIGHTS].expect("it has codes")].shape[2..].iter().product()
        }
        _ => 1,
    };
    let same =
        if codes.segments.is_empty() { segments.len() == 1 } else { codes.segments == segments };
    multiplies_once(step, v)
        && same
        && codes.output_axis == output_axis
        && has_kernel(taps, segments)
}

/// The axis of outputs in the weights of a product with one group of channels and channels last.
fn dense_output_axis(step: &Step) -> Option<usize> {
    let output_axis = step.op.traits().quantization.output_axis()?;
    match &step.op {
        Op::Conv { groups, layout, .. } if *groups != 1 || *layout != ConvLayout::ChannelsLast => {
            None
        }
        _ => Some(output_axis),
    }
}

/// Whether the step reads `v` once, as its operand 0.
fn multiplies_once(step: &Step, v: usize) -> bool {
    step.inputs.iter().filter(|i| **i == Some(v)).count() == 1 && step.inputs[X] == Some(v)
}

/// Whether the weights of a product with outputs along `output_axis` are bf16, or codes with one
/// scale per output, by which the sums can be multiplied.
fn has_weights_of_bf16(plan: &Plan, program: &Program, step: &Step, output_axis: usize) -> bool {
    let input = |i: usize| step.inputs.get(i).copied().flatten();
    let Some(Source::Constant(constant)) = input(WEIGHTS).map(|w| program.values[w].source) else {
        return false;
    };
    match &plan.constants[constant].codes {
        None => plan.constants[constant].ty.dtype == DType::BF16,
        Some(codes) => {
            codes.segments.len() <= 1 && codes.output_axis == output_axis && input(SCALE).is_none()
        }
    }
}

/// Whether the step is a product that reads `v` as its only data operand, has weights of bf16, and
/// has a kernel for them.
fn is_product_of_bf16(
    plan: &Plan,
    program: &Program,
    values: &[Value],
    step: &Step,
    v: usize,
    has_kernel: Bf16Kernels,
) -> bool {
    let columns = values[step.outputs[0]].cols;
    let has_weights =
        dense_output_axis(step).is_some_and(|axis| has_weights_of_bf16(plan, program, step, axis));
    has_weights && multiplies_once(step, v) && has_kernel(values[v].cols, columns)
}
