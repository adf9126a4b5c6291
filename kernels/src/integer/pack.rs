//! Weights of integer products, laid out once in the order in which the kernel reads them.

use crate::arena::{Arena, Span, bytes_of, cast, fit};
use crate::gemm::pair_of;
use crate::{ConvShape, Isa, PAIRED_COLUMNS};
use bytes::Bytes;

/// Signed codes of a weight matrix `[k, n]`, packed for one [`Isa`], with the scales of their
/// columns.
///
/// For a convolution k runs over taps, then input channels. Channels are cut into segments; a code
/// of a segment stands for `code · scale` of its column there.
#[derive(Debug)]
pub struct PackedCodes {
    isa: Isa,
    taps: usize,
    segments: Vec<usize>,
    n: usize,
    /// Per panel of two vectors of columns, per segment, per tap: `[depth / group, 2 · lanes,
    /// group]`; columns beyond `n` are zero.
    data: Bytes,
    /// `[segments, padded columns]`
    scale: Vec<f32>,
    /// Sums of the codes, likewise.
    sums: Vec<i32>,
    /// Columns are packed in pairs.
    paired: bool,
}

impl PackedCodes {
    /// Packs row-major `codes` `[k, n]` of a linear layer; `scale` is `[n, segments]`.
    ///
    /// # Panics
    /// When a slice has another length, or [`Isa::multiplies_codes`] is false.
    pub fn from_kn(isa: Isa, segments: &[usize], n: usize, codes: &[i8], scale: &[f32]) -> PackedCodes {
        let k: usize = segments.iter().sum();
        assert_eq!(codes.len(), k * n, "codes of [{k}, {n}]");
        Self::pack(isa, 1, segments, [n, n], scale, |_, channel, first, row| {
            row.copy_from_slice(&codes[channel * n + first..][..row.len()]);
        })
    }

    /// Packs those of a linear layer whose columns are `[a, b]`, `n / 2` of each: its results will
    /// be a · gelu_erf(b).
    ///
    /// # Panics
    /// As [`PackedCodes::from_kn`]; when `n` is not a multiple of [`PAIRED_COLUMNS`].
    pub fn pairs_from_kn(isa: Isa, segments: &[usize], n: usize, codes: &[i8], scale: &[f32]) -> PackedCodes {
        let k: usize = segments.iter().sum();
        assert_eq!(codes.len(), k * n, "codes of [{k}, {n}]");
        assert!(n.is_multiple_of(PAIRED_COLUMNS), "pairs of {n} columns");
        Self::pack(isa, 1, segments, [n, n / 2], scale, |_, channel, first, row| {
            let (a, b) = row.split_at_mut(row.len() / 2);
            a.copy_from_slice(&codes[channel * n + first / 2..][..a.len()]);
            b.copy_from_slice(&codes[channel * n + n / 2 + first / 2..][..b.len()]);
        })
    }

    /// Packs the weights of a convolution without groups, `codes` `[cout, cin, kh, kw]`; `scale` is
    /// `[cout, segments]`.
    ///
    /// # Panics
    /// When a slice has another length, the segments do not add up to the channels, or
    /// [`Isa::multiplies_codes`] is false.
    pub fn from_oihw(isa: Isa, shape: &ConvShape, segments: &[usize], codes: &[i8], scale: &[f32]) -> PackedCodes {
        let taps = shape.kh * shape.kw;
        assert_eq!(
            (shape.groups, segments.iter().sum::<usize>()),
            (1, shape.cin),
            "segments of a convolution {shape:?}"
        );
        assert_eq!(codes.len(), shape.cout * shape.k(), "codes of a convolution {shape:?}");
        Self::pack(isa, taps, segments, [shape.cout; 2], scale, |tap, channel, first, row| {
            let from = &codes[(first * shape.cin + channel) * taps + tap..];
            row.iter_mut().zip(from.iter().step_by(shape.cin * taps)).for_each(|(to, from)| *to = *from);
        })
    }

