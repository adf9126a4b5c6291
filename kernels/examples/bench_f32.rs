//! GFLOP/s and share of the FMA peak of convolutions and linear layers.
//!
//! `cargo run -p cqc-kernels --release --example bench_f32 [filter] [threads…]`. The peak is probed before every
//! shape, in the same process. Each number is the best of repeats, because the machine may be shared; with one thread
//! it is the time on the CPU, over rounds of 30 ms, so that time given to others does not count.

use cqc_kernels::*;
use std::time::{Duration, Instant};

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let filter = args.next_if(|arg| arg.parse::<usize>().is_err()).unwrap_or_default();
    let mut threads: Vec<usize> = args.filter_map(|arg| arg.parse().ok()).collect();
    if threads.is_empty() {
        threads = vec![1, 2];
    }
    println!("{:<34} {:>3} {:>10} {:>9} {:>8} {:>6}", Isa::detect(), "thr", "best ms", "GFLOP/s", "peak", "share");
    for threads in threads {
        let pool = Pool::new(threads);
        for case in cases().iter().filter(|case| case.name.contains(&filter)) {
            report(case, &pool);
        }
    }
}

struct Case {
    name: &'static str,
    work: Work,
}

enum Work {
    Conv(ConvShape),
    Linear(usize, usize, usize),
    Attention(usize, usize, usize, usize),
}

fn cases() -> Vec<Case> {
    let conv = |name, s: ConvShape| Case { name, work: Work::Conv(s) };
    let same = ConvShape::same;
    vec![
        conv("conv 3x3 256>256 16x16 b1", same(1, 16, 16, 256, 256, 3)),
        conv("conv 3x3 256>256 16x16 b8", same(8, 16, 16, 256, 256, 3)),
        conv("conv 3x3 128>128 32x32 b1", same(1, 32, 32, 128, 128, 3)),
        conv("conv 3x3 128>128 32x32 b8", same(8, 32, 32, 128, 128, 3)),
        conv("conv 3x3 512>256 16x16 b1", same(1, 16, 16, 512, 256, 3)),
        conv("conv 3x3 512>512 8x8 b1", same(1, 8, 8, 512, 512, 3)),
        conv("conv 3x3 256>256 4x4 b1", same(1, 4, 4, 256, 256, 3)),
        conv("conv 3x3 320>320 64x64 b1", same(1, 64, 64, 320, 320, 3)),
        conv("conv 3x3 32>32 32x32 b1", same(1, 32, 32, 32, 32, 3)),
        conv("conv 1x1 256>256 16x16 b1", same(1, 16, 16, 256, 256, 1)),
        conv("conv first 3>128 32x32 b1", same(1, 32, 32, 3, 128, 3)),
        conv("conv first 4>320 64x64 b1", same(1, 64, 64, 4, 320, 3)),
        conv("conv last 128>3 32x32 b1", same(1, 32, 32, 128, 3, 3)),
        conv("conv last 320>4 64x64 b1", same(1, 64, 64, 320, 4, 3)),
        conv("conv depthwise 256 32x32 b1", ConvShape { groups: 256, ..same(1, 32, 32, 256, 256, 3) }),
        Case { name: "linear 256x384x1536", work: Work::Linear(256, 384, 1536) },
        Case { name: "linear 256x1536x384", work: Work::Linear(256, 1536, 384) },
        Case { name: "linear 1x512x2048", work: Work::Linear(1, 512, 2048) },
        Case { name: "linear 4x512x2048", work: Work::Linear(4, 512, 2048) },
        Case { name: "attention 6 heads 256x64", work: Work::Attention(6, 256, 256, 64) },
        Case { name: "attention 1 head 1024x40", work: Work::Attention(1, 1024, 1024, 40) },
        Case { name: "attention 8 heads 1024x40", work: Work::Attention(8, 1024, 1024, 40) },
        Case { name: "attention 8 heads 4096x40", work: Work::Attention(8, 4096, 4096, 40) },
        Case { name: "attention 8 heads 1024 over 77", work: Work::Attention(8, 1024, 77, 64) },
    ]
}

fn report(case: &Case, pool: &Pool) {
    let (flops, mut step) = prepare(&case.work, pool);
    let mut peak = probe(pool);
    let best = best_time(&mut step, pool.threads());
    peak = peak.max(probe(pool));
    let rate = flops / best.as_secs_f64() / 1e9;
    println!(
        "{:<34} {:>3} {:>10.4} {:>9.1} {:>8.1} {:>5.1}%",
        case.name,
        pool.threads(),
        best.as_secs_f64() * 1e3,
        rate,
        peak,
        100.0 * rate / peak
    );
}

