//! y = epilogue(left · right): an implicit matrix product, cut into tasks.
//!
//! [`lhs`] says where left rows are, [`drive`] has the loops, [`tile`] the register tile of f32 and
//! [`dots`] that of instructions which add several products at once, [`tiles`] the loops around
//! AMX, [`write_back`] the epilogue, [`plain`] small products without one.

mod dots;
mod drive;
mod lhs;
mod plain;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod write_back;

pub(crate) use dots::{Dot, DotKernel, dot_tiles};
pub(crate) use drive::{Block, MicroKernel, Tile, Tiling, drive};
pub(crate) use lhs::{Gather, Lhs, PADDING};
pub use write_back::PAIRED_COLUMNS;
pub(crate) use write_back::{RowParts, WriteBack, load_some, pair_of, store_some, write_back};

use crate::pack::panel_width;
use crate::shared::{SharedMut, cut};
use crate::simd::{Simd, SimdKernel};
use crate::{Isa, Pool, scratch};
use drive::BLOCK_ROWS;
pub(crate) use plain::{PLAIN_ROWS, Plain};
use std::ops::Range;
pub(crate) use tile::F32;
#[cfg(target_arch = "x86_64")]
pub(crate) use tiles::{copy_rows, drive_tiles, multiply_plain};

/// Taps shorter than this are copied together first.
const SHORT_TAP: usize = 16;
/// Values of copied rows at most, per block: a quarter of a second-level cache.
const COPY_VALUES: usize = 32 << 10;
/// Tasks per thread that make up for threads of different speed.
const TASKS_PER_THREAD: usize = 6;

/// Bytes that [`Dot::copy_rows`] writes for 16 of `rows` rows of values of `size` bytes, 0 where
/// nothing needs to be copied; `gathered`: the rows are looked up.
pub(crate) fn copied_bytes(
    isa: Isa,
    rows: usize,
    taps: usize,
    segments: &[usize],
    size: usize,
    gathered: bool,
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.has_tiles() {
        let tiles = tiles::Tiles::new(taps, segments, size);
        return if tiles.suit(rows, gathered) { 0 } else { tiles.bytes() };
    }
    0
}

/// Rows that are copied together.
const COPIED_ROWS: usize = 16;
/// Bytes of a copy that several tasks read, at most, per thread: half of a second-level cache.
const SHARED_COPY: usize = 1 << 20;

/// Multiplies some rows by some panels, given the copy of the rows.
pub(crate) type MultiplyPart<'a> = dyn Fn(Range<usize>, Range<usize>, &[u8]) + Sync + 'a;

/// A product in tasks, with what [`Dot::copy_rows`] copies for them.
pub(crate) struct Tasks<'a> {
    pub(crate) rows: usize,
    /// Row blocks are multiples of it, but for the last.
    pub(crate) unit: usize,
    pub(crate) split: Split,
    /// See [`copied_bytes`].
    pub(crate) copied: usize,
    /// Copies some rows.
    pub(crate) copy: &'a (dyn Fn(Range<usize>, &mut [u8]) + Sync),
    pub(crate) multiply: &'a MultiplyPart<'a>,
}

impl Tasks<'_> {
    /// Runs all of them. Where several tasks read the same rows these are copied once for all.
    pub(crate) fn run(&self, pool: &Pool) {
        let Split { row_blocks, panels, panel_ranges } = self.split;
        let part = |task: usize| {
            let rows = cut(self.rows, row_blocks, self.unit, task / panel_ranges);
            (rows, cut(panels, panel_ranges, 1, task % panel_ranges))
        };
        let count = row_blocks * panel_ranges;
        let all = self.rows.div_ceil(COPIED_ROWS) * self.copied;
        if panel_ranges == 1 || all == 0 || all > SHARED_COPY * pool.threads() {
            return pool.run(count, &|task, _| {
                let (rows, panels) = part(task);
                if rows.is_empty() || panels.is_empty() {
                    return;
                }
                scratch::with(
                    (rows.len().div_ceil(COPIED_ROWS) * self.copied).div_ceil(4),
                    |own| {
                        let own: &mut [u8] = bytemuck::cast_slice_mut(own);
                        if self.copied > 0 {
                            (self.copy)(rows.clone(), own);
                        }
                        (self.multiply)(rows, panels, own);
                    },
                );
            });
        }
        scratch::with(all.div_ceil(4), |copies| {
            let copies: &mut [u8] = bytemuck::cast_slice_mut(copies);
            let shared = SharedMut::new(&mut *copies);
            pool.run(self.rows.div_ceil(COPIED_ROWS), &|task, _| {
                let rows = task * COPIED_ROWS..self.rows.min((task + 1) * COPIED_ROWS);
                // SAFETY: every task has its own part.
                (self.copy)(rows, unsafe { shared.part(task * self.copied, self.copied) });
            });
            let copies = &*copies;
            pool.run(count, &|task, _| {
                let (rows, panels) = part(task);
                if !rows.is_empty() && !panels.is_empty() {
                    let begin = rows.start / COPIED_ROWS * self.copied;
                    (self.multiply)(rows, panels, &copies[begin..]);
                }
            });
        });
    }
}

