//! The loops around a register tile, the same for every data type.
//!
//! A task is a block of rows times a range of column panels. Per panel the depth is walked in steps
//! whose right side stays in the first-level cache while all rows of the block pass by; the
//! accumulators wait in a small buffer there.

use super::lhs::Lhs;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of a block at most: their left side stays in the second-level cache.
pub(crate) const BLOCK_ROWS: usize = 96;
/// Bytes of the right side that one step works on: half of a first-level cache.
const STEP_BYTES: usize = 16 << 10;
/// Taps whose pointers are looked up together at most.
const MAX_TAPS: usize = 16;
/// Columns of a panel at most.
const MAX_COLS: usize = 32;

/// Cache lines that one tile asks for at most.
const MAX_LINES: usize = 32;

/// What a data type brings: its register tile.
pub(crate) trait MicroKernel: Copy {
    /// An element of the left side.
    type Left: Copy;
    /// An element of the right side.
    type Right: Copy;
    /// An accumulator, at most 4 bytes.
    type Acc: Copy;
    /// What turns accumulators into results.
    type WriteBack<'a>;
    /// Rows of a tile at most.
    const ROWS: usize;
    /// Columns of a panel, at most 32.
    const COLS: usize;
    /// Values of the depth that lie side by side for a column of the right side: pieces of the
    /// depth are multiples of it, but for the last one of a tap, which the right side fills up with
    /// zeros.
    const GROUP: usize = 1;

    /// acc (+)= left · right for `count` tiles below one another.
    ///
    /// # Safety
    /// Every pointer in `tile` must lead to what its field says.
    unsafe fn tiles(self, tile: Tile<Self::Left, Self::Right, Self::Acc>);

    /// Adds what `rows × COLS` accumulators of a segment of the depth stand for to `sums`, or
    /// writes it there for the first one. With one segment both are the same memory. Nothing to do
    /// where accumulators are values.
    ///
    /// # Safety
    /// Both must hold them.
    #[inline(always)]
    unsafe fn fold(
        self,
        _how: &Self::WriteBack<'_>,
        _segment: usize,
        _rows: usize,
        _col: usize,
        _acc: *const Self::Acc,
        _sums: *mut f32,
    ) {
    }

    /// Turns `rows × COLS` sums into results from `(row, col)` on, `cols` columns of them.
    ///
    /// # Safety
    /// `sums` must hold them, and no other task may write those results.
    unsafe fn write_back(
        self,
        how: &Self::WriteBack<'_>,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
        sums: *const f32,
    );
}

/// Arguments of a column of register tiles: `count` times `rows` rows, one panel wide.
#[derive(Clone, Copy)]
pub(crate) struct Tile<L, R, A> {
    /// `[count, stride, rows]` pointers, of which those from `tap` on count, each to `depth`
    /// elements from `skip` on.
    pub(crate) left: *const *const L,
    /// Taps that have pointers.
    pub(crate) stride: usize,
    /// The first of `taps`.
    pub(crate) tap: usize,
    /// Elements in front of `depth` in every tap.
    pub(crate) skip: usize,
    /// `[taps, ⌈depth / GROUP⌉, COLS, GROUP]`
    pub(crate) right: *const R,
    /// `[count · rows, COLS]`, rows `ld` apart.
    pub(crate) acc: *mut A,
    pub(crate) ld: usize,
    pub(crate) rows: usize,
    pub(crate) count: usize,
    /// Columns that count.
    pub(crate) cols: usize,
    pub(crate) taps: usize,
    pub(crate) depth: usize,
    /// The accumulators begin at zero, whatever `acc` holds.
    pub(crate) first: bool,
    /// What comes after this: each tile asks for the next `lines` cache lines of it. Never read.
    pub(crate) next: *const R,
    pub(crate) lines: usize,
}

impl<L, R, A> Tile<L, R, A> {
    /// Where a row of `M` lies at one of the taps.
    ///
    /// # Safety
    /// The first tile must have `M` rows.
    #[inline(always)]
    pub(crate) unsafe fn row<const M: usize>(&self, tap: usize, row: usize) -> *const L {
        // SAFETY: the caller's promise, and that of the field.
        unsafe { (*self.left.add((self.tap + tap) * M + row)).add(self.skip) }
    }
}

/// One task: `rows` of the left side times `panels` of the right.
pub(crate) struct Block<'a, M: MicroKernel> {
    pub(crate) lhs: Lhs<'a, M::Left>,
    /// Pieces of the depth that are added up on their own; several only where [`MicroKernel::fold`]
    /// adds them.
    pub(crate) segments: &'a [usize],
    pub(crate) rows: Range<usize>,
    /// First row of `lhs` in terms of result rows.
    pub(crate) lhs_row: usize,
    /// All panels, `[panels, taps, ⌈depth / GROUP⌉, COLS, GROUP]`; of several segments one after
    /// the other.
    pub(crate) right: *const M::Right,
    pub(crate) panels: Range<usize>,
    /// Columns of the product.
    pub(crate) n: usize,
    /// First result column.
    pub(crate) col: usize,
    pub(crate) write_back: &'a M::WriteBack<'a>,
}

/// Some taps times a piece of their depth: what one pass over the rows works on.
#[derive(Clone, Copy)]
struct Steps {
    taps: usize,
    depth: usize,
}

impl Steps {
    /// Steps of nearly equal size whose right side has at most [`STEP_BYTES`], for a row of
    /// `bytes`; their depth is a multiple of `group`.
    fn new(taps: usize, depth: usize, bytes: usize, group: usize) -> Steps {
        let most = STEP_BYTES / bytes;
        if depth >= most {
            return Steps {
                taps: 1,
                depth: depth.div_ceil(depth.div_ceil(most)).next_multiple_of(group),
            };
        }
        let most = (most / depth.max(1)).clamp(1, MAX_TAPS);
        Steps { taps: taps.div_ceil(taps.div_ceil(most)), depth }
    }
}

