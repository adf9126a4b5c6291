//! Plain Rust over arrays of 8, groups of four bytes as VNNI has them.

use super::IntDot;
use crate::gemm::{Dot, DotKernel};
use crate::simd::Portable;

/// Any CPU.
#[derive(Clone, Copy)]
pub(super) struct PortableDot;

/// Eight i32; operands of [`Dot::dot`] hold four bytes in each.
type Acc = [i32; 8];

impl Dot for PortableDot {
    type Float = Portable;
    type Left = u8;
    type Right = i8;
    type Sum = i32;
    type Group = Acc;
    type Acc = Acc;
    const GROUP: usize = 4;
    const MR: usize = 3;

    #[inline(always)]
    fn float(self) -> Portable {
        Portable
    }
    #[inline(never)]
    fn outline<K: DotKernel<Self>>(self, kernel: K) {
        kernel.run(self);
    }
    #[inline(always)]
    fn zero(self) -> Acc {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const i32) -> Acc {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Acc>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut i32, v: Acc) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Acc>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn left(self, p: *const u8) -> Acc {
        // SAFETY: the caller's promise.
        [i32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() }); 8]
    }
    #[inline(always)]
    unsafe fn right(self, p: *const i8) -> Acc {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[[u8; 4]; 8]>().read() }.map(i32::from_le_bytes)
    }
    #[inline(always)]
    fn dot(self, mut acc: Acc, left: Acc, right: Acc) -> Acc {
        for i in 0..8 {
            let (a, b) = (left[i].to_le_bytes(), right[i].to_le_bytes());
            for j in 0..4 {
                acc[i] += i32::from(a[j]) * i32::from(b[j] as i8);
            }
        }
        acc
    }
}

impl IntDot for PortableDot {
    #[inline(always)]
    fn all(self, value: i32) -> Acc {
        [value; 8]
    }
    #[inline(always)]
    fn times(self, factor: i32, v: Acc) -> Acc {
        v.map(|v| factor * v)
    }
    #[inline(always)]
    fn minus(self, a: Acc, b: Acc) -> Acc {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn max(self, a: Acc, b: Acc) -> Acc {
        std::array::from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn floats(self, v: Acc) -> [f32; 8] {
        v.map(|v| v as f32)
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
