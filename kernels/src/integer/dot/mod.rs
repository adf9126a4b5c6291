//! What an instruction set brings to integer products: a vector of i32 sums and an instruction that
//! adds groups of products to it.

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
use crate::gemm::{Dot, DotKernel, Plain};
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
    unsafe fn multiply(self, product: &Plain<Self::Left, i8, i32>) {
        // SAFETY: the caller's promise.
        unsafe { product.run(Codes(self)) }
    }
}

/// [`IntKernel`] for one instruction.
struct Adapter<K>(K);

impl<K: IntKernel, D: IntDot> DotKernel<D> for Adapter<K> {
    #[inline(always)]
    fn run(self, d: D) {
        self.0.run(d);
    }
}

/// Which instruction an [`Isa`] means on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    Portable,
    Avx2,
    AvxVnni,
    Vnni,
    /// VNNI, and tiles for products with weights.
    Amx,
}

impl Instruction {
    /// Columns of a panel: two vectors of this instruction, which on a CPU with AVX-512 may be
    /// shorter than those of f32.
    pub(super) fn columns(self) -> usize {
        match self {
            Instruction::Portable | Instruction::Avx2 | Instruction::AvxVnni => 16,
            Instruction::Vnni | Instruction::Amx => 32,
        }
    }

    /// Rows of its tile, or a multiple.
    pub(super) fn rows(self) -> usize {
        match self {
            Instruction::Portable | Instruction::Avx2 | Instruction::AvxVnni => 6,
            Instruction::Vnni => 12,
            Instruction::Amx => 32,
        }
    }

    /// Codes of a column that lie side by side.
    pub(super) fn group(self) -> usize {
        match self {
            Instruction::Avx2 => 2,
            Instruction::Portable | Instruction::AvxVnni | Instruction::Vnni | Instruction::Amx => {
                4
            }
        }
    }

    /// The best instruction for vectors of 8 lanes that a CPU with AVX2 has.
    fn of_avx2() -> Instruction {
        #[cfg(target_arch = "x86_64")]
        if avx_vnni::is_available() {
            return Instruction::AvxVnni;
        }
        Instruction::Avx2
    }

    /// The best instruction that a CPU with AVX-512 F has.
    fn of_avx512() -> Instruction {
        #[cfg(target_arch = "x86_64")]
        if vnni::is_available() {
            return Instruction::Vnni;
        }
        Instruction::of_avx2()
    }
}

impl Isa {
    /// AVX-512 without VNNI multiplies as AVX2 does; so does any that has VNNI for vectors of AVX2
    /// only.
    pub(super) fn dot_instruction(self) -> Instruction {
        match self {
            Isa::Portable => Instruction::Portable,
            Isa::Avx2 => Instruction::of_avx2(),
            Isa::Avx512 => Instruction::of_avx512(),
            Isa::Amx => Instruction::Amx,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(super) fn run_integer<K: IntKernel>(self, kernel: K) {
        assert!(self.is_available(), "this CPU has no {self}");
        let kernel = Adapter(kernel);
        match self.dot_instruction() {
            Instruction::Portable => kernel.run(portable::PortableDot),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX2 and FMA.
            Instruction::Avx2 => unsafe { avx2::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `dot_instruction` has asked the CPU.
            Instruction::AvxVnni => unsafe { avx_vnni::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `dot_instruction` has asked the CPU.
            Instruction::Vnni => unsafe { vnni::enter(kernel, None) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX-512 F and VNNI.
            Instruction::Amx => unsafe { vnni::enter(kernel, Amx::detect()) },
            #[cfg(not(target_arch = "x86_64"))]
            Instruction::Avx2 | Instruction::AvxVnni | Instruction::Vnni | Instruction::Amx => {
                unreachable!("is_available() is false off x86-64")
            }
        }
    }
}
