//! Weights, laid out once in the order in which the kernels read them.

use crate::arena::{Arena, Span, cast, fit};
use crate::gemm::pair_of;
use crate::{ConvShape, Isa, PAIRED_COLUMNS};
use bytes::Bytes;

/// A weight matrix `[k, n]` (or one per group), packed for one [`Isa`].
///
/// For a convolution k runs over taps, then input channels of the group: `(ky, kx, ci)`.
#[derive(Debug)]
pub struct PackedMatrix {
    isa: Isa,
    layout: PackedLayout,
    groups: usize,
    k: usize,
    n: usize,
    data: Bytes,
    /// Columns are packed in pairs.
    paired: bool,
}

/// How the values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackedLayout {
    /// Per group, per panel of two vectors of columns: `[k, 2 · lanes]`, columns beyond `n` zero.
    Panels,
    /// For up to [`DOT_COLUMNS`] columns: `[taps, n, channels]`, channels rounded up to whole
    /// vectors with zeros.
    Dot {
        /// Channels of a tap, without the rounding.
        channels: usize,
    },
    /// One channel per group: `[k, groups]`, groups rounded up to whole vectors with zeros.
    Depthwise,
}

impl PackedLayout {
    /// That of `groups` matrices `[k, n]`, k running over taps.
    fn of(isa: Isa, groups: usize, taps: usize, k: usize, n: usize) -> PackedLayout {
        let channels = k / taps.max(1);
        match groups {
            1 if n <= DOT_COLUMNS && channels >= isa.lanes() => PackedLayout::Dot { channels },
            2.. if channels == 1 && n == 1 => PackedLayout::Depthwise,
            _ => PackedLayout::Panels,
        }
    }

    /// Values, padding included.
    fn len(self, isa: Isa, groups: usize, k: usize, n: usize) -> usize {
        match self {
            PackedLayout::Panels => groups * panels_len(isa, k, n),
            PackedLayout::Dot { channels } => k / channels * n * channels.next_multiple_of(isa.lanes()),
            PackedLayout::Depthwise => k * groups.next_multiple_of(isa.lanes()),
        }
    }
}

/// Matrices with up to this many columns are multiplied by dot products: a panel would be mostly
/// padding.
pub(crate) const DOT_COLUMNS: usize = 4;

impl PackedMatrix {
    /// Packs row-major `w` `[k, n]`.
    ///
    /// # Panics
    /// When `w` has not `k · n` values.
    pub fn from_kn(isa: Isa, k: usize, n: usize, w: &[f32]) -> PackedMatrix {
        assert_eq!(w.len(), k * n, "weights of [{k}, {n}]");
        Self::dense(isa, 1, k, n, &|p, col| w[p * n + col])
    }

    /// Packs row-major `w` `[k, n]` whose columns are `[a, b]`, `n / 2` of each: a product's
    /// results will be a · gelu_erf(b).
    ///
    /// # Panics
    /// When `w` has not `k · n` values, or `n` is not a multiple of [`PAIRED_COLUMNS`].
    pub fn pairs_from_kn(isa: Isa, k: usize, n: usize, w: &[f32]) -> PackedMatrix {
        assert_eq!(w.len(), k * n, "weights of [{k}, {n}]");
        assert!(n.is_multiple_of(PAIRED_COLUMNS), "pairs of {n} columns");
        let packed = Self::panels(isa, 1, k, n, &|_, p, col| w[p * n + pair_of(n / 2, panel_width(isa), col)]);
        PackedMatrix { paired: true, ..packed }
    }

    /// Packs row-major `w` `[n, k]`, as PyTorch keeps linear layers.
    ///
    /// # Panics
    /// When `w` has not `k · n` values.
    pub fn from_nk(isa: Isa, k: usize, n: usize, w: &[f32]) -> PackedMatrix {
        assert_eq!(w.len(), k * n, "weights of [{n}, {k}]");
        Self::dense(isa, 1, k, n, &|p, col| w[col * k + p])
    }

