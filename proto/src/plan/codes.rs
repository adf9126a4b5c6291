//! Quantized constants: the codes of their values, and how codes are packed into bytes.

use serde::{Deserialize, Serialize};

/// The encoding of a quantized constant: signed integers with `value = code · scale`
/// ([`Op::DequantizeWeight`](crate::Op::DequantizeWeight)). The type of the constant is f32.
///
/// With 8 bits a code is one byte. With 4 bits two codes share a byte, the first one in the low
/// half. Codes are in two's complement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightCodes {
    /// The number of bits, one of [`WEIGHT_BITS`](crate::op::WEIGHT_BITS).
    pub bits: u8,
    /// The scales, `Plan::constants[scale]`, in f32 `[outputs, segments]`.
    pub scale: usize,
    /// The axis of outputs, 0 or 1. The other one of these two axes is that of inputs.
    pub output_axis: usize,
    /// The sizes of the segments of the axis of inputs. An empty list stands for one segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<usize>,
}

impl WeightCodes {
    /// Packs codes, which must fit into `bits` bits, into bytes.
    pub fn pack(bits: u8, codes: &[i8]) -> Vec<u8> {
        match bits {
            4 => codes
                .chunks(2)
                .map(|pair| pair[0] as u8 & 15 | pair.get(1).map_or(0, |&c| (c as u8) << 4))
                .collect(),
            _ => codes.iter().map(|&c| c as u8).collect(),
        }
    }

    /// The first `count` codes of packed bytes, which must hold that many.
    pub fn unpack(&self, stored: &[u8], count: usize) -> Vec<i8> {
        match self.bits {
            // shifts the code to the upper half and back, which extends its sign
            4 => (0..count).map(|at| ((stored[at / 2] << (4 * (1 - at % 2))) as i8) >> 4).collect(),
            _ => stored[..count].iter().map(|&c| c as i8).collect(),
        }
    }

    /// The values of a constant of the given shape. `scale` is `[outputs, segments]`.
    pub fn values(&self, shape: &[usize], stored: &[u8], scale: &[f32]) -> Vec<f32> {
        let sizes = if self.segments.is_empty() {
            vec![shape[1 - self.output_axis]]
        } else {
            self.segments.clone()
        };
        let segments: Vec<usize> =
            sizes.iter().enumerate().flat_map(|(s, &n)| std::iter::repeat_n(s, n)).collect();
        let rest: usize = shape[2..].iter().product();
        let codes = self.unpack(stored, shape.iter().product());
        let mut values = Vec::with_capacity(codes.len());
        for (i, j) in (0..shape[0]).flat_map(|i| (0..shape[1]).map(move |j| (i, j))) {
            let (output, input) = if self.output_axis == 0 { (i, j) } else { (j, i) };
            let scale = scale[output * sizes.len() + segments[input]];
            let first = values.len();
            values.extend(codes[first..first + rest].iter().map(|&code| f32::from(code) * scale));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_come_back_with_their_sign() {
        let how = WeightCodes { bits: 4, scale: 0, output_axis: 0, segments: vec![] };
        for codes in [vec![-8, 7, 0, -1, 5], vec![1], vec![]] {
            let packed = WeightCodes::pack(4, &codes);
            assert_eq!(packed.len(), codes.len().div_ceil(2));
            assert_eq!(how.unpack(&packed, codes.len()), codes);
        }
    }

    #[test]
    fn scales_belong_to_outputs_and_segments() {
        let scale = [1.0, 10.0, 100.0, 1000.0];
        let conv = WeightCodes { bits: 8, scale: 0, output_axis: 0, segments: vec![1, 2] };
        assert_eq!(
            conv.values(&[2, 3], &[1, 1, 1, 1, 1, 255], &scale),
            [1.0, 10.0, 10.0, 100.0, 1000.0, -1000.0]
        );
        let linear = WeightCodes { output_axis: 1, ..conv };
        assert_eq!(
            linear.values(&[3, 2], &[1; 6], &scale),
            [1.0, 100.0, 10.0, 1000.0, 10.0, 1000.0]
        );
    }
}
