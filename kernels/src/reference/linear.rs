//! Matrix products, linear layers, Einstein sums, and the epilogue that convolutions share with
//! them.

use super::elementwise::activate;
use super::lane::{Lane, by_float, by_lane};
use super::walk::{broadcast_strides, each, runs, strides, volume};
use super::{Call, EvalError, MAX_BYTES};
use cqc_proto::dtype::DType;
use cqc_proto::op::{Act, Op};
use cqc_proto::tensor::Tensor;
use cqc_proto::types::ValueType;
use std::borrow::Cow;

pub(super) fn eval(call: &Call) -> Result<Tensor, EvalError> {
    match call.op {
        Op::MatMul => Ok(by_lane!(call.out().dtype, T => matmul::<T>(call))),
        Op::Linear { act } => Ok(by_float!(call.out().dtype, T => linear::<T>(call, *act))),
        Op::Einsum { equation } => by_lane!(call.out().dtype, T => einsum::<T>(call, equation)),
        _ => unreachable!("dispatched by reference::eval"),
    }
}

/// Adds `a · b` to `y`; `a` is m×k, `b` k×n. Every element sums over ascending k.
pub(super) fn product<T: Lane>(a: &[T], b: &[T], y: &mut [T], k: usize, n: usize) {
    if n == 0 || k == 0 {
        return;
    }
    // four rows at a time read each row of b once for all of them
    for (a, y) in a.chunks(4 * k).zip(y.chunks_mut(4 * n)) {
        if a.len() < 4 * k {
            a.chunks_exact(k).zip(y.chunks_exact_mut(n)).for_each(|(a, y)| one_row(a, b, y));
            continue;
        }
        let (y01, y23) = y.split_at_mut(2 * n);
        let ((y0, y1), (y2, y3)) = (y01.split_at_mut(n), y23.split_at_mut(n));
        for (p, b) in b.chunks_exact(n).enumerate() {
            let [a0, a1, a2, a3] = [a[p], a[k + p], a[2 * k + p], a[3 * k + p]];
            for ((((b, y0), y1), y2), y3) in
                b.iter().zip(&mut *y0).zip(&mut *y1).zip(&mut *y2).zip(&mut *y3)
            {
                *y0 = y0.add(a0.mul(*b));
                *y1 = y1.add(a1.mul(*b));
                *y2 = y2.add(a2.mul(*b));
                *y3 = y3.add(a3.mul(*b));
            }
        }
    }
}

fn one_row<T: Lane>(a: &[T], b: &[T], y: &mut [T]) {
    for (&a, b) in a.iter().zip(b.chunks_exact(y.len())) {
        y.iter_mut().zip(b).for_each(|(y, &b)| *y = y.add(a.mul(b)));
    }
}

fn matmul<T: Lane>(call: &Call) -> Tensor {
    let (a, b, out) = (call.input(0), call.input(1), call.out());
    // a vector is a row on the left, a column on the right
    let (batch_a, [m, k]) = matrix(a.shape(), |n| [1, n]);
    let (batch_b, [_, n]) = matrix(b.shape(), |n| [n, 1]);
    let rank = batch_a.len().max(batch_b.len());
    let batch = &out.shape[..rank];
    let (steps_a, steps_b) = (broadcast_strides(batch_a, batch), broadcast_strides(batch_b, batch));
    let (a, b) = (T::load(a), T::load(b));
    let mut y = vec![T::ZERO; out.len()];
    let mut matrices = y.chunks_exact_mut(m * n); // not 0: the result has elements
    each(batch, [&steps_a, &steps_b], |[i, j]| {
        let y = matrices.next().expect("one matrix per index of the batch axes");
        product(&a[i as usize * m * k..][..m * k], &b[j as usize * k * n..][..k * n], y, k, n);
    });
    out.of(&y)
}

fn matrix(shape: &[usize], of_vector: fn(usize) -> [usize; 2]) -> (&[usize], [usize; 2]) {
    match shape {
        [batch @ .., rows, columns] => (batch, [*rows, *columns]),
        _ => (&[], of_vector(shape[0])),
    }
}

/// What happens to a sum: `residual + gate · act(scale · sum + bias + row)`.
pub(super) struct Epilogue<'a, T: Lane> {
    scale: Option<Cow<'a, [T]>>,
    bias: Option<Cow<'a, [T]>>,
    row: Option<PerImage<'a, T>>,
    gate: Option<PerImage<'a, T>>,
    residual: Option<Cow<'a, [T]>>,
    act: Act,
}

/// One value per channel, the same for all images or for each its own.
pub(super) struct PerImage<'a, T: Lane> {
    values: Cow<'a, [T]>,
    step: usize,
}

