//! Replays trajectories of diffusers' schedulers. `tests/golden/make_sampler_goldens.py` recorded
//! the outputs of the network and the sample after each step.
//! `cargo test --test sampler_goldens -- --nocapture` prints the errors.

mod sampler_page;

use cqc_proto::sampler::{Class, Refused, SamplerConfig};
use cqc_runtime::sampler::{Sampler, State};
use npyz::npz::NpzArchive;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// The rounding of float32: a few ulp of the largest element in one step. Scalars such as 1 − ᾱ are
/// differences of rounded numbers. They magnify the last bit, in which `ln`, `exp` and torch's
/// vector units differ.
const ONE_STEP: f64 = 1e-5;

/// The same error, added up over a trajectory.
const TRAJECTORY: f64 = 5e-5;

struct Archive(NpzArchive<BufReader<File>>);

impl Archive {
    fn open(path: &str) -> Self {
        Self(NpzArchive::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap())
    }

    fn array<T: npyz::Deserialize>(&mut self, name: &str) -> Vec<T> {
        let array = self.0.by_name(name).unwrap().unwrap_or_else(|| panic!("no array {name}"));
        array.into_vec().unwrap()
    }

    fn text(&mut self, name: &str) -> String {
        String::from_utf8(self.array(name)).unwrap()
    }
}

struct Golden {
    name: String,
    sampler: Sampler,
    timesteps: Vec<f64>,
    scale: Vec<f64>,
    x: Vec<Vec<f32>>,
    output: Vec<Vec<f32>>,
    noise: Vec<Vec<f32>>,
}

/// The families of `tests/golden/samplers`: every case is compared with diffusers after every
/// evaluation.
///
/// `CQC_SAMPLER_CASE=NAME` runs the cases whose names begin with NAME and prints each.
#[test]
fn every_family_moves_as_diffusers_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/samplers");
    let wanted = std::env::var("CQC_SAMPLER_CASE").ok();
    let mut failed = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "npz") {
            continue;
        }
        for case in families::read(&path) {
            if wanted.as_ref().is_some_and(|wanted| !case.name.starts_with(wanted)) {
                continue;
            }
            count += 1;
            let report = case.compare();
            if wanted.is_some() {
                println!("{report:?}");
            }
            if let Err(report) = report {
                failed.push(report);
            }
        }
    }
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 0);
}

/// `docs/reference/samplers.md` describes what the code does. `CQC_BLESS=1` writes it.
#[test]
fn the_page_on_samplers_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/samplers");
    let mut errors: BTreeMap<String, f64> = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "npz") {
            continue;
        }
        for case in families::read(&path).iter().filter(|case| case.steps == 20) {
            let worst = errors.entry(case.class()).or_default();
            *worst = worst.max(case.error().unwrap_or(f64::INFINITY));
        }
    }
    let page = sampler_page::page(&errors);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/samplers.md");
    if std::env::var_os("CQC_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let seen = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(seen == page, "{} is out of date: CQC_BLESS=1 writes it", path.display());
}

#[test]
fn every_class_of_diffusers_is_taken_or_refused() {
    for name in sampler_page::DIFFUSERS {
        // PNDM is two samplers, with and without its Runge-Kutta start
        let taken = Class::all().any(|class| class.name == *name);
        let refused = Refused::all().filter(|class| class.name == *name).count();
        assert_eq!(usize::from(taken) + refused, 1, "{name}: taken {taken}, refused {refused}");
    }
}

mod families {
    use super::{ONE_STEP, relative_error};
    use cqc_proto::sampler::SamplerConfig;
    use cqc_runtime::sampler::{Sampler, State};
    use std::path::Path;

    const SAMPLES: usize = 2;
    const LEN: usize = 4;

    /// The limit for a whole trajectory of up to 50 steps.
    const TRAJECTORY: f64 = 1e-5;

