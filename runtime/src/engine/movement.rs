//! Kernels for gather, cast and where on elements of any type. They run on the calling thread.

use cqc_kernels::arena::{Pod, cast, cast_mut};
use cqc_proto::DType;

/// Computes `y[o, i, ..] = data[o, indices[i], ..]`. `sizes` holds the product of the axes before
/// the gathered one, the size of that axis, and the number of bytes after it.
///
/// # Errors
/// A message about an index outside of the axis.
pub(super) fn gather(
    sizes: [usize; 3],
    data: &[u8],
    indices: &[u8],
    dtype: DType,
    y: &mut [u8],
) -> Result<(), String> {
    match dtype {
        DType::I32 => gather_at(sizes, data, cast::<i32>(indices), y),
        _ => gather_at(sizes, data, cast::<i64>(indices), y),
    }
}

fn gather_at<I: Copy + Into<i64>>(
    sizes: [usize; 3],
    data: &[u8],
    indices: &[I],
    y: &mut [u8],
) -> Result<(), String> {
    let [outer, size, inner] = sizes;
    let mut rows = y.chunks_exact_mut(inner);
    for block in 0..outer {
        for &index in indices {
            let index: i64 = index.into();
            let from_front = if index < 0 { index.saturating_add(size as i64) } else { index };
            let at = usize::try_from(from_front).ok().filter(|&at| at < size);
            let at = at.ok_or_else(|| format!("index {index} is outside of an axis of {size}"))?;
            let row = rows.next().expect("as many rows as indices");
            row.copy_from_slice(&data[(block * size + at) * inner..][..inner]);
        }
    }
    Ok(())
}

/// Converts elements between f32, i64, i32 and bool. Floats are truncated and saturated.
pub(super) fn cast_elements(from: DType, to: DType, x: &[u8], y: &mut [u8]) {
    match from {
        DType::F32 => cast_from::<f32>(to, x, y, |v| v, |v| v as i64),
        DType::I32 => cast_from::<i32>(to, x, y, |v| v as f32, i64::from),
        DType::Bool => cast_from::<u8>(to, x, y, f32::from, i64::from),
        _ => cast_from::<i64>(to, x, y, |v| v as f32, |v| v),
    }
}

fn cast_from<T: Pod + PartialEq>(
    to: DType,
    x: &[u8],
    y: &mut [u8],
    float: impl Fn(T) -> f32,
    int: impl Fn(T) -> i64,
) {
    let x = cast::<T>(x);
    match to {
        DType::F32 => each(x, cast_mut(y), float),
        DType::I32 => each(x, cast_mut(y), |v| int(v) as i32),
        DType::Bool => each(x, y, |v| u8::from(v != T::default())),
        _ => each(x, cast_mut(y), int),
    }
}

fn each<T: Copy, R>(x: &[T], y: &mut [R], f: impl Fn(T) -> R) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
}

/// Computes `y = condition ? a : b` over `shape`. `strides` are those of the three operands, and 0
/// along axes where an operand repeats.
pub(super) fn select(
    size: usize,
    shape: &[usize],
    strides: &[Vec<usize>; 3],
    condition: &[u8],
    a: &[u8],
    b: &[u8],
    y: &mut [u8],
) {
    match size {
        4 => select_as::<u32>(shape, strides, condition, cast(a), cast(b), cast_mut(y)),
        _ => select_as::<u64>(shape, strides, condition, cast(a), cast(b), cast_mut(y)),
    }
}

fn select_as<T: Pod>(
    shape: &[usize],
    strides: &[Vec<usize>; 3],
    condition: &[u8],
    a: &[T],
    b: &[T],
    y: &mut [T],
) {
    let mut index = [0usize; cqc_proto::types::MAX_RANK];
    let mut at = [0usize; 3];
    for y in y {
        *y = if condition[at[0]] != 0 { a[at[1]] } else { b[at[2]] };
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            (0..3).for_each(|i| at[i] += strides[i][axis]);
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
            (0..3).for_each(|i| at[i] -= strides[i][axis] * shape[axis]);
        }
    }
}
