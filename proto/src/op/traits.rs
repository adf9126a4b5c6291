//! What the compiler and every executor may rely on for an operator, beside its shape rule, its
//! cost and its meaning. The rows stand in `list.rs`, next to the operators.

/// The row of an operator in the table: see [`Op::traits`](super::Op::traits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpTraits {
    /// Which file has its shape rule, and which one its meaning.
    pub family: Family,
    /// Whether operands and results may be rows (runs along the last axis) with gaps between them.
    /// The compiler then lets a concat along the last axis find them in place, and every executor
    /// has to honour the distances.
    pub rows_may_have_gaps: bool,
    /// What quantization makes of it.
    pub quantization: Quantization,
    /// Whether an executor may round the result as it stores it, instead of running the
    /// `fake_quant` or `round_bf16` that reads nothing else. An executor whose kernels cannot says
    /// so itself.
    pub may_round_result: bool,
    /// Whether it does nothing but round its operand 0:
    /// [`Op::FakeQuant`](super::Op::FakeQuant) and [`Op::RoundBf16`](super::Op::RoundBf16).
    pub is_rounding: bool,
    /// Whether the rewrites of the compiler are meant to replace it, as a part of a larger operator
    /// (a softmax is one of an attention) or in another layout. Where it is left, the model runs
    /// more slowly than it could.
    pub is_decomposed: bool,
}

/// The operators' families: a file of shape rules here, and one of meanings in
/// `cqc_kernels::reference`, each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Element by element.
    Elementwise,
    /// Moves data.
    Movement,
    /// Reads indices.
    Index,
    /// Reduces axes.
    Reduce,
    /// Products, and pools.
    Linear,
    /// Normalisations, and maps per channel.
    Norm,
    /// Attention and what surrounds it.
    Attention,
    /// Quantization.
    Quant,
}

/// What quantization makes of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// A layer that multiplies operand 0 by constant weights, operand 1, whose outputs lie along
    /// `output_axis`. Both are quantized.
    Product {
        /// 0 or 1.
        output_axis: usize,
    },
    /// A layer whose operands 0 to 2 are quantized: queries, keys and values.
    Attention,
    /// A product that has no form with fewer bits.
    FloatProduct,
    /// No layer; channel `c` of the result (last axis) is computed from channel `c` of operand 0,
    /// up to statistics, so that the parts of a concat keep apart in it.
    KeepsChannels,
    /// No layer, and channels may mix.
    MixesChannels,
}

impl Quantization {
    /// How many of the first operands of a layer are rounded: 1 of a product, 3 of an attention, 0
    /// of anything else.
    pub fn rounded_operands(self) -> usize {
        match self {
            Quantization::Product { .. } => 1,
            Quantization::Attention => 3,
            Quantization::FloatProduct
            | Quantization::KeepsChannels
            | Quantization::MixesChannels => 0,
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

impl OpTraits {
    /// An operator that only moves, compares or computes elements.
    pub(super) const fn plain(family: Family) -> OpTraits {
        OpTraits {
            family,
            rows_may_have_gaps: false,
            quantization: Quantization::MixesChannels,
            may_round_result: false,
            is_rounding: false,
            is_decomposed: false,
        }
    }

    /// Rows may have gaps, beside that.
    pub(super) const fn with_gaps(self) -> OpTraits {
        OpTraits { rows_may_have_gaps: true, ..self }
    }

    /// Executors may round its result, beside that.
    pub(super) const fn rounded(self) -> OpTraits {
        OpTraits { may_round_result: true, ..self }
    }

    pub(super) const fn quantized_as(self, quantization: Quantization) -> OpTraits {
        OpTraits { quantization, ..self }
    }

    pub(super) const fn decomposed_if(self, is_decomposed: bool) -> OpTraits {
        OpTraits { is_decomposed, ..self }
    }
}
