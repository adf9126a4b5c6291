//! AVX-512 BF16: `vdpbf16ps` adds two products per lane.

use super::Bf16Dot;
use crate::amx::{Amx, Multiply};
use crate::bf16::product::Bf16;
use crate::gemm::{
    Block, Dot, DotKernel, MicroKernel, Plain, copy_rows, drive, drive_tiles, multiply_plain,
};
use crate::simd::avx512::Avx512;
use std::arch::x86_64::*;
use std::mem::transmute;

/// Proof that this CPU has AVX-512 F, BW and BF16: only [`enter`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx512Dot(Avx512, Option<Amx>);

impl Bf16Dot for Avx512Dot {
    #[inline(always)]
    unsafe fn multiply(self, product: &Plain<u16, u16, f32>) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.1 {
                Some(amx) => multiply_plain(amx, Multiply::Bf16, product),
                None => product.run(Bf16(self)),
            }
        }
    }
}

/// Whether this CPU has what [`enter`] is compiled for.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
}

/// Runs `kernel`, compiled for AVX-512 F, BW and BF16.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma")]
pub(super) fn enter<K: DotKernel<Avx512Dot>>(kernel: K, amx: Option<Amx>) {
    kernel.run(Avx512Dot(Avx512::new(), amx));
}

impl Dot for Avx512Dot {
    type Float = Avx512;
    type Left = u16;
    type Right = u16;
    type Sum = f32;
    type Group = __m512bh;
    type Acc = __m512;
    const GROUP: usize = super::GROUP;
    const MR: usize = 12;
    const RAGGED: bool = true;

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
    fn zero(self) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller's promise; `self` proves the features.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn left(self, p: *const u16) -> __m512bh {
        // SAFETY: the caller's promise; both types are 512 plain bits; `self` proves the features.
        unsafe { transmute(_mm512_set1_epi32(p.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn last(self, p: *const u16, _: usize) -> __m512bh {
        // SAFETY: the caller's promise: of two elements one is there; as above.
        unsafe { transmute(_mm512_set1_epi32(i32::from(p.read()))) }
    }
    #[inline(always)]
    unsafe fn right(self, p: *const u16) -> __m512bh {
        // SAFETY: the caller's promise; as above.
        unsafe { transmute(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    fn dot(self, acc: __m512, left: __m512bh, right: __m512bh) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_dpbf16_ps(acc, left, right) }
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
                Some(amx) => drive_tiles(amx, Multiply::Bf16, micro, block, copied),
                None => drive(micro, block),
            }
        }
    }
}