    /// Packs the weights of a convolution, `w` `[cout, cin / groups, kh, kw]`.
    ///
    /// # Panics
    /// When `w` has another number of values.
    pub fn from_oihw(isa: Isa, shape: &ConvShape, w: &[f32]) -> PackedMatrix {
        let (channels, taps) = (shape.cin / shape.groups, shape.kh * shape.kw);
        let (k, n) = (taps * channels, shape.cout / shape.groups);
        assert_eq!(w.len(), shape.cout * k, "weights of a convolution {shape:?}");
        let at = |group: usize, p: usize, col: usize| {
            let (tap, ci) = (p / channels, p % channels);
            w[((group * n + col) * channels + ci) * taps + tap]
        };
        match PackedLayout::of(isa, shape.groups, taps, k, n) {
            PackedLayout::Dot { channels } => Self::dot(isa, channels, k, n, &|p, col| at(0, p, col)),
            PackedLayout::Depthwise => Self::depthwise(isa, shape.groups, k, &|group, p| at(group, p, 0)),
            PackedLayout::Panels => Self::panels(isa, shape.groups, k, n, &at),
        }
    }

    /// All packed values as bytes, to be kept in a file and given to
    /// [`PackedMatrix::kn_from_part`] or [`PackedMatrix::oihw_from_part`].
    pub fn part(&self) -> &[u8] {
        &self.data
    }

    /// The inverse of [`PackedMatrix::part`] for a matrix `[k, n]`, maybe with columns in pairs,
    /// that was packed for this very use; `None` where the part has another length, or does not
    /// begin at a multiple of [`ALIGN`](crate::arena::ALIGN).
    pub fn kn_from_part(isa: Isa, k: usize, n: usize, paired: bool, part: Bytes) -> Option<PackedMatrix> {
        let layout = if paired { PackedLayout::Panels } else { PackedLayout::of(isa, 1, 1, k, n) };
        let made = Self::from_part(isa, layout, 1, k, n, part)?;
        (!paired || n.is_multiple_of(PAIRED_COLUMNS)).then_some(PackedMatrix { paired, ..made })
    }

    /// [`PackedMatrix::kn_from_part`] for the weights of a convolution.
    pub fn oihw_from_part(isa: Isa, shape: &ConvShape, part: Bytes) -> Option<PackedMatrix> {
        let taps = shape.kh * shape.kw;
        let (k, n) = (taps * (shape.cin / shape.groups), shape.cout / shape.groups);
        Self::from_part(isa, PackedLayout::of(isa, shape.groups, taps, k, n), shape.groups, k, n, part)
    }

    fn from_part(
        isa: Isa,
        layout: PackedLayout,
        groups: usize,
        k: usize,
        n: usize,
        part: Bytes,
    ) -> Option<PackedMatrix> {
        let [data] = fit([part], [size_of::<f32>() * layout.len(isa, groups, k, n)])?;
        Some(PackedMatrix { isa, layout, groups, k, n, data, paired: false })
    }

    fn dense(isa: Isa, taps: usize, k: usize, n: usize, at: &impl Fn(usize, usize) -> f32) -> PackedMatrix {
        match PackedLayout::of(isa, 1, taps, k, n) {
            PackedLayout::Dot { channels } => Self::dot(isa, channels, k, n, at),
            _ => Self::panels(isa, 1, k, n, &|_, p, col| at(p, col)),
        }
    }

    fn panels(isa: Isa, groups: usize, k: usize, n: usize, at: &impl Fn(usize, usize, usize) -> f32) -> PackedMatrix {
        let width = panel_width(isa);
        let panels = n.div_ceil(width);
        let mut data = zeros(PackedLayout::Panels.len(isa, groups, k, n));
        let values = all_mut(&mut data);
        for (index, panel) in values.chunks_exact_mut((k * width).max(1)).enumerate() {
            let (group, first) = (index / panels, index % panels * width);
            for (p, row) in panel.chunks_exact_mut(width).enumerate() {
                for (col, value) in (first..n).zip(row) {
                    *value = at(group, p, col);
                }
            }
        }
        PackedMatrix { isa, layout: PackedLayout::Panels, groups, k, n, data: Bytes::from_owner(data), paired: false }
    }

    fn dot(isa: Isa, channels: usize, k: usize, n: usize, at: &impl Fn(usize, usize) -> f32) -> PackedMatrix {
        let width = channels.next_multiple_of(isa.lanes());
        let layout = PackedLayout::Dot { channels };
        let mut data = zeros(layout.len(isa, 1, k, n));
        for (index, row) in all_mut(&mut data).chunks_exact_mut(width).enumerate() {
            let (tap, col) = (index / n, index % n);
            for (ci, value) in row[..channels].iter_mut().enumerate() {
                *value = at(tap * channels + ci, col);
            }
        }
        PackedMatrix { isa, layout, groups: 1, k, n, data: Bytes::from_owner(data), paired: false }
    }

