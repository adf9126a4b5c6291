//! Layers: convolution, product, attention, norms. Row strides as in the fast kernels.

use super::math::act;
use crate::{Act, Affine, AttentionShape, ConvShape, Epilogue, FakeQuant, GroupNorm, LayerNorm, MatmulShape, Rows};
use cqc_proto::op::SOFTMAX_BF16;
use std::f64::consts::LOG2_E;

/// y = residual + gate · act(scale · acc + bias + row) for column `col` of row `row` out of `n` columns.
pub fn finish(epilogue: &Epilogue, row: usize, col: usize, n: usize, acc: f64) -> f32 {
    let per_image = |rows: Option<Rows>| rows.map(|rows| f64::from(rows.of(row, n)[col]));
    let bias = epilogue.bias.map_or(0.0, |bias| f64::from(bias[col]));
    let acc = acc * epilogue.scale.map_or(1.0, |scale| f64::from(scale[col]));
    let y = act(epilogue.act, (acc + bias + per_image(epilogue.row).unwrap_or(0.0)) as f32);
    let y = f64::from(y) * per_image(epilogue.gate).unwrap_or(1.0);
    (y + epilogue.residual.map_or(0.0, |(data, ld)| f64::from(data[row * ld + col]))) as f32
}

/// Convolution of NHWC `x` (pixels `ldx` apart) with OIHW `w` into NHWC `y` (pixels `ldy` apart).
pub fn conv(shape: &ConvShape, x: &[f32], ldx: usize, w: &[f32], epilogue: &Epilogue, y: &mut [f32], ldy: usize) {
    let (oh, ow) = (shape.out_h(), shape.out_w());
    for row in 0..shape.out_rows() {
        let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
        for co in 0..shape.cout {
            let acc = conv_at(shape, x, ldx, w, [image, oy, ox, co]);
            y[row * ldy + co] = finish(epilogue, row, co, shape.cout, acc);
        }
    }
}

fn conv_at(s: &ConvShape, x: &[f32], ldx: usize, w: &[f32], [image, oy, ox, co]: [usize; 4]) -> f64 {
    let (cin, group) = (s.cin / s.groups, co / (s.cout / s.groups));
    let mut acc = 0.0;
    for ky in 0..s.kh {
        for kx in 0..s.kw {
            let Some(pixel) = s.source(oy, ox, ky, kx) else { continue };
            for ci in 0..cin {
                let x = x[(image * s.h * s.w + pixel) * ldx + group * cin + ci];
                acc += f64::from(x) * f64::from(w[((co * cin + ci) * s.kh + ky) * s.kw + kx]);
            }
        }
    }
    acc
}

/// y = x · w, `x` `[m, k]`, `w` `[k, n]` without gaps.
pub fn linear(
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    ldx: usize,
    w: &[f32],
    epilogue: &Epilogue,
    y: &mut [f32],
    ldy: usize,
) {
    for row in 0..m {
        for col in 0..n {
            let acc = (0..k).map(|p| f64::from(x[row * ldx + p]) * f64::from(w[p * n + col])).sum();
            y[row * ldy + col] = finish(epilogue, row, col, n, acc);
        }
    }
}

/// y\[b\] = a\[b\] · b\[b\].
pub fn matmul_batched(s: &MatmulShape, a: &[f32], b: &[f32], y: &mut [f32]) {
    for batch in 0..s.batch {
        let (a, b) = (&a[batch * s.stride_a..], &b[batch * s.stride_b..]);
        let at = |p: usize, col: usize| if s.transpose_b { b[col * s.ldb + p] } else { b[p * s.ldb + col] };
        for row in 0..s.m {
            for col in 0..s.n {
                let acc: f64 = (0..s.k).map(|p| f64::from(a[row * s.lda + p]) * f64::from(at(p, col))).sum();
                y[batch * s.stride_y + row * s.ldy + col] = acc as f32;
            }
        }
    }
}

