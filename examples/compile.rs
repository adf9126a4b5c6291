//! Compiles a model into an artifact, with progress.
//!
//!     cargo run --release --example compile -- MODEL.onnx OUT.cq
//!
//! Without arguments it compiles a small model of the repository to `target/example.cq`.

use cachequant::recipe::{Quant, Recipe};
use cachequant::{Model, ModelOptions, Overwrite, Phase, compile};
use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let model = arguments.next().unwrap_or_else(|| "tests/models/ddpm-shapes32.onnx".into());
    let out = arguments.next().unwrap_or_else(|| "target/example.cq".into());

    let model = Model::load(&model, &ModelOptions::default(), |_, _| {})?;
    // a recipe holds what differs from the defaults; `check` finds contradictions in it
    let recipe = Recipe {
        steps: Some(10),
        interval: Some(3),
        calib_samples: Some(4),
        quant: Some(Quant::W8a8),
        ..Recipe::default()
    };
    assert!(recipe.check().is_empty());
    let mut shown = 0;
    let mut progress = |phase: Phase, done: u64, total: u64| {
        let percent = 100 * done / total.max(1);
        if percent >= shown + 20 || done == 1 {
            println!("{phase}: {done} of {total}");
            shown = percent;
        }
        // `Break` would end the compilation
        ControlFlow::Continue(())
    };
    let compiled = compile(&model, &recipe, &mut progress)?;
    compiled.write(&out, Overwrite::Allow)?;

    let summary = compiled.summary();
    let caching = summary.caching.expect("something is cached");
    println!(
        "{}: {} of {} evaluations are full",
        out.display(),
        caching.full_steps.len(),
        caching.evaluations
    );
    Ok(())
}
