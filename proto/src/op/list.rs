//! The only list of operators: their attributes with documentation, and one row of traits for each.

use super::*;

/// One operator with its attributes. The text form is the variant's name in snake case, followed by
/// the attributes that differ from their defaults. `Unary`, `Binary` and `Reduce` are printed as
/// their kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    // ---- element by element (elementwise.rs)
    /// `y = f(x)` for every element.
    Unary {
        /// The function of one element.
        kind: UnaryKind,
    },
    /// `y = f(a, b)` with numpy broadcasting.
    Binary {
        /// The function of two elements.
        kind: BinaryKind,
    },
    /// `y = condition ? a : b`, with numpy broadcasting. The inputs are (condition: bool, a, b).
    Where,
    /// Converts the element type (ONNX `Cast`). Floats become integers by truncation and
    /// saturation, NaN becomes 0, integers wrap around, and every number other than 0 is true.
    Cast {
        /// Type of the result.
        to: DType,
    },

    // ---- moving data (movement.rs)
    /// The same elements in the same order with another shape.
    Reshape {
        /// Shape of the result, without the special values -1 and 0 of ONNX.
        shape: Shape,
    },
    /// Permutes the axes: axis `k` of the result is axis `perm[k]` of the input.
    Transpose {
        /// A permutation of the axes.
        perm: Vec<usize>,
    },
    /// Broadcasts to a shape by numpy's rules: every input size must be equal or 1, and missing
    /// leading axes are added.
    Expand {
        /// Shape of the result.
        shape: Shape,
    },
    /// Joins one or more inputs along an axis.
    Concat {
        /// The axis along which the inputs are joined.
        axis: usize,
    },
    /// Takes the elements `start`, `start + step`, … below `end` (above it for a negative step)
    /// along each listed axis. The bounds are already clamped to the input.
    Slice {
        /// The sliced axes, in ascending order, each once.
        axes: Vec<usize>,
        /// The first index per axis.
        starts: Vec<Dim>,
        /// One past the last index per axis. It may be -1 for a negative step.
        ends: Vec<Dim>,
        /// The step per axis, not 0.
        steps: Vec<i64>,
    },
    /// Adds elements around the input; negative counts remove elements. The optional second input
    /// is the fill value, a scalar that is 0 if absent. In the other modes new elements repeat the
    /// input as it was before any removal, and `reflect` and `wrap` continue periodically.
    Pad {
        /// The number of elements before each axis.
        before: Vec<i64>,
        /// The number of elements after each axis.
        after: Vec<i64>,
        /// The values of the new elements.
        #[serde(default)]
        mode: PadMode,
    },
    /// Repeats the input `repeats[k]` times along axis `k`.
    Tile {
        /// The repetitions per axis.
        repeats: Vec<i64>,
    },
    /// Interpolates to `sizes` (ONNX `Resize` and `Upsample` without crop regions).
    Resize {
        /// Shape of the result.
        sizes: Shape,
        /// The scale per axis if the model gives scales. An empty list stands for the quotients of
        /// output size and input size.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        scales: Vec<f32>,
        /// The interpolation between elements of the input.
        mode: ResizeMode,
        /// The map of output positions to input positions.
        coordinates: CoordinateMode,
        /// The rounding of positions in the mode `nearest`.
        #[serde(default)]
        nearest: NearestMode,
        /// The coefficient of the mode `cubic`.
        #[serde(default = "cubic_a")]
        cubic_a: f32,
        /// Whether weights outside of the input are dropped and the rest is renormalised.
        #[serde(default, skip_serializing_if = "is_default")]
        exclude_outside: bool,
        /// Whether a low-pass filter is applied when the input shrinks (modes `linear` and
        /// `cubic`).
        #[serde(default, skip_serializing_if = "is_default")]
        antialias: bool,
    },
    /// Keeps the upper (`upper`) or the lower triangle of the last two axes and sets the rest to
    /// zero.
    Trilu {
        /// Whether elements with `column >= row + k` are kept, instead of `column <= row + k`.
        upper: bool,
        /// The diagonal: 0 is the main diagonal, and positive numbers are above it.
        #[serde(default, skip_serializing_if = "is_default")]
        k: i64,
    },

    // ---- indices (index.rs)
    /// `y = data[..., indices, ...]` along an axis (ONNX `Gather`). The inputs are (data, indices:
    /// integer). Negative indices count from the end.
    Gather {
        /// The axis of `data`.
        axis: usize,
    },
    /// `y[i][j][k] = data[indices[i][j][k]][j][k]` for axis 0 (ONNX `GatherElements`). The inputs
    /// are (data, indices).
    GatherElements {
        /// The axis of `data`.
        axis: usize,
    },
    /// Gathers slices of `data` (ONNX `GatherND`). The inputs are (data, indices). The last axis of
    /// `indices` indexes into `data` after the batch axes.
    GatherNd {
        /// The number of leading axes that both inputs share.
        batch_dims: usize,
    },
    /// A copy of `data` with `updates` written at `indices` (ONNX `ScatterND`). The inputs are
    /// (data, indices, updates).
    ScatterNd {
        /// The combination of an update with the present element.
        #[serde(default)]
        reduction: ScatterReduction,
    },
    /// A copy of `data` with `updates` written at `indices` along an axis (ONNX `ScatterElements`).
    /// The inputs are (data, indices, updates).
    ScatterElements {
        /// The axis of `data`.
        axis: usize,
        /// The combination of an update with the present element.
        #[serde(default)]
        reduction: ScatterReduction,
    },
    /// One-hot rows (ONNX `OneHot`). The inputs are (indices, values: \[2\] = off, on). Negative
    /// indices count from the end, and those outside of the range give a row of `off`.
    OneHot {
        /// The position of the new axis in the result.
        axis: usize,
        /// The size of the new axis.
        depth: i64,
    },
    /// The `k` largest or smallest elements along an axis, in that order (ONNX `TopK`). The outputs
    /// are (values, indices: i64). Of equal elements the first comes first, and NaN is larger than
    /// any number.
    TopK {
        /// The axis along which elements are selected.
        axis: usize,
        /// The number of elements.
        k: i64,
        /// Whether the largest elements are taken, instead of the smallest.
        largest: bool,
    },
    /// The running sum along an axis (ONNX `CumSum`).
    CumSum {
        /// The axis along which elements are summed.
        axis: usize,
        /// Whether each sum leaves out the element itself.
        #[serde(default, skip_serializing_if = "is_default")]
        exclusive: bool,
        /// Whether the sum runs from the end.
        #[serde(default, skip_serializing_if = "is_default")]
        reverse: bool,
    },

    // ---- reductions (reduce.rs)
    /// Reduces the listed axes.
    Reduce {
        /// The function that reduces the elements.
        kind: ReduceKind,
        /// The reduced axes, in ascending order, each once. An empty list reduces nothing, and only
        /// the map of `kind` is applied.
        axes: Vec<usize>,
        /// Whether the reduced axes are kept with size 1.
        keep: bool,
    },
    /// The index of the largest or smallest element along an axis, in i64. If there is a NaN, it is
    /// the index of the first one (with `last`: of the last one).
    ArgReduce {
        /// Whether the largest element is searched, instead of the smallest.
        largest: bool,
        /// The axis along which the element is searched.
        axis: usize,
        /// Whether the axis is kept with size 1.
        keep: bool,
        /// Whether the last of equal elements is taken, instead of the first.
        #[serde(default, skip_serializing_if = "is_default")]
        last: bool,
    },
    /// `exp(x - max) / Σ exp(x - max)` along an axis.
    Softmax {
        /// The axis along which the sum runs.
        axis: usize,
    },
    /// The logarithm of [`Op::Softmax`].
    LogSoftmax {
        /// The axis along which the sum runs.
        axis: usize,
    },

    // ---- products (linear.rs)
    /// The matrix product of numpy's `matmul`. The inputs are (a, b), and batch axes broadcast.
    #[serde(rename = "matmul")]
    MatMul,
    /// A linear layer: `y = residual + gate · act(scale · (x · w) + bias + row)`. The inputs are
    /// (x: \[..., K\], w: \[K, N\], bias?: \[N\], row?, gate?, residual?, scale?: \[N\]).
    ///
    /// `row` and `gate` have the rank of the result. Their last size is N, their first is the batch
    /// or 1, and the others are 1. `residual` has the type of the result.
    Linear {
        /// The activation after the sum.
        #[serde(default, skip_serializing_if = "is_default")]
        act: Act,
    },
    /// A convolution over one to three spatial axes. The inputs are (x, w: OIHW, bias?: \[O\],
    /// row?, gate?, residual?, scale?: \[O\]). The epilogue is that of [`Op::Linear`], per channel.
    Conv {
        /// The stride per spatial axis.
        strides: Vec<usize>,
        /// The zero padding: at the beginning of all spatial axes, then at the end of all.
        pads: Vec<usize>,
        /// The dilation per spatial axis.
        dilations: Vec<usize>,
        /// The number of channel groups.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        groups: usize,
        /// The position of the channel axis in x, row, gate, residual and the result.
        #[serde(default, skip_serializing_if = "is_default")]
        layout: ConvLayout,
        /// If 2, the input is first enlarged by a factor of 2 along each spatial axis, by
        /// repetition.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        upsample: usize,
        /// The activation after the sum.
        #[serde(default, skip_serializing_if = "is_default")]
        act: Act,
    },
    /// A transposed convolution with channels first. The inputs are (x, w: \[I, O/groups, k...\],
    /// bias?: \[O\]).
    ConvTranspose {
        /// The stride per spatial axis.
        strides: Vec<usize>,
        /// The elements that are removed from the result: at the beginning of all spatial axes,
        /// then at the end of all.
        pads: Vec<usize>,
        /// The dilation per spatial axis.
        dilations: Vec<usize>,
        /// The elements that are added at the end of each spatial axis of the result.
        output_padding: Vec<usize>,
        /// The number of channel groups.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        groups: usize,
    },
    /// The maximum or the average over windows. A window that contains no element of the input and
    /// no counted padding gives -inf or the smallest integer (maximum), or NaN (average).
    Pool {
        /// The function of a window.
        kind: PoolKind,
        /// The size of a window per spatial axis.
        kernel: Vec<usize>,
        /// The stride per spatial axis.
        strides: Vec<usize>,
        /// The padding: at the beginning of all spatial axes, then at the end of all.
        pads: Vec<usize>,
        /// The dilation per spatial axis.
        dilations: Vec<usize>,
        /// Whether the size of the result is rounded up.
        #[serde(default, skip_serializing_if = "is_default")]
        ceil: bool,
        /// Whether the average counts padding.
        #[serde(default, skip_serializing_if = "is_default")]
        count_pad: bool,
        /// The position of the channel axis.
        #[serde(default, skip_serializing_if = "is_default")]
        layout: ConvLayout,
    },
    /// Einstein summation over any number of inputs, for an ONNX `Einsum` that is not simply a
    /// transpose, a reduction or a matmul.
    Einsum {
        /// The letters of each input, `->`, and the letters of the result, each once, without
        /// ellipsis and spaces. Sizes of 1 broadcast.
        equation: String,
    },

    // ---- normalisation (norm.rs)
    /// `act((x - mean) / sqrt(var + eps) · gamma + beta)` per sample and group of C/groups
    /// channels. The inputs are (x, gamma?: \[C\], beta?: \[C\]).
    GroupNorm {
        /// The number of groups, which divides C.
        groups: usize,
        /// A number that is added to the variance.
        eps: f32,
        /// The position of the channel axis.
        #[serde(default, skip_serializing_if = "is_default")]
        layout: ConvLayout,
        /// The activation of the result.
        #[serde(default, skip_serializing_if = "is_default")]
        act: Act,
    },
    /// `n · (1 + scale) + shift` with `n = (x - mean) / sqrt(var + eps) · gamma + beta` over the
    /// last axis of size C. The inputs are (x, gamma?: \[C\], beta?: \[C\], scale?, shift?).
    /// `scale` and `shift` have the form of `row` in [`Op::Linear`] (the modulation of adaLN).
    LayerNorm {
        /// A number that is added to the variance.
        eps: f32,
    },
    /// `x / sqrt(mean(x²) + eps) · gamma` over the last axis. The inputs are (x, gamma?: \[C\]).
    RmsNorm {
        /// A number that is added to the mean square.
        eps: f32,
    },

    // ---- attention (attention.rs)
    /// Scaled dot-product attention. The inputs are (q: [B, Lq, heads·D], k: [B, Lk, kv_heads·D],
    /// v: [B, Lk, kv_heads·Dv], mask?), the result is [B, Lq, heads·Dv]. Head h reads key head
    /// `h / (heads / kv_heads)`. A float `mask` is added to the scaled scores; a bool `mask`
    /// selects the keys that are kept. Its shape broadcasts to [B, heads, Lq, Lk]. A query without
    /// keys gives zeros. The order is scale, softcap, mask.
    Attention {
        /// The number of query heads.
        heads: usize,
        /// The number of key and value heads, which divides `heads`.
        kv_heads: usize,
        /// The factor of the scores.
        scale: f32,
        /// Whether query i sees only the keys j ≤ i + (Lk - Lq).
        #[serde(default, skip_serializing_if = "is_default")]
        causal: bool,
        /// If not 0, scores become `softcap · tanh(score / softcap)`.
        #[serde(default, skip_serializing_if = "is_default")]
        softcap: f32,
        /// The number of bits to which attention weights are rounded; 0 does not round them. They
        /// are rounded to multiples of 1/(2^bits − 1) of the largest weight of their query before
        /// they are multiplied by the values, and are normalised by the sum of the rounded weights.
        /// The zero point is 0, and no scale has to be calibrated. With [`SOFTMAX_BF16`], e^score
        /// is rounded to bf16 instead, up to a power of two per query.
        #[serde(default, skip_serializing_if = "is_default")]
        softmax_bits: u8,
    },
    /// `[sin(t·f), cos(t·f)]`, or cosines first with `cos_first`. The inputs are (t: \[N\] of any
    /// number type, converted to f32; f: \[half\] f32, the frequencies), the result is f32 [N,
    /// 2·half]. The product is rounded to f32 before sine and cosine, as in the graphs of
    /// exporters.
    TimestepEmbedding {
        /// Whether the cosines come first.
        #[serde(default, skip_serializing_if = "is_default")]
        cos_first: bool,
    },
    /// `a · gelu(b)` with `[a, b] = split(x, 2)` along the last axis.
    Geglu {
        /// The activation, `gelu_erf` or `gelu_tanh`.
        act: Act,
    },
    /// `x · scale + shift (+ previous · previous_scale) (+ residual)`, with factors and summands
    /// per channel (last axis). The inputs are (x: float, scale: \[C\], shift: \[C\], residual?:
    /// like x, previous?: like x, previous_scale?: \[C\]). It is the correction of a cached tensor
    /// (CacheQuant, arXiv:2503.01323), and with `previous` a forecast from two stored values.
    Affine,

    // ---- quantization (quant.rs)
    /// `saturate(round(x / scale) + zero_point)` (ONNX `QuantizeLinear`). The inputs are (x: float
    /// or i32, scale, zero_point?). It rounds half to even, treats NaN like 0, and computes in f32
    /// unless x or scale is f64.
    Quantize {
        /// The axis of a scale per axis or per block. `None` stands for one scale per tensor.
        axis: Option<usize>,
        /// The number of elements along `axis` that share a scale. 0 stands for one scale per
        /// index.
        #[serde(default, skip_serializing_if = "is_default")]
        block: usize,
        /// Type of the result.
        to: DType,
    },
    /// `(x - zero_point) · scale` (ONNX `DequantizeLinear`). The inputs are (x, scale,
    /// zero_point?). It computes in f32 unless scale is f64.
    Dequantize {
        /// The axis, as in [`Op::Quantize`].
        axis: Option<usize>,
        /// The size of a block, as in [`Op::Quantize`].
        #[serde(default, skip_serializing_if = "is_default")]
        block: usize,
        /// Type of the result.
        to: DType,
    },
    /// Rounds activations to the values of unsigned integers of `bits` bits:
    /// `(q − zero_point) · scale` with `q = clamp(round(x · (1 / scale)) + zero_point, 0, 2^bits −
    /// 1)`. It computes in f32 and rounds half to even; NaN gives q = 0. The inputs are (x: f32,
    /// scale: f32 \[S\], zero_point: f32 \[S\]), with one entry per segment of the last axis. A
    /// segment with a scale of 0 is not changed.
    FakeQuant {
        /// The number of bits, 2 to 8.
        bits: u8,
        /// The sizes of the segments of the last axis. An empty list stands for one segment.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        segments: Vec<usize>,
    },
    /// Rounds every element to the nearest bf16, ties to even, and returns it as f32. It prepares
    /// the operands of products in bf16. NaN stays NaN.
    RoundBf16,
    /// `codes · scale`. The inputs are (codes: i8, scale: f32 \[N, S\]), where N is the number of
    /// outputs (axis `output_axis`, 0 or 1) and S the number of segments of the inputs (the other
    /// axis). The results are weights of [`Op::Conv`] (outputs on axis 0) and [`Op::Linear`] (axis
    /// 1).
    DequantizeWeight {
        /// The number of bits of a stored code, one of [`WEIGHT_BITS`](super::WEIGHT_BITS).
        bits: u8,
        /// The axis of outputs.
        output_axis: usize,
        /// The sizes of the segments of the axis of inputs. An empty list stands for one segment.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        segments: Vec<usize>,
    },
}

