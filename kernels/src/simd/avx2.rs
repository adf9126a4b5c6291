//! AVX2 with FMA: 8 lanes, 16 registers. A 6 × 16 tile takes 12 of them, two hold the right side,
//! one the left.

use super::{Arithmetic, Simd, SimdKernel};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2 and FMA: only functions compiled for them make one.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// A proof for a function compiled for the same features.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new() -> Avx2 {
        Avx2(())
    }
}

/// Runs `kernel`, compiled for AVX2 and FMA.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn enter<K: SimdKernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// −1 in the first 8 entries, 0 in the last 8: a window into it is the mask of a partial load.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
fn mask(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    // SAFETY: `n ≤ 8`, so the 8 entries from `8 − n` lie in the table; only made inside `enter`.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
}

/// Stores the first `n` integers, 0 to 255, as bytes or words.
///
/// # Safety
/// They must be writable; the CPU must have AVX2.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_integers(p: *mut u8, wide: __m256i, n: usize, size: usize) {
    // SAFETY: the caller's promise; the copies hold 8 codes.
    unsafe {
        let words =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
        match (size, n) {
            (2, 8) => _mm_storeu_si128(p.cast(), words),
            (1, 8) => _mm_storel_epi64(p.cast(), _mm_packus_epi16(words, words)),
            _ => {
                let mut all = [0u8; 16];
                let codes = if size == 2 { words } else { _mm_packus_epi16(words, words) };
                _mm_storeu_si128(all.as_mut_ptr().cast(), codes);
                p.copy_from_nonoverlapping(all.as_ptr(), n * size);
            }
        }
    }
}

/// One-line wrappers of intrinsics.
macro_rules! wrap {
    ($($name:ident($($x:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($x: __m256),*) -> __m256 {
            // SAFETY: `self` proves the features.
            unsafe { $body }
        }
    )*};
}

impl Arithmetic for Avx2 {
    type V = __m256;

    wrap! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        sqrt(a) = _mm256_sqrt_ps(a);
        abs(a) = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        with_sign(a, sign) = _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0), sign));
        if_less(a, b, yes, no) = _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn scale2(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe {
            // Two halves, because 2^n itself may be no normal number; the first product is exact.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
            _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn add_exponent(self, y: __m256, shifted: __m256) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), n))
        }
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const MR: usize = 6;

    #[inline(always)]
    fn outline<K: SimdKernel>(self, kernel: K) -> K::Out {
        // SAFETY: `self` proves the features.
        unsafe { enter(kernel) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: masked lanes are not touched; `self` proves the features.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: masked lanes are not touched; `self` proves the features.
        unsafe { _mm256_maskstore_ps(p, mask(n), v) }
    }

    #[inline(always)]
    unsafe fn store_codes(self, p: *mut u8, v: __m256, n: usize, size: usize) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { store_integers(p, _mm256_cvtps_epi32(v), n, size) }
    }
    #[inline(always)]
    unsafe fn store_levels(self, p: *mut u8, v: __m256, zero: __m256, n: usize, size: usize) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe {
            store_integers(
                p,
                _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_cvtps_epi32(zero)),
                n,
                size,
            )
        }
    }

    #[inline(always)]
    fn round_bf16(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe {
            let bits = _mm256_castps_si256(a);
            // half of what is cut off, less one where the last bit that stays is even
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, half), quiet, nan);
            _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(-0x1_0000)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m256, n: usize) {
        // SAFETY: the caller's promise; the copy holds 8 values; `self` proves the features.
        unsafe {
            let wide = _mm256_srli_epi32::<16>(_mm256_castps_si256(v));
            let words =
                _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            if n == 8 {
                return _mm_storeu_si128(p.cast(), words);
            }
            let mut all = [0u16; 8];
            _mm_storeu_si128(all.as_mut_ptr().cast(), words);
            p.copy_from_nonoverlapping(all.as_ptr(), n);
        }
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
