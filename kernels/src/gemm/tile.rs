//! The register tile: up to `MR` rows by two vectors of columns, for f32.

use super::drive::{MicroKernel, Tile};
use super::write_back::{WriteBack, write_back};
use crate::simd::{Simd, SimdKernel};

/// f32 times f32 on the vectors of `S`.
#[derive(Clone, Copy)]
pub(crate) struct F32<S>(pub(crate) S);

impl<S: Simd> MicroKernel for F32<S> {
    type Left = f32;
    type Right = f32;
    type Acc = f32;
    type WriteBack<'a> = WriteBack<'a>;
    const ROWS: usize = S::MR;
    const COLS: usize = 2 * S::LANES;

    #[inline(always)]
    unsafe fn tiles(self, tile: Tile<f32, f32, f32>) {
        let s = self.0;
        if tile.cols <= S::LANES {
            return s.outline(Dispatch::<1>(tile));
        }
        s.outline(Dispatch::<2>(tile))
    }

    #[inline(always)]
    unsafe fn write_back(
        self,
        how: &WriteBack,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
        sums: *const f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { write_back(self.0, how, row, rows, col, cols, sums) }
    }
}

/// A tile `NV` vectors wide, its number of rows not yet a constant.
struct Dispatch<const NV: usize>(Tile<f32, f32, f32>);

impl<const NV: usize> SimdKernel for Dispatch<NV> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = self.0;
        macro_rules! by_rows {
            ($($m:literal)*) => {
                match tile.rows {
                    $($m if $m <= S::MR => s.outline(RegisterTile::<$m, NV>(tile)),)*
                    rows => unreachable!("a tile has at most {} rows, not {rows}", S::MR),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// `M` rows by `NV` vectors, one accumulator each: a row's sum has the same order whatever `M` is,
/// so results do not depend on the batch.
struct RegisterTile<const M: usize, const NV: usize>(Tile<f32, f32, f32>);

impl<const M: usize, const NV: usize> SimdKernel for RegisterTile<M, NV> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut t = self.0;
        for _ in 0..t.count {
            prefetch_next(s, &mut t);
            // SAFETY: the promise of `MicroKernel::tiles`.
            unsafe {
                wide::<S, M, NV>(s, &t);
                t.left = t.left.add(t.stride * M);
                t.acc = t.acc.add(M * t.ld);
            }
        }
    }
}

/// Asks for the cache lines that are this tile's share of the next step.
#[inline(always)]
fn prefetch_next<S: Simd>(s: S, t: &mut Tile<f32, f32, f32>) {
    for _ in 0..t.lines {
        s.prefetch(t.next);
        t.next = t.next.wrapping_add(16);
    }
}

/// One tile of `M` rows.
///
/// # Safety
/// As for [`MicroKernel::tiles`]: `M` places of pointers per tap, each to `skip + depth` readable
/// values; `taps · depth` rows of the panel; `M` rows of accumulators.
#[inline(always)]
unsafe fn wide<S: Simd, const M: usize, const NV: usize>(s: S, t: &Tile<f32, f32, f32>) {
    let mut acc = [[s.splat(0.0); NV]; M];
    // SAFETY: the caller's promise.
    unsafe {
        if !t.first {
            for i in 0..M {
                for j in 0..NV {
                    acc[i][j] = s.load(t.acc.add(i * t.ld + j * S::LANES));
                }
            }
        }
        let mut b = t.right;
        for tap in 0..t.taps {
            let mut a = [std::ptr::null(); M];
            for i in 0..M {
                a[i] = t.row::<M>(tap, i);
            }
            for p in 0..t.depth {
                let mut bv = [s.splat(0.0); NV];
                for j in 0..NV {
                    bv[j] = s.load(b.add(j * S::LANES));
                }
                for i in 0..M {
                    let av = s.splat(*a[i].add(p));
                    for j in 0..NV {
                        acc[i][j] = s.fma(av, bv[j], acc[i][j]);
                    }
                }
                b = b.add(2 * S::LANES);
            }
        }
        for i in 0..M {
            for j in 0..NV {
                s.store(t.acc.add(i * t.ld + j * S::LANES), acc[i][j]);
            }
        }
    }
}
