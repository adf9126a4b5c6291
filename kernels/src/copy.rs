//! Strided copies: transpose, slice, expand, reverse, any data type.

use crate::Pool;
use crate::arena::Pod;
use crate::shared::{SharedMut, cut};
use std::ops::{Deref, DerefMut};

/// y\[Σ iₖ·y_stridesₖ\] = x\[x_offset + Σ iₖ·x_stridesₖ\] over all indices of `shape` (at most 8
/// dimensions).
///
/// Strides are in values. `x` strides may be 0 (expand) or negative (reverse); those of `y` must
/// give every index its own place.
///
/// # Panics
/// When an index leads out of `x` or `y`, when two could meet in `y`, or at more than 8 dimensions.
pub fn copy_strided<T: Pod>(
    pool: &Pool,
    shape: &[usize],
    x: &[T],
    x_offset: usize,
    x_strides: &[isize],
    y: &mut [T],
    y_strides: &[usize],
) {
    let rank = shape.len();
    assert!(
        rank <= MOST && x_strides.len() == rank && y_strides.len() == rank,
        "{rank} dimensions, or strides differ"
    );
    if shape.contains(&0) {
        return;
    }
    let mut dims = Dims { list: [Dim::NONE; MOST], len: 0 };
    for i in (0..rank).filter(|&i| shape[i] > 1) {
        dims.push(Dim { size: shape[i], from: x_strides[i], to: y_strides[i] });
    }
    check_source(&dims, x.len(), x_offset);
    dims.sort_unstable_by_key(|dim| std::cmp::Reverse(dim.to));
    check_target(&dims, y.len());
    merge(&mut dims);
    let inner = split_inner(&mut dims);
    let outer: usize = dims.iter().map(|dim| dim.size).product();
    let tasks = (outer * inner.len()).div_ceil(TASK_VALUES).clamp(1, 8 * pool.threads()).min(outer);
    let y = SharedMut::new(y);
    pool.run(tasks, &|task, _| {
        for index in cut(outer, tasks, 1, task) {
            let (from, to) = place(&dims, index);
            let x = x.as_ptr().wrapping_add(x_offset).wrapping_offset(from);
            // SAFETY: `check_source` and `check_target`: all indices lie in `x` and `y`, each with
            // its own place in `y`.
            unsafe { inner.copy(x, y.at(to)) };
        }
    });
}

/// Most dimensions.
const MOST: usize = 8;
/// Values of a task at least.
const TASK_VALUES: usize = 16 << 10;
/// Side of the square in which two crossing dimensions are copied: its cache lines stay in the
/// first level.
const SQUARE: usize = 16;

/// One dimension: its size, the stride in the source, the stride in the target.
#[derive(Clone, Copy, Debug)]
struct Dim {
    size: usize,
    from: isize,
    to: usize,
}

impl Dim {
    const NONE: Dim = Dim { size: 1, from: 0, to: 0 };
}

/// A list of dimensions that is not on the heap: copies run inside the loop.
struct Dims {
    list: [Dim; MOST],
    len: usize,
}

impl Dims {
    fn push(&mut self, dim: Dim) {
        self.list[self.len] = dim;
        self.len += 1;
    }

    fn remove(&mut self, i: usize) -> Dim {
        let dim = self[i];
        self.copy_within(i + 1.., i);
        self.len -= 1;
        dim
    }

    fn pop(&mut self) -> Option<Dim> {
        let last = self.last().copied();
        self.len -= usize::from(last.is_some());
        last
    }
}

impl Deref for Dims {
    type Target = [Dim];

    fn deref(&self) -> &[Dim] {
        &self.list[..self.len]
    }
}

impl DerefMut for Dims {
    fn deref_mut(&mut self) -> &mut [Dim] {
        &mut self.list[..self.len]
    }
}

fn check_source(dims: &[Dim], len: usize, offset: usize) {
    let reach = |sign: isize| {
        dims.iter().map(|d| (d.size as isize - 1) * d.from).filter(|r| r * sign > 0).sum::<isize>()
    };
    let (low, high) = (offset as isize + reach(-1), offset as isize + reach(1));
    assert!(low >= 0 && high < len as isize, "copy reads {low}..={high} of {len} values");
}

/// `dims` in falling order of target stride.
fn check_target(dims: &[Dim], len: usize) {
    let mut last = 0;
    for dim in dims.iter().rev() {
        assert!(dim.to > last, "copy would write a place twice: {dims:?}");
        last += (dim.size - 1) * dim.to;
    }
    assert!(last < len, "copy writes up to {last} of {len} values");
}

/// Joins neighbours that are one dimension in both source and target.
fn merge(dims: &mut Dims) {
    let mut i = 1;
    while i < dims.len() {
        let (outer, inner) = (dims[i - 1], dims[i]);
        if outer.from == inner.from * inner.size as isize && outer.to == inner.to * inner.size {
            dims[i - 1] = Dim { size: outer.size * inner.size, ..inner };
            dims.remove(i);
        } else {
            i += 1;
        }
    }
}

/// The two dimensions of the inner loops: the last of the target, and the one that runs along the
/// source.
struct Inner {
    /// Runs along the source, where that is another one.
    cross: Dim,
    /// Runs along the target.
    last: Dim,
}

fn split_inner(dims: &mut Dims) -> Inner {
    let last = dims.pop().unwrap_or(Dim::NONE);
    if last.from == 1 && last.to == 1 {
        return Inner { cross: Dim::NONE, last };
    }
    let along = (0..dims.len()).filter(|&i| dims[i].from != 0).min_by_key(|&i| dims[i].from.abs());
    let cross = match along {
        Some(i) if dims[i].from.abs() < last.from.abs() => dims.remove(i),
        _ => Dim::NONE,
    };
    Inner { cross, last }
}

impl Inner {
    fn len(&self) -> usize {
        self.cross.size * self.last.size
    }

    /// # Safety
    /// Every index of both dimensions must lie in source and target.
    unsafe fn copy<T: Pod>(&self, x: *const T, y: *mut T) {
        let (cross, last) = (self.cross, self.last);
        if last.from == 1 && last.to == 1 {
            // SAFETY: the caller's promise; source and target are different slices.
            return unsafe { y.copy_from_nonoverlapping(x, last.size) };
        }
        for outer in (0..last.size).step_by(SQUARE) {
            let lasts = outer..(outer + SQUARE).min(last.size);
            for i in 0..cross.size {
                let (x, y) =
                    (x.wrapping_offset(i as isize * cross.from), y.wrapping_add(i * cross.to));
                for j in lasts.clone() {
                    // SAFETY: the caller's promise.
                    unsafe {
                        *y.wrapping_add(j * last.to) = *x.wrapping_offset(j as isize * last.from)
                    };
                }
            }
        }
    }
}

/// Source and target offset of outer index `index`.
fn place(dims: &[Dim], mut index: usize) -> (isize, usize) {
    let (mut from, mut to) = (0, 0);
    for dim in dims.iter().rev() {
        let i = index % dim.size;
        index /= dim.size;
        from += i as isize * dim.from;
        to += i * dim.to;
    }
    (from, to)
}
