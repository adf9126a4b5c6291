//! The vector type the kernels are written over, once per instruction set.
//!
//! A kernel is a value with its arguments in it ([`SimdKernel`]); [`crate::Isa::run`] calls it
//! inside a function compiled for the chosen instruction set. Everything on the way down is
//! `#[inline(always)]`, so the intrinsics end up in that function.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod portable;
pub(crate) mod wide;

pub(crate) use portable::Portable;

/// A piece of work, generic over the vector type.
pub(crate) trait SimdKernel {
    /// What it returns.
    type Out;
    /// The work. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Vectors of f32 and what is computed with them. A value of an implementing type is proof that the
/// CPU has its instructions.
///
/// Comparisons follow SSE: `max(a, b)` is `b` where either is NaN.
pub(crate) trait Arithmetic: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// a + b
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a − b
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b for b ≥ 1, to two units in the last place where b is below 2^126; beyond, where 1 / b
    /// is no normal number, to 1e-4 of the result.
    #[inline(always)]
    fn div_by_large(self, a: Self::V, b: Self::V) -> Self::V {
        self.div(a, b)
    }
    /// a · b + c; fused where the CPU can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// √a
    fn sqrt(self, a: Self::V) -> Self::V;
    /// |a|
    fn abs(self, a: Self::V) -> Self::V;
    /// `a` with the sign of `sign`; `a` must not be negative.
    fn with_sign(self, a: Self::V, sign: Self::V) -> Self::V;
    /// Per lane: `yes` where a < b, else `no` (also where either is NaN).
    fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// x · 2^n for whole n in −252..=252, rounded once.
    fn scale2(self, x: Self::V, n: Self::V) -> Self::V;
    /// y · 2^n where `shifted` is n + 1.5 · 2^23, y and the result are normal numbers and n is
    /// whole.
    fn add_exponent(self, y: Self::V, shifted: Self::V) -> Self::V;
}

/// Vectors of `LANES` values, and memory.
pub(crate) trait Simd: Arithmetic {
    /// Values in a vector.
    const LANES: usize;
    /// Rows of a register tile of the matrix product; a tile is two vectors wide.
    const MR: usize;
    /// Runs `kernel` as a function of its own: its registers are then not shared with the caller's
    /// loops.
    fn outline<K: SimdKernel>(self, kernel: K) -> K::Out;
    /// `LANES` values from `p`.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// The first `n ≤ LANES` values from `p`; the other lanes are 0.
    ///
    /// # Safety
    /// `n` values must be readable.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::V;
    /// Stores `LANES` values.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Stores the first `n ≤ LANES` lanes.
    ///
    /// # Safety
    /// `n` values must be writable.
    unsafe fn store_n(self, p: *mut f32, v: Self::V, n: usize);
    /// Stores the first `n ≤ LANES` lanes, in 0 ..= 255, as integers of `size` bytes, 1 or 2: the
    /// nearest ones, half to even.
    ///
    /// # Safety
    /// They must be writable, and aligned to their size.
    unsafe fn store_codes(self, p: *mut u8, v: Self::V, n: usize, size: usize);
    /// [`Simd::store_codes`] of v rounded to whole numbers, ties to even, plus `zero`, a whole
    /// number.
    ///
    /// # Safety
    /// As there.
    unsafe fn store_levels(self, p: *mut u8, v: Self::V, zero: Self::V, n: usize, size: usize);
    /// The nearest bf16, ties to even, as f32; a NaN stays one. Numbers too small for normal ones
    /// are rounded like all others.
    fn round_bf16(self, a: Self::V) -> Self::V;
    /// Stores the bits of the first `n ≤ LANES` lanes, which are bf16 as f32.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::V, n: usize);
    /// Σ over the lanes.
    fn sum(self, a: Self::V) -> f32;
    /// The largest lane; NaN lanes may be lost.
    fn max_lane(self, a: Self::V) -> f32;
    /// Asks for the cache line at `p` to come to the second-level cache. Any address is allowed.
    fn prefetch(self, p: *const f32);
}
