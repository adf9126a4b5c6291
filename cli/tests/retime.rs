//! Artifacts at other numbers of steps, from the command line.

mod common;

use common::{done, model};

/// Fitted tables are interpolated by time step: an artifact at other numbers of steps stays near
/// the float model at those numbers.
#[test]
fn fitted_tables_serve_other_numbers_of_steps() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("a.cq").display().to_string();
    let model = model("ddpm-shapes32").display().to_string();
    let caching = "--interval 3 --schedule uniform --cache-fit forecast";
    let recipe =
        format!("--steps 12 {caching} --quant w8a8 --calib-samples 4 --accept --any-steps");
    done(&format!("compile {model} -o {artifact} {recipe} --threads 2"));
    let psnr = |steps: usize| {
        let options = format!("-n 2 --steps {steps} --threads 2 --json");
        let figures = done(&format!("eval {artifact} --reference {model} {options}")).json();
        figures["psnr"]["mean"].as_f64().unwrap_or_else(|| panic!("{figures}"))
    };
    let (compiled, fewer, more) = (psnr(12), psnr(8), psnr(18));
    println!("PSNR with 12, 8, 18 steps: {compiled:.1}, {fewer:.1}, {more:.1} dB");
    let least = compiled - 6.0;
    assert!(fewer > least && more > least, "{compiled:.1}: {fewer:.1}, {more:.1} dB");
}
