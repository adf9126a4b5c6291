//! y = epilogue(activations · weights), both bf16.

use super::dot::{Bf16Dot, Bf16Kernel};
use super::pack::PackedBf16;
use crate::epilogue::check_matrix;
use crate::gemm::{Block, Finish, Lhs, Micro, Split, Tile, copied_bytes, dot_tiles, finish};
use crate::shared::cut;
use crate::simd::Simd;
use crate::target::{Sink, Target};
use crate::{Epilogue, Isa, Pool, scratch};
use std::ops::Range;

/// y = epilogue(x · w): `x` `[m, k]` the bits of bf16 with rows `ldx` apart, `w` packed from `[k, n]`, `y` `[m, n]` with rows `ldy` apart.
///
/// # Panics
/// When `packed` was made for another `isa`, `k` or `n`, or a slice is too short.
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
    y: impl Into<Target<'a>>,
    ldy: usize,
) {
    packed.check(isa, 1, k, n);
    check_matrix("x", x.len(), m, k, ldx);
    epilogue.check(m, n);
    let lhs = Lhs { x, ld: ldx, taps: 1, depth: k, gather: None };
    let finish = Finish { epilogue: *epilogue, y: Sink::new(isa, y.into(), m, n, ldy) };
    Bf16Product { isa, lhs, rows: m, n, packed, finish }.run(pool);
}

/// A product whose operands were checked.
pub(crate) struct Bf16Product<'a> {
    pub(crate) isa: Isa,
    pub(crate) lhs: Lhs<'a, u16>,
    pub(crate) rows: usize,
    pub(crate) n: usize,
    pub(crate) packed: &'a PackedBf16,
    pub(crate) finish: Finish<'a>,
}

impl Bf16Product<'_> {
    /// Computes all of it.
    pub(crate) fn run(&self, pool: &Pool) {
        if self.rows == 0 || self.n == 0 {
            return;
        }
        let panels = self.n.div_ceil(self.isa.bf16_level().panel_width());
        // row blocks are multiples of it, so that only the last has smaller tiles
        let unit = self.isa.bf16_level().rows();
        let split = Split::of(self.rows, panels, unit, pool.threads());
        pool.run(split.row_blocks * split.panel_ranges, &|task, _| {
            let rows = cut(self.rows, split.row_blocks, unit, task / split.panel_ranges);
            let panels = cut(split.panels, split.panel_ranges, 1, task % split.panel_ranges);
            if !rows.is_empty() && !panels.is_empty() {
                let Lhs { taps, depth, gather, .. } = self.lhs;
                let bytes = copied_bytes(self.isa, rows.len(), taps, &[depth], size_of::<u16>(), gather.is_some());
                scratch::with(bytes.div_ceil(4), |copy| {
                    self.isa.run_bf16(Task { product: self, rows, panels, copy: bytemuck::cast_slice_mut(copy) });
                });
            }
        });
    }
}

/// Some rows and panels of a product.
struct Task<'a> {
    product: &'a Bf16Product<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// See [`Dot::drive`].
    copy: &'a mut [u8],
}

impl Bf16Kernel for Task<'_> {
    #[inline(always)]
    fn run<D: Bf16Dot>(self, d: D) {
        let p = self.product;
        let block = Block::<Bf16<D>> {
            lhs: p.lhs,
            segments: &[p.lhs.depth],
            rows: self.rows,
            lhs_row: 0,
            right: p.packed.values().as_ptr(),
            panels: self.panels,
            n: p.n,
            col: 0,
            finish: &p.finish,
        };
        // SAFETY: the callers of `Bf16Product::run` have checked all operands; tasks have disjoint rows or columns.
        unsafe { d.drive(Bf16(d), &block, self.copy) }
    }
}

/// bf16 times bf16 with the instruction of `D`.
#[derive(Clone, Copy)]
struct Bf16<D>(D);

impl<D: Bf16Dot> Micro for Bf16<D> {
    type Left = u16;
    type Right = u16;
    type Acc = f32;
    type Finish<'a> = Finish<'a>;
    const ROWS: usize = D::MR;
    const COLS: usize = 2 * <D::Float as Simd>::LANES;
    const GROUP: usize = D::GROUP;

    #[inline(always)]
    unsafe fn tiles(self, tile: Tile<u16, u16, f32>) {
        // SAFETY: the caller's promise; `PackedBf16` fills up groups with zeros.
        unsafe { dot_tiles(self.0, tile) }
    }

    #[inline(always)]
    unsafe fn finish(self, how: &Finish, row: usize, rows: usize, col: usize, cols: usize, sums: *const f32) {
        // SAFETY: the caller's promise.
        unsafe { finish(self.0.float(), how, row, rows, col, cols, sums) }
    }
}
