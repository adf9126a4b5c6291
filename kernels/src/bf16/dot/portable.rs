//! Plain Rust over arrays of 8: the definition of a step.

use super::Bf16Dot;
use crate::gemm::{Dot, DotKernel};
use crate::simd::Portable;

/// Any CPU.
#[derive(Clone, Copy)]
pub(super) struct PortableDot;

impl Bf16Dot for PortableDot {}

/// A bf16 as f32.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl Dot for PortableDot {
    type Float = Portable;
    type Left = u16;
    type Right = u16;
    type Sum = f32;
    type Group = [[u16; 2]; 8];
    type Acc = [f32; 8];
    const GROUP: usize = super::GROUP;
    const MR: usize = 3;
    const RAGGED: bool = true;

    #[inline(always)]
    fn float(self) -> Portable {
        Portable
    }
    #[inline(never)]
    fn outline<K: DotKernel<Self>>(self, kernel: K) {
        kernel.run(self);
    }
    #[inline(always)]
    fn zero(self) -> [f32; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn left(self, p: *const u16) -> Self::Group {
        // SAFETY: the caller's promise.
        [unsafe { p.cast::<[u16; 2]>().read() }; 8]
    }
    #[inline(always)]
    unsafe fn last(self, p: *const u16, _: usize) -> Self::Group {
        // SAFETY: the caller's promise: of two elements one is there.
        [[unsafe { p.read() }, 0]; 8]
    }
    #[inline(always)]
    unsafe fn right(self, p: *const u16) -> Self::Group {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self::Group>().read() }
    }
    #[inline(always)]
    fn dot(self, mut acc: [f32; 8], left: Self::Group, right: Self::Group) -> [f32; 8] {
        for i in 0..8 {
            // products are exact
            let product = |j: usize| widen(left[i][j]) * widen(right[i][j]);
            acc[i] = (acc[i] + product(1)) + product(0);
        }
        acc
    }
}
