//! Compares the command line with the library: the same recipe makes the same file, and the same
//! request the same samples.

mod common;

use cachequant::io::read_npy;
use cachequant::runtime::denoise::Request;
use cachequant::runtime::engine::EngineOptions;
use cachequant::runtime::{Artifact, DenoiserOptions, Device};
use cachequant::{Model, ModelOptions, Recipe, compile};
use common::{done, model};
use cqc_proto::Tensor;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

#[test]
fn the_same_recipe_and_request_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let source = Model::load(&model("dit-dy23"), &ModelOptions::default(), |_, _| {}).unwrap();
    let recipe = Recipe {
        steps: Some(4),
        guidance: Some(2.0),
        null_label: Some(8),
        interval: Some(2),
        calib_samples: Some(4),
        threads: Some(2),
        ..Recipe::default()
    };
    let bytes = compile(&source, &recipe, &mut ()).unwrap().to_bytes().unwrap();
    let files = format!("{} -o {}", model("dit-dy23").display(), file("a.cq").display());
    let options = "--steps 4 --guidance 2 --null-label 8 --interval 2 --calib-samples 4";
    done(&format!("compile {files} {options} --threads 1"));
    assert!(std::fs::read(file("a.cq")).unwrap() == bytes);

    let options = "-n 3 --seed 7 --labels 1,2,0 --device cpu --batch 3";
    let [artifact, out] = [file("a.cq"), file("samples.npy")];
    done(&format!("sample {} -o {} {options}", artifact.display(), out.display()));
    let conditions =
        BTreeMap::from([("class_labels".to_string(), Tensor::from_i64(&[3], &[1, 2, 0]))]);
    let request = Request { samples: 3, seed: 7, conditions, ..Request::default() };
    let engine = EngineOptions { batch: 2, threads: 1, ..EngineOptions::default() };
    let options = DenoiserOptions { device: Device::Cpu, engine, ..DenoiserOptions::default() };
    let mut denoiser = Artifact::from_bytes(bytes).unwrap().denoiser(&options).unwrap();
    let samples = denoiser.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(samples == read_npy(&out).unwrap());
}
