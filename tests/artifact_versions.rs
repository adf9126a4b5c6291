//! Artifacts of every released format version stay readable: `tests/artifacts/vN.cq` and the samples it gave when it was made.

use cachequant::io::read_npy;
use cqc_proto::Tensor;
use cqc_proto::cq::{Artifact, VERSION};
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

#[test]
fn artifacts_of_every_version_sample_the_same() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/artifacts");
    for version in 1..=VERSION {
        let file = dir.join(format!("v{version}.cq"));
        let artifact = Artifact::read(std::fs::read(&file).unwrap().into()).unwrap();
        let manifest = artifact.manifest;
        assert_eq!(manifest.format_version, version);
        let quantized = manifest.quant.quantized().is_some();
        let sampler = Sampler::new(&manifest.sampler, manifest.steps).unwrap();
        let weights = Weights::new(manifest.plan, artifact.weights).unwrap();
        let options = EngineOptions { batch: 2, threads: 1, ..EngineOptions::default() };
        let mut denoise = Denoiser::open(&weights, sampler, true, &options).unwrap();
        let label = |v: &[i64]| BTreeMap::from([("class_labels".to_string(), Tensor::from_i64(&[v.len()], v))]);
        let (conditions, unconditional) = (label(&[1, 2]), label(&[0]));
        let request = Request { samples: 2, seed: 7, conditions, unconditional, guidance: 2.0, ..Request::default() };
        let found = denoise.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        let expected = read_npy(&dir.join(format!("v{version}.samples.npy"))).unwrap();
        let pairs = found.to_f32_vec().into_iter().zip(expected.to_f32_vec());
        let worst = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // other instruction sets sum in another order; where operands are rounded, a level may change
        let limit = if quantized { 0.1 } else { 1e-4 };
        assert!(worst < limit, "{}: {worst:e}", file.display());
    }
}
