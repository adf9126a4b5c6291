//! The one list of operators: attributes with their docs, and a row of traits each.

use super::*;

/// One operator with its attributes. The text form is the variant's name in snake case followed by
/// the attributes that differ from their defaults; `Unary`, `Binary` and `Reduce` print as their
/// kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    // ---- element by element (elementwise.rs)
    /// `y = f(x)`.
    Unary {
        /// Which function.
        kind: UnaryKind,
    },
    /// `y = f(a, b)` with numpy broadcasting.
    Binary {
        /// Which function.
        kind: BinaryKind,
    },
    /// `y = condition ? a : b`, inputs (condition: bool, a, b), numpy broadcasting.
    Where,
    /// Converts the element type. ONNX `Cast`. Floats become integers by truncation and saturation
    /// (NaN: 0), integers wrap around, anything ≠ 0 is true.
    Cast {
        /// Type of the result.
        to: DType,
    },

    // ---- moving data (movement.rs)
    /// The same elements in the same order under another shape.
    Reshape {
        /// The resulting shape, free of -1 and 0-means-copy.
        shape: Shape,
    },
    /// `y[i_perm[0], i_perm[1], …]`: axis `k` of the result is axis `perm[k]` of the input.
    Transpose {
        /// A permutation of the axes.
        perm: Vec<usize>,
    },
    /// Broadcasts to a shape that every input size divides in numpy's sense (sizes equal or 1,
    /// missing front axes added).
    Expand {
        /// The resulting shape.
        shape: Shape,
    },
    /// Joins any number ≥ 1 of inputs along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// `start`, `start + step`, … below `end` (above it for a negative step) along each listed
    /// axis, already clamped to the input.
    Slice {
        /// Sliced axes, ascending, each once.
        axes: Vec<usize>,
        /// First index per axis.
        starts: Vec<Dim>,
        /// One past the last index per axis (for a negative step, may be -1).
        ends: Vec<Dim>,
        /// Step per axis, not 0.
        steps: Vec<i64>,
    },
    /// Adds elements around the input (negative counts remove them). Second input: the fill value,
    /// a scalar (absent = 0). New elements repeat the input as it was before any removal; `reflect`
    /// and `wrap` go on periodically.
    Pad {
        /// Elements before each axis.
        before: Vec<i64>,
        /// Elements after each axis.
        after: Vec<i64>,
        /// What the new elements are.
        #[serde(default)]
        mode: PadMode,
    },
    /// Repeats the input `repeats[k]` times along axis `k`.
    Tile {
        /// Repetitions per axis.
        repeats: Vec<i64>,
    },
    /// Interpolates to `sizes`. ONNX `Resize`/`Upsample` without crop regions.
    Resize {
        /// The resulting shape.
        sizes: Shape,
        /// Scale per axis where the model gave scales; empty = computed as output/input size.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        scales: Vec<f32>,
        /// Interpolation.
        mode: ResizeMode,
        /// How output positions map to input positions.
        coordinates: CoordinateMode,
        /// Rounding of `mode = nearest`.
        #[serde(default)]
        nearest: NearestMode,
        /// Coefficient of `mode = cubic`.
        #[serde(default = "cubic_a")]
        cubic_a: f32,
        /// Weights outside the input are dropped and the rest renormalised.
        #[serde(default, skip_serializing_if = "is_default")]
        exclude_outside: bool,
        /// Low-pass filter when shrinking (`mode` linear or cubic).
        #[serde(default, skip_serializing_if = "is_default")]
        antialias: bool,
    },
    /// Keeps the upper (`upper`) or lower triangle of the last two axes, zero elsewhere.
    Trilu {
        /// Keep `column >= row + k` instead of `column <= row + k`.
        upper: bool,
        /// The diagonal.
        #[serde(default, skip_serializing_if = "is_default")]
        k: i64,
    },

    // ---- indices (index.rs)
    /// `y = data[..., indices, ...]` along an axis, inputs (data, indices: integer). Negative
    /// indices count from the end.
    Gather {
        /// The axis of `data`.
        axis: usize,
    },
    /// `y[i][j][k] = data[indices[i][j][k]][j][k]` for axis 0, inputs (data, indices).
    GatherElements {
        /// The axis of `data`.
        axis: usize,
    },
    /// Inputs (data, indices); the last axis of `indices` indexes into `data` after the batch axes.
    GatherNd {
        /// Leading axes that both share.
        batch_dims: usize,
    },
    /// Copy of `data` with `updates` written at `indices`; inputs (data, indices, updates).
    ScatterNd {
        /// What a write does to the element there.
        #[serde(default)]
        reduction: ScatterReduction,
    },
    /// Copy of `data` with `updates` written where `indices` says along an axis; inputs (data,
    /// indices, updates).
    ScatterElements {
        /// The axis.
        axis: usize,
        /// What a write does to the element there.
        #[serde(default)]
        reduction: ScatterReduction,
    },
    /// One-hot rows; inputs (indices, values: \[2\] = off, on). `depth` becomes the new axis.
    /// Negative indices count from the end; those outside give a row of `off`.
    OneHot {
        /// Where the new axis stands in the result.
        axis: usize,
        /// Its size.
        depth: i64,
    },
    /// The `k` largest (or smallest) along an axis, in that order; outputs (values, indices: i64).
    /// Of equal elements the first comes first; NaN is larger than any number.
    TopK {
        /// The axis.
        axis: usize,
        /// How many.
        k: i64,
        /// Largest instead of smallest.
        largest: bool,
    },
    /// Running sum along an axis.
    CumSum {
        /// The axis.
        axis: usize,
        /// Leaves out the element itself.
        #[serde(default, skip_serializing_if = "is_default")]
        exclusive: bool,
        /// From the end.
        #[serde(default, skip_serializing_if = "is_default")]
        reverse: bool,
    },

    // ---- reductions (reduce.rs)
    /// Reduces the listed axes.
    Reduce {
        /// Which reduction.
        kind: ReduceKind,
        /// Reduced axes, ascending, each once; empty = none (the identity up to `kind`'s own map).
        axes: Vec<usize>,
        /// Keeps them with size 1.
        keep: bool,
    },
    /// Index of the largest or smallest element along an axis, i64; of the first NaN if there is
    /// one (with `last`: the last).
    ArgReduce {
        /// Largest instead of smallest.
        largest: bool,
        /// The axis.
        axis: usize,
        /// Keeps it with size 1.
        keep: bool,
        /// The last of equal elements instead of the first.
        #[serde(default, skip_serializing_if = "is_default")]
        last: bool,
    },
    /// `exp(x - max) / Σ exp(x - max)` along an axis.
    Softmax {
        /// The axis.
        axis: usize,
    },
    /// Logarithm of [`Op::Softmax`].
    LogSoftmax {
        /// The axis.
        axis: usize,
    },

    // ---- products (linear.rs)
    /// numpy `matmul`: inputs (a, b), batch axes broadcast.
    #[serde(rename = "matmul")]
    MatMul,
    /// `y = residual + gate · act(scale · (x · w) + bias + row)`: inputs (x: \[..., K\], w: \[K,
    /// N\], bias?: \[N\], row?, gate?, residual?, scale?: \[N\]).
    ///
    /// `row` and `gate` have the rank of the result, last size N, first size the batch or 1, and 1
    /// between; `residual` has the type of the result.
    Linear {
        /// Activation after the sum.
        #[serde(default, skip_serializing_if = "is_default")]
        act: Act,
    },
    /// 1-D or 2-D convolution: inputs (x, w: OIHW, bias?: \[O\], row?, gate?, residual?, scale?:
    /// \[O\]), epilogue as [`Op::Linear`] per channel.
    Conv {
        /// Stride per spatial axis.
        strides: Vec<usize>,
        /// Zero padding: begins of all spatial axes, then ends.
        pads: Vec<usize>,
        /// Dilation per spatial axis.
        dilations: Vec<usize>,
        /// Channel groups.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        groups: usize,
        /// Where channels stand in x, row, gate, residual and the result.
        #[serde(default, skip_serializing_if = "is_default")]
        layout: ConvLayout,
        /// 2 = the input is first enlarged twice along each spatial axis by repetition.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        upsample: usize,
        /// Activation after the sum.
        #[serde(default, skip_serializing_if = "is_default")]
        act: Act,
    },
    /// Transposed convolution, channels first: inputs (x, w: \[I, O/groups, k...\], bias?: \[O\]).
    ConvTranspose {
        /// Stride per spatial axis.
        strides: Vec<usize>,
        /// Removed from the result: begins, then ends.
        pads: Vec<usize>,
        /// Dilation per spatial axis.
        dilations: Vec<usize>,
        /// Added to the end of each spatial axis of the result.
        output_padding: Vec<usize>,
        /// Channel groups.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        groups: usize,
    },
    /// Max or average over windows. A window that holds no element of the input (nor counted
    /// padding) gives -inf or the smallest integer (max), NaN (average).
    Pool {
        /// Which.
        kind: PoolKind,
        /// Window per spatial axis.
        kernel: Vec<usize>,
        /// Stride per spatial axis.
        strides: Vec<usize>,
        /// Padding: begins, then ends.
        pads: Vec<usize>,
        /// Dilation per spatial axis.
        dilations: Vec<usize>,
        /// Rounds the size of the result up.
        #[serde(default, skip_serializing_if = "is_default")]
        ceil: bool,
        /// The average counts padding.
        #[serde(default, skip_serializing_if = "is_default")]
        count_pad: bool,
        /// Where channels stand.
        #[serde(default, skip_serializing_if = "is_default")]
        layout: ConvLayout,
    },
    /// Einstein summation over any number of inputs; ONNX `Einsum` that is no plain transpose,
    /// reduction or matmul.
    Einsum {
        /// Letters per input, `->`, letters of the result, each once; no ellipsis, no spaces. Sizes
        /// 1 broadcast.
        equation: String,
    },

    // ---- normalisation (norm.rs)
    /// `act((x - mean) / sqrt(var + eps) · gamma + beta)` per sample and group of C/groups
    /// channels; inputs (x, gamma?: \[C\], beta?: \[C\]).
    GroupNorm {
        /// Divides C.
        groups: usize,
        /// Added to the variance.
        eps: f32,
        /// Where channels stand.
        #[serde(default, skip_serializing_if = "is_default")]
        layout: ConvLayout,
        /// Activation of the result.
        #[serde(default, skip_serializing_if = "is_default")]
        act: Act,
    },
    /// `n · (1 + scale) + shift` with `n = (x - mean) / sqrt(var + eps) · gamma + beta` over the
    /// last axis, of size C; inputs (x, gamma?: \[C\], beta?: \[C\], scale?, shift?), the last two
    /// as `row` of [`Op::Linear`] (adaLN modulate).
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `x / sqrt(mean(x²) + eps) · gamma` over the last axis; inputs (x, gamma?: \[C\]).
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },

    // ---- attention (attention.rs)
    /// Scaled dot-product attention: inputs (q: [B, Lq, heads·D], k: [B, Lk, kv_heads·D], v: [B,
    /// Lk, kv_heads·Dv], mask?) to [B, Lq, heads·Dv]; head h reads key head `h / (heads /
    /// kv_heads)`. `mask` is added to the scaled scores (float) or keeps (bool), shape
    /// broadcastable to [B, heads, Lq, Lk]; a query that sees no key gives zeros. Order: scale,
    /// softcap, mask.
    Attention {
        /// Query heads.
        heads: usize,
        /// Key and value heads; divides `heads`.
        kv_heads: usize,
        /// Factor of the scores.
        scale: f32,
        /// Query i sees keys j ≤ i + (Lk - Lq).
        #[serde(default, skip_serializing_if = "is_default")]
        causal: bool,
        /// Scores become `softcap · tanh(score / softcap)`; 0 = off.
        #[serde(default, skip_serializing_if = "is_default")]
        softcap: f32,
        /// Weights are rounded to multiples of 1/(2^bits − 1) of the largest weight of their query
        /// before they meet the values, and normalised by the sum of what was rounded; 0 = not at
        /// all. Zero point 0, no scale to calibrate. [`SOFTMAX_BF16`]: e^score is rounded to bf16
        /// instead, up to a power of two per query.
        #[serde(default, skip_serializing_if = "is_default")]
        softmax_bits: u8,
    },
    /// `[sin(t·f), cos(t·f)]` (cosines first when `cos_first`): inputs (t: \[N\], any number type,
    /// converted to f32; f: \[half\] f32, the frequencies) to f32 [N, 2·half]. The product is
    /// rounded to f32 before sine and cosine, as exporters' graphs do.
    TimestepEmbedding {
        /// Cosines stand first.
        #[serde(default, skip_serializing_if = "is_default")]
        cos_first: bool,
    },
    /// `a · gelu(b)` with `[a, b] = split(x, 2)` along the last axis.
    Geglu {
        /// `gelu_erf` or `gelu_tanh`.
        act: Act,
    },
    /// `x · scale + shift (+ previous · previous_scale) (+ residual)`, factors and summand per
    /// channel (last axis): inputs (x: float, scale: \[C\], shift: \[C\], residual?: like x,
    /// previous?: like x, previous_scale?: \[C\]). The correction of a cached tensor (CacheQuant,
    /// arXiv:2503.01323); with `previous`, a forecast from two stored values.
    Affine,

    // ---- quantization (quant.rs)
    /// `saturate(round(x / scale) + zero_point)`: inputs (x: float or i32, scale, zero_point?);
    /// round half to even, NaN like 0; in f32 unless x or scale is f64. ONNX `QuantizeLinear`.
    Quantize {
        /// Axis of a per-axis or blocked scale; `None` = per tensor.
        axis: Option<usize>,
        /// Elements that share a scale along `axis`; 0 = per axis.
        #[serde(default, skip_serializing_if = "is_default")]
        block: usize,
        /// Type of the result.
        to: DType,
    },
    /// `(x - zero_point) · scale`: inputs (x, scale, zero_point?), in f32 unless scale is f64. ONNX
    /// `DequantizeLinear`.
    Dequantize {
        /// As [`Op::Quantize`].
        axis: Option<usize>,
        /// As [`Op::Quantize`].
        #[serde(default, skip_serializing_if = "is_default")]
        block: usize,
        /// Type of the result.
        to: DType,
    },
    /// Rounds activations to the values that unsigned integers of `bits` bits stand for: `(q −
    /// zero_point) · scale` with `q = clamp(round(x · (1 / scale)) + zero_point, 0, 2^bits − 1)`,
    /// all in f32, round half to even, NaN gives q = 0; inputs (x: f32, scale: f32 \[S\],
    /// zero_point: f32 \[S\]), one entry per segment of the last axis. A scale of 0 lets its
    /// segment pass unchanged.
    FakeQuant {
        /// 2 to 8.
        bits: u8,
        /// Sizes of the segments of the last axis; empty = one segment.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        segments: Vec<usize>,
    },
    /// The nearest bf16 of every element, ties to even, as f32: what products of bf16 read. NaN
    /// stays NaN.
    RoundBf16,
    /// `codes · scale`: inputs (codes: i8, scale: f32 \[N, S\]) with N the outputs (axis
    /// `output_axis`, 0 or 1) and S the segments of the inputs (axis 1 or 0, the other one).
    /// Weights of [`Op::Conv`] (outputs on axis 0) and [`Op::Linear`] (axis 1).
    DequantizeWeight {
        /// What a code takes where it is stored, one of [`WEIGHT_BITS`](super::WEIGHT_BITS).
        bits: u8,
        /// The axis of outputs.
        output_axis: usize,
        /// Sizes of the segments of the axis of inputs; empty = one segment.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        segments: Vec<usize>,
    },
}

impl Op {
    /// What the compiler and every executor may rely on. Every operator has its row here.
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