    fn depthwise(isa: Isa, groups: usize, k: usize, at: &impl Fn(usize, usize) -> f32) -> PackedMatrix {
        let width = groups.next_multiple_of(isa.lanes());
        let mut data = zeros(PackedLayout::Depthwise.len(isa, groups, k, 1));
        for (p, row) in all_mut(&mut data).chunks_exact_mut(width).enumerate() {
            for (group, value) in row[..groups].iter_mut().enumerate() {
                *value = at(group, p);
            }
        }
        let data = Bytes::from_owner(data);
        PackedMatrix { isa, layout: PackedLayout::Depthwise, groups, k, n: 1, data, paired: false }
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows: input channels of a group times taps.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of one group.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Whether its columns are pairs: products with it give a · gelu_erf(b).
    pub fn is_paired(&self) -> bool {
        self.paired
    }

    pub(crate) fn layout(&self) -> PackedLayout {
        self.layout
    }

    /// All packed values.
    pub(crate) fn values(&self) -> &[f32] {
        cast(&self.data)
    }

    /// Panics unless packed for this very product.
    pub(crate) fn check(&self, isa: Isa, groups: usize, k: usize, n: usize) {
        let (have, want) = ((self.isa, self.groups, self.k, self.n), (isa, groups, k, n));
        assert!(have == want, "packed for (isa, groups, k, n) = {have:?}, used for {want:?}");
    }
}

/// A text that identifies the layout of packed weights for `isa` on this CPU, for the names of
/// cache files: where it is equal, packed bytes mean the same. It includes a hash of the source
/// code that packs, so that a changed layout cannot read old files.
pub fn packing(isa: Isa) -> String {
    let sources = [include_str!("pack.rs"), include_str!("integer/pack.rs"), include_str!("bf16/pack.rs")];
    let sources = sources.into_iter().chain([include_str!("gemm/write_back.rs")]);
    let mut hash = blake3::Hasher::new();
    for text in sources {
        hash.update(text.as_bytes());
    }
    let (codes, bf16) = (crate::integer::columns_and_group(isa), crate::bf16::columns(isa));
    format!("{isa}, codes {codes:?}, bf16 {bf16}, {}", hash.finalize().to_hex())
}

/// Columns of a panel: two vectors.
pub(crate) fn panel_width(isa: Isa) -> usize {
    2 * isa.lanes()
}

/// Values that [`pack_panels`] writes.
pub(crate) fn panels_len(isa: Isa, k: usize, n: usize) -> usize {
    k * n.next_multiple_of(panel_width(isa))
}

/// Packs `[k, n]` (rows `ld` apart), or `[n, k]` where `transposed`, into panels `[k, width]`,
/// columns beyond `n` zero.
///
/// # Panics
/// When `b` is too short or `out` has not [`panels_len`] values.
pub(crate) fn pack_panels(isa: Isa, k: usize, n: usize, b: &[f32], ld: usize, transposed: bool, out: &mut [f32]) {
    let width = panel_width(isa);
    assert_eq!(out.len(), panels_len(isa, k, n));
    for (panel, out) in out.chunks_exact_mut((k * width).max(1)).enumerate() {
        let first = panel * width;
        let cols = (n - first).min(width);
        if transposed {
            pack_transposed(k, cols, &b[first * ld..], ld, out, width);
            continue;
        }
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            out[..cols].copy_from_slice(&b[p * ld + first..][..cols]);
            out[cols..].fill(0.0);
        }
    }
}

/// One panel out of `cols` rows of `k` values, `ld` apart. Four columns at a time, to read and
/// write in short runs.
fn pack_transposed(k: usize, cols: usize, b: &[f32], ld: usize, out: &mut [f32], width: usize) {
    let row = |col: usize| &b[col * ld..][..k];
    let whole = cols - cols % 4;
    for col in (0..whole).step_by(4) {
        let rows = [row(col), row(col + 1), row(col + 2), row(col + 3)];
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            out[col..col + 4].copy_from_slice(&rows.map(|row| row[p]));
        }
    }
    for (p, out) in out.chunks_exact_mut(width).enumerate() {
        (whole..cols).for_each(|col| out[col] = b[col * ld + p]);
        out[cols..].fill(0.0);
    }
}

fn zeros(values: usize) -> Arena {
    Arena::new(values * size_of::<f32>())
}

fn all_mut(data: &mut Arena) -> &mut [f32] {
    let span = Span::new(0, data.len());
    data.get_mut(span).expect("an arena holds itself")
}
