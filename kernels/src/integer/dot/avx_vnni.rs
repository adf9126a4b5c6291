//! AVX-VNNI: `vpdpbusd` on vectors of AVX2, which laptops have that lack AVX-512. It adds four
//! products of bytes per lane, exactly.

use super::IntDot;
use crate::gemm::{Dot, DotKernel};
use crate::simd::avx2::Avx2;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2, FMA and AVX-VNNI: only [`enter`] makes one.
#[derive(Clone, Copy)]
pub(super) struct AvxVnni(Avx2);

/// Whether this CPU has what [`enter`] is compiled for.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avxvnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// Runs `kernel`, compiled for AVX2, FMA and AVX-VNNI.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) fn enter<K: DotKernel<AvxVnni>>(kernel: K) {
    kernel.run(AvxVnni(Avx2::new()));
}

impl Dot for AvxVnni {
    type Float = Avx2;
    type Left = u8;
    type Right = i8;
    type Sum = i32;
    type Group = __m256i;
    type Acc = __m256i;
    const GROUP: usize = 4;
    const MR: usize = 6;

    #[inline(always)]
    fn float(self) -> Avx2 {
        self.0
    }
    #[inline(always)]
    fn outline<K: DotKernel<Self>>(self, kernel: K) {
        // SAFETY: `self` proves the features.
        unsafe { enter(kernel) }
    }
    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const i32) -> __m256i {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut i32, v: __m256i) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn left(self, p: *const u8) -> __m256i {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn right(self, p: *const i8) -> __m256i {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn dot(self, acc: __m256i, left: __m256i, right: __m256i) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_dpbusd_avx_epi32(acc, left, right) }
    }
}

impl IntDot for AvxVnni {
    #[inline(always)]
    fn all(self, value: i32) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn times(self, factor: i32, v: __m256i) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_mullo_epi32(_mm256_set1_epi32(factor), v) }
    }
    #[inline(always)]
    fn minus(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    fn floats(self, v: __m256i) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn code(value: u8) -> u8 {
        value
    }
    #[inline(always)]
    fn value(code: u8) -> u8 {
        code
    }
}
