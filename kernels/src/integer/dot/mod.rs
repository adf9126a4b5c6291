//! What an instruction set brings to integer products: a vector of i32 sums and an instruction that adds groups of products to it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

use crate::Isa;
use crate::arena::Pod;
use crate::simd::Simd;

/// A piece of work, generic over the instruction.
pub(crate) trait IntKernel {
    /// The work. Implementations are `#[inline(always)]`.
    fn run<D: Dot>(self, d: D);
}

/// No instruction multiplies longer groups: what is packed for one level suits all.
pub(super) const GROUP_MAX: usize = 4;

/// A value of an implementing type is proof that the CPU has its instructions.
pub(crate) trait Dot: Copy + Send + Sync + 'static {
    /// The f32 vectors of the same CPU.
    type Float: Simd;
    /// A code of an activation in memory.
    type Code: Pod;
    /// As many i32 as `Float` has lanes.
    type Acc: Copy;
    /// Products that one lane adds up at once.
    const GROUP: usize;
    /// Rows of a register tile, which is two vectors wide.
    const MR: usize;

    /// The f32 vectors.
    fn float(self) -> Self::Float;
    /// Runs `kernel` as a function of its own: its registers are then not shared with the caller's loops.
    fn outline<K: IntKernel>(self, kernel: K);
    /// All lanes 0.
    fn zero(self) -> Self::Acc;
    /// A vector of i32.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load(self, p: *const i32) -> Self::Acc;
    /// Stores a vector of i32.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, p: *mut i32, v: Self::Acc);
    /// `GROUP` codes of a row, the same for every lane.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn left(self, p: *const Self::Code) -> Self::Acc;
    /// `GROUP` codes of a column per lane.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn right(self, p: *const i8) -> Self::Acc;
    /// acc + Σ left · right over the group, per lane, without saturation.
    fn dot(self, acc: Self::Acc, left: Self::Acc, right: Self::Acc) -> Self::Acc;
    /// The same value in all lanes.
    fn all(self, value: i32) -> Self::Acc;
    /// factor · v, per lane.
    fn times(self, factor: i32, v: Self::Acc) -> Self::Acc;
    /// a − b, per lane.
    fn minus(self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// The larger of each lane.
    fn max(self, a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// As f32, rounded.
    fn floats(self, v: Self::Acc) -> <Self::Float as Simd>::V;
    /// The code that stands for a whole number in 0 ..= 255.
    fn code(value: u8) -> Self::Code;
    /// The whole number that a code is.
    fn value(code: Self::Code) -> u8;
}

/// Which instruction an [`Isa`] means on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Portable,
    Avx2,
    AvxVnni,
    Vnni,
}

impl Level {
    /// Columns of a panel: two of its vectors.
    pub(super) fn columns(self) -> usize {
        if self == Level::Vnni { 32 } else { 16 }
    }

    /// Rows of its tile, or a multiple.
    pub(super) fn rows(self) -> usize {
        if self == Level::Vnni { 12 } else { 6 }
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
            Isa::Avx512 if vnni::is_available() => Level::Vnni,
            #[cfg(target_arch = "x86_64")]
            _ if avx_vnni::is_available() => Level::AvxVnni,
            _ => Level::Avx2,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(super) fn run_integer<K: IntKernel>(self, kernel: K) {
        assert!(self.is_available(), "this CPU has no {self}");
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
            Level::Vnni => unsafe { vnni::enter(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("not available on this architecture"),
        }
    }
}
