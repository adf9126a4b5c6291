//! Products on a GPU: what its tensor cores do at most, measured, and what share of that
//! convolutions, linear layers and attention reach.
//!
//! ```text
//! cargo bench -p cqc-kernels --features cuda --bench cuda
//! cargo bench -p cqc-kernels --features cuda,cuda-sim --bench cuda -- simulator      # that it works: tiny shapes, times that mean nothing
//! cargo bench -p cqc-kernels --features cuda --bench cuda -- save FOLDER sm_90       # compiles the kernels into a folder of kept ones
//! ```
//! A kernel is launched many times as one recorded graph, operands as the launch before has left
//! them in the caches; times are medians over rounds of many launches. Operations are two per
//! multiplication with its addition.

use cqc_kernels::cuda::cubin::Cubins;
use cqc_kernels::cuda::driver::{Gpu, GpuOptions};
use cqc_kernels::cuda::nvrtc::Nvrtc;
use cqc_kernels::cuda::*;
use cqc_kernels::{AttentionShape, ConvShape};
use half::f16;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Launches of a recorded graph, and rounds of which the median is taken.
const LAUNCHES: usize = 20;
const ROUNDS: usize = 7;
/// Seconds that a round takes at least.
const ROUND: f64 = 0.01;

/// What data sheets promise, in words and operations per second, 8-bit integers and fp16, dense.
const SHEETS: [(&str, &str, [f64; 2]); 3] = [
    ("H200", "H200 SXM", [1979e12, 989e12]),
    ("H100", "H100 SXM", [1979e12, 989e12]),
    ("A100", "A100", [624e12, 312e12]),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => match Gpu::open(&GpuOptions::default()) {
            Ok(gpu) => run(gpu, false),
            Err(e) if std::env::var_os("CQC_REQUIRE_CUDA").is_some() => Err(e.into()),
            Err(e) => {
                println!("skipped: {e}");
                Ok(())
            }
        },
        #[cfg(feature = "cuda-sim")]
        ["simulator"] => run(Arc::new(simulator::Simulator), true),
        ["save", folder, arch] => {
            let nvrtc = Nvrtc::find(None, arch)?;
            Cubins::compile(arch, nvrtc)?.save(Path::new(folder), nvrtc.version())?;
            println!(
                "kernels for {arch}, compiled by NVRTC {:?}, are in {folder}",
                nvrtc.version()
            );
            Ok(())
        }
        other => Err(format!("{other:?}: nothing, simulator, or save FOLDER ARCH").into()),
    }
}

fn run(device: Arc<dyn Device>, tiny: bool) -> Result<()> {
    let bench = Bench { state: State::new(&*device, 1, 1)?, device, tiny };
    println!("{}, {} multiprocessors", bench.device.name(), bench.device.multiprocessors());
    let peaks = [bench.peak(PeakOf::Bytes)?, bench.peak(PeakOf::Halves)?];
    let name = bench.device.name();
    let sheet = SHEETS.iter().find(|(part, ..)| name.contains(part));
    for (what, i) in [("int8", 0), ("fp16", 1)] {
        let promised = sheet.map_or("no data sheet known".into(), |(_, of, promised)| {
            format!(
                "{:.1} % of {:.0} TOPS, the data sheet of {of}",
                peaks[i] / promised[i] * 100.0,
                promised[i] / 1e12
            )
        });
        println!("mma.sync {what}: {:.1} TOPS measured, {promised}", peaks[i] / 1e12);
    }
    let convolutions: &[[usize; 4]] = match tiny {
        true => &[[1, 5, 32, 32]],
        false => &[
            [1, 32, 128, 128],
            [8, 32, 128, 128],
            [32, 32, 128, 128],
            [1, 16, 256, 256],
            [8, 16, 512, 256],
            [32, 16, 512, 256],
            [1, 64, 320, 320],
            [8, 64, 320, 320],
            [8, 16, 1280, 1280],
            [32, 64, 320, 320],
        ],
    };
    for &[n, size, cin, cout] in convolutions {
        bench.product(
            &format!("3x3 {n}x{size}x{size}"),
            ConvShape::same(n, size, size, cin, cout, 3),
            peaks,
        )?;
    }
    let linears: &[[usize; 3]] = match tiny {
        true => &[[9, 48, 40]],
        false => &[
            [256, 384, 1536],
            [4096, 320, 320],
            [4096, 320, 2560],
            [256, 1152, 4608],
            [2048, 1152, 4608],
            [8192, 1152, 4608],
            [8192, 4608, 1152],
            [8192, 4096, 4096],
        ],
    };
    for &[m, k, n] in linears {
        bench.product(&format!("linear {m} rows"), ConvShape::same(m, 1, 1, k, n, 1), peaks)?;
    }
    let attentions: &[[usize; 4]] = match tiny {
        true => &[[1, 1, 9, 16]],
        false => &[
            [1, 16, 256, 72],
            [32, 16, 256, 72],
            [1, 8, 4096, 40],
            [8, 8, 4096, 40],
            [8, 8, 1024, 80],
        ],
    };
    for &[n, heads, l, d] in attentions {
        bench.attention([n, heads, l, d], peaks[1])?;
    }
    Ok(())
}

