//! Compiled loops with another number of steps.

mod common;

use cachequant::recipe::{Quant, Recipe};
use cachequant::runtime::denoise::{DenoiseError, Request};
use cachequant::runtime::engine::Weights;
use cachequant::runtime::retime::{Possible, RetimeError, possible};
use cachequant::runtime::{Artifact, DenoiserOptions};
use common::{compiled, labels, load, on_cpu, run};

/// A float loop without a cache.
fn recipe(steps: usize, any_steps: bool) -> Recipe {
    Recipe {
        steps: Some(steps),
        any_steps,
        interval: Some(1),
        quant: Some(Quant::None),
        ..Recipe::default()
    }
}

fn float_loop(model: &str, steps: usize, any_steps: bool) -> Artifact {
    compiled(&load(model), &recipe(steps, any_steps)).artifact().unwrap()
}

/// The samples of the artifact in `steps` steps.
fn sample(artifact: &Artifact, steps: usize, request: &Request) -> Result<Vec<f32>, DenoiseError> {
    let options = DenoiserOptions { steps: Some(steps), ..on_cpu(2) };
    Ok(run(&mut artifact.denoiser(&options)?, request))
}

/// The samples of the loop that was compiled for these steps.
fn compiled_at(model: &str, steps: usize, request: &Request) -> Vec<f32> {
    sample(&float_loop(model, steps, false), steps, request).unwrap()
}

fn plain() -> Request {
    Request { samples: 2, ..Request::default() }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn compiled_time_steps_keep_their_rows() {
    let artifact = float_loop("ddpm-shapes32", 20, false);
    let these = Possible::These(vec![1, 2, 4, 5, 10, 20]);
    assert_eq!(possible(artifact.manifest()).unwrap(), these);
    for steps in [4, 5] {
        let expected = compiled_at("ddpm-shapes32", steps, &plain());
        assert_eq!(sample(&artifact, steps, &plain()).unwrap(), expected, "{steps} steps");
    }
    match artifact.retimed(3) {
        Err(RetimeError::Unknown { timestep, possible }) => {
            assert_eq!((timestep, &possible[..]), (666.0, &[1, 2, 4, 5, 10, 20][..]));
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    let refused = sample(&artifact, 3, &plain());
    assert!(matches!(refused, Err(DenoiseError::Steps(_))), "{refused:?}");
}

#[test]
fn other_time_steps_are_computed() {
    let artifact = float_loop("ddpm-shapes32", 4, true);
    assert_eq!(possible(artifact.manifest()).unwrap(), Possible::Any);
    for steps in [3, 7] {
        let expected = compiled_at("ddpm-shapes32", steps, &plain());
        let found = sample(&artifact, steps, &plain()).unwrap();
        // rows come from kernels instead of the definitions
        assert!(largest_difference(&found, &expected) < 1e-4, "{steps} steps");
    }
}

#[test]
fn what_depends_on_conditions_too_is_computed_per_request() {
    let request = Request { conditions: labels(&[1, 5]), ..plain() };
    let expected = compiled_at("dit-dy23", 6, &request);
    let found = sample(&float_loop("dit-dy23", 4, true), 6, &request).unwrap();
    assert!(largest_difference(&found, &expected) < 1e-4);
}

#[test]
fn tables_of_the_time_step_are_checked() {
    let model = load("ddpm-shapes32");
    let lowered = compiled(&model, &recipe(4, true)).lowered().clone();
    let (mut plan, bytes) = (lowered.plan.clone(), lowered.weight_bytes().unwrap());
    plan.times.as_mut().unwrap().tables.swap(0, 4);
    let error = Weights::new(plan.clone(), bytes.clone()).unwrap_err().to_string();
    assert!(error.contains("tables of the time step"), "{error}");
    plan.times.as_mut().unwrap().tables.truncate(1);
    let error = Weights::new(plan, bytes).unwrap_err().to_string();
    assert!(error.contains("results for 1 tables"), "{error}");
}
