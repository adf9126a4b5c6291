//! Kernels for operators that only move elements, which are strided copies.

use super::super::kernel::{Fill, Kernel, Move};
use super::super::values::Value;
use super::Site;
use super::elementwise::broadcast_strides;
use cqc_proto::op::{CoordinateMode, NearestMode, PadMode, ResizeMode};
use cqc_proto::{DType, Dim, Op};

/// The maximum number of axes of a strided copy.
const MAX_COPY_RANK: usize = 8;

impl Site<'_> {
    fn copies(&self, fill: Option<Fill>, moves: Vec<Move>) -> Option<Kernel> {
        let moves: Vec<Move> = moves.into_iter().map(Move::merged).collect();
        let fits = moves.iter().all(|m| m.shape.len() <= MAX_COPY_RANK);
        fits.then(|| Kernel::Copy { size: self.output().dtype.size(), fill, moves })
    }

    /// One copy of input 0 into the whole result of shape `shape`.
    fn whole(
        &self,
        shape: &[usize],
        x_offset: usize,
        x_strides: Vec<isize>,
        y_strides: Vec<usize>,
    ) -> Option<Kernel> {
        self.copies(
            None,
            vec![Move {
                input: 0,
                shape: shape.to_vec(),
                x_offset,
                x_strides,
                y_offset: 0,
                y_strides,
            }],
        )
    }

    pub(super) fn reshape(&self) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        if x.home == y.home && x.column == y.column && x.is_dense() && y.is_dense() {
            return Some(Kernel::Nothing);
        }
        // a side without gaps can be viewed in the rows of the other side
        let rows_of = if y.is_dense() { x } else { y };
        (x.is_dense() || y.is_dense()).then_some(())?;
        let strides = |v: &Value| if v.is_dense() { [rows_of.cols, 1] } else { [v.ld, 1] };
        let x_strides = strides(x).map(|s| s as isize).to_vec();
        self.whole(&[rows_of.rows, rows_of.cols], 0, x_strides, strides(y).to_vec())
    }

    pub(super) fn transpose(&self, perm: &[usize]) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let strides = x.strides();
        self.whole(&y.shape, 0, perm.iter().map(|&p| strides[p] as isize).collect(), y.strides())
    }

    pub(super) fn expand(&self) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        if x.shape.len() > y.shape.len() {
            return None;
        }
        let strides = broadcast_strides(x, y).into_iter().map(|s| s as isize).collect();
        self.whole(&y.shape, 0, strides, y.strides())
    }

    /// Which inputs of a concat already lie in the result.
    pub(super) fn in_place(&self, axis: usize) -> Vec<bool> {
        let (y, mut before) = (self.output(), 0);
        let last_axis = axis + 1 == y.shape.len();
        let lies = |i: usize| {
            let Some(x) = self.input(i) else { return false };
            let column = y.column + before;
            before += x.shape[axis];
            // in a single row, the columns may span several leading axes
            last_axis && x.home == y.home && x.column == column && (x.ld == y.ld || x.rows == 1)
        };
        (0..self.step.inputs.len()).map(lies).collect()
    }

    pub(super) fn concat(&self, axis: usize) -> Option<Kernel> {
        let y = self.output();
        let (strides, mut at, mut moves) = (y.strides(), 0, Vec::new());
        for (input, in_place) in self.in_place(axis).into_iter().enumerate() {
            let x = self.input(input)?;
            if !in_place {
                moves.push(Move {
                    input,
                    shape: x.shape.clone(),
                    x_offset: 0,
                    x_strides: x.strides().into_iter().map(|s| s as isize).collect(),
                    y_offset: at * strides[axis],
                    y_strides: strides.clone(),
                });
            }
            at += x.shape[axis];
        }
        if moves.is_empty() { Some(Kernel::Nothing) } else { self.copies(None, moves) }
    }

    pub(super) fn slice(&self, axes: &[usize], starts: &[Dim], steps: &[i64]) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let strides = x.strides();
        let mut x_strides: Vec<isize> = strides.iter().map(|&s| s as isize).collect();
        let mut offset = 0;
        for ((&axis, start), &step) in axes.iter().zip(starts).zip(steps) {
            offset += usize::try_from(start.as_const()?).ok()? * strides[axis];
            // with a single element the step does not matter and may be any number
            x_strides[axis] *= if y.shape[axis] > 1 { step as isize } else { 1 };
        }
        // the result is a range of columns that need not be moved
        if x.home == y.home && y.column == x.column + offset && x.ld == y.ld && x.rows == y.rows {
            return Some(Kernel::Nothing);
        }
        self.whole(&y.shape, offset, x_strides, y.strides())
    }

    pub(super) fn pad(&self, op: &Op) -> Option<Kernel> {
        let Op::Pad { before, after, mode: PadMode::Constant } = op else { return None };
        let (x, y) = (self.input(0)?, self.output());
        if before.iter().chain(after).any(|&p| p < 0) || !y.is_dense() {
            return None;
        }
        let y_strides = y.strides();
        let y_offset = before.iter().zip(&y_strides).map(|(&b, s)| b as usize * s).sum();
        let x_strides = x.strides().into_iter().map(|s| s as isize).collect();
        let inner =
            Move { input: 0, shape: x.shape.clone(), x_offset: 0, x_strides, y_offset, y_strides };
        let fill = if self.input(1).is_some() { Fill::Input(1) } else { Fill::Zero };
        self.copies(Some(fill), vec![inner])
    }

    pub(super) fn tile(&self, repeats: &[i64]) -> Option<Kernel> {
        let repeats =
            repeats.iter().map(|&r| usize::try_from(r).ok()).collect::<Option<Vec<_>>>()?;
        let (x, y) = (self.input(0)?, self.output());
        let (xs, ys) = (x.strides(), y.strides());
        let (mut shape, mut x_strides, mut y_strides) = (vec![], vec![], vec![]);
        for axis in 0..x.shape.len() {
            shape.extend([repeats[axis], x.shape[axis]]);
            x_strides.extend([0, xs[axis] as isize]);
            y_strides.extend([ys[axis] * x.shape[axis], ys[axis]]);
        }
        self.whole(&shape, 0, x_strides, y_strides)
    }

    /// Enlarges by integer factors with repeated elements.
    pub(super) fn resize(&self, op: &Op) -> Option<Kernel> {
        let Op::Resize { scales, mode: ResizeMode::Nearest, coordinates, nearest, .. } = op else {
            return None;
        };
        let (x, y) = (self.input(0)?, self.output());
        let repeats = match (coordinates, nearest) {
            (CoordinateMode::Asymmetric, NearestMode::Floor) => true,
            // (i + 1/2) / f − 1/2 is less than 1/2 away from ⌊i / f⌋
            (
                CoordinateMode::HalfPixel,
                NearestMode::RoundPreferFloor | NearestMode::RoundPreferCeil,
            ) => true,
            _ => false,
        };
        let factor = |axis: usize| {
            let factor = y.shape[axis] / x.shape[axis];
            let whole = y.shape[axis] == factor * x.shape[axis] && factor > 0;
            (whole && scales.get(axis).is_none_or(|&s| s == factor as f32)).then_some(factor)
        };
        let factors = (0..x.shape.len()).map(factor).collect::<Option<Vec<_>>>()?;
        repeats.then_some(())?;
        let (xs, ys) = (x.strides(), y.strides());
        let (mut shape, mut x_strides, mut y_strides) = (vec![], vec![], vec![]);
        for (axis, &factor) in factors.iter().enumerate() {
            shape.extend([x.shape[axis], factor]);
            x_strides.extend([xs[axis] as isize, 0]);
            y_strides.extend([ys[axis] * factor, ys[axis]]);
        }
        self.whole(&shape, 0, x_strides, y_strides)
    }

    pub(super) fn gather(&self, axis: usize) -> Option<Kernel> {
        let (data, indices, y) = (self.input(0)?, self.input(1)?, self.output());
        let dense = data.is_dense() && indices.is_dense() && y.is_dense();
        let fast = dense && matches!(indices.dtype, DType::I64 | DType::I32);
        fast.then(|| Kernel::Gather {
            outer: data.shape[..axis].iter().product(),
            size: data.shape[axis],
            inner_bytes: data.shape[axis + 1..].iter().product::<usize>() * data.dtype.size(),
            indices: indices.dtype,
        })
    }
}
