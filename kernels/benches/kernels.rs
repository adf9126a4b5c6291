//! Best times of kernels at the shapes of small U-Nets and transformers, and of attention over
//! codes beside f32.
//!
//! ```text
//! cargo bench -p cqc-kernels --bench kernels [-- THREADS]
//! ```
//! The share of a model's time is in `cqc bench --profile`; every layer of a quantized one both
//! ways in `cqc bench --kernels`.

use cqc_kernels::attention::attention_scratch_len;
use cqc_kernels::*;
use std::time::Instant;

const ROUNDS: usize = 60;

fn main() {
    let isa = Isa::detect().expect("CQC_ISA names an instruction set of this CPU");
    // cargo adds `--bench`
    let pool = Pool::new(std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1));
    println!("{isa}, {} threads, best of {ROUNDS}", pool.threads());
    for (n, hw, c) in [(8, 1024, 32), (8, 1024, 64), (8, 256, 128), (1, 1024, 64)] {
        for act in [Act::None, Act::Silu] {
            group_norms(isa, &pool, [n, hw, c], act);
        }
    }
    for (n, size, cin, cout) in
        [(8, 32, 3, 32), (8, 32, 32, 3), (8, 32, 32, 32), (8, 32, 64, 64), (8, 16, 128, 128)]
    {
        convolutions(isa, &pool, [n, size], [cin, cout]);
    }
    for (n, size, cin, cout) in [
        (1, 32, 128, 128),
        (1, 16, 256, 256),
        (1, 8, 256, 256),
        (1, 4, 256, 256),
        (8, 32, 128, 128),
        (8, 16, 512, 256),
        (1, 64, 320, 320),
    ] {
        products(isa, &pool, ConvShape::same(n, size, size, cin, cout, 3));
    }
    for (m, k, n) in
        [(256, 384, 1536), (256, 1536, 384), (2048, 384, 1152), (4096, 320, 320), (4096, 320, 2560)]
    {
        products(isa, &pool, ConvShape::same(m, 1, 1, k, n, 1));
    }
    for (m, k, c) in [(4096, 320, 1280), (1024, 640, 2560)] {
        geglus(isa, &pool, [m, k, c]);
    }
    for (m, k, n) in
        [(8192, 96, 32), (2048, 64, 64), (2048, 128, 64), (512, 256, 128), (2048, 160, 480)]
    {
        linears(isa, &pool, [m, k, n]);
    }
    for (n, heads, l, d) in
        [(8, 1, 256, 64), (8, 2, 256, 32), (1, 1, 256, 256), (1, 6, 256, 64), (1, 8, 1024, 80)]
    {
        attentions(isa, &pool, [n, heads, l, d]);
    }
    attentions(isa, &pool, [1, 8, 4096, 40]);
}

/// Milliseconds.
fn best(mut run: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best * 1e3
}

fn rate(macs: usize, ms: f64) -> f64 {
    macs as f64 / ms * 1e-6
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 / 250.0 - 2.0).collect()
}

fn group_norms(isa: Isa, pool: &Pool, [n, hw, c]: [usize; 3], act: Act) {
    let (x, mut y) = (numbers(n * hw * c), vec![0.0; n * hw * c]);
    let shape = GroupNorm { n, hw, c, groups: 32, eps: 1e-5, gamma: None, beta: None, act };
    let ms = best(|| group_norm(isa, pool, &shape, &x, c, &mut y, c));
    println!("group norm {n}x{hw}x{c}, {act:?}: {ms:.3} ms");
}

fn convolutions(isa: Isa, pool: &Pool, [n, size]: [usize; 2], [cin, cout]: [usize; 2]) {
    let conv = Conv::new(isa, ConvShape::same(n, size, size, cin, cout, 3)).expect("a valid shape");
    let packed = conv.pack(&numbers(cout * cin * 9));
    let pixels = n * size * size;
    let (x, mut y) = (numbers(pixels * cin), vec![0.0; pixels * cout]);
    let ms = best(|| conv.run(pool, &x, cin, &packed, &Epilogue::default(), &mut y, cout));
    println!(
        "3x3 {n}x{size}x{size}, {cin} to {cout}: {ms:.3} ms, {:.1} GMAC/s",
        rate(pixels * cin * cout * 9, ms)
    );
}

/// A product in f32, in bf16 where this CPU has it, and over codes whose results are stored as f32
/// and as codes.
fn products(isa: Isa, pool: &Pool, shape: ConvShape) {
    let conv = Conv::new(isa, shape).expect("a valid shape");
    let (rows, k, n) = (shape.out_rows(), shape.k(), shape.cout);
    let pixels = shape.n * shape.h * shape.w;
    let weights = numbers(n * k);
    let (x, mut y, bias) = (numbers(pixels * shape.cin), vec![0.0; rows * n], numbers(n));
    let epilogue = Epilogue::bias(&bias);
    let packed = conv.pack(&weights);
    let mut line = format!("{}x{} taps, {rows} rows, {} to {n}:", shape.kh, shape.kw, shape.cin);
    let mut report = |kind: &str, ms: f64| {
        line += &format!(" {kind} {ms:.3} ms {:.0} GMAC/s", rate(rows * n * k, ms))
    };
    report("f32", best(|| conv.run(pool, &x, shape.cin, &packed, &epilogue, &mut y, n)));
    if isa.has_bf16() {
        let bits =
            |values: &[f32]| values.iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<_>>();
        let packed = PackedBf16::from_oihw(isa, &shape, &bits(&weights));
        let x = bits(&x);
        report("bf16", best(|| conv.run_bf16(pool, &x, shape.cin, &packed, &epilogue, &mut y, n)));
    }
    let codes: Vec<i8> = (0..n * k).map(|i| ((i * 7919) % 255) as i8).collect();
    let packed = PackedCodes::from_oihw(isa, &shape, &[shape.cin], &codes, &vec![1e-4; n]);
    let words: Vec<u16> = (0..pixels * shape.cin).map(|i| ((i * 7919) % 251) as u16).collect();
    let codes = &bytemuck::cast_slice(&words)[..pixels * shape.cin * isa.code_type().size()];
    let x = Activations { codes, ld: shape.cin, scale: &[0.016], zero_point: &[125.0] };
    report("codes", best(|| conv.run_codes(pool, &x, &packed, &epilogue, &mut y, n)));
    let how = FakeQuant { bits: 8, segments: &[n], scale: &[0.016], zero_point: &[9.0] };
    let y: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut y)[..rows * n * isa.code_type().size()];
    let to_codes =
        best(|| conv.run_codes(pool, &x, &packed, &epilogue, Output::Codes(&mut *y, how), n));
    report("codes to codes", to_codes);
    println!("{line}");
}

