//! y = epilogue(activations · weights), both codes.

use super::dot::{IntDot, IntKernel};
use super::pack::PackedCodes;
use super::tile::{Codes, Dequantize};
use crate::arena::{Pod, cast, cast_mut};
use crate::epilogue::check_matrix;
use crate::gemm::{Block, Gather, Lhs, MicroKernel, Split, Tasks, WriteBack, copied_bytes};
use crate::output::Output;
use crate::{Epilogue, Isa, Pool, scratch};
use std::ops::Range;

/// Codes of activations and what they stand for: `(code − zero_point) · scale`, per segment of the
/// channels.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// Elements of [`Isa::code_type`], as bytes.
    pub codes: &'a [u8],
    /// Distance between rows, in elements.
    pub ld: usize,
    /// One scale per segment.
    pub scale: &'a [f32],
    /// One zero point per segment, whole numbers in 0 ..= 255.
    pub zero_point: &'a [f32],
}

impl Activations<'_> {
    /// Panics unless there are `rows` rows of `cols` codes, and a scale per segment.
    pub(crate) fn check(&self, isa: Isa, rows: usize, cols: usize, segments: usize) {
        check_matrix("x", self.codes.len() / isa.code_type().size(), rows, cols, self.ld);
        assert!(
            self.scale.len() >= segments && self.zero_point.len() >= segments,
            "a scale and a zero point per segment"
        );
    }
}

/// y = epilogue(x · w): `x` `[m, k]` codes, `w` packed from `[k, n]`, `y` `[m, n]` with rows `ldy`
/// apart; `[m, n / 2]` where columns are packed in pairs.
///
/// # Panics
/// When `packed` was made for another `isa`, `k` or `n`, or a slice is too short; when pairs have
/// more of an epilogue than factors and summands, or are rounded in segments.
pub fn linear_codes<'a>(
    isa: Isa,
    pool: &Pool,
    m: usize,
    k: usize,
    n: usize,
    x: &Activations,
    packed: &PackedCodes,
    epilogue: &Epilogue,
    y: impl Into<Output<'a>>,
    ldy: usize,
) {
    packed.check(isa, 1, k, n);
    x.check(isa, m, k, packed.segments().len());
    let write_back = WriteBack::new(isa, *epilogue, m, n, packed.is_paired(), y.into(), ldy);
    IntProduct { isa, x, rows: m, n, taps: 1, depth: k, gather: None, packed, write_back }.run(pool);
}

/// The table of a convolution.
#[derive(Clone, Copy)]
pub(crate) struct Pixels<'a> {
    pub(crate) table: &'a [u32],
    pub(crate) out_pixels: usize,
    pub(crate) in_pixels: usize,
}

/// A product whose operands were checked.
pub(crate) struct IntProduct<'a> {
    pub(crate) isa: Isa,
    pub(crate) x: &'a Activations<'a>,
    pub(crate) rows: usize,
    pub(crate) n: usize,
    pub(crate) taps: usize,
    pub(crate) depth: usize,
    pub(crate) gather: Option<Pixels<'a>>,
    pub(crate) packed: &'a PackedCodes,
    pub(crate) write_back: WriteBack<'a>,
}

