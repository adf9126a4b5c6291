//! The register tile of instructions that add several products per lane at once: up to `MR` rows by
//! two vectors of columns.

use super::drive::{Block, MicroKernel, Tile, drive};
use crate::simd::Simd;

/// An instruction that multiplies `GROUP` neighbours of the depth and adds them to a sum, in every
/// lane. A value of an implementing type is proof that the CPU has it.
pub(crate) trait Dot: Copy + Send + Sync + 'static {
    /// The f32 vectors of the same CPU.
    type Float: Simd;
    /// An element of the left side in memory.
    type Left: Copy;
    /// An element of the right side in memory.
    type Right: Copy;
    /// A sum in memory.
    type Sum: Copy;
    /// A group per lane.
    type Group: Copy;
    /// A sum per lane; as many lanes as `Float` has.
    type Acc: Copy;
    /// Products that one lane adds up at once.
    const GROUP: usize;
    /// Rows of a register tile, which is two vectors wide.
    const MR: usize;
    /// Whether the depth of a tap may end within a group: [`Dot::last`] is there.
    const RAGGED: bool = false;

    /// The f32 vectors.
    fn float(self) -> Self::Float;
    /// Runs `kernel` as a function of its own: its registers are then not shared with the caller's
    /// loops.
    fn outline<K: DotKernel<Self>>(self, kernel: K);
    /// All lanes 0.
    fn zero(self) -> Self::Acc;
    /// A vector of sums.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load(self, p: *const Self::Sum) -> Self::Acc;
    /// Stores a vector of sums.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, p: *mut Self::Sum, v: Self::Acc);
    /// A group of a row, the same for every lane.
    ///
    /// # Safety
    /// `GROUP` elements must be readable.
    unsafe fn left(self, p: *const Self::Left) -> Self::Group;
    /// A group whose first `n < GROUP` elements are a row's and whose others are zero.
    ///
    /// # Safety
    /// `n` elements must be readable.
    unsafe fn last(self, _p: *const Self::Left, _n: usize) -> Self::Group {
        unreachable!("the depth is a multiple of {}", Self::GROUP)
    }
    /// A group of a column per lane.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn right(self, p: *const Self::Right) -> Self::Group;
    /// acc + Σ left · right over the group, per lane.
    fn dot(self, acc: Self::Acc, left: Self::Group, right: Self::Group) -> Self::Acc;

    /// Copies the left rows of a block the way [`Dot::drive`] wants them:
    /// [`copied_bytes`](super::copied_bytes) per 16 rows.
    ///
    /// # Safety
    /// As for [`drive`].
    #[inline(always)]
    unsafe fn copy_rows<M: MicroKernel>(self, _block: &Block<M>, _to: &mut [u8]) {}

    /// Runs a block on the loops that suit this CPU; `copied` is what [`Dot::copy_rows`] wrote.
    ///
    /// # Safety
    /// As for [`drive`].
    #[inline(always)]
    unsafe fn drive<M: MicroKernel>(self, micro: M, block: &Block<M>, _copied: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { drive(micro, block) }
    }
}

/// A piece of work for one instruction.
pub(crate) trait DotKernel<D> {
    /// The work. Implementations are `#[inline(always)]`.
    fn run(self, d: D);
}

type TileOf<D> = Tile<<D as Dot>::Left, <D as Dot>::Right, <D as Dot>::Sum>;

/// [`MicroKernel::tiles`](super::Micro::tiles) with this instruction.
///
/// # Safety
/// As for that; the right side has whole groups, zeros where the depth of a tap ends within one.
#[inline(always)]
pub(crate) unsafe fn dot_tiles<D: Dot>(d: D, tile: TileOf<D>) {
    if tile.cols <= <D::Float as Simd>::LANES {
        return d.outline(Dispatch::<D, 1>(tile));
    }
    d.outline(Dispatch::<D, 2>(tile));
}

/// A tile `NV` vectors wide, its number of rows not yet a constant.
struct Dispatch<D: Dot, const NV: usize>(TileOf<D>);

impl<D: Dot, const NV: usize> DotKernel<D> for Dispatch<D, NV> {
    #[inline(always)]
    fn run(self, d: D) {
        let tile = self.0;
        macro_rules! by_rows {
            ($($m:literal)*) => {
                match tile.rows {
                    $($m if $m <= D::MR => d.outline(RegisterTile::<D, $m, NV>(tile)),)*
                    rows => unreachable!("a tile has at most {} rows, not {rows}", D::MR),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// `M` rows by `NV` vectors, one accumulator each: a row's sum has the same order whatever `M` is,
/// so results do not depend on the batch.
struct RegisterTile<D: Dot, const M: usize, const NV: usize>(TileOf<D>);

impl<D: Dot, const M: usize, const NV: usize> DotKernel<D> for RegisterTile<D, M, NV> {
    #[inline(always)]
    fn run(self, d: D) {
        let mut t = self.0;
        for _ in 0..t.count {
            for _ in 0..t.lines {
                d.float().prefetch(t.next.cast());
                t.next = t.next.wrapping_add(64 / size_of::<D::Right>());
            }
            // SAFETY: the promise of `dot_tiles`.
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
/// As for [`dot_tiles`]: `M` places of pointers per tap, each to `skip + depth` readable elements;
/// `taps` times the groups of `depth` rows of the panel; `M` rows of accumulators.
#[inline(always)]
unsafe fn wide<D: Dot, const M: usize, const NV: usize>(d: D, t: &TileOf<D>) {
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
        let whole = if D::RAGGED { t.depth - t.depth % D::GROUP } else { t.depth };
        let mut b = t.right;
        for tap in 0..t.taps {
            let mut a = [std::ptr::null(); M];
            for i in 0..M {
                a[i] = t.row::<M>(tap, i);
            }
            let mut p = 0;
            while p < whole {
                let mut bv = [d.right(b); NV];
                for j in 1..NV {
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
            if D::RAGGED && whole < t.depth {
                for i in 0..M {
                    let av = d.last(a[i].add(whole), t.depth - whole);
                    for j in 0..NV {
                        acc[i][j] = d.dot(acc[i][j], av, d.right(b.add(j * lanes * D::GROUP)));
                    }
                }
                b = b.add(2 * lanes * D::GROUP);
            }
        }
        for i in 0..M {
            for j in 0..NV {
                d.store(t.acc.add(i * t.ld + j * lanes), acc[i][j]);
            }
        }
    }
}
