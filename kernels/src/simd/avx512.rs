//! AVX-512 F: 16 lanes, 32 registers, and a mask for every partial access.

use super::{Arithmetic, Simd, SimdKernel};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F: only functions compiled for it make one.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// A proof for a function compiled for the same features.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(crate) fn new() -> Avx512 {
        Avx512(())
    }
}

/// Runs `kernel`, compiled for AVX-512 F.
#[inline(never)]
#[target_feature(enable = "avx512f,avx2,fma")]
pub(crate) fn enter<K: SimdKernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

/// The lowest `n ≤ 16` bits.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1u32 << n) - 1) as __mmask16
}

/// Stores the low bytes of the first `n` integers, or their low words.
///
/// # Safety
/// They must be writable; the CPU must have AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn store_integers(p: *mut u8, v: __m512i, n: usize, size: usize) {
    // SAFETY: masked lanes are not touched; the caller's promise.
    unsafe {
        match (size, n) {
            (1, 16) => _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v)),
            (1, _) => _mm512_mask_cvtepi32_storeu_epi8(p.cast(), mask(n), v),
            (_, 16) => _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(v)),
            _ => _mm512_mask_cvtepi32_storeu_epi16(p.cast(), mask(n), v),
        }
    }
}

/// One-line wrappers of intrinsics.
macro_rules! wrap {
    ($($name:ident($($x:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($x: __m512),*) -> __m512 {
            // SAFETY: `self` proves the features.
            unsafe { $body }
        }
    )*};
}

impl Arithmetic for Avx512 {
    type V = __m512;

    wrap! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        sqrt(a) = _mm512_sqrt_ps(a);
        abs(a) = _mm512_abs_ps(a);
        if_less(a, b, yes, no) = _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes);
        scale2(x, n) = _mm512_scalef_ps(x, n);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_ps(x) }
    }
    /// A division of 16 values takes as long as 16 other instructions.
    #[inline(always)]
    fn div_by_large(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let r = _mm512_rcp14_ps(b);
            // one step of Newton, none where ∞ · 0 would come of it
            let normal = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b, _mm512_set1_ps(8.507_059e37));
            let e = _mm512_maskz_fnmadd_ps(normal, b, r, _mm512_set1_ps(1.0));
            _mm512_mul_ps(a, _mm512_fmadd_ps(r, e, r))
        }
    }
    #[inline(always)]
    fn with_sign(self, a: __m512, sign: __m512) -> __m512 {
        // SAFETY: `self` proves the features. Integer forms: those for f32 need AVX-512 DQ.
        unsafe {
            let bit = _mm512_and_si512(_mm512_castps_si512(sign), _mm512_set1_epi32(i32::MIN));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), bit))
        }
    }
    #[inline(always)]
    fn add_exponent(self, y: __m512, shifted: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), n))
        }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const MR: usize = 12;

    #[inline(always)]
    fn outline<K: SimdKernel>(self, kernel: K) -> K::Out {
        // SAFETY: `self` proves the features.
        unsafe { enter(kernel) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: masked lanes are not touched; `self` proves the features.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: masked lanes are not touched; `self` proves the features.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
    }

    #[inline(always)]
    unsafe fn store_codes(self, p: *mut u8, v: __m512, n: usize, size: usize) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { store_integers(p, _mm512_cvtps_epi32(v), n, size) }
    }
    #[inline(always)]
    unsafe fn store_levels(self, p: *mut u8, v: __m512, zero: __m512, n: usize, size: usize) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe {
            store_integers(
                p,
                _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_cvtps_epi32(zero)),
                n,
                size,
            )
        }
    }

    #[inline(always)]
    fn round_bf16(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let bits = _mm512_castps_si512(a);
            // half of what is cut off, less one where the last bit that stays is even
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let rounded = _mm512_mask_blend_epi32(nan, _mm512_add_epi32(bits, half), quiet);
            _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(-0x1_0000)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m512, n: usize) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { store_integers(p.cast(), _mm512_srli_epi32::<16>(_mm512_castps_si512(v)), n, 2) }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
