//! Which instruction set a kernel runs on, and the one place where that choice becomes code.

#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::simd::{Kernel, Portable, Simd};
use std::fmt;
use std::sync::OnceLock;

/// An instruction set that the kernels are built for.
///
/// Instruction sets have no order: code asks for a property ([`Isa::lanes`], [`Isa::code_type`],
/// [`Isa::has_bf16`]), and every such question is a `match` without a wildcard, so that the compiler
/// names the places that a new variant has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust over arrays of 8; runs on any CPU.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F.
    Avx512,
    /// AVX-512 with VNNI and BF16, and AMX for products of integers and of bf16.
    Amx,
}

impl Isa {
    /// All of them. Among those that one CPU can have, a faster one comes later.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The fastest this CPU has, not above `CQC_ISA` (portable, avx2, avx512 or amx) where that is set.
    ///
    /// Read once per process. An unknown `CQC_ISA` is ignored.
    pub fn detect() -> Isa {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let limit = std::env::var("CQC_ISA").ok().and_then(|name| Isa::from_name(&name)).unwrap_or(Isa::Amx);
            let usable = |isa: &Isa| *isa <= limit && isa.is_available();
            Isa::ALL.into_iter().rev().find(usable).unwrap_or(Isa::Portable)
        })
    }

    /// Those this CPU has, slowest first; `CQC_ISA` plays no part. Tests run over these.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this CPU has it. Kernels panic on one it has not.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Isa::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => {
                let vectors = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16");
                Isa::Avx512.is_available() && vectors && Amx::detect().is_some()
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => false,
        }
    }

    /// The one called `name` (portable, avx2, avx512, amx).
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.to_string() == name)
    }

    /// The number of f32 values in one vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Portable | Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Amx => 16,
        }
    }

    /// Row blocks of f32 products are multiples of this: whole register tiles (`Simd::MR` rows).
    pub(crate) fn row_unit(self) -> usize {
        match self {
            Isa::Portable | Isa::Avx2 => 6,
            Isa::Avx512 | Isa::Amx => 12,
        }
    }

    /// Whether products of integers and of bf16 run on tiles of 16 rows by 64 bytes, whose rows may
    /// have to be copied together first.
    pub(crate) fn has_tiles(self) -> bool {
        match self {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 => false,
            Isa::Amx => true,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        assert!(self.is_available(), "this CPU has no {self}");
        match self {
            Isa::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX2 and FMA.
            Isa::Avx2 => unsafe { crate::simd::avx2::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above: this CPU has AVX-512 F.
            Isa::Avx512 | Isa::Amx => unsafe { crate::simd::avx512::enter(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => unreachable!("is_available() is false off x86-64"),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        })
    }
}

/// Runs `rounds` rounds of independent fused multiply-adds in registers and returns how many floating-point
/// operations that were: the peak that benchmarks compare with.
pub fn fma_probe(isa: Isa, rounds: usize) -> u64 {
    isa.run(Probe(rounds))
}

struct Probe(usize);

impl Kernel for Probe {
    type Out = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        const CHAINS: usize = 12;
        let mut acc = [s.splat(std::hint::black_box(1.0)); CHAINS];
        let (a, b) = (s.splat(std::hint::black_box(0.999)), s.splat(std::hint::black_box(0.001)));
        for _ in 0..self.0 {
            for acc in &mut acc {
                *acc = s.fma(*acc, a, b);
            }
        }
        let total = acc.into_iter().fold(0.0, |total, acc| total + s.sum(acc));
        std::hint::black_box(total);
        (2 * CHAINS * S::LANES * self.0) as u64
    }
}
