//! Weights of products of bf16, laid out once in the order in which the kernel reads them.

use super::dot::GROUP;
use crate::arena::{Arena, Span, bytes_of, cast, fit};
use crate::gemm::pair_of;
use crate::{ConvShape, Epilogue, Isa, PAIRED_COLUMNS};
use bytes::Bytes;

/// A weight matrix `[k, n]` of bf16, packed for one [`Isa`].
///
/// For a convolution k runs over taps, then input channels.
#[derive(Debug)]
pub struct PackedBf16 {
    isa: Isa,
    taps: usize,
    depth: usize,
    n: usize,
    /// Per panel of two vectors of columns, per tap: `[⌈depth / 2⌉, 2 · lanes, 2]`; what is beyond
    /// `depth` and `n` is zero.
    data: Bytes,
    /// What the sums of every column are multiplied by; empty: nothing.
    scale: Vec<f32>,
    /// Columns are packed in pairs.
    paired: bool,
}

impl PackedBf16 {
    /// Packs the bits of row-major `w` `[k, n]`.
    ///
    /// # Panics
    /// When `w` has not `k · n` values.
    pub fn from_kn(isa: Isa, k: usize, n: usize, w: &[u16]) -> PackedBf16 {
        assert_eq!(w.len(), k * n, "weights of [{k}, {n}]");
        Self::pack(isa, 1, k, n, &|_, channel, col| w[channel * n + col])
    }

    /// Packs those of a linear layer whose columns are `[a, b]`, `n / 2` of each: its results will
    /// be a · gelu_erf(b).
    ///
    /// # Panics
    /// When `w` has not `k · n` values, or `n` is not a multiple of [`PAIRED_COLUMNS`].
    pub fn pairs_from_kn(isa: Isa, k: usize, n: usize, w: &[u16]) -> PackedBf16 {
        assert_eq!(w.len(), k * n, "weights of [{k}, {n}]");
        assert!(n.is_multiple_of(PAIRED_COLUMNS), "pairs of {n} columns");
        let width = isa.bf16_instruction().panel_width();
        let packed = Self::pack(isa, 1, k, n, &|_, channel, col| w[channel * n + pair_of(n / 2, width, col)]);
        PackedBf16 { paired: true, ..packed }
    }

    /// Packs the bits of the weights of a convolution without groups, `w` `[cout, cin, kh, kw]`.
    ///
    /// # Panics
    /// When the shape has groups, or `w` another number of values.
    pub fn from_oihw(isa: Isa, shape: &ConvShape, w: &[u16]) -> PackedBf16 {
        assert_eq!(shape.groups, 1, "groups of a convolution {shape:?}");
        assert_eq!(w.len(), shape.cout * shape.k(), "weights of a convolution {shape:?}");
        let taps = shape.kh * shape.kw;
        Self::pack(isa, taps, shape.cin, shape.cout, &|tap, channel, col| w[(col * shape.cin + channel) * taps + tap])
    }

    fn pack(isa: Isa, taps: usize, depth: usize, n: usize, at: &impl Fn(usize, usize, usize) -> u16) -> PackedBf16 {
        let (width, bytes) = (isa.bf16_instruction().panel_width(), bytes(isa, taps, depth, n));
        let mut data = Arena::new(bytes);
        let all: &mut [u16] = data.get_mut(Span::new(0, bytes)).expect("an arena holds itself");
        let mut groups = all.chunks_exact_mut(GROUP);
        for first in (0..n).step_by(width) {
            for (tap, begin) in (0..taps).flat_map(|tap| (0..depth).step_by(GROUP).map(move |begin| (tap, begin))) {
                for (col, group) in (first..first + width).zip(groups.by_ref()) {
                    for (channel, value) in (begin..depth).zip(group).filter(|_| col < n) {
                        *value = at(tap, channel, col);
                    }
                }
            }
        }
        PackedBf16 { isa, taps, depth, n, data: Bytes::from_owner(data), scale: vec![], paired: false }
    }

    /// The bytes that it consists of, to be kept in a file: values, factors of columns.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.data, bytes_of(&self.scale)]
    }

    /// The inverse of [`PackedBf16::parts`] for weights that were packed for this very use; `None`
    /// where a part has another length, or does not begin at a multiple of
    /// [`ALIGN`](crate::arena::ALIGN).
    pub fn from_parts(
        isa: Isa,
        taps: usize,
        depth: usize,
        n: usize,
        paired: bool,
        parts: [Bytes; 2],
    ) -> Option<PackedBf16> {
        let factors = if parts[1].is_empty() { 0 } else { 4 * n };
        let [data, scale] = fit(parts, [bytes(isa, taps, depth, n), factors])?;
        let suits = !paired || n.is_multiple_of(PAIRED_COLUMNS);
        suits.then(|| PackedBf16 { isa, taps, depth, n, data, scale: cast(&scale).to_vec(), paired })
    }

    /// These weights, times one factor per column: products of bf16 whose sums are scaled.
    ///
    /// # Panics
    /// When there is not one per column.
    pub fn scaled(mut self, scale: &[f32]) -> PackedBf16 {
        assert_eq!(scale.len(), self.n, "factors of {} columns", self.n);
        self.scale = scale.to_vec();
        self
    }

    /// The epilogue with these factors in it.
    ///
    /// Panics when both have some.
    pub(crate) fn epilogue<'a>(&'a self, epilogue: &Epilogue<'a>) -> Epilogue<'a> {
        if self.scale.is_empty() {
            return *epilogue;
        }
        assert!(epilogue.scale.is_none(), "sums are scaled twice");
        Epilogue { scale: Some(&self.scale), ..*epilogue }
    }

    /// Whether its columns are pairs: products with it give a · gelu_erf(b).
    pub fn is_paired(&self) -> bool {
        self.paired
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// All packed values.
    pub(super) fn values(&self) -> &[u16] {
        cast(&self.data)
    }

    /// Panics unless packed for this very product.
    pub(crate) fn check(&self, isa: Isa, taps: usize, depth: usize, n: usize) {
        let (have, want) = ((self.isa, self.taps, self.depth, self.n), (isa, taps, depth, n));
        assert!(have == want, "packed for (isa, taps, channels, n) = {have:?}, used for {want:?}");
    }
}

/// How wide a panel is.
pub(crate) fn columns(isa: Isa) -> usize {
    isa.bf16_instruction().panel_width()
}

/// Bytes of packed values.
fn bytes(isa: Isa, taps: usize, depth: usize, n: usize) -> usize {
    taps * depth.next_multiple_of(GROUP) * n.next_multiple_of(columns(isa)) * size_of::<u16>()
}