/// Tiles that cover some rows: as few as possible, of two sizes at most.
#[derive(Clone, Copy)]
pub(crate) struct Tiling {
    /// (number of tiles, rows of each), the larger ones first.
    runs: [(usize, usize); 2],
}

impl Tiling {
    /// Covers `rows` with tiles of at most `most`.
    #[inline(always)]
    pub(crate) fn new(rows: usize, most: usize) -> Tiling {
        let count = rows.div_ceil(most).max(1);
        let (size, larger) = (rows / count, rows % count);
        Tiling { runs: [(larger, size + 1), (if size == 0 { 0 } else { count - larger }, size)] }
    }

    /// The size of each tile.
    #[inline(always)]
    fn sizes(self) -> impl Iterator<Item = usize> {
        self.runs.into_iter().flat_map(|(count, size)| std::iter::repeat_n(size, count))
    }

    fn count(self) -> usize {
        self.runs[0].0 + self.runs[1].0
    }

    /// All tiles of one step; `tile` describes the first, but for its size.
    ///
    /// # Safety
    /// As for [`MicroKernel::tiles`], for all of them.
    #[inline(always)]
    pub(crate) unsafe fn run<M: MicroKernel>(
        self,
        micro: M,
        mut tile: Tile<M::Left, M::Right, M::Acc>,
    ) {
        for (count, rows) in self.runs {
            if count == 0 {
                continue;
            }
            (tile.count, tile.rows) = (count, rows);
            // SAFETY: the caller's promise. `next` is only ever asked for, never read.
            unsafe {
                micro.tiles(tile);
                tile.left = tile.left.add(count * rows * tile.stride);
                tile.acc = tile.acc.add(count * rows * tile.ld);
            }
            tile.next = tile.next.wrapping_add(count * tile.lines * (64 / size_of::<M::Right>()));
        }
    }
}

#[repr(align(64))]
struct Aligned<T>(T);

/// Runs a block.
///
/// # Safety
/// Every row of `lhs` must have `depth` readable elements at every tap, `right` all panels, and no
/// other task may write the results of this block.
#[inline(always)]
pub(crate) unsafe fn drive<M: MicroKernel>(micro: M, block: &Block<M>) {
    const { assert!(M::COLS <= MAX_COLS && size_of::<M::Acc>() <= 4) };
    let mut memory = MaybeUninit::<[Aligned<[u32; BLOCK_ROWS * MAX_COLS]>; 2]>::uninit();
    let memory: *mut Aligned<[u32; BLOCK_ROWS * MAX_COLS]> = memory.as_mut_ptr().cast();
    let acc: *mut M::Acc = memory.cast();
    let several = block.segments.len() > 1;
    let sums: *mut f32 = if several { memory.wrapping_add(1).cast() } else { memory.cast() };
    let mut left = [std::ptr::null(); BLOCK_ROWS * MAX_TAPS];
    let (lhs, rows) = (&block.lhs, block.rows.len());
    assert!(rows <= BLOCK_ROWS);
    let tiling = Tiling::new(rows, M::ROWS);
    // equal chunks of taps: one of 3 x 3, whose pointers then serve all panels
    let chunk = lhs.taps.div_ceil(lhs.taps.div_ceil(MAX_TAPS));
    let mut filled = None;
    for panel in block.panels.clone() {
        let cols = (block.n - panel * M::COLS).min(M::COLS);
        let col = block.col + panel * M::COLS;
        let mut right = block
            .right
            .wrapping_add(panel * lhs.taps * lhs.depth.next_multiple_of(M::GROUP) * M::COLS);
        let mut begin = 0;
        for (segment, &depth) in block.segments.iter().enumerate() {
            let end = begin + depth;
            let mut first = true;
            for tap in (0..lhs.taps).step_by(chunk) {
                let stride = chunk.min(lhs.taps - tap);
                if filled != Some(tap) {
                    lhs.fill(
                        block.rows.start - block.lhs_row,
                        tap..tap + stride,
                        tiling.sizes(),
                        &mut left,
                    );
                    filled = Some(tap);
                }
                let steps = Steps::new(stride, depth, M::COLS * size_of::<M::Right>(), M::GROUP);
                for tap in (0..stride).step_by(steps.taps) {
                    let taps = steps.taps.min(stride - tap);
                    for skip in (begin..end).step_by(steps.depth) {
                        let depth = steps.depth.min(end - skip);
                        let step = taps * depth.next_multiple_of(M::GROUP) * M::COLS;
                        let next = right.wrapping_add(step);
                        let lines = (step * size_of::<M::Right>() / 64)
                            .div_ceil(tiling.count())
                            .min(MAX_LINES);
                        let (left, ld) = (left.as_ptr(), M::COLS);
                        let (rows, count) = (0, 0);
                        let tile = Tile {
                            left,
                            stride,
                            tap,
                            skip,
                            right,
                            acc,
                            ld,
                            rows,
                            count,
                            cols,
                            taps,
                            depth,
                            first,
                            next,
                            lines,
                        };
                        // SAFETY: `left` was filled for these taps and tiles; the accumulators have
                        // room for the block.
                        unsafe { tiling.run(micro, tile) };
                        right = next;
                        first = false;
                    }
                }
            }
            // SAFETY: the passes above have filled the accumulators of all rows.
            unsafe { micro.fold(block.write_back, segment, rows, panel * M::COLS, acc, sums) };
            begin = end;
        }
        // SAFETY: every segment was added to the sums.
        unsafe { micro.write_back(block.write_back, block.rows.start, rows, col, cols, sums) };
    }
}
