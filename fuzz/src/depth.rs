//! How far inputs get: counts that a long run prints, because a target whose inputs are all refused
//! at once tests nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many inputs there were, were read, and were evaluated.
static REACHED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Counts an input; prints the counts each time their number has doubled since the last time, from
/// 65536 on.
pub fn begun() {
    let inputs = REACHED[0].fetch_add(1, Relaxed) + 1;
    if inputs >= 1 << 16 && inputs.is_power_of_two() {
        let [read, evaluated] = [1, 2].map(|i| 100 * REACHED[i].load(Relaxed) / inputs);
        eprintln!("of {inputs} inputs {read} % were read, {evaluated} % were evaluated");
    }
}

/// Counts an input that its reader took.
pub fn read() {
    REACHED[1].fetch_add(1, Relaxed);
}

/// Counts an input that was evaluated to the end.
pub fn evaluated() {
    REACHED[2].fetch_add(1, Relaxed);
}
