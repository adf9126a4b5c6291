//! Shape rules of normalisations and of the affine map per channel.

use super::*;

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    let x = required(inputs, 0, "x")?;
    check(x.dtype.is_float(), || format!("x is {}, expected a float type", x.dtype))?;
    check(x.rank() >= 1, || "x is a scalar".into())?;
    match op {
        Op::GroupNorm { groups, eps, layout, .. } => {
            at_most(inputs, 3)?;
            positive_eps(*eps)?;
            check(x.rank() >= 2, || format!("x is {x}, expected a batch and a channel axis"))?;
            let channels = &x.shape[layout.channel_axis(x.rank())];
            check(
                (1..=MAX_GROUPS).contains(groups)
                    && channels.div_exact(&Dim::constant(*groups as i64)).is_some(),
                || format!("{groups} groups do not divide {channels} channels"),
            )?;
            per_channel(inputs, 1, "gamma", x, channels)?;
            per_channel(inputs, 2, "beta", x, channels)?;
        }
        Op::LayerNorm { eps } => {
            at_most(inputs, 5)?;
            positive_eps(*eps)?;
            let channels = &x.shape[x.rank() - 1];
            per_channel(inputs, 1, "gamma", x, channels)?;
            per_channel(inputs, 2, "beta", x, channels)?;
            linear::per_image(inputs, 3, "scale", x, x.rank() - 1)?;
            linear::per_image(inputs, 4, "shift", x, x.rank() - 1)?;
        }
        Op::RmsNorm { eps } => {
            at_most(inputs, 2)?;
            positive_eps(*eps)?;
            per_channel(inputs, 1, "gamma", x, &x.shape[x.rank() - 1])?;
        }
        Op::Affine => {
            at_most(inputs, 6)?;
            let channels = &x.shape[x.rank() - 1];
            for (i, name) in [(1, "scale"), (2, "shift")] {
                required(inputs, i, name)?;
                per_channel(inputs, i, name, x, channels)?;
            }
            for (i, name) in [(3, "residual"), (4, "previous")] {
                if let Some(t) = optional(inputs, i) {
                    check(t == x, || format!("{name} is {t}, x is {x}"))?;
                }
            }
            per_channel(inputs, 5, "previous_scale", x, channels)?;
            let both = optional(inputs, 4).is_some() == optional(inputs, 5).is_some();
            check(both, || "previous and its scale come together".into())?;
        }
        _ => unreachable!("dispatched by Op::infer"),
    }
    Ok(vec![x.clone()])
}

fn positive_eps(eps: f32) -> Result<(), String> {
    check(eps >= 0.0 && eps.is_finite(), || format!("`eps` is {eps}, expected a finite number ≥ 0"))
}

/// Checks that input `i`, if present, is a vector of `channels` elements of x's type.
pub(super) fn per_channel(
    inputs: &InputTypes,
    i: usize,
    name: &str,
    x: &ValueType,
    channels: &Dim,
) -> Result<(), String> {
    let Some(t) = optional(inputs, i) else { return Ok(()) };
    check(t.dtype == x.dtype && t.shape == [channels.clone()], || {
        format!("{name} is {t}, expected {}[{channels}]", x.dtype)
    })
}
