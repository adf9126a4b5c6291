//! What an instruction set brings to products of bf16: an instruction that adds two of them to an f32.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Isa;
use crate::gemm::{Dot, DotKernel};

/// A piece of work, generic over the instruction.
pub(super) trait Bf16Kernel {
    /// The work. Implementations are `#[inline(always)]`.
    fn run<D: Bf16Dot>(self, d: D);
}

/// A [`Dot`] of pairs of bf16, given as their bits. Every step is `(acc + left₁ · right₁) + left₀ · right₀`, each addition rounded to f32: the
/// order of `vdpbf16ps`.
pub(super) trait Bf16Dot:
    Dot<Left = u16, Right = u16, Sum = f32, Acc = <<Self as Dot>::Float as crate::simd::Simd>::V>
{
}

/// Elements of a group in memory, whatever the instruction.
pub(super) const GROUP: usize = 2;

/// [`Bf16Kernel`] for one instruction.
struct Chosen<K>(K);

impl<K: Bf16Kernel, D: Bf16Dot> DotKernel<D> for Chosen<K> {
    #[inline(always)]
    fn run(self, d: D) {
        self.0.run(d);
    }
}

/// Which instruction an [`Isa`] means on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// None: plain Rust.
    Portable,
    /// AVX-512 BF16.
    Avx512,
}

impl Level {
    /// Columns of a panel: two vectors.
    pub(super) fn panel_width(self) -> usize {
        if self == Level::Avx512 { 32 } else { 16 }
    }
}

impl Isa {
    pub(super) fn bf16_level(self) -> Level {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if avx512::is_available() => Level::Avx512,
            _ => Level::Portable,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(super) fn run_bf16<K: Bf16Kernel>(self, kernel: K) {
        assert!(self.is_available(), "this CPU has no {self}");
        let kernel = Chosen(kernel);
        match self.bf16_level() {
            Level::Portable => kernel.run(portable::PortableDot),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `bf16_level` has asked the CPU.
            Level::Avx512 => unsafe { avx512::enter(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx512 => unreachable!("not available on this architecture"),
        }
    }
}