/// softmax(scale · q kᵀ + mask) · v per image and head.
pub fn attention(s: &AttentionShape, q: &[f32], k: &[f32], v: &[f32], mask: Option<&[f32]>, y: &mut [f32]) {
    for image in 0..s.n {
        for head in 0..s.heads {
            let kv_head = head / (s.heads / s.kv_heads);
            for i in 0..s.lq {
                let q = &q[(image * s.lq + i) * s.ldq + head * s.d..][..s.d];
                let weights = attention_weights(s, q, k, mask, [image, head, kv_head, i]);
                for c in 0..s.dv {
                    let at = |j: usize| f64::from(v[(image * s.lk + j) * s.ldv + kv_head * s.dv + c]);
                    let sum: f64 = weights.iter().enumerate().map(|(j, w)| w * at(j)).sum();
                    y[(image * s.lq + i) * s.ldy + head * s.dv + c] = sum as f32;
                }
            }
        }
    }
}

/// Rounds to multiples of 1 / (2^bits − 1) of the largest, normalised by their sum.
fn round_weights(weights: &mut [f64], bits: u8) {
    let (largest, levels) = (weights.iter().fold(0.0, |m: f64, &w| m.max(w)), f64::from((1u32 << bits) - 1));
    if largest > 0.0 {
        weights.iter_mut().for_each(|w| *w = (*w / largest * levels).round_ties_even());
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
}

fn attention_weights(
    s: &AttentionShape,
    q: &[f32],
    k: &[f32],
    mask: Option<&[f32]>,
    [image, head, kv_head, i]: [usize; 4],
) -> Vec<f64> {
    let score = |j: usize| {
        if s.causal && j > i {
            return f64::NEG_INFINITY;
        }
        let k = &k[(image * s.lk + j) * s.ldk + kv_head * s.d..][..s.d];
        let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        dot * f64::from(s.scale) + mask.map_or(0.0, |mask| f64::from(mask[s.mask_at(image, head, i, j)]))
    };
    let scores = (0..s.lk).map(score).collect();
    if s.softmax_bits == SOFTMAX_BF16 {
        return softmax_bf16(scores);
    }
    let mut weights = softmax_f64(scores);
    if s.softmax_bits > 0 {
        round_weights(&mut weights, s.softmax_bits);
    }
    weights
}

/// Exponentials rounded to bf16, relative to a power of two, and normalised by their sum. All −inf gives zeros.
fn softmax_bf16(mut x: Vec<f64>) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return vec![0.0; x.len()];
    }
    let base = (max * LOG2_E).ceil();
    x.iter_mut().for_each(|x| *x = f64::from(round_bf16((*x * LOG2_E - base).exp2() as f32)));
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
    x
}

/// All −inf gives zeros.
fn softmax_f64(mut x: Vec<f64>) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return vec![0.0; x.len()];
    }
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
    x
}

/// Softmax of each row.
pub fn softmax(rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    for row in 0..rows {
        let row = row * cols..(row + 1) * cols;
        let weights = softmax_f64(x[row.clone()].iter().copied().map(f64::from).collect());
        y[row].iter_mut().zip(weights).for_each(|(y, w)| *y = w as f32);
    }
}

/// Normalisation over groups of channels and all pixels of an image.
pub fn group_norm(s: &GroupNorm, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    let width = s.c / s.groups;
    for image in 0..s.n {
        for group in 0..s.groups {
            let at = |i: usize| (image * s.hw + i / width, group * width + i % width);
            let values = (0..s.hw * width).map(|i| f64::from(x[at(i).0 * ldx + at(i).1]));
            let (mean, inv) = mean_and_inverse(values, f64::from(s.eps));
            for (row, c) in (0..s.hw * width).map(at) {
                let norm = (f64::from(x[row * ldx + c]) - mean) * inv;
                y[row * ldy + c] = act(s.act, scaled(norm, s.gamma, s.beta, c) as f32);
            }
        }
    }
}

fn scaled(x: f64, gamma: Option<&[f32]>, beta: Option<&[f32]>, c: usize) -> f64 {
    x * gamma.map_or(1.0, |gamma| f64::from(gamma[c])) + beta.map_or(0.0, |beta| f64::from(beta[c]))
}

