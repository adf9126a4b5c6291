//! The left operand of a product: rows that are looked up tap by tap.

use std::ops::Range;

/// Where the rows of the left operand lie: row `r`, tap `t` is `depth` values from `row(r).tap(t)`.
///
/// A plain matrix has one tap. A convolution has one per kernel position, and its rows come out of
/// a table.
#[derive(Clone, Copy)]
pub(crate) struct Lhs<'a, T> {
    pub(crate) x: &'a [T],
    /// Between two rows of the matrix, two pixels of the image.
    pub(crate) ld: usize,
    /// Taps.
    pub(crate) taps: usize,
    /// Values of one row at one tap.
    pub(crate) depth: usize,
    pub(crate) gather: Option<Gather<'a, T>>,
}

/// The table of a convolution.
#[derive(Clone, Copy)]
pub(crate) struct Gather<'a, T> {
    /// Input pixel of `[output pixel of one image, tap]`, or [`PADDING`].
    pub(crate) table: &'a [u32],
    /// Output pixels of one image.
    pub(crate) out_pixels: usize,
    /// Input pixels of one image.
    pub(crate) in_pixels: usize,
    /// What padding reads: `ld` or more values that count as zero.
    pub(crate) zeros: &'a [T],
    /// Taps of a kernel row if they read neighbours; 1 if not.
    pub(crate) run: usize,
}

/// Table entry of a tap that lies in the padding.
pub(crate) const PADDING: u32 = u32::MAX;

impl<T> Lhs<'_, T> {
    /// Values of one row over all taps.
    pub(crate) fn k(&self) -> usize {
        self.taps * self.depth
    }

    /// A row, ready to be asked for its taps.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> LhsRow<'_, T> {
        let Some(gather) = &self.gather else { return self.plain(row) };
        self.gathered(gather, row / gather.out_pixels, row % gather.out_pixels)
    }

    #[inline(always)]
    fn plain(&self, row: usize) -> LhsRow<'_, T> {
        LhsRow {
            begin: self.x.as_ptr().wrapping_add(row * self.ld),
            ld: 0,
            entries: &[],
            zeros: self.x.as_ptr(),
        }
    }

    #[inline(always)]
    fn gathered<'a>(&self, gather: &Gather<'a, T>, image: usize, pixel: usize) -> LhsRow<'a, T> {
        LhsRow {
            begin: self.x.as_ptr().wrapping_add(image * gather.in_pixels * self.ld),
            ld: self.ld,
            entries: &gather.table[pixel * self.taps..][..self.taps],
            zeros: gather.zeros.as_ptr(),
        }
    }

    /// Writes the begins of `taps` of the consecutive rows from `row`, tile by tile.
    ///
    /// A tile of `m` rows takes `taps · m` places, tap by tap. `tiles` gives the `m` of each.
    #[inline(always)]
    pub(crate) fn fill(
        &self,
        row: usize,
        taps: Range<usize>,
        tiles: impl Iterator<Item = usize>,
        out: &mut [*const T],
    ) {
        let Some(gather) = &self.gather else { return self.fill_plain(row, tiles, out) };
        let (mut image, mut pixel) = (row / gather.out_pixels, row % gather.out_pixels);
        let mut place = 0;
        for m in tiles {
            for i in 0..m {
                let row = self.gathered(gather, image, pixel);
                let places = out[place + i..].iter_mut().step_by(m);
                taps.clone().zip(places).for_each(|(tap, place)| *place = row.tap(tap));
                pixel += 1;
                if pixel == gather.out_pixels {
                    (image, pixel) = (image + 1, 0);
                }
            }
            place += m * taps.len();
        }
    }

    #[inline(always)]
    fn fill_plain(&self, row: usize, tiles: impl Iterator<Item = usize>, out: &mut [*const T]) {
        let begin = self.x.as_ptr().wrapping_add(row * self.ld);
        for (i, place) in out[..tiles.sum::<usize>()].iter_mut().enumerate() {
            *place = begin.wrapping_add(i * self.ld);
        }
    }
}

/// One row of a left side.
#[derive(Clone, Copy)]
pub(crate) struct LhsRow<'a, T> {
    begin: *const T,
    ld: usize,
    /// Pixel of each tap; empty where the only tap begins at `begin`.
    entries: &'a [u32],
    zeros: *const T,
}

impl<T> LhsRow<'_, T> {
    /// Where the values of a tap begin.
    #[inline(always)]
    pub(crate) fn tap(&self, tap: usize) -> *const T {
        match self.entries.get(tap) {
            None => self.begin,
            Some(&PADDING) => self.zeros,
            Some(&pixel) => self.begin.wrapping_add(pixel as usize * self.ld),
        }
    }
}

impl Lhs<'_, f32> {
    /// Copies `rows` into `out`, `[rows, k]` without gaps: for convolutions of few channels, whose
    /// taps are too short to be worth a look-up each.
    pub(crate) fn copy_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let run = self.gather.map_or(1, |gather| gather.run);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.k())) {
            let row = self.row(row);
            // SAFETY: every row has `depth` readable values at every tap (checked by the caller of
            // `run`).
            unsafe {
                match (self.depth, run) {
                    (3, 3) => row.copy_runs::<3, 9>(out),
                    (4, 3) => row.copy_runs::<4, 12>(out),
                    (1, _) => row.copy_runs::<1, 1>(out),
                    (2, _) => row.copy_runs::<2, 2>(out),
                    (3, _) => row.copy_runs::<3, 3>(out),
                    (4, _) => row.copy_runs::<4, 4>(out),
                    (depth, _) => {
                        for (tap, out) in out.chunks_exact_mut(depth).enumerate() {
                            out.as_mut_ptr().copy_from_nonoverlapping(row.tap(tap), depth);
                        }
                    }
                }
            }
        }
    }
}

impl LhsRow<'_, f32> {
    /// Copies all taps of `TAP` values, those of a kernel row, `RUN` values, at once where they lie
    /// side by side.
    ///
    /// # Safety
    /// Every tap must have `TAP` readable values, and `RUN` be that many or a kernel row.
    #[inline(always)]
    unsafe fn copy_runs<const TAP: usize, const RUN: usize>(self, out: &mut [f32]) {
        let taps = RUN / TAP;
        for (run, out) in out.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
            let first = run * taps;
            // SAFETY: the caller's promise; pixels that follow one another without a gap are one
            // piece of memory.
            unsafe {
                if taps == 1 || self.ld == TAP && self.side_by_side(first, first + taps - 1) {
                    *out = self.tap(first).cast::<[f32; RUN]>().read_unaligned();
                    continue;
                }
                for (tap, out) in (first..).zip(out.as_chunks_mut::<TAP>().0) {
                    *out = self.tap(tap).cast::<[f32; TAP]>().read_unaligned();
                }
            }
        }
    }

    /// Whether the taps from `first` to `last` read pixels that follow one another.
    #[inline(always)]
    fn side_by_side(&self, first: usize, last: usize) -> bool {
        match (self.entries.get(first), self.entries.get(last)) {
            // an image has less than 2^32 − 1 pixels: the last one is no padding either
            (Some(&begin), Some(&end)) => {
                begin != PADDING && end != PADDING && (end - begin) as usize == last - first
            }
            _ => false,
        }
    }
}
