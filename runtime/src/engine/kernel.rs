//! A step made ready: the kernel to call and all numbers it needs but addresses.

use cqc_kernels::attention::attention_scratch_len;
use cqc_kernels::matmul::matmul_scratch_len;
use cqc_kernels::{
    Act, AttentionShape, Binary, Conv, Isa, MatmulShape, PackedBf16, PackedCodes, PackedMatrix, Unary,
    attention_bf16_scratch_len, attention_codes_scratch_len,
};
use cqc_proto::{DType, Op};
use std::sync::Arc;

/// What runs a step. Operands are found by their position in the step; distances are in elements.
#[derive(Debug)]
pub(crate) enum Kernel {
    /// The result already lies where it belongs.
    Nothing,
    Conv {
        conv: Arc<Conv>,
        packed: Arc<PackedMatrix>,
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    Linear {
        m: usize,
        k: usize,
        n: usize,
        packed: Arc<PackedMatrix>,
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    /// The same over codes, whose scale and zero point are the values `rounding`, operands [`CODES`]`[0]` of the step made ready.
    ConvCodes {
        conv: Arc<Conv>,
        packed: Arc<PackedCodes>,
        rounding: [usize; 2],
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    LinearCodes {
        m: usize,
        k: usize,
        n: usize,
        packed: Arc<PackedCodes>,
        rounding: [usize; 2],
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    /// The same over bf16.
    ConvBf16 {
        conv: Arc<Conv>,
        packed: Arc<PackedBf16>,
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    LinearBf16 {
        m: usize,
        k: usize,
        n: usize,
        packed: Arc<PackedBf16>,
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    MatMul(MatmulShape),
    Attention(AttentionShape),
    /// The same where queries, keys and values are codes.
    AttentionCodes {
        shape: AttentionShape,
        rounding: [[usize; 2]; 3],
    },
    /// The same where they are bf16.
    AttentionBf16(AttentionShape),
    GroupNorm {
        n: usize,
        hw: usize,
        c: usize,
        groups: usize,
        eps: f32,
        act: Act,
        ldx: usize,
        ldy: usize,
    },
    LayerNorm {
        rows: usize,
        c: usize,
        eps: f32,
        modulate: Option<[PerImage; 2]>,
        ldx: usize,
        ldy: usize,
    },
    RmsNorm {
        rows: usize,
        c: usize,
        eps: f32,
        ldx: usize,
        ldy: usize,
    },
    Softmax {
        rows: usize,
        cols: usize,
    },
    Unary(Unary),
    Binary {
        op: Binary,
        rows: usize,
        c: usize,
        sides: [Side; 2],
        ldy: usize,
    },
    Geglu {
        rows: usize,
        c: usize,
        ldx: usize,
        ldy: usize,
    },
    Affine {
        rows: usize,
        c: usize,
        ldx: usize,
        /// Distance between rows of the residual.
        residual: Option<usize>,
        /// The same of what was cached before.
        previous: Option<usize>,
        ldy: usize,
    },
    FakeQuant {
        rows: usize,
        bits: u8,
        segments: Vec<usize>,
        ldx: usize,
        ldy: usize,
    },
    /// From f32 to codes.
    Quantize {
        rows: usize,
        bits: u8,
        segments: Vec<usize>,
        ldx: usize,
        ldy: usize,
    },
    /// From f32 to bf16, `stored` as such or as f32.
    RoundBf16 {
        rows: usize,
        c: usize,
        stored: bool,
        ldx: usize,
        ldy: usize,
    },
    /// Elements of `size` bytes; `fill`: everything is first set to this input, or to zero.
    Copy {
        size: usize,
        fill: Option<Fill>,
        moves: Vec<Move>,
    },
    Gather {
        outer: usize,
        size: usize,
        inner_bytes: usize,
        indices: DType,
    },
    Cast {
        from: DType,
        to: DType,
    },
    Where {
        size: usize,
        shape: Vec<usize>,
        strides: [Vec<usize>; 3],
    },
    /// The definition, through tensors on the heap.
    Reference(Box<Op>),
}

/// The epilogue of a product; its operands are inputs 2 to 6 (bias, row, gate, residual, scale).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    pub act: Act,
    pub row: Option<PerImage>,
    pub gate: Option<PerImage>,
    /// Distance between rows of the residual.
    pub residual: Option<usize>,
}

/// One row per image, `stride` apart (0 = the same for all), for `rows` rows of the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerImage {
    pub stride: usize,
    pub rows: usize,
}

/// How an operand of a binary operation is seen from the result.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    Full(usize),
    Scalar,
    Row,
    Column,
    Image(PerImage),
    /// First copied to scratch, broadcast.
    Expanded(Move),
}

/// What surrounds copied elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fill {
    Zero,
    Input(usize),
}

/// A strided copy of one input into the result.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub input: usize,
    pub shape: Vec<usize>,
    pub x_offset: usize,
    pub x_strides: Vec<isize>,
    pub y_offset: usize,
    pub y_strides: Vec<usize>,
}

impl Move {
    /// Leaves out axes of size 1 and joins neighbours that are contiguous on both sides.
    pub fn merged(self) -> Move {
        let mut axes: Vec<(usize, isize, usize)> = Vec::with_capacity(self.shape.len());
        for ((&size, &x), &y) in self.shape.iter().zip(&self.x_strides).zip(&self.y_strides) {
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(last) if last.1 == x * size as isize && last.2 == y * size => *last = (last.0 * size, x, y),
                _ => axes.push((size, x, y)),
            }
        }
        Move {
            shape: axes.iter().map(|a| a.0).collect(),
            x_strides: axes.iter().map(|a| a.1).collect(),
            y_strides: axes.iter().map(|a| a.2).collect(),
            ..self
        }
    }
}