fn mean_and_inverse(values: impl Iterator<Item = f64> + Clone, eps: f64) -> (f64, f64) {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Normalisation over each row.
pub fn layer_norm(s: &LayerNorm, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    for row in 0..s.rows {
        let values = x[row * ldx..][..s.c].iter().map(|&x| f64::from(x));
        let (mean, inv) = mean_and_inverse(values, f64::from(s.eps));
        store_norm(s, row, |x| (x - mean) * inv, &x[row * ldx..], &mut y[row * ldy..]);
    }
}

/// Division of each row by its root mean square.
pub fn rms_norm(s: &LayerNorm, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    for row in 0..s.rows {
        let square = x[row * ldx..][..s.c].iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / s.c as f64;
        let inv = 1.0 / (square + f64::from(s.eps)).sqrt();
        store_norm(s, row, |x| x * inv, &x[row * ldx..], &mut y[row * ldy..]);
    }
}

fn store_norm(s: &LayerNorm, row: usize, norm: impl Fn(f64) -> f64, x: &[f32], y: &mut [f32]) {
    for c in 0..s.c {
        let y_plain = scaled(norm(f64::from(x[c])), s.gamma, s.beta, c);
        let modulate = |(scale, shift): (Rows, Rows)| {
            y_plain * (1.0 + f64::from(scale.of(row, s.c)[c])) + f64::from(shift.of(row, s.c)[c])
        };
        y[c] = s.modulate.map_or(y_plain, modulate) as f32;
    }
}

/// y = a · gelu(b), `x` = `[a, b]` per row, `c` values each.
pub fn geglu(rows: usize, c: usize, x: &[f32], ldx: usize, y: &mut [f32], ldy: usize) {
    for row in 0..rows {
        for i in 0..c {
            y[row * ldy + i] = x[row * ldx + i] * act(Act::GeluErf, x[row * ldx + c + i]);
        }
    }
}

/// y = x · scale + shift (+ previous · its scale) (+ residual).
pub fn affine(rows: usize, c: usize, x: &[f32], ldx: usize, map: &Affine, y: &mut [f32], ldy: usize) {
    for (row, i) in (0..rows).flat_map(|row| (0..c).map(move |i| (row, i))) {
        let residual = map.residual.map_or(0.0, |(residual, ld)| residual[row * ld + i]);
        let previous = map.previous.map_or(0.0, |(previous, ld, scale)| previous[row * ld + i] * scale[i]);
        y[row * ldy + i] = x[row * ldx + i] * map.scale[i] + map.shift[i] + previous + residual;
    }
}

/// y\[Σ i·y_stride\] = x\[x_offset + Σ i·x_stride\] over all indices of `shape`.
pub fn copy_strided<T: Copy>(
    shape: &[usize],
    x: &[T],
    x_offset: usize,
    x_strides: &[isize],
    y: &mut [T],
    y_strides: &[usize],
) {
    let total: usize = shape.iter().product();
    for flat in 0..total {
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

/// y = what unsigned integers stand for that x is rounded to, segment by segment of the last axis.
pub fn fake_quant(rows: usize, x: &[f32], ldx: usize, how: &FakeQuant, y: &mut [f32], ldy: usize) {
    for row in 0..rows {
        let mut at = 0;
        for (i, &n) in how.segments.iter().enumerate() {
            let (scale, zero) = (how.scale[i], how.zero_point[i]);
            for c in at..at + n {
                let v = x[row * ldx + c];
                y[row * ldy + c] = if scale == 0.0 { v } else { fake_quant_one(v, scale, zero, how.bits) };
            }
            at += n;
        }
    }
}

/// `(q − zero) · scale` with `q = clamp(round(x / scale) + zero, 0, 2^bits − 1)`; NaN gives q = 0.
pub fn fake_quant_one(x: f32, scale: f32, zero: f32, bits: u8) -> f32 {
    let (low, high) = (-zero, ((1u32 << bits) - 1) as f32 - zero);
    // the bounds are whole, so that rounding behind the clamp is the same
    let steps = x * (1.0 / scale);
    let steps = if steps > low { steps } else { low };
    // integers have no −0
    ((if steps < high { steps } else { high }).round_ties_even() + 0.0) * scale
}

/// The nearest bf16, ties to even, as f32; a NaN stays one.
#[inline]
pub fn round_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}
