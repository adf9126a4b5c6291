//! What operators mean (`cqc_kernels::reference`), for operands as kernels take them: slices of f32
//! whose rows may lie apart. Evaluated in f64 and rounded once, unless a function says otherwise.

use cqc_kernels::*;
use cqc_proto::op::{BinaryKind, ConvLayout, UnaryKind};
use cqc_proto::{DType, Op, Tensor};

/// A tensor of f64 with these values.
fn tensor(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    let bytes: Vec<u8> = values.into_iter().flat_map(|v| f64::from(v).to_le_bytes()).collect();
    Tensor::new(DType::F64, shape.to_vec(), bytes).expect("as many values as the shape has")
}

/// `[rows, cols]` of a slice whose rows begin `ld` apart.
fn matrix(x: &[f32], rows: usize, cols: usize, ld: usize) -> Tensor {
    tensor(&[rows, cols], (0..rows).flat_map(|row| x[row * ld..][..cols].iter().copied()))
}

/// `[images, length, cols]` of a slice whose rows begin `ld` apart.
fn sequences(x: &[f32], [images, length, cols]: [usize; 3], ld: usize) -> Tensor {
    reshaped(&matrix(x, images * length, cols, ld), &[images, length, cols])
}

fn reshaped(t: &Tensor, shape: &[usize]) -> Tensor {
    t.reshaped(shape.to_vec()).expect("the same number of elements")
}

/// `[rows, cols]`: what every row sees of values that are given per image.
fn per_row(part: PerImage, rows: usize, cols: usize) -> Tensor {
    tensor(&[rows, cols], (0..rows).flat_map(|row| part.of(row, cols).iter().copied()))
}

fn channels(values: Option<&[f32]>, n: usize) -> Option<Tensor> {
    values.map(|values| tensor(&[n], values[..n].iter().copied()))
}

fn eval(op: &Op, inputs: &[Option<&Tensor>]) -> Tensor {
    let mut results = reference::eval(op, inputs).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    assert_eq!(results.len(), 1);
    results.remove(0)
}

/// Writes a result whose last axis has `cols` elements to rows that begin `ld` apart.
fn store(result: &Tensor, cols: usize, y: &mut [f32], ld: usize) {
    for (row, values) in result.to_f32_vec().chunks_exact(cols).enumerate() {
        y[row * ld..][..cols].copy_from_slice(values);
    }
}

/// `x · w` with an epilogue; `x` is `[rows, k]`, `w` `[k, n]`.
fn product(x: &Tensor, w: &Tensor, epilogue: &Epilogue) -> Tensor {
    let (rows, n) = (x.shape()[0], w.shape()[1]);
    let parts = [
        channels(epilogue.bias, n),
        epilogue.row.map(|part| per_row(part, rows, n)),
        epilogue.gate.map(|part| per_row(part, rows, n)),
        epilogue.residual.map(|(data, ld)| matrix(data, rows, n, ld)),
        channels(epilogue.scale, n),
    ];
    let mut inputs = vec![Some(x), Some(w)];
    inputs.extend(parts.iter().map(Option::as_ref));
    eval(&Op::Linear { act: epilogue.act }, &inputs)
}

/// [`cqc_kernels::linear`]; `w` is `[k, n]` without gaps.
pub fn linear(
    [m, k, n]: [usize; 3],
    x: &[f32],
    ldx: usize,
    w: &[f32],
    epilogue: &Epilogue,
    y: &mut [f32],
    ldy: usize,
) {
    store(&product(&matrix(x, m, k, ldx), &matrix(w, k, n, n), epilogue), n, y, ldy);
}

/// [`Conv::run`]; `w` is OIHW.
pub fn conv(
    s: &ConvShape,
    x: &[f32],
    ldx: usize,
    w: &[f32],
    epilogue: &Epilogue,
    y: &mut [f32],
    ldy: usize,
) {
    let op = Op::Conv {
        strides: s.stride.to_vec(),
        pads: s.pads.to_vec(),
        dilations: s.dilation.to_vec(),
        groups: s.groups,
        layout: ConvLayout::ChannelsLast,
        upsample: s.upsample,
        act: Act::None,
    };
    let x = reshaped(&matrix(x, s.n * s.h * s.w, s.cin, ldx), &[s.n, s.h, s.w, s.cin]);
    let w = tensor(&[s.cout, s.cin / s.groups, s.kh, s.kw], w.iter().copied());
    let sums = reshaped(&eval(&op, &[Some(&x), Some(&w)]), &[s.out_rows(), s.cout]);
    // A kernel's images need not be those of the convolution, so its epilogue is that of a linear
    // layer with the identity as weights, which changes no sum.
    let n = s.cout;
    let identity = tensor(&[n, n], (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }));
    store(&product(&sums, &identity, epilogue), n, y, ldy);
}

