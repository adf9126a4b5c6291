//! Walking over strided tensors.

/// Product of sizes: 0 if one is 0, else saturating. A tensor without elements may have sizes whose
/// product overflows.
pub(super) fn volume(shape: &[usize]) -> usize {
    if shape.contains(&0) { 0 } else { shape.iter().fold(1, |n, &d| n.saturating_mul(d)) }
}

/// Distances, in elements, between neighbours along each axis of a row-major tensor.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut out = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        // wraps only where there are no elements
        out[axis - 1] = out[axis].wrapping_mul(shape[axis] as isize);
    }
    out
}

/// Strides that read a tensor as if it were broadcast to `to`: 0 along the repeated axes.
pub(super) fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<isize> {
    let own = strides(from);
    let missing = to.len() - from.len();
    (0..to.len())
        .map(|i| if i < missing || from[i - missing] == 1 { 0 } else { own[i - missing] })
        .collect()
}

/// Sizes before the axis, along it, and after it.
pub(super) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (volume(&shape[..axis]), shape[axis], volume(&shape[axis + 1..]))
}

/// Calls `f` for every index of `shape` in row-major order with Σ index · stride for each of the
/// `K` stride lists.
pub(super) fn each<const K: usize>(
    shape: &[usize],
    strides: [&[isize]; K],
    mut f: impl FnMut([isize; K]),
) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0usize; shape.len()];
    let mut at = [0isize; K];
    loop {
        f(at);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            let done = index[axis] == shape[axis];
            for (at, strides) in at.iter_mut().zip(strides) {
                *at += strides[axis] - if done { strides[axis] * shape[axis] as isize } else { 0 };
            }
            if !done {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// As [`each`] without the last axis: calls `f(starts, n, steps)` for every run of `n` elements
/// along it, after neighbouring axes that all stride lists pass through evenly have been joined to
/// make runs long.
pub(super) fn runs<const K: usize>(
    shape: &[usize],
    strides: [&[isize]; K],
    mut f: impl FnMut([isize; K], usize, [isize; K]),
) {
    let (shape, strides) = joined(shape, strides);
    let Some((&n, outer)) = shape.split_last() else {
        return f([0; K], 1, [0; K]);
    };
    let steps = std::array::from_fn(|k| strides[k][outer.len()]);
    each(outer, std::array::from_fn(|k| &strides[k][..outer.len()]), |at| f(at, n, steps));
}

fn joined<const K: usize>(
    shape: &[usize],
    strides: [&[isize]; K],
) -> (Vec<usize>, [Vec<isize>; K]) {
    let mut sizes: Vec<usize> = Vec::new();
    let mut steps: [Vec<isize>; K] = std::array::from_fn(|_| Vec::new());
    for (axis, &d) in shape.iter().enumerate().filter(|&(_, &d)| d != 1) {
        let even = |k: usize| {
            steps[k].last().is_some_and(|&s| s == strides[k][axis].wrapping_mul(d as isize))
        };
        if (0..K).all(even) && !sizes.is_empty() {
            *sizes.last_mut().expect("not empty") =
                sizes.last().expect("not empty").saturating_mul(d);
            steps
                .iter_mut()
                .zip(strides)
                .for_each(|(s, from)| *s.last_mut().expect("as many as sizes") = from[axis]);
        } else {
            sizes.push(d);
            steps.iter_mut().zip(strides).for_each(|(s, from)| s.push(from[axis]));
        }
    }
    (sizes, steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_visits_in_row_major_order() {
        let mut seen = Vec::new();
        each(&[2, 3], [&[3, 1], &[1, 2]], |at| seen.push(at));
        assert_eq!(seen, [[0, 0], [1, 2], [2, 4], [3, 1], [4, 3], [5, 5]]);
        each::<1>(&[2, 0], [&[0, 1]], |_| unreachable!());
    }

    #[test]
    fn runs_join_even_axes() {
        let mut seen = Vec::new();
        runs(&[2, 1, 3, 4], [&strides(&[2, 1, 3, 4]), &[0, 0, 4, 1]], |at, n, steps| {
            seen.push((at, n, steps))
        });
        assert_eq!(seen, [([0, 0], 12, [1, 1]), ([12, 0], 12, [1, 1])]);
        let mut scalar = 0;
        runs(&[1, 1], [&[5, 5]], |_, n, _| scalar += n);
        assert_eq!(scalar, 1);
        runs::<1>(&[0], [&[1]], |_, n, _| assert_eq!(n, 0));
    }

    #[test]
    fn sizes_of_empty_tensors_do_not_overflow() {
        assert_eq!(volume(&[1 << 40, 1 << 40, 0]), 0);
        assert_eq!(strides(&[0, 1 << 40, 1 << 40]).len(), 3);
    }
}
