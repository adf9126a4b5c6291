//! Small quantized loops, and what their roundings become in other forms.

use cachequant::calibrate::quantize::{Grouping, Outputs, Select};
use cachequant::calibrate::{CalibrationOptions, Correct, Fit, Wanted, choose};
use cachequant::compile::{LoopOptions, Lowered, assemble_loop, compile_loop, cut_loop};
use cachequant::model::{Model, ModelOptions};
use cachequant::quantize::{QuantizeOptions, quantize};
use cachequant::stages::Stages;
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::schedule::ScheduleKind;
use cqc_passes::calib::compensate::CompensationMode;
use cqc_passes::onnx::export::{Qdq, Scales, conservative};
use cqc_passes::quant::{AnnotateOptions, QuantSpec};
use cqc_proto::plan::{Plan, Source};
use cqc_proto::sampler::SamplerConfig;
use cqc_proto::{DType, Op, Tensor};
use cqc_runtime::denoise::{Compensation, Denoiser, Request};
use cqc_runtime::engine::{EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use cqc_runtime::sampler::Sampler;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

const STEPS: usize = 6;

/// A quantized loop and a request for it.
pub struct Case {
    pub name: String,
    pub lowered: Lowered,
    pub compensation: Option<Compensation>,
    pub request: Request,
}

pub fn sampler() -> Sampler {
    Sampler::new(&SamplerConfig::default(), STEPS).unwrap()
}

fn open(lowered: &Lowered) -> Denoiser {
    let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
    // rounded floats: what exported models compute, and tables that can be set to 0
    let options = EngineOptions { batch: 2, threads: 2, low_precision: false, ..Default::default() };
    Denoiser::open(&weights, sampler(), false, &options).unwrap()
}

/// Compiles a model of `tests/models` for two samples. Its narrow layers stay float unless `all` are to be quantized.
pub fn case(model: &str, conditions: BTreeMap<String, Tensor>, bits: u8, interval: usize, all: bool) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/models/{model}.onnx"));
    let source = Model::load(&path, &ModelOptions::default(), |_, _| {}).unwrap();
    let options = LoopOptions { sampler: SamplerConfig::default(), steps: STEPS, any_steps: false, bf16: None };
    let request = Request { samples: 2, conditions, guidance: 1.0, seed: 1, ..Request::default() };
    let cached = (interval > 1).then(|| cut_loop(&source, &options, &CutSpec::Auto).unwrap());
    let (assembled, mut float, tables) = match &cached {
        None => (assemble_loop(&source, &options).unwrap(), open(&compile_loop(&source, &options).unwrap()), None),
        Some(cached) => {
            let mut float = open(&cached.uncorrected().unwrap());
            let calibration = CalibrationOptions {
                interval,
                schedule: Wanted::Method(ScheduleKind::Uniform),
                correct: Correct::Always(Fit::Forecast),
                request: request.clone(),
                output_samples: 0,
                progress: &mut |_, _| ControlFlow::Continue(()),
            };
            let choice = choose(&mut float, calibration).unwrap();
            let tables = choice.tables.map(|t| t.1);
            (cached.assemble(&choice.full, tables.as_ref()).unwrap(), float, tables)
        }
    };
    let how = QuantizeOptions {
        spec: QuantSpec { narrow_float: !all, ..QuantSpec::new(bits) },
        target_psnr: None,
        float_work: 0.0,
        grouping: Grouping::PerEvaluation,
        outputs: if interval > 1 { Outputs::Cut } else { Outputs::None },
        refit_cache: false,
        compensation: (interval > 1).then_some(CompensationMode::Mse),
        reconstruct: false,
        select: Select::All,
        stages: &Stages::none(),
        request: request.clone(),
        fit: 2,
        held: None,
        engine: EngineOptions { batch: 2, threads: 2, ..Default::default() },
        progress: &mut |_, _| ControlFlow::Continue(()),
    };
    let quantized = quantize(&assembled, tables.as_ref(), &mut float, how).unwrap();
    let fitted = (&quantized.survey, &quantized.fitted.tables, AnnotateOptions::default());
    let (lowered, _) = assembled.lower(Some(fitted)).unwrap();
    let (name, compensation) = (format!("{model} w{bits}a8, interval {interval}"), quantized.fitted.compensation);
    Case { name, lowered, compensation, request: Request { seed: 7, ..request } }
}

