//! Codes, bf16 and rounded values stored at once are those of the values, quantized or rounded
//! afterwards.

mod common;
use common::*;
use cqc_kernels::*;

/// `rows × cols` results, by a kernel that writes rows `ld` apart.
fn check(rng: &mut Rng, rows: usize, cols: usize, kernel: &dyn Fn(Isa, &Pool, Output, usize)) {
    let ld = cols + rng.size(0, 5);
    let first = rng.size(1, cols);
    let segments: Vec<usize> = [first, cols - first].into_iter().filter(|&n| n > 0).collect();
    let scale: Vec<f32> =
        segments.iter().map(|_| 0.001 + rng.size(1, 50) as f32 / 1000.0).collect();
    let zero_point: Vec<f32> = segments.iter().map(|_| rng.size(0, 255) as f32).collect();
    let how = FakeQuant { bits: 8, segments: &segments, scale: &scale, zero_point: &zero_point };
    for isa in isas() {
        for pool in pools() {
            let size = isa.code_type().size();
            let (mut values, mut codes) =
                (vec![0.0; rows * ld], vec![0u16; (rows * ld * size).div_ceil(2)]);
            let mut expected = codes.clone();
            kernel(isa, &pool, Output::Values(&mut values), ld);
            let bytes = |codes| &mut bytemuck::cast_slice_mut::<u16, u8>(codes)[..rows * ld * size];
            quantize(isa, &pool, rows, &values, ld, &how, bytes(&mut expected), ld);
            kernel(isa, &pool, Output::Codes(bytes(&mut codes), how), ld);
            assert_eq!(codes, expected, "{isa}, {rows} rows of {segments:?}");
            let (mut halves, mut expected) = (vec![0u16; rows * ld], vec![0u16; rows * ld]);
            round_bf16(isa, &pool, rows, cols, &values, ld, Output::Bf16(&mut expected), ld);
            kernel(isa, &pool, Output::Bf16(&mut halves), ld);
            assert_eq!(halves, expected, "{isa}, {rows} rows of {cols} bf16");
            let mut widened = vec![0.0; rows * ld];
            kernel(isa, &pool, Output::RoundedBf16(&mut widened), ld);
            let widened: Vec<u32> = widened.iter().map(|v| v.to_bits()).collect();
            let expected: Vec<u32> = expected.iter().map(|&v| u32::from(v) << 16).collect();
            assert_eq!(widened, expected, "{isa}, {rows} rows of {cols} rounded to bf16");
            let passing: Vec<f32> = [0.0, scale[0]].into_iter().take(scale.len()).collect();
            for scale in [&scale, &passing] {
                let how = FakeQuant { scale, ..how };
                let (mut rounded, mut expected) = (vec![0.0; rows * ld], vec![0.0; rows * ld]);
                fake_quant(isa, &pool, rows, &values, ld, &how, &mut expected, ld);
                kernel(isa, &pool, Output::Rounded(&mut rounded, how), ld);
                assert_eq!(
                    rounded, expected,
                    "{isa}, {rows} rows of {segments:?}, rounded with {scale:?}"
                );
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
        let rows =
            LayerNorm { rows: n * hw, c, eps: 1e-5, gamma: None, beta: None, modulate: None };
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
            linear(
                isa,
                pool,
                m,
                k,
                n,
                &x,
                k,
                &PackedMatrix::from_kn(isa, k, n, &w),
                &epilogue,
                y,
                ld,
            );
        });
        check(&mut rng, m, n, &|isa, pool, y, ld| {
            let bits =
                |v: &[f32]| v.iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<u16>>();
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

/// A linear layer with columns in pairs or not, into an output whose rows are that far apart.
type Product<'a> = dyn Fn(Isa, &Pool, bool, Output, usize) + 'a;

/// The results of `linear` in pairs are those of its results' GEGLU, and are rounded like these.
#[test]
fn pairs_of_columns_are_what_a_geglu_makes_of_them() {
    let mut rng = Rng::new(4);
    for _ in 0..12 {
        let (m, k, half) =
            (rng.size(1, 70), 4 * rng.size(1, 20), PAIRED_COLUMNS / 2 * rng.size(1, 5));
        let (n, images) = (2 * half, rng.size(1, 3));
        let (x, w, bias, rows) =
            (rng.noise(m * k), rng.noise(k * n), rng.noise(n), rng.noise(images * n));
        let rows = PerImage { data: &rows, stride: n, rows_per_image: m.div_ceil(images) };
        let factors = rng.noise(n);
        let some = |yes: bool| yes.then_some(&factors[..]);
        let with =
            |scaled| Epilogue { scale: some(scaled), row: Some(rows), ..Epilogue::bias(&bias) };
        let bits = |v: &[f32]| v.iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<u16>>();
        let (x16, w16) = (bits(&x), bits(&w));
        let signed: Vec<i8> = w.iter().map(|w| (w * 127.0) as i8).collect();
        let weight_scale: Vec<f32> = factors.iter().map(|f| 0.001 * f.abs()).collect();
        let codes: Vec<u8> = x.iter().map(|x| (x * 50.0 + 128.0) as u8).collect();
        let products: [&Product; 3] = [
            &|isa, pool, paired, y, ld| {
                let pack = if paired { PackedMatrix::pairs_from_kn } else { PackedMatrix::from_kn };
                linear(isa, pool, m, k, n, &x, k, &pack(isa, k, n, &w), &with(true), y, ld);
            },
            &|isa, pool, paired, y, ld| {
                let pack = if paired { PackedBf16::pairs_from_kn } else { PackedBf16::from_kn };
                let packed = pack(isa, k, n, &w16).scaled(&weight_scale);
                linear_bf16(isa, pool, m, k, n, &x16, k, &packed, &with(false), y, ld);
            },
            &|isa, pool, paired, y, ld| {
                let pack = if paired { PackedCodes::pairs_from_kn } else { PackedCodes::from_kn };
                let packed = pack(isa, &[k], n, &signed, &weight_scale);
                let words: Vec<u16> = match isa.code_type() {
                    cqc_proto::DType::I16 => codes.iter().map(|&c| u16::from(c)).collect(),
                    _ => codes.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect(),
                };
                let codes = &bytemuck::cast_slice(&words)[..m * k * isa.code_type().size()];
                let x = Activations { codes, ld: k, scale: &[0.1], zero_point: &[127.0] };
                linear_codes(isa, pool, m, k, n, &x, &packed, &with(true), y, ld);
            },
        ];
        let ld = half + rng.size(0, 5);
        let how = FakeQuant { bits: 8, segments: &[half], scale: &[0.03], zero_point: &[9.0] };
        for (isa, pool) in
            isas().into_iter().flat_map(|isa| pools().into_iter().map(move |pool| (isa, pool)))
        {
            let size = isa.code_type().size();
            for (i, product) in products.iter().enumerate() {
                let (mut sums, mut expected, mut y) =
                    (vec![0.0; m * n], vec![0.0; m * ld], vec![0.0; m * ld]);
                product(isa, &pool, false, Output::Values(&mut sums), n);
                geglu(isa, &pool, m, half, &sums, n, &mut expected, ld);
                product(isa, &pool, true, Output::Values(&mut y), ld);
                // bf16 is finished in plain Rust where the CPU has none, without fused additions
                let plain = i == 1;
                let near = |(a, b): (&f32, &f32)| {
                    a == b || plain && (a - b).abs() < 1e-5 * (1.0 + b.abs())
                };
                assert!(
                    y.iter().zip(&expected).all(near),
                    "{isa}, product {i}: {m} rows of {half}"
                );
                let (mut codes, mut rounded) = (vec![0u8; m * ld * size], vec![0u8; m * ld * size]);
                quantize(isa, &pool, m, &y, ld, &how, &mut rounded, ld);
                product(isa, &pool, true, Output::Codes(&mut codes, how), ld);
                assert_eq!(codes, rounded, "{isa}, product {i}: codes of {m} rows of {half}");
            }
        }
    }
}

#[test]
fn convolutions_store_codes() {
    let mut rng = Rng::new(3);
    for _ in 0..24 {
        let (n, h, w, channels) =
            (rng.size(1, 2), rng.size(3, 9), rng.size(3, 9), 4 * rng.size(1, 12));
        let dense = ConvShape::same(n, h, w, channels, rng.size(1, 50), 3);
        // one output channel per group: the kernel for depthwise convolutions
        let depthwise =
            ConvShape { groups: channels, ..ConvShape::same(n, h, w, channels, channels, 3) };
        for shape in [dense, depthwise] {
            let (x, weights) = (rng.noise(n * h * w * channels), rng.noise(shape.cout * shape.k()));
            check(&mut rng, shape.out_rows(), shape.cout, &|isa, pool, y, ld| {
                let conv = Conv::new(isa, shape).unwrap();
                conv.run(pool, &x, channels, &conv.pack(&weights), &Epilogue::default(), y, ld);
            });
        }
    }
}
