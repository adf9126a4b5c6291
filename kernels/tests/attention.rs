//! Attention equals its definition: ragged lengths, grouped heads, masks, causality, several key
//! blocks.

mod common;
use common::*;
use cqc_kernels::attention::attention_scratch_len;
use cqc_kernels::*;

/// Weights sum to 1 and values lie below 1; exp is good to 3e-7, sums of up to 600 terms to a
/// little more.
const TOLERANCE: f32 = 5e-6;

fn check(rng: &mut Rng, s: AttentionShape, mask: Option<&[f32]>) {
    let q = rng.noise(s.n * s.lq * s.ldq);
    let (k, v) = (rng.noise(s.n * s.lk * s.ldk), rng.noise(s.n * s.lk * s.ldv));
    let mut want = vec![7.0; s.n * s.lq * s.ldy];
    definition::attention(&s, &q, &k, &v, mask, &mut want);
    for isa in isas() {
        let mut first: Option<Vec<f32>> = None;
        for pool in pools() {
            let mut y = vec![7.0; want.len()];
            let mut scratch = vec![f32::NAN; attention_scratch_len(isa, &s, pool.threads())];
            attention(isa, &pool, &s, &q, &k, &v, mask, &mut y, &mut scratch);
            assert_close(&y, &want, TOLERANCE, &format!("{isa} {s:?}"));
            assert_eq!(
                first.get_or_insert_with(|| y.clone()),
                &y,
                "result depends on the number of threads"
            );
        }
    }
}

/// The same for operands of bf16 and weights rounded to it, by both kernels.
fn check_bf16(rng: &mut Rng, s: AttentionShape, mask: Option<&[f32]>) {
    let s = AttentionShape { softmax_bits: cqc_proto::op::SOFTMAX_BF16, ..s };
    let mut bits =
        |n: usize| rng.noise(n).iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<_>>();
    let operands = [bits(s.n * s.lq * s.ldq), bits(s.n * s.lk * s.ldk), bits(s.n * s.lk * s.ldv)];
    let [q, k, v] = operands
        .each_ref()
        .map(|x| x.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect::<Vec<_>>());
    let mut want = vec![7.0; s.n * s.lq * s.ldy];
    definition::attention(&s, &q, &k, &v, mask, &mut want);
    for isa in isas() {
        let mut first: Option<Vec<f32>> = None;
        for pool in pools() {
            let (mut y, mut wide) = (vec![7.0; want.len()], vec![7.0; want.len()]);
            let mut scratch = vec![f32::NAN; attention_scratch_len(isa, &s, pool.threads())];
            attention(isa, &pool, &s, &q, &k, &v, mask, &mut wide, &mut scratch);
            let mut scratch = vec![f32::NAN; attention_bf16_scratch_len(isa, &s, pool.threads())];
            attention_bf16(
                isa,
                &pool,
                &s,
                operands.each_ref().map(|x| &x[..]),
                mask,
                &mut y,
                &mut scratch,
            );
            for (kernel, y) in [("f32", &wide), ("bf16", &y)] {
                let pairs = || y.iter().zip(&want).map(|(a, b)| (a - b).abs());
                // a weight that lies between two of bf16 may become the other one: 1 / 256 of it
                let (worst, close) =
                    (pairs().fold(0.0, f32::max), pairs().filter(|&d| d < 1e-5).count());
                assert!(worst <= 1.0 / 128.0, "{isa}, {kernel}, {s:?}: {worst}");
                assert!(
                    close * 20 >= y.len() * 19,
                    "{isa}, {kernel}, {s:?}: {close} of {}",
                    y.len()
                );
            }
            assert_eq!(
                first.get_or_insert_with(|| y.clone()),
                &y,
                "result depends on the number of threads"
            );
        }
    }
}

fn shape(
    n: usize,
    [heads, kv_heads]: [usize; 2],
    [lq, lk]: [usize; 2],
    [d, dv]: [usize; 2],
) -> AttentionShape {
    AttentionShape {
        n,
        heads,
        kv_heads,
        lq,
        lk,
        d,
        dv,
        scale: (d as f32).sqrt().recip(),
        causal: false,
        softmax_bits: 0,
        mask_strides: [0; 4],
        ldq: heads * d,
        ldk: kv_heads * d,
        ldv: kv_heads * dv,
        ldy: heads * dv,
    }
}