/// [`cqc_kernels::matmul_batched`].
pub fn matmul_batched(s: &MatmulShape, a: &[f32], b: &[f32], y: &mut [f32]) {
    for batch in 0..s.batch {
        let (a, b) = (&a[batch * s.stride_a..], &b[batch * s.stride_b..]);
        let at = |p: usize, col: usize| {
            if s.transpose_b { b[col * s.ldb + p] } else { b[p * s.ldb + col] }
        };
        let b = tensor(&[s.k, s.n], (0..s.k * s.n).map(|i| at(i / s.n, i % s.n)));
        let product = eval(&Op::MatMul, &[Some(&matrix(a, s.m, s.k, s.lda)), Some(&b)]);
        store(&product, s.n, &mut y[batch * s.stride_y..], s.ldy);
    }
}

/// [`cqc_kernels::attention()`].
///
/// The operator's causality lets the last query see the last key. A kernel's lets the first one see
/// the first key, which is the same where both have one length; here it is a part of the mask.
pub fn attention(
    s: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<&[f32]>,
    y: &mut [f32],
) {
    let op = Op::Attention {
        heads: s.heads,
        kv_heads: s.kv_heads,
        scale: s.scale,
        causal: false,
        softcap: 0.0,
        softmax_bits: s.softmax_bits,
    };
    let q = sequences(q, [s.n, s.lq, s.heads * s.d], s.ldq);
    let k = sequences(k, [s.n, s.lk, s.kv_heads * s.d], s.ldk);
    let v = sequences(v, [s.n, s.lk, s.kv_heads * s.dv], s.ldv);
    let value = |at: usize| {
        let (image, head, query, key) =
            (at / s.lk / s.lq / s.heads, at / s.lk / s.lq % s.heads, at / s.lk % s.lq, at % s.lk);
        match mask {
            _ if s.causal && key > query => f32::NEG_INFINITY,
            Some(mask) => mask[s.mask_at(image, head, query, key)],
            None => 0.0,
        }
    };
    let shape = [s.n, s.heads, s.lq, s.lk];
    let mask = (mask.is_some() || s.causal)
        .then(|| tensor(&shape, (0..shape.iter().product()).map(value)));
    let result = eval(&op, &[Some(&q), Some(&k), Some(&v), mask.as_ref()]);
    store(&result, s.heads * s.dv, y, s.ldy);
}

/// [`cqc_kernels::softmax`]. A row of −∞ gives NaN, as in ONNX; the kernel gives zeros.
pub fn softmax(rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    let x = matrix(x, rows, cols, cols);
    store(&eval(&Op::Softmax { axis: 1 }, &[Some(&x)]), cols, y, cols);
}

/// [`cqc_kernels::group_norm`].
pub fn group_norm(s: &GroupNorm, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    let op = Op::GroupNorm {
        groups: s.groups,
        eps: s.eps,
        layout: ConvLayout::ChannelsLast,
        act: s.act,
    };
    let x = sequences(x, [s.n, s.hw, s.c], ldx);
    let (gamma, beta) = (channels(s.gamma, s.c), channels(s.beta, s.c));
    store(&eval(&op, &[Some(&x), gamma.as_ref(), beta.as_ref()]), s.c, y, ldy);
}

/// [`cqc_kernels::layer_norm`].
pub fn layer_norm(s: &LayerNorm, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    let x = matrix(x, s.rows, s.c, ldx);
    let (gamma, beta) = (channels(s.gamma, s.c), channels(s.beta, s.c));
    let (scale, shift) = s.modulate.map(|parts| modulation(s, parts)).unzip();
    let inputs = [Some(&x), gamma.as_ref(), beta.as_ref(), scale.as_ref(), shift.as_ref()];
    store(&eval(&Op::LayerNorm { eps: s.eps }, &inputs), s.c, y, ldy);
}

fn modulation(s: &LayerNorm, (scale, shift): (PerImage, PerImage)) -> (Tensor, Tensor) {
    (per_row(scale, s.rows, s.c), per_row(shift, s.rows, s.c))
}

/// [`cqc_kernels::rms_norm`], whose `beta` and `modulate` are operators of their own.
pub fn rms_norm(s: &LayerNorm, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    let (x, gamma) = (matrix(x, s.rows, s.c, ldx), channels(s.gamma, s.c));
    let mut result = eval(&Op::RmsNorm { eps: s.eps }, &[Some(&x), gamma.as_ref()]);
    if let Some(beta) = channels(s.beta, s.c) {
        result = pairwise(BinaryKind::Add, &result, &beta);
    }
    if let Some(parts) = s.modulate {
        let (scale, shift) = modulation(s, parts);
        let factor = pairwise(BinaryKind::Add, &scale, &tensor(&[1], [1.0]));
        result = pairwise(BinaryKind::Add, &pairwise(BinaryKind::Mul, &result, &factor), &shift);
    }
    store(&result, s.c, y, ldy);
}

fn pairwise(kind: BinaryKind, a: &Tensor, b: &Tensor) -> Tensor {
    eval(&Op::Binary { kind }, &[Some(a), Some(b)])
}

