//! Integers on the register tile: what sums of codes stand for.

use super::dot::IntDot;
use crate::gemm::{MicroKernel, Tile, WriteBack, dot_tiles, write_back};
use crate::simd::{Arithmetic, Simd};

/// Codes times codes with the instruction of `D`.
#[derive(Clone, Copy)]
pub(super) struct Codes<D>(pub(super) D);

/// From sums of products to results.
#[derive(Clone, Copy)]
pub(super) struct Dequantize<'a> {
    /// Of the activations, per segment.
    pub scale: &'a [f32],
    /// Of the activations, per segment.
    pub zero_point: &'a [f32],
    /// Of the weights: `[segments, padded columns]`.
    pub weight_scale: &'a [f32],
    /// Sums of the weights' codes, likewise.
    pub sums: &'a [i32],
    /// Padded columns.
    pub columns: usize,
    pub write_back: WriteBack<'a>,
}

impl<D: IntDot> MicroKernel for Codes<D> {
    type Left = D::Left;
    type Right = i8;
    type Acc = i32;
    type WriteBack<'a> = Dequantize<'a>;
    const ROWS: usize = D::MR;
    const COLS: usize = 2 * <D::Float as Simd>::LANES;
    const GROUP: usize = D::GROUP;

    #[inline(always)]
    unsafe fn tiles(self, tile: Tile<D::Left, i8, i32>) {
        // SAFETY: the caller's promise; segments are whole groups.
        unsafe { dot_tiles(self.0, tile) }
    }

    #[inline(always)]
    unsafe fn fold(
        self,
        how: &Dequantize,
        segment: usize,
        rows: usize,
        col: usize,
        acc: *const i32,
        sums: *mut f32,
    ) {
        let (d, s, lanes) = (self.0, self.0.float(), <D::Float as Simd>::LANES);
        let zero_point = how.zero_point[segment] as i32;
        let scale = s.splat(how.scale[segment]);
        let at = segment * how.columns + col;
        let (weight_scale, code_sums) =
            (&how.weight_scale[at..][..2 * lanes], &how.sums[at..][..2 * lanes]);
        for j in [0, lanes] {
            // SAFETY: the slices have two vectors; the caller's promise for the rest.
            unsafe {
                let factor = s.mul(scale, s.load(weight_scale.as_ptr().add(j)));
                let offset = d.times(zero_point, d.load(code_sums.as_ptr().add(j)));
                for i in 0..rows {
                    let place = i * 2 * lanes + j;
                    let v = s.mul(d.floats(d.minus(d.load(acc.add(place)), offset)), factor);
                    let v = if segment == 0 { v } else { s.add(s.load(sums.add(place)), v) };
                    s.store(sums.add(place), v);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write_back(
        self,
        how: &Dequantize,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
        sums: *const f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { write_back(self.0.float(), &how.write_back, row, rows, col, cols, sums) }
    }
}
