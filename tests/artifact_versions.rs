//! Artifacts of every released format version stay readable: compares the samples of
//! `tests/artifacts/vN.cq` with those that it gave when it was made.

mod common;

use cachequant::io::read_npy;
use cachequant::runtime::denoise::Request;
use cachequant::runtime::{Artifact, DenoiserOptions};
use common::{labels, on_cpu, repository, run};
use cqc_proto::cq::VERSION;

#[test]
fn artifacts_of_every_version_sample_the_same() {
    let dir = repository().join("tests/artifacts");
    for version in 1..=VERSION {
        let file = dir.join(format!("v{version}.cq"));
        let artifact = Artifact::open(&file).unwrap();
        let manifest = artifact.manifest();
        assert_eq!(manifest.format_version, version);
        let quantized = manifest.quant.quantized().is_some();
        let options = DenoiserOptions { guidance: Some(2.0), ..on_cpu(1) };
        let (conditions, unconditional) = (labels(&[1, 2]), labels(&[0]));
        let request =
            Request { samples: 2, seed: 7, conditions, unconditional, ..Request::default() };
        let found = run(&mut artifact.denoiser(&options).unwrap(), &request);
        let expected = read_npy(&dir.join(format!("v{version}.samples.npy"))).unwrap().to_f32_vec();
        assert_eq!(found.len(), expected.len());
        let pairs = found.into_iter().zip(expected);
        let worst = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Other instruction sets sum in another order; where operands are rounded, a level may
        // change.
        let limit = if quantized { 0.1 } else { 1e-4 };
        assert!(worst < limit, "{}: {worst:e}", file.display());
    }
}