struct Bench {
    device: Arc<dyn Device>,
    state: State,
    tiny: bool,
}

impl Bench {
    fn put(&self, bytes: &[u8], element: ElementType, cols: usize) -> Result<Operand> {
        let memory = self.device.allocate(bytes.len())?;
        self.device.write(&memory, 0, bytes)?;
        Ok(Operand::new(&memory, 0, element, cols))
    }

    fn room(&self, rows: usize, cols: usize, element: ElementType) -> Result<Operand> {
        Ok(Operand::new(&self.device.allocate(rows * cols * element.size())?, 0, element, cols))
    }

    /// Seconds of some launches that belong together.
    fn seconds(&self, launches: &[Launch], result: &Operand) -> Result<f64> {
        let times = if self.tiny { 1 } else { LAUNCHES };
        let graph = self.device.record(vec![launches; times].concat())?;
        let wait = || self.device.read(&result.memory, 0, &mut [0; 4]);
        let round = |replays: usize| -> Result<f64> {
            let start = Instant::now();
            for _ in 0..replays {
                graph.replay()?;
            }
            wait()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let first = round(1)?;
        let (replays, rounds) = if self.tiny {
            (1, 1)
        } else {
            ((ROUND / round(1)?.min(first)).ceil() as usize, ROUNDS)
        };
        let mut seconds =
            (0..rounds).map(|_| round(replays.max(1))).collect::<Result<Vec<f64>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[rounds / 2] / (replays.max(1) * times) as f64)
    }

    /// Operations per second of products of registers.
    fn peak(&self, of: PeakOf) -> Result<f64> {
        // numbers as random as those of a network: how much current they draw decides how fast the
        // clock may be
        let words = noise(PEAK_IN).map(|w| match of {
            PeakOf::Bytes => w,
            PeakOf::Halves => u32::from(half(w)) | u32::from(half(w >> 8)) << 16,
        });
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let input = self.put(&bytes, ElementType::I32, PEAK_IN)?;
        let (blocks, turns) =
            if self.tiny { (2, 2) } else { (self.device.multiprocessors() * 8, 4096) };
        let element = if of == PeakOf::Bytes { ElementType::I32 } else { ElementType::F32 };
        let output = self.room(1, blocks * PEAK_OUT, element)?;
        let seconds =
            self.seconds(&[mma_peak(&self.state, of, blocks, turns, &input, &output)], &output)?;
        Ok(2.0 * of.macs(blocks, turns) as f64 / seconds)
    }