    #[derive(serde::Deserialize)]
    pub struct Case {
        pub name: String,
        json: String,
        pub steps: usize,
        kind: Option<String>,
        eta: Option<f64>,
        mu: Option<f64>,
        sigmas: Option<Vec<f64>>,
        timesteps: Option<Vec<f64>>,
        config: Option<serde_json::Map<String, serde_json::Value>>,
        evaluations: usize,
        noises: usize,
        channels: usize,
        #[serde(skip)]
        f32: Vec<f32>,
        #[serde(skip)]
        f64: Vec<f64>,
    }

    pub fn read(path: &Path) -> Vec<Case> {
        let mut archive = super::Archive::open(path.to_str().unwrap());
        let mut cases: Vec<Case> = serde_json::from_str(&archive.text("cases")).unwrap();
        let (f32, f64) = (archive.array::<f32>("f32"), archive.array::<f64>("f64"));
        let (mut f32, mut f64) = (&f32[..], &f64[..]);
        for case in &mut cases {
            let n = case.evaluations;
            let count = (n + 1 + n * case.channels + case.noises) * SAMPLES * LEN;
            case.f32 = f32.split_off(..count).unwrap().to_vec();
            case.f64 = f64.split_off(..2 * n + 1).unwrap().to_vec();
        }
        cases
    }

    impl Case {
        fn sampler(&self) -> Result<Sampler, String> {
            let kind = self.kind.as_ref().map(|kind| kind.parse().unwrap());
            let mut config = SamplerConfig::from_diffusers_json(&self.json, kind)
                .map_err(|error| format!("{}: {error}", self.name))?;
            if let Some(fields) = &self.config {
                let mut all = serde_json::to_value(&config).unwrap();
                all.as_object_mut().unwrap().extend(fields.clone());
                config = serde_json::from_value(all).unwrap();
            }
            config.eta = self.eta.unwrap_or(config.eta);
            if let Some(dynamic) = &mut config.dynamic_shift {
                dynamic.mu = self.mu;
            }
            config.sigmas = self.sigmas.clone().or(config.sigmas);
            config.timesteps = self.timesteps.clone().or(config.timesteps);
            Sampler::new(&config, self.steps).map_err(|error| format!("{}: {error}", self.name))
        }

        /// The class of diffusers that was recorded.
        pub fn class(&self) -> String {
            let json: serde_json::Value =
                serde_json::from_str(&self.json.replace("-Infinity", "null")).unwrap();
            json["_class_name"].as_str().unwrap().to_owned()
        }

        /// The largest error after any step of the trajectory.
        pub fn error(&self) -> Result<f64, String> {
            self.worst_error(&self.sampler()?, false)
        }

        /// Compares the case with its recording. Returns the errors as text, or a description of a
        /// difference that is too large.
        pub fn compare(&self) -> Result<String, String> {
            let name = &self.name;
            let sampler = self.sampler()?;
            let n = self.evaluations;
            let (times, rest) = self.f64.split_at(n);
            let (scales, initial) = (&rest[..n], rest[n]);
            let seen = sampler.evaluations();
            if seen.len() != n {
                return Err(format!("{name}: {} evaluations, not {n}", seen.len()));
            }
            // time steps that are interpolated from logarithms in float32; one of them may be whole
            let tolerance = if times.iter().all(|t| t.fract() == 0.0) { 0.0 } else { 2e-6 };
            for (i, (e, (&t, &scale))) in seen.iter().zip(times.iter().zip(scales)).enumerate() {
                // 1 − σ has at least the error of the last bit of σ
                if (e.timestep - t).abs() > tolerance * t.abs().max(0.06) {
                    return Err(format!("{name}: time step {i} is {}, not {t}", e.timestep));
                }
                if (f64::from(e.input_scale) / scale - 1.0).abs() > 5e-7 {
                    return Err(format!("{name}: scale {i} is {}, not {scale}", e.input_scale));
                }
            }
            if (f64::from(sampler.initial_scale()) / initial - 1.0).abs() > 1e-6 {
                let seen = sampler.initial_scale();
                return Err(format!("{name}: initial scale {seen}, not {initial}"));
            }
            let (one, all) =
                (self.worst_error(&sampler, true)?, self.worst_error(&sampler, false)?);
            let report = format!("{name}: one step {one:.1e}, trajectory {all:.1e}");
            // NaN fails this comparison
            if one < ONE_STEP && all < TRAJECTORY { Ok(report) } else { Err(report) }
        }

