//! Normalisations and the affine map per channel, in f64 throughout.

use super::Call;
use super::elementwise::activate;
use super::lane::Lane;
use super::linear::PerImage;
use super::walk::volume;
use cqc_proto::op::{Act, ConvLayout, Op};
use cqc_proto::tensor::Tensor;

pub(super) fn eval(call: &Call) -> Tensor {
    match call.op {
        Op::GroupNorm { groups, eps, layout, act } => {
            group_norm(call, *groups, *eps as f64, *layout, *act)
        }
        Op::LayerNorm { eps } => layer_norm(call, *eps as f64),
        Op::RmsNorm { eps } => rms_norm(call, *eps as f64),
        Op::Affine => affine(call),
        _ => unreachable!("dispatched by reference::eval"),
    }
}

fn affine(call: &Call) -> Tensor {
    let [x, scale, shift] = [0, 1, 2].map(|i| f64::load(call.input(i)));
    let [residual, previous, previous_scale] = [3, 4, 5].map(|i| call.optional(i).map(f64::load));
    let at = |(i, x): (usize, &f64)| {
        let c = i % scale.len();
        let before = previous
            .as_ref()
            .zip(previous_scale.as_ref())
            .map_or(0.0, |(p, scale)| p[i] * scale[c]);
        x * scale[c] + shift[c] + before + residual.as_ref().map_or(0.0, |r| r[i])
    };
    let y: Vec<f64> = x.iter().enumerate().map(at).collect();
    call.out().of(&y)
}

/// Mean and 1 / √(variance + eps).
fn moments(values: impl Iterator<Item = f64> + Clone, eps: f64) -> (f64, f64) {
    let (sum, n) = values.clone().fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    let mean = sum / n;
    let squares: f64 = values.map(|v| (v - mean) * (v - mean)).sum();
    (mean, 1.0 / (squares / n + eps).sqrt())
}

/// The factor and the summand of each channel, 1 and 0 where absent.
fn gamma_beta<'a>(
    call: &Call<'a>,
) -> (impl Fn(usize) -> f64 + use<'a>, impl Fn(usize) -> f64 + use<'a>) {
    let [gamma, beta] = [1, 2].map(|i| call.optional(i).map(f64::load));
    (
        move |c: usize| gamma.as_ref().map_or(1.0, |g| g[c]),
        move |c: usize| beta.as_ref().map_or(0.0, |b| b[c]),
    )
}

fn group_norm(call: &Call, groups: usize, eps: f64, layout: ConvLayout, act: Act) -> Tensor {
    let (shape, out) = (call.input(0).shape(), call.out());
    let x = f64::load(call.input(0));
    let channels = shape[layout.channel_axis(shape.len())];
    let positions = volume(&shape[layout.spatial_axes(shape.len())]);
    let (channel_step, step) =
        if layout == ConvLayout::ChannelsFirst { (positions, 1) } else { (1, channels) };
    let (gamma, beta) = gamma_beta(call);
    let per_group = channels / groups;
    let mut y = vec![0.0; out.len()];
    for (image, group) in (0..shape[0]).flat_map(|n| (0..groups).map(move |g| (n, g))) {
        let start = image * channels * positions;
        let members = group * per_group..(group + 1) * per_group;
        let places = |c: usize| (0..positions).map(move |p| start + c * channel_step + p * step);
        let (mean, scale) = moments(members.clone().flat_map(places).map(|at| x[at]), eps);
        for c in members {
            let (gamma, beta) = (gamma(c), beta(c));
            places(c).for_each(|at| y[at] = activate(act, (x[at] - mean) * scale * gamma + beta));
        }
    }
    out.of(&y)
}

fn layer_norm(call: &Call, eps: f64) -> Tensor {
    let (x, out) = (f64::load(call.input(0)), call.out());
    let channels = *out.shape.last().expect("the shape rule refuses scalars");
    let rows_per_image = if out.shape.len() > 1 { x.len() / channels / out.shape[0] } else { 1 };
    let (gamma, beta) = gamma_beta(call);
    let [scale, shift] =
        [3, 4].map(|i| call.optional(i).map(|t| PerImage::<f64>::new(t, channels)));
    let mut y = vec![0.0; x.len()];
    for (i, (x, y)) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)).enumerate() {
        let (mean, factor) = moments(x.iter().copied(), eps);
        let modulation =
            |t: &Option<PerImage<f64>>, c| t.as_ref().map_or(0.0, |t| t.at(i / rows_per_image, c));
        for (c, (x, y)) in x.iter().zip(y).enumerate() {
            let normal = (x - mean) * factor * gamma(c) + beta(c);
            *y = normal * (1.0 + modulation(&scale, c)) + modulation(&shift, c);
        }
    }
    out.of(&y)
}

fn rms_norm(call: &Call, eps: f64) -> Tensor {
    let (x, out) = (f64::load(call.input(0)), call.out());
    let channels = *out.shape.last().expect("the shape rule refuses scalars");
    let (gamma, _) = gamma_beta(call);
    let mut y = vec![0.0; x.len()];
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        let mean: f64 = x.iter().map(|v| v * v).sum::<f64>() / channels as f64;
        let factor = 1.0 / (mean + eps).sqrt();
        y.iter_mut().zip(x).enumerate().for_each(|(c, (y, x))| *y = x * factor * gamma(c));
    }
    out.of(&y)
}
