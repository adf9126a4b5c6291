//! Random operators and input types for property tests, in this crate and (by path) in
//! `cqc_kernels::reference`.
//!
//! With `wild`, they include numbers that no model contains, to find arithmetic that overflows.
//! Without it, sizes are small and mostly equal, so that many samples are accepted.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn integer(wild: bool) -> BoxedStrategy<i64> {
    let usual = select(vec![-2, -1, 0, 1, 1, 1, 2, 2, 2, 3]);
    let odd = select(vec![i64::MIN, i64::MAX, i64::MAX - 1, 1 << 40, -(1 << 40), 1 << 20, 1 << 62]);
    if wild { prop_oneof![4 => usual, 1 => odd].boxed() } else { usual.boxed() }
}

fn natural(wild: bool) -> BoxedStrategy<usize> {
    integer(wild).prop_map(|v| if v < 0 && v > -3 { 1 } else { v as usize }).boxed()
}

fn size(wild: bool) -> BoxedStrategy<Dim> {
    let small = select(vec![0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 4]).prop_map(Dim::constant);
    let symbols = select(vec!["N", "2*N", "N+1", "M", "2*N-1", "4*N", "1-N"])
        .prop_map(|t| Dim::parse(t).unwrap());
    if wild {
        prop_oneof![5 => small, 2 => symbols, 1 => integer(true).prop_map(Dim::constant)].boxed()
    } else {
        small.boxed()
    }
}

fn axis() -> impl Strategy<Value = usize> {
    select(vec![0usize, 0, 1, 1, 2, 3])
}

fn float(wild: bool) -> BoxedStrategy<f32> {
    let odd = select(vec![f32::NAN, f32::INFINITY, -1.0, 1e-30, 3e38]);
    let usual = select(vec![1.0f32, 1.0, 0.5, 2.0]);
    if wild { prop_oneof![3 => usual, 1 => odd].boxed() } else { usual.boxed() }
}

fn list<T: std::fmt::Debug + 'static>(
    of: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Vec<T>> {
    vec(of, 0..4).boxed()
}

/// Strides, pads, dilations and kernel of one to three spatial axes. With `wild`, the lists
/// sometimes have unequal lengths.
fn windows(wild: bool) -> BoxedStrategy<[Vec<usize>; 4]> {
    let n = move |len| vec(natural(wild), len);
    let zero_or_one = || select(vec![0usize, 0, 1]);
    let fitting = (1..4usize).prop_flat_map(move |k| (n(k), vec(zero_or_one(), 2 * k), n(k), n(k)));
    let any = (list(natural(wild)), list(natural(wild)), list(natural(wild)), list(natural(wild)));
    let either = if wild { prop_oneof![fitting, any].boxed() } else { fitting.boxed() };
    either.prop_map(|(strides, pads, dilations, kernel)| [strides, pads, dilations, kernel]).boxed()
}

fn dtype() -> impl Strategy<Value = DType> {
    select(DType::ALL.to_vec())
}

fn act() -> impl Strategy<Value = Act> {
    use Act::*;
    select(vec![None, Silu, GeluErf, GeluTanh, QuickGelu, Relu, Sigmoid, Tanh])
}

fn layout() -> impl Strategy<Value = ConvLayout> {
    select(vec![ConvLayout::ChannelsFirst, ConvLayout::ChannelsLast])
}

fn reduction() -> impl Strategy<Value = ScatterReduction> {
    use ScatterReduction::*;
    select(vec![None, Add, Mul, Min, Max])
}

