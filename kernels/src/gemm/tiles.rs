//! The loops around AMX: like [`drive`](super::drive), but tiles of 32 rows by 32 columns whose sums stay in registers for most of the depth.
//!
//! Tiles want rows that lie evenly and a depth without gaps. Where the left side has neither (a convolution, a depth that ends within 64 bytes), the rows
//! of a block are copied together once, in the order in which tiles are loaded. The right side is packed as for AVX-512: groups of four bytes per
//! column are what the rows of a tile want.

use super::drive::{BLOCK_ROWS, Block, Micro};
use crate::amx::{Amx, BYTES, COLS, Configured, Left, Multiply, Piece, ROW_BYTES, ROWS};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Pieces of 64 bytes of the depth whose right side stays in the first-level cache while all rows of the block pass by.
const STEP: usize = 12;
/// Bytes of a group of the depth.
const GROUP_BYTES: usize = 4;

/// How the left rows of a block come to the tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    /// Taps of a row.
    taps: usize,
    /// Bytes of a value.
    size: usize,
    /// Rows, rounded up to whole tiles.
    rows: usize,
    /// The rows are loaded from where they are.
    direct: bool,
}

impl Tiles {
    /// For `rows` rows of values of `size` bytes; `gathered`: they are looked up.
    pub(crate) fn new(rows: usize, taps: usize, segments: &[usize], size: usize, gathered: bool) -> Tiles {
        let whole = |depth: &usize| (depth * size).is_multiple_of(ROW_BYTES);
        let direct = !gathered && rows.is_multiple_of(ROWS) && segments.iter().all(whole);
        Tiles { taps, size, rows: rows.next_multiple_of(ROWS), direct }
    }

    /// Bytes that the copy takes.
    pub(crate) fn copied_bytes(self, segments: &[usize]) -> usize {
        if self.direct { 0 } else { segments.iter().map(|&depth| self.segment_bytes(depth)).sum() }
    }

    /// Bytes of one tap of a row.
    fn tap_bytes(self, depth: usize) -> usize {
        (depth * self.size).next_multiple_of(GROUP_BYTES)
    }

    /// Whole and begun pieces of 64 bytes of a row.
    fn pieces(self, depth: usize) -> usize {
        (self.taps * self.tap_bytes(depth)).div_ceil(ROW_BYTES)
    }

    fn segment_bytes(self, depth: usize) -> usize {
        self.rows * self.pieces(depth) * ROW_BYTES
    }
}

/// Runs a block; `copy` has [`Tiles::copied_bytes`].
///
/// # Safety
/// As for [`drive`](super::drive()); the panels are those of AVX-512.
#[inline(always)]
pub(crate) unsafe fn drive_tiles<M: Micro>(amx: Amx, how: Multiply, micro: M, block: &Block<M>, copy: &mut [u8]) {
    const {
        assert!(
            M::COLS == COLS
                && M::GROUP * size_of::<M::Right>() == GROUP_BYTES
                && size_of::<M::Left>() == size_of::<M::Right>()
        )
    };
    const { assert!(size_of::<M::Acc>() == 4) };
    let tiles =
        Tiles::new(block.rows.len(), block.lhs.taps, block.segments, size_of::<M::Left>(), block.lhs.gather.is_some());
    assert!(block.rows.len() <= BLOCK_ROWS && copy.len() >= tiles.copied_bytes(block.segments));
    if !tiles.direct {
        let (mut begin, mut to) = (0, copy.as_mut_ptr());
        for &depth in block.segments {
            // SAFETY: the caller's promise; the assertion above.
            unsafe { copy_segment(amx, tiles, block, begin..begin + depth, to) };
            begin += depth;
            to = to.wrapping_add(tiles.segment_bytes(depth));
        }
    }
    // SAFETY: the caller's promise; the copies are complete.
    unsafe { panels(&amx.configure(), how, micro, block, tiles, copy.as_ptr()) };
}