        fn worst_error(&self, sampler: &Sampler, forced: bool) -> Result<f64, String> {
            let (n, size) = (self.evaluations, SAMPLES * LEN);
            let (xs, rest) = self.f32.split_at((n + 1) * size);
            let (outputs, noise) = rest.split_at(n * size * self.channels);
            let mut noise = noise.chunks(size);
            let mut state = State::new(sampler, SAMPLES, LEN);
            let mut x = xs[..size].to_vec();
            let mut worst: f64 = 0.0;
            for i in 0..n {
                if forced {
                    x.copy_from_slice(&xs[i * size..][..size]);
                }
                let width = size * self.channels;
                let mut missing = false;
                sampler.advance(&mut state, i, &mut x, &outputs[i * width..][..width], |to| {
                    match noise.next() {
                        Some(drawn) => to.copy_from_slice(drawn),
                        None => missing = true,
                    }
                });
                if missing {
                    return Err(format!("{}: evaluation {i} draws noise too many", self.name));
                }
                worst = worst.max(relative_error(&x, &xs[(i + 1) * size..][..size]));
            }
            match noise.next() {
                Some(_) => Err(format!("{}: noise was left over", self.name)),
                None => Ok(worst),
            }
        }
    }
}

/// Every sample of the goldens is [3, 4, 4], and there are two.
const SAMPLES: usize = 2;
const LEN: usize = 48;

impl Golden {
    fn all() -> Vec<Self> {
        let mut archive = Archive::open("../tests/golden/samplers.npz");
        let names: Vec<String> = archive
            .0
            .array_names()
            .filter_map(|name| name.strip_suffix("/json"))
            .map(Into::into)
            .collect();
        names.into_iter().map(|name| Self::read(&mut archive, name)).collect()
    }

    fn read(archive: &mut Archive, name: String) -> Self {
        let kind = archive.text(&format!("{name}/kind"));
        let kind = (!kind.is_empty()).then(|| kind.parse().unwrap());
        let mut config =
            SamplerConfig::from_diffusers_json(&archive.text(&format!("{name}/json")), kind)
                .unwrap();
        config.eta = archive.array::<f64>(&format!("{name}/eta"))[0];
        let timesteps = archive.array::<f64>(&format!("{name}/timesteps"));
        let plms_extra = usize::from(config.kind.name() == "plms" && timesteps.len() > 1);
        let output = archive.array::<f32>(&format!("{name}/output"));
        let rows =
            |values: Vec<f32>, width: usize| values.chunks(width).map(<[f32]>::to_vec).collect();
        Self {
            sampler: Sampler::new(&config, timesteps.len() - plms_extra).unwrap(),
            scale: archive.array(&format!("{name}/scale")),
            x: rows(archive.array(&format!("{name}/x")), SAMPLES * LEN),
            noise: rows(archive.array(&format!("{name}/noise")), SAMPLES * LEN),
            output: rows(output.clone(), output.len() / timesteps.len()),
            timesteps,
            name,
        }
    }

    /// The largest error after any evaluation, relative to the largest element there. With
    /// `forced`, every step begins with the recorded sample.
    fn worst_error(&self, forced: bool) -> f64 {
        let mut state = State::new(&self.sampler, SAMPLES, LEN);
        let mut noise = self.noise.iter();
        let mut x = self.x[0].clone();
        let mut worst = 0.0;
        for i in 0..self.timesteps.len() {
            if forced {
                x.copy_from_slice(&self.x[i]);
            }
            self.sampler.advance(&mut state, i, &mut x, &self.output[i], |out| {
                out.copy_from_slice(noise.next().unwrap())
            });
            worst = f64::max(worst, relative_error(&x, &self.x[i + 1]));
        }
        assert!(noise.next().is_none(), "{}: noise was left over", self.name);
        worst
    }
}

