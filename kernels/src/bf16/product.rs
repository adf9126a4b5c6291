//! y = epilogue(activations · weights), both bf16.

use super::dot::{Bf16Dot, Bf16Kernel};
use super::pack::PackedBf16;
use crate::epilogue::check_matrix;
use crate::gemm::{
    Block, Lhs, MicroKernel, Split, Tasks, Tile, WriteBack, copied_bytes, dot_tiles, write_back,
};
use crate::output::Output;
use crate::simd::Simd;
use crate::{Epilogue, Isa, Pool};
use std::ops::Range;

/// y = epilogue(x · w): `x` `[m, k]` the bits of bf16 with rows `ldx` apart, `w` packed from `[k,
/// n]`, `y` `[m, n]` with rows `ldy` apart; `[m, n / 2]` where columns are packed in pairs.
///
/// # Panics
/// When `packed` was made for another `isa`, `k` or `n`, a slice is too short, or sums are scaled
/// twice; for pairs as [`linear_codes`](crate::linear_codes).
pub fn linear_bf16<'a>(
    isa: Isa,
    pool: &Pool,
    m: usize,
    k: usize,
    n: usize,
    x: &[u16],
    ldx: usize,
    packed: &PackedBf16,
    epilogue: &Epilogue,
    y: impl Into<Output<'a>>,
    ldy: usize,
) {
    packed.check(isa, 1, k, n);
    check_matrix("x", x.len(), m, k, ldx);
    let lhs = Lhs { x, ld: ldx, taps: 1, depth: k, gather: None };
    let write_back =
        WriteBack::new(isa, packed.epilogue(epilogue), m, n, packed.is_paired(), y.into(), ldy);
    Bf16Product { isa, lhs, rows: m, n, packed, write_back }.run(pool);
}

/// A product whose operands were checked.
pub(crate) struct Bf16Product<'a> {
    pub(crate) isa: Isa,
    pub(crate) lhs: Lhs<'a, u16>,
    pub(crate) rows: usize,
    pub(crate) n: usize,
    pub(crate) packed: &'a PackedBf16,
    pub(crate) write_back: WriteBack<'a>,
}

impl Bf16Product<'_> {
    /// Computes all of it.
    pub(crate) fn run(&self, pool: &Pool) {
        if self.rows == 0 || self.n == 0 {
            return;
        }
        let panels = self.n.div_ceil(self.isa.bf16_instruction().panel_width());
        // row blocks are multiples of it, so that only the last has smaller tiles
        let unit = self.isa.bf16_instruction().rows();
        let Lhs { taps, depth, gather, .. } = self.lhs;
        let tasks = Tasks {
            rows: self.rows,
            unit,
            split: Split::of(self.rows, panels, unit, pool.threads()),
            copied: copied_bytes(
                self.isa,
                self.rows,
                taps,
                &[depth],
                size_of::<u16>(),
                gather.is_some(),
            ),
            copy: &|rows, to| self.isa.run_bf16(CopyRows { product: self, rows, to }),
            multiply: &|rows, panels, copied| {
                self.isa.run_bf16(Multiply { product: self, rows, panels, copied })
            },
        };
        tasks.run(pool);
    }

    /// A block of rows and panels.
    #[inline(always)]
    fn block<'b, D: Bf16Dot>(
        &'b self,
        segments: &'b [usize],
        rows: Range<usize>,
        panels: Range<usize>,
    ) -> Block<'b, Bf16<D>> {
        Block {
            lhs: self.lhs,
            segments,
            rows,
            lhs_row: 0,
            right: self.packed.values().as_ptr(),
            panels,
            n: self.n,
            col: 0,
            write_back: &self.write_back,
        }
    }
}

/// Copies some rows; see [`Dot::copy_rows`](crate::gemm::Dot::copy_rows).
struct CopyRows<'a> {
    product: &'a Bf16Product<'a>,
    rows: Range<usize>,
    to: &'a mut [u8],
}

impl Bf16Kernel for CopyRows<'_> {
    #[inline(always)]
    fn run<D: Bf16Dot>(self, d: D) {
        // SAFETY: the callers of `Bf16Product::run` have checked all operands.
        unsafe {
            d.copy_rows(
                &self.product.block::<D>(&[self.product.lhs.depth], self.rows, 0..0),
                self.to,
            )
        }
    }
}

/// Multiplies some rows by some panels.
struct Multiply<'a> {
    product: &'a Bf16Product<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// What [`CopyRows`] wrote.
    copied: &'a [u8],
}

impl Bf16Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<D: Bf16Dot>(self, d: D) {
        let segments = [self.product.lhs.depth];
        let block = self.product.block::<D>(&segments, self.rows, self.panels);
        // SAFETY: the callers of `Bf16Product::run` have checked all operands; tasks have disjoint
        // rows or columns.
        unsafe { d.drive(Bf16(d), &block, self.copied) }
    }
}

/// bf16 times bf16 with the instruction of `D`.
#[derive(Clone, Copy)]
pub(super) struct Bf16<D>(pub(super) D);

impl<D: Bf16Dot> MicroKernel for Bf16<D> {
    type Left = u16;
    type Right = u16;
    type Acc = f32;
    type WriteBack<'a> = WriteBack<'a>;
    const ROWS: usize = D::MR;
    const COLS: usize = 2 * <D::Float as Simd>::LANES;
    const GROUP: usize = D::GROUP;

    #[inline(always)]
    unsafe fn tiles(self, tile: Tile<u16, u16, f32>) {
        // SAFETY: the caller's promise; `PackedBf16` fills up groups with zeros.
        unsafe { dot_tiles(self.0, tile) }
    }

    #[inline(always)]
    unsafe fn write_back(
        self,
        how: &WriteBack,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
        sums: *const f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { write_back(self.0.float(), how, row, rows, col, cols, sums) }
    }
}