    /// A convolution over codes to codes and in fp16, with the tile that engines choose.
    fn product(&self, what: &str, shape: ConvShape, peaks: [f64; 2]) -> Result<()> {
        let (rows, pixels, taps) =
            (shape.out_rows(), shape.n * shape.h * shape.w, shape.kh * shape.kw);
        let many = self.device.multiprocessors();
        let tile = Tile::choose(rows, shape.cout, many);
        let macs = rows * shape.cout * shape.k();
        let number = |t: usize, c: usize, o: usize| ((t * 31 + c * 7919 + o * 104_729) % 255) as u8;
        let f32s = |values: &[f32]| self.put(&words(values), ElementType::F32, values.len());
        let bias = f32s(&vec![0.1; shape.cout])?;
        let tail = Epilogue { bias: Some(&bias), ..Epilogue::default() };

        let bytes: Vec<u8> = noise(pixels * shape.cin).map(|w| w as u8).collect();
        let x = self.put(&bytes, ElementType::U8, shape.cin)?;
        let scales = vec![1e-4; shape.cout];
        let filter =
            Filter::codes(&*self.device, taps, &[shape.cin], shape.cout, &scales, |t, c, o| {
                number(t, c, o) as i8
            })?;
        let y = self.room(rows, shape.cout, ElementType::U8)?;
        let [scale, zero] = [f32s(&[0.016])?, f32s(&[125.0])?];
        let rounding =
            Rounding { bits: 8, segments: &[shape.cout], scale: &scale, zero_point: &zero };
        let output = Output { y: &y, rounding: Some(rounding) };
        let shared = |kind: FilterKind| -> Result<(Operand, usize)> {
            let parts = splits(rows, shape.cout, shape.k(), kind, many);
            let bytes = split_bytes(rows, shape.cout, parts);
            Ok((self.room(1, (bytes / size_of::<f32>()).max(1), ElementType::F32)?, parts))
        };
        let (sums, parts) = shared(FilterKind::Codes)?;
        let rounding = Some([&scale, &zero]);
        let launches = conv(
            &self.state,
            &shape,
            &filter,
            &x,
            rounding,
            &tail,
            &output,
            tile,
            Some((&sums, parts)),
        );
        let codes = self.seconds(&launches, &y)?;

        let bytes: Vec<u8> =
            noise(pixels * shape.cin).flat_map(|w| half(w).to_le_bytes()).collect();
        let x = self.put(&bytes, ElementType::F16, shape.cin)?;
        let weight = |t: usize, c: usize, o: usize| f32::from(number(t, c, o)) / 2550.0 - 0.05;
        let filter = Filter::halves(&*self.device, taps, shape.cin, shape.cout, weight)?;
        let y = self.room(rows, shape.cout, ElementType::F16)?;
        let (sums, parts) = shared(FilterKind::Halves)?;
        let output = Output::plain(&y);
        let launches = conv(
            &self.state,
            &shape,
            &filter,
            &x,
            None,
            &tail,
            &output,
            tile,
            Some((&sums, parts)),
        );
        let halves = self.seconds(&launches, &y)?;
        let rates = [codes, halves].map(|seconds| 2.0 * macs as f64 / seconds);
        println!(
            "{what}, {} to {}, {tile:?}: int8 {} us {}; fp16 {} us {}",
            shape.cin,
            shape.cout,
            micros(codes),
            share(rates[0], peaks[0]),
            micros(halves),
            share(rates[1], peaks[1])
        );
        Ok(())
    }

    fn attention(&self, [n, heads, l, d]: [usize; 4], peak: f64) -> Result<()> {
        let c = heads * d;
        let bytes: Vec<u8> = noise(n * l * c).flat_map(|w| half(w).to_le_bytes()).collect();
        let x = self.put(&bytes, ElementType::F16, c)?;
        let y = self.room(n * l, c, ElementType::F16)?;
        let mut line = format!("attention {n}x{heads}x{l}x{d}:");
        for (bits, what) in [(0, "fp16"), (8, "weights of 8 bits")] {
            let shape = AttentionShape {
                n,
                heads,
                kv_heads: heads,
                lq: l,
                lk: l,
                d,
                dv: d,
                scale: (d as f32).sqrt().recip(),
                causal: false,
                softmax_bits: bits,
                mask_strides: [0; 4],
                ldq: c,
                ldk: c,
                ldv: c,
                ldy: c,
            };
            let seconds = self.seconds(
                &[cqc_kernels::cuda::attention(&self.state, &shape, [&x, &x, &x], None, &y)],
                &y,
            )?;
            let rate = 2.0 * (2 * n * heads * l * l * d) as f64 / seconds;
            line += &format!(" {what} {} us {};", micros(seconds), share(rate, peak));
        }
        println!("{}", line.trim_end_matches(';'));
        Ok(())
    }
}

fn micros(seconds: f64) -> String {
    format!("{:.1}", seconds * 1e6)
}

fn share(rate: f64, peak: f64) -> String {
    format!("{:.1} TOPS {:.0} %", rate / 1e12, rate / peak * 100.0)
}

/// Bits from a generator, the same each time.
fn noise(count: usize) -> impl Iterator<Item = u32> {
    let mut state = 1u64;
    (0..count).map(move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    })
}

/// A number in -1..1 as fp16.
fn half(bits: u32) -> u16 {
    f16::from_f32((bits & 0xfff) as f32 / 2048.0 - 1.0).to_bits()
}

fn words(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
