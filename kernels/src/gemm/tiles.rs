//! The loops around AMX: like [`drive`](super::drive), but tiles of 32 rows by 32 columns whose
//! sums stay in registers for most of the depth.
//!
//! Tiles want rows that lie evenly and a depth without gaps. Where the left side has neither (a
//! convolution, a depth that ends within 64 bytes), the rows of a block are copied together once,
//! in the order in which tiles are loaded. The right side is packed as for AVX-512: groups of four
//! bytes per column are what the rows of a tile want.

use super::drive::{BLOCK_ROWS, Block, MicroKernel};
use super::lhs::LhsRow;
use super::plain::Plain;
use crate::amx::{Amx, BYTES, COLS, Configured, Left, Multiply, Piece, ROW_BYTES, ROWS};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Pieces of 64 bytes of the depth whose right side stays in the first-level cache while all rows
/// of the block pass by.
const STEP: usize = 12;
/// Bytes of a group of the depth.
const GROUP_BYTES: usize = 4;

/// What a row of the left side is made of.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    /// Taps of a row.
    taps: usize,
    /// Values of a tap, per segment.
    segments: &'a [usize],
    /// Bytes of a value.
    size: usize,
}

impl<'a> Tiles<'a> {
    pub(crate) fn new(taps: usize, segments: &'a [usize], size: usize) -> Tiles<'a> {
        Tiles { taps, segments, size }
    }

    fn of<M: MicroKernel>(block: &Block<'a, M>) -> Tiles<'a> {
        Tiles::new(block.lhs.taps, block.segments, size_of::<M::Left>())
    }

    /// Whether `rows` rows can be loaded from where they are; `gathered`: they are looked up.
    pub(crate) fn suit(self, rows: usize, gathered: bool) -> bool {
        let whole = |depth: &usize| (depth * self.size).is_multiple_of(ROW_BYTES);
        !gathered && rows.is_multiple_of(ROWS) && self.segments.iter().all(whole)
    }

    /// Bytes that the copy of 16 rows takes.
    pub(crate) fn bytes(self) -> usize {
        self.segments.iter().map(|&depth| self.pieces(depth) * BYTES).sum()
    }

    /// Bytes of one tap of a row.
    fn tap_bytes(self, depth: usize) -> usize {
        (depth * self.size).next_multiple_of(GROUP_BYTES)
    }

    /// Whole and begun pieces of 64 bytes of a row.
    fn pieces(self, depth: usize) -> usize {
        (self.taps * self.tap_bytes(depth)).div_ceil(ROW_BYTES)
    }
}

/// Copies the left rows of a block: `[rows / 16, segment, pieces, 16, 64 bytes]`, zeros where a
/// segment ends. Rows beyond the last are left as they are.
///
/// # Safety
/// As for [`drive_tiles`].
#[inline(always)]
pub(crate) unsafe fn copy_rows<M: MicroKernel>(amx: Amx, block: &Block<M>, to: &mut [u8]) {
    let tiles = Tiles::of(block);
    let bytes = tiles.bytes();
    assert!(to.len() >= block.rows.len().div_ceil(ROWS) * bytes);
    for (i, row) in block.rows.clone().enumerate() {
        let row = block.lhs.row(row - block.lhs_row);
        let mut to = to.as_mut_ptr().wrapping_add(i / ROWS * bytes + i % ROWS * ROW_BYTES);
        let mut begin = 0;
        for &depth in block.segments {
            // SAFETY: the caller's promise; the assertion above.
            unsafe {
                if (depth * tiles.size).is_multiple_of(ROW_BYTES) {
                    copy_pieces(amx, tiles, &row, begin..begin + depth, to);
                } else {
                    copy_bytes(amx, tiles, &row, begin..begin + depth, to);
                }
            }
            begin += depth;
            to = to.wrapping_add(tiles.pieces(depth) * BYTES);
        }
    }
}

/// Copies some channels of a row, at every tap whole pieces of 64 bytes.
///
/// # Safety
/// The row must have them, and `to` room for `[taps, pieces]` tiles of which this row is one.
#[inline(always)]
unsafe fn copy_pieces<T>(
    amx: Amx,
    tiles: Tiles,
    row: &LhsRow<T>,
    channels: Range<usize>,
    mut to: *mut u8,
) {
    let pieces = channels.len() * tiles.size / ROW_BYTES;
    for tap in 0..tiles.taps {
        let mut from: *const u8 = row.tap(tap).wrapping_add(channels.start).cast();
        for _ in 0..pieces {
            // SAFETY: the caller's promise.
            unsafe { amx.copy_piece(from, to) };
            (from, to) = (from.wrapping_add(ROW_BYTES), to.wrapping_add(BYTES));
        }
    }
}

/// Copies some channels of a row, zeros after the last.
///
/// # Safety
/// As for [`copy_pieces`].
#[inline(always)]
unsafe fn copy_bytes<T>(
    amx: Amx,
    tiles: Tiles,
    row: &LhsRow<T>,
    channels: Range<usize>,
    to: *mut u8,
) {
    let (tap_bytes, bytes) = (tiles.tap_bytes(channels.len()), channels.len() * tiles.size);
    let place = |at: usize| to.wrapping_add(at / ROW_BYTES * BYTES + at % ROW_BYTES);
    for tap in 0..tiles.taps {
        let from: *const u8 = row.tap(tap).wrapping_add(channels.start).cast();
        let (mut done, mut at) = (0, tap * tap_bytes);
        while done < bytes {
            let n = (bytes - done).min(ROW_BYTES - at % ROW_BYTES);
            // SAFETY: the caller's promise.
            unsafe { amx.copy(from.add(done), place(at), n) };
            (done, at) = (done + n, at + n);
        }
        // what rounds a tap up to a group is multiplied by zeros, but must be a number
        // SAFETY: within the last group, so within its piece.
        unsafe { amx.clear(place(at), tap_bytes - bytes) };
    }
    let at = tiles.taps * tap_bytes;
    // SAFETY: the rest of the last piece.
    unsafe { amx.clear(place(at), at.next_multiple_of(ROW_BYTES) - at) };
}

/// Runs a block whose left rows [`copy_rows`] has copied; none are where [`Tiles::suit`] says so.
///
/// # Safety
/// As for [`drive`](super::drive()); the panels are those of AVX-512.
#[inline(always)]
pub(crate) unsafe fn drive_tiles<M: MicroKernel>(
    amx: Amx,
    how: Multiply,
    micro: M,
    block: &Block<M>,
    copied: &[u8],
) {
    const {
        assert!(
            M::COLS == COLS
                && size_of::<M::Left>() == size_of::<M::Right>()
                && size_of::<M::Acc>() == 4
        );
        assert!(M::GROUP * size_of::<M::Right>() == GROUP_BYTES && ROWS == super::COPIED_ROWS);
    };
    let (tiles, rows) = (Tiles::of(block), block.rows.len());
    let fits = if copied.is_empty() {
        tiles.suit(rows, block.lhs.gather.is_some())
    } else {
        copied.len() >= rows.div_ceil(ROWS) * tiles.bytes()
    };
    assert!(rows <= BLOCK_ROWS && fits, "left rows that tiles can load");
    let copied = if copied.is_empty() { None } else { Some(copied.as_ptr()) };
    // SAFETY: the caller's promise; the copies are complete.
    unsafe { panels(&amx.configure(), how, micro, block, copied) };
}

/// Where the left rows of a segment are.
struct Source {
    begin: *const u8,
    /// Bytes between two rows of a tile.
    stride: usize,
    /// Bytes between two pieces of a row.
    step: usize,
    /// Bytes between two tiles of rows.
    tile: usize,
}

#[repr(align(64))]
struct Aligned<T>(T);

/// All panels of a block.
///
/// # Safety
/// As for [`drive_tiles`].
#[inline(always)]
unsafe fn panels<M: MicroKernel>(
    tile: &Configured,
    how: Multiply,
    micro: M,
    block: &Block<M>,
    copied: Option<*const u8>,
) {
    let tiles = Tiles::of(block);
    let mut memory = MaybeUninit::<[Aligned<[u32; BLOCK_ROWS * COLS]>; 2]>::uninit();
    let memory: *mut Aligned<[u32; BLOCK_ROWS * COLS]> = memory.as_mut_ptr().cast();
    let acc: *mut M::Acc = memory.cast();
    let sums: *mut f32 =
        if block.segments.len() > 1 { memory.wrapping_add(1).cast() } else { memory.cast() };
    let rows = block.rows.len();
    let row_bytes: usize =
        block.segments.iter().map(|&depth| tiles.taps * tiles.tap_bytes(depth)).sum();
    for panel in block.panels.clone() {
        let cols = (block.n - panel * COLS).min(COLS);
        let mut right: *const u8 = block.right.cast::<u8>().wrapping_add(panel * row_bytes * COLS);
        let (mut begin, mut copied) = (0, copied);
        for (segment, &depth) in block.segments.iter().enumerate() {
            let source = match copied {
                Some(begin) => {
                    Source { begin, stride: ROW_BYTES, step: BYTES, tile: tiles.bytes() }
                }
                None => {
                    let stride = block.lhs.ld * tiles.size;
                    let first = (block.rows.start - block.lhs_row) * block.lhs.ld + begin;
                    let begin = block.lhs.x.as_ptr().wrapping_add(first).cast();
                    Source { begin, stride, step: ROW_BYTES, tile: ROWS * stride }
                }
            };
            let bytes = tiles.taps * tiles.tap_bytes(depth);
            // SAFETY: the caller's promise.
            unsafe {
                segment_sums(
                    tile,
                    how,
                    rows.next_multiple_of(ROWS),
                    bytes,
                    &source,
                    right,
                    acc.cast(),
                );
                micro.fold(block.write_back, segment, rows, panel * COLS, acc, sums);
            }
            right = right.wrapping_add(bytes * COLS);
            copied = copied.map(|copied| copied.wrapping_add(tiles.pieces(depth) * BYTES));
            begin += depth;
        }
        // SAFETY: every segment was added to the sums.
        unsafe {
            micro.write_back(
                block.write_back,
                block.rows.start,
                rows,
                block.col + panel * COLS,
                cols,
                sums,
            )
        };
    }
}

/// acc = left · right of one segment: `rows` rows of `bytes` bytes.
///
/// # Safety
/// As for [`panels`]; `acc` is `[rows, 32]`.
#[inline(always)]
unsafe fn segment_sums(
    tile: &Configured,
    how: Multiply,
    rows: usize,
    bytes: usize,
    source: &Source,
    right: *const u8,
    acc: *mut u8,
) {
    let (whole, rest) = (bytes / ROW_BYTES, bytes % ROW_BYTES);
    // the right side of the last piece, zeros where it ends: what follows it in memory belongs to
    // others
    let mut last = Aligned([0u8; ROW_BYTES * COLS]);
    if rest > 0 {
        // SAFETY: the panel has `bytes` per column.
        unsafe {
            last.0
                .as_mut_ptr()
                .copy_from_nonoverlapping(right.add(whole * ROW_BYTES * COLS), rest * COLS)
        };
    }
    let mut done = 0;
    loop {
        let count = (whole - done).min(STEP);
        let end = done + count == whole;
        for row in (0..rows).step_by(2 * ROWS) {
            let begin = source.begin.wrapping_add(row / ROWS * source.tile + done * source.step);
            let piece = Piece {
                left: Left { begin, stride: source.stride, step: source.step },
                second: (row + ROWS < rows).then_some(source.tile),
                count,
                right: right.wrapping_add(done * ROW_BYTES * COLS),
                last: if end && rest > 0 { last.0.as_ptr() } else { std::ptr::null() },
                sums: acc.wrapping_add(row * COLS * 4),
                sums_stride: COLS * 4,
                first: done == 0,
            };
            // SAFETY: the caller's promise.
            unsafe { tile.multiply(how, &piece) };
        }
        done += count;
        if end {
            return;
        }
    }
}

/// A small product.
///
/// # Safety
/// The fields of `product` must be true, its elements those of `how`, its panels those of AVX-512.
#[inline(always)]
pub(crate) unsafe fn multiply_plain<L, R, A>(amx: Amx, how: Multiply, product: &Plain<L, R, A>) {
    let tile = amx.configure();
    let (ld, sums_stride) = (product.ld * size_of::<L>(), size_of::<A>() * product.ld_acc);
    for (panel, col) in (0..product.cols).step_by(COLS).enumerate() {
        for row in (0..product.rows).step_by(2 * ROWS) {
            let begin = product.left.wrapping_add(row * product.ld).cast();
            let piece = Piece {
                left: Left { begin, stride: ld, step: ROW_BYTES },
                second: (row + ROWS < product.rows).then_some(ROWS * ld),
                count: (product.depth * size_of::<L>()).div_ceil(ROW_BYTES),
                right: product.right.wrapping_add(panel * product.ld_right).cast(),
                last: std::ptr::null(),
                sums: product.acc.wrapping_add(row * product.ld_acc + col).cast(),
                sums_stride,
                first: product.first,
            };
            // SAFETY: the caller's promise.
            unsafe { tile.multiply(how, &piece) };
        }
    }
}