fn unary_kind(wild: bool) -> impl Strategy<Value = UnaryKind> {
    (select(UnaryKind::NAMES), float(wild), any::<bool>()).prop_map(|(name, v, flag)| {
        let with = |json| serde_json::from_value(json).expect("NAMES are serde names");
        match name {
            "is_inf" => UnaryKind::IsInf { negative: flag, positive: !flag },
            "leaky_relu" => UnaryKind::LeakyRelu { alpha: v },
            "elu" => UnaryKind::Elu { alpha: v },
            "celu" => UnaryKind::Celu { alpha: v },
            "selu" => UnaryKind::Selu { alpha: v, gamma: v },
            "hard_sigmoid" => UnaryKind::HardSigmoid { alpha: v, beta: v },
            "thresholded_relu" => UnaryKind::ThresholdedRelu { alpha: v },
            "shrink" => UnaryKind::Shrink { bias: v, lambd: v },
            "swish" => UnaryKind::Swish { alpha: v },
            _ => with(serde_json::json!(name)),
        }
    })
}

fn binary_kind() -> impl Strategy<Value = BinaryKind> {
    select(BinaryKind::NAMES)
        .prop_map(|name| serde_json::from_value(serde_json::json!(name)).expect("a serde name"))
}

fn reduce_kind() -> impl Strategy<Value = ReduceKind> {
    use ReduceKind::*;
    select(vec![Sum, Mean, Max, Min, Prod, L1, L2, SumSquare, LogSum, LogSumExp])
}

/// Any operator.
pub(crate) fn op(wild: bool) -> BoxedStrategy<Op> {
    prop_oneof![movement(wild), indexing(wild), reducing(), products(wild), composites(wild)]
        .boxed()
}

fn movement(wild: bool) -> BoxedStrategy<Op> {
    let shape = move || list(size(wild));
    let n = move || integer(wild);
    let slice = (list(axis()), list(size(wild)), list(size(wild)), list(n()));
    let pad_mode = select(vec![PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Wrap]);
    prop_oneof![
        unary_kind(wild).prop_map(Op::unary),
        binary_kind().prop_map(Op::binary),
        Just(Op::Where),
        dtype().prop_map(|to| Op::Cast { to }),
        shape().prop_map(|shape| Op::Reshape { shape }),
        Just(vec![0usize, 1, 2]).prop_shuffle().prop_map(|perm| Op::Transpose { perm }),
        list(axis()).prop_map(|perm| Op::Transpose { perm }),
        shape().prop_map(|shape| Op::Expand { shape }),
        axis().prop_map(|axis| Op::Concat { axis }),
        slice.prop_map(|(axes, starts, ends, steps)| Op::Slice { axes, starts, ends, steps }),
        (axis(), size(wild), size(wild), n()).prop_map(|(axis, start, end, step)| Op::Slice {
            axes: vec![axis],
            starts: vec![start],
            ends: vec![end],
            steps: vec![step],
        }),
        (vec(n(), 2), vec(n(), 2), pad_mode).prop_map(|(before, after, mode)| Op::Pad {
            before,
            after,
            mode
        }),
        list(n()).prop_map(|repeats| Op::Tile { repeats }),
        resize(wild),
        (any::<bool>(), n()).prop_map(|(upper, k)| Op::Trilu { upper, k }),
    ]
    .boxed()
}

fn resize(wild: bool) -> BoxedStrategy<Op> {
    use CoordinateMode::*;
    let coordinates =
        select(vec![HalfPixel, HalfPixelSymmetric, PytorchHalfPixel, AlignCorners, Asymmetric]);
    let mode = select(vec![ResizeMode::Nearest, ResizeMode::Linear, ResizeMode::Cubic]);
    let scales = prop_oneof![Just(Vec::new()), list(float(wild))];
    (list(size(wild)), scales, mode, coordinates, float(wild), any::<bool>(), any::<bool>())
        .prop_map(|(sizes, scales, mode, coordinates, cubic_a, exclude_outside, antialias)| {
            Op::Resize {
                sizes,
                scales,
                mode,
                coordinates,
                nearest: NearestMode::Ceil,
                cubic_a,
                exclude_outside,
                antialias,
            }
        })
        .boxed()
}