/// Copies some channels of all rows: `[rows / 16, pieces, 16, 64 bytes]`, zeros where a row ends. Rows beyond the last are left as they are.
///
/// # Safety
/// As for [`drive_tiles`]; `to` must have room.
#[inline(always)]
unsafe fn copy_segment<M: Micro>(amx: Amx, tiles: Tiles, block: &Block<M>, channels: Range<usize>, to: *mut u8) {
    let (pieces, tap_bytes, bytes) =
        (tiles.pieces(channels.len()), tiles.tap_bytes(channels.len()), channels.len() * tiles.size);
    for (i, row) in block.rows.clone().enumerate() {
        let row = block.lhs.row(row - block.lhs_row);
        let to = to.wrapping_add(i / ROWS * pieces * BYTES + i % ROWS * ROW_BYTES);
        for tap in 0..tiles.taps {
            let from: *const u8 = row.tap(tap).wrapping_add(channels.start).cast();
            let (mut done, mut at) = (0, tap * tap_bytes);
            while done < bytes {
                let n = (bytes - done).min(ROW_BYTES - at % ROW_BYTES);
                // SAFETY: the caller's promise.
                unsafe { amx.copy(from.add(done), to.add(at / ROW_BYTES * BYTES + at % ROW_BYTES), n) };
                (done, at) = (done + n, at + n);
            }
            // what rounds a tap up to a group is multiplied by zeros, but must be a number
            let rest = tap_bytes - bytes;
            // SAFETY: within the last group, so within its piece.
            unsafe { amx.clear(to.wrapping_add(at / ROW_BYTES * BYTES + at % ROW_BYTES), rest) };
        }
        let at = tiles.taps * tap_bytes;
        if !at.is_multiple_of(ROW_BYTES) {
            // SAFETY: the rest of the last piece.
            unsafe { amx.clear(to.add(at / ROW_BYTES * BYTES + at % ROW_BYTES), ROW_BYTES - at % ROW_BYTES) };
        }
    }
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
/// As for [`drive_tiles`]; `copy` must be filled.
#[inline(always)]
unsafe fn panels<M: Micro>(
    tile: &Configured,
    how: Multiply,
    micro: M,
    block: &Block<M>,
    tiles: Tiles,
    copy: *const u8,
) {
    let mut memory = MaybeUninit::<[Aligned<[u32; BLOCK_ROWS * COLS]>; 2]>::uninit();
    let memory: *mut Aligned<[u32; BLOCK_ROWS * COLS]> = memory.as_mut_ptr().cast();
    let acc: *mut M::Acc = memory.cast();
    let sums: *mut f32 = if block.segments.len() > 1 { memory.wrapping_add(1).cast() } else { memory.cast() };
    let rows = block.rows.len();
    let row_bytes: usize = block.segments.iter().map(|&depth| tiles.taps * tiles.tap_bytes(depth)).sum();
    for panel in block.panels.clone() {
        let cols = (block.n - panel * COLS).min(COLS);
        let mut right: *const u8 = block.right.cast::<u8>().wrapping_add(panel * row_bytes * COLS);
        let (mut begin, mut copied) = (0, copy);
        for (segment, &depth) in block.segments.iter().enumerate() {
            let pieces = tiles.pieces(depth);
            let source = if tiles.direct {
                let stride = block.lhs.ld * tiles.size;
                let first = (block.rows.start - block.lhs_row) * block.lhs.ld + begin;
                Source {
                    begin: block.lhs.x.as_ptr().wrapping_add(first).cast(),
                    stride,
                    step: ROW_BYTES,
                    tile: ROWS * stride,
                }
            } else {
                Source { begin: copied, stride: ROW_BYTES, step: BYTES, tile: pieces * BYTES }
            };
            let bytes = tiles.taps * tiles.tap_bytes(depth);
            // SAFETY: the caller's promise.
            unsafe {
                segment_sums(tile, how, tiles.rows, bytes, &source, right, acc.cast());
                micro.fold(block.finish, segment, rows, panel * COLS, acc, sums);
            }
            right = right.wrapping_add(bytes * COLS);
            copied = copied.wrapping_add(tiles.segment_bytes(depth));
            begin += depth;
        }
        // SAFETY: every segment was added to the sums.
        unsafe { micro.finish(block.finish, block.rows.start, rows, block.col + panel * COLS, cols, sums) };
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
    // the right side of the last piece, zeros where it ends: what follows it in memory belongs to others
    let mut last = Aligned([0u8; ROW_BYTES * COLS]);
    if rest > 0 {
        // SAFETY: the panel has `bytes` per column.
        unsafe { last.0.as_mut_ptr().copy_from_nonoverlapping(right.add(whole * ROW_BYTES * COLS), rest * COLS) };
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
