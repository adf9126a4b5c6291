//! What an instruction set brings to integer products: a vector of i32 sums and an instruction that adds groups of products to it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::tile::Codes;
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::arena::Pod;
use crate::gemm::{Dot, DotKernel, Micro, Tile, Tiling};
use crate::simd::Arithmetic;

/// A piece of work, generic over the instruction.
pub(crate) trait IntKernel {
    /// The work. Implementations are `#[inline(always)]`.
    fn run<D: IntDot>(self, d: D);
}

/// No instruction multiplies longer groups: what is packed for one level suits all.
pub(super) const GROUP_MAX: usize = 4;

/// A [`Dot`] of unsigned codes by signed ones, without saturation.
pub(crate) trait IntDot: Dot<Left: Pod, Right = i8, Sum = i32> {
    /// The same value in all lanes.
    fn all(self, value: i32) -> Self::Acc;
    /// factor · v, per lane.
    fn times(self, factor: i32, v: Self::Acc) -> Self::Acc;
    /// a − b, per lane.
    fn minus(self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// The larger of each lane.
    fn max(self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// As f32, rounded.
    fn floats(self, v: Self::Acc) -> <Self::Float as Arithmetic>::V;
    /// The code that stands for a whole number in 0 ..= 255.
    fn code(value: u8) -> Self::Left;
    /// The whole number that a code is.
    fn value(code: Self::Left) -> u8;

    /// acc = left · right.
    ///
    /// # Safety
    /// The fields of `product` must be true.
    #[inline(always)]
    unsafe fn multiply(self, product: &Plain<Self::Left>) {
        // SAFETY: the caller's promise.
        unsafe { product.run(self) }
    }
}

/// A small product whose rows lie evenly.
pub(crate) struct Plain<C> {
    /// Rows of `depth` codes, `ld` apart; on tiles, whole tiles of rows and rows of whole pieces of 64 codes, zeros beyond `depth`.
    pub(crate) left: *const C,
    pub(crate) ld: usize,
    /// At most [`PLAIN_ROWS`].
    pub(crate) rows: usize,
    /// Whole groups.
    pub(crate) depth: usize,
    /// Panels of `[depth / group, width, group]`; each readable in whole pieces of 64 of the depth.
    pub(crate) right: *const i8,
    /// Bytes between two panels.
    pub(crate) ld_right: usize,
    /// Columns that count; sums have room for whole panels.
    pub(crate) cols: usize,
    /// `[rows, columns]`, rows `ld_acc` apart.
    pub(crate) acc: *mut i32,
    pub(crate) ld_acc: usize,
}

/// Rows of a [`Plain`] product at most.
pub(crate) const PLAIN_ROWS: usize = 96;

impl<C: Copy> Plain<C> {
    /// On vectors.
    ///
    /// # Safety
    /// The fields must be true.
    #[inline(always)]
    unsafe fn run<D: IntDot<Left = C>>(&self, d: D) {
        let mut left = [std::ptr::null(); PLAIN_ROWS];
        for (i, left) in left[..self.rows].iter_mut().enumerate() {
            *left = self.left.wrapping_add(i * self.ld);
        }
        for (panel, col) in (0..self.cols).step_by(Codes::<D>::COLS).enumerate() {
            let right = self.right.wrapping_add(panel * self.ld_right);
            let tile = Tile {
                left: left.as_ptr(),
                stride: 1,
                tap: 0,
                skip: 0,
                right,
                acc: self.acc.wrapping_add(col),
                ld: self.ld_acc,
                rows: 0,
                count: 0,
                cols: (self.cols - col).min(Codes::<D>::COLS),
                taps: 1,
                depth: self.depth,
                first: true,
                next: right,
                lines: 0,
            };
            // SAFETY: the caller's promise.
            unsafe { Tiling::new(self.rows, D::MR).run(Codes(d), tile) }
        }
    }
}

/// [`IntKernel`] for one instruction.
struct Chosen<K>(K);

impl<K: IntKernel, D: IntDot> DotKernel<D> for Chosen<K> {
    #[inline(always)]
    fn run(self, d: D) {
        self.0.run(d);
    }
}

/// Which instruction an [`Isa`] means on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Portable,
    Avx2,
    AvxVnni,
    Vnni,
    /// VNNI, and tiles for products with weights.
    Amx,
}

impl Level {
    /// Columns of a panel: two vectors of this instruction, which on a CPU with AVX-512 may be shorter than those of f32.
    pub(super) fn columns(self) -> usize {
        if matches!(self, Level::Vnni | Level::Amx) { 32 } else { 16 }
    }

    /// Rows of its tile, or a multiple.
    pub(super) fn rows(self) -> usize {
        match self {
            Level::Amx => 32,
            Level::Vnni => 12,
            _ => 6,
        }
    }

    /// Codes of a column that lie side by side.
    pub(super) fn group(self) -> usize {
        if self == Level::Avx2 { 2 } else { 4 }
    }
}

impl Isa {
    /// AVX-512 without VNNI multiplies as AVX2 does; so does any that has VNNI for vectors of AVX2 only.
    pub(super) fn dot_level(self) -> Level {
        match self {
            Isa::Portable => Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Level::Amx,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if vnni::is_available() => Level::Vnni,
            #[cfg(target_arch = "x86_64")]
            _ if avx_vnni::is_available() => Level::AvxVnni,
            _ => Level::Avx2,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(super) fn run_integer<K: IntKernel>(self, kernel: K) {
        assert!(self.is_available(), "this CPU has no {self}");
        let kernel = Chosen(kernel);
        match self.dot_level() {
            Level::Portable => kernel.run(portable::PortableDot),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX2 and FMA.
            Level::Avx2 => unsafe { avx2::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `dot_level` has asked the CPU.
            Level::AvxVnni => unsafe { avx_vnni::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `dot_level` has asked the CPU.
            Level::Vnni => unsafe { vnni::enter(kernel, None) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX-512 F and VNNI.
            Level::Amx => unsafe { vnni::enter(kernel, Amx::detect()) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("not available on this architecture"),
        }
    }
}
