//! Operators that move elements without computing on them, and interpolation.

use super::*;

/// The values of the elements that padding adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PadMode {
    #[default]
    Constant,
    /// Repeats the border element.
    Edge,
    /// Mirrors the elements at the border, without the border element.
    Reflect,
    /// Continues with the elements from the opposite end.
    Wrap,
}

/// The interpolation of [`Op::Resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ResizeMode {
    Nearest,
    Linear,
    Cubic,
}

/// The `coordinate_transformation_mode` of ONNX `Resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum CoordinateMode {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
}

/// The `nearest_mode` of ONNX `Resize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum NearestMode {
    #[default]
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    if let Op::Concat { axis } = op {
        return concat(*axis, inputs);
    }
    if let Op::Pad { before, after, mode } = op {
        return pad(before, after, *mode, inputs);
    }
    let x = single(inputs)?;
    let shape = match op {
        Op::Reshape { shape } => reshape(x, shape)?,
        Op::Transpose { perm } => transpose(x, perm)?,
        Op::Expand { shape } => expand(x, shape)?,
        Op::Slice { axes, starts, ends, steps } => slice(x, axes, starts, ends, steps)?,
        Op::Tile { repeats } => tile(x, repeats)?,
        Op::Resize { .. } => resize(x, op)?,
        Op::Trilu { .. } => {
            check(x.rank() >= 2, || format!("x is {x}, expected at least 2 axes"))?;
            x.shape.clone()
        }
        _ => unreachable!("dispatched by Op::infer"),
    };
    Ok(vec![ValueType::new(x.dtype, shape)])
}

fn reshape(x: &ValueType, shape: &[Dim]) -> Result<Shape, String> {
    let y = ValueType::new(x.dtype, shape);
    let equal = matches!((product(&x.shape), product(shape)), (Some(a), Some(b)) if a == b);
    check(equal, || format!("{x} and {y} have not provably the same number of elements"))?;
    Ok(y.shape)
}

/// A product of affine sizes in a unique form: a number, and the primitive factors with symbols in
/// ascending order (`8N · (2N+2)` = 16 · N · (N+1)). `None` if the number exceeds 127 bits.
fn product(shape: &[Dim]) -> Option<(i128, Vec<Dim>)> {
    if shape.iter().any(|d| d.is(0)) {
        return Some((0, Vec::new()));
    }
    let mut number = 1i128;
    let mut factors = Vec::new();
    for d in shape {
        let content = content(d)?;
        number = number.checked_mul(content as i128)?;
        factors.extend(Some(d.div_exact(&content.into())?).filter(|primitive| !primitive.is(1)));
    }
    factors.sort();
    Some((number, factors))
}

/// The largest number that divides a size ≠ 0, with the sign of its first symbol. Without symbols
/// it is the size itself.
fn content(d: &Dim) -> Option<i64> {
    if let Some(k) = d.as_const() {
        return Some(k);
    }
    let zeros = d.symbols().map(|s| (s.clone(), 0)).collect();
    let constant = d.eval(&zeros)?;
    let mut coefficients = d.symbols().map(|s| d.coefficient(s));
    let first = coefficients.next()?;
    Some(coefficients.fold(gcd(first, constant), gcd) * first.signum())
}

/// The greatest common divisor, which is not negative.
fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { gcd(b, a % b) }
}

fn transpose(x: &ValueType, perm: &[usize]) -> Result<Shape, String> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    check(sorted.iter().copied().eq(0..x.rank()), || {
        format!("`perm` {perm:?} is no permutation of the axes of {x}")
    })?;
    Ok(perm.iter().map(|&p| x.shape[p].clone()).collect())
}

fn expand(x: &ValueType, shape: &[Dim]) -> Result<Shape, String> {
    let fits = broadcast(&x.shape, shape).is_ok_and(|s| s == shape);
    check(fits, || format!("{x} does not expand to {}", ValueType::new(x.dtype, shape)))?;
    Ok(shape.to_vec())
}

fn concat(axis: usize, inputs: &InputTypes) -> Inferred {
    let first = required(inputs, 0, "the first part")?;
    check(axis < first.rank(), || format!("`axis` is {axis}, the first part {first}"))?;
    let mut shape = first.shape.clone();
    for i in 1..inputs.len() {
        let t = required(inputs, i, "a part")?;
        let fits = t.dtype == first.dtype
            && t.rank() == first.rank()
            && t.shape.iter().zip(&first.shape).enumerate().all(|(k, (a, b))| k == axis || a == b);
        check(fits, || format!("part {i} is {t}, which does not join {first} along axis {axis}"))?;
        shape[axis] = shape[axis].add(&t.shape[axis]).ok_or("the result is too large")?;
    }
    Ok(vec![ValueType::new(first.dtype, shape)])
}

fn slice(
    x: &ValueType,
    axes: &[usize],
    starts: &[Dim],
    ends: &[Dim],
    steps: &[i64],
) -> Result<Shape, String> {
    let n = axes.len();
    check(starts.len() == n && ends.len() == n && steps.len() == n, || {
        format!("{n} axes, {} starts, {} ends, {} steps", starts.len(), ends.len(), steps.len())
    })?;
    check_axes(axes, x)?;
    let mut shape = x.shape.clone();
    for (i, &axis) in axes.iter().enumerate() {
        shape[axis] =
            slice_size(&x.shape[axis], &starts[i], &ends[i], steps[i]).ok_or_else(|| {
                format!(
                    "{}..{} in steps of {} has no known size within the {} of axis {axis}",
                    starts[i], ends[i], steps[i], x.shape[axis]
                )
            })?;
    }
    Ok(shape)
}

