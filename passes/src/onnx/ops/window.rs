//! Window functions. They become constants, because their size is known.

use super::*;
use crate::onnx::tensors::{self, from_floats};
use std::f64::consts::TAU;

pub(super) const TABLE: Table = &[
    ("HannWindow", |cx, c| cosines(cx, c, &[0.5, -0.5])),
    ("HammingWindow", |cx, c| cosines(cx, c, &[25.0 / 46.0, -21.0 / 46.0])),
    ("BlackmanWindow", |cx, c| cosines(cx, c, &[0.42, -0.5, 0.08])),
];

/// `Σ weights[k] · cos(2π k n / size)`, or over `size − 1` if the window is not periodic.
fn cosines(cx: &mut Cx, c: &Call, weights: &[f64]) -> Done {
    let size = cx.static_ints(c.input(0, "size")?, "size")?;
    let n = match size[..] {
        [n] if (0..1 << 25).contains(&n) => n as usize,
        _ => return malformed(format!("`size` is {size:?}")),
    };
    let dtype = match tensors::dtype(i32::try_from(c.int("output_datatype", 1)?).unwrap_or(0)) {
        Ok(dtype) if dtype.is_float() => dtype,
        _ => return unsupported("its element type is not supported"),
    };
    cx.spend(16 * n as i64)?;
    let period = if c.flag("periodic", true)? { n } else { n.saturating_sub(1) }.max(1) as f64;
    let term = |i: usize| {
        weights.iter().enumerate().map(move |(k, w)| w * (TAU * (k * i) as f64 / period).cos())
    };
    let values: Vec<f64> = (0..n).map(|i| term(i).sum()).collect();
    Ok(vec![cx.constant(from_floats(dtype, vec![n], &values))])
}
