//! Normalisations and softmax.

use super::args::{GroupNormArgs, LayerNormArgs, RawPerImage, SoftmaxArgs};
use super::conv::act;
use super::launch::{Operands, int};
use super::{Launch, Operand, Output, PerImage, State, list};
use crate::Act;

/// Pixels of a block: enough blocks for small images, enough work for large ones.
fn chunk(pixels: usize) -> usize {
    (pixels / 64).clamp(16, 256)
}

/// Bytes of scratch that [`group_norm`] needs.
pub fn group_norm_scratch(images: usize, pixels: usize, groups: usize) -> usize {
    images * pixels.div_ceil(chunk(pixels)) * groups * 2 * size_of::<f32>()
}

/// y = act((x − mean) / √(var + eps) · gamma + beta) over NHWC, mean and variance per image and
/// group of c/groups channels: two launches, the first of which writes `scratch`.
///
/// # Panics
/// When an operand is too short, `groups` does not divide `channels`, or there are more than 4096.
pub fn group_norm(
    state: &State,
    [images, pixels, channels, groups]: [usize; 4],
    eps: f32,
    function: Act,
    x: &Operand,
    gamma: Option<&Operand>,
    beta: Option<&Operand>,
    output: &Output,
    scratch: &Operand,
) -> [Launch; 2] {
    assert!(
        groups > 0 && groups <= 4096 && channels.is_multiple_of(groups),
        "{groups} groups of {channels}"
    );
    assert!(scratch.per_step == 0 && scratch.per_slot == 0, "scratch stays where it is");
    let wide = i32::from(x.reads_eight() && output.takes_eight(channels));
    let chunk = chunk(pixels);
    let chunks = pixels.div_ceil(chunk);
    let make = |kernel, shared_bytes: usize| {
        let mut operands = Operands::new(state);
        let floats = group_norm_scratch(images, pixels, groups) / size_of::<f32>();
        let args = GroupNormArgs {
            state: operands.state_address(),
            x: operands.rows("x", x, images * pixels, channels),
            gamma: operands.maybe("gamma", gamma, 1, channels),
            beta: operands.maybe("beta", beta, 1, channels),
            y: output.raw(&mut operands, images * pixels, channels),
            partial: operands.rows("scratch", scratch, 1, floats).data,
            sizes: [images, pixels, channels, groups].map(int),
            chunk: int(chunk),
            chunks: int(chunks),
            act: act(function),
            eps,
            wide,
            unused: 0,
        };
        operands.launch(kernel, [chunks, images], shared_bytes, args)
    };
    [
        make(&list::group_norm_moments, 0),
        make(&list::group_norm_apply, groups * 2 * size_of::<f32>()),
    ]
}

/// y = ((x − mean) / √(var + eps) · gamma + beta) · (1 + scale) + shift per row; not `centred`:
/// with 0 for the mean.
///
/// # Panics
/// When an operand is too short.
pub fn layer_norm(
    state: &State,
    [rows, channels]: [usize; 2],
    eps: f32,
    centred: bool,
    x: &Operand,
    gamma: Option<&Operand>,
    beta: Option<&Operand>,
    modulate: Option<[PerImage; 2]>,
    output: &Output,
) -> Launch {
    let mut operands = Operands::new(state);
    let [scale, shift] = modulate.map_or_else(
        || [RawPerImage::default(); 2],
        |parts| parts.map(|part| part.raw("scale and shift", &mut operands, rows, channels)),
    );
    let args = LayerNormArgs {
        state: operands.state_address(),
        x: operands.rows("x", x, rows, channels),
        gamma: operands.maybe("gamma", gamma, 1, channels),
        beta: operands.maybe("beta", beta, 1, channels),
        scale,
        shift,
        y: output.raw(&mut operands, rows, channels),
        rows: int(rows),
        channels: int(channels),
        centred: i32::from(centred),
        eps,
        wide: i32::from(x.reads_eight() && output.takes_eight(channels)),
        unused: 0,
    };
    operands.launch(&list::layer_norm, [rows.div_ceil(4), 1], 0, args)
}

/// y = exp(x − max) / Σ exp(x − max) per row.
///
/// # Panics
/// When an operand is too short.
pub fn softmax(state: &State, [rows, columns]: [usize; 2], x: &Operand, y: &Operand) -> Launch {
    let mut operands = Operands::new(state);
    assert!(y.element.is_float(), "y: {:?}", y.element);
    let args = SoftmaxArgs {
        state: operands.state_address(),
        x: operands.rows("x", x, rows, columns),
        y: operands.rows("y", y, rows, columns),
        rows: int(rows),
        columns: int(columns),
    };
    operands.launch(&list::softmax, [rows.div_ceil(4), 1], 0, args)
}
