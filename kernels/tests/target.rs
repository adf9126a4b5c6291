//! Codes, bf16 and rounded values stored at once are those of the values, quantized or rounded afterwards.

mod common;
use common::*;
use cqc_kernels::*;

/// `rows × cols` results, by a kernel that writes rows `ld` apart.
fn check(rng: &mut Rng, rows: usize, cols: usize, kernel: &dyn Fn(Isa, &Pool, Target, usize)) {
    let ld = cols + rng.size(0, 5);
    let first = rng.size(1, cols);
    let segments: Vec<usize> = [first, cols - first].into_iter().filter(|&n| n > 0).collect();
    let scale: Vec<f32> = segments.iter().map(|_| 0.001 + rng.size(1, 50) as f32 / 1000.0).collect();
    let zero_point: Vec<f32> = segments.iter().map(|_| rng.size(0, 255) as f32).collect();
    let how = FakeQuant { bits: 8, segments: &segments, scale: &scale, zero_point: &zero_point };
    for isa in isas() {
        for pool in pools() {
            let size = isa.code_type().size();
            let (mut values, mut codes) = (vec![0.0; rows * ld], vec![0u16; (rows * ld * size).div_ceil(2)]);
            let mut expected = codes.clone();
            kernel(isa, &pool, Target::Values(&mut values), ld);
            let bytes = |codes| &mut bytemuck::cast_slice_mut::<u16, u8>(codes)[..rows * ld * size];
            quantize(isa, &pool, rows, &values, ld, &how, bytes(&mut expected), ld);
            kernel(isa, &pool, Target::Codes(bytes(&mut codes), how), ld);
            assert_eq!(codes, expected, "{isa}, {rows} rows of {segments:?}");
            let (mut halves, mut expected) = (vec![0u16; rows * ld], vec![0u16; rows * ld]);
            round_bf16(isa, &pool, rows, cols, &values, ld, Target::Bf16(&mut expected), ld);
            kernel(isa, &pool, Target::Bf16(&mut halves), ld);
            assert_eq!(halves, expected, "{isa}, {rows} rows of {cols} bf16");
            let mut widened = vec![0.0; rows * ld];
            kernel(isa, &pool, Target::RoundedBf16(&mut widened), ld);
            let widened: Vec<u32> = widened.iter().map(|v| v.to_bits()).collect();
            let expected: Vec<u32> = expected.iter().map(|&v| u32::from(v) << 16).collect();
            assert_eq!(widened, expected, "{isa}, {rows} rows of {cols} rounded to bf16");
            let passing: Vec<f32> = [0.0, scale[0]].into_iter().take(scale.len()).collect();
            for scale in [&scale, &passing] {
                let how = FakeQuant { scale, ..how };
                let (mut rounded, mut expected) = (vec![0.0; rows * ld], vec![0.0; rows * ld]);
                fake_quant(isa, &pool, rows, &values, ld, &how, &mut expected, ld);
                kernel(isa, &pool, Target::Rounded(&mut rounded, how), ld);
                assert_eq!(rounded, expected, "{isa}, {rows} rows of {segments:?}, rounded with {scale:?}");
            }
        }
    }
}

#[test]
fn norms_store_codes() {
    let mut rng = Rng::new(1);
    for round in 0..24 {
        let groups = rng.size(1, 6);
        let (n, hw, c) = (rng.size(1, 3), rng.size(1, 90), groups * rng.size(1, 21));
        let x = rng.noise(n * hw * c);
        let act = Act::ALL[round % 8];
        let shape = GroupNorm { n, hw, c, groups, eps: 1e-5, gamma: None, beta: None, act };
        check(&mut rng, n * hw, c, &|isa, pool, y, ld| group_norm(isa, pool, &shape, &x, c, y, ld));
        let rows = LayerNorm { rows: n * hw, c, eps: 1e-5, gamma: None, beta: None, modulate: None };
        check(&mut rng, n * hw, c, &|isa, pool, y, ld| layer_norm(isa, pool, &rows, &x, c, y, ld));
        check(&mut rng, n * hw, c, &|isa, pool, y, ld| rms_norm(isa, pool, &rows, &x, c, y, ld));
    }
}

#[test]
fn products_store_codes() {
    let mut rng = Rng::new(2);
    for round in 0..24 {
        let (m, k, n) = (rng.size(1, 40), 4 * rng.size(1, 20), rng.size(1, 70));
        let (x, w) = (rng.noise(m * k), rng.noise(k * n));
        let epilogue = Epilogue { act: Act::ALL[round % 8], ..Epilogue::default() };
        check(&mut rng, m, n, &|isa, pool, y, ld| {
            linear(isa, pool, m, k, n, &x, k, &PackedMatrix::from_kn(isa, k, n, &w), &epilogue, y, ld);
        });
        check(&mut rng, m, n, &|isa, pool, y, ld| {
            let bits = |v: &[f32]| v.iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<u16>>();
            let packed = PackedBf16::from_kn(isa, k, n, &bits(&w));
            linear_bf16(isa, pool, m, k, n, &bits(&x), k, &packed, &epilogue, y, ld);
        });
        let signed: Vec<i8> = w.iter().map(|w| (w * 127.0) as i8).collect();
        let scale = vec![0.001; n];
        check(&mut rng, m, n, &|isa, pool, y, ld| {
            let codes = vec![0x0101u16; (m * k * isa.code_type().size()).div_ceil(2)];
            let codes = &bytemuck::cast_slice(&codes)[..m * k * isa.code_type().size()];
            let x = Activations { codes, ld: k, scale: &[0.1], zero_point: &[3.0] };
            let packed = PackedCodes::from_kn(isa, &[k], n, &signed, &scale);
            linear_codes(isa, pool, m, k, n, &x, &packed, &epilogue, y, ld);
        });
    }
}

#[test]
fn convolutions_store_codes() {
    let mut rng = Rng::new(3);
    for _ in 0..24 {
        let (n, h, w, channels) = (rng.size(1, 2), rng.size(3, 9), rng.size(3, 9), 4 * rng.size(1, 12));
        let dense = ConvShape::same(n, h, w, channels, rng.size(1, 50), 3);
        // one output channel per group: the kernel for depthwise convolutions
        let depthwise = ConvShape { groups: channels, ..ConvShape::same(n, h, w, channels, channels, 3) };
        for shape in [dense, depthwise] {
            let (x, weights) = (rng.noise(n * h * w * channels), rng.noise(shape.cout * shape.k()));
            check(&mut rng, shape.out_rows(), shape.cout, &|isa, pool, y, ld| {
                let conv = Conv::new(isa, shape).unwrap();
                conv.run(pool, &x, channels, &conv.pack(&weights), &Epilogue::default(), y, ld);
            });
        }
    }
}
