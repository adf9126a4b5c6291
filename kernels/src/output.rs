//! Where a kernel stores its results: as f32, or directly as the codes or bf16 that the next
//! product reads.

use crate::epilogue::check_matrix;
use crate::gemm::{load_some, store_some};
use crate::math::round_small;
use crate::shared::SharedMut;
use crate::simd::Simd;
use crate::{FakeQuant, Isa};

/// The memory that a kernel writes its rows of results to, and the format that it writes them in.
///
/// A format other than [`Output::Values`] saves a pass over memory: the results are those of the
/// kernel followed by [`quantize`](crate::quantize), [`fake_quant`](crate::fake_quant()) or
/// [`round_bf16`](crate::round_bf16), bit for bit.
#[derive(Debug)]
pub enum Output<'a> {
    /// f32, as computed.
    Values(&'a mut [f32]),
    /// As [`quantize`](crate::quantize) would store them: elements of [`Isa::code_type`].
    Codes(&'a mut [u8], FakeQuant<'a>),
    /// As [`fake_quant`](crate::fake_quant) would round them.
    Rounded(&'a mut [f32], FakeQuant<'a>),
    /// Rounded to bf16, of which these are the bits.
    Bf16(&'a mut [u16]),
    /// Rounded to bf16, as f32.
    RoundedBf16(&'a mut [f32]),
}

impl<'a> From<&'a mut [f32]> for Output<'a> {
    fn from(y: &'a mut [f32]) -> Output<'a> {
        Output::Values(y)
    }
}

impl<'a> From<&'a mut Vec<f32>> for Output<'a> {
    fn from(y: &'a mut Vec<f32>) -> Output<'a> {
        Output::Values(y)
    }
}

/// An output that tasks share, each writing its own rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a> {
    kind: Format<'a>,
    /// Between two rows, in elements.
    ld: usize,
}

#[derive(Clone, Copy)]
enum Format<'a> {
    Values(SharedMut<'a, f32>),
    Codes { y: SharedMut<'a, u8>, size: usize, how: FakeQuant<'a> },
    Rounded(SharedMut<'a, f32>, FakeQuant<'a>),
    Bf16(SharedMut<'a, u16>),
    RoundedBf16(SharedMut<'a, f32>),
}

impl<'a> Sink<'a> {
    /// Panics unless the output has `rows` rows of `cols` elements, `ld` apart.
    pub(crate) fn new(
        isa: Isa,
        output: Output<'a>,
        rows: usize,
        cols: usize,
        ld: usize,
    ) -> Sink<'a> {
        let kind = match output {
            Output::Values(y) => {
                check_matrix("y", y.len(), rows, cols, ld);
                Format::Values(SharedMut::new(y))
            }
            Output::Codes(y, how) => {
                let size = isa.code_type().size();
                check_matrix("y", y.len() / size, rows, cols, ld);
                assert!(
                    y.as_ptr().addr().is_multiple_of(size),
                    "codes of {size} bytes are not aligned"
                );
                assert_eq!(how.segments.iter().sum::<usize>(), cols, "segments of {cols} columns");
                how.check_codes();
                Format::Codes { y: SharedMut::new(y), size, how }
            }
            Output::Rounded(y, how) => {
                check_matrix("y", y.len(), rows, cols, ld);
                assert_eq!(how.segments.iter().sum::<usize>(), cols, "segments of {cols} columns");
                how.check();
                Format::Rounded(SharedMut::new(y), how)
            }
            Output::Bf16(y) => {
                check_matrix("y", y.len(), rows, cols, ld);
                Format::Bf16(SharedMut::new(y))
            }
            Output::RoundedBf16(y) => {
                check_matrix("y", y.len(), rows, cols, ld);
                Format::RoundedBf16(SharedMut::new(y))
            }
        };
        Sink { kind, ld }
    }

    /// How results are rounded to what codes stand for.
    fn rounding(&self) -> Option<FakeQuant<'a>> {
        match self.kind {
            Format::Values(_) | Format::Bf16(_) | Format::RoundedBf16(_) => None,
            Format::Codes { how, .. } | Format::Rounded(_, how) => Some(how),
        }
    }

    /// f32 rows that were checked.
    pub(crate) fn values(y: &'a mut [f32], ld: usize) -> Sink<'a> {
        Sink { kind: Format::Values(SharedMut::new(y)), ld }
    }

    /// Values of scratch that [`Sink::place`] needs for `n` values.
    pub(crate) fn scratch(&self, n: usize) -> usize {
        if matches!(self.kind, Format::Codes { .. } | Format::Bf16(_)) { n } else { 0 }
    }

    /// Where to write values of a row from a column on, before [`Sink::store`]: in the result, or
    /// in `scratch`.
    #[inline(always)]
    pub(crate) fn place(&self, row: usize, col: usize, scratch: *mut f32) -> *mut f32 {
        match self.kind {
            Format::Values(y) | Format::Rounded(y, _) | Format::RoundedBf16(y) => {
                y.at(row * self.ld + col)
            }
            Format::Codes { .. } | Format::Bf16(_) => scratch,
        }
    }

    /// Turns `n` values at the place into results.
    ///
    /// # Safety
    /// They must have been written there, the row and columns must be in range, and no other task
    /// may touch them.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(
        &self,
        s: S,
        row: usize,
        col: usize,
        n: usize,
        place: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.kind {
                Format::Bf16(y) => return bf16_row(s, place, y.at(row * self.ld + col), n),
                Format::RoundedBf16(_) => return round_bf16_row(s, place, n),
                _ => {}
            }
        }
        let Some(how) = self.rounding() else { return };
        let (mut first, mut at) = (0, 0);
        for (i, &len) in how.segments.iter().enumerate() {
            let end = (first + len).min(col + n);
            if at < n && col + at < end {
                let rounding = SegmentRounding::new(s, &how, i);
                let count = end - (col + at);
                // SAFETY: the caller's promise.
                unsafe {
                    match self.kind {
                        Format::Codes { y, size, .. } => {
                            let out = y.at((row * self.ld + col + at) * size);
                            rounding.row(s, place.add(at), out, count, size);
                        }
                        _ => rounding.round_row(s, place.add(at), count),
                    }
                }
                at += count;
            }
            first += len;
        }
    }
}

