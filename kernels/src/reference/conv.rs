//! Convolutions.

use super::Call;
use super::lane::{Lane, by_float};
use super::linear::{Epilogue, product};
use super::walk::{strides, volume};
use cqc_proto::op::{ConvLayout, Op};
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Tensor {
    match call.op {
        Op::Conv { .. } => by_float!(call.out().dtype, T => conv::<T>(call)),
        _ => by_float!(call.out().dtype, T => transposed::<T>(call)),
    }
}

/// One to three entries as three, the missing ones in front.
pub(super) fn three<T: Copy>(list: &[T], missing: T) -> [T; 3] {
    std::array::from_fn(|i| (i + list.len()).checked_sub(3).map_or(missing, |i| list[i]))
}

/// A tensor of images: sizes and distances of batch, channels and (up to three) spatial axes.
pub(super) struct Images {
    pub batch: usize,
    pub channels: usize,
    pub sizes: [usize; 3],
    pub batch_step: usize,
    pub channel_step: usize,
    pub steps: [usize; 3],
}

impl Images {
    pub(super) fn new(shape: &[usize], layout: ConvLayout) -> Images {
        let by: Vec<usize> = strides(shape).into_iter().map(|s| s as usize).collect();
        let (axis, spatial) = (layout.channel_axis(shape.len()), layout.spatial_axes(shape.len()));
        Images {
            batch: shape[0],
            channels: shape[axis],
            sizes: three(&shape[spatial.clone()], 1),
            batch_step: by[0],
            channel_step: by[axis],
            steps: three(&by[spatial], 0),
        }
    }

    pub(super) fn positions(&self) -> usize {
        volume(&self.sizes)
    }

    /// Coordinates of spatial position number `p`.
    pub(super) fn coordinates(&self, p: usize) -> [usize; 3] {
        let [_, h, w] = self.sizes;
        [p / (h * w), p / w % h, p % w]
    }

    /// Distance of spatial coordinates from the channel's first element.
    pub(super) fn offset(&self, at: [usize; 3]) -> usize {
        at.iter().zip(self.steps).map(|(&i, step)| i * step).sum()
    }
}

/// Where windows lie: input coordinate = output coordinate · stride + kernel coordinate · dilation
/// - pad.
pub(super) struct Windows {
    pub kernel: [usize; 3],
    pub strides: [usize; 3],
    pub dilations: [usize; 3],
    pub pads: [usize; 3],
}

impl Windows {
    pub(super) fn new(
        kernel: &[usize],
        strides: &[usize],
        dilations: &[usize],
        pads: &[usize],
    ) -> Windows {
        Windows {
            kernel: three(kernel, 1),
            strides: three(strides, 1),
            dilations: three(dilations, 1),
            pads: three(&pads[..kernel.len()], 0),
        }
    }

    pub(super) fn taps(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [d, h, w] = self.kernel;
        (0..d).flat_map(move |i| (0..h).flat_map(move |j| (0..w).map(move |k| [i, j, k])))
    }

    /// Input coordinates; wraps to huge numbers in front of the input.
    pub(super) fn input(&self, out: [usize; 3], tap: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|i| {
            (out[i] * self.strides[i] + tap[i] * self.dilations[i]).wrapping_sub(self.pads[i])
        })
    }
}

pub(super) fn inside(at: [usize; 3], sizes: [usize; 3]) -> bool {
    at.iter().zip(sizes).all(|(&i, n)| i < n)
}

/// Positions whose windows are gathered at a time, so that the gathered matrix stays small.
const TILE: usize = 1024;

