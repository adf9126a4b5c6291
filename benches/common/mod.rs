//! Shared by the benchmarks of quality: a model's uncached images, a feature extractor, and rows in
//! a file.

use cachequant::compile::{Session, compile_evaluation};
use cachequant::eval::frechet::{Gaussian, frechet};
use cachequant::eval::psnr::{mse, psnr};
use cachequant::io::{Overwrite, read_npy, read_npz, write_npy};
use cachequant::recipe::{Quant, Recipe};
use cachequant::runtime::denoise::Request;
use cachequant::runtime::engine::{Engine, EngineOptions, Weights};
use cachequant::runtime::{Artifact, DenoiserOptions, Device};
use cachequant::{Model, ModelOptions};
use cqc_proto::Tensor;
use cqc_proto::plan::InputRole;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

pub const BATCH: usize = 8;

pub type Options = BTreeMap<String, String>;

/// `--name value` pairs after the first argument, if there is one.
pub fn arguments() -> Option<(String, Vec<String>, Options)> {
    // `cargo bench` adds `--bench`
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let (first, rest) = arguments.split_first()?;
    let pairs = rest
        .chunks(2)
        .map(|p| (p[0].trim_start_matches("--").into(), p.get(1).cloned().unwrap_or_default()));
    Some((first.clone(), rest.to_vec(), pairs.collect()))
}

pub fn option<'a>(options: &'a Options, name: &str, default: &'a str) -> &'a str {
    options.get(name).map_or(default, String::as_str)
}

/// The facts that are the same for all rows.
pub struct Bench {
    /// Name of the model.
    pub name: String,
    /// The loop: steps and guidance. `--threads` is 2 by default; beside other work, one thread is
    /// far faster than two that wait for each other.
    pub base: Recipe,
    /// Class labels, repeated in turn; empty if the model takes none.
    labels: Vec<i64>,
    /// Number of calibration samples.
    calibration: usize,
    /// The images on which all rows are measured. Their noise is not that of the calibration set.
    pub request: Request,
    pub features: Option<Features>,
    /// The ends of the uncached loop.
    pub reference: Vec<f32>,
}

/// An image feature extractor and the statistics of real images.
pub struct Features {
    engine: Engine,
    input: String,
    output: String,
    real: Gaussian,
}

impl Features {
    fn open(extractor: &Path, statistics: &Path, options: &EngineOptions) -> Features {
        let model = Model::load(extractor, &ModelOptions::default(), |_, _| {}).unwrap();
        let lowered = compile_evaluation(&model).unwrap();
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let engine = Engine::open(&weights, options).unwrap();
        let arrays: BTreeMap<String, Tensor> = read_npz(statistics).unwrap().into_iter().collect();
        let numbers = |name: &str| arrays[name].to_f64_vec();
        let (input, output) = (model.inputs[0].name.clone(), model.outputs[0].name.clone());
        Features {
            engine,
            input,
            output,
            real: Gaussian::new(numbers("mean"), numbers("cov")).unwrap(),
        }
    }

    /// Frechet distance of images `[n, ...]` to the real ones.
    pub fn distance(&mut self, images: &[f32]) -> f64 {
        let shape = self.engine.input_shape(0).to_vec();
        let len: usize = shape.iter().product();
        let clipped: Vec<f32> = images.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let mut rows = Vec::new();
        for batch in clipped.chunks_exact(len) {
            let inputs = BTreeMap::from([(self.input.clone(), Tensor::from_f32(&shape, batch))]);
            rows.extend(self.engine.run(&inputs).unwrap()[&self.output].to_f32_vec());
        }
        frechet(&Gaussian::of(&rows, self.real.dimensions()), &self.real).distance
    }
}

/// Index of the first sample of the measured images. The calibration set has the samples from 0 on.
const FIRST_IMAGE: u64 = 7_000_000;
const SEED: u64 = 1;

