//! Attention over codes equals the definition over what the codes stand for.

mod common;
use common::*;
use cqc_kernels::*;

/// Codes of one operand, and what they stand for.
struct Operand {
    codes: Vec<u8>,
    ld: usize,
    scale: [f32; 1],
    zero_point: [f32; 1],
}

impl Operand {
    fn new(rng: &mut Rng, rows: usize, ld: usize) -> Operand {
        let codes = (0..rows * ld).map(|_| rng.size(0, 255) as u8).collect();
        Operand {
            codes,
            ld,
            scale: [0.002 + rng.size(1, 9) as f32 / 500.0],
            zero_point: [rng.size(0, 255) as f32],
        }
    }

    fn values(&self) -> Vec<f32> {
        self.codes
            .iter()
            .map(|&code| (f32::from(code) - self.zero_point[0]) * self.scale[0])
            .collect()
    }

    /// In the type that `isa` stores codes in.
    fn stored(&self, isa: Isa) -> Vec<u16> {
        match isa.code_type().size() {
            2 => self.codes.iter().map(|&code| u16::from(code)).collect(),
            _ => self
                .codes
                .chunks(2)
                .map(|two| u16::from_le_bytes([two[0], *two.get(1).unwrap_or(&0)]))
                .collect(),
        }
    }

    fn activations<'a>(&'a self, isa: Isa, stored: &'a [u16]) -> Activations<'a> {
        let codes = &bytemuck::cast_slice(stored)[..self.codes.len() * isa.code_type().size()];
        Activations { codes, ld: self.ld, scale: &self.scale, zero_point: &self.zero_point }
    }
}

fn shape(
    n: usize,
    [heads, kv_heads]: [usize; 2],
    [lq, lk]: [usize; 2],
    [d, dv]: [usize; 2],
) -> AttentionShape {
    let (scale, softmax_bits) = ((d as f32).sqrt().recip(), 8);
    let (ldq, ldk, ldv, ldy) = (heads * d, kv_heads * d, kv_heads * dv, heads * dv);
    let mask_strides = [0; 4];
    AttentionShape {
        n,
        heads,
        kv_heads,
        lq,
        lk,
        d,
        dv,
        scale,
        causal: false,
        softmax_bits,
        mask_strides,
        ldq,
        ldk,
        ldv,
        ldy,
    }
}

fn check(rng: &mut Rng, s: AttentionShape, mask: Option<&[f32]>) {
    let [q, k, v] =
        [(s.lq, s.ldq), (s.lk, s.ldk), (s.lk, s.ldv)].map(|(l, ld)| Operand::new(rng, s.n * l, ld));
    let mut want = vec![7.0; s.n * s.lq * s.ldy];
    definition::attention(&s, &q.values(), &k.values(), &v.values(), mask, &mut want);
    for isa in isas() {
        let stored = [&q, &k, &v].map(|x| x.stored(isa));
        let [qa, ka, va] = [(&q, 0), (&k, 1), (&v, 2)].map(|(x, i)| x.activations(isa, &stored[i]));
        let mut first: Option<Vec<f32>> = None;
        for pool in pools() {
            let mut y = vec![7.0; want.len()];
            let mut scratch = vec![f32::NAN; attention_codes_scratch_len(isa, &s, pool.threads())];
            attention_codes(isa, &pool, &s, [&qa, &ka, &va], mask, &mut y, &mut scratch);
            assert_eq!(
                first.get_or_insert_with(|| y.clone()),
                &y,
                "result depends on the number of threads"
            );
        }
        let y = first.expect("there are pools");
        let largest = v.values().iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = y.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // a weight that lies between two levels may take the other one; see
        // rounded_weights_equal_the_definition
        assert!(worst <= 3.0 / 255.0 * largest, "{isa} {s:?}: {worst} of {largest}");
        let close =
            y.iter().zip(&want).filter(|(a, b)| (*a - *b).abs() < 1e-5 * (1.0 + largest)).count();
        assert!(close * 10 > y.len() * 9, "{isa} {s:?}: {close} of {}", y.len());
    }
}

