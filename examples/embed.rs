//! Samples from an artifact in an application's own process.
//!
//!     cargo run --release --example embed -- ARTIFACT.cq

use cachequant::runtime::engine::{EngineOptions, Executor, Pool};
use cachequant::runtime::{Artifact, DenoiseError, DenoiserOptions, Request};
use std::{error::Error, ops::ControlFlow, sync::Arc};

/// An application's own threads; here they are started for every job.
struct Threads;

impl Executor for Threads {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| (0..jobs).for_each(|i| drop(scope.spawn(move || job(i)))));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "target/example.cq".into());
    let artifact = Artifact::open(path.as_ref())?;
    let pool = Some(Arc::new(Pool::from_executor(Arc::new(Threads))));
    let engine = EngineOptions { batch: 2, pool, ..EngineOptions::default() };
    let options = DenoiserOptions { engine, ..DenoiserOptions::default() };
    let mut denoiser = artifact.denoiser(&options)?;

    // the whole loop, with progress
    let request = Request { samples: 2, seed: 1, ..Request::default() };
    let samples = denoiser.sample(&request, &mut |at| {
        println!("evaluation {} of {}", at.evaluation + 1, at.evaluations);
        ControlFlow::Continue(())
    })?;

    // an observer may cancel
    let cancelled = denoiser.sample(&request, &mut |_| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(DenoiseError::Interrupted)));

    // two requests side by side, step by step, on one denoiser
    let mut a = denoiser.begin(&request, 0)?;
    let mut b = denoiser.begin(&Request { seed: 2, ..request.clone() }, 0)?;
    for _ in 0..denoiser.evaluations() {
        denoiser.step(&mut a)?;
        denoiser.step(&mut b)?;
    }
    assert!(a.x() == samples.to_f32_vec() && a.x() != b.x());
    Ok(())
}
