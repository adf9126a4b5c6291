//! Measurements of time, of memory, and of the peak arithmetic speed of the machine.

use cqc_kernels::Isa;
use cqc_kernels::isa::fma_probe;
use std::time::Instant;

/// The median; of an even number of values, the mean of the two in the middle. 0 without values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

pub fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The largest resident memory that this process has had, in MiB; 0 where the system does not tell.
pub fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib =
        line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|l| l.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The name of the backend that runs the measured code, e.g. `cpu-avx512`.
pub fn backend(isa: Isa) -> String {
    format!("cpu-{isa}")
}

/// Rounds of one slice of the probe, which take about a millisecond.
const PROBE_ROUNDS: usize = 200_000;

/// Floating-point operations per second of `threads` threads that each multiply and add in
/// registers: the best of a few slices.
pub fn peak_flops(isa: Isa, threads: usize) -> f64 {
    let slice = || {
        let start = Instant::now();
        fma_probe(isa, PROBE_ROUNDS) as f64 / start.elapsed().as_secs_f64()
    };
    let best = || (0..10).map(|_| slice()).fold(0.0, f64::max);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(best)).collect();
        running.into_iter().map(|t| t.join().unwrap_or(0.0)).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(
            [median(&[]), median(&[3.0]), median(&[9.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])],
            [0.0, 3.0, 2.0, 2.5]
        );
    }
}
