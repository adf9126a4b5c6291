//! Attention and the other composite operators of denoisers.

use super::Call;
use super::elementwise::activate;
use super::lane::{Lane, by_float};
use super::linear::product;
use super::quant::nearest_bf16;
use super::walk::broadcast_strides;
use cqc_proto::dtype::DType;
use cqc_proto::op::{Act, Op, SOFTMAX_BF16};
use cqc_proto::tensor::Tensor;
use std::f64::consts::{LN_2, LOG2_E};

pub(super) fn eval(call: &Call) -> Tensor {
    match call.op {
        Op::Attention { .. } => by_float!(call.out().dtype, T => attention::<T>(call)),
        Op::TimestepEmbedding { cos_first } => timestep_embedding(call, *cos_first),
        Op::Geglu { act } => by_float!(call.out().dtype, T => geglu::<T>(call, *act)),
        _ => unreachable!("dispatched by reference::eval"),
    }
}

/// Queries whose scores are held at a time.
const BLOCK: usize = 64;

/// Sizes: batch, query and key length, heads, channels per head of q, k and of v.
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    dv: usize,
}

impl Sizes {
    fn new(call: &Call, heads: usize, kv_heads: usize) -> Sizes {
        let [q, k, v] = [0, 1, 2].map(|i| call.input(i).shape());
        Sizes {
            batch: q[0],
            queries: q[1],
            keys: k[1],
            heads,
            kv_heads,
            d: q[2] / heads,
            dv: v[2] / kv_heads,
        }
    }
}

fn attention<T: Lane>(call: &Call) -> Tensor {
    let Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits } = call.op else {
        unreachable!("dispatched by `eval`")
    };
    let s = Sizes::new(call, *heads, *kv_heads);
    let [q, k, v] = [0, 1, 2].map(|i| T::load(call.input(i)));
    let mask = Mask::new(call, &s, *causal);
    let mut y = vec![T::ZERO; call.out().len()];
    for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
        let kv_head = h / (s.heads / s.kv_heads);
        let keys = columns(&k, b * s.keys, s.keys, kv_head, s.kv_heads, s.d);
        let values = rows(&v, b * s.keys, s.keys, kv_head, s.kv_heads, s.dv);
        for first in (0..s.queries).step_by(BLOCK) {
            let n = BLOCK.min(s.queries - first);
            let queries = rows(&q, b * s.queries + first, n, h, s.heads, s.d);
            let mut scores = vec![T::ZERO; n * s.keys];
            product(&queries, &keys, &mut scores, s.d, s.keys);
            for i in 0..n {
                let row = &mut scores[i * s.keys..][..s.keys];
                row.iter_mut().for_each(|v| {
                    *v = T::from_f64(capped(v.to_f64() * *scale as f64, *softcap as f64))
                });
                mask.apply(row, b, h, first + i);
                softmax(row, *softmax_bits);
            }
            let mut sums = vec![T::ZERO; n * s.dv];
            product(&scores, &values, &mut sums, s.keys, s.dv);
            for i in 0..n {
                let at = ((b * s.queries + first + i) * s.heads + h) * s.dv;
                y[at..][..s.dv].copy_from_slice(&sums[i * s.dv..][..s.dv]);
            }
        }
    }
    call.out().of(&y)
}

/// `n` rows of one head of a `[rows, heads · d]` matrix, packed.
fn rows<T: Lane>(x: &[T], first: usize, n: usize, head: usize, heads: usize, d: usize) -> Vec<T> {
    (first..first + n).flat_map(|row| x[(row * heads + head) * d..][..d].iter().copied()).collect()
}

/// The transpose of [`rows`].
fn columns<T: Lane>(
    x: &[T],
    first: usize,
    n: usize,
    head: usize,
    heads: usize,
    d: usize,
) -> Vec<T> {
    (0..d)
        .flat_map(|c| (first..first + n).map(move |row| x[(row * heads + head) * d + c]))
        .collect()
}

fn capped(score: f64, softcap: f64) -> f64 {
    if softcap == 0.0 { score } else { softcap * libm::tanh(score / softcap) }
}

