//! Constants, shapes and ranges, which the import evaluates.

use super::*;
use crate::onnx::item::Sizes;
use crate::onnx::partial;
use crate::onnx::tensors::{from_floats, from_integers};
use crate::onnx::walk::attribute_tensor;
use cqc_proto::op::BinaryKind;
use cqc_proto::types::element_count;
use cqc_proto::{DType, Dim, Op, Tensor};

pub(super) const TABLE: Table = &[
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("Shape", shape),
    ("Size", size),
    ("Range", range),
    ("EyeLike", eye_like),
    ("NonZero", non_zero),
];

fn constant(cx: &mut Cx, c: &Call) -> Done {
    let Some((name, a)) = c.attributes.first() else { return malformed("it has no value") };
    let tensor = match *name {
        "value" => match &a.t {
            Some(t) => return Ok(vec![attribute_tensor(cx, name, t)?]),
            None => return malformed("attribute `value` is no tensor"),
        },
        "value_float" => Tensor::from_f32(&[], &[c.opt_float(name)?.unwrap_or(0.0)]),
        "value_floats" => {
            let values = c.floats(name)?.unwrap_or(&[]);
            Tensor::from_f32(&[values.len()], values)
        }
        "value_int" => Tensor::from_i64(&[], &[c.int(name, 0)?]),
        "value_ints" => {
            let values = c.ints(name)?.unwrap_or_default();
            Tensor::from_i64(&[values.len()], &values)
        }
        "value_string" | "value_strings" => return unsupported("strings are not supported"),
        "sparse_value" => return unsupported("sparse tensors are not supported"),
        other => {
            return malformed(format!(
                "it has no attribute `{}`",
                super::super::error::shown(other)
            ));
        }
    };
    Ok(vec![cx.constant(tensor)])
}

fn constant_of_shape(cx: &mut Cx, c: &Call) -> Done {
    let shape = cx.static_sizes(c.input(0, "input")?, "input")?;
    let value = match c.attribute("value").map(|a| &a.t) {
        None => cx.constant(Tensor::from_f32(&[], &[0.0])),
        Some(Some(t)) => attribute_tensor(cx, "value", t)?,
        Some(None) => return malformed("attribute `value` is no tensor"),
    };
    if value.tensor().is_none_or(|t| t.len() != 1) {
        return malformed("attribute `value` has not one element");
    }
    let scalar = cx.reshape(&value, vec![])?;
    if shape.iter().any(|d| d.as_const().is_some_and(|v| v < 0)) {
        return malformed("a size is negative");
    }
    Ok(vec![cx.emit(Op::Expand { shape }, &[&scalar])?])
}

/// Sizes as an item, which is a constant if no size is symbolic.
pub(super) fn sizes(cx: &Cx, sizes: Sizes) -> Item {
    sizes.to_tensor().map_or_else(|| Item::Sizes(sizes.clone()), |t| cx.constant(t))
}

fn shape(cx: &mut Cx, c: &Call) -> Done {
    let shape = cx.ty(c.input(0, "data")?)?.shape;
    let rank = shape.len() as i64;
    let clamp = |v: i64| if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank) as usize;
    let (start, end) = (clamp(c.int("start", 0)?), clamp(c.int("end", rank)?));
    let part = shape.get(start..end).unwrap_or_default().to_vec();
    Ok(vec![sizes(cx, Sizes::vector(part))])
}

fn size(cx: &mut Cx, c: &Call) -> Done {
    let Some(n) = cx.ty(c.input(0, "data")?)?.elements() else {
        return unsupported("the number of elements is no multiple of the batch");
    };
    Ok(vec![sizes(cx, Sizes { dtype: DType::I64, shape: vec![], elements: vec![n] })])
}

fn range(cx: &mut Cx, c: &Call) -> Done {
    let operands = [c.input(0, "start")?, c.input(1, "limit")?, c.input(2, "delta")?];
    if operands.iter().any(|i| matches!(i, Item::Sizes(_))) {
        return symbolic_range(cx, operands);
    }
    let [start, limit, delta] = [(0, "start"), (1, "limit"), (2, "delta")]
        .map(|(i, what)| cx.static_tensor(operands[i], what));
    let (start, limit, delta) = (start?, limit?, delta?);
    if [&start, &limit, &delta].iter().any(|t| t.len() != 1 || t.dtype() != start.dtype()) {
        return malformed("`start`, `limit` and `delta` are not three numbers of one type");
    }
    if start.dtype().is_float() {
        float_range(cx, &start, &limit, &delta)
    } else {
        integer_range(cx, &start, &limit, &delta)
    }
}

fn count(n: f64) -> Result<usize, Refusal> {
    // 2^25 i64, which is the size of the largest folded tensor
    if n.is_nan() || n > (1 << 25) as f64 {
        return malformed(format!("it would have {n} elements"));
    }
    Ok(n.max(0.0) as usize)
}

