//! Partial evaluation: applies operators to sizes, some of which are symbolic.
//!
//! Operators that only move elements are evaluated on the positions of the elements, so that there
//! is no second definition of these operators.

use super::item::Sizes;
use cqc_kernels::reference;
use cqc_proto::op::{BinaryKind, ReduceKind, UnaryKind};
use cqc_proto::{DType, Dim, Op, Tensor};

/// The operator's results; `None` if they are not affine functions of the symbols.
pub(super) fn eval(op: &Op, inputs: &[Sizes]) -> Option<Vec<Sizes>> {
    match op {
        Op::Unary { kind } => {
            let x = inputs.first()?;
            let elements = x.elements.iter().map(|d| unary(*kind, d)).collect::<Option<_>>()?;
            Some(vec![Sizes { elements, ..x.clone() }])
        }
        Op::Cast { to } => cast(inputs.first()?, *to).map(|s| vec![s]),
        Op::Binary { kind } => elementwise(op, inputs, |dtype, v| binary(*kind, dtype, v[0], v[1])),
        Op::Where => elementwise(op, inputs, |_, v| {
            Some(v[if v[0].as_const()? != 0 { 1 } else { 2 }].clone())
        }),
        Op::Reduce { kind, axes, .. } => reduce(op, *kind, axes, inputs),
        Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Expand { .. }
        | Op::Slice { .. }
        | Op::Tile { .. } => moved(op, inputs, &[0]),
        Op::Concat { .. } => moved(op, inputs, &(0..inputs.len()).collect::<Vec<_>>()),
        Op::Gather { .. } | Op::GatherElements { .. } | Op::GatherNd { .. } => {
            moved(op, inputs, &[0])
        }
        Op::ScatterNd { reduction } | Op::ScatterElements { reduction, .. }
            if *reduction == Default::default() =>
        {
            moved(op, inputs, &[0, 2])
        }
        _ => None,
    }
}

/// Evaluates an operator that moves the elements of the operands `data`. The other operands must be
/// known.
fn moved(op: &Op, inputs: &[Sizes], data: &[usize]) -> Option<Vec<Sizes>> {
    let mut pool: Vec<Dim> = Vec::new();
    let mut tensors = Vec::new();
    for (i, x) in inputs.iter().enumerate() {
        tensors.push(if data.contains(&i) {
            let first = pool.len() as i64;
            pool.extend(x.elements.iter().cloned());
            Tensor::from_i64(&x.shape, &(first..pool.len() as i64).collect::<Vec<_>>())
        } else {
            x.to_tensor()?
        });
    }
    bounded_output(op, inputs)?;
    let tensors: Vec<_> = tensors.iter().map(Some).collect();
    let dtype = inputs[*data.last()?].dtype;
    let moved = reference::eval(op, &tensors).ok()?;
    let back = |t: Tensor| {
        let elements = t
            .to_i64_vec()
            .into_iter()
            .map(|i| pool.get(i as usize).cloned())
            .collect::<Option<_>>()?;
        Some(Sizes { dtype, shape: t.shape().to_vec(), elements })
    };
    moved.into_iter().map(back).collect()
}

/// The shape of the first output if it is known and small.
fn bounded_output(op: &Op, inputs: &[Sizes]) -> Option<Vec<usize>> {
    let types: Vec<_> = inputs.iter().map(Sizes::value_type).collect();
    let types: Vec<_> = types.iter().map(Some).collect();
    let shape = op.infer(&types).ok()?.first()?.fixed_shape()?;
    cqc_proto::types::element_count(&shape)
        .filter(|&n| n <= super::limits::MAX_SIZES)
        .map(|_| shape)
}

fn elementwise(
    op: &Op,
    inputs: &[Sizes],
    f: impl Fn(DType, &[&Dim]) -> Option<Dim>,
) -> Option<Vec<Sizes>> {
    let shape = bounded_output(op, inputs)?;
    let types: Vec<_> = inputs.iter().map(Sizes::value_type).collect();
    let dtype = op.infer(&types.iter().map(Some).collect::<Vec<_>>()).ok()?[0].dtype;
    let count = shape.iter().product();
    let element = |i: usize| {
        let operands: Vec<&Dim> =
            inputs.iter().map(|x| &x.elements[broadcast_index(i, &shape, &x.shape)]).collect();
        f(inputs[0].dtype, &operands)
    };
    let elements = (0..count).map(element).collect::<Option<_>>()?;
    Some(vec![Sizes { dtype, shape, elements }])
}

/// The position in an operand of `shape` that element `i` of a result of shape `out` reads.
fn broadcast_index(mut i: usize, out: &[usize], shape: &[usize]) -> usize {
    let (mut index, mut stride) = (0, 1);
    for (axis, &size) in out.iter().enumerate().rev() {
        let at = i % size;
        i /= size;
        if let Some(mine) = (axis + shape.len()).checked_sub(out.len()) {
            index += if shape[mine] == 1 { 0 } else { at * stride };
            stride *= shape[mine];
        }
    }
    index
}

