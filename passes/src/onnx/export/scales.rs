//! The forms in which rounding is written: types of codes, scales and zero points of activations.

use crate::calib::range::ClippingRange;
use cqc_proto::{DType, Tensor};

/// The form in which the rounding of a quantized plan is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qdq {
    /// Rounding is left out, and the models are float.
    None,
    /// The form for ONNX Runtime on CPUs: activations of type u8 with a zero point, weights of type
    /// s8, and weights of 4 bits as INT4. Values that are rounded to bf16 are cast to BFLOAT16 and
    /// back, here as for TensorRT.
    Ort(Scales),
    /// The form for TensorRT: activations and weights of type s8 without zero points, and constant
    /// scales.
    Trt,
}

impl Default for Qdq {
    fn default() -> Qdq {
        Qdq::Ort(Scales::Table)
    }
}

/// The dependence of the scales of activations on the evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// As calibrated: tables that are indexed by the number of the evaluation.
    Table,
    /// Each scale is constant: it is that of the smallest range that covers the ranges of all
    /// evaluations; see [`conservative`].
    Constant,
}

/// Scale and zero point of a segment by evaluation, for codes 0 to 255.
pub(super) struct Rows {
    pub scale: Vec<f32>,
    pub zero: Vec<f32>,
    /// The evaluations that read it.
    pub runs: Vec<usize>,
}

/// Scale and zero point as constants: one number, or a table by evaluation. The codes have the type
/// of the zero point.
#[derive(Debug)]
pub(super) struct Written {
    pub scale: Tensor,
    pub zero: Tensor,
}

impl Rows {
    /// The written form; `None` if nothing is rounded.
    ///
    /// # Errors
    /// Some evaluations round the segment, and others do not.
    pub fn written(&self, qdq: Qdq) -> Result<Option<Written>, String> {
        let rounds = |&&e: &&usize| self.scale[e] != 0.0;
        let Some(first) = self.runs.iter().find(rounds) else { return Ok(None) };
        if let Some(e) = self.runs.iter().find(|&&e| self.scale[e] == 0.0) {
            return Err(format!("evaluation {e} does not round it, evaluation {first} does"));
        }
        let constant = |scale: f32, dtype: DType, zero: u8| {
            let zero = Tensor::new(dtype, vec![], vec![zero]).expect("a byte");
            Ok(Some(Written { scale: Tensor::from_f32(&[], &[scale]), zero }))
        };
        match qdq {
            Qdq::None => Ok(None),
            Qdq::Trt => {
                let ClippingRange { low, high } = covering(&self.scale, &self.zero);
                constant(low.abs().max(high) / 127.0, DType::I8, 0)
            }
            Qdq::Ort(Scales::Constant) => {
                let (scale, zero) = conservative(&self.scale, &self.zero);
                constant(scale, DType::U8, zero)
            }
            Qdq::Ort(Scales::Table) => {
                let row = |e: usize| (self.scale[e], self.zero[e]);
                if self.runs.iter().all(|&e| row(e) == row(*first)) {
                    return constant(self.scale[*first], DType::U8, self.zero[*first] as u8);
                }
                let zero: Vec<u8> = self.zero.iter().map(|&z| z as u8).collect();
                let count = zero.len();
                let zero = Tensor::new(DType::U8, vec![count], zero).expect("a byte each");
                Ok(Some(Written { scale: Tensor::from_f32(&[count], &self.scale), zero }))
            }
        }
    }
}

/// The scale and the zero point of the smallest range, including 0, that covers the ranges of all
/// evaluations. A scale of 0 has no range.
pub fn conservative(scale: &[f32], zero: &[f32]) -> (f32, u8) {
    covering(scale, zero).parameters(8)
}

fn covering(scale: &[f32], zero: &[f32]) -> ClippingRange {
    let ranges = scale.iter().zip(zero).map(|(&s, &z)| ClippingRange::new(-z * s, (255.0 - z) * s));
    ranges.fold(ClippingRange::new(0.0, 0.0), ClippingRange::union)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(scale: &[f32], zero: &[f32]) -> Rows {
        Rows { scale: scale.to_vec(), zero: zero.to_vec(), runs: (0..scale.len()).collect() }
    }

    #[test]
    fn a_constant_range_covers_all_evaluations_that_have_one() {
        // 0 to 2.55, -2.55 to 0, none
        let (scale, zero) = conservative(&[0.01, 0.01, 0.0], &[0.0, 255.0, 0.0]);
        assert!((scale - 0.02).abs() < 1e-6);
        assert_eq!(zero, 128);
        let symmetric = rows(&[0.01, 0.01], &[0.0, 155.0]).written(Qdq::Trt).unwrap().unwrap();
        assert_eq!(symmetric.scale.to_f32_vec(), [2.55 / 127.0]);
        assert_eq!(symmetric.zero.dtype(), DType::I8);
    }

    #[test]
    fn tables_are_written_where_evaluations_differ() {
        let table =
            |rows: Rows| rows.written(Qdq::default()).map(|w| w.map(|w| w.scale.shape().to_vec()));
        assert_eq!(table(rows(&[0.5, 0.25], &[0.0, 0.0])), Ok(Some(vec![2])));
        assert_eq!(table(rows(&[0.5, 0.5], &[3.0, 3.0])), Ok(Some(vec![])));
        assert_eq!(table(rows(&[0.0, 0.0], &[0.0, 0.0])), Ok(None));
        let cached = Rows { runs: vec![1], ..rows(&[0.0, 0.5, 0.0], &[0.0; 3]) };
        assert_eq!(table(cached), Ok(Some(vec![])));
        assert!(table(rows(&[0.5, 0.0], &[0.0, 0.0])).is_err());
    }
}