impl Bench {
    /// The model and the images of its uncached loop.
    pub fn new(path: &Path, options: &Options, calibration: usize) -> (Bench, Model) {
        let model = Model::load(path, &ModelOptions::default(), |_, _| {}).unwrap();
        let number =
            |name: &str, default: &str| option(options, name, default).parse::<usize>().unwrap();
        let images = number("images", "64").next_multiple_of(BATCH);
        let base = Recipe {
            steps: Some(number("steps", "100")),
            guidance: Some(option(options, "guidance", "1").parse().unwrap()),
            null_label: options.get("null-label").map(|label| label.parse().unwrap()),
            threads: Some(number("threads", "2")),
            ..Recipe::default()
        };
        let folder = path.parent().and_then(Path::file_name);
        let name = folder.map_or("model".into(), |n| n.to_string_lossy().into_owned());
        let labels = options.get("labels").map_or("", String::as_str).split(',');
        let labels: Vec<i64> =
            labels.filter(|l| !l.is_empty()).map(|l| l.parse().unwrap()).collect();
        let conditions = match &labels[..] {
            [] => BTreeMap::new(),
            labels => {
                let mut inputs = model.inputs.iter();
                let input = inputs.find(|i| i.role == InputRole::Condition);
                let rows: Vec<i64> = (0..images).map(|i| labels[i % labels.len()]).collect();
                let name = input.expect("a model that takes labels").name.clone();
                BTreeMap::from([(name, Tensor::from_i64(&[images], &rows))])
            }
        };
        let (seed, first) = (SEED, FIRST_IMAGE);
        let request = Request { samples: images, seed, first, conditions, ..Request::default() };
        let mut bench =
            Bench { name, base, labels, calibration, request, features: None, reference: vec![] };
        let engine = bench.options().engine;
        bench.features = options.get("features").map(|f| {
            Features::open(f.as_ref(), option(options, "real-stats", "").as_ref(), &engine)
        });
        // `--references DIR` keeps them, under a name that has all settings on which they depend
        let kept = options.get("references").map(|dir| {
            let (steps, guidance) = (bench.base.steps(), bench.base.guidance());
            Path::new(dir).join(format!("{}-{steps}-{images}-{guidance}.npy", bench.name))
        });
        bench.reference = match &kept {
            Some(path) if path.exists() => read_npy(path).unwrap().to_f32_vec(),
            _ => bench.sample(&bench.uncached(&model), images).0,
        };
        if let Some(path) = kept.filter(|path| !path.exists()) {
            let tensor = Tensor::from_f32(&[bench.reference.len()], &bench.reference);
            write_npy(&path, &tensor, Overwrite::Refuse).unwrap();
        }
        (bench, model)
    }

    /// The float loop in which every evaluation is full.
    fn uncached(&self, model: &Model) -> Artifact {
        let recipe = Recipe { interval: Some(1), quant: Some(Quant::None), ..self.base.clone() };
        let session = Session::new(model, &recipe).unwrap();
        session.into_compiled(None, None).unwrap().artifact().unwrap()
    }

    /// The recipe with the loop of all rows and the calibration set.
    pub fn calibrated(&self, recipe: &Recipe) -> Recipe {
        Recipe {
            steps: self.base.steps,
            guidance: self.base.guidance,
            null_label: self.base.null_label,
            threads: self.base.threads,
            labels: self.labels.clone(),
            calib_samples: Some(self.calibration),
            calib_batch: Some(BATCH),
            seed: Some(SEED),
            ..recipe.clone()
        }
    }

    /// Options of the denoisers.
    pub fn options(&self) -> DenoiserOptions {
        let engine = EngineOptions {
            batch: BATCH,
            threads: self.base.threads(),
            ..EngineOptions::default()
        };
        DenoiserOptions { device: Device::Cpu, engine, ..DenoiserOptions::default() }
    }

    /// The first images, and the median time of a batch's loop.
    pub fn sample(&self, artifact: &Artifact, images: usize) -> (Vec<f32>, f64) {
        let mut denoiser = artifact.denoiser(&self.options()).unwrap();
        let (mut times, mut last) = (vec![], Instant::now());
        let conditions = self.request.conditions.iter();
        let conditions = conditions.map(|(name, t)| (name.clone(), first_rows(t, images)));
        let request =
            Request { samples: images, conditions: conditions.collect(), ..self.request.clone() };
        let images = denoiser.sample(&request, &mut |moment| {
            if moment.evaluation + 1 == moment.evaluations {
                times.push(last.elapsed().as_secs_f64() * 1e3);
                last = Instant::now();
            }
            ControlFlow::Continue(())
        });
        times.sort_by(f64::total_cmp);
        (images.unwrap().to_f32_vec(), times[times.len() / 2])
    }

    /// Mean over the first `count` images, as `cqc eval` computes it: 8 bits per channel.
    pub fn psnr(&self, images: &[f32], count: usize) -> f64 {
        let len = self.reference.len() / self.request.samples;
        let bytes = |x: &[f32]| {
            x.iter()
                .map(|x| ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8)
                .collect::<Vec<u8>>()
        };
        let pairs = images.chunks_exact(len).zip(self.reference.chunks_exact(len)).take(count);
        let sum: f64 = pairs.map(|(a, b)| psnr(mse(&bytes(a), &bytes(b)), 255.0)).sum();
        sum / count as f64
    }
}

fn first_rows(t: &Tensor, rows: usize) -> Tensor {
    let mut shape = t.shape().to_vec();
    let row = t.bytes().len() / shape[0];
    shape[0] = rows;
    Tensor::new(t.dtype(), shape, t.bytes().slice(..rows * row)).unwrap()
}

pub fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