impl<'a, T: Lane> PerImage<'a, T> {
    pub(super) fn new(t: &'a Tensor, channels: usize) -> PerImage<'a, T> {
        let values = T::load(t);
        let step = if values.len() == channels { 0 } else { channels };
        PerImage { values, step }
    }

    pub(super) fn at(&self, image: usize, channel: usize) -> T {
        self.values[image * self.step + channel]
    }
}

impl<'a, T: Lane> Epilogue<'a, T> {
    /// From inputs 2 to 6: bias, row, gate, residual, scale.
    pub(super) fn new(call: &Call<'a>, channels: usize, act: Act) -> Epilogue<'a, T> {
        let per_image = |i| call.optional(i).map(|t| PerImage::new(t, channels));
        Epilogue {
            scale: call.optional(6).map(T::load),
            bias: call.optional(2).map(T::load),
            row: per_image(3),
            gate: per_image(4),
            residual: call.optional(5).map(T::load),
            act,
        }
    }

    /// The finished value of the result's element number `at`.
    #[inline]
    pub(super) fn apply(&self, mut sum: T, image: usize, channel: usize, at: usize) -> T {
        if let Some(scale) = &self.scale {
            sum = sum.mul(scale[channel]);
        }
        if let Some(bias) = &self.bias {
            sum = sum.add(bias[channel]);
        }
        if let Some(row) = &self.row {
            sum = sum.add(row.at(image, channel));
        }
        if self.act != Act::None {
            sum = T::from_f64(activate(self.act, sum.to_f64()));
        }
        if let Some(gate) = &self.gate {
            sum = gate.at(image, channel).mul(sum);
        }
        match &self.residual {
            Some(residual) => residual[at].add(sum),
            None => sum,
        }
    }
}

fn linear<T: Lane>(call: &Call, act: Act) -> Tensor {
    let (x, w, out) = (call.input(0), call.input(1), call.out());
    let (k, n) = (w.shape()[0], w.shape()[1]);
    let mut y = vec![T::ZERO; out.len()];
    product(&T::load(x), &T::load(w), &mut y, k, n);
    let epilogue = Epilogue::<T>::new(call, n, act);
    let per_image = if out.shape.len() > 1 { out.len() / out.shape[0] } else { out.len() };
    for (at, v) in y.iter_mut().enumerate() {
        *v = epilogue.apply(*v, at / per_image, at % n, at);
    }
    out.of(&y)
}

/// A factor of an Einstein sum: its values, and one letter per axis.
struct Factor<'a, T: Lane> {
    values: Cow<'a, [T]>,
    shape: Vec<usize>,
    letters: Vec<char>,
}

impl<T: Lane> Factor<'_, T> {
    /// The distance between neighbours along a letter: 0 where it does not occur, the diagonal
    /// where it occurs twice.
    fn step(&self, letter: char) -> isize {
        let own = strides(&self.shape);
        let axes =
            (0..self.shape.len()).filter(|&i| self.letters[i] == letter && self.shape[i] != 1);
        axes.map(|i| own[i]).sum()
    }
}

fn einsum<T: Lane>(call: &Call, equation: &str) -> Result<Tensor, EvalError> {
    let (left, right) = equation.split_once("->").expect("the shape rule checks the equation");
    let mut factors: Vec<Factor<T>> = Vec::new();
    let mut sizes: Vec<(char, usize)> = Vec::new();
    for (i, term) in left.split(',').enumerate() {
        let (t, letters) = (call.input(i), term.chars().collect::<Vec<_>>());
        for (&letter, &size) in letters.iter().zip(t.shape()) {
            match sizes.iter_mut().find(|(known, _)| *known == letter) {
                Some((_, known)) if *known == 1 => *known = size,
                Some(_) => {}
                None => sizes.push((letter, size)),
            }
        }
        factors.push(Factor { values: T::load(t), shape: t.shape().to_vec(), letters });
    }
    let right: Vec<char> = right.chars().collect();
    while factors.len() > 2 {
        let pair: Vec<Factor<T>> = factors.drain(..2).collect();
        let needed = |c: &char| right.contains(c) || factors.iter().any(|f| f.letters.contains(c));
        let mut letters: Vec<char> = sizes.iter().map(|s| s.0).collect();
        letters.retain(|c| needed(c) && pair.iter().any(|f| f.letters.contains(c)));
        let joined = contract(call, &pair, letters, &sizes)?;
        factors.insert(0, joined);
    }
    let y = contract(call, &factors, right, &sizes)?;
    Ok(call.out().of(&y.values))
}

/// Multiplies one or two factors and sums over all letters that are not kept.
fn contract<T: Lane>(
    call: &Call,
    factors: &[Factor<T>],
    kept: Vec<char>,
    sizes: &[(char, usize)],
) -> Result<Factor<'static, T>, EvalError> {
    let size = |c: char| sizes.iter().find(|s| s.0 == c).map_or(1, |s| s.1);
    let occurs = |c: char| factors.iter().any(|f| f.letters.contains(&c));
    let summed: Vec<char> =
        sizes.iter().map(|s| s.0).filter(|&c| occurs(c) && !kept.contains(&c)).collect();
    let shape_of = |letters: &[char]| letters.iter().map(|&c| size(c)).collect::<Vec<_>>();
    let (shape, inner) = (shape_of(&kept), shape_of(&summed));
    let bytes = (volume(&shape) as u64).saturating_mul(size_of::<T>() as u64);
    if bytes > 2 * MAX_BYTES {
        let result = ValueType::fixed(DType::F64, &shape);
        return Err(EvalError::TooLarge { op: call.op.name(), result, bytes });
    }
    let one = [T::ONE];
    let values = |i: usize| factors.get(i).map_or(&one[..], |f| &f.values);
    let steps = |i: usize, letters: &[char]| -> Vec<isize> {
        letters.iter().map(|&c| factors.get(i).map_or(0, |f| f.step(c))).collect()
    };
    let (a, b) = (values(0), values(1));
    let mut lines = Vec::new();
    runs(&inner, [&steps(0, &summed), &steps(1, &summed)], |at, n, by| {
        lines.push((at, n as isize, by))
    });
    let mut y = Vec::with_capacity(volume(&shape));
    each(&shape, [&steps(0, &kept), &steps(1, &kept)], |[i, j]| {
        let mut sum = T::ZERO;
        for &([p, q], n, [s, t]) in &lines {
            for r in 0..n {
                sum = sum.add(a[(i + p + r * s) as usize].mul(b[(j + q + r * t) as usize]));
            }
        }
        y.push(sum);
    });
    Ok(Factor { values: Cow::Owned(y), shape, letters: kept })
}