impl Op {
    /// The properties on which the compiler and every executor may rely. Every operator has its row
    /// here.
    pub fn traits(&self) -> OpTraits {
        use Quantization::{Attention, FloatProduct, KeepsChannels, Product};
        let plain = OpTraits::plain;
        match self {
            Op::Unary { kind } => {
                let of_activations = matches!(
                    kind,
                    UnaryKind::Erf | UnaryKind::Sigmoid | UnaryKind::Sin | UnaryKind::Cos
                );
                plain(Family::Elementwise).quantized_as(KeepsChannels).decomposed_if(of_activations)
            }
            Op::Binary { .. } => plain(Family::Elementwise).with_gaps(),
            Op::Where | Op::Cast { .. } => plain(Family::Elementwise),
            Op::Concat { .. } => plain(Family::Movement).with_gaps(),
            Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Expand { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Tile { .. }
            | Op::Resize { .. }
            | Op::Trilu { .. } => plain(Family::Movement),
            Op::Gather { .. }
            | Op::GatherElements { .. }
            | Op::GatherNd { .. }
            | Op::ScatterNd { .. }
            | Op::ScatterElements { .. }
            | Op::OneHot { .. }
            | Op::TopK { .. }
            | Op::CumSum { .. } => plain(Family::Index),
            Op::Reduce { kind, .. } => {
                plain(Family::Reduce).decomposed_if(*kind == ReduceKind::Mean)
            }
            Op::Softmax { .. } => plain(Family::Reduce).decomposed_if(true),
            Op::ArgReduce { .. } | Op::LogSoftmax { .. } => plain(Family::Reduce),
            Op::Linear { .. } => {
                plain(Family::Linear).with_gaps().rounded().quantized_as(Product { output_axis: 1 })
            }
            Op::Conv { layout, .. } => plain(Family::Linear)
                .with_gaps()
                .rounded()
                .quantized_as(Product { output_axis: 0 })
                .decomposed_if(*layout == ConvLayout::ChannelsFirst),
            Op::MatMul => {
                plain(Family::Linear).rounded().quantized_as(FloatProduct).decomposed_if(true)
            }
            Op::ConvTranspose { .. } | Op::Einsum { .. } => {
                plain(Family::Linear).quantized_as(FloatProduct)
            }
            Op::Pool { .. } => plain(Family::Linear),
            Op::GroupNorm { layout, .. } => plain(Family::Norm)
                .with_gaps()
                .rounded()
                .quantized_as(KeepsChannels)
                .decomposed_if(*layout == ConvLayout::ChannelsFirst),
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => {
                plain(Family::Norm).with_gaps().rounded().quantized_as(KeepsChannels)
            }
            Op::Affine => plain(Family::Norm).with_gaps(),
            Op::Attention { .. } => plain(Family::Attention).rounded().quantized_as(Attention),
            Op::Geglu { .. } => plain(Family::Attention).with_gaps().rounded(),
            Op::TimestepEmbedding { .. } => plain(Family::Attention),
            Op::FakeQuant { .. } | Op::RoundBf16 => {
                OpTraits { is_rounding: true, ..plain(Family::Quant).with_gaps() }
            }
            Op::Quantize { .. } | Op::Dequantize { .. } | Op::DequantizeWeight { .. } => {
                plain(Family::Quant)
            }
        }
    }
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

fn one() -> usize {
    1
}

fn is_one(v: &usize) -> bool {
    *v == 1
}

fn cubic_a() -> f32 {
    -0.75
}
