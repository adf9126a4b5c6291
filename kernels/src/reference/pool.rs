//! Pooling windows.

use super::Call;
use super::conv::{Images, Windows, inside, three};
use super::lane::{Lane, by_lane};
use super::reduce::limits;
use cqc_proto::op::{Op, PoolKind};
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Tensor {
    by_lane!(call.out().dtype, T => pool::<T>(call))
}

fn pool<T: Lane>(call: &Call) -> Tensor {
    let Op::Pool { kind, kernel, strides, pads, dilations, count_pad, layout, .. } = call.op else {
        unreachable!("dispatched by reference::eval")
    };
    let (x, out) = (call.input(0), call.out());
    let (from, to) = (Images::new(x.shape(), *layout), Images::new(&out.shape, *layout));
    let windows = Windows::new(kernel, strides, dilations, pads);
    let behind = three(&pads[kernel.len()..], 0);
    // coordinates wrap in front of the input, so padding is counted in coordinates that begin with
    // it
    let padded: [usize; 3] = std::array::from_fn(|i| windows.pads[i] + from.sizes[i] + behind[i]);
    let counts = |at: [usize; 3]| {
        inside(std::array::from_fn(|i| at[i].wrapping_add(windows.pads[i])), padded)
    };
    let (lowest, _) = limits::<T>(out.dtype);
    let x = T::load(x);
    let mut y = vec![T::ZERO; out.len()];
    for (image, channel) in (0..to.batch).flat_map(|n| (0..to.channels).map(move |c| (n, c))) {
        let start = image * from.batch_step + channel * from.channel_step;
        for p in 0..to.positions() {
            let position = to.coordinates(p);
            let (mut largest, mut sum, mut count) = (lowest, 0.0, 0usize);
            for tap in windows.taps() {
                let at = windows.input(position, tap);
                let is_inside = inside(at, from.sizes);
                if is_inside {
                    let v = x[start + from.offset(at)];
                    largest = Lane::max(largest, v);
                    sum += v.to_f64();
                }
                count += (is_inside || (*count_pad && counts(at))) as usize;
            }
            let value =
                if *kind == PoolKind::Max { largest } else { T::from_f64(sum / count as f64) };
            y[image * to.batch_step + channel * to.channel_step + to.offset(position)] = value;
        }
    }
    out.of(&y)
}