fn relative_error(seen: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let difference = seen.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs()));
    difference.map(|d| if d.is_nan() { f64::INFINITY } else { d }).fold(0.0, f64::max)
        / f64::from(largest)
}

#[test]
fn time_steps_and_input_scales_are_those_of_diffusers() {
    for golden in Golden::all() {
        let evaluations = golden.sampler.evaluations();
        assert_eq!(evaluations.len(), golden.timesteps.len(), "{}", golden.name);
        for (evaluation, (&t, &scale)) in
            evaluations.iter().zip(golden.timesteps.iter().zip(&golden.scale))
        {
            let tolerance = if t.fract() == 0.0 { 0.0 } else { 1e-6 * t };
            assert!(
                (evaluation.timestep - t).abs() <= tolerance,
                "{}: {} against {t}",
                golden.name,
                evaluation.timestep
            );
            // the recorded scale is a quotient of two float32
            assert!(
                (f64::from(evaluation.input_scale) / scale - 1.0).abs() < 3e-7,
                "{} at {t}",
                golden.name
            );
        }
        let initial = golden.scale[evaluations.len()];
        assert!(
            (f64::from(golden.sampler.initial_scale()) / initial - 1.0).abs() < 1e-6,
            "{}",
            golden.name
        );
    }
}

#[test]
fn every_step_leads_where_diffusers_went() {
    let goldens = Golden::all();
    assert!(goldens.len() >= 50, "{} goldens", goldens.len());
    for golden in goldens {
        let (one, all) = (golden.worst_error(true), golden.worst_error(false));
        println!(
            "{:28} {:3} evaluations   one step {one:.1e}   trajectory {all:.1e}",
            golden.name,
            golden.timesteps.len()
        );
        assert!(
            one < ONE_STEP && all < TRAJECTORY,
            "{}: one step {one:e}, trajectory {all:e}",
            golden.name
        );
    }
}

/// One step from each sample that the DDIM loop of the trained model recorded (numpy, float64
/// scalars).
#[test]
fn default_sampler_steps_like_the_trained_models_golden() {
    let path = "../../shared/models/ddpm-shapes32/golden_ddim50.npz";
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists() {
        return println!("skipped: no {path}");
    }
    let mut archive = Archive::open(path);
    let sampler = Sampler::new(&SamplerConfig::default(), 50).unwrap();
    let timesteps: Vec<i64> =
        sampler.evaluations().iter().map(|evaluation| evaluation.timestep as i64).collect();
    assert_eq!(timesteps, archive.array::<i64>("timesteps"));
    let alphas = archive.array::<f64>("alphas_cumprod");
    let (kept_x, kept_eps) = (archive.array::<f32>("kept_x"), archive.array::<f32>("kept_eps"));
    let kept_t = archive.array::<i64>("kept_t");
    let len = kept_x.len() / kept_t.len();
    for ((&t, x), eps) in kept_t.iter().zip(kept_x.chunks(len)).zip(kept_eps.chunks(len)) {
        let (a, b) = (alphas[t as usize], alphas[t as usize - 20]);
        let step = |(&x, &eps): (&f32, &f32)| {
            let (x, eps) = (f64::from(x), f64::from(eps));
            let image = ((x - (1.0 - a).sqrt() * eps) / a.sqrt()).clamp(-1.0, 1.0);
            (b.sqrt() * image + (1.0 - b).sqrt() * eps) as f32
        };
        let expected: Vec<f32> = x.iter().zip(eps).map(step).collect();
        let at = timesteps.iter().position(|&other| other == t).unwrap();
        let (mut state, mut seen) = (State::new(&sampler, 8, len / 8), x.to_vec());
        for i in 0..=at {
            seen.copy_from_slice(x);
            sampler.advance(&mut state, i, &mut seen, eps, |_| unreachable!("eta is 0"));
        }
        let error = relative_error(&seen, &expected);
        println!("t = {t}: {error:.1e}");
        assert!(error < ONE_STEP, "t = {t}: {error:e}");
    }
}
