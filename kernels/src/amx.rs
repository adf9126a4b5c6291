//! AMX: eight registers of 16 rows by 64 bytes, and instructions that multiply two of them onto a
//! third.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile, and columns of one that holds sums.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row.
pub(crate) const ROW_BYTES: usize = 64;
/// Bytes of a tile.
pub(crate) const BYTES: usize = ROWS * ROW_BYTES;
/// Columns that [`Configured::multiply`] works on.
pub(crate) const COLS: usize = 2 * ROWS;
/// Bytes between two rows of its right side.
const WIDE: usize = 2 * ROW_BYTES;

/// Which instruction multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Multiply {
    /// `tdpbusd`: unsigned by signed bytes, sums of i32.
    Codes,
    /// `tdpbf16ps`: bf16, sums of f32; numbers below 2⁻¹²⁶ count as zero.
    Bf16,
}

/// Proof that this CPU has AMX for bytes and bf16, AVX-512 BW, and that the system lets this
/// process use the tiles.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// The proof, where there is one. Asks the system once.
    pub(crate) fn detect() -> Option<Amx> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE.get_or_init(|| has_instructions() && permitted()).then_some(Amx(()))
    }

    /// Sets up the tiles of this thread until the result is dropped.
    #[inline(always)]
    pub(crate) fn configure(self) -> Configured {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(ROW_BYTES as u16);
        config.rows[..8].fill(ROWS as u8);
        // SAFETY: `self` proves the instruction and the permission; the 64 bytes describe eight
        // tiles within the limits of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags))
        };
        Configured(PhantomData)
    }
}

/// Whether CPUID names what [`Amx`] proves; the standard library does not ask for AMX yet.
fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"))
        || __cpuid(0).eax < 7
    {
        return false;
    }
    __cpuid_count(7, 0).edx & BF16_TILE_INT8 == BF16_TILE_INT8
}

/// Linux gives the 8 KiB of tiles to processes that ask for them.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and writes no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems are not known to give them.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Where 16 rows of the left side are, and the next 64 bytes of each.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) begin: *const u8,
    /// Bytes between two rows.
    pub(crate) stride: usize,
    /// Bytes between two pieces of 64 bytes of a row.
    pub(crate) step: usize,
}

/// A piece of the depth: up to 32 rows of the left side by 32 columns.
pub(crate) struct Piece {
    pub(crate) left: Left,
    /// Bytes from the first 16 rows to the second, if there are any.
    pub(crate) second: Option<usize>,
    /// Pieces of 64 bytes of each row; their right side is `[count, 16, 32, 4 bytes]`.
    pub(crate) count: usize,
    pub(crate) right: *const u8,
    /// The right side of one more piece, or null.
    pub(crate) last: *const u8,
    /// `[16 or 32, 32]`
    pub(crate) sums: *mut u8,
    /// Bytes between two rows of them.
    pub(crate) sums_stride: usize,
    /// The sums begin at zero, whatever is there.
    pub(crate) first: bool,
}

