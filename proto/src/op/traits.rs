//! What the compiler and every executor may rely on for an operator, beside its shape rule, its cost and its meaning: one
//! exhaustive table, so that a new operator cannot be forgotten.

use super::{ConvLayout, Op, ReduceKind, UnaryKind};

/// The row of an operator in the table: see [`Op::traits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpTraits {
    /// Whether operands and results may be rows (runs along the last axis) with gaps between them. The compiler then lets a
    /// concat along the last axis find them in place, and every executor has to honour the distances.
    pub rows_may_have_gaps: bool,
    /// What quantization makes of it.
    pub quantization: Quantization,
    /// Whether an executor may round the result as it stores it, instead of running the `fake_quant` or `round_bf16` that
    /// reads nothing else. An executor whose kernels cannot says so itself.
    pub may_round_result: bool,
    /// Whether it does nothing but round its operand 0: [`Op::FakeQuant`] and [`Op::RoundBf16`].
    pub is_rounding: bool,
    /// Whether the rewrites of the compiler are meant to replace it, as a part of a larger operator (a softmax is one of an
    /// attention) or in another layout. Where it is left, the model runs more slowly than it could.
    pub is_decomposed: bool,
}

/// What quantization makes of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// A layer that multiplies operand 0 by constant weights, operand 1, whose outputs lie along `output_axis`. Both are
    /// quantized.
    Product {
        /// 0 or 1.
        output_axis: usize,
    },
    /// A layer whose operands 0 to 2 are quantized: queries, keys and values.
    Attention,
    /// A product that has no form with fewer bits.
    FloatProduct,
    /// No layer; channel `c` of the result (last axis) is computed from channel `c` of operand 0, up to statistics, so that
    /// the parts of a concat keep apart in it.
    KeepsChannels,
    /// No layer, and channels may mix.
    MixesChannels,
}

impl Quantization {
    /// How many of the first operands of a layer are rounded: 1 of a product, 3 of an attention, 0 of anything else.
    pub fn rounded_operands(self) -> usize {
        match self {
            Quantization::Product { .. } => 1,
            Quantization::Attention => 3,
            Quantization::FloatProduct | Quantization::KeepsChannels | Quantization::MixesChannels => 0,
        }
    }

    /// Whether it is a [`Quantization::Product`].
    pub fn is_product(self) -> bool {
        self.output_axis().is_some()
    }

    /// The axis of the outputs in the weights of a [`Quantization::Product`].
    pub fn output_axis(self) -> Option<usize> {
        if let Quantization::Product { output_axis } = self { Some(output_axis) } else { None }
    }
}

/// What holds for an operator that only moves, compares or computes elements.
const PLAIN: OpTraits = OpTraits {
    rows_may_have_gaps: false,
    quantization: Quantization::MixesChannels,
    may_round_result: false,
    is_rounding: false,
    is_decomposed: false,
};

/// A product or a normalisation that kernels exist for: rows with gaps, results that may be rounded.
const FAST: OpTraits = OpTraits { rows_may_have_gaps: true, may_round_result: true, ..PLAIN };

impl Op {
    /// What the compiler and every executor may rely on.
    pub fn traits(&self) -> OpTraits {
        match self {
            Op::Conv { layout, .. } => OpTraits {
                quantization: Quantization::Product { output_axis: 0 },
                is_decomposed: *layout == ConvLayout::ChannelsFirst,
                ..FAST
            },
            Op::Linear { .. } => OpTraits { quantization: Quantization::Product { output_axis: 1 }, ..FAST },
            Op::Attention { .. } => OpTraits { quantization: Quantization::Attention, may_round_result: true, ..PLAIN },
            Op::MatMul => OpTraits {
                quantization: Quantization::FloatProduct,
                may_round_result: true,
                is_decomposed: true,
                ..PLAIN
            },
            Op::ConvTranspose { .. } | Op::Einsum { .. } => {
                OpTraits { quantization: Quantization::FloatProduct, ..PLAIN }
            }
            Op::GroupNorm { layout, .. } => OpTraits {
                quantization: Quantization::KeepsChannels,
                is_decomposed: *layout == ConvLayout::ChannelsFirst,
                ..FAST
            },
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => OpTraits { quantization: Quantization::KeepsChannels, ..FAST },
            Op::Geglu { .. } => FAST,
            Op::FakeQuant { .. } | Op::RoundBf16 => OpTraits { rows_may_have_gaps: true, is_rounding: true, ..PLAIN },
            Op::Binary { .. } | Op::Affine | Op::Concat { .. } => OpTraits { rows_may_have_gaps: true, ..PLAIN },
            Op::Unary { kind } => OpTraits {
                quantization: Quantization::KeepsChannels,
                is_decomposed: matches!(kind, UnaryKind::Erf | UnaryKind::Sigmoid | UnaryKind::Sin | UnaryKind::Cos),
                ..PLAIN
            },
            Op::Reduce { kind, .. } => OpTraits { is_decomposed: *kind == ReduceKind::Mean, ..PLAIN },
            Op::Softmax { .. } => OpTraits { is_decomposed: true, ..PLAIN },
            Op::Where
            | Op::Cast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Expand { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Tile { .. }
            | Op::Resize { .. }
            | Op::Trilu { .. }
            | Op::Gather { .. }
            | Op::GatherElements { .. }
            | Op::GatherNd { .. }
            | Op::ScatterNd { .. }
            | Op::ScatterElements { .. }
            | Op::OneHot { .. }
            | Op::TopK { .. }
            | Op::CumSum { .. }
            | Op::ArgReduce { .. }
            | Op::LogSoftmax { .. }
            | Op::Pool { .. }
            | Op::TimestepEmbedding { .. }
            | Op::Quantize { .. }
            | Op::Dequantize { .. }
            | Op::DequantizeWeight { .. } => PLAIN,
        }
    }
}
