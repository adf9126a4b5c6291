//! Interpolation.

use super::Call;
use super::lane::{Lane, by_float, by_width, words};
use super::movement::remapped;
use super::walk::around;
use cqc_proto::op::{CoordinateMode, NearestMode, Op, ResizeMode};
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Tensor {
    let Op::Resize { mode, nearest, cubic_a, exclude_outside, antialias, .. } = call.op else {
        unreachable!("dispatched by reference::eval")
    };
    let (x, out) = (call.input(0), call.out());
    let axes = (0..x.shape().len()).map(|k| Axis::new(call, k));
    if *mode == ResizeMode::Nearest {
        let maps: Vec<_> =
            axes.map(|a| (0..a.to).map(|i| Some(a.nearest(i, *nearest))).collect()).collect();
        return by_width!(x.dtype(), W => out.of_words(&remapped(&words::<W>(x), x.shape(), &maps, 0)));
    }
    let mut values = x.to_f64_vec();
    let mut shape = x.shape().to_vec();
    for (k, axis) in axes.enumerate().filter(|(_, a)| !a.is_identity()) {
        let taps = axis.taps(*mode, *cubic_a as f64, *exclude_outside, *antialias);
        values = interpolate(&values, &shape, k, &taps);
        shape[k] = axis.to;
    }
    by_float!(x.dtype(), T => out.of(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<_>>()))
}

/// How one axis is resized.
struct Axis {
    from: usize,
    to: usize,
    scale: f64,
    /// Size of the result before rounding: from · scale.
    width: f64,
    coordinates: CoordinateMode,
}

impl Axis {
    fn new(call: &Call, k: usize) -> Axis {
        let Op::Resize { scales, coordinates, .. } = call.op else {
            unreachable!("checked by `eval`")
        };
        let (from, to) = (call.input(0).shape()[k], call.out().shape[k]);
        let scale = scales.get(k).map(|&s| s as f64);
        Axis {
            from,
            to,
            scale: scale.unwrap_or(to as f64 / from as f64),
            width: scale.map_or(to as f64, |s| s * from as f64),
            coordinates: *coordinates,
        }
    }

    fn is_identity(&self) -> bool {
        self.from == self.to && self.scale == 1.0
    }

    /// Where in the input an output position lies.
    fn position(&self, i: usize) -> f64 {
        let (i, from) = (i as f64, self.from as f64);
        let half_pixel = (i + 0.5) / self.scale - 0.5;
        match self.coordinates {
            CoordinateMode::HalfPixel => half_pixel,
            CoordinateMode::HalfPixelSymmetric => {
                from / 2.0 * (1.0 - self.to as f64 / self.width) + half_pixel
            }
            CoordinateMode::PytorchHalfPixel if self.width == 1.0 => 0.0,
            CoordinateMode::PytorchHalfPixel => half_pixel,
            CoordinateMode::AlignCorners if self.width == 1.0 => 0.0,
            CoordinateMode::AlignCorners => i * (from - 1.0) / (self.width - 1.0),
            CoordinateMode::Asymmetric => i / self.scale,
        }
    }

    fn inside(&self, i: f64) -> usize {
        i.clamp(0.0, self.from as f64 - 1.0) as usize
    }

    fn nearest(&self, i: usize, mode: NearestMode) -> usize {
        let at = self.position(i);
        self.inside(match mode {
            NearestMode::RoundPreferFloor => (at - 0.5).ceil(),
            NearestMode::RoundPreferCeil => (at + 0.5).floor(),
            NearestMode::Floor => at.floor(),
            NearestMode::Ceil => at.ceil(),
        })
    }

    /// Per output position, the input positions that it mixes and their weights.
    fn taps(
        &self,
        mode: ResizeMode,
        a: f64,
        exclude_outside: bool,
        antialias: bool,
    ) -> Vec<Vec<(usize, f64)>> {
        // a low-pass filter is the same function, wider
        let narrow = if antialias { self.scale.min(1.0) } else { 1.0 };
        let reach = if mode == ResizeMode::Cubic { 2.0 } else { 1.0 };
        let first = (-reach / narrow).floor() as i64 + 1;
        let weight = |d: f64| {
            if mode == ResizeMode::Cubic { cubic(d.abs(), a) } else { (1.0 - d.abs()).max(0.0) }
        };
        let tap = |i: usize| {
            let at = self.position(i);
            let left = at.ceil() - 1.0;
            let mut taps: Vec<(usize, f64)> = Vec::new();
            for k in (first..2 - first).filter(|&k| (k as f64 - (at - left)).abs() * narrow < reach)
            {
                let (at_k, w) = (left + k as f64, weight((k as f64 - (at - left)) * narrow));
                let outside = at_k < 0.0 || at_k >= self.from as f64;
                taps.push((self.inside(at_k), if exclude_outside && outside { 0.0 } else { w }));
            }
            let sum: f64 = taps.iter().map(|t| t.1).sum();
            if (antialias || exclude_outside) && sum != 0.0 {
                taps.iter_mut().for_each(|t| t.1 /= sum);
            }
            taps
        };
        (0..self.to).map(tap).collect()
    }
}

/// Keys' cubic at a distance ≥ 0.
fn cubic(d: f64, a: f64) -> f64 {
    match d {
        _ if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}

fn interpolate(x: &[f64], shape: &[usize], axis: usize, taps: &[Vec<(usize, f64)>]) -> Vec<f64> {
    let (outer, n, inner) = around(shape, axis);
    let mut y = vec![0.0; outer * taps.len() * inner];
    if inner == 0 {
        return y;
    }
    for (i, row) in y.chunks_exact_mut(inner).enumerate() {
        let start = i / taps.len() * n;
        for &(k, w) in &taps[i % taps.len()] {
            let from = &x[(start + k) * inner..][..inner];
            row.iter_mut().zip(from).for_each(|(y, &x)| *y += w * x);
        }
    }
    y
}