/// A linear layer over codes and the GEGLU after it, stored as codes: three kernels one after the
/// other, and one that does it all.
fn geglus(isa: Isa, pool: &Pool, [m, k, c]: [usize; 3]) {
    let (n, size) = (2 * c, isa.code_type().size());
    let weights: Vec<i8> = (0..n * k).map(|i| ((i * 7919) % 255) as i8).collect();
    let (scale, bias) = (vec![1e-4; n], numbers(n));
    let epilogue = Epilogue::bias(&bias);
    let words: Vec<u16> = (0..m * k).map(|i| ((i * 7919) % 251) as u16).collect();
    let codes = &bytemuck::cast_slice(&words)[..m * k * size];
    let x = Activations { codes, ld: k, scale: &[0.016], zero_point: &[125.0] };
    let how = FakeQuant { bits: 8, segments: &[c], scale: &[0.016], zero_point: &[9.0] };
    let (mut sums, mut values, mut y) =
        (vec![0.0; m * n], vec![0.0; m * c], vec![0u16; (m * c * size).div_ceil(2)]);
    let y = &mut bytemuck::cast_slice_mut::<u16, u8>(&mut y)[..m * c * size];
    let single = PackedCodes::from_kn(isa, &[k], n, &weights, &scale);
    let apart = best(|| {
        linear_codes(isa, pool, m, k, n, &x, &single, &epilogue, &mut sums, n);
        geglu(isa, pool, m, c, &sums, n, &mut values, c);
        quantize(isa, pool, m, &values, c, &how, y, c);
    });
    let paired = PackedCodes::pairs_from_kn(isa, &[k], n, &weights, &scale);
    let at_once = best(|| {
        linear_codes(isa, pool, m, k, n, &x, &paired, &epilogue, Output::Codes(&mut *y, how), c)
    });
    let rate = rate(m * n * k, at_once);
    println!(
        "linear and GEGLU {m} rows, {k} to {n}: codes {apart:.3} ms, at once {at_once:.3} ms {rate:.0} GMAC/s"
    );
}

fn linears(isa: Isa, pool: &Pool, [m, k, n]: [usize; 3]) {
    let packed = PackedMatrix::from_kn(isa, k, n, &numbers(k * n));
    let (x, residual, mut y) = (numbers(m * k), numbers(m * n), vec![0.0; m * n]);
    let epilogue = Epilogue { residual: Some((&residual, n)), ..Epilogue::default() };
    let ms = best(|| linear(isa, pool, m, k, n, &x, k, &packed, &epilogue, &mut y, n));
    println!(
        "linear {m} rows, {k} to {n}, residual: {ms:.3} ms, {:.1} GMAC/s",
        rate(m * k * n, ms)
    );
}

fn attentions(isa: Isa, pool: &Pool, [n, heads, l, d]: [usize; 4]) {
    let c = heads * d;
    let shape = |softmax_bits| AttentionShape {
        n,
        heads,
        kv_heads: heads,
        lq: l,
        lk: l,
        d,
        dv: d,
        scale: (d as f32).sqrt().recip(),
        causal: false,
        softmax_bits,
        mask_strides: [0; 4],
        ldq: c,
        ldk: c,
        ldv: c,
        ldy: c,
    };
    let (x, mut y) = (numbers(n * l * c), vec![0.0; n * l * c]);
    let mut scratch = vec![0.0; attention_scratch_len(isa, &shape(0), pool.threads())];
    let [float, rounded] = [0, 8].map(|bits| {
        best(|| attention(isa, pool, &shape(bits), &x, &x, &x, None, &mut y, &mut scratch))
    });
    let words: Vec<u16> = (0..n * l * c).map(|i| ((i * 7919) % 251) as u16).collect();
    let codes = &bytemuck::cast_slice(&words)[..n * l * c * isa.code_type().size()];
    let operand = Activations { codes, ld: c, scale: &[0.016], zero_point: &[125.0] };
    let mut scratch = vec![0.0; attention_codes_scratch_len(isa, &shape(8), pool.threads())];
    let operands = [&operand; 3];
    let ms = best(|| attention_codes(isa, pool, &shape(8), operands, None, &mut y, &mut scratch));
    println!(
        "attention {n}x{heads}x{l}x{d}: codes {ms:.3} ms, {:.1} GMAC/s; f32 {rounded:.3} with rounded weights, {float:.3} without",
        rate(2 * n * heads * l * l * d, ms)
    );
}
