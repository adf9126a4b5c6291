//! The scheduler files of public models (`proto/tests/schedulers`) give valid trajectories.

use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::sampler::Sampler;
use std::path::Path;

/// The number of tokens of a 1024 × 1024 image in FLUX.
const TOKENS: usize = 4096;

#[test]
fn scheduler_files_of_public_models_make_trajectories() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/tests/schedulers");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let json = std::fs::read_to_string(&path).unwrap();
        let mut config = SamplerConfig::from_diffusers_json(&json, None).unwrap();
        if let Some(dynamic) = &mut config.dynamic_shift {
            dynamic.mu = Some(dynamic.mu_of(TOKENS));
        }
        let sampler = Sampler::new(&config, 20).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let times: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
        assert_eq!(sampler.evaluations().last().unwrap().step, 19, "{path:?}");
        assert!(times.windows(2).all(|pair| pair[0] >= pair[1]), "{path:?}: {times:?}");
        // from much noise to little: the time steps cover most of training
        let last = times[times.len() - 1];
        assert!(times[0] > 2.0 * last, "{path:?}: {times:?}");
        count += 1;
    }
    assert!(count > 20);
}