#[test]
fn random_shapes_equal_the_definition() {
    let mut rng = Rng::new(1);
    for _ in 0..40 {
        let kv_heads = rng.size(1, 3);
        let heads = kv_heads * rng.size(1, 3);
        let lengths = [rng.size(1, 70), rng.size(1, 70)];
        let mut s =
            shape(rng.size(1, 2), [heads, kv_heads], lengths, [rng.size(1, 40), rng.size(1, 40)]);
        s.ldq += rng.size(0, 3);
        s.ldk += rng.size(0, 3);
        s.ldv += rng.size(0, 3);
        s.ldy += rng.size(0, 3);
        s.causal = rng.chance();
        check(&mut rng, s, None);
        check_bf16(&mut rng, s, None);
    }
}

#[test]
fn several_key_blocks_are_joined() {
    let mut rng = Rng::new(2);
    for causal in [false, true] {
        check(&mut rng, AttentionShape { causal, ..shape(1, [2, 1], [300, 600], [24, 20]) }, None);
        check(
            &mut rng,
            AttentionShape { causal, scale: 30.0, ..shape(1, [1, 1], [60, 513], [8, 8]) },
            None,
        );
        check_bf16(
            &mut rng,
            AttentionShape { causal, ..shape(1, [2, 1], [300, 600], [24, 70]) },
            None,
        );
        check_bf16(
            &mut rng,
            AttentionShape { causal, scale: 3.0, ..shape(1, [1, 1], [60, 513], [40, 8]) },
            None,
        );
    }
}

#[test]
fn masks_broadcast_and_hide() {
    let mut rng = Rng::new(3);
    let (n, heads, lq, lk) = (2, 2, 50, 300);
    let s = shape(n, [heads, 1], [lq, lk], [16, 16]);
    let mut mask = rng.noise(n * heads * lq * lk);
    mask[..lk].fill(f32::NEG_INFINITY); // a query that sees nothing
    mask[lk..lk + 256].fill(f32::NEG_INFINITY); // one that sees nothing in the first block
    mask.iter_mut().skip(2 * lk).step_by(3).for_each(|x| *x = f32::NEG_INFINITY);
    for mask_strides in
        [[heads * lq * lk, lq * lk, lk, 1], [0, 0, lk, 1], [lk, 0, 0, 1], [lq, 0, 1, 0]]
    {
        check(&mut rng, AttentionShape { mask_strides, ..s }, Some(&mask));
        check(&mut rng, AttentionShape { mask_strides, causal: true, ..s }, Some(&mask));
        check_bf16(&mut rng, AttentionShape { mask_strides, ..s }, Some(&mask));
    }
}

#[test]
fn no_keys_give_zeros() {
    let mut rng = Rng::new(4);
    check(&mut rng, shape(2, [2, 2], [5, 0], [4, 4]), None);
    check_bf16(&mut rng, shape(2, [2, 2], [5, 0], [4, 4]), None);
}

#[test]
fn rounded_weights_equal_the_definition() {
    let mut rng = Rng::new(5);
    for (lengths, causal) in [([30, 20], false), ([70, 600], false), ([300, 300], true)] {
        let s = AttentionShape { softmax_bits: 8, causal, ..shape(1, [2, 1], lengths, [24, 20]) };
        let (q, k, v) = (rng.noise(s.lq * s.ldq), rng.noise(s.lk * s.ldk), rng.noise(s.lk * s.ldv));
        let mut want = vec![0.0; s.lq * s.ldy];
        definition::attention(&s, &q, &k, &v, None, &mut want);
        for isa in isas() {
            let mut y = vec![0.0; s.lq * s.ldy];
            let mut scratch = vec![0.0; attention_scratch_len(isa, &s, 2)];
            attention(isa, &Pool::new(2), &s, &q, &k, &v, None, &mut y, &mut scratch);
            let worst = y.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            // exp may differ by an ulp before rounding: a weight that lies between two levels may
            // take the other one, and the sum of weights is at least 1; without rounding the
            // difference would be 1e-6, with rounding left out some 1e-2
            assert!(worst <= 3.0 / 255.0, "{isa} {lengths:?}: {worst}");
            let close = y.iter().zip(&want).filter(|(a, b)| (*a - *b).abs() < 1e-5).count();
            assert!(close * 10 > y.len() * 9, "{isa} {lengths:?}: {close} of {}", y.len());
        }
    }
}
