//! Weights of integer products, laid out once in the order in which the kernel reads them.

use super::dot::Level;
use crate::arena::{Arena, Span};
use crate::{ConvShape, Isa};

/// Signed codes of a weight matrix `[k, n]`, packed for one [`Isa`], with the scales of their columns.
///
/// For a convolution k runs over taps, then input channels. Channels are cut into segments; a code of a segment stands for `code · scale` of
/// its column there.
#[derive(Debug)]
pub struct PackedCodes {
    isa: Isa,
    taps: usize,
    segments: Vec<usize>,
    n: usize,
    /// Per panel of two vectors of columns, per segment, per tap: `[depth / group, 2 · lanes, group]`; columns beyond `n` are zero.
    data: Arena,
    /// `[segments, padded columns]`
    scale: Vec<f32>,
    /// Sums of the codes, likewise.
    sums: Vec<i32>,
}

impl PackedCodes {
    /// Packs row-major `codes` `[k, n]` of a linear layer; `scale` is `[n, segments]`.
    ///
    /// # Panics
    /// When a slice has another length, or [`Isa::multiplies_codes`] is false.
    pub fn from_kn(isa: Isa, segments: &[usize], n: usize, codes: &[i8], scale: &[f32]) -> PackedCodes {
        let k: usize = segments.iter().sum();
        assert_eq!(codes.len(), k * n, "codes of [{k}, {n}]");
        Self::pack(isa, 1, segments, n, scale, &|_, channel, col| codes[channel * n + col])
    }

    /// Packs the weights of a convolution without groups, `codes` `[cout, cin, kh, kw]`; `scale` is `[cout, segments]`.
    ///
    /// # Panics
    /// When a slice has another length, the segments do not add up to the channels, or [`Isa::multiplies_codes`] is false.
    pub fn from_oihw(isa: Isa, shape: &ConvShape, segments: &[usize], codes: &[i8], scale: &[f32]) -> PackedCodes {
        let taps = shape.kh * shape.kw;
        assert_eq!(
            (shape.groups, segments.iter().sum::<usize>()),
            (1, shape.cin),
            "segments of a convolution {shape:?}"
        );
        assert_eq!(codes.len(), shape.cout * shape.k(), "codes of a convolution {shape:?}");
        let at = |tap: usize, channel: usize, col: usize| codes[(col * shape.cin + channel) * taps + tap];
        Self::pack(isa, taps, segments, shape.cout, scale, &at)
    }

    fn pack(
        isa: Isa,
        taps: usize,
        segments: &[usize],
        n: usize,
        scale: &[f32],
        at: &dyn Fn(usize, usize, usize) -> i8,
    ) -> PackedCodes {
        assert!(isa.multiplies_codes(taps, segments), "no kernel for segments {segments:?} at {taps} taps");
        assert_eq!(scale.len(), n * segments.len(), "scales of {n} columns and {} segments", segments.len());
        let (width, group) = (isa.dot_level().panel_width(), group(isa));
        let columns = n.next_multiple_of(width);
        let k = taps * segments.iter().sum::<usize>();
        let mut data = Arena::new(k * columns);
        let (mut sums, mut scales) = (vec![0; segments.len() * columns], vec![0.0; segments.len() * columns]);
        let all = data.get_mut::<i8>(Span::new(0, k * columns)).expect("an arena holds itself");
        let mut places = all.iter_mut();
        for first in (0..columns).step_by(width) {
            let mut begin = 0;
            for (segment, &depth) in segments.iter().enumerate() {
                for tap in 0..taps {
                    for channel in (begin..begin + depth).step_by(group) {
                        for col in first..first + width {
                            for place in places.by_ref().take(group).enumerate() {
                                let code = if col < n { at(tap, channel + place.0, col) } else { 0 };
                                *place.1 = code;
                                sums[segment * columns + col] += i32::from(code);
                            }
                        }
                    }
                }
                begin += depth;
            }
        }
        for col in 0..n {
            for segment in 0..segments.len() {
                scales[segment * columns + col] = scale[col * segments.len() + segment];
            }
        }
        PackedCodes { isa, taps, segments: segments.to_vec(), n, data, scale: scales, sums }
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len() + 4 * (self.scale.len() + self.sums.len())
    }

    /// The segments of the input channels.
    pub fn segments(&self) -> &[usize] {
        &self.segments
    }

    /// All codes.
    pub(super) fn codes(&self) -> &[i8] {
        self.data.get(Span::new(0, self.data.len())).expect("an arena holds itself")
    }

    pub(super) fn scale(&self) -> &[f32] {
        &self.scale
    }

    pub(super) fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Columns, padding included.
    pub(super) fn columns(&self) -> usize {
        self.n.next_multiple_of(self.isa.dot_level().panel_width())
    }

    /// Panics unless packed for this very product.
    pub(crate) fn check(&self, isa: Isa, taps: usize, depth: usize, n: usize) {
        let have = (self.isa, self.taps, self.segments.iter().sum::<usize>(), self.n);
        assert!(
            have == (isa, taps, depth, n),
            "packed for (isa, taps, channels, n) = {have:?}, used for {:?}",
            (isa, taps, depth, n)
        );
    }
}

/// Codes of a column that lie side by side.
fn group(isa: Isa) -> usize {
    if isa.dot_level() == Level::Avx2 { 2 } else { 4 }
}