/// What is added to scores: a number, -inf where a query does not see a key.
struct Mask {
    values: Option<Vec<f64>>,
    steps: Vec<isize>,
    /// Query i sees keys up to i + this.
    diagonal: Option<i64>,
}

impl Mask {
    fn new(call: &Call, s: &Sizes, causal: bool) -> Mask {
        let mask = call.optional(3);
        let hidden = |t: &Tensor| {
            t.bytes().iter().map(|&b| if b != 0 { 0.0 } else { f64::NEG_INFINITY }).collect()
        };
        Mask {
            values: mask.map(|t| if t.dtype() == DType::Bool { hidden(t) } else { t.to_f64_vec() }),
            steps: mask.map_or(Vec::new(), |t| {
                broadcast_strides(t.shape(), &[s.batch, s.heads, s.queries, s.keys])
            }),
            diagonal: causal.then_some(s.keys as i64 - s.queries as i64),
        }
    }

    fn apply<T: Lane>(&self, row: &mut [T], batch: usize, head: usize, query: usize) {
        if let Some(values) = &self.values {
            let start = [batch, head, query]
                .iter()
                .zip(&self.steps)
                .map(|(&i, &s)| i * s as usize)
                .sum::<usize>();
            let step = self.steps[3] as usize;
            row.iter_mut()
                .enumerate()
                .for_each(|(j, v)| *v = v.add(T::from_f64(values[start + j * step])));
        }
        if let Some(diagonal) = self.diagonal {
            let seen = (query as i64 + diagonal + 1).clamp(0, row.len() as i64) as usize;
            row[seen..].fill(T::LOWEST);
        }
    }
}

/// In place; zeros where every score is -inf. With `bits`, weights are multiples of 1 / (2^bits −
/// 1) of the largest before they are normalised, or bf16.
fn softmax<T: Lane>(row: &mut [T], bits: u8) {
    let largest = row.iter().fold(T::LOWEST, |m, &v| Lane::max(m, v));
    if largest == T::LOWEST {
        return row.fill(T::ZERO);
    }
    let mut base = largest.to_f64();
    if bits == SOFTMAX_BF16 {
        base = (base * LOG2_E).ceil() * LN_2;
    }
    let mut sum = 0.0;
    for v in row.iter_mut() {
        let mut e = libm::exp(v.to_f64() - base);
        if bits == SOFTMAX_BF16 {
            e = f64::from(nearest_bf16(e as f32));
        } else if bits > 0 {
            let levels = f64::from((1u32 << bits) - 1);
            e = (e * levels).round_ties_even() / levels;
        }
        sum += e;
        *v = T::from_f64(e);
    }
    row.iter_mut().for_each(|v| *v = T::from_f64(v.to_f64() / sum));
}

fn timestep_embedding(call: &Call, cos_first: bool) -> Tensor {
    let (times, f) = (f32::load(call.input(0)), f32::load(call.input(1)));
    let mut y: Vec<f64> = Vec::with_capacity(call.out().len());
    for (row, &t) in times.iter().enumerate() {
        // most are one time step for a whole batch
        if row > 0 && times[row - 1].to_bits() == t.to_bits() {
            y.extend_from_within((row - 1) * 2 * f.len()..);
            continue;
        }
        let angle = |f: &f32| (t * f) as f64; // rounded to f32, as the graphs do
        let sines = f.iter().map(|f| libm::sin(angle(f)));
        let cosines = f.iter().map(|f| libm::cos(angle(f)));
        match cos_first {
            true => y.extend(cosines.chain(sines)),
            false => y.extend(sines.chain(cosines)),
        }
    }
    call.out().of(&y)
}

fn geglu<T: Lane>(call: &Call, act: Act) -> Tensor {
    let (x, out) = (T::load(call.input(0)), call.out());
    let half = *out.shape.last().expect("the shape rule refuses scalars");
    let mut y = Vec::with_capacity(out.len());
    for row in x.chunks_exact(2 * half) {
        let (a, b) = row.split_at(half);
        y.extend(a.iter().zip(b).map(|(a, b)| T::from_f64(a.to_f64() * activate(act, b.to_f64()))));
    }
    out.of(&y)
}
