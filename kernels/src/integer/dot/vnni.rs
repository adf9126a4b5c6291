//! AVX-512 VNNI: `vpdpbusd` adds four products of bytes per lane, exactly.

use super::IntDot;
use crate::amx::{Amx, Multiply};
use crate::gemm::{
    Block, Dot, DotKernel, MicroKernel, Plain, copy_rows, drive, drive_tiles, multiply_plain,
};
use crate::integer::tile::Codes;
use crate::simd::avx512::Avx512;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, BW and VNNI: only [`enter`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Vnni(Avx512, Option<Amx>);

/// Whether this CPU has what [`enter`] is compiled for, but for what AVX-512 as an
/// [`Isa`](crate::Isa) stands for.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw")
}

/// Runs `kernel`, compiled for AVX-512 F, BW and VNNI.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
pub(super) fn enter<K: DotKernel<Vnni>>(kernel: K, amx: Option<Amx>) {
    kernel.run(Vnni(Avx512::new(), amx));
}

impl Dot for Vnni {
    type Float = Avx512;
    type Left = u8;
    type Right = i8;
    type Sum = i32;
    type Group = __m512i;
    type Acc = __m512i;
    const GROUP: usize = 4;
    const MR: usize = 12;

    #[inline(always)]
    fn float(self) -> Avx512 {
        self.0
    }
    #[inline(always)]
    fn outline<K: DotKernel<Self>>(self, kernel: K) {
        // SAFETY: `self` proves the features.
        unsafe { enter(kernel, self.1) }
    }
    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const i32) -> __m512i {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut i32, v: __m512i) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn left(self, p: *const u8) -> __m512i {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn right(self, p: *const i8) -> __m512i {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, left: __m512i, right: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_dpbusd_epi32(acc, left, right) }
    }
    #[inline(always)]
    unsafe fn copy_rows<M: MicroKernel>(self, block: &Block<M>, to: &mut [u8]) {
        if let Some(amx) = self.1 {
            // SAFETY: the caller's promise.
            unsafe { copy_rows(amx, block, to) }
        }
    }
    #[inline(always)]
    unsafe fn drive<M: MicroKernel>(self, micro: M, block: &Block<M>, copied: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.1 {
                Some(amx) => drive_tiles(amx, Multiply::Codes, micro, block, copied),
                None => drive(micro, block),
            }
        }
    }
}

impl IntDot for Vnni {
    #[inline(always)]
    fn all(self, value: i32) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn times(self, factor: i32, v: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_mullo_epi32(_mm512_set1_epi32(factor), v) }
    }
    #[inline(always)]
    fn minus(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    fn floats(self, v: __m512i) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn code(value: u8) -> u8 {
        value
    }
    #[inline(always)]
    fn value(code: u8) -> u8 {
        code
    }
    #[inline(always)]
    unsafe fn multiply(self, product: &Plain<u8, i8, i32>) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.1 {
                Some(amx) => multiply_plain(amx, Multiply::Codes, product),
                None => product.run(Codes(self)),
            }
        }
    }
}