fn conv<T: Lane>(call: &Call) -> Tensor {
    let Op::Conv { strides, pads, dilations, groups, layout, upsample, act } = call.op else {
        unreachable!("dispatched by `eval`")
    };
    let (x, w, out) = (call.input(0), call.input(1), call.out());
    let (from, to) = (Images::new(x.shape(), *layout), Images::new(&out.shape, *layout));
    let windows = Windows::new(&w.shape()[2..], strides, dilations, pads);
    let epilogue = Epilogue::<T>::new(call, to.channels, *act);
    let (x, w) = (T::load(x), T::load(w));
    let (per_in, per_out) = (from.channels / groups, to.channels / groups);
    let k = per_in * volume(&windows.kernel);
    let mut y = vec![T::ZERO; out.len()];
    let (mut columns, mut sums) = (Vec::new(), Vec::new());
    for (image, group) in (0..to.batch).flat_map(|n| (0..*groups).map(move |g| (n, g))) {
        let weights = &w[group * per_out * k..][..per_out * k];
        let start = image * from.batch_step + group * per_in * from.channel_step;
        for first in (0..to.positions()).step_by(TILE) {
            let tile: Vec<[usize; 3]> =
                (first..to.positions().min(first + TILE)).map(|p| to.coordinates(p)).collect();
            columns.clear();
            for channel in 0..per_in {
                gather(
                    &x,
                    start + channel * from.channel_step,
                    &from,
                    &windows,
                    *upsample,
                    &tile,
                    &mut columns,
                );
            }
            sums.clear();
            sums.resize(per_out * tile.len(), T::ZERO);
            product(weights, &columns, &mut sums, k, tile.len());
            for (i, &sum) in sums.iter().enumerate() {
                let channel = group * per_out + i / tile.len();
                let at = image * to.batch_step
                    + channel * to.channel_step
                    + to.offset(tile[i % tile.len()]);
                y[at] = epilogue.apply(sum, image, channel, at);
            }
        }
    }
    out.of(&y)
}

/// Appends, per tap of the window, the input elements under it at each output position of the tile;
/// zero outside.
fn gather<T: Lane>(
    x: &[T],
    start: usize,
    from: &Images,
    windows: &Windows,
    upsample: usize,
    tile: &[[usize; 3]],
    columns: &mut Vec<T>,
) {
    // missing spatial axes have size 1 and are not enlarged, which coordinate 0 does not notice
    let enlarged = from.sizes.map(|n| n * upsample);
    for tap in windows.taps() {
        columns.extend(tile.iter().map(|&out| {
            let at = windows.input(out, tap);
            if inside(at, enlarged) {
                x[start + from.offset(at.map(|i| i / upsample))]
            } else {
                T::ZERO
            }
        }));
    }
}

fn transposed<T: Lane>(call: &Call) -> Tensor {
    let Op::ConvTranspose { strides, pads, dilations, groups, .. } = call.op else {
        unreachable!("dispatched by `eval`")
    };
    let (x, w, out) = (call.input(0), call.input(1), call.out());
    let layout = ConvLayout::ChannelsFirst;
    let (from, to) = (Images::new(x.shape(), layout), Images::new(&out.shape, layout));
    // seen from the result, it is the input of a convolution whose output is x
    let windows = Windows::new(&w.shape()[2..], strides, dilations, pads);
    let (x, w) = (T::load(x), T::load(w));
    let (per_in, per_out, taps) =
        (from.channels / groups, to.channels / groups, volume(&windows.kernel));
    let mut y = vec![T::ZERO; out.len()];
    for (image, channel_in) in (0..from.batch).flat_map(|n| (0..from.channels).map(move |c| (n, c)))
    {
        let x = &x[image * from.batch_step + channel_in * from.channel_step..][..from.positions()];
        for channel in 0..per_out {
            let kernel = &w[(channel_in * per_out + channel) * taps..][..taps];
            let start =
                image * to.batch_step + (channel_in / per_in * per_out + channel) * to.channel_step;
            let y = &mut y[start..][..to.positions()];
            for (tap, &weight) in windows.taps().zip(kernel) {
                scatter(x, weight, tap, &from, &to, &windows, y);
            }
        }
    }
    if let Some(bias) = call.optional(2).map(T::load) {
        let positions = to.positions();
        y.iter_mut().enumerate().for_each(|(at, v)| *v = v.add(bias[at / positions % to.channels]));
    }
    out.of(&y)
}

/// Adds `x · weight` to the positions of the result under one tap.
fn scatter<T: Lane>(
    x: &[T],
    weight: T,
    tap: [usize; 3],
    from: &Images,
    to: &Images,
    windows: &Windows,
    y: &mut [T],
) {
    for (p, &v) in x.iter().enumerate() {
        let at = windows.input(from.coordinates(p), tap);
        if inside(at, to.sizes) {
            let place = to.offset(at);
            y[place] = y[place].add(v.mul(weight));
        }
    }
}
