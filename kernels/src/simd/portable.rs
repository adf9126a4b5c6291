//! Arrays of 8: what runs where nothing faster does. Plain `a * b + c`, because a fused one is a
//! library call here.

use super::{Arithmetic, Simd, SimdKernel};
use crate::math::round_small;
use crate::reference::nearest_bf16;

/// Any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; 8];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    let mut out = [0.0; 8];
    for i in 0..8 {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// 2^n for whole n in −126..=127.
#[inline(always)]
fn pow2(n: f32) -> f32 {
    f32::from_bits(((n as i32 + 127) as u32) << 23)
}

impl Arithmetic for Portable {
    type V = V;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; 8]
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        zip(a, a, |a, _| a.sqrt())
    }
    #[inline(always)]
    fn abs(self, a: V) -> V {
        zip(a, a, |a, _| a.abs())
    }
    #[inline(always)]
    fn with_sign(self, a: V, sign: V) -> V {
        zip(a, sign, f32::copysign)
    }
    #[inline(always)]
    fn if_less(self, a: V, b: V, yes: V, no: V) -> V {
        let mut out = no;
        for i in 0..8 {
            if a[i] < b[i] {
                out[i] = yes[i];
            }
        }
        out
    }
    #[inline(always)]
    fn scale2(self, x: V, n: V) -> V {
        // Two halves, because 2^n itself may be no normal number; the first product is exact.
        zip(x, n, |x, n| {
            let half = (n * 0.5) as i32 as f32;
            x * pow2(half) * pow2(n - half)
        })
    }
    #[inline(always)]
    fn add_exponent(self, y: V, shifted: V) -> V {
        zip(y, shifted, |y, shifted| {
            f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23))
        })
    }
}

impl Simd for Portable {
    const LANES: usize = 8;
    const MR: usize = 3;

    #[inline(never)]
    fn outline<K: SimdKernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> V {
        let mut out = [0.0; 8];
        // SAFETY: the caller's promise for the source; `n ≤ 8` for the array.
        unsafe { p.copy_to_nonoverlapping(out.as_mut_ptr(), n) };
        out
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: V, n: usize) {
        // SAFETY: the caller's promise for the target; `n ≤ 8` for the array.
        unsafe { p.copy_from_nonoverlapping(v.as_ptr(), n) }
    }
    #[inline(always)]
    unsafe fn store_codes(self, p: *mut u8, v: V, n: usize, size: usize) {
        for (i, v) in round_small(self, v)[..n].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                if size == 1 {
                    p.add(i).write(*v as u8)
                } else {
                    p.cast::<u16>().add(i).write(*v as u16)
                }
            };
        }
    }
    #[inline(always)]
    unsafe fn store_levels(self, p: *mut u8, v: V, zero: V, n: usize, size: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.store_codes(p, self.add(round_small(self, v), zero), n, size) }
    }
    #[inline(always)]
    fn round_bf16(self, a: V) -> V {
        zip(a, a, |a, _| nearest_bf16(a))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: V, n: usize) {
        for (i, v) in v[..n].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { p.add(i).write((v.to_bits() >> 16) as u16) };
        }
    }
    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn max_lane(self, a: V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
}
