//! Replays loops of diffusers' pipelines that begin with an image; some keep a part of it.
//! `tests/golden/starts/record.py` recorded the outputs of the network and the sample after each
//! step. `CQC_SAMPLER_CASE=NAME` prints the errors of the cases whose names begin with NAME.

use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::sampler::{Repaint, Sampler, State};
use npyz::npz::NpzArchive;
use std::path::Path;

/// The number of elements of the only sample.
const LEN: usize = 4;

/// The largest error after any evaluation, relative to the largest element.
const TOLERANCE: f64 = 1e-5;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    json: String,
    steps: usize,
    strength: f32,
    masked: bool,
    kind: Option<String>,
    eta: Option<f64>,
    mu: Option<f64>,
    config: Option<serde_json::Map<String, serde_json::Value>>,
    evaluations: usize,
    noises: usize,
    channels: usize,
    #[serde(skip)]
    numbers: Vec<f32>,
    #[serde(skip)]
    mask: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/starts/starts.npz");
    let mut archive = NpzArchive::open(path).unwrap();
    let text: Vec<u8> = archive.by_name("cases").unwrap().unwrap().into_vec().unwrap();
    let all: Vec<f32> = archive.by_name("f32").unwrap().unwrap().into_vec().unwrap();
    let mask: Vec<f32> = archive.by_name("mask").unwrap().unwrap().into_vec().unwrap();
    let mut cases: Vec<Case> = serde_json::from_slice(&text).unwrap();
    let mut all = &all[..];
    for case in &mut cases {
        let n = case.evaluations;
        let count = (2 + n + 1 + n * case.channels + case.noises) * LEN;
        case.numbers = all.split_off(..count).unwrap().to_vec();
        case.mask = mask.clone();
    }
    assert!(all.is_empty());
    cases
}

impl Case {
    fn sampler(&self) -> Sampler {
        let kind = self.kind.as_ref().map(|kind| kind.parse().unwrap());
        let mut config = SamplerConfig::from_diffusers_json(&self.json, kind).unwrap();
        if let Some(fields) = &self.config {
            let mut all = serde_json::to_value(&config).unwrap();
            all.as_object_mut().unwrap().extend(fields.clone());
            config = serde_json::from_value(all).unwrap();
        }
        config.eta = self.eta.unwrap_or(config.eta);
        if let Some(dynamic) = &mut config.dynamic_shift {
            dynamic.mu = self.mu;
        }
        Sampler::new(&config, self.steps).unwrap()
    }

    /// The largest error after any evaluation. With `forced`, each begins with the recorded sample.
    fn error(&self, forced: bool) -> Result<f64, String> {
        let whole = self.sampler();
        let begin = whole.evaluation_of_strength(self.strength);
        let n = whole.evaluations().len() - begin;
        if n != self.evaluations {
            return Err(format!("{n} evaluations, not {}", self.evaluations));
        }
        let sampler = whole.beginning_at(begin).map_err(|e| e.to_string())?;
        let (given, rest) = self.numbers.split_at(2 * LEN);
        let (image, noise) = given.split_at(LEN);
        let (xs, rest) = rest.split_at((n + 1) * LEN);
        let (outputs, drawn) = rest.split_at(n * LEN * self.channels);
        let mut drawn = drawn.chunks(LEN);
        let mut x = vec![0.0; LEN];
        if self.masked && self.strength == 1.0 {
            let scale = sampler.initial_scale();
            x.iter_mut().zip(noise).for_each(|(x, noise)| *x = noise * scale);
        } else {
            let level = sampler.evaluations()[begin].level.ok_or("no level")?;
            level.mix(image, noise, &mut x);
        }
        let repaint =
            Repaint { mask: self.mask.clone(), image: image.to_vec(), noise: noise.to_vec() };
        let mut worst = relative_error(&x, &xs[..LEN]);
        let mut state = State::new(&sampler, 1, LEN);
        for i in 0..n {
            if forced {
                x.copy_from_slice(&xs[i * LEN..][..LEN]);
            }
            let output = &outputs[i * LEN * self.channels..][..LEN * self.channels];
            let mut missing = false;
            sampler.advance(&mut state, begin + i, &mut x, output, |to| match drawn.next() {
                Some(noise) => to.copy_from_slice(noise),
                None => missing = true,
            });
            if missing {
                return Err(format!("evaluation {i} draws noise too many"));
            }
            if self.masked {
                repaint.put_back(sampler.level_after(begin + i), &mut x);
            }
            worst = worst.max(relative_error(&x, &xs[(i + 1) * LEN..][..LEN]));
        }
        if drawn.next().is_some() { Err("noise was left over".into()) } else { Ok(worst) }
    }
}

fn relative_error(seen: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let difference = seen.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs()));
    difference.map(|d| if d.is_nan() { f64::INFINITY } else { d }).fold(0.0, f64::max)
        / f64::from(largest)
}

#[test]
fn loops_that_begin_with_an_image_lead_where_diffusers_went() {
    let wanted = std::env::var("CQC_SAMPLER_CASE").ok();
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases() {
        if wanted.as_ref().is_some_and(|wanted| !case.name.starts_with(wanted)) {
            continue;
        }
        count += 1;
        let errors = case.error(true).and_then(|one| Ok((one, case.error(false)?)));
        if wanted.is_some() {
            println!("{}: {errors:?}", case.name);
        }
        // NaN fails this comparison
        if !errors.as_ref().is_ok_and(|&(one, all)| one < TOLERANCE && all < TOLERANCE) {
            failed.push(format!("{}: {errors:?}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 0);
}