/// The tiles of this thread are set up: eight of 16 rows by 64 bytes.
pub(crate) struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: AMX is there, as the tiles were set up.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// One piece: `$begin` sets sums to zero, `$load` and `$store` move them, `$body` multiplies 64
/// bytes of the depth.
macro_rules! product {
    ($piece:ident, $second:expr, $zero:literal, $load:literal, $body:expr, $store:literal) => {
        asm!(
            "test {first:e}, {first:e}",
            "jz 3f",
            $zero,
            "jmp 4f",
            "3:",
            $load,
            "4:",
            "test {n}, {n}",
            "jz 5f",
            "2:",
            $body,
            "add {a}, {step}",
            "add {b}, 2048",
            "dec {n}",
            "jnz 2b",
            "5:",
            "test {last}, {last}",
            "jz 6f",
            "mov {b}, {last}",
            "xor {last:e}, {last:e}",
            "mov {n:e}, 1",
            "jmp 2b",
            "6:",
            $store,
            first = in(reg) u32::from($piece.first),
            n = inout(reg) $piece.count => _,
            a = inout(reg) $piece.left.begin => _,
            a2 = in(reg) $second,
            rows = in(reg) $piece.left.stride,
            step = in(reg) $piece.left.step,
            b = inout(reg) $piece.right => _,
            last = inout(reg) $piece.last => _,
            c = in(reg) $piece.sums,
            c2 = in(reg) $piece.sums.wrapping_add(ROWS * $piece.sums_stride),
            sums = in(reg) $piece.sums_stride,
            wide = in(reg) WIDE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// [`product!`] for 32 rows, or 16.
macro_rules! rows {
    ($piece:ident, $dot:literal) => {
        match $piece.second {
            Some(second) => product!(
                $piece,
                second,
                "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
                "tileloadd tmm0, [{c} + {sums}]\ntileloadd tmm1, [{c} + {sums} + 64]\ntileloadd tmm2, [{c2} + {sums}]\ntileloadd tmm3, [{c2} + {sums} + 64]",
                concat!(
                    "tileloadd tmm6, [{b} + {wide}]\ntileloadd tmm4, [{a} + {rows}]\n", $dot, " tmm0, tmm4, tmm6\n",
                    "tileloadd tmm7, [{b} + {wide} + 64]\n", $dot, " tmm1, tmm4, tmm7\n",
                    "add {a}, {a2}\ntileloadd tmm5, [{a} + {rows}]\nsub {a}, {a2}\n", $dot, " tmm2, tmm5, tmm6\n",
                    $dot, " tmm3, tmm5, tmm7"
                ),
                "tilestored [{c} + {sums}], tmm0\ntilestored [{c} + {sums} + 64], tmm1\ntilestored [{c2} + {sums}], tmm2\ntilestored [{c2} + {sums} + 64], tmm3"
            ),
            None => product!(
                $piece,
                0usize,
                "tilezero tmm0\ntilezero tmm1",
                "tileloadd tmm0, [{c} + {sums}]\ntileloadd tmm1, [{c} + {sums} + 64]",
                concat!(
                    "tileloadd tmm6, [{b} + {wide}]\ntileloadd tmm4, [{a} + {rows}]\n", $dot, " tmm0, tmm4, tmm6\n",
                    "tileloadd tmm7, [{b} + {wide} + 64]\n", $dot, " tmm1, tmm4, tmm7\n/* {a2} {c2} */"
                ),
                "tilestored [{c} + {sums}], tmm0\ntilestored [{c} + {sums} + 64], tmm1"
            ),
        }
    };
}

impl Configured {
    /// sums (+)= left · right.
    ///
    /// # Safety
    /// Every pointer in `piece` must lead to what its field says; the left rows have one piece more
    /// where `last` is not null.
    #[inline(always)]
    pub(crate) unsafe fn multiply(&self, how: Multiply, piece: &Piece) {
        // SAFETY: `self` is there, so the tiles are set up; the caller's promise for memory.
        // Nothing but this module uses the tiles.
        unsafe {
            match how {
                Multiply::Codes => rows!(piece, "tdpbusd"),
                Multiply::Bf16 => rows!(piece, "tdpbf16ps"),
            }
        }
    }
}

impl Amx {
    /// Copies `n ≤ 64` bytes.
    ///
    /// # Safety
    /// They must be readable and writable, and apart.
    #[inline(always)]
    pub(crate) unsafe fn copy(self, from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: masked bytes are not touched; the caller's promise; `self` proves the features.
        unsafe {
            _mm512_mask_storeu_epi8(
                to.cast(),
                first(n),
                _mm512_maskz_loadu_epi8(first(n), from.cast()),
            )
        }
    }

    /// Copies 64 bytes.
    ///
    /// # Safety
    /// They must be readable and writable, and apart.
    #[inline(always)]
    pub(crate) unsafe fn copy_piece(self, from: *const u8, to: *mut u8) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_storeu_si512(to.cast(), _mm512_loadu_si512(from.cast())) }
    }

    /// Writes `n ≤ 64` zeros.
    ///
    /// # Safety
    /// They must be writable.
    #[inline(always)]
    pub(crate) unsafe fn clear(self, to: *mut u8, n: usize) {
        // SAFETY: masked bytes are not touched; the caller's promise; `self` proves the features.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), first(n), _mm512_setzero_si512()) }
    }
}

/// The lowest `n ≤ 64` bits.
#[inline(always)]
fn first(n: usize) -> u64 {
    u64::MAX.checked_shr(64 - n as u32).unwrap_or(0)
}
