//! What an instruction set brings to products of bf16: an instruction that adds two of them to an
//! f32.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::product::Bf16;
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::gemm::{Dot, DotKernel, Plain};

/// A piece of work, generic over the instruction.
pub(super) trait Bf16Kernel {
    /// The work. Implementations are `#[inline(always)]`.
    fn run<D: Bf16Dot>(self, d: D);
}

/// A [`Dot`] of pairs of bf16, given as their bits. Every step is `(acc + left₁ · right₁) + left₀ ·
/// right₀`, each addition rounded to f32: the order of `vdpbf16ps`.
pub(super) trait Bf16Dot:
    Dot<Left = u16, Right = u16, Sum = f32, Acc = <<Self as Dot>::Float as crate::simd::Arithmetic>::V>
{
    /// acc (+)= left · right.
    ///
    /// # Safety
    /// The fields of `product` must be true.
    #[inline(always)]
    unsafe fn multiply(self, product: &Plain<u16, u16, f32>) {
        // SAFETY: the caller's promise.
        unsafe { product.run(Bf16(self)) }
    }
}

/// Elements of a group in memory, whatever the instruction.
pub(super) const GROUP: usize = 2;

/// [`Bf16Kernel`] for one instruction.
struct Adapter<K>(K);

impl<K: Bf16Kernel, D: Bf16Dot> DotKernel<D> for Adapter<K> {
    #[inline(always)]
    fn run(self, d: D) {
        self.0.run(d);
    }
}

/// Which instruction an [`Isa`] means on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    /// None: plain Rust.
    Portable,
    /// AVX-512 BF16.
    Avx512,
    /// AVX-512 BF16, and tiles for products with weights.
    Amx,
}

impl Instruction {
    /// Rows of its tile, or a multiple.
    pub(super) fn rows(self) -> usize {
        match self {
            Instruction::Portable | Instruction::Avx512 => 12,
            Instruction::Amx => 32,
        }
    }

    /// Columns of a panel: two vectors.
    pub(super) fn panel_width(self) -> usize {
        match self {
            Instruction::Portable => 16,
            Instruction::Avx512 | Instruction::Amx => 32,
        }
    }

    /// The best instruction that a CPU with AVX-512 F has.
    fn of_avx512() -> Instruction {
        #[cfg(target_arch = "x86_64")]
        if avx512::is_available() {
            return Instruction::Avx512;
        }
        Instruction::Portable
    }
}

/// Whether Intel made this CPU.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_intel() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// Whether Intel made this CPU.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn is_intel() -> bool {
    false
}

impl Isa {
    /// AVX2 has no instruction for bf16, nor has AVX-512 without its extension.
    pub(super) fn bf16_instruction(self) -> Instruction {
        match self {
            Isa::Portable | Isa::Avx2 => Instruction::Portable,
            Isa::Avx512 => Instruction::of_avx512(),
            Isa::Amx => Instruction::Amx,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(super) fn run_bf16<K: Bf16Kernel>(self, kernel: K) {
        assert!(self.is_available(), "this CPU has no {self}");
        let kernel = Adapter(kernel);
        match self.bf16_instruction() {
            Instruction::Portable => kernel.run(portable::PortableDot),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `bf16_instruction` has asked the CPU.
            Instruction::Avx512 => unsafe { avx512::enter(kernel, None) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX-512 F and BF16.
            Instruction::Amx => unsafe { avx512::enter(kernel, Amx::detect()) },
            #[cfg(not(target_arch = "x86_64"))]
            Instruction::Avx512 | Instruction::Amx => {
                unreachable!("is_available() is false off x86-64")
            }
        }
    }
}