/// Stores vectors of results.
pub(crate) trait Put<S: Simd> {
    /// Stores the first `n` lanes from `(row, col)` on.
    ///
    /// # Safety
    /// They must be in range of the sink, and no other task may touch them.
    unsafe fn put(&self, s: S, row: usize, col: usize, v: S::V, n: usize);
}

/// Codes of `SIZE` bytes.
#[derive(Clone, Copy)]
pub(crate) struct CodeWriter<'a, S: Simd, const SIZE: usize> {
    y: SharedMut<'a, u8>,
    ld: usize,
    rounding: SegmentRounding<S>,
}

impl<S: Simd, const SIZE: usize> Put<S> for CodeWriter<'_, S, SIZE> {
    #[inline(always)]
    unsafe fn put(&self, s: S, row: usize, col: usize, v: S::V, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.rounding.put(s, self.y.at((row * self.ld + col) * SIZE), v, n, SIZE) }
    }
}

/// How the columns of a segment are stored, for kernels that pass over rows column by column.
#[derive(Clone, Copy)]
pub(crate) enum Writer<'a, S: Simd> {
    Values(SharedMut<'a, f32>, usize),
    Bytes(CodeWriter<'a, S, 1>),
    Words(CodeWriter<'a, S, 2>),
    Rounded(SharedMut<'a, f32>, usize, SegmentRounding<S>),
    Bf16(SharedMut<'a, u16>, usize),
    RoundedBf16(SharedMut<'a, f32>, usize),
}

impl<'a> Sink<'a> {
    /// How many writers its columns take: one, or one per segment.
    pub(crate) fn parts(&self) -> usize {
        self.rounding().map_or(1, |how| how.segments.len())
    }

    /// The writer of those of `n` columns from `col` on that belong to a part, and their range,
    /// counted from `col`.
    #[inline(always)]
    pub(crate) fn writer<S: Simd>(
        &self,
        s: S,
        part: usize,
        col: usize,
        n: usize,
    ) -> Option<(std::ops::Range<usize>, Writer<'a, S>)> {
        let Some(how) = self.rounding() else {
            let writer = match self.kind {
                Format::Bf16(y) => Writer::Bf16(y, self.ld),
                Format::RoundedBf16(y) => Writer::RoundedBf16(y, self.ld),
                Format::Values(y) => Writer::Values(y, self.ld),
                Format::Codes { .. } | Format::Rounded(..) => return None,
            };
            return Some((0..n, writer));
        };
        let first: usize = how.segments[..part].iter().sum();
        let range = first.max(col)..(first + how.segments[part]).min(col + n);
        if range.is_empty() {
            return None;
        }
        let rounding = SegmentRounding::new(s, &how, part);
        let writer = match self.kind {
            Format::Codes { y, size: 1, .. } => {
                Writer::Bytes(CodeWriter { y, ld: self.ld, rounding })
            }
            Format::Codes { y, .. } => Writer::Words(CodeWriter { y, ld: self.ld, rounding }),
            Format::Rounded(y, _) => Writer::Rounded(y, self.ld, rounding),
            Format::Values(_) | Format::Bf16(_) | Format::RoundedBf16(_) => return None,
        };
        Some((range.start - col..range.end - col, writer))
    }
}

impl<S: Simd> Put<S> for Writer<'_, S> {
    #[inline(always)]
    unsafe fn put(&self, s: S, row: usize, col: usize, v: S::V, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Writer::Values(y, ld) => store_some(s, y.at(row * ld + col), v, n),
                Writer::Bytes(codes) => codes.put(s, row, col, v, n),
                Writer::Words(codes) => codes.put(s, row, col, v, n),
                Writer::Rounded(y, ld, rounding) => {
                    store_some(s, y.at(row * ld + col), rounding.round(s, v), n)
                }
                Writer::Bf16(y, ld) => s.store_bf16(y.at(row * ld + col), s.round_bf16(v), n),
                Writer::RoundedBf16(y, ld) => {
                    store_some(s, y.at(row * ld + col), s.round_bf16(v), n)
                }
            }
        }
    }
}

/// The bits of `n` values rounded to bf16.
///
/// # Safety
/// They must be readable and writable.
#[inline(always)]
unsafe fn bf16_row<S: Simd>(s: S, x: *const f32, y: *mut u16, n: usize) {
    let mut at = 0;
    while at < n {
        let count = (n - at).min(S::LANES);
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(y.add(at), s.round_bf16(load_some(s, x.add(at), count)), count) };
        at += count;
    }
}

/// Rounds `n` values to bf16 where they are.
///
/// # Safety
/// They must be writable.
#[inline(always)]
unsafe fn round_bf16_row<S: Simd>(s: S, x: *mut f32, n: usize) {
    let mut at = 0;
    while at < n {
        let count = (n - at).min(S::LANES);
        // SAFETY: the caller's promise.
        unsafe { store_some(s, x.add(at), s.round_bf16(load_some(s, x.add(at), count)), count) };
        at += count;
    }
}

impl FakeQuant<'_> {
    /// Panics unless every segment has a scale and a zero point.
    pub(crate) fn check(&self) {
        let count = self.segments.len();
        assert!(
            self.scale.len() >= count && self.zero_point.len() >= count,
            "a scale and a zero point per segment"
        );
        assert!((1..=16).contains(&self.bits), "{} bits", self.bits);
    }

    /// Panics unless every segment has codes of at most 8 bits.
    pub(crate) fn check_codes(&self) {
        self.check();
        assert!(self.bits <= 8, "{} bits", self.bits);
        assert!(
            self.scale[..self.segments.len()].iter().all(|&s| s != 0.0),
            "a scale of 0 stands for no rounding"
        );
    }
}