#[test]
fn random_shapes_equal_the_definition() {
    let mut rng = Rng::new(1);
    for _ in 0..40 {
        let kv_heads = rng.size(1, 3);
        let heads = kv_heads * rng.size(1, 3);
        let lengths = [rng.size(1, 130), rng.size(1, 130)];
        let mut s = shape(
            rng.size(1, 2),
            [heads, kv_heads],
            lengths,
            [4 * rng.size(1, 16), rng.size(1, 70)],
        );
        s.ldq += rng.size(0, 3);
        s.ldk += rng.size(0, 3);
        s.ldv += rng.size(0, 3);
        s.ldy += rng.size(0, 3);
        s.causal = rng.chance();
        check(&mut rng, s, None);
    }
}

#[test]
fn many_keys_leave_room_for_few_queries() {
    let mut rng = Rng::new(2);
    check(&mut rng, shape(1, [1, 1], [50, 5000], [8, 12]), None);
}

#[test]
fn masks_hide() {
    let mut rng = Rng::new(3);
    let (n, heads, lq, lk) = (2, 2, 50, 300);
    let s = shape(n, [heads, 1], [lq, lk], [16, 16]);
    let mut mask = rng.noise(n * heads * lq * lk);
    mask[..lk].fill(f32::NEG_INFINITY); // a query that sees nothing
    mask.iter_mut().skip(2 * lk).step_by(3).for_each(|x| *x = f32::NEG_INFINITY);
    for mask_strides in
        [[heads * lq * lk, lq * lk, lk, 1], [0, 0, lk, 1], [lk, 0, 0, 1], [lq, 0, 1, 0]]
    {
        check(&mut rng, AttentionShape { mask_strides, ..s }, Some(&mask));
    }
}

#[test]
fn no_keys_give_zeros() {
    let mut rng = Rng::new(4);
    check(&mut rng, shape(2, [2, 2], [5, 0], [4, 4]), None);
}

#[test]
fn the_largest_sums_do_not_overflow() {
    let s = shape(1, [1, 1], [1, 32768], [64, 4]);
    let all = |n: usize, code: u8, zero: f32| Operand {
        codes: vec![code; n],
        ld: n / s.lk.min(n),
        scale: [1.0],
        zero_point: [zero],
    };
    let (q, k, v) = (
        Operand { ld: 64, ..all(64, 255, 0.0) },
        all(s.lk * 64, 255, 255.0),
        all(s.lk * 4, 255, 0.0),
    );
    for isa in isas() {
        let stored = [&q, &k, &v].map(|x| x.stored(isa));
        let [qa, ka, va] = [(&q, 0), (&k, 1), (&v, 2)].map(|(x, i)| x.activations(isa, &stored[i]));
        let mut y = vec![0.0; 4];
        let mut scratch = vec![0.0; attention_codes_scratch_len(isa, &s, 1)];
        attention_codes(isa, &Pool::new(1), &s, [&qa, &ka, &va], None, &mut y, &mut scratch);
        assert_close(&y, &[255.0; 4], 1e-6, &isa.to_string());
    }
}

#[test]
fn results_are_stored_as_codes() {
    let mut rng = Rng::new(5);
    let s = shape(1, [2, 2], [37, 41], [16, 20]);
    let [q, k, v] =
        [(s.lq, s.ldq), (s.lk, s.ldk), (s.lk, s.ldv)].map(|(l, ld)| Operand::new(&mut rng, l, ld));
    let how = FakeQuant { bits: 8, segments: &[40], scale: &[0.004], zero_point: &[100.0] };
    for isa in isas() {
        let pool = Pool::new(2);
        let stored = [&q, &k, &v].map(|x| x.stored(isa));
        let [qa, ka, va] = [(&q, 0), (&k, 1), (&v, 2)].map(|(x, i)| x.activations(isa, &stored[i]));
        let mut scratch = vec![0.0; attention_codes_scratch_len(isa, &s, 2)];
        let bytes = 37 * 40 * isa.code_type().size();
        let (mut y, mut want, mut codes) =
            (vec![0.0; 37 * 40], vec![0u16; 37 * 40], vec![0u16; 37 * 40]);
        attention_codes(isa, &pool, &s, [&qa, &ka, &va], None, &mut y, &mut scratch);
        quantize(
            isa,
            &pool,
            37,
            &y,
            40,
            &how,
            &mut bytemuck::cast_slice_mut(&mut want)[..bytes],
            40,
        );
        let output = Output::Codes(&mut bytemuck::cast_slice_mut(&mut codes)[..bytes], how);
        attention_codes(isa, &pool, &s, [&qa, &ka, &va], None, output, &mut scratch);
        assert_eq!(codes, want, "{isa}");
    }
}
