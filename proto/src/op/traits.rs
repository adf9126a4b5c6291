//! The properties of an operator on which the compiler and every executor may rely, in addition to
//! its shape rule, its cost and its meaning. The table is in `list.rs`, next to the operators.

/// The properties of an operator: see [`Op::traits`](super::Op::traits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpTraits {
    /// The family, which determines the files with its shape rule and its meaning.
    pub family: Family,
    /// Whether operands and results may be rows (runs along the last axis) with gaps between them.
    /// The compiler then lets steps write their results directly into a concatenation along the
    /// last axis, and every executor has to respect the distances between rows.
    pub rows_may_have_gaps: bool,
    /// The treatment of the operator by quantization.
    pub quantization: Quantization,
    /// Whether an executor may round the result while it stores it, instead of running the
    /// `fake_quant` or `round_bf16` that is its only reader. An executor whose kernels cannot do
    /// this excludes the operator itself.
    pub may_round_result: bool,
    /// Whether the operator only rounds its operand 0, as [`Op::FakeQuant`](super::Op::FakeQuant)
    /// and [`Op::RoundBf16`](super::Op::RoundBf16) do.
    pub is_rounding: bool,
    /// Whether the compiler's rewrites are meant to replace the operator, as a part of a larger one
    /// (such as a softmax in an attention) or by another layout. A model in which it is left runs
    /// more slowly than it could.
    pub is_decomposed: bool,
}

/// The families of operators. Each has one file of shape rules here, and one of definitions in
/// `cqc_kernels::reference`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Computes element by element.
    Elementwise,
    /// Moves elements without computing on them.
    Movement,
    /// Reads or writes elements by index operands.
    Index,
    /// Reduces axes, or computes along one.
    Reduce,
    /// Products and pooling.
    Linear,
    /// Normalisations and maps per channel.
    Norm,
    /// Attention and the other composite operators of denoisers.
    Attention,
    /// Converts between values and codes, or rounds values.
    Quant,
}

/// The treatment of an operator by quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// A layer that multiplies operand 0 by constant weights, operand 1, with outputs along
    /// `output_axis`. Both operands are quantized.
    Product {
        /// The axis of outputs in the weights, 0 or 1.
        output_axis: usize,
    },
    /// A layer whose operands 0 to 2 are quantized: queries, keys and values.
    Attention,
    /// A product that has no form with fewer bits.
    FloatProduct,
    /// Not a layer. Channel `c` of the result (last axis) is computed from channel `c` of operand
    /// 0, except for statistics, so that the parts of a concatenation stay separate.
    KeepsChannels,
    /// Not a layer, and channels may mix.
    MixesChannels,
}

impl Quantization {
    /// The number of leading operands that are rounded: 1 for a product, 3 for attention, and 0 for
    /// the others.
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
    /// The properties of an operator that only moves, compares or computes elements.
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

    /// Allows gaps between rows.
    pub(super) const fn with_gaps(self) -> OpTraits {
        OpTraits { rows_may_have_gaps: true, ..self }
    }

    /// Allows executors to round the result.
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
