//! What the fuzz targets share: a bound on memory, random numbers, mutators, and per target what is
//! run and from what it starts. `docs/fuzzing.md` says how to run them.

pub mod container;
pub mod cq;
mod depth;
pub mod json;
pub mod npy;
pub mod onnx;
pub mod pack_cache;
mod plan;
mod random;
pub mod recipe;
pub mod scheduler;
pub mod text_ir;

pub use depth::begun;
pub use random::Random;

use cpu_time::ThreadTime;
use libfuzzer_sys::Corpus;
use std::alloc::System;
use std::path::Path;
use std::time::Duration;

/// Most memory that Rust code holds at once, in bytes: libFuzzer's own corpus and tables are not
/// counted. An allocation beyond it aborts, which libFuzzer reports as a crash.
pub const MEMORY: usize = 256 << 20;

/// Most CPU time that one input takes. libFuzzer's own limit is wall time, which says nothing on a
/// machine that does other work.
pub const TIME: Duration = Duration::from_secs(1);

#[global_allocator]
static ALLOCATOR: cap::Cap<System> = cap::Cap::new(System, MEMORY);

/// Writes what a target starts from into the directory that `CQC_FUZZ_SEEDS` names, and exits; does
/// nothing without that variable.
pub fn write_seeds(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os("CQC_FUZZ_SEEDS") else { return };
    let directory = Path::new(&directory);
    std::fs::create_dir_all(directory).expect("the directory can be made");
    for (i, seed) in seeds().iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{i:03}")), seed).expect("seeds can be written");
    }
    std::process::exit(0);
}

/// Runs one input, and panics where it took more than [`TIME`].
pub fn run_bounded(data: &[u8], run: fn(&[u8]) -> bool) -> Corpus {
    let start = ThreadTime::now();
    let is_read = run(data);
    let taken = start.elapsed();
    assert!(taken <= TIME, "the input took {taken:?} of CPU time, more than {TIME:?}");
    keep(data, is_read)
}

/// Whether an input joins the corpus: what is refused leads to little but refusals, so that most of
/// it does not.
fn keep(data: &[u8], is_read: bool) -> Corpus {
    if is_read || hash(data).is_multiple_of(16) { Corpus::Keep } else { Corpus::Reject }
}

/// A number that depends on all bytes.
pub fn hash(data: &[u8]) -> u8 {
    data.iter().fold(0u8, |sum, &b| sum.wrapping_mul(31).wrapping_add(b))
}

/// One mutation of `data[..size]` in place: mostly by `structured`, which may decline, else of
/// bytes by libFuzzer. The new size.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    structured: fn(&[u8], &mut Random) -> Option<Vec<u8>>,
) -> usize {
    let mut random = Random::new(seed);
    let max_size = max_size.min(data.len());
    if random.below(6) > 0
        && let Some(new) = structured(&data[..size], &mut random)
        && (1..=max_size).contains(&new.len())
    {
        data[..new.len()].copy_from_slice(&new);
        return new.len();
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

/// Defines a target from its module: `seeds`, `mutate`, and `run`, which says whether it could read
/// the input.
#[macro_export]
macro_rules! target {
    ($module:ident) => {
        libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds($crate::$module::seeds),
            |data: &[u8]| -> libfuzzer_sys::Corpus {
                $crate::begun();
                $crate::run_bounded(data, $crate::$module::run)
            }
        );

        libfuzzer_sys::fuzz_mutator!(
            |data: &mut [u8], size: usize, max_size: usize, seed: u32| {
                $crate::mutate(data, size, max_size, seed, $crate::$module::mutate)
            }
        );
    };
}