    /// `columns_of(tap, channel, first, row)` writes the codes of some columns, `first` the first
    /// of them as they are packed, to `row`: of `n` columns, in pairs where `half` is less.
    fn pack(
        isa: Isa,
        taps: usize,
        segments: &[usize],
        [n, half]: [usize; 2],
        scale: &[f32],
        columns_of: impl Fn(usize, usize, usize, &mut [i8]),
    ) -> PackedCodes {
        assert!(isa.multiplies_codes(taps, segments), "no kernel for segments {segments:?} at {taps} taps");
        assert_eq!(scale.len(), n * segments.len(), "scales of {n} columns and {} segments", segments.len());
        let (width, group) = (isa.dot_instruction().columns(), isa.dot_instruction().group());
        let columns = n.next_multiple_of(width);
        let k = taps * segments.iter().sum::<usize>();
        let mut data = Arena::new(k * columns);
        let (mut sums, mut scales) = (vec![0; segments.len() * columns], vec![0.0; segments.len() * columns]);
        let all = data.get_mut::<i8>(Span::new(0, k * columns)).expect("an arena holds itself");
        let mut rows = vec![0; group * width];
        for (panel, out) in all.chunks_exact_mut(k * width).enumerate() {
            let first = panel * width;
            let columns_here = width.min(n - first);
            if columns_here < width {
                rows.fill(0);
            }
            let mut groups = out.chunks_exact_mut(width * group);
            let mut begin = 0;
            for (segment, &depth) in segments.iter().enumerate() {
                let sums = &mut sums[segment * columns + first..][..width];
                for tap in 0..taps {
                    for (channels, out) in (begin..begin + depth).step_by(group).zip(groups.by_ref()) {
                        for (place, row) in rows.chunks_exact_mut(width).enumerate() {
                            let row = &mut row[..columns_here];
                            columns_of(tap, channels + place, first, row);
                            sums.iter_mut().zip(row).for_each(|(sum, code)| *sum += i32::from(*code));
                        }
                        match group {
                            2 => interleave::<2>(&rows, out),
                            _ => interleave::<4>(&rows, out),
                        }
                    }
                }
                begin += depth;
            }
        }
        let paired = half < n;
        for col in 0..n {
            let from = if paired { pair_of(half, width, col) } else { col };
            for segment in 0..segments.len() {
                scales[segment * columns + col] = scale[from * segments.len() + segment];
            }
        }
        let data = Bytes::from_owner(data);
        PackedCodes { isa, taps, segments: segments.to_vec(), n, data, scale: scales, sums, paired }
    }

    /// The bytes that it consists of, to be kept in a file: codes, scales, sums.
    pub fn parts(&self) -> [&[u8]; 3] {
        [&self.data, bytes_of(&self.scale), bytes_of(&self.sums)]
    }

    /// The inverse of [`PackedCodes::parts`] for weights that were packed for this very use; `None`
    /// where a part has another length, or does not begin at a multiple of
    /// [`ALIGN`](crate::arena::ALIGN).
    pub fn from_parts(
        isa: Isa,
        taps: usize,
        segments: &[usize],
        n: usize,
        paired: bool,
        parts: [Bytes; 3],
    ) -> Option<PackedCodes> {
        let columns = n.next_multiple_of(isa.dot_instruction().columns());
        let (k, entries) = (taps * segments.iter().sum::<usize>(), 4 * segments.len() * columns);
        let [data, scale, sums] = fit(parts, [k * columns, entries, entries])?;
        let suits = isa.multiplies_codes(taps, segments) && (!paired || n.is_multiple_of(PAIRED_COLUMNS));
        let (scale, sums) = (cast(&scale).to_vec(), cast(&sums).to_vec());
        suits.then(|| PackedCodes { isa, taps, segments: segments.to_vec(), n, data, scale, sums, paired })
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len() + 4 * (self.scale.len() + self.sums.len())
    }

    /// Whether its columns are pairs: products with it give a · gelu_erf(b).
    pub fn is_paired(&self) -> bool {
        self.paired
    }

    /// The segments of the input channels.
    pub fn segments(&self) -> &[usize] {
        &self.segments
    }

    /// All codes.
    pub(super) fn codes(&self) -> &[i8] {
        cast(&self.data)
    }

    pub(super) fn scale(&self) -> &[f32] {
        &self.scale
    }

    pub(super) fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Columns, padding included.
    pub(super) fn columns(&self) -> usize {
        self.n.next_multiple_of(self.isa.dot_instruction().columns())
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

/// How wide a panel of codes is, and how many codes of a column lie side by side.
pub(crate) fn columns_and_group(isa: Isa) -> (usize, usize) {
    (isa.dot_instruction().columns(), isa.dot_instruction().group())
}

/// Rows side by side: `[N, width]` to `[width, N]`.
fn interleave<const N: usize>(rows: &[i8], out: &mut [i8]) {
    let width = rows.len() / N;
    let rows: [&[i8]; N] = std::array::from_fn(|i| &rows[i * width..][..width]);
    let (out, _) = out.as_chunks_mut::<N>();
    for (col, out) in out.iter_mut().enumerate().take(width) {
        *out = rows.map(|row| row[col]);
    }
}
