//! The CUDA kernels against the definitions, on random ragged shapes: in the simulator where it is
//! built in (feature `cuda-sim`), on a GPU where there is one (feature `cuda`; with
//! `CQC_REQUIRE_CUDA=1` a missing one fails).
#![cfg(any(feature = "cuda", feature = "cuda-sim"))]

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod bench;
mod conv;
mod elementwise;
mod integers;
mod norm;
#[cfg(feature = "cuda")]
mod nvrtc;
mod peak;
mod selftest;

/// Warps and blocks in the opposite order: what passes only in one of them lacks a barrier.
#[cfg(feature = "cuda-sim")]
#[test]
fn everything_holds_in_reverse_order() {
    if std::env::var_os("SIM_REVERSE").is_some() {
        return; // this is the run in reverse order
    }
    let this = std::env::current_exe().unwrap();
    let run = std::process::Command::new(this)
        .args(["--skip", "nvrtc", "--test-threads", "1"])
        .env("SIM_REVERSE", "1")
        .output();
    let run = run.expect("the tests start again");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "in reverse order:\n{text}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(text.contains("test result: ok") && !text.contains(" 0 passed"), "{text}");
}
