//! The register tile: up to `MR` rows by two vectors of columns, of integers.

use super::dot::{Dot, IntKernel};
use crate::gemm::{Finish, Micro, Tile, finish};
use crate::simd::Simd;

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
    pub finish: Finish<'a>,
}

impl<D: Dot> Micro for Codes<D> {
    type Left = D::Code;
    type Right = i8;
    type Acc = i32;
    type Finish<'a> = Dequantize<'a>;
    const ROWS: usize = D::MR;
    const COLS: usize = 2 * <D::Float as Simd>::LANES;
    const GROUP: usize = D::GROUP;

    #[inline(always)]
    unsafe fn tiles(self, tile: Tile<D::Code, i8, i32>) {
        if tile.cols <= <D::Float as Simd>::LANES {
            return self.0.outline(Dispatch::<D::Code, 1>(tile));
        }
        self.0.outline(Dispatch::<D::Code, 2>(tile));
    }

    #[inline(always)]
    unsafe fn fold(self, how: &Dequantize, segment: usize, rows: usize, col: usize, acc: *const i32, sums: *mut f32) {
        let (d, s, lanes) = (self.0, self.0.float(), <D::Float as Simd>::LANES);
        let zero_point = how.zero_point[segment] as i32;
        let scale = s.splat(how.scale[segment]);
        let at = segment * how.columns + col;
        let (weight_scale, code_sums) = (&how.weight_scale[at..][..2 * lanes], &how.sums[at..][..2 * lanes]);
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
    unsafe fn finish(self, how: &Dequantize, row: usize, rows: usize, col: usize, cols: usize, sums: *const f32) {
        // SAFETY: the caller's promise.
        unsafe { finish(self.0.float(), &how.finish, row, rows, col, cols, sums) }
    }
}

/// A tile `NV` vectors wide, its number of rows not yet a constant.
struct Dispatch<C, const NV: usize>(Tile<C, i8, i32>);

impl<C, const NV: usize> IntKernel for Dispatch<C, NV> {
    #[inline(always)]
    fn run<D: Dot>(self, d: D) {
        // the code type of `D`: the only one whose tiles reach it
        let tile = self.0.of_left();
        macro_rules! by_rows {
            ($($m:literal)*) => {
                match tile.rows {
                    $($m if $m <= D::MR => d.outline(Wide::<D::Code, $m, NV>(tile)),)*
                    rows => unreachable!("a tile has at most {} rows, not {rows}", D::MR),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// `M` rows by `NV` vectors, one accumulator each.
struct Wide<C, const M: usize, const NV: usize>(Tile<C, i8, i32>);

impl<C, const M: usize, const NV: usize> IntKernel for Wide<C, M, NV> {
    #[inline(always)]
    fn run<D: Dot>(self, d: D) {
        let mut t: Tile<D::Code, i8, i32> = self.0.of_left();
        for _ in 0..t.count {
            for _ in 0..t.lines {
                d.float().prefetch(t.next.cast());
                t.next = t.next.wrapping_add(64);
            }
            // SAFETY: the promise of `Micro::tiles`.
            unsafe {
                wide::<D, M, NV>(d, &t);
                t.left = t.left.add(t.stride * M);
                t.acc = t.acc.add(M * t.ld);
            }
        }
    }
}

/// One tile of `M` rows.
///
/// # Safety
/// As for [`Micro::tiles`]: `M` places of pointers per tap, each to `skip + depth` readable codes; `taps · depth` rows of the
/// panel; `M` rows of accumulators.
#[inline(always)]
unsafe fn wide<D: Dot, const M: usize, const NV: usize>(d: D, t: &Tile<D::Code, i8, i32>) {
    let lanes = <D::Float as Simd>::LANES;
    let mut acc = [[d.zero(); NV]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !t.first {
            for i in 0..M {
                for j in 0..NV {
                    acc[i][j] = d.load(t.acc.add(i * t.ld + j * lanes));
                }
            }
        }
        let mut b = t.right;
        for tap in 0..t.taps {
            let mut a = [std::ptr::null(); M];
            for i in 0..M {
                a[i] = t.row::<M>(tap, i);
            }
            let mut p = 0;
            while p < t.depth {
                let mut bv = [d.zero(); NV];
                for j in 0..NV {
                    bv[j] = d.right(b.add(j * lanes * D::GROUP));
                }
                for i in 0..M {
                    let av = d.left(a[i].add(p));
                    for j in 0..NV {
                        acc[i][j] = d.dot(acc[i][j], av, bv[j]);
                    }
                }
                b = b.add(2 * lanes * D::GROUP);
                p += D::GROUP;
            }
        }
        for i in 0..M {
            for j in 0..NV {
                d.store(t.acc.add(i * t.ld + j * lanes), acc[i][j]);
            }
        }
    }
}
