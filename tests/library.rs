//! The compiler as a library: an artifact in memory equals its file, the stages equal the whole,
//! and the progress callback is called and may end the compilation.

mod common;

use cachequant::compile::{Phase, Session};
use cachequant::recipe::{CompensationMode, Quant};
use cachequant::runtime::denoise::Request;
use cachequant::runtime::{Artifact, DenoiserOptions};
use cachequant::{CompileError, Overwrite, Recipe, compile};
use common::{compiled, labels, load, on_cpu, run, samples};
use std::ops::ControlFlow;

/// A guided loop, cached, quantized, its samples corrected after every step.
fn recipe() -> Recipe {
    Recipe {
        steps: Some(4),
        guidance: Some(2.0),
        null_label: Some(8),
        interval: Some(2),
        calib_samples: Some(4),
        variance_compensation: Some(CompensationMode::Mse),
        threads: Some(2),
        ..Recipe::default()
    }
}

fn request() -> Request {
    Request { samples: 3, seed: 7, conditions: labels(&[1, 2, 0]), ..Request::default() }
}

#[test]
fn an_artifact_in_memory_is_its_file_and_samples_alike() {
    let model = load("dit-dy23");
    let compiled = compiled(&model, &recipe());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.cq");
    compiled.write(&file, Overwrite::Refuse).unwrap();
    let bytes = compiled.to_bytes().unwrap();
    assert!(std::fs::read(&file).unwrap() == bytes);
    compiled.write(&file, Overwrite::Refuse).unwrap_err();

    let in_memory = compiled.artifact().unwrap();
    assert!(in_memory.compensation().is_some());
    let artifacts =
        [in_memory, Artifact::from_bytes(bytes).unwrap(), Artifact::open(&file).unwrap()];
    let [in_memory, from_bytes, from_file] =
        artifacts.map(|artifact| run(&mut artifact.denoiser(&on_cpu(1)).unwrap(), &request()));
    assert!(in_memory == from_bytes && from_bytes == from_file);
}

/// The guidance scale, the null conditions and the sample compensation are those of the artifact
/// unless a caller gives others.
#[test]
fn what_the_recipe_says_is_what_a_bare_request_gets() {
    let model = load("dit-dy23");
    let compiled = compiled(&model, &recipe());
    let artifact = compiled.artifact().unwrap();
    let mut denoiser = artifact.denoiser(&on_cpu(1)).unwrap();
    let found = run(&mut denoiser, &request());
    let explicit = Request { guidance: Some(2.0), unconditional: labels(&[8]), ..request() };
    assert!(found == run(&mut denoiser, &explicit));
    for guidance in [0.0, 1.0, 3.0] {
        let other = run(&mut denoiser, &Request { guidance: Some(guidance), ..request() });
        assert!(found != other, "a scale of {guidance}");
    }
    denoiser.set_compensation(None).unwrap();
    assert!(found != run(&mut denoiser, &request()), "samples are corrected");
    let unguided = DenoiserOptions { guidance: Some(1.0), ..on_cpu(1) };
    assert!(!artifact.denoiser(&unguided).unwrap().is_guided());
}

#[test]
fn stages_are_the_whole() {
    let model = load("dit-dy23");
    let session = Session::new(&model, &recipe()).unwrap();
    assert_eq!(session.calibration_set().unwrap().samples, 4);
    let choice = session.decide(&mut ()).unwrap();
    let quantized = session.quantize(choice.as_ref(), &mut ()).unwrap();
    let staged = session.into_compiled(choice, quantized).unwrap();
    let whole = compiled(&model, &Recipe { threads: Some(1), ..recipe() });
    assert!(staged.to_bytes().unwrap() == whole.to_bytes().unwrap());
    assert_eq!(staged.summary(), whole.summary());
}

#[test]
fn progress_is_told_and_may_break_off() {
    let model = load("dit-dy23");
    let mut seen: Vec<(Phase, u64, u64)> = vec![];
    let mut watch = |phase, done, total| {
        seen.push((phase, done, total));
        ControlFlow::Continue(())
    };
    compile(&model, &recipe(), &mut watch).unwrap();
    let count = |of: Phase| seen.iter().filter(|(phase, ..)| *phase == of).count() as u64;
    let quantizing = seen.iter().position(|(phase, ..)| *phase == Phase::Quantizing).unwrap();
    assert!(seen[..quantizing].iter().all(|(phase, ..)| *phase == Phase::Calibrating));
    assert!(seen[quantizing..].iter().all(|(phase, ..)| *phase == Phase::Quantizing));
    assert!(seen.iter().all(|(_, done, total)| done <= total), "{seen:?}");

    for (phase, last) in [(Phase::Calibrating, 1), (Phase::Quantizing, 1), (Phase::Quantizing, 5)] {
        assert!(count(phase) > last);
        let mut updates = 0;
        let mut breaking = |now, done, _| {
            updates += 1;
            let ends = now == phase && done == last;
            if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let Err(error) = compile(&model, &recipe(), &mut breaking) else {
            panic!("{phase} went on")
        };
        assert!(error.is_interrupted(), "{phase}: {error}");
        let before = if phase == Phase::Quantizing { count(Phase::Calibrating) } else { 0 };
        assert_eq!(updates, before + last, "{phase}: nothing is told after a break");
    }
}

#[test]
fn what_is_wrong_is_said_at_once_and_is_no_interruption() {
    let model = load("dit-dy23");
    let wrong = Recipe {
        quant: Some(Quant::None),
        interval: Some(1),
        reconstruct: true,
        calib_samples: Some(4),
        variance_compensation: None,
        ..recipe()
    };
    let mut untouched = |_, _, _| panic!("nothing is computed");
    let Err(error) = compile(&model, &wrong, &mut untouched) else { panic!("it was accepted") };
    assert!(!error.is_interrupted());
    let CompileError::Recipe(contradictions) = &error else { panic!("{error}") };
    let options: Vec<&str> = contradictions.iter().map(|c| c.option).collect();
    assert_eq!(options, ["calib-samples", "reconstruct"]);

    let model = load("ddpm-shapes32");
    let Err(error) = Session::new(&model, &recipe()) else { panic!("it has no labels") };
    assert!(matches!(error, CompileError::Condition(_)), "{error}");
}

#[test]
fn a_model_without_conditions_needs_no_more_than_steps() {
    let model = load("ddpm-shapes32");
    let recipe =
        Recipe { steps: Some(3), interval: Some(1), quant: Some(Quant::None), ..Recipe::default() };
    let compiled = compiled(&model, &recipe);
    assert!(compiled.choice().is_none() && compiled.quantized().is_none());
    assert!(compiled.session().calibration_set().is_none());
    assert_eq!(compiled.manifest().steps, 3);
    let request = Request { samples: 1, ..Request::default() };
    assert!(samples(&compiled, &request).iter().all(|x| x.is_finite()));
}
