//! Convolution over NHWC as a matrix product whose left rows are looked up, never copied.

use crate::bf16::{Bf16Product, PackedBf16};
use crate::epilogue::check_matrix;
use crate::gemm::{Gather, Groups, Lhs, PADDING, Product, WriteBack};
use crate::integer::{Activations, IntProduct, PackedCodes, Pixels};
use crate::output::Output;
use crate::pack::PackedLayout;
use crate::{Epilogue, Isa, PackedMatrix, Pool, depthwise, dot};

/// Shape of a convolution, NHWC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub n: usize,
    /// Input rows, before upsampling.
    pub h: usize,
    /// Input columns, before upsampling.
    pub w: usize,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Rows of the window.
    pub kh: usize,
    /// Columns of the window.
    pub kw: usize,
    /// Distance between neighbouring windows, down and right.
    pub stride: [usize; 2],
    /// Zero rows and columns added at top, left, bottom, right.
    pub pads: [usize; 4],
    /// Distance of the taps down and right.
    pub dilation: [usize; 2],
    /// Groups; divides `cin` and `cout`.
    pub groups: usize,
    /// 1, or 2 for a nearest-neighbour doubling of the input that is never stored.
    pub upsample: usize,
}

/// Why a [`ConvShape`] describes no convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A size, stride, dilation or group count is 0.
    #[error("{0} is 0")]
    Zero(&'static str),
    /// The groups do not divide the channels.
    #[error("{groups} groups do not divide {cin} and {cout} channels")]
    Groups {
        /// Groups.
        groups: usize,
        /// Input channels.
        cin: usize,
        /// Output channels.
        cout: usize,
    },
    /// The kernel is larger than the padded input.
    #[error("a kernel of {kernel} does not fit {padded} padded pixels")]
    Kernel {
        /// Pixels the kernel spans, dilation counted.
        kernel: usize,
        /// Pixels there are, padding counted.
        padded: usize,
    },
}

impl ConvShape {
    /// A convolution with a square kernel, stride 1, size kept ("same" padding for odd kernels).
    pub fn same(n: usize, h: usize, w: usize, cin: usize, cout: usize, kernel: usize) -> ConvShape {
        let (stride, pads) = ([1, 1], [kernel / 2; 4]);
        ConvShape { n, h, w, cin, cout, kh: kernel, kw: kernel, stride, pads, dilation: [1, 1], groups: 1, upsample: 1 }
    }

    /// Rows of an output image, from the padded input.
    pub fn out_h(&self) -> usize {
        let padded = self.h * self.upsample + self.pads[0] + self.pads[2];
        (padded - (self.kh - 1) * self.dilation[0] - 1) / self.stride[0] + 1
    }

    /// Columns of an output image, from the padded input.
    pub fn out_w(&self) -> usize {
        let padded = self.w * self.upsample + self.pads[1] + self.pads[3];
        (padded - (self.kw - 1) * self.dilation[1] - 1) / self.stride[1] + 1
    }

