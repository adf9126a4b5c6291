//! Helpers of the rules, which look at operands and build replacements.

use crate::ir::{Graph, Node, ValueId};
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{Dim, Op, Shape};

/// The operands of `v` if a binary operator of that kind computes it.
pub fn binary(g: &Graph, v: ValueId, kind: BinaryKind) -> Option<(ValueId, ValueId)> {
    let node = g.producer_node(v)?;
    (node.op == Op::binary(kind))
        .then(|| (node.inputs[0], node.inputs[1]))
        .and_then(|(a, b)| Some((a?, b?)))
}

/// The operand of `v` if a unary operator of that kind computes it.
pub fn unary(g: &Graph, v: ValueId, kind: UnaryKind) -> Option<ValueId> {
    g.producer_node(v).filter(|n| n.op == Op::unary(kind)).and_then(|n| n.input(0))
}

/// Calls `f` with both orders of a pair, and returns the first result.
pub fn either_order<T>(
    pair: (ValueId, ValueId),
    f: impl Fn(ValueId, ValueId) -> Option<T>,
) -> Option<T> {
    f(pair.0, pair.1).or_else(|| f(pair.1, pair.0))
}

/// `(x, c)` if `v = x ∘ c` for a commutative operator and a one-element constant `c`, in either
/// order.
pub fn with_scalar(g: &Graph, v: ValueId, kind: BinaryKind) -> Option<(ValueId, f64)> {
    either_order(binary(g, v, kind)?, |x, c| Some((x, g.scalar(c)?)))
}

/// `(x, factor)` if `v` is `x · c` or `x / c` with a one-element constant.
pub fn scaled(g: &Graph, v: ValueId) -> Option<(ValueId, f64)> {
    if let Some(found) = with_scalar(g, v, BinaryKind::Mul) {
        return Some(found);
    }
    let (x, c) = binary(g, v, BinaryKind::Div)?;
    Some((x, 1.0 / g.scalar(c)?))
}

/// Looks through any number of [`scaled`]. The factor is 1 if there is none.
pub fn peel_scales(g: &Graph, mut v: ValueId) -> (ValueId, f64) {
    let mut factor = 1.0;
    while let Some((x, f)) = scaled(g, v).filter(|(x, _)| g.ty(*x) == g.ty(v)) {
        v = x;
        factor *= f;
    }
    (v, factor)
}

/// Whether `v` is `x²`, written as a power or as a product.
pub fn is_square_of(g: &Graph, v: ValueId, x: ValueId) -> bool {
    binary(g, v, BinaryKind::Mul) == Some((x, x))
        || binary(g, v, BinaryKind::Pow).is_some_and(|(b, e)| b == x && is_scalar(g, e, 2.0))
}

/// Whether `v` is a one-element constant within f32 rounding (1e-6 relative) of `expected`.
pub fn is_scalar(g: &Graph, v: ValueId, expected: f64) -> bool {
    g.scalar(v).is_some_and(|c| close(c, expected))
}

/// Whether two numbers are equal within 1e-6 relative, which allows for the rounding of constants
/// to f32. fp16 exports round more; see [`roughly`].
pub fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(1e-30)
}

/// Whether two numbers are equal within 1e-3 relative, which allows for the rounding of constants
/// to f16.
pub fn roughly(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-3 * b.abs().max(1e-30)
}

/// The operand and the permutation if a transpose computes `v`.
pub fn transposed(g: &Graph, v: ValueId) -> Option<(ValueId, &[usize])> {
    match g.producer_node(v)? {
        Node { op: Op::Transpose { perm }, inputs, .. } => Some((inputs[0]?, perm)),
        _ => None,
    }
}

/// The operand if a reshape computes `v`.
pub fn reshaped(g: &Graph, v: ValueId) -> Option<ValueId> {
    g.producer_node(v).filter(|n| matches!(n.op, Op::Reshape { .. })).and_then(|n| n.input(0))
}

/// `v` in another shape; `v` itself if it has the shape already.
pub fn reshape(
    g: &mut Graph,
    name: &str,
    v: ValueId,
    shape: Shape,
) -> Result<ValueId, cqc_proto::op::OpError> {
    if g.shape(v) == shape { Ok(v) } else { g.op(name, Op::Reshape { shape }, &[v]) }
}

/// `v` transposed.
pub fn transpose(
    g: &mut Graph,
    name: &str,
    v: ValueId,
    perm: &[usize],
) -> Result<ValueId, cqc_proto::op::OpError> {
    g.op(name, Op::Transpose { perm: perm.to_vec() }, &[v])
}

/// The product of sizes; `None` if it cannot be expressed.
pub fn product(dims: &[Dim]) -> Option<Dim> {
    dims.iter().try_fold(Dim::constant(1), |n, d| n.mul(d))
}

/// Whether the operator takes these operands, for rules whose pattern does not imply it.
pub fn takes(g: &Graph, op: &Op, operands: &[Option<ValueId>]) -> bool {
    refusal(g, op, operands).is_none()
}

/// The reason why the operator does not take these operands; `None` if it does.
pub fn refusal(g: &Graph, op: &Op, operands: &[Option<ValueId>]) -> Option<String> {
    let types: Vec<_> = operands.iter().map(|v| v.map(|v| g.ty(v))).collect();
    op.infer(&types).err().map(|e| e.reason)
}

/// The inverse permutation.
pub fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| out[p] = i);
    out
}

/// Whether a shape has `channels` along `axis` and 1 elsewhere. Axes are counted from the back, so
/// missing front axes are 1.
pub fn is_channel_vector(shape: &[Dim], rank: usize, axis: usize, channels: &Dim) -> bool {
    let from_back = rank - 1 - axis;
    shape.len() <= rank
        && shape.len() > from_back
        && shape
            .iter()
            .enumerate()
            .all(|(i, d)| if shape.len() - 1 - i == from_back { d == channels } else { d.is(1) })
}

/// Largest number of channels for which one number is repeated. A model file can give any size, and
/// no real network has as many channels.
const MAX_REPEATED: usize = 1 << 20;

/// A constant channel vector (see [`is_channel_vector`]) as a constant of shape [C].
pub fn channel_constant(
    g: &mut Graph,
    v: ValueId,
    rank: usize,
    axis: usize,
    channels: &Dim,
) -> Option<ValueId> {
    let count = channels.as_const()? as usize;
    let tensor = g.tensor(v)?.clone();
    if g.shape(v) == [channels.clone()] && axis == rank - 1 {
        return Some(v);
    }
    // one number stands for all channels
    let data = if tensor.len() == 1 && count != 1 {
        if count > MAX_REPEATED {
            return None;
        }
        cqc_proto::Tensor::from_f32(&[count], &vec![*tensor.as_f32()?.first()?; count])
    } else if is_channel_vector(g.shape(v), rank, axis, channels) {
        tensor.reshaped(vec![count]).expect("a channel vector has an element per channel")
    } else {
        return None;
    };
    let name = g.value(v).name.clone();
    Some(g.constant(&name, data))
}