/// How a segment is rounded.
#[derive(Clone, Copy)]
pub(crate) struct SegmentRounding<S: Simd> {
    /// The scale is not 0.
    rounds: bool,
    scale: S::V,
    inverse: S::V,
    low: S::V,
    high: S::V,
    zero: S::V,
}

impl<S: Simd> SegmentRounding<S> {
    #[inline(always)]
    pub(crate) fn new(s: S, how: &FakeQuant, segment: usize) -> SegmentRounding<S> {
        let zero = how.zero_point[segment];
        let levels = ((1u32 << how.bits) - 1) as f32;
        let (low, high) = (s.splat(-zero), s.splat(levels - zero));
        let scale = how.scale[segment];
        let (inverse, zero) = (s.splat(1.0 / scale), s.splat(zero));
        SegmentRounding { rounds: scale != 0.0, scale: s.splat(scale), inverse, low, high, zero }
    }

    /// What the codes of a vector stand for; the vector itself for a scale of 0.
    #[inline(always)]
    pub(crate) fn round(&self, s: S, v: S::V) -> S::V {
        if !self.rounds {
            return v;
        }
        // `low` for NaN
        let v = s.min(s.max(s.mul(v, self.inverse), self.low), self.high);
        s.mul(round_small(s, v), self.scale)
    }

    /// Rounds `n` values where they are.
    ///
    /// # Safety
    /// They must be writable.
    #[inline(always)]
    unsafe fn round_row(self, s: S, x: *mut f32, n: usize) {
        let mut at = 0;
        while at < n && self.rounds {
            let count = (n - at).min(S::LANES);
            // SAFETY: the caller's promise.
            unsafe {
                store_some(s, x.add(at), self.round(s, load_some(s, x.add(at), count)), count)
            };
            at += count;
        }
    }

    /// Stores the codes of the first `n` lanes, `size` bytes each.
    ///
    /// # Safety
    /// They must be writable.
    #[inline(always)]
    unsafe fn put(&self, s: S, y: *mut u8, v: S::V, n: usize, size: usize) {
        // `low` for NaN
        let v = s.min(s.max(s.mul(v, self.inverse), self.low), self.high);
        // SAFETY: the caller's promise.
        unsafe { s.store_levels(y, v, self.zero, n, size) }
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
            unsafe { self.put(s, y.add(at * size), load_some(s, x.add(at), count), count, size) };
            at += count;
        }
    }
}
