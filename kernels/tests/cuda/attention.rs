//! Attention, on tensor cores and directly.

use crate::bench::{benches, expected, halves, tensor};
use crate::common::{Rng, assert_close};
use cqc_kernels::AttentionShape;
use cqc_kernels::cuda::{ElementType, attention};
use cqc_proto::Op;

struct Case {
    n: usize,
    heads: usize,
    kv_heads: usize,
    lq: usize,
    lk: usize,
    d: usize,
    dv: usize,
    causal: bool,
    bits: u8,
    masked: bool,
    /// Elements between rows of q, k and v: tensor cores want multiples of 8.
    gap: usize,
}

const PLAIN: Case = Case {
    n: 2,
    heads: 2,
    kv_heads: 2,
    lq: 70,
    lk: 77,
    d: 32,
    dv: 32,
    causal: false,
    bits: 0,
    masked: false,
    gap: 0,
};

fn check(case: &Case, kernel: &str) {
    for b in benches() {
        let c = case;
        let mut rng = Rng::new(7);
        let (cq, ck, cv) = (c.heads * c.d, c.kv_heads * c.d, c.kv_heads * c.dv);
        let q: Vec<f32> = halves(&mut rng, c.n * c.lq * cq).iter().map(|v| v * 4.0).collect();
        let (k, v) = (halves(&mut rng, c.n * c.lk * ck), halves(&mut rng, c.n * c.lk * cv));
        let mask = halves(&mut rng, c.heads * c.lq * c.lk);
        let scale = 1.0 / (c.d as f32).sqrt();
        let op = Op::Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            scale,
            causal: c.causal,
            softcap: 0.0,
            softmax_bits: c.bits,
        };
        let inputs = [
            tensor(&q, &[c.n, c.lq, cq]),
            tensor(&k, &[c.n, c.lk, ck]),
            tensor(&v, &[c.n, c.lk, cv]),
            tensor(&mask, &[c.heads, c.lq, c.lk]),
        ];
        let wanted = expected(
            &op,
            &[Some(&inputs[0]), Some(&inputs[1]), Some(&inputs[2]), c.masked.then_some(&inputs[3])],
        );
        let put = |x: &[f32], cols: usize| b.put(x, cols, cols + c.gap, ElementType::F16);
        let (q, k, v) = (put(&q, cq), put(&k, ck), put(&v, cv));
        let mask = c.masked.then(|| b.put(&mask, c.lk, c.lk, ElementType::F32));
        let y = b.room(c.n * c.lq, c.heads * c.dv + 3, ElementType::F16);
        let shape = AttentionShape {
            n: c.n,
            heads: c.heads,
            kv_heads: c.kv_heads,
            lq: c.lq,
            lk: c.lk,
            d: c.d,
            dv: c.dv,
            scale,
            causal: c.causal,
            softmax_bits: c.bits,
            mask_strides: [0, c.lq * c.lk, c.lk, 1],
            ldq: q.ld,
            ldk: k.ld,
            ldv: v.ld,
            ldy: y.ld,
        };
        let launch = attention(&b.state, &shape, [&q, &k, &v], mask.as_ref(), &y);
        assert_eq!(launch.kernel().name, kernel);
        b.run(&[launch]);
        // a weight near the middle between two levels may take the other one
        let tolerance = if c.bits > 0 { 8e-3 } else { 2e-3 };
        assert_close(&b.get(&y, c.n * c.lq, c.heads * c.dv), &wanted, tolerance, kernel);
    }
}

#[test]
fn attention_on_tensor_cores_equals_the_definition() {
    check(&PLAIN, "attention_32");
    check(&Case { d: 8, dv: 24, lq: 1, lk: 1, ..PLAIN }, "attention_32");
    check(&Case { d: 40, dv: 40, lq: 65, lk: 130, gap: 8, n: 1, ..PLAIN }, "attention_64");
    check(&Case { d: 80, dv: 72, lq: 20, lk: 64, n: 1, ..PLAIN }, "attention_96");
    check(
        &Case { d: 160, dv: 160, lq: 30, lk: 65, n: 1, heads: 1, kv_heads: 1, ..PLAIN },
        "attention_160",
    );
}

#[test]
fn attention_rounds_weights_by_their_largest() {
    check(&Case { bits: 8, ..PLAIN }, "attention_rounded_32");
    check(&Case { bits: 8, d: 64, dv: 64, n: 1, ..PLAIN }, "attention_rounded_64");
    check(
        &Case { bits: 8, d: 72, dv: 72, n: 1, heads: 1, kv_heads: 1, ..PLAIN },
        "attention_rounded_96",
    );
    check(
        &Case { bits: 4, d: 128, dv: 128, n: 1, lq: 9, heads: 1, kv_heads: 1, ..PLAIN },
        "attention_rounded_160",
    );
}

#[test]
fn attention_masks_and_shares_heads() {
    check(&Case { masked: true, heads: 4, n: 1, ..PLAIN }, "attention_32");
    check(&Case { causal: true, lk: 140, lq: 140, n: 1, ..PLAIN }, "attention_32");
    check(&Case { causal: true, lk: 70, bits: 8, n: 1, ..PLAIN }, "attention_rounded_32");
}

#[test]
fn direct_attention_equals_the_definition() {
    check(&Case { d: 9, dv: 35, lq: 5, lk: 11, ..PLAIN }, "attention_direct");
    check(
        &Case { gap: 3, lq: 5, lk: 11, heads: 4, masked: true, bits: 8, ..PLAIN },
        "attention_direct",
    );
    check(&Case { d: 3, dv: 3, lq: 12, lk: 12, causal: true, ..PLAIN }, "attention_direct");
}