    /// Output pixels of all images.
    pub fn out_rows(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Rows of the weight matrix of one group: taps times input channels of a group.
    pub fn k(&self) -> usize {
        self.kh * self.kw * (self.cin / self.groups)
    }

    /// The input pixel (row · w + column) that tap `(ky, kx)` of output pixel `(oy, ox)` reads;
    /// none in the padding.
    pub fn source(&self, oy: usize, ox: usize, ky: usize, kx: usize) -> Option<usize> {
        let y = (oy * self.stride[0] + ky * self.dilation[0]).checked_sub(self.pads[0])? / self.upsample;
        let x = (ox * self.stride[1] + kx * self.dilation[1]).checked_sub(self.pads[1])? / self.upsample;
        (y < self.h && x < self.w).then_some(y * self.w + x)
    }

    /// Checks that the sizes describe a convolution; every other method relies on it.
    ///
    /// # Errors
    /// [`ShapeError`] names the size that is wrong.
    pub fn check(&self) -> Result<(), ShapeError> {
        let positive = [
            ("cin", self.cin),
            ("cout", self.cout),
            ("kh", self.kh),
            ("kw", self.kw),
            ("stride", self.stride[0].min(self.stride[1])),
            ("dilation", self.dilation[0].min(self.dilation[1])),
            ("groups", self.groups),
            ("upsample", self.upsample),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(ShapeError::Zero(name));
        }
        if !self.cin.is_multiple_of(self.groups) || !self.cout.is_multiple_of(self.groups) {
            return Err(ShapeError::Groups { groups: self.groups, cin: self.cin, cout: self.cout });
        }
        let fits = |size: usize, before: usize, after: usize, taps: usize, dilation: usize| {
            let (kernel, padded) = ((taps - 1) * dilation + 1, size * self.upsample + before + after);
            if kernel <= padded { Ok(()) } else { Err(ShapeError::Kernel { kernel, padded }) }
        };
        fits(self.h, self.pads[0], self.pads[2], self.kh, self.dilation[0])?;
        fits(self.w, self.pads[1], self.pads[3], self.kw, self.dilation[1])
    }
}

/// A planned convolution: a shape for an instruction set, and the table of input pixels that
/// follows from it. It can be shared by all layers of that shape.
#[derive(Clone, Debug)]
pub struct Conv {
    isa: Isa,
    shape: ConvShape,
    /// Input pixel of `[output pixel of one image, tap]`, or [`PADDING`]; empty where it would be
    /// 0, 1, 2, …
    table: Vec<u32>,
    /// What the padding reads.
    zeros: Vec<f32>,
}

impl Conv {
    /// Plans a convolution.
    ///
    /// # Errors
    /// When `shape` is no convolution.
    pub fn new(isa: Isa, shape: ConvShape) -> Result<Conv, ShapeError> {
        shape.check()?;
        let table = if is_plain(&shape) { Vec::new() } else { source_table(&shape) };
        Ok(Conv { isa, shape, table, zeros: vec![0.0; shape.cin] })
    }

    /// The shape it was planned for.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Packs weights `[cout, cin / groups, kh, kw]` for [`Conv::run`].
    pub fn pack(&self, w: &[f32]) -> PackedMatrix {
        PackedMatrix::from_oihw(self.isa, &self.shape, w)
    }

    /// y = epilogue(conv(x, w)): pixels of `x` lie `ldx ≥ cin` apart, those of `y` `ldy ≥ cout`.
    ///
    /// # Panics
    /// When `packed` was made for another shape or instruction set, or a slice is too short.
    pub fn run<'a>(
        &self,
        pool: &Pool,
        x: &[f32],
        ldx: usize,
        packed: &PackedMatrix,
        epilogue: &Epilogue,
        y: impl Into<Output<'a>>,
        ldy: usize,
    ) {
        let s = &self.shape;
        let (rows, n, isa, groups) = (s.out_rows(), s.cout / s.groups, self.isa, s.groups);
        packed.check(isa, groups, s.k(), n);
        check_matrix("x", x.len(), s.n * s.h * s.w, s.cin, ldx);
        let lhs = self.lhs(x, ldx, &self.zeros);
        let write_back = WriteBack::new(isa, *epilogue, rows, s.cout, false, y.into(), ldy);
        match packed.layout() {
            PackedLayout::Panels => {
                let right = packed.values();
                let groups = Groups { count: groups, left: lhs.depth, right: right.len() / groups, col: n };
                Product { isa, lhs, rows, right, n, groups, write_back }.run(pool);
            }
            PackedLayout::Dot { .. } => dot::run(isa, pool, &lhs, rows, n, packed.values(), &write_back),
            PackedLayout::Depthwise => depthwise::run(isa, pool, &lhs, rows, groups, packed.values(), &write_back),
        }
    }