/// A product `[rows, k] · [k, n]`, or one per group of columns.
pub(crate) struct Product<'a> {
    pub(crate) isa: Isa,
    /// Left side of the first group.
    pub(crate) lhs: Lhs<'a, f32>,
    pub(crate) rows: usize,
    /// Per group all panels of `[k, width]`.
    pub(crate) right: &'a [f32],
    /// Columns of a group.
    pub(crate) n: usize,
    pub(crate) groups: Groups,
    pub(crate) write_back: WriteBack<'a>,
}

/// Several products of the same shape, and how far apart their operands begin.
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    pub(crate) count: usize,
    /// Values of the left side between two groups.
    pub(crate) left: usize,
    /// Packed values of the right side between two groups.
    pub(crate) right: usize,
    /// Columns of the result between two groups.
    pub(crate) col: usize,
}

impl Groups {
    /// Only one product.
    pub(crate) const ONE: Groups = Groups { count: 1, left: 0, right: 0, col: 0 };
}

/// How a product is cut: tasks are groups × row blocks × ranges of panels.
pub(crate) struct Split {
    pub(crate) row_blocks: usize,
    pub(crate) panels: usize,
    pub(crate) panel_ranges: usize,
}

impl Split {
    /// `rows` in blocks of at most `most`, multiples of `unit`; `panels` in as many ranges as
    /// `threads` need for `groups` products.
    fn new(
        rows: usize,
        panels: usize,
        [unit, most]: [usize; 2],
        groups: usize,
        threads: usize,
    ) -> Split {
        let row_blocks = rows.div_ceil(unit).div_ceil(most / unit);
        let wanted = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
        let panel_ranges = wanted.div_ceil(row_blocks * groups).clamp(1, panels);
        Split { row_blocks, panels, panel_ranges }
    }

    /// Of one product, whose row blocks are multiples of `unit`.
    pub(crate) fn of(rows: usize, panels: usize, unit: usize, threads: usize) -> Split {
        Split::new(rows, panels, [unit, BLOCK_ROWS], 1, threads)
    }
}

impl Product<'_> {
    /// Computes all of it.
    ///
    /// The caller has checked that `lhs` has all rows, the epilogue and `y` all rows and columns.
    pub(crate) fn run(&self, pool: &Pool) {
        if self.rows == 0 || self.n == 0 {
            return;
        }
        assert!(self.lhs.k() > 0, "a product over no values");
        let split = self.split(pool.threads());
        let per_group = split.row_blocks * split.panel_ranges;
        pool.run(self.groups.count * per_group, &|task, _| {
            let (group, rest) = (task / per_group, task % per_group);
            let rows =
                cut(self.rows, split.row_blocks, self.isa.row_unit(), rest / split.panel_ranges);
            let panels = cut(split.panels, split.panel_ranges, 1, rest % split.panel_ranges);
            if !rows.is_empty() && !panels.is_empty() {
                self.task(group, rows, panels);
            }
        });
    }

    fn split(&self, threads: usize) -> Split {
        let panels = self.n.div_ceil(panel_width(self.isa));
        let most = if self.copies() {
            (COPY_VALUES / self.lhs.k()).clamp(self.isa.row_unit(), BLOCK_ROWS)
        } else {
            BLOCK_ROWS
        };
        Split::new(self.rows, panels, [self.isa.row_unit(), most], self.groups.count, threads)
    }

    /// Whether the left rows of a block are copied together first.
    fn copies(&self) -> bool {
        self.lhs.gather.is_some()
            && self.lhs.depth < SHORT_TAP
            && self.lhs.k() * self.isa.row_unit() <= COPY_VALUES
    }

    fn task(&self, group: usize, rows: Range<usize>, panels: Range<usize>) {
        let mut lhs = self.lhs;
        lhs.x = &lhs.x[group * self.groups.left..];
        if !self.copies() {
            return self.block(group, lhs, 0, rows, panels);
        }
        let k = lhs.k();
        scratch::with(rows.len() * k, |copy| {
            lhs.copy_rows(rows.clone(), copy);
            let copied = Lhs { x: copy, ld: k, taps: 1, depth: k, gather: None };
            self.block(group, copied, rows.start, rows.clone(), panels);
        });
    }

    fn block(
        &self,
        group: usize,
        lhs: Lhs<f32>,
        lhs_row: usize,
        rows: Range<usize>,
        panels: Range<usize>,
    ) {
        let right = self.right[group * self.groups.right..].as_ptr();
        let (n, col) = (self.n, group * self.groups.col);
        self.isa.run(ProductTask {
            lhs,
            lhs_row,
            rows,
            right,
            panels,
            n,
            col,
            write_back: &self.write_back,
        });
    }
}

/// A [`Block`] whose instruction set is not yet chosen.
struct ProductTask<'a> {
    lhs: Lhs<'a, f32>,
    lhs_row: usize,
    rows: Range<usize>,
    right: *const f32,
    panels: Range<usize>,
    n: usize,
    col: usize,
    write_back: &'a WriteBack<'a>,
}

impl SimdKernel for ProductTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ProductTask { lhs, lhs_row, rows, right, panels, n, col, write_back } = self;
        let segments = &[lhs.depth];
        let block =
            Block::<F32<S>> { lhs, segments, rows, lhs_row, right, panels, n, col, write_back };
        // SAFETY: `Product::run` demands the checks of all operands; tasks have disjoint rows or
        // columns.
        unsafe { drive(F32(s), &block) }
    }
}
