//! Kernels for operators that work element by element, and the broadcasting of their operands.

use super::super::kernel::{Kernel, Move, PerImage, Side};
use super::super::values::Value;
use super::Site;
use cqc_kernels::{Act, Binary, Unary};
use cqc_proto::DType;
use cqc_proto::op::{BinaryKind, UnaryKind};

/// Rows shorter than this are joined with the axis before them, if the operands allow it.
const SHORT: usize = 64;

impl Site<'_> {
    pub(super) fn unary(&self, kind: UnaryKind) -> Option<Kernel> {
        let dense = self.is_f32() && self.is_dense(0) && self.output().is_dense();
        dense.then(|| unary(kind)).flatten().map(Kernel::Unary)
    }

    pub(super) fn binary(&self, kind: BinaryKind) -> Option<Kernel> {
        let op = self.is_f32().then(|| binary(kind)).flatten()?;
        let (a, b, y) = (self.input(0)?, self.input(1)?, self.output());
        let rank = y.shape.len();
        let strided = ![a, b, y].iter().all(|v| v.is_dense());
        let splits = if strided { rank - 1..rank } else { 0..rank.max(1) };
        let tried: Vec<_> = splits.rev().map(|s| (s, side(a, y, s), side(b, y, s))).collect();
        let columns = |s: usize| y.shape[s..].iter().product::<usize>();
        let both = |t: &&(usize, Option<Side>, Option<Side>)| t.1.is_some() && t.2.is_some();
        let long = tried.iter().filter(both).find(|t| columns(t.0) >= SHORT);
        let (split, a_side, b_side) = match long.or_else(|| tried.iter().rfind(both)) {
            Some((split, a, b)) => (*split, a.clone()?, b.clone()?),
            None => {
                let (split, a_side, b_side) = tried.into_iter().next()?;
                (
                    split,
                    a_side.or_else(|| expanded(0, a, y))?,
                    b_side.or_else(|| expanded(1, b, y))?,
                )
            }
        };
        let c = columns(split);
        let rows = y.len() / c;
        let ldy = if split + 1 == rank { y.ld } else { c };
        Some(Kernel::Binary { op, rows, c, sides: [a_side, b_side], ldy })
    }

    pub(super) fn select(&self) -> Option<Kernel> {
        let y = self.output();
        let size = y.dtype.size();
        let fast = y.is_dense() && matches!(size, 4 | 8);
        let strides = |i: usize| Some(broadcast_strides(self.input(i)?, y));
        fast.then_some(Kernel::Where {
            size,
            shape: y.shape.clone(),
            strides: [strides(0)?, strides(1)?, strides(2)?],
        })
    }

    pub(super) fn cast(&self, to: DType) -> Option<Kernel> {
        let from = self.input(0)?.dtype;
        let known = |d: DType| matches!(d, DType::F32 | DType::I64 | DType::I32 | DType::Bool);
        let fast = known(from) && known(to) && self.is_dense(0) && self.output().is_dense();
        fast.then_some(Kernel::Cast { from, to })
    }
}

/// The strides of `x` along the axes of `y`; 0 where `x` repeats.
pub(crate) fn broadcast_strides(x: &Value, y: &Value) -> Vec<usize> {
    let front = y.shape.len() - x.shape.len();
    let mut strides = vec![0; y.shape.len()];
    for (axis, stride) in x.strides().into_iter().enumerate() {
        strides[front + axis] = if x.shape[axis] == 1 { 0 } else { stride };
    }
    strides
}

/// The broadcasting of `x` to a result whose axes from `split` on are the columns. `None` if the
/// kernel has no such operand.
fn side(x: &Value, y: &Value, split: usize) -> Option<Side> {
    let front = y.shape.len() - x.shape.len();
    // for each axis of y longer than 1: whether x has that axis, or repeats along it
    let axes = |range: std::ops::Range<usize>| {
        range
            .filter(|&a| y.shape[a] > 1)
            .map(|a| a >= front && x.shape[a - front] == y.shape[a])
            .collect::<Vec<_>>()
    };
    let (rows, columns) = (axes(0..split), axes(split..y.shape.len()));
    let all = |flags: &[bool]| flags.iter().all(|f| *f);
    let none = |flags: &[bool]| !flags.iter().any(|f| *f);
    let c = y.shape[split..].iter().product::<usize>();
    let ld = if split + 1 == y.shape.len() { x.ld } else { c };
    match () {
        () if x.len() == 1 => Some(Side::Scalar),
        () if all(&rows) && all(&columns) => Some(Side::Full(ld)),
        () if none(&rows) && all(&columns) && x.rows_are_joined(c) => Some(Side::Row),
        () if all(&rows) && none(&columns) && x.is_dense() => Some(Side::Column),
        () if all(&columns) && x.is_dense() => {
            image(&rows, x.len() / c, c, y.len() / c).map(Side::Image)
        }
        () => None,
    }
}

/// One row per image, if the axes of the rows that `x` has (`rows`) are the leading ones.
fn image(rows: &[bool], images: usize, c: usize, all_rows: usize) -> Option<PerImage> {
    let own = rows.iter().take_while(|f| **f).count();
    let shared = rows[own..].iter().all(|f| !f);
    shared.then(|| PerImage { stride: if images == 1 { 0 } else { c }, rows: all_rows / images })
}

impl Value {
    /// Whether the value has `c` elements that are contiguous.
    fn rows_are_joined(&self, c: usize) -> bool {
        self.len() == c && (self.is_dense() || self.rows == 1)
    }
}

fn expanded(input: usize, x: &Value, y: &Value) -> Option<Side> {
    let mut y_strides = vec![1; y.shape.len()];
    for axis in (1..y.shape.len()).rev() {
        y_strides[axis - 1] = y_strides[axis] * y.shape[axis];
    }
    let x_strides = broadcast_strides(x, y).into_iter().map(|s| s as isize).collect();
    let copy =
        Move { input, shape: y.shape.clone(), x_offset: 0, x_strides, y_offset: 0, y_strides }
            .merged();
    Some(Side::Expanded(copy))
}

fn unary(kind: UnaryKind) -> Option<Unary> {
    use UnaryKind as K;
    Some(match kind {
        K::Silu => Unary::Act(Act::Silu),
        K::GeluErf => Unary::Act(Act::GeluErf),
        K::GeluTanh => Unary::Act(Act::GeluTanh),
        K::QuickGelu => Unary::Act(Act::QuickGelu),
        K::Relu => Unary::Act(Act::Relu),
        K::Sigmoid => Unary::Act(Act::Sigmoid),
        K::Tanh => Unary::Act(Act::Tanh),
        K::Exp => Unary::Exp,
        K::Log => Unary::Log,
        K::Neg => Unary::Neg,
        K::Abs => Unary::Abs,
        K::Sqrt => Unary::Sqrt,
        K::Reciprocal => Unary::Reciprocal,
        K::Erf => Unary::Erf,
        K::Sin => Unary::Sin,
        K::Cos => Unary::Cos,
        K::Floor => Unary::Floor,
        K::Ceil => Unary::Ceil,
        K::Round => Unary::Round,
        _ => return None,
    })
}

fn binary(kind: BinaryKind) -> Option<Binary> {
    Some(match kind {
        BinaryKind::Add => Binary::Add,
        BinaryKind::Sub => Binary::Sub,
        BinaryKind::Mul => Binary::Mul,
        BinaryKind::Div => Binary::Div,
        BinaryKind::Max => Binary::Max,
        BinaryKind::Min => Binary::Min,
        BinaryKind::Pow => Binary::Pow,
        _ => return None,
    })
}