impl Case {
    /// The constants of the plan, codes unpacked, as export takes them.
    pub fn constants(&self) -> Vec<Tensor> {
        let each = self.lowered.plan.constants.iter().zip(&self.lowered.weights.parts);
        let tensor = |(c, (_, stored)): (&cqc_proto::plan::Constant, &(u64, Tensor))| {
            let Some(how) = &c.codes else { return stored.clone() };
            let shape = c.ty.fixed_shape().unwrap();
            let codes = how.unpack(stored.bytes(), shape.iter().product());
            Tensor::new(DType::I8, shape, codes.iter().map(|&c| c as u8).collect::<Vec<u8>>()).unwrap()
        };
        each.map(tensor).collect()
    }

    /// Our execution of the roundings that `qdq` writes.
    pub fn open(&self, qdq: Qdq) -> Denoiser {
        let mut lowered = self.lowered.clone();
        if qdq == Qdq::None {
            let cached = lowered.plan.cache.iter_mut().flat_map(|c| &mut c.cached.steps);
            for step in lowered.plan.full.steps.iter_mut().chain(cached) {
                if let Op::Attention { softmax_bits, .. } = &mut step.op {
                    *softmax_bits = 0;
                }
            }
        }
        let mut denoiser = open(&lowered);
        denoiser.set_compensation(self.compensation.clone()).unwrap();
        let (constants, evaluations) = (self.constants(), self.lowered.plan.evaluations);
        for (scale, zero) in tables(&self.lowered.plan) {
            let [scales, zeros] = [scale, zero].map(|i| constants[i].to_f32_vec());
            let width = scales.len() / evaluations;
            let column = |of: &[f32], i: usize| of.iter().skip(i).step_by(width).copied().collect::<Vec<f32>>();
            let row: Vec<(f32, f32)> =
                (0..width).map(|i| rounding(qdq, &column(&scales, i), &column(&zeros, i))).collect();
            for e in (0..evaluations).filter(|_| qdq != Qdq::default()) {
                denoiser.set_table_row(scale, e, &row.iter().map(|r| r.0).collect::<Vec<_>>()).unwrap();
                denoiser.set_table_row(zero, e, &row.iter().map(|r| r.1).collect::<Vec<_>>()).unwrap();
            }
        }
        denoiser
    }

    /// The same request with noise that differs in the last bits: what it changes, other orders of summation may change.
    pub fn nudged(&self) -> Request {
        let mut noise = vec![0.0f32; 2 * 3 * 32 * 32];
        Noise::new(self.request.seed, 0, 2).fill(&mut noise);
        let nudged: Vec<f32> = noise.iter().enumerate().map(|(i, x)| x * (1.0 + (i % 7) as f32 * 1e-7)).collect();
        Request { noise: Some(Tensor::from_f32(&[2, 3, 32, 32], &nudged)), ..self.request.clone() }
    }
}

/// Tables of the roundings: scale and zero point.
fn tables(plan: &Plan) -> BTreeSet<(usize, usize)> {
    let programs = std::iter::once(&plan.full).chain(plan.cache.iter().map(|c| &c.cached));
    let table = |program: &cqc_proto::plan::Program, v: Option<usize>| match program.values[v?].source {
        Source::Table(i) => Some(i),
        _ => None,
    };
    let rounds = programs.flat_map(|p| p.steps.iter().map(move |s| (p, s)));
    let rounds = rounds.filter(|(_, s)| matches!(s.op, Op::FakeQuant { .. }));
    rounds.filter_map(|(p, s)| Some((table(p, s.inputs[1])?, table(p, s.inputs[2])?))).collect()
}

/// Scale and zero point of all evaluations; codes with a sign are 128 less.
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
