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
        weights: ProductWeights,
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    Linear {
        m: usize,
        k: usize,
        n: usize,
        weights: ProductWeights,
        tail: Tail,
        ldx: usize,
        ldy: usize,
    },
    MatMul(MatmulShape),
    Attention {
        shape: AttentionShape,
        inputs: AttentionInputs,
    },
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
    /// From f32 to codes, `stored` as such or as the f32 that these stand for.
    FakeQuant {
        rows: usize,
        bits: u8,
        segments: Vec<usize>,
        stored: bool,
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

/// The packed weights of a product, and with them the format in which it multiplies: operand 0 is
/// stored in it too.
#[derive(Clone, Debug)]
pub(crate) enum ProductWeights {
    F32(Arc<PackedMatrix>),
    /// The values `rounding` hold the scale and the zero point of operand 0.
    Codes {
        packed: Arc<PackedCodes>,
        rounding: [usize; 2],
    },
    Bf16(Arc<PackedBf16>),
}

impl ProductWeights {
    fn is_paired(&self) -> bool {
        match self {
            ProductWeights::F32(packed) => packed.is_paired(),
            ProductWeights::Codes { packed, .. } => packed.is_paired(),
            ProductWeights::Bf16(packed) => packed.is_paired(),
        }
    }

    fn format(&self) -> NumberFormat {
        match self {
            ProductWeights::F32(_) => NumberFormat::F32,
            ProductWeights::Codes { .. } => NumberFormat::Int8,
            ProductWeights::Bf16(_) => NumberFormat::Bf16,
        }
    }

    /// The value that holds the scale and the one that holds the zero point, of operand 0 where
    /// that is codes.
    fn rounding_of_codes(&self) -> &[[usize; 2]] {
        if let ProductWeights::Codes { rounding, .. } = self { std::slice::from_ref(rounding) } else { &[] }
    }
}

/// How the queries, keys and values of an attention are stored.
#[derive(Clone, Debug)]
pub(crate) enum AttentionInputs {
    F32,
    /// As codes; the values that hold their scales and zero points.
    Codes([[usize; 2]; 3]),
    Bf16,
}

/// The epilogue of a product: which of the operands `BIAS` to `SCALE` there are, and how they lie.
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

/// What a product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberFormat {
    F32,
    Bf16,
    /// Integers of at most 8 bits.
    Int8,
}

/// What the engine asks of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelTraits<'a> {
    /// What it multiplies; f32 of anything that is no product.
    pub format: NumberFormat,
    /// The values that hold scale and zero point of its first operands, as many as are stored as
    /// codes.
    pub rounding_of_codes: &'a [[usize; 2]],
    /// Whether its weights were packed: the constant itself is not read.
    pub has_packed_weights: bool,
    /// Whether it computes the GEGLU after a linear layer too.
    pub is_paired: bool,
    /// Whether it can round its result as it stores it, to codes or bf16 or to the f32 that these
    /// stand for.
    pub rounds_result: bool,
    /// Whether it reads or writes values that are stored as codes or bf16.
    pub takes_narrow: bool,
}

/// What holds for a kernel that reads and writes f32 or moves elements.
const PLAIN: KernelTraits = KernelTraits {
    format: NumberFormat::F32,
    rounding_of_codes: &[],
    has_packed_weights: false,
    is_paired: false,
    rounds_result: false,
    takes_narrow: false,
};

impl Kernel {
    /// The one table of what kernels can do.
    pub fn traits(&self) -> KernelTraits<'_> {
        match self {
            Kernel::Conv { weights, .. } | Kernel::Linear { weights, .. } => KernelTraits {
                format: weights.format(),
                rounding_of_codes: weights.rounding_of_codes(),
                has_packed_weights: true,
                is_paired: weights.is_paired(),
                rounds_result: true,
                takes_narrow: weights.format() != NumberFormat::F32,
            },
            Kernel::Attention { inputs, .. } => match inputs {
                AttentionInputs::F32 => PLAIN,
                AttentionInputs::Codes(rounding) => KernelTraits {
                    format: NumberFormat::Int8,
                    rounding_of_codes: rounding,
                    rounds_result: true,
                    takes_narrow: true,
                    ..PLAIN
                },
                AttentionInputs::Bf16 => {
                    KernelTraits { format: NumberFormat::Bf16, rounds_result: true, takes_narrow: true, ..PLAIN }
                }
            },
            Kernel::GroupNorm { .. } | Kernel::LayerNorm { .. } | Kernel::RmsNorm { .. } => {
                KernelTraits { rounds_result: true, ..PLAIN }
            }
            Kernel::FakeQuant { stored, .. } => KernelTraits { takes_narrow: *stored, ..PLAIN },
            Kernel::RoundBf16 { .. } => KernelTraits { takes_narrow: true, ..PLAIN },
            Kernel::Nothing
            | Kernel::MatMul(_)
            | Kernel::Softmax { .. }
            | Kernel::Unary(_)
            | Kernel::Binary { .. }
            | Kernel::Geglu { .. }
            | Kernel::Affine { .. }
            | Kernel::Copy { .. }
            | Kernel::Gather { .. }
            | Kernel::Cast { .. }
            | Kernel::Where { .. }
            | Kernel::Reference(_) => PLAIN,
        }
    }

    /// Values of f32 scratch needed on a pool of `threads`.
    pub fn scratch(&self, isa: Isa, threads: usize) -> usize {
        match self {
            Kernel::MatMul(shape) => matmul_scratch_len(isa, shape),
            Kernel::Attention { shape, inputs } => match inputs {
                AttentionInputs::F32 => attention_scratch_len(isa, shape, threads),
                AttentionInputs::Codes(_) => attention_codes_scratch_len(isa, shape, threads),
                AttentionInputs::Bf16 => attention_bf16_scratch_len(isa, shape, threads),
            },
            Kernel::Binary { rows, c, sides, .. } => {
                let expanded = sides.iter().filter(|s| matches!(s, Side::Expanded(_))).count();
                expanded * (rows * c).next_multiple_of(16)
            }
            Kernel::Nothing
            | Kernel::Conv { .. }
            | Kernel::Linear { .. }
            | Kernel::GroupNorm { .. }
            | Kernel::LayerNorm { .. }
            | Kernel::RmsNorm { .. }
            | Kernel::Softmax { .. }
            | Kernel::Unary(_)
            | Kernel::Geglu { .. }
            | Kernel::Affine { .. }
            | Kernel::FakeQuant { .. }
            | Kernel::RoundBf16 { .. }
            | Kernel::Copy { .. }
            | Kernel::Gather { .. }
            | Kernel::Cast { .. }
            | Kernel::Where { .. }
            | Kernel::Reference(_) => 0,
        }
    }
}