impl IntProduct<'_> {
    /// Computes all of it.
    pub(crate) fn run(&self, pool: &Pool) {
        if self.rows == 0 || self.n == 0 {
            return;
        }
        // what padding reads: the codes that stand for zero
        let words = if self.gather.is_some() { (self.depth * self.isa.code_type().size()).div_ceil(4) } else { 0 };
        scratch::with(words, |words| {
            let zeros: &mut [u8] = bytemuck::cast_slice_mut(words);
            if self.gather.is_some() {
                self.isa.run_integer(Fill { segments: self.packed.segments(), values: self.x.zero_point, out: zeros });
            }
            let zeros = &*zeros;
            let instruction = self.isa.dot_instruction();
            let (segments, size) = (self.packed.segments(), self.isa.code_type().size());
            let tasks = Tasks {
                rows: self.rows,
                unit: instruction.rows(),
                split: Split::of(self.rows, self.n.div_ceil(instruction.columns()), instruction.rows(), pool.threads()),
                copied: copied_bytes(self.isa, self.rows, self.taps, segments, size, self.gather.is_some()),
                copy: &|rows, to| self.isa.run_integer(CopyRows { product: self, zeros, rows, to }),
                multiply: &|rows, panels, copied| {
                    self.isa.run_integer(Multiply { product: self, zeros, rows, panels, copied });
                },
            };
            tasks.run(pool);
        });
    }

    /// A block of rows and panels.
    #[inline(always)]
    fn block<'b, D: IntDot>(
        &'b self,
        zeros: &'b [u8],
        rows: Range<usize>,
        panels: Range<usize>,
        write_back: &'b Dequantize<'b>,
    ) -> Block<'b, Codes<D>> {
        let gather = self.gather.map(|g| gather::<D::Left>(g, zeros));
        Block {
            lhs: Lhs { x: cast::<D::Left>(self.x.codes), ld: self.x.ld, taps: self.taps, depth: self.depth, gather },
            segments: self.packed.segments(),
            rows,
            lhs_row: 0,
            right: self.packed.codes().as_ptr(),
            panels,
            n: self.n,
            col: 0,
            write_back,
        }
    }

    #[inline(always)]
    fn write_back(&self) -> Dequantize<'_> {
        Dequantize {
            scale: self.x.scale,
            zero_point: self.x.zero_point,
            weight_scale: self.packed.scale(),
            sums: self.packed.sums(),
            columns: self.packed.columns(),
            write_back: self.write_back,
        }
    }
}

/// Writes a value per segment over all its channels.
struct Fill<'a> {
    segments: &'a [usize],
    values: &'a [f32],
    out: &'a mut [u8],
}

impl IntKernel for Fill<'_> {
    #[inline(always)]
    fn run<D: IntDot>(self, _: D) {
        let mut rest: &mut [D::Left] = cast_mut(self.out);
        for (&n, &value) in self.segments.iter().zip(self.values) {
            let (part, after) = rest.split_at_mut(n);
            part.fill(D::code(value as u8));
            rest = after;
        }
    }
}

/// Copies some rows; see [`Dot::copy_rows`](crate::gemm::Dot::copy_rows).
struct CopyRows<'a> {
    product: &'a IntProduct<'a>,
    zeros: &'a [u8],
    rows: Range<usize>,
    to: &'a mut [u8],
}

impl IntKernel for CopyRows<'_> {
    #[inline(always)]
    fn run<D: IntDot>(self, d: D) {
        let write_back = self.product.write_back();
        // SAFETY: the callers of `IntProduct::run` have checked all operands.
        unsafe { d.copy_rows(&self.product.block::<D>(self.zeros, self.rows, 0..0, &write_back), self.to) }
    }
}

/// Multiplies some rows by some panels.
struct Multiply<'a> {
    product: &'a IntProduct<'a>,
    zeros: &'a [u8],
    rows: Range<usize>,
    panels: Range<usize>,
    /// What [`CopyRows`] wrote.
    copied: &'a [u8],
}

impl IntKernel for Multiply<'_> {
    #[inline(always)]
    fn run<D: IntDot>(self, d: D) {
        assert_eq!(self.product.isa.dot_instruction().columns(), Codes::<D>::COLS, "columns of a panel");
        let write_back = self.product.write_back();
        let block = self.product.block::<D>(self.zeros, self.rows, self.panels, &write_back);
        // SAFETY: the callers of `IntProduct::run` have checked all operands; tasks have disjoint
        // rows or columns.
        unsafe { d.drive(Codes(d), &block, self.copied) }
    }
}

#[inline(always)]
fn gather<'a, C: Pod>(pixels: Pixels<'a>, zeros: &'a [u8]) -> Gather<'a, C> {
    Gather {
        table: pixels.table,
        out_pixels: pixels.out_pixels,
        in_pixels: pixels.in_pixels,
        zeros: cast(zeros),
        run: 1,
    }
}