/// The number of elements of one sliced axis, ⌈(end − start) / step⌉. `None` if the bounds are not
/// provably inside of the axis, or if the size is not affine.
fn slice_size(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    let (low, high) = if step > 0 {
        (Dim::constant(0), size.clone())
    } else {
        (Dim::constant(-1), size.sub(&1.into())?)
    };
    for bound in [start, end] {
        let inside = not_negative(&bound.sub(&low)?) && not_negative(&high.sub(bound)?);
        inside.then_some(())?;
    }
    let span = end.sub(start)?;
    match span.as_const() {
        _ if step == 0 => None,
        Some(span) => {
            let (span, step) = (span as i128 * step.signum() as i128, (step as i128).abs());
            Some(Dim::constant(if span <= 0 { 0 } else { ((span + step - 1) / step) as i64 }))
        }
        None => span.div_exact(&step.into()).filter(not_negative),
    }
}

fn pad(before: &[i64], after: &[i64], mode: PadMode, inputs: &InputTypes) -> Inferred {
    at_most(inputs, 2)?;
    let x = required(inputs, 0, "x")?;
    if let Some(fill) = optional(inputs, 1) {
        let one = fill.dtype == x.dtype && fill.rank() <= 1 && fill.shape.iter().all(|d| d.is(1));
        check(one, || format!("the fill value is {fill}, expected one {}", x.dtype))?;
    }
    check(before.len() == x.rank() && after.len() == x.rank(), || {
        format!("`before` {before:?} and `after` {after:?} do not fit {x}")
    })?;
    let mut shape = x.shape.clone();
    for (axis, size) in shape.iter_mut().enumerate() {
        let (b, a) = (before[axis], after[axis]);
        let grown = b.checked_add(a).and_then(|n| size.add(&n.into())).filter(not_negative);
        let grown = grown.ok_or_else(|| {
            format!("padding by {b} and {a} leaves no valid size of axis {axis} of {x}")
        })?;
        let repeats = mode != PadMode::Constant && (b > 0 || a > 0);
        check(!repeats || size.is_positive(), || {
            format!("axis {axis} of {x} may be empty: nothing to repeat")
        })?;
        check(b.max(a) <= MAX_DIM && b.min(a) >= -MAX_DIM, || {
            format!("padding by {b} and {a} is too large")
        })?;
        *size = grown;
    }
    Ok(vec![ValueType::new(x.dtype, shape)])
}

fn tile(x: &ValueType, repeats: &[i64]) -> Result<Shape, String> {
    check(repeats.len() == x.rank(), || format!("`repeats` {repeats:?} does not fit {x}"))?;
    let times = |(d, &n): (&Dim, &i64)| Some(n).filter(|&n| n >= 0).and_then(|n| d.mul(&n.into()));
    let shape: Option<Shape> = x.shape.iter().zip(repeats).map(times).collect();
    shape.ok_or_else(|| format!("`repeats` {repeats:?} of {x} has no valid size"))
}

fn resize(x: &ValueType, op: &Op) -> Result<Shape, String> {
    let Op::Resize { sizes, scales, mode, cubic_a, antialias, .. } = op else { unreachable!() };
    check(sizes.len() == x.rank(), || format!("`sizes` has {} entries for {x}", sizes.len()))?;
    check(scales.is_empty() || scales.len() == x.rank(), || {
        format!("`scales` has {} entries for {x}", scales.len())
    })?;
    check(scales.iter().all(|s| s.is_finite() && *s > 0.0), || format!("`scales` is {scales:?}"))?;
    check(cubic_a.is_finite(), || format!("`cubic_a` is {cubic_a}"))?;
    check(*mode == ResizeMode::Nearest || x.dtype.is_float(), || {
        format!("interpolates floats, x is {}", x.dtype)
    })?;
    check(*mode != ResizeMode::Nearest || !antialias, || {
        "`antialias` needs mode linear or cubic".into()
    })?;
    for (axis, (from, to)) in x.shape.iter().zip(sizes).enumerate() {
        check(to.is(0) || from.is_positive(), || {
            format!("axis {axis} of {x} may be empty: nothing to interpolate")
        })?;
        let scale = scales.get(axis).copied().unwrap_or(0.0);
        check(scales.is_empty() || scale_fits(from, to, scale), || {
            format!("axis {axis}: {from} · {scale} is not {to}")
        })?;
    }
    Ok(sizes.clone())
}

/// Whether `from · scale`, rounded down or to nearest, can give `to`, with an allowance for the
/// rounding of an f32.
fn scale_fits(from: &Dim, to: &Dim, scale: f32) -> bool {
    let (Some(from), Some(to)) = (from.as_const(), to.as_const()) else { return true };
    let width = from as f64 * scale as f64;
    let slack = 0.01 + width * 1e-6;
    width >= to as f64 - 0.5 - slack && width <= to as f64 + 1.0 + slack
}
