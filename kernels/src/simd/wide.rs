//! Several vectors side by side.
//!
//! The functions of [`crate::math`] are chains of some 25 instructions, four cycles each, that wait
//! for one another, and a CPU's scheduler, some 100 instructions, holds a few of them only. Over
//! [`Wide`] every step is taken for all vectors before the next one.

use super::{Arithmetic, Simd};
use crate::gemm::{load_some, store_some};

/// As many vectors as pay everywhere.
pub(crate) const CHAINS: usize = 4;

/// `M` vectors of `S`.
#[derive(Clone, Copy)]
pub(crate) struct Wide<S, const M: usize>(pub(crate) S);

/// Steps for one vector, taken for all.
macro_rules! each {
    ($($name:ident($first:ident $(, $x:ident)*);)*) => {$(
        #[inline(always)]
        fn $name(self, $first: [S::V; M] $(, $x: [S::V; M])*) -> [S::V; M] {
            let mut out = $first;
            for i in 0..M {
                out[i] = self.0.$name($first[i] $(, $x[i])*);
            }
            out
        }
    )*};
}

impl<S: Arithmetic, const M: usize> Arithmetic for Wide<S, M> {
    type V = [S::V; M];

    #[inline(always)]
    fn splat(self, x: f32) -> [S::V; M] {
        [self.0.splat(x); M]
    }

    each! {
        add(a, b);
        sub(a, b);
        mul(a, b);
        div(a, b);
        div_by_large(a, b);
        fma(a, b, c);
        max(a, b);
        min(a, b);
        sqrt(a);
        abs(a);
        with_sign(a, sign);
        if_less(a, b, yes, no);
        scale2(x, n);
        add_exponent(y, shifted);
    }
}

/// `M` vectors from `p` on, of the last `n` values.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(crate) unsafe fn load_many<S: Simd, const M: usize>(
    s: S,
    p: *const f32,
    n: usize,
) -> [S::V; M] {
    let mut out = [s.splat(0.0); M];
    for (j, v) in out.iter_mut().enumerate() {
        let n = if j + 1 == M { n } else { S::LANES };
        // SAFETY: the caller's promise.
        *v = unsafe { load_some(s, p.add(j * S::LANES), n) };
    }
    out
}

/// Stores `M` vectors from `p` on, of the last `n` lanes.
///
/// # Safety
/// They must be writable.
#[inline(always)]
pub(crate) unsafe fn store_many<S: Simd, const M: usize>(
    s: S,
    p: *mut f32,
    v: [S::V; M],
    n: usize,
) {
    for (j, v) in v.into_iter().enumerate() {
        let n = if j + 1 == M { n } else { S::LANES };
        // SAFETY: the caller's promise.
        unsafe { store_some(s, p.add(j * S::LANES), v, n) };
    }
}
