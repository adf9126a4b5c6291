//! Quantized weights.

use crate::calib::range::symmetric_scale;
use cqc_proto::{DType, Tensor};

/// Weights as signed integers, with one scale per output channel and segment of the inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeight {
    /// The float weights.
    pub float: Tensor,
    /// The codes, i8 in the shape of the weights.
    pub codes: Tensor,
    /// The scales, f32 `[outputs, segments]`.
    pub scale: Tensor,
    /// Bits of a code, one of [`WEIGHT_BITS`](cqc_proto::op::WEIGHT_BITS).
    pub bits: u8,
    /// Axis of the outputs: 0 in a convolution, 1 in a linear layer.
    pub output_axis: usize,
    /// Sizes of the segments of the inputs; empty for one segment.
    pub segments: Vec<usize>,
}

/// The places of the weights `(output, input, rest)` in memory.
#[derive(Clone, Copy, Debug)]
pub struct WeightLayout {
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of taps of the kernel.
    pub rest: usize,
    output_axis: usize,
}

impl WeightLayout {
    /// The layout of weights of this shape, `[outputs, inputs, …]` or with the first two axes
    /// swapped.
    pub fn new(shape: &[usize], output_axis: usize) -> WeightLayout {
        let rest = shape[2..].iter().product();
        WeightLayout {
            outputs: shape[output_axis],
            inputs: shape[1 - output_axis],
            rest,
            output_axis,
        }
    }

    /// Position of a weight.
    pub fn at(&self, output: usize, input: usize, rest: usize) -> usize {
        let (i, j, width) = if self.output_axis == 0 {
            (output, input, self.inputs)
        } else {
            (input, output, self.outputs)
        };
        (i * width + j) * self.rest + rest
    }
}

impl QuantizedWeight {
    /// Rounds weights to the nearest code, with scales from a search for the best range.
    pub fn nearest(
        weight: &Tensor,
        output_axis: usize,
        segments: &[usize],
        bits: u8,
    ) -> QuantizedWeight {
        let layout = WeightLayout::new(weight.shape(), output_axis);
        let values = weight.to_f32_vec();
        let sizes = if segments.is_empty() { vec![layout.inputs] } else { segments.to_vec() };
        let (mut codes, mut scales) =
            (vec![0i8; values.len()], Vec::with_capacity(layout.outputs * sizes.len()));
        let most = f32::from((1i16 << (bits - 1)) - 1);
        for output in 0..layout.outputs {
            let mut start = 0;
            for &n in &sizes {
                let places = || {
                    (start..start + n)
                        .flat_map(|i| (0..layout.rest).map(move |r| layout.at(output, i, r)))
                };
                let own: Vec<f32> = places().map(|at| values[at]).collect();
                let scale = symmetric_scale(&own, u32::from(bits));
                let inverse = 1.0 / scale;
                places().for_each(|at| {
                    codes[at] = (values[at] * inverse).round_ties_even().clamp(-most, most) as i8
                });
                scales.push(scale);
                start += n;
            }
        }
        QuantizedWeight {
            float: weight.clone(),
            codes: tensor(weight.shape(), &codes),
            scale: Tensor::from_f32(&[layout.outputs, sizes.len()], &scales),
            bits,
            output_axis,
            segments: segments.to_vec(),
        }
    }

    /// The codes, in the order of the weights.
    pub fn code_values(&self) -> Vec<i8> {
        self.codes.bytes().iter().map(|&b| b as i8).collect()
    }

    /// The same weights with other codes.
    ///
    /// # Panics
    /// If their number differs.
    pub fn with_codes(&self, codes: &[i8]) -> QuantizedWeight {
        QuantizedWeight { codes: tensor(self.codes.shape(), codes), ..self.clone() }
    }
}

fn tensor(shape: &[usize], codes: &[i8]) -> Tensor {
    let bytes: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
    Tensor::new(DType::I8, shape.to_vec(), bytes).expect("a code per weight")
}