/// [`cqc_kernels::geglu`].
pub fn geglu(rows: usize, c: usize, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    let x = matrix(x, rows, 2 * c, ldx);
    store(&eval(&Op::Geglu { act: Act::GeluErf }, &[Some(&x)]), c, y, ldy);
}

/// [`cqc_kernels::affine`].
pub fn affine(
    rows: usize,
    c: usize,
    x: &[f32],
    ldx: usize,
    map: &Affine,
    y: &mut [f32],
    ldy: usize,
) {
    let inputs = [
        Some(matrix(x, rows, c, ldx)),
        channels(Some(map.scale), c),
        channels(Some(map.shift), c),
        map.residual.map(|(data, ld)| matrix(data, rows, c, ld)),
        map.previous.map(|(data, ld, _)| matrix(data, rows, c, ld)),
        channels(map.previous.map(|(_, _, scale)| scale), c),
    ];
    store(&eval(&Op::Affine, &inputs.each_ref().map(Option::as_ref)), c, y, ldy);
}

/// [`cqc_kernels::fake_quant`], in f32: the kernel rounds to the same bits.
pub fn fake_quant(rows: usize, x: &[f32], ldx: usize, how: &FakeQuant, y: &mut [f32], ldy: usize) {
    let columns: usize = how.segments.iter().sum();
    let values: Vec<f32> =
        (0..rows).flat_map(|row| x[row * ldx..][..columns].iter().copied()).collect();
    let [scale, zero_point] = [how.scale, how.zero_point].map(|v| Tensor::from_f32(&[v.len()], v));
    let op = Op::FakeQuant { bits: how.bits, segments: how.segments.to_vec() };
    let x = Tensor::from_f32(&[rows, columns], &values);
    store(&eval(&op, &[Some(&x), Some(&scale), Some(&zero_point)]), columns, y, ldy);
}

/// [`cqc_kernels::unary`].
pub fn unary(op: Unary, x: &[f32]) -> Vec<f32> {
    let kind = match op {
        Unary::Act(act) => return activation(act, x),
        Unary::Exp => UnaryKind::Exp,
        Unary::Log => UnaryKind::Log,
        Unary::Neg => UnaryKind::Neg,
        Unary::Abs => UnaryKind::Abs,
        Unary::Sqrt => UnaryKind::Sqrt,
        Unary::Reciprocal => UnaryKind::Reciprocal,
        Unary::Erf => UnaryKind::Erf,
        Unary::Sin => UnaryKind::Sin,
        Unary::Cos => UnaryKind::Cos,
        Unary::Floor => UnaryKind::Floor,
        Unary::Ceil => UnaryKind::Ceil,
        Unary::Round => UnaryKind::Round,
    };
    of_kind(kind, x)
}

/// An activation of each value.
pub fn activation(act: Act, x: &[f32]) -> Vec<f32> {
    let kind = match act {
        Act::None => return x.to_vec(),
        Act::Silu => UnaryKind::Silu,
        Act::GeluErf => UnaryKind::GeluErf,
        Act::GeluTanh => UnaryKind::GeluTanh,
        Act::QuickGelu => UnaryKind::QuickGelu,
        Act::Relu => UnaryKind::Relu,
        Act::Sigmoid => UnaryKind::Sigmoid,
        Act::Tanh => UnaryKind::Tanh,
    };
    of_kind(kind, x)
}

fn of_kind(kind: UnaryKind, x: &[f32]) -> Vec<f32> {
    eval(&Op::Unary { kind }, &[Some(&tensor(&[x.len()], x.iter().copied()))]).to_f32_vec()
}

/// [`cqc_kernels::binary`] of equally many values.
pub fn binary(op: Binary, a: &[f32], b: &[f32]) -> Vec<f32> {
    let kind = match op {
        Binary::Add => BinaryKind::Add,
        Binary::Sub => BinaryKind::Sub,
        Binary::Mul => BinaryKind::Mul,
        Binary::Div => BinaryKind::Div,
        Binary::Max => BinaryKind::Max,
        Binary::Min => BinaryKind::Min,
        Binary::Pow => BinaryKind::Pow,
    };
    let [a, b] = [a, b].map(|x| tensor(&[x.len()], x.iter().copied()));
    pairwise(kind, &a, &b).to_f32_vec()
}

/// [`cqc_kernels::copy_strided`], element by element; it is no operator.
pub fn copy_strided<T: Copy>(
    shape: &[usize],
    x: &[T],
    x_offset: usize,
    x_strides: &[isize],
    y: &mut [T],
    y_strides: &[usize],
) {
    for flat in 0..shape.iter().product() {
        let (mut rest, mut from, mut to) = (flat, x_offset as isize, 0);
        for dim in (0..shape.len()).rev() {
            let index = rest % shape[dim];
            rest /= shape[dim];
            from += index as isize * x_strides[dim];
            to += index * y_strides[dim];
        }
        y[to] = x[from as usize];
    }
}
