//! Where a kernel puts its results: f32, or at once the codes that an integer product will read.

use crate::epilogue::check_matrix;
use crate::gemm::{load_some, store_some};
use crate::math::round_small;
use crate::shared::SharedMut;
use crate::simd::Simd;
use crate::{FakeQuant, Isa};

/// Rows of results.
#[derive(Debug)]
pub enum Target<'a> {
    /// As they are.
    Values(&'a mut [f32]),
    /// As [`quantize`](crate::quantize) would store them: elements of [`Isa::code_type`].
    Codes(&'a mut [u8], FakeQuant<'a>),
}

impl<'a> From<&'a mut [f32]> for Target<'a> {
    fn from(y: &'a mut [f32]) -> Target<'a> {
        Target::Values(y)
    }
}

impl<'a> From<&'a mut Vec<f32>> for Target<'a> {
    fn from(y: &'a mut Vec<f32>) -> Target<'a> {
        Target::Values(y)
    }
}

/// A target that tasks share, each writing its own places.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a> {
    kind: Kind<'a>,
    /// Between two rows, in elements.
    ld: usize,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Values(SharedMut<'a, f32>),
    Codes { y: SharedMut<'a, u8>, size: usize, how: FakeQuant<'a> },
}

impl<'a> Sink<'a> {
    /// Panics unless the target has `rows` rows of `cols` elements, `ld` apart.
    pub(crate) fn new(isa: Isa, target: Target<'a>, rows: usize, cols: usize, ld: usize) -> Sink<'a> {
        let kind = match target {
            Target::Values(y) => {
                check_matrix("y", y.len(), rows, cols, ld);
                Kind::Values(SharedMut::new(y))
            }
            Target::Codes(y, how) => {
                let size = isa.code_type().size();
                check_matrix("y", y.len() / size, rows, cols, ld);
                assert!(y.as_ptr().addr().is_multiple_of(size), "codes of {size} bytes are not aligned");
                assert_eq!(how.segments.iter().sum::<usize>(), cols, "segments of {cols} columns");
                how.check_codes();
                Kind::Codes { y: SharedMut::new(y), size, how }
            }
        };
        Sink { kind, ld }
    }

    /// f32 rows that were checked.
    pub(crate) fn values(y: &'a mut [f32], ld: usize) -> Sink<'a> {
        Sink { kind: Kind::Values(SharedMut::new(y)), ld }
    }

    /// Values of scratch that [`Sink::place`] needs for `n` values.
    pub(crate) fn scratch(&self, n: usize) -> usize {
        if let Kind::Codes { .. } = self.kind { n } else { 0 }
    }

    /// Where to write values of a row from a column on, before [`Sink::store`]: in the result, or in `scratch`.
    #[inline(always)]
    pub(crate) fn place(&self, row: usize, col: usize, scratch: *mut f32) -> *mut f32 {
        match self.kind {
            Kind::Values(y) => y.at(row * self.ld + col),
            Kind::Codes { .. } => scratch,
        }
    }

    /// Turns `n` values at the place into results.
    ///
    /// # Safety
    /// They must have been written there, the row and columns must be in range, and no other task may touch them.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(&self, s: S, row: usize, col: usize, n: usize, place: *const f32) {
        let Kind::Codes { y, size, how } = self.kind else { return };
        let (mut first, mut at) = (0, 0);
        for (i, &len) in how.segments.iter().enumerate() {
            let end = (first + len).min(col + n);
            if at < n && col + at < end {
                let rounding = Rounding::new(s, &how, i);
                let count = end - (col + at);
                let out = y.at((row * self.ld + col + at) * size);
                // SAFETY: the caller's promise.
                unsafe { rounding.row(s, place.add(at), out, count, size) };
                at += count;
            }
            first += len;
        }
    }
}

/// How the columns of a segment are stored, for kernels that pass over rows column by column.
#[derive(Clone, Copy)]
pub(crate) enum Writer<'a, S: Simd> {
    Values(SharedMut<'a, f32>, usize),
    Codes { y: SharedMut<'a, u8>, ld: usize, size: usize, rounding: Rounding<S> },
}

impl<'a> Sink<'a> {
    /// The writers of `n` columns from `col` on, each for a range of them, counted from `col`.
    #[inline(always)]
    pub(crate) fn writers<S: Simd>(
        &self,
        s: S,
        col: usize,
        n: usize,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, Writer<'a, S>)> {
        let sink = *self;
        let whole = match sink.kind {
            Kind::Values(y) => Some((0..n, Writer::Values(y, sink.ld))),
            Kind::Codes { .. } => None,
        };
        let segments: &[usize] = match sink.kind {
            Kind::Values(_) => &[],
            Kind::Codes { how, .. } => how.segments,
        };
        let mut first = 0;
        let parts = segments.iter().enumerate().filter_map(move |(i, &len)| {
            let range = first.max(col)..(first + len).min(col + n);
            first += len;
            let Kind::Codes { y, size, how } = sink.kind else { return None };
            let writer = Writer::Codes { y, ld: sink.ld, size, rounding: Rounding::new(s, &how, i) };
            (range.start < range.end).then(|| (range.start - col..range.end - col, writer))
        });
        whole.into_iter().chain(parts)
    }
}

impl<S: Simd> Writer<'_, S> {
    /// Stores the first `n` lanes from `(row, col)` on.
    ///
    /// # Safety
    /// They must be in range of the sink, and no other task may touch them.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, s: S, row: usize, col: usize, v: S::V, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Writer::Values(y, ld) => store_some(s, y.at(row * ld + col), v, n),
                Writer::Codes { y, ld, size, rounding } => {
                    s.store_codes(y.at((row * ld + col) * size), rounding.code(s, v), n, *size);
                }
            }
        }
    }
}

