//! Interpolation.

use super::*;
use cqc_proto::Dim;
use cqc_proto::Tensor;
use cqc_proto::op::{CoordinateMode, NearestMode, ResizeMode};

pub(super) fn resize(cx: &mut Cx, c: &Call, op: &Op) -> ExportResult {
    let Op::Resize {
        sizes,
        scales,
        mode,
        coordinates,
        nearest,
        cubic_a,
        exclude_outside,
        antialias,
    } = op
    else {
        unreachable!("dispatched by `one`")
    };
    let x = c.input(0);
    let from = cx.shape(x).to_vec();
    // Axes that do not change are left out, so that the batch among them need not be known.
    let changes = |&k: &usize| from[k] != sizes[k] || scales.get(k).is_some_and(|&s| s != 1.0);
    let axes: Vec<usize> = (0..from.len()).filter(changes).collect();
    if axes.is_empty() {
        return Ok(x);
    }
    let scale = match scales.is_empty() {
        true => None,
        false => Some(
            axes.iter()
                .map(|&k| checked_scale(&from[k], &sizes[k], scales[k]))
                .collect::<ExportResult<Vec<_>>>()?,
        ),
    };
    let (scale, target) = match scale {
        Some(list) => (Some(cx.constant("scales", Tensor::from_f32(&[list.len()], &list))), None),
        None => {
            let wanted: Vec<Dim> = axes.iter().map(|&k| sizes[k].clone()).collect();
            (None, Some(cx.sizes(&wanted)?))
        }
    };
    let mut attributes = vec![
        ints("axes", &axes),
        string("mode", mode_name(*mode)),
        string("coordinate_transformation_mode", coordinate_name(*coordinates)),
    ];
    match mode {
        ResizeMode::Nearest => attributes.push(string("nearest_mode", nearest_name(*nearest))),
        ResizeMode::Cubic => attributes.push(float("cubic_coeff_a", *cubic_a)),
        ResizeMode::Linear => {}
    }
    attributes.extend(exclude_outside.then(|| int("exclude_outside", 1)));
    attributes.extend(antialias.then(|| int("antialias", 1)));
    Ok(cx.nodes("Resize", &[Some(x), None, scale, target], attributes, c.outputs)[0])
}

/// Checks a scale. The standard rounds `from · scale` down; a model that gives sizes under a policy
/// may round differently.
fn checked_scale(from: &Dim, to: &Dim, scale: f32) -> ExportResult<f32> {
    match (from.as_const(), to.as_const()) {
        (Some(from), Some(to)) if (from as f32 * scale).floor() as i64 != to => Err(format!(
            "Resize by {scale} makes {from} to {}, not {to}",
            (from as f32 * scale).floor()
        )),
        _ => Ok(scale),
    }
}

fn mode_name(mode: ResizeMode) -> &'static str {
    match mode {
        ResizeMode::Nearest => "nearest",
        ResizeMode::Linear => "linear",
        ResizeMode::Cubic => "cubic",
    }
}

fn coordinate_name(mode: CoordinateMode) -> &'static str {
    match mode {
        CoordinateMode::HalfPixel => "half_pixel",
        CoordinateMode::HalfPixelSymmetric => "half_pixel_symmetric",
        CoordinateMode::PytorchHalfPixel => "pytorch_half_pixel",
        CoordinateMode::AlignCorners => "align_corners",
        CoordinateMode::Asymmetric => "asymmetric",
    }
}

fn nearest_name(mode: NearestMode) -> &'static str {
    match mode {
        NearestMode::RoundPreferFloor => "round_prefer_floor",
        NearestMode::RoundPreferCeil => "round_prefer_ceil",
        NearestMode::Floor => "floor",
        NearestMode::Ceil => "ceil",
    }
}
