//! Prepared steps: the kernel of a step and all its numbers except addresses.

use cqc_kernels::attention::attention_scratch_len;
use cqc_kernels::matmul::matmul_scratch_len;
use cqc_kernels::{
    Act, AttentionShape, Binary, Conv, Isa, MatmulShape, PackedBf16, PackedCodes, PackedMatrix,
    Unary, attention_bf16_scratch_len, attention_codes_scratch_len,
};
use cqc_proto::{DType, Op};
use std::sync::Arc;

/// The kernel that runs a step. Operands are found by their position in the step. Distances (`ld…`)
/// are in elements.
#[derive(Debug)]
pub(crate) enum Kernel {
    /// There is nothing to do, because the result is already in its place.
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
        /// Distance between the rows of the residual.
        residual: Option<usize>,
        /// Distance between the rows of the previously cached value.
        previous: Option<usize>,
        ldy: usize,
    },
    /// Rounds f32 to codes, and stores the codes (`stored`) or the f32 values of the codes.
    FakeQuant {
        rows: usize,
        bits: u8,
        segments: Vec<usize>,
        stored: bool,
        ldx: usize,
        ldy: usize,
    },
    /// Rounds f32 to bf16, and stores it as bf16 (`stored`) or as f32.
    RoundBf16 {
        rows: usize,
        c: usize,
        stored: bool,
        ldx: usize,
        ldy: usize,
    },
    /// Copies elements of `size` bytes. With `fill`, the whole result is first set to zero or to an
    /// input.
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
    /// Runs the definition of the operator on tensors on the heap.
    Reference(Box<Op>),
}

/// The packed weights of a product. They determine the format in which it multiplies, and in which
/// operand 0 is stored.
#[derive(Clone, Debug)]
pub(crate) enum ProductWeights {
    F32(Arc<PackedMatrix>),
    /// Codes. The values `rounding` hold the scale and the zero point of operand 0.
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

    /// The values with the scale and the zero point of operand 0, if that is stored as codes.
    fn rounding_of_codes(&self) -> &[[usize; 2]] {
        if let ProductWeights::Codes { rounding, .. } = self {
            std::slice::from_ref(rounding)
        } else {
            &[]
        }
    }
}

/// The format of the queries, keys and values of an attention.
#[derive(Clone, Debug)]
pub(crate) enum AttentionInputs {
    F32,
    /// Codes, with the values that hold their scales and zero points.
    Codes([[usize; 2]; 3]),
    Bf16,
}

/// The epilogue of a product: which of the operands `BIAS` to `SCALE` exist, and their layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    pub act: Act,
    pub row: Option<PerImage>,
    pub gate: Option<PerImage>,
    /// Distance between the rows of the residual.
    pub residual: Option<usize>,
}

/// One row per image for `rows` rows of the result. The rows are `stride` apart, or 0 if all images
/// share one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerImage {
    pub stride: usize,
    pub rows: usize,
}

/// The way in which an operand of a binary operation is broadcast to the result.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    Full(usize),
    Scalar,
    Row,
    Column,
    Image(PerImage),
    /// The operand is first broadcast into scratch memory by a copy.
    Expanded(Move),
}

/// The value of elements that no copy writes.
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
    /// Removes axes of size 1 and joins neighbouring axes that are contiguous on both sides.
    pub fn merged(self) -> Move {
        let mut axes: Vec<(usize, isize, usize)> = Vec::with_capacity(self.shape.len());
        for ((&size, &x), &y) in self.shape.iter().zip(&self.x_strides).zip(&self.y_strides) {
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(last) if last.1 == x * size as isize && last.2 == y * size => {
                    *last = (last.0 * size, x, y)
                }
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

/// The number format in which a product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberFormat {
    F32,
    Bf16,
    /// Integers of at most 8 bits.
    Int8,
}

/// The properties of a kernel that the engine needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelTraits<'a> {
    /// The format in which it multiplies; f32 for anything that is not a product.
    pub format: NumberFormat,
    /// The values with the scale and the zero point of its first operands, one entry for each that
    /// is stored as codes.
    pub rounding_of_codes: &'a [[usize; 2]],
    /// Whether its weights were packed, so that the constant itself is not read.
    pub has_packed_weights: bool,
    /// Whether it also computes the GEGLU after a linear layer.
    pub is_paired: bool,
    /// Whether it can round its result while it stores it, to codes or bf16, or to the f32 values
    /// of these.
    pub rounds_result: bool,
    /// Whether it reads or writes values that are stored as codes or bf16.
    pub takes_narrow: bool,
}

/// The properties of a kernel that reads and writes f32, or moves elements.
const PLAIN: KernelTraits = KernelTraits {
    format: NumberFormat::F32,
    rounding_of_codes: &[],
    has_packed_weights: false,
    is_paired: false,
    rounds_result: false,
    takes_narrow: false,
};

impl Kernel {
    /// The only table of the properties of kernels.
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
                AttentionInputs::Bf16 => KernelTraits {
                    format: NumberFormat::Bf16,
                    rounds_result: true,
                    takes_narrow: true,
                    ..PLAIN
                },
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

    /// The number of f32 values of scratch memory that it needs with `threads` threads.
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
