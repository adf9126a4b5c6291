//! Quantization.

use super::Call;
use super::lane::{Lane, by_float};
use super::reduce::limits;
use super::walk::around;
use cqc_proto::dtype::DType;
use cqc_proto::op::Op;
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Tensor {
    let (x, scale) = (call.input(0).dtype(), call.input(1).dtype());
    match call.op {
        Op::Quantize { axis, block, .. } => {
            let computed = if x == DType::F64 { x } else { scale };
            by_float!(computed, T => quantize::<T>(call, &Scales::new(call, *axis, *block)))
        }
        Op::Dequantize { axis, block, .. } => {
            by_float!(scale, T => dequantize::<T>(call, &Scales::new(call, *axis, *block)))
        }
        _ => unreachable!("dispatched by reference::eval"),
    }
}

/// Which scale belongs to which element.
struct Scales {
    /// Size of the axis, elements after it, elements that share a scale along it, scales along it.
    along: Option<(usize, usize, usize, usize)>,
    /// Blocked scales differ along the other axes too.
    blocked: bool,
}

impl Scales {
    fn new(call: &Call, axis: Option<usize>, block: usize) -> Scales {
        let along = axis.map(|axis| {
            let (_, n, inner) = around(&call.out().shape, axis);
            (n, inner, block.max(1), n.div_ceil(block.max(1)))
        });
        Scales { along, blocked: block != 0 }
    }

    /// Position of the scale of element `i`.
    fn of(&self, i: usize) -> usize {
        let Some((n, inner, block, blocks)) = self.along else { return 0 };
        let place = i / inner % n / block;
        if self.blocked { (i / inner / n * blocks + place) * inner + i % inner } else { place }
    }
}

fn quantize<T: Lane>(call: &Call, scales: &Scales) -> Tensor {
    let (x, scale) = (T::load(call.input(0)), T::load(call.input(1)));
    let zeros = call.optional(2).map(Tensor::to_i64_vec);
    let (lowest, highest) = limits::<f64>(call.out().dtype);
    let code = |(i, x): (usize, &T)| {
        let s = scales.of(i);
        let steps = x.div(scale[s]).to_f64().round_ties_even();
        let zero = zeros.as_ref().map_or(0.0, |z| z[s] as f64);
        (if steps.is_nan() { zero } else { steps + zero }).clamp(lowest, highest)
    };
    call.out().of(&x.iter().enumerate().map(code).collect::<Vec<f64>>())
}

fn dequantize<T: Lane>(call: &Call, scales: &Scales) -> Tensor {
    let (x, scale) = (call.input(0).to_i64_vec(), T::load(call.input(1)));
    let zeros = call.optional(2).map(Tensor::to_i64_vec);
    let value = |(i, x): (usize, &i64)| {
        let s = scales.of(i);
        let steps = x - zeros.as_ref().map_or(0, |z| z[s]);
        T::from_f64(steps as f64).mul(scale[s])
    };
    call.out().of(&x.iter().enumerate().map(value).collect::<Vec<T>>())
}

pub(super) fn eval_fake(call: &Call) -> Tensor {
    match call.op {
        Op::FakeQuant { bits, segments } => fake_quant(call, *bits, segments),
        Op::DequantizeWeight { output_axis, segments, .. } => {
            dequantize_weight(call, *output_axis, segments)
        }
        Op::RoundBf16 => {
            let rounded: Vec<f32> =
                f32::load(call.input(0)).iter().map(|&x| nearest_bf16(x)).collect();
            call.out().of(&rounded)
        }
        _ => unreachable!("dispatched by reference::eval"),
    }
}

/// The segment of each place of an axis of `size`.
fn segment_of(segments: &[usize], size: usize) -> Vec<usize> {
    match segments {
        [] => vec![0; size],
        _ => segments.iter().enumerate().flat_map(|(s, &n)| std::iter::repeat_n(s, n)).collect(),
    }
}

fn fake_quant(call: &Call, bits: u8, segments: &[usize]) -> Tensor {
    let [x, scale, zero] = [0, 1, 2].map(|i| f32::load(call.input(i)));
    let columns = call.out().shape.last().copied().unwrap_or(1);
    let of = segment_of(segments, columns);
    let value = |(i, &x): (usize, &f32)| match of[i % columns] {
        s if scale[s] == 0.0 => x,
        s => fake_quant_one(x, scale[s], zero[s], bits),
    };
    call.out().of(&x.iter().enumerate().map(value).collect::<Vec<f32>>())
}

/// `(q − zero) · scale` with `q = clamp(round(x / scale) + zero, 0, 2^bits − 1)`; NaN gives q = 0.
fn fake_quant_one(x: f32, scale: f32, zero: f32, bits: u8) -> f32 {
    let (low, high) = (-zero, ((1u32 << bits) - 1) as f32 - zero);
    // the bounds are whole, so that rounding after the clamp is the same
    let steps = x * (1.0 / scale);
    let steps = if steps > low { steps } else { low };
    // integers have no −0
    ((if steps < high { steps } else { high }).round_ties_even() + 0.0) * scale
}

/// The nearest bf16, ties to even, as f32; a NaN stays one.
#[inline]
pub(crate) fn nearest_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

fn dequantize_weight(call: &Call, output_axis: usize, segments: &[usize]) -> Tensor {
    let (codes, scale) = (call.input(0).to_i64_vec(), f32::load(call.input(1)));
    let shape = &call.out().shape;
    let rest: usize = shape[2..].iter().product();
    let of = segment_of(segments, shape[1 - output_axis]);
    let count = segments.len().max(1);
    let value = |(i, &code): (usize, &i64)| {
        let places = [i / rest / shape[1], i / rest % shape[1]];
        code as f32 * scale[places[output_axis] * count + of[places[1 - output_axis]]]
    };
    call.out().of(&codes.iter().enumerate().map(value).collect::<Vec<f32>>())
}