fn float_range(cx: &mut Cx, start: &Tensor, limit: &Tensor, delta: &Tensor) -> Done {
    let [a, b, d] = [start, limit, delta].map(|t| t.to_f64_vec()[0]);
    let n = count(((b - a) / d).ceil())?;
    cx.spend(8 * n as i64)?;
    let values: Vec<f64> = (0..n).map(|i| a + i as f64 * d).collect();
    Ok(vec![cx.constant(from_floats(start.dtype(), vec![n], &values))])
}

fn integer_range(cx: &mut Cx, start: &Tensor, limit: &Tensor, delta: &Tensor) -> Done {
    let [a, b, d] = [start, limit, delta].map(|t| t.to_i64_vec()[0] as i128);
    if d == 0 {
        return malformed("`delta` is 0");
    }
    let n = count(steps(a, b, d) as f64)?;
    cx.spend(8 * n as i64)?;
    let values: Vec<i64> = (0..n as i128).map(|i| (a + i * d) as i64).collect();
    Ok(vec![cx.constant(from_integers(start.dtype(), vec![n], &values))])
}

/// ⌈(b - a) / d⌉
fn steps(a: i128, b: i128, d: i128) -> i128 {
    let (span, step) = if d > 0 { (b - a, d) } else { (a - b, -d) };
    (span + step - 1).div_euclid(step)
}

/// `0, 1, 2 …` up to a symbolic limit, computed as a running sum of ones.
fn symbolic_range(cx: &mut Cx, operands: [&Item; 3]) -> Done {
    let dtype = cx.ty(operands[0])?.dtype;
    let mut numbers = Vec::new();
    for (item, what) in operands.iter().zip(["start", "limit", "delta"]) {
        numbers.extend(cx.static_sizes(item, what)?);
    }
    let [start, limit, delta] = &numbers[..] else {
        return malformed("`start`, `limit` or `delta` is no scalar");
    };
    let length = limit.sub(start).filter(partial::nonnegative);
    let (Some(length), true, Some(start)) = (length, delta.is(1), start.as_const()) else {
        return unsupported("its length depends on the batch in another way than 0, 1, 2 …");
    };
    let one = cx.constant(from_integers(dtype, vec![], &[1]));
    let ones = cx.emit(Op::Expand { shape: vec![length] }, &[&one])?;
    let count = cx.emit(Op::CumSum { axis: 0, exclusive: true, reverse: false }, &[&ones])?;
    if start == 0 {
        return Ok(vec![count]);
    }
    let start = cx.constant(from_integers(dtype, vec![], &[start]));
    Ok(vec![cx.binary(BinaryKind::Add, &count, &start)?])
}

fn eye_like(cx: &mut Cx, c: &Call) -> Done {
    let ty = cx.ty(c.input(0, "input")?)?;
    let dtype = match c.opt_int("dtype")? {
        None => ty.dtype,
        Some(n) => match crate::onnx::tensors::dtype(i32::try_from(n).unwrap_or(0)) {
            Ok(dtype) => dtype,
            Err(name) => return unsupported(format!("the element type {name} is not supported")),
        },
    };
    let (Some(shape), k) = (ty.fixed_shape(), c.int("k", 0)?) else {
        return unsupported("its size depends on the batch");
    };
    let &[rows, columns] = &shape[..] else {
        return malformed(format!("the input is {ty}, expected two axes"));
    };
    if element_count(&shape).is_none_or(|n| n > 1 << 24) {
        return unsupported(format!("{rows}x{columns} is too large"));
    }
    cx.spend(8 * (rows * columns) as i64)?;
    let one = |i: usize| ((i % columns) as i64).checked_sub((i / columns) as i64) == Some(k);
    let values: Vec<i64> = (0..rows * columns).map(|i| one(i) as i64).collect();
    Ok(vec![cx.constant(from_integers(dtype, shape, &values))])
}

/// Positions of the elements that are not 0, one column each.
fn non_zero(cx: &mut Cx, c: &Call) -> Done {
    let x = cx.static_tensor(c.input(0, "X")?, "X")?;
    if x.len() > 1 << 20 {
        return unsupported("the operand is too large");
    }
    let hits: Vec<usize> =
        x.to_f64_vec().iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect();
    let mut rows = Vec::new();
    for axis in 0..x.shape().len() {
        let stride: usize = x.shape()[axis + 1..].iter().product();
        rows.extend(hits.iter().map(|i| (i / stride % x.shape()[axis]) as i64));
    }
    Ok(vec![cx.constant(Tensor::from_i64(&[x.shape().len(), hits.len()], &rows))])
}

/// A vector of sizes as text for messages.
pub(super) fn shown_shape(shape: &[Dim]) -> String {
    shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(",")
}
