//! Interpolation.

use super::*;
use cqc_proto::op::{CoordinateMode, NearestMode, ResizeMode};
use cqc_proto::{Dim, Op};

pub(super) const TABLE: Table = &[("Resize", resize), ("Upsample", upsample)];

/// Output sizes, and scales if the model gives scales.
type SizesAndScales = (Vec<Dim>, Vec<f32>);

fn resize(cx: &mut Cx, c: &Call) -> Done {
    if c.opset < 11 {
        return upsample(cx, c);
    }
    let x = c.input(0, "X")?;
    let shape = cx.ty(x)?.shape;
    let on = match c.ints("axes")? {
        Some(list) => {
            list.into_iter().map(|a| axis(a, shape.len())).collect::<Result<Vec<_>, _>>()?
        }
        None => (0..shape.len()).collect(),
    };
    // an empty tensor stands for an absent operand
    let present = |cx: &Cx, i: usize| -> Result<Option<Item>, Refusal> {
        let Some(item) = c.optional(i) else { return Ok(None) };
        Ok(Some(item.clone())
            .filter(|_| cx.ty(item).is_ok_and(|t| !t.shape.iter().any(|d| d.is(0)))))
    };
    let target = match (present(cx, 2)?, present(cx, 3)?) {
        (_, Some(sizes)) => by_sizes(cx, c, &shape, &on, &sizes)?,
        (Some(scales), None) => {
            let scales = cx.static_tensor(&scales, "scales")?.to_f32_vec();
            by_scales(&shape, &on, &scales)?
        }
        (None, None) => return malformed("neither `scales` nor `sizes` is there"),
    };
    let coordinates = coordinates(c)?;
    interpolate(cx, c, x, target, coordinates)
}

/// `Upsample`, and `Resize` of version 10: asymmetric coordinates that are rounded down.
fn upsample(cx: &mut Cx, c: &Call) -> Done {
    let x = c.input(0, "X")?;
    let shape = cx.ty(x)?.shape;
    // the scales are an attribute before version 9
    let scales = match c.opset < 9 {
        true => c.floats("scales")?.unwrap_or_default().to_vec(),
        false => cx.static_tensor(c.input(1, "scales")?, "scales")?.to_f32_vec(),
    };
    let (sizes, scales) = by_scales(&shape, &(0..shape.len()).collect::<Vec<_>>(), &scales)?;
    let mode = mode(c)?;
    let op = Op::Resize {
        sizes,
        scales,
        mode,
        coordinates: CoordinateMode::Asymmetric,
        nearest: NearestMode::Floor,
        cubic_a: -0.75,
        exclude_outside: false,
        antialias: false,
    };
    Ok(vec![cx.emit(op, &[x])?])
}

fn by_sizes(
    cx: &mut Cx,
    c: &Call,
    shape: &[Dim],
    on: &[usize],
    sizes: &Item,
) -> Result<SizesAndScales, Refusal> {
    let mut given = cx.static_sizes(sizes, "sizes")?;
    if given.len() != on.len() {
        return malformed(format!("`sizes` has {} entries for {} axes", given.len(), on.len()));
    }
    let policy = c.string("keep_aspect_ratio_policy", "stretch")?;
    let mut scales = vec![];
    if policy != "stretch" {
        let scale = common_scale(c, policy, shape, on, &given)?;
        scales = vec![1.0; shape.len()];
        for (i, &a) in on.iter().enumerate() {
            let size = shape[a].as_const().unwrap_or(1) as f64 * scale;
            given[i] = Dim::constant((size + 0.5).floor().min(1e12) as i64);
            scales[a] = scale as f32;
        }
    }
    let mut out = shape.to_vec();
    on.iter().zip(given).for_each(|(&a, d)| out[a] = d);
    Ok((out, scales))
}

/// The single factor that keeps the aspect ratio.
fn common_scale(
    c: &Call,
    policy: &str,
    shape: &[Dim],
    on: &[usize],
    given: &[Dim],
) -> Result<f64, Refusal> {
    let ratio = |(&a, to): (&usize, &Dim)| {
        Some(to.as_const()? as f64 / shape[a].as_const().filter(|&s| s > 0)? as f64)
    };
    let Some(ratios) = on.iter().zip(given).map(ratio).collect::<Option<Vec<f64>>>() else {
        return unsupported(format!(
            "`keep_aspect_ratio_policy` = `{policy}` needs sizes that do not depend on the batch"
        ));
    };
    match policy {
        "not_larger" => Ok(ratios.into_iter().fold(f64::INFINITY, f64::min)),
        "not_smaller" => Ok(ratios.into_iter().fold(0.0, f64::max)),
        other => c.unknown("keep_aspect_ratio_policy", other),
    }
}

fn by_scales(shape: &[Dim], on: &[usize], given: &[f32]) -> Result<SizesAndScales, Refusal> {
    if given.len() != on.len() {
        return malformed(format!("`scales` has {} entries for {} axes", given.len(), on.len()));
    }
    let (mut sizes, mut scales) = (shape.to_vec(), vec![1.0; shape.len()]);
    for (&a, &scale) in on.iter().zip(given) {
        if !scale.is_finite() || scale <= 0.0 {
            return malformed(format!("a scale is {scale}"));
        }
        scales[a] = scale;
        sizes[a] = match shape[a].as_const() {
            Some(size) => Dim::constant((size as f64 * scale as f64).floor().min(1e12) as i64),
            None if scale.fract() == 0.0 && scale < 1e6 => shape[a]
                .mul(&Dim::constant(scale as i64))
                .ok_or_else(|| Refusal::Unsupported("the result is too large".into()))?,
            None => {
                return unsupported(format!("the scale {scale} applies to the size {}", shape[a]));
            }
        };
    }
    Ok((sizes, scales))
}

fn mode(c: &Call) -> Result<ResizeMode, Refusal> {
    Ok(match c.string("mode", "nearest")? {
        "nearest" => ResizeMode::Nearest,
        "linear" => ResizeMode::Linear,
        "cubic" => ResizeMode::Cubic,
        other => return c.unknown("mode", other),
    })
}

fn coordinates(c: &Call) -> Result<CoordinateMode, Refusal> {
    Ok(match c.string("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => CoordinateMode::HalfPixel,
        "half_pixel_symmetric" => CoordinateMode::HalfPixelSymmetric,
        "pytorch_half_pixel" => CoordinateMode::PytorchHalfPixel,
        "align_corners" => CoordinateMode::AlignCorners,
        "asymmetric" => CoordinateMode::Asymmetric,
        other => return c.unknown("coordinate_transformation_mode", other),
    })
}

fn interpolate(
    cx: &mut Cx,
    c: &Call,
    x: &Item,
    (sizes, scales): SizesAndScales,
    coordinates: CoordinateMode,
) -> Done {
    let nearest = match c.string("nearest_mode", "round_prefer_floor")? {
        "round_prefer_floor" => NearestMode::RoundPreferFloor,
        "round_prefer_ceil" => NearestMode::RoundPreferCeil,
        "floor" => NearestMode::Floor,
        "ceil" => NearestMode::Ceil,
        other => return c.unknown("nearest_mode", other),
    };
    let mode = mode(c)?;
    let op = Op::Resize {
        sizes,
        scales,
        mode,
        coordinates,
        nearest,
        cubic_a: c.float("cubic_coeff_a", -0.75)?,
        exclude_outside: c.flag("exclude_outside", false)?,
        antialias: c.flag("antialias", false)? && mode != ResizeMode::Nearest,
    };
    Ok(vec![cx.emit(op, &[x])?])
}