/// Where a product over codes finds the scale and the zero point of operands 0, 1 and 2: behind the operands it has anyway.
pub(crate) const CODES: [[usize; 2]; 3] = [[7, 8], [11, 12], [13, 14]];

/// Where a step that stores its result as codes finds their scale and zero point.
pub(crate) const RESULT_CODES: [usize; 2] = [9, 10];

impl Kernel {
    /// The values [`CODES`] of a product over codes: of its first operands, as many as are codes.
    pub fn rounding_of_codes(&self) -> &[[usize; 2]] {
        match self {
            Kernel::ConvCodes { rounding, .. } | Kernel::LinearCodes { rounding, .. } => std::slice::from_ref(rounding),
            Kernel::AttentionCodes { rounding, .. } => rounding,
            _ => &[],
        }
    }

    /// Whether it multiplies bf16.
    pub fn multiplies_bf16(&self) -> bool {
        matches!(self, Kernel::ConvBf16 { .. } | Kernel::LinearBf16 { .. } | Kernel::AttentionBf16(_))
    }

    /// Whether it computes the GEGLU behind a linear layer too.
    pub fn is_paired(&self) -> bool {
        match self {
            Kernel::Linear { packed, .. } => packed.is_paired(),
            Kernel::LinearCodes { packed, .. } => packed.is_paired(),
            Kernel::LinearBf16 { packed, .. } => packed.is_paired(),
            _ => false,
        }
    }

    /// Whether the weights, operand 1 of the step, were packed: the constant itself is not read.
    pub fn has_packed(&self) -> bool {
        matches!(
            self,
            Kernel::Conv { .. }
                | Kernel::ConvCodes { .. }
                | Kernel::ConvBf16 { .. }
                | Kernel::Linear { .. }
                | Kernel::LinearCodes { .. }
                | Kernel::LinearBf16 { .. }
        )
    }

    /// Values of f32 scratch needed on a pool of `threads`.
    pub fn scratch(&self, isa: Isa, threads: usize) -> usize {
        match self {
            Kernel::MatMul(shape) => matmul_scratch_len(isa, shape),
            Kernel::Attention(shape) => attention_scratch_len(isa, shape, threads),
            Kernel::AttentionCodes { shape, .. } => attention_codes_scratch_len(isa, shape, threads),
            Kernel::AttentionBf16(shape) => attention_bf16_scratch_len(isa, shape, threads),
            Kernel::Binary { rows, c, sides, .. } => {
                let expanded = sides.iter().filter(|s| matches!(s, Side::Expanded(_))).count();
                expanded * (rows * c).next_multiple_of(16)
            }
            _ => 0,
        }
    }
}