fn best_time(step: &mut dyn FnMut(), threads: usize) -> Duration {
    let timed = |step: &mut dyn FnMut()| {
        let begin = Instant::now();
        step();
        begin.elapsed()
    };
    let mut best = timed(step).min(timed(step));
    let per_round = if threads == 1 { (0.03 / best.as_secs_f64()).ceil() as u32 } else { 1 };
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        let mut on_cpu = on_cpu().filter(|_| threads == 1);
        let wall = timed(&mut || (0..per_round).for_each(|_| step()));
        on_cpu = on_cpu.and_then(|before| Some(self::on_cpu()? - before)).filter(|time| !time.is_zero());
        best = best.min(on_cpu.unwrap_or(wall) / per_round);
    }
    best
}

/// How long this thread has been running on a CPU, where Linux tells.
fn on_cpu() -> Option<Duration> {
    std::thread::yield_now(); // brings the account up to date
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Floating-point operations of one run, and the run.
fn prepare<'a>(work: &Work, pool: &'a Pool) -> (f64, Box<dyn FnMut() + 'a>) {
    match *work {
        Work::Conv(shape) => prepare_conv(shape, pool),
        Work::Linear(m, k, n) => prepare_linear(m, k, n, pool),
        Work::Attention(heads, lq, lk, d) => prepare_attention(heads, lq, lk, d, pool),
    }
}

fn prepare_conv<'a>(s: ConvShape, pool: &'a Pool) -> (f64, Box<dyn FnMut() + 'a>) {
    let conv = Conv::new(Isa::detect(), s).expect("a valid shape");
    let packed = conv.pack(&noise(s.cout * s.k()));
    let (x, bias) = (noise(s.n * s.h * s.w * s.cin), noise(s.cout));
    let mut y = vec![0.0; s.out_rows() * s.cout];
    let flops = 2.0 * (s.out_rows() * s.cout * s.k()) as f64;
    (flops, Box::new(move || conv.run(pool, &x, s.cin, &packed, &Epilogue::bias(&bias), &mut y, s.cout)))
}

fn prepare_linear<'a>(m: usize, k: usize, n: usize, pool: &'a Pool) -> (f64, Box<dyn FnMut() + 'a>) {
    let isa = Isa::detect();
    let packed = PackedMatrix::from_kn(isa, k, n, &noise(k * n));
    let (x, bias, mut y) = (noise(m * k), noise(n), vec![0.0; m * n]);
    let step = move || linear(isa, pool, m, k, n, &x, k, &packed, &Epilogue::bias(&bias), &mut y, n);
    (2.0 * (m * k * n) as f64, Box::new(step))
}

fn prepare_attention<'a>(heads: usize, lq: usize, lk: usize, d: usize, pool: &'a Pool) -> (f64, Box<dyn FnMut() + 'a>) {
    let isa = Isa::detect();
    let ld = heads * d;
    let shape = AttentionShape {
        n: 1,
        heads,
        kv_heads: heads,
        lq,
        lk,
        d,
        dv: d,
        scale: (d as f32).sqrt().recip(),
        causal: false,
        softmax_bits: 0,
        mask_strides: [0; 4],
        ldq: ld,
        ldk: ld,
        ldv: ld,
        ldy: ld,
    };
    let (q, k, v, mut y) = (noise(lq * ld), noise(lk * ld), noise(lk * ld), vec![0.0; lq * ld]);
    let mut scratch = vec![0.0; attention::attention_scratch_len(isa, &shape, pool.threads())];
    let step = move || attention(isa, pool, &shape, &q, &k, &v, None, &mut y, &mut scratch);
    (4.0 * (heads * lq * lk * d) as f64, Box::new(step))
}

/// GFLOP/s of independent fused multiply-adds on all threads.
fn probe(pool: &Pool) -> f64 {
    let threads = pool.threads();
    let mut best = 0.0f64;
    for _ in 0..8 {
        let begin = Instant::now();
        let ops: std::sync::atomic::AtomicU64 = 0.into();
        pool.run(threads, &|_, _| {
            ops.fetch_add(isa::fma_probe(Isa::detect(), 100_000), std::sync::atomic::Ordering::Relaxed);
        });
        best = best.max(ops.into_inner() as f64 / begin.elapsed().as_secs_f64() / 1e9);
    }
    best
}
