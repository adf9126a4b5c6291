//! Which instruction set a kernel runs on, and the one place where that choice becomes code.

#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::simd::{Portable, Simd, SimdKernel};
use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that the kernels are built for.
///
/// Instruction sets have no order: code asks for a property ([`Isa::lanes`], [`Isa::code_type`],
/// [`Isa::has_bf16`]), and every such question is a `match` without a wildcard, so that the
/// compiler names the places that a new variant has to answer.
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

    /// The instruction set that kernels should run on: the one that the environment variable
    /// `CQC_ISA` names (portable, avx2, avx512 or amx), and the fastest of this CPU where the
    /// variable is unset or empty.
    ///
    /// The variable is read once per process; later calls return the same answer.
    ///
    /// # Errors
    /// When `CQC_ISA` names no instruction set, or one that this CPU lacks. Falling back to another
    /// one would make a measurement that names its instruction set wrong without a word.
    pub fn detect() -> Result<Isa, IsaError> {
        static DETECTED: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        DETECTED.get_or_init(|| Isa::requested(std::env::var_os("CQC_ISA").as_deref())).clone()
    }

    /// What [`Isa::detect`] makes of the text of `CQC_ISA`.
    fn requested(name: Option<&OsStr>) -> Result<Isa, IsaError> {
        match name.filter(|name| !name.is_empty()) {
            None => Ok(Isa::fastest()),
            Some(name) => {
                let isa: Isa = name.to_string_lossy().parse()?;
                if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable { isa }) }
            }
        }
    }

    /// The fastest instruction set that this CPU has, whatever `CQC_ISA` says.
    fn fastest() -> Isa {
        Isa::available().pop().expect("every CPU runs portable code")
    }

    /// The instruction sets that this CPU has, in the order of [`Isa::ALL`], whatever `CQC_ISA`
    /// says. The tests of the kernels run on each of them.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this CPU has the instructions. A kernel that is asked to run on an instruction set
    /// that the CPU lacks panics.
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
    pub(crate) fn run<K: SimdKernel>(self, kernel: K) -> K::Out {
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

/// Why the environment variable `CQC_ISA` cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name belongs to no instruction set.
    #[error("CQC_ISA={name}: there is no such instruction set (known: {})", listed(&Isa::ALL))]
    Unknown {
        /// The value of the variable, with what is not Unicode replaced.
        name: String,
    },
    /// The kernels are built for it, but this CPU does not have it.
    #[error("CQC_ISA={isa}: this CPU has no {isa} (it has: {})", listed(&Isa::available()))]
    Unavailable {
        /// The instruction set that the variable names.
        isa: Isa,
    },
}

fn listed(isas: &[Isa]) -> String {
    isas.iter().map(Isa::to_string).collect::<Vec<_>>().join(", ")
}

impl FromStr for Isa {
    type Err = IsaError;

    /// The inverse of the `Display` form: portable, avx2, avx512 or amx.
    fn from_str(name: &str) -> Result<Isa, IsaError> {
        let found = Isa::ALL.into_iter().find(|isa| isa.to_string() == name);
        found.ok_or_else(|| IsaError::Unknown { name: name.to_owned() })
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

/// Runs `rounds` rounds of independent fused multiply-adds in registers and returns how many
/// floating-point operations that were: the peak that benchmarks compare with.
pub fn fma_probe(isa: Isa, rounds: usize) -> u64 {
    isa.run(Probe(rounds))
}

struct Probe(usize);

impl SimdKernel for Probe {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(name: &str) -> Result<Isa, IsaError> {
        Isa::requested(Some(OsStr::new(name)))
    }

    #[test]
    fn all_lists_every_instruction_set_once() {
        // A new variant stops the compiler here: count it, and list it in `Isa::ALL`.
        let count = |isa| match isa {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 | Isa::Amx => 4,
        };
        let listed: std::collections::HashSet<Isa> = Isa::ALL.into_iter().collect();
        assert_eq!(listed.len(), count(Isa::Portable));
    }

    #[test]
    fn the_variable_names_exactly_one_instruction_set() {
        assert_eq!(Isa::requested(None), Ok(Isa::fastest()));
        assert_eq!(requested(""), Ok(Isa::fastest()));
        for isa in Isa::ALL {
            let expected = if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable { isa }) };
            assert_eq!(requested(&isa.to_string()), expected);
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        for name in ["sse", "AVX2", " avx2", "avx2,avx512"] {
            assert_eq!(requested(name), Err(IsaError::Unknown { name: name.into() }));
        }
        let message = requested("sse").unwrap_err().to_string();
        assert_eq!(message, "CQC_ISA=sse: there is no such instruction set (known: portable, avx2, avx512, amx)");
    }

    #[test]
    fn an_instruction_set_that_the_cpu_lacks_is_named_with_those_it_has() {
        let message = IsaError::Unavailable { isa: Isa::Amx }.to_string();
        assert!(message.starts_with("CQC_ISA=amx: this CPU has no amx (it has: portable"), "{message}");
    }
}