impl FakeQuant<'_> {
    /// Panics unless every segment has codes of at most 8 bits.
    pub(crate) fn check_codes(&self) {
        let count = self.segments.len();
        assert!(self.scale.len() >= count && self.zero_point.len() >= count, "a scale and a zero point per segment");
        assert!((1..=8).contains(&self.bits), "{} bits", self.bits);
        assert!(self.scale[..count].iter().all(|&s| s != 0.0), "a scale of 0 stands for no rounding");
    }
}

/// How a segment is rounded.
#[derive(Clone, Copy)]
pub(crate) struct Rounding<S: Simd> {
    inverse: S::V,
    low: S::V,
    high: S::V,
    zero: S::V,
}

impl<S: Simd> Rounding<S> {
    #[inline(always)]
    pub(crate) fn new(s: S, how: &FakeQuant, segment: usize) -> Rounding<S> {
        let zero = how.zero_point[segment];
        let levels = ((1u32 << how.bits) - 1) as f32;
        let (low, high) = (s.splat(-zero), s.splat(levels - zero));
        Rounding { inverse: s.splat(1.0 / how.scale[segment]), low, high, zero: s.splat(zero) }
    }

    /// The codes of a vector.
    #[inline(always)]
    fn code(&self, s: S, v: S::V) -> S::V {
        // `low` for NaN
        let v = s.min(s.max(s.mul(v, self.inverse), self.low), self.high);
        s.add(round_small(s, v), self.zero)
    }

    /// Codes of `size` bytes of `n` values.
    ///
    /// # Safety
    /// They must be readable and writable.
    #[inline(always)]
    pub(crate) unsafe fn row(self, s: S, x: *const f32, y: *mut u8, n: usize, size: usize) {
        let mut at = 0;
        while at < n {
            let count = (n - at).min(S::LANES);
            // SAFETY: the caller's promise.
            unsafe {
                s.store_codes(y.add(at * size), self.code(s, load_some(s, x.add(at), count)), count, size);
            }
            at += count;
        }
    }
}