fn indexing(wild: bool) -> BoxedStrategy<Op> {
    prop_oneof![
        axis().prop_map(|axis| Op::Gather { axis }),
        axis().prop_map(|axis| Op::GatherElements { axis }),
        natural(wild).prop_map(|batch_dims| Op::GatherNd { batch_dims }),
        reduction().prop_map(|reduction| Op::ScatterNd { reduction }),
        (axis(), reduction()).prop_map(|(axis, reduction)| Op::ScatterElements { axis, reduction }),
        (axis(), integer(wild)).prop_map(|(axis, depth)| Op::OneHot { axis, depth }),
        (axis(), integer(wild), any::<bool>()).prop_map(|(axis, k, largest)| Op::TopK {
            axis,
            k,
            largest
        }),
        (axis(), any::<bool>(), any::<bool>()).prop_map(|(axis, exclusive, reverse)| Op::CumSum {
            axis,
            exclusive,
            reverse
        }),
    ]
    .boxed()
}

fn reducing() -> BoxedStrategy<Op> {
    prop_oneof![
        (reduce_kind(), list(axis()), any::<bool>()).prop_map(|(kind, axes, keep)| Op::Reduce {
            kind,
            axes,
            keep
        }),
        (reduce_kind(), axis(), any::<bool>()).prop_map(|(kind, a, keep)| Op::Reduce {
            kind,
            axes: vec![a],
            keep
        }),
        (any::<bool>(), axis(), any::<bool>(), any::<bool>())
            .prop_map(|(largest, axis, keep, last)| Op::ArgReduce { largest, axis, keep, last }),
        axis().prop_map(|axis| Op::Softmax { axis }),
        axis().prop_map(|axis| Op::LogSoftmax { axis }),
    ]
    .boxed()
}

fn products(wild: bool) -> BoxedStrategy<Op> {
    let equations = [
        "ab,bc->ac",
        "abc,abd->acd",
        "aa->a",
        "ab,b,ab->",
        "ab->ab",
        "a,->a",
        "ab->aa",
        "éa->a",
        "ab",
        "ab->c",
    ]
    .to_vec();
    let groups = move || prop_oneof![2 => Just(1), 1 => natural(wild)];
    let conv = (windows(wild), groups(), layout(), groups(), act());
    let pool = (windows(wild), any::<bool>(), any::<bool>(), any::<bool>(), layout());
    prop_oneof![
        Just(Op::MatMul),
        act().prop_map(|act| Op::Linear { act }),
        conv.prop_map(|([strides, pads, dilations, _], groups, layout, upsample, act)| Op::Conv {
            strides,
            pads,
            dilations,
            groups,
            layout,
            upsample,
            act,
        }),
        (windows(wild), groups()).prop_map(
            |([strides, pads, dilations, output_padding], groups)| Op::ConvTranspose {
                strides,
                pads,
                dilations,
                output_padding,
                groups,
            }
        ),
        pool.prop_map(|([strides, pads, dilations, kernel], max, ceil, count_pad, layout)| {
            Op::Pool {
                kind: if max { PoolKind::Max } else { PoolKind::Average },
                kernel,
                strides,
                pads,
                dilations,
                ceil,
                count_pad,
                layout,
            }
        }),
        select(equations).prop_map(|e| Op::Einsum { equation: e.to_string() }),
    ]
    .boxed()
}

fn composites(wild: bool) -> BoxedStrategy<Op> {
    let n = move || natural(wild);
    let axis = || prop_oneof![Just(None), axis().prop_map(Some)];
    let result = || prop_oneof![Just(DType::F32), dtype()];
    let block = || prop_oneof![2 => Just(0), 1 => natural(wild)];
    prop_oneof![
        (n(), float(wild), layout(), act()).prop_map(|(groups, eps, layout, act)| Op::GroupNorm {
            groups,
            eps,
            layout,
            act
        }),
        float(wild).prop_map(|eps| Op::LayerNorm { eps }),
        float(wild).prop_map(|eps| Op::RmsNorm { eps }),
        (n(), n(), float(wild), any::<bool>(), float(wild), 0..3u8).prop_map(
            |(heads, kv_heads, scale, causal, softcap, bits)| {
                Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits: 8 * bits }
            }
        ),
        any::<bool>().prop_map(|cos_first| Op::TimestepEmbedding { cos_first }),
        act().prop_map(|act| Op::Geglu { act }),
        Just(Op::Affine),
        Just(Op::RoundBf16),
        (1..9u8, vec(n(), 0..3)).prop_map(|(bits, segments)| Op::FakeQuant { bits, segments }),
        (0..3usize, vec(n(), 0..3)).prop_map(|(output_axis, segments)| Op::DequantizeWeight {
            bits: 8,
            output_axis,
            segments
        }),
        (axis(), block(), dtype()).prop_map(|(axis, block, to)| Op::Quantize { axis, block, to }),
        (axis(), block(), result()).prop_map(|(axis, block, to)| Op::Dequantize {
            axis,
            block,
            to
        }),
    ]
    .boxed()
}