    /// y = epilogue(conv(x, w)) over codes; padding counts as zero. `ldx` and `ldy` as for
    /// [`Conv::run`].
    ///
    /// # Panics
    /// When `packed` was made for another shape or instruction set, or a slice is too short.
    pub fn run_codes<'a>(
        &self,
        pool: &Pool,
        x: &Activations,
        packed: &PackedCodes,
        epilogue: &Epilogue,
        y: impl Into<Output<'a>>,
        ldy: usize,
    ) {
        let (s, isa) = (&self.shape, self.isa);
        let (rows, taps) = (s.out_rows(), s.kh * s.kw);
        assert_eq!(s.groups, 1, "codes are multiplied without groups");
        packed.check(isa, taps, s.cin, s.cout);
        x.check(isa, s.n * s.h * s.w, s.cin, packed.segments().len());
        let pixels = Pixels { table: &self.table, out_pixels: s.out_h() * s.out_w(), in_pixels: s.h * s.w };
        let gather = (!self.table.is_empty()).then_some(pixels);
        let write_back = WriteBack::new(isa, *epilogue, rows, s.cout, false, y.into(), ldy);
        IntProduct { isa, x, rows, n: s.cout, taps, depth: s.cin, gather, packed, write_back }.run(pool);
    }

    /// y = epilogue(conv(x, w)) over bf16, of which `x` has the bits. `ldx` and `ldy` as for
    /// [`Conv::run`].
    ///
    /// # Panics
    /// When `packed` was made for another shape or instruction set, a slice is too short, or sums
    /// are scaled twice.
    pub fn run_bf16<'a>(
        &self,
        pool: &Pool,
        x: &[u16],
        ldx: usize,
        packed: &PackedBf16,
        epilogue: &Epilogue,
        y: impl Into<Output<'a>>,
        ldy: usize,
    ) {
        let (s, isa) = (&self.shape, self.isa);
        let rows = s.out_rows();
        assert_eq!(s.groups, 1, "bf16 are multiplied without groups");
        packed.check(isa, s.kh * s.kw, s.cin, s.cout);
        check_matrix("x", x.len(), s.n * s.h * s.w, s.cin, ldx);
        // zeros of f32 are zeros of bf16
        let lhs = self.lhs(x, ldx, bytemuck::cast_slice(&self.zeros));
        let write_back = WriteBack::new(isa, packed.epilogue(epilogue), rows, s.cout, false, y.into(), ldy);
        Bf16Product { isa, lhs, rows, n: s.cout, packed, write_back }.run(pool);
    }

    fn lhs<'a, T>(&'a self, x: &'a [T], ldx: usize, zeros: &'a [T]) -> Lhs<'a, T> {
        let s = &self.shape;
        let run = if s.dilation[1] == 1 && s.upsample == 1 { s.kw } else { 1 };
        let table = &self.table;
        let gather = Gather { table, out_pixels: s.out_h() * s.out_w(), in_pixels: s.h * s.w, zeros, run };
        let gather = (!self.table.is_empty()).then_some(gather);
        Lhs { x, ld: ldx, taps: s.kh * s.kw, depth: s.cin / s.groups, gather }
    }
}

/// Whether output pixel i reads input pixel i and nothing else.
fn is_plain(s: &ConvShape) -> bool {
    s.kh * s.kw == 1 && s.stride == [1, 1] && s.pads == [0; 4] && s.upsample == 1
}

fn source_table(s: &ConvShape) -> Vec<u32> {
    let (oh, ow, taps) = (s.out_h(), s.out_w(), s.kh * s.kw);
    let entry = |i: usize| {
        let (pixel, tap) = (i / taps, i % taps);
        let source = s.source(pixel / ow, pixel % ow, tap / s.kw, tap % s.kw);
        source.map_or(PADDING, |source| u32::try_from(source).expect("an image has less than 2^32 pixels"))
    };
    (0..oh * ow * taps).map(entry).collect()
}
