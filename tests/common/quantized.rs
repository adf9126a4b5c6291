//! Small quantized loops, and the execution of their roundings in other forms.

use crate::common::{load, on_cpu};
use bytes::Bytes;
use cachequant::recipe::{CacheFit, CompensationMode, Correct, Quant, Recipe};
use cachequant::runtime::denoise::{Denoiser, Request};
use cachequant::runtime::engine::EngineOptions;
use cachequant::runtime::noise::Noise;
use cachequant::runtime::sampler::Sampler;
use cachequant::runtime::{Artifact, DenoiserOptions};
use cqc_passes::onnx::export::{Qdq, Scales, conservative};
use cqc_proto::plan::{Plan, Source};
use cqc_proto::{Op, Tensor};
use std::collections::{BTreeMap, BTreeSet};

const STEPS: usize = 6;

/// A quantized loop and a request for it.
pub struct Case {
    pub name: String,
    pub artifact: Artifact,
    pub request: Request,
    /// The bytes of all constants, one after the other.
    bytes: Bytes,
}

/// Compiles a model of `tests/models` for two samples. Its narrow layers stay float unless `all` is
/// set.
pub fn case(
    model: &str,
    conditions: BTreeMap<String, Tensor>,
    bits: u8,
    interval: usize,
    all: bool,
) -> Case {
    let quant = if bits == 4 { Quant::W4a8 } else { Quant::W8a8 };
    let recipe = Recipe {
        steps: Some(STEPS),
        interval: Some(interval),
        quant: Some(quant),
        // ranges and corrections are fitted on two of them
        calib_samples: Some(4),
        seed: Some(1),
        cond: conditions.iter().map(|(name, t)| (name.clone(), twice(t).into())).collect(),
        threads: Some(2),
        ..Recipe::default()
    };
    let recipe = match all {
        true => Recipe { keep_float: vec!["none".into()], ..recipe },
        false => Recipe { float_work: Some(0.0), ..recipe },
    };
    let recipe = match interval {
        1 => Recipe { correct: Some(vec![Correct::None]), ..recipe },
        _ => Recipe {
            schedule: Some("uniform".parse().unwrap()),
            cache_fit: Some(CacheFit::Forecast),
            refit_cache: Some(false),
            variance_compensation: Some(CompensationMode::Mse),
            ..recipe
        },
    };
    let model_ = load(model);
    let compiled = crate::common::compiled(&model_, &recipe);
    Case {
        name: format!("{model} {quant}, interval {interval}"),
        artifact: compiled.artifact().unwrap(),
        request: Request { samples: 2, conditions, seed: 7, ..Request::default() },
        bytes: compiled.lowered().weight_bytes().unwrap(),
    }
}

/// The rows, twice.
fn twice(t: &Tensor) -> Tensor {
    let shape = [&[2 * t.shape()[0]], &t.shape()[1..]].concat();
    Tensor::new(t.dtype(), shape, t.bytes().repeat(2)).unwrap()
}

impl Case {
    pub fn plan(&self) -> &Plan {
        &self.artifact.manifest().plan
    }

    pub fn sampler(&self) -> Sampler {
        self.artifact.sampler().unwrap()
    }

    /// The constants of the plan with unpacked codes, as the export takes them.
    pub fn constants(&self) -> Vec<Tensor> {
        (0..self.plan().constants.len()).map(|i| self.artifact.constant(i)).collect()
    }

    /// This engine's execution of the roundings that `qdq` writes.
    pub fn open(&self, qdq: Qdq) -> Denoiser {
        let mut manifest = self.artifact.manifest().clone();
        if qdq == Qdq::None {
            let plan = &mut manifest.plan;
            let cached = plan.cache.iter_mut().flat_map(|c| &mut c.cached.steps);
            for step in plan.full.steps.iter_mut().chain(cached) {
                if let Op::Attention { softmax_bits, .. } = &mut step.op {
                    *softmax_bits = 0;
                }
            }
        }
        let artifact = Artifact::from_parts(manifest, self.bytes.clone()).unwrap();
        // rounded floats: what exported models compute, and tables that can be set to 0
        let engine = EngineOptions {
            batch: 2,
            threads: 2,
            low_precision: false,
            ..EngineOptions::default()
        };
        let mut denoiser = artifact.denoiser(&DenoiserOptions { engine, ..on_cpu(2) }).unwrap();
        let (constants, evaluations) = (self.constants(), self.plan().evaluations);
        for (scale, zero) in tables(self.plan()) {
            let [scales, zeros] = [scale, zero].map(|i| constants[i].to_f32_vec());
            let width = scales.len() / evaluations;
            let column = |of: &[f32], i: usize| {
                of.iter().skip(i).step_by(width).copied().collect::<Vec<f32>>()
            };
            let row: Vec<(f32, f32)> = (0..width)
                .map(|i| rounding(qdq, &column(&scales, i), &column(&zeros, i)))
                .collect();
            for e in (0..evaluations).filter(|_| qdq != Qdq::default()) {
                denoiser
                    .set_table_row(scale, e, &row.iter().map(|r| r.0).collect::<Vec<_>>())
                    .unwrap();
                denoiser
                    .set_table_row(zero, e, &row.iter().map(|r| r.1).collect::<Vec<_>>())
                    .unwrap();
            }
        }
        denoiser
    }

    /// The same request with noise that differs in the last bits. Other orders of summation may
    /// change results as much as this does.
    pub fn nudged(&self) -> Request {
        let mut noise = vec![0.0f32; 2 * 3 * 32 * 32];
        Noise::new(self.request.seed, 0, 2).fill(&mut noise);
        let nudged: Vec<f32> =
            noise.iter().enumerate().map(|(i, x)| x * (1.0 + (i % 7) as f32 * 1e-7)).collect();
        Request { noise: Some(Tensor::from_f32(&[2, 3, 32, 32], &nudged)), ..self.request.clone() }
    }
}

/// The tables of the roundings: scale and zero point.
fn tables(plan: &Plan) -> BTreeSet<(usize, usize)> {
    let programs = std::iter::once(&plan.full).chain(plan.cache.iter().map(|c| &c.cached));
    let table =
        |program: &cqc_proto::plan::Program, v: Option<usize>| match program.values[v?].source {
            Source::Table(i) => Some(i),
            _ => None,
        };
    let rounds = programs.flat_map(|p| p.steps.iter().map(move |s| (p, s)));
    let rounds = rounds.filter(|(_, s)| matches!(s.op, Op::FakeQuant { .. }));
    rounds.filter_map(|(p, s)| Some((table(p, s.inputs[1])?, table(p, s.inputs[2])?))).collect()
}

/// Scale and zero point for all evaluations. Signed codes are smaller by 128.
fn rounding(qdq: Qdq, scale: &[f32], zero: &[f32]) -> (f32, f32) {
    let ends = scale.iter().zip(zero).flat_map(|(&s, &z)| [z * s, (255.0 - z) * s]);
    match qdq {
        Qdq::None | Qdq::Ort(Scales::Table) => (0.0, 0.0),
        Qdq::Ort(Scales::Constant) => {
            let (scale, zero) = conservative(scale, zero);
            (scale, zero.into())
        }
        Qdq::Trt => (ends.fold(0.0, f32::max) / 127.0, 128.0),
    }
}