/// Types of up to six inputs. Most are like the first one; the others begin or end with some of its
/// sizes.
pub(crate) fn input_types(wild: bool) -> BoxedStrategy<Vec<Option<ValueType>>> {
    use DType::*;
    let usual = select(vec![F32, F32, F32, F32, F16, F64, I64, Bool, U64, I8, I8]);
    let first = (prop_oneof![3 => usual, 1 => dtype()], vec(size(wild), 0..6));
    let own = || prop_oneof![vec(size(wild), 0..4), Just(Vec::new())];
    let other = || {
        (
            0..11,
            0..10usize,
            prop_oneof![4 => Just(None), 1 => Just(Some(F32)), 1 => dtype().prop_map(Some)],
            own(),
        )
    };
    (first, prop_oneof![1 => vec(other(), 0..6), 2 => vec(other(), 0..3)])
        .prop_map(|((dtype, shape), others)| {
            let derive = |(how, cut, other, own): (i32, usize, Option<DType>, Vec<Dim>)| {
                let cut = cut.min(shape.len());
                let shape = match how {
                    0..=3 => shape.clone(),
                    4 => shape[cut..].to_vec(),
                    5 => shape[..cut].to_vec(),
                    // a scale per row
                    10 => shape.first().map_or(vec![], |rows| vec![rows.clone(), 1.into()]),
                    _ => own,
                };
                let other = if how == 10 { Some(F32) } else { other };
                (how != 9).then(|| ValueType::new(other.unwrap_or(dtype), shape))
            };
            let rest: Vec<_> = others.into_iter().map(derive).collect();
            [vec![Some(ValueType::new(dtype, shape.clone()))], rest].concat()
        })
        .boxed()
}

/// An operator, and types of inputs that it may accept. Operators of quantization restrict their
/// inputs so much that some are made to fit.
pub fn operation(wild: bool) -> BoxedStrategy<(Op, Vec<Option<ValueType>>)> {
    prop_oneof![99 => (op(wild), input_types(wild)), 1 => quantization()].boxed()
}

fn quantization() -> BoxedStrategy<(Op, Vec<Option<ValueType>>)> {
    let some = |dtype: DType, shape: &[usize]| Some(ValueType::fixed(dtype, shape));
    let fake = (select(vec![4u8, 8, 8]), vec(1..4usize, 0..3)).prop_map(move |(bits, segments)| {
        let columns = segments.iter().sum::<usize>().max(1);
        let row = some(DType::F32, &[segments.len().max(1)]);
        (Op::FakeQuant { bits, segments }, vec![some(DType::F32, &[2, columns]), row.clone(), row])
    });
    let weight = (select(WEIGHT_BITS.to_vec()), vec(1..4usize, 0..3), 0..2usize).prop_map(
        move |(bits, segments, output_axis)| {
            let mut shape = [2, 2];
            shape[1 - output_axis] = segments.iter().sum::<usize>().max(1);
            let scale = some(DType::F32, &[2, segments.len().max(1)]);
            (
                Op::DequantizeWeight { bits, output_axis, segments },
                vec![some(DType::I8, &shape), scale],
            )
        },
    );
    prop_oneof![fake, weight].boxed()
}