fn unary(kind: UnaryKind, d: &Dim) -> Option<Dim> {
    match kind {
        UnaryKind::Neg => Dim::constant(0).sub(d),
        UnaryKind::Floor | UnaryKind::Ceil | UnaryKind::Round => Some(d.clone()),
        UnaryKind::Abs | UnaryKind::Relu if nonnegative(d) => Some(d.clone()),
        UnaryKind::Not => d.as_const().map(|v| Dim::constant((v == 0) as i64)),
        UnaryKind::Sign if d.is_positive() => Some(1.into()),
        _ => None,
    }
}

/// Converts sizes. They fit the wider integers and, as whole numbers, f32 up to 2^24; the batch is
/// far below that.
fn cast(x: &Sizes, to: DType) -> Option<Sizes> {
    let elements = match to {
        DType::I32 | DType::I64 | DType::F32 | DType::F64 => x.elements.clone(),
        DType::Bool => {
            let truth = |d: &Dim| equal(d, &0.into()).map(|zero| Dim::constant(!zero as i64));
            x.elements.iter().map(truth).collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(Sizes { dtype: to, shape: x.shape.clone(), elements })
}

fn binary(kind: BinaryKind, dtype: DType, a: &Dim, b: &Dim) -> Option<Dim> {
    use BinaryKind::*;
    let bool = |v: bool| Dim::constant(v as i64);
    match kind {
        Add => a.add(b),
        Sub => a.sub(b),
        Mul => a.mul(b),
        Div => a.div_exact(b).or_else(|| match (a.as_const()?, b.as_const()?) {
            (a, b) if b != 0 && dtype.is_integer() => Some(Dim::constant(a / b)),
            _ => None,
        }),
        Mod | Fmod => match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) if b > 0 && a >= 0 => Some(Dim::constant(a % b)),
            _ => a.div_exact(b).map(|_| 0.into()),
        },
        Min => less(a, b)
            .map(|a_first| if a_first { a.clone() } else { b.clone() })
            .or_else(|| least(a, b)),
        Max => less(a, b)
            .map(|a_first| if a_first { b.clone() } else { a.clone() })
            .or_else(|| least(a, b).map(|l| if l == *a { b.clone() } else { a.clone() })),
        And => Some(bool(a.as_const()? != 0 && b.as_const()? != 0)),
        Or => Some(bool(a.as_const()? != 0 || b.as_const()? != 0)),
        Equal => equal(a, b).map(bool),
        Less => less(a, b).map(bool),
        Greater => less(b, a).map(bool),
        LessOrEqual => less(b, a).map(|v| bool(!v)),
        GreaterOrEqual => less(a, b).map(|v| bool(!v)),
        _ => None,
    }
}

/// Whether `d ≥ 0` for all symbols ≥ 1.
pub(super) fn nonnegative(d: &Dim) -> bool {
    d.is(0) || d.is_positive() || d.add(&1.into()).is_some_and(|d| d.is_positive())
}

/// The smaller of `a` and `b` if the same one is smaller for all symbols ≥ 1.
pub(super) fn least(a: &Dim, b: &Dim) -> Option<Dim> {
    if nonnegative(&b.sub(a)?) {
        Some(a.clone())
    } else {
        nonnegative(&a.sub(b)?).then(|| b.clone())
    }
}

/// Whether `a < b`, if the answer is the same for all symbols ≥ 1.
fn less(a: &Dim, b: &Dim) -> Option<bool> {
    if b.sub(a)?.is_positive() {
        return Some(true);
    }
    nonnegative(&a.sub(b)?).then_some(false)
}

fn equal(a: &Dim, b: &Dim) -> Option<bool> {
    let difference = a.sub(b)?;
    match difference.as_const() {
        Some(d) => Some(d == 0),
        None if difference.is_positive() || b.sub(a)?.is_positive() => Some(false),
        None => None,
    }
}

fn reduce(op: &Op, kind: ReduceKind, axes: &[usize], inputs: &[Sizes]) -> Option<Vec<Sizes>> {
    let kind = match kind {
        ReduceKind::Sum => BinaryKind::Add,
        ReduceKind::Prod => BinaryKind::Mul,
        ReduceKind::Max => BinaryKind::Max,
        ReduceKind::Min => BinaryKind::Min,
        _ => return None,
    };
    let x = inputs.first()?;
    let shape = bounded_output(op, inputs)?;
    let kept: Vec<usize> =
        x.shape.iter().enumerate().map(|(i, &s)| if axes.contains(&i) { 1 } else { s }).collect();
    let mut elements: Vec<Option<Dim>> = vec![None; kept.iter().product()];
    for (i, d) in x.elements.iter().enumerate() {
        let slot = &mut elements[broadcast_index(i, &x.shape, &kept)];
        *slot = Some(match slot.take() {
            None => d.clone(),
            Some(sum) => binary(kind, x.dtype, &sum, d)?,
        });
    }
    let elements = elements.into_iter().collect::<Option<_>>()?;
    Some(vec![Sizes { dtype: x.dtype, shape, elements }])
}
