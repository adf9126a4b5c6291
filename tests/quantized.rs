//! Quantization from the model to the samples: what is fitted, what it costs, what is written.

mod common;

use cachequant::calibrate::quantize::{Grouping, Outputs, Select};
use cachequant::calibrate::{CalibrationOptions, Choice, Correct, Fit, Wanted, choose};
use cachequant::compile::{Assembled, CachedLoop, LoopOptions, Lowered, assemble_loop, compile_loop, cut_loop};
use cachequant::model::{Model, ModelOptions};
use cachequant::quantize::{QuantizeError, QuantizeOptions, Quantized, quantize};
use cachequant::stages::Stages;
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::schedule::ScheduleKind;
use cqc_passes::calib::compensate::CompensationMode;
use cqc_passes::calib::select::Tap;
use cqc_passes::ir::ValueId;
use cqc_passes::quant::{AnnotateOptions, Layer, PreludeWeight, QuantSpec, QuantTables, Survey};
use cqc_proto::Tensor;
use cqc_proto::plan::{InputRole, ProgramKind};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::{Engine, EngineOptions, Execution, Weights};
use cqc_runtime::sampler::Sampler;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(format!("{name}.onnx"))
}

fn load(name: &str) -> Model {
    Model::load(&path(name), &ModelOptions::default(), |_, _| {}).unwrap()
}

/// A loop of a model that is to be quantized.
struct Case<'a> {
    model: &'a Model,
    options: LoopOptions,
    cached: CachedLoop<'a>,
    request: Request,
}

/// How.
#[derive(Clone)]
struct How {
    bits: u8,
    float_work: f64,
    outputs: Outputs,
    grouping: Grouping,
    compensation: Option<CompensationMode>,
    reconstruct: bool,
    select: Select,
    fit: usize,
    threads: usize,
}

const PLAIN: How = How {
    bits: 8,
    float_work: 0.03,
    outputs: Outputs::None,
    grouping: Grouping::PerEvaluation,
    compensation: None,
    reconstruct: false,
    select: Select::All,
    fit: 4,
    threads: 2,
};

impl<'a> Case<'a> {
    fn new(model: &'a Model, kind: SamplerKind, steps: usize, request: Request) -> Case<'a> {
        let options = LoopOptions { sampler: SamplerConfig::of_kind(kind), steps, any_steps: false, bf16: None };
        let cached = cut_loop(model, &options, &CutSpec::Auto).unwrap();
        Case { model, options, cached, request }
    }

    fn open(&self, lowered: &Lowered, threads: usize) -> Denoiser {
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let sampler = Sampler::new(&self.options.sampler, self.options.steps).unwrap();
        Denoiser::open(&weights, sampler, self.request.guidance != 1.0, &engine(threads)).unwrap()
    }

    fn choice(&self, interval: usize) -> Choice {
        let mut denoiser = self.open(&self.cached.uncorrected().unwrap(), 2);
        let options = CalibrationOptions {
            interval,
            schedule: Wanted::Method(ScheduleKind::Uniform),
            correct: Correct::Always(Fit::Forecast),
            request: Request { seed: 1000, ..self.request.clone() },
            output_samples: 2,
            progress: &mut |_, _| ControlFlow::Continue(()),
        };
        choose(&mut denoiser, options).unwrap()
    }

    fn quantize(&self, choice: Option<&Choice>, how: &How) -> Result<(Quantized, Lowered), QuantizeError> {
        let tables = choice.and_then(|c| c.tables.as_ref()).map(|(_, tables)| tables);
        let assemble = |tables| -> Assembled<'_> {
            match choice {
                Some(choice) => self.cached.assemble(&choice.full, tables).unwrap(),
                None => assemble_loop(self.model, &self.options).unwrap(),
            }
        };
        let mut float = self.open(&self.cached.uncorrected().unwrap(), how.threads);
        let quantized = quantize(
            &assemble(tables),
            tables,
            &mut float,
            QuantizeOptions {
                spec: QuantSpec::new(how.bits),
                target_psnr: None,
                float_work: how.float_work,
                grouping: how.grouping,
                outputs: how.outputs,
                refit_cache: true,
                compensation: how.compensation,
                reconstruct: how.reconstruct,
                select: how.select.clone(),
                request: Request { seed: 1000, ..self.request.clone() },
                stages: &Stages::none(),
                fit: how.fit,
                held: None,
                engine: engine(how.threads),
                progress: &mut |_, _| ControlFlow::Continue(()),
            },
        )?;
        let assembled = assemble(quantized.fitted.cache.as_ref().or(tables));
        let lowered =
            assembled.lower(Some((&quantized.survey, &quantized.fitted.tables, AnnotateOptions::default())))?.0;
        Ok((quantized, lowered))
    }

    fn first_answer(&self, lowered: &Lowered) -> Vec<f32> {
        let mut denoiser = self.open(lowered, 1);
        let mut trajectory = denoiser.begin(&self.request, 0).unwrap();
        denoiser.evaluate_as(ProgramKind::Full, &mut trajectory).unwrap();
        denoiser.output().to_vec()
    }

    fn sample(&self, lowered: &Lowered, quantized: Option<&Quantized>) -> Vec<f32> {
        let mut denoiser = self.open(lowered, 1);
        denoiser.set_compensation(quantized.and_then(|q| q.fitted.compensation.clone())).unwrap();
        denoiser.sample(&self.request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
    }
}

fn engine(threads: usize) -> EngineOptions {
    EngineOptions { batch: 2, threads, ..Default::default() }
}

fn plain(samples: usize) -> Request {
    Request { samples, guidance: 1.0, ..Request::default() }
}

/// Signal to error, dB.
fn sqnr(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    10.0 * (expected.iter().map(|&x| square(x)).sum::<f64>() / error).log10()
}

#[test]
fn the_trained_model_survives_8_bits_with_and_without_a_cache() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 20, plain(4));
    let float = case.sample(&compile_loop(&model, &case.options).unwrap(), None);
    let (quantized, lowered) = case.quantize(None, &PLAIN).unwrap();
    let alone = sqnr(&case.sample(&lowered, None), &float);
    assert!(alone > 20.0, "8 bits: {alone:.1} dB");
    // the first and the last layer have 3 channels at one end
    let float_layers: Vec<&str> = quantized.survey.float_layers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(float_layers.len(), 2, "{float_layers:?}");

    let choice = case.choice(4);
    let cached = sqnr(&case.sample(&case.cached.decided(&choice).unwrap().0, None), &float);
    let how = How { outputs: Outputs::Cut, ..PLAIN };
    let (quantized, lowered) = case.quantize(Some(&choice), &how).unwrap();
    assert!(!quantized.fitted.tables.corrections.is_empty());
    let both = sqnr(&case.sample(&lowered, None), &float);
    assert!(both > cached - 3.0, "the cache alone {cached:.1} dB, with 8 bits {both:.1}");
}

/// Shortcuts late in the decoder have hardly any work, and most of the error.
#[test]
fn a_few_cheap_inputs_in_float_take_most_of_the_error_away() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 20, plain(4));
    let float = case.sample(&compile_loop(&model, &case.options).unwrap(), None);
    let quality = |float_work| {
        let (quantized, lowered) = case.quantize(None, &How { float_work, ..PLAIN }).unwrap();
        let layers = quantized.survey.layers;
        let passed = layers.iter().filter(|layer| layer.sites.is_empty());
        let work = |layers: &mut dyn Iterator<Item = &Layer>| layers.map(|layer| layer.macs).sum::<i64>() as f64;
        let names: Vec<&str> = passed.clone().map(|layer| layer.name.as_str()).collect();
        let share = work(&mut passed.clone()) / work(&mut layers.iter());
        assert!(share <= float_work, "{share} of the work is behind {names:?}");
        assert!(passed.clone().all(|layer| layer.weight.is_some()), "weights are quantized all the same: {names:?}");
        multiplies_bf16(&case, &lowered, names.len());
        (sqnr(&case.sample(&lowered, None), &float), names.len())
    };
    let ((rounded, none), (passed, some)) = (quality(0.0), quality(0.03));
    assert!(none == 0 && some > 0);
    assert!(passed > rounded + 3.0, "all rounded {rounded:.1} dB, {some} inputs in float {passed:.1}");
}

/// One evaluation with products of bf16 and codes, and with the rounded operands in f32: as far apart as the integers beside them make it.
fn multiplies_bf16(case: &Case, lowered: &Lowered, layers: usize) {
    let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
    let sampler = Sampler::new(&case.options.sampler, case.options.steps).unwrap();
    let timesteps: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
    let evaluated = |options: EngineOptions| {
        let mut engine = Engine::open(&weights, &EngineOptions { profile: true, threads: 2, ..options }).unwrap();
        let sample = lowered.plan.inputs.iter().position(|i| i.role == InputRole::Sample).unwrap();
        let shape = engine.input_shape(sample).to_vec();
        let noise: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin() * 1.4).collect();
        let inputs = BTreeMap::from([(lowered.plan.inputs[sample].name.clone(), Tensor::from_f32(&shape, &noise))]);
        let request = engine.run_at(0, &timesteps, &inputs).unwrap();
        let products = engine.profile().iter().filter(|s| s.execution == Execution::Bf16 && s.calls > 0).count();
        (engine.outputs(&request)[&lowered.plan.outputs[0].name].to_f32_vec(), products)
    };
    let (multiplied, products) = evaluated(EngineOptions { emulate_bf16: true, ..EngineOptions::default() });
    let (in_f32, none) = evaluated(EngineOptions { low_precision: false, ..EngineOptions::default() });
    assert_eq!((products, none), (layers, 0), "products of bf16");
    let agree = sqnr(&multiplied, &in_f32);
    assert!(agree > 35.0, "{agree:.1} dB between executions, {layers} layers read bf16");
}

#[test]
fn weights_take_a_byte_or_half_of_one() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 50, plain(2));
    // float weights of the source: 4 bytes per parameter
    let float = 4.0 * model.parameters as f64;
    for (bits, limit) in [(8, 0.27), (4, 0.15)] {
        let spec = QuantSpec::new(bits);
        let assembled = assemble_loop(&model, &case.options).unwrap();
        let survey = assembled.survey(&spec);
        let tables = QuantTables::float(&survey, assembled.evaluations());
        let lowered = assembled.lower(Some((&survey, &tables, AnnotateOptions::default()))).unwrap().0;
        let share = lowered.weights.len as f64 / float;
        assert!(share < limit, "{bits} bits: {share:.3} of the float weights");
    }
}

#[test]
fn second_order_rounding_helps_4_bits() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 10, plain(4));
    let float = case.sample(&compile_loop(&model, &case.options).unwrap(), None);
    let quality = |reconstruct| {
        let (_, lowered) = case.quantize(None, &How { bits: 4, reconstruct, ..PLAIN }).unwrap();
        sqnr(&case.sample(&lowered, None), &float)
    };
    let (nearest, second_order) = (quality(false), quality(true));
    assert!(second_order > nearest + 1.0, "nearest {nearest:.1} dB, second order {second_order:.1}");
}

#[test]
fn weights_of_preludes_with_4_bits_are_rounded_by_what_they_read() {
    let model = load("dit-dy23");
    let input = model.inputs.iter().find(|i| i.role == cqc_proto::plan::InputRole::Condition).unwrap();
    let labels = Tensor::from_i64(&[4], &[0, 1, 2, 3]);
    let request = Request { conditions: BTreeMap::from([(input.name.clone(), labels)]), ..plain(4) };
    let case = Case::new(&model, SamplerKind::Ddim, 6, request);
    let float = case.first_answer(&compile_loop(&model, &case.options).unwrap());
    let (quantized, _) = case.quantize(None, &How { bits: 4, ..PLAIN }).unwrap();
    let assembled = assemble_loop(&model, &case.options).unwrap();
    // all layers of the steps stay float
    let quality = |preludes: Vec<PreludeWeight>| {
        let survey = Survey { preludes, ..Survey::default() };
        let tables = QuantTables::float(&survey, assembled.evaluations());
        let lowered = assembled.lower(Some((&survey, &tables, AnnotateOptions::default()))).unwrap().0;
        sqnr(&case.first_answer(&lowered), &float)
    };
    let preludes = quantized.survey.preludes;
    assert!(preludes.len() > 1 && preludes.iter().all(|p| p.weight.bits == 4));
    let (nearest, second_order) = (quality(assembled.survey(&QuantSpec::new(4)).preludes), quality(preludes));
    assert!(second_order > nearest + 3.0, "nearest {nearest:.1} dB, second order {second_order:.1}");
}

#[test]
fn fits_do_not_depend_on_threads() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 6, plain(4));
    let choice = case.choice(3);
    let how = How {
        outputs: Outputs::All,
        compensation: Some(CompensationMode::Mse),
        reconstruct: true,
        select: Select::Tap(Tap { total: 12, clusters: 4, ..Tap::default() }),
        ..PLAIN
    };
    let bytes = |threads| {
        let (quantized, lowered) = case.quantize(Some(&choice), &How { threads, ..how.clone() }).unwrap();
        (lowered.weight_bytes().unwrap(), quantized.fitted.compensation)
    };
    assert!(bytes(1) == bytes(2));
}

#[test]
fn guided_split_and_order_aware_loops_are_quantized() {
    let labels = |n: i64| Tensor::from_i64(&[n as usize], &(0..n).collect::<Vec<_>>());
    for (name, kind) in [("dit-dy23", SamplerKind::Ddim), ("dit-ts14-static", SamplerKind::Plms)] {
        let model = load(name);
        let input = model.inputs.iter().find(|i| i.role == cqc_proto::plan::InputRole::Condition).unwrap();
        let request = Request {
            guidance: 2.0,
            conditions: BTreeMap::from([(input.name.clone(), labels(4))]),
            unconditional: BTreeMap::from([(input.name.clone(), labels(1))]),
            ..plain(4)
        };
        let case = Case::new(&model, kind, 6, request);
        let choice = case.choice(2);
        // what these random networks answer moves the next answer, so that loops drift apart: one evaluation is compared
        let float = case.first_answer(&case.cached.decided(&choice).unwrap().0);
        for outputs in [Outputs::Cut, Outputs::All] {
            let (quantized, lowered) = case.quantize(Some(&choice), &How { outputs, ..PLAIN }).unwrap();
            assert!(!quantized.fitted.tables.corrections.is_empty(), "{name} {outputs:?}");
            let found = sqnr(&case.first_answer(&lowered), &float);
            assert!(found > 20.0, "{name} {outputs:?}: {found:.1} dB");
            assert!(case.sample(&lowered, None).iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn shared_ranges_cover_what_each_evaluation_needs() {
    let model = load("dit-ts14-static");
    let labels = Tensor::from_i64(&[2], &[0, 1]);
    let input = model.inputs.iter().find(|i| i.role == cqc_proto::plan::InputRole::Condition).unwrap();
    let request = Request { conditions: BTreeMap::from([(input.name.clone(), labels)]), ..plain(2) };
    let case = Case::new(&model, SamplerKind::Ddim, 8, request);
    let distinct = |grouping| {
        let (quantized, _) = case.quantize(None, &How { grouping, fit: 2, ..PLAIN }).unwrap();
        let count = |scale: &[f32]| scale.iter().map(|s| s.to_bits()).collect::<std::collections::BTreeSet<_>>().len();
        quantized.fitted.tables.sites.iter().map(|site| count(&site.scale)).max().unwrap()
    };
    assert_eq!(distinct(Grouping::Pooled), 1);
    assert!((2..=3).contains(&distinct(Grouping::Groups(3))));
    assert!(distinct(Grouping::PerEvaluation) > 3);
}

#[test]
fn a_single_step_and_a_single_sample_are_enough() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 1, plain(1));
    let how = How { fit: 1, outputs: Outputs::All, compensation: Some(CompensationMode::Variance), ..PLAIN };
    let (quantized, lowered) = case.quantize(None, &how).unwrap();
    let found = case.sample(&lowered, Some(&quantized));
    assert!(found.iter().all(|x| x.is_finite()));
}

/// A convolution whose weights are all zero, and one with a channel that is always the same.
#[test]
fn layers_that_do_nothing_are_quantized() {
    let mut model = load("ddpm-shapes32");
    let g = &mut model.graph;
    let wide = |t: &Tensor| t.shape().len() == 4 && t.shape().iter().all(|&n| n >= 3) && t.shape()[1] >= 16;
    let weights: Vec<(ValueId, Tensor)> =
        g.values().filter_map(|(v, _)| Some((v, g.tensor(v).filter(|t| wide(t))?.clone()))).collect();
    for (i, rows) in [(1, usize::MAX), (2, 1), (weights.len() - 3, usize::MAX)] {
        let (old, tensor) = &weights[i];
        let mut values = tensor.to_f32_vec();
        let row = values.len() / tensor.shape()[0];
        values.chunks_mut(row).take(rows).for_each(|row| row.fill(0.0));
        let new = g.constant("nothing", Tensor::from_f32(tensor.shape(), &values));
        g.substitute(&HashMap::from([(*old, new)]));
    }
    g.compact().unwrap();
    let case = Case::new(&model, SamplerKind::Ddim, 6, plain(2));
    let choice = case.choice(3);
    for how in [How { outputs: Outputs::All, ..PLAIN }, How { bits: 4, reconstruct: true, ..PLAIN }] {
        let (quantized, lowered) = case.quantize(Some(&choice), &how).unwrap();
        let found = case.sample(&lowered, Some(&quantized));
        assert!(found.iter().all(|x| x.is_finite()));
    }
}

/// Only the first evaluation is computed in full.
#[test]
fn an_interval_longer_than_the_loop_is_quantized() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 4, plain(2));
    let choice = case.choice(50);
    assert_eq!(choice.full, [0]);
    let (quantized, lowered) = case.quantize(Some(&choice), &PLAIN).unwrap();
    assert!(case.sample(&lowered, Some(&quantized)).iter().all(|x| x.is_finite()));
}

#[test]
fn activations_that_are_not_finite_are_named() {
    let model = load("ddpm-shapes32");
    let mut case = Case::new(&model, SamplerKind::Ddim, 4, plain(2));
    let noise = vec![f32::NAN; 2 * 3 * 32 * 32];
    case.request.noise = Some(Tensor::from_f32(&[2, 3, 32, 32], &noise));
    let Err(error) = case.quantize(None, &How { fit: 2, ..PLAIN }) else { panic!("NaN has no range") };
    let text = error.to_string();
    assert!(text.contains("not finite at evaluation 0") && text.contains('/'), "{text}");
}

/// The same plan once multiplied in integers and once in f32, from the same operands.
#[test]
fn integers_are_what_rounded_floats_stand_for() {
    let model = load("ddpm-shapes32");
    let case = Case::new(&model, SamplerKind::Ddim, 6, plain(8));
    let choice = case.choice(3);
    for how in [How { outputs: Outputs::All, ..PLAIN }, How { bits: 4, reconstruct: true, ..PLAIN }] {
        let (_, lowered) = case.quantize(Some(&choice), &how).unwrap();
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let open = |low_precision| {
            let options = EngineOptions { low_precision, ..engine(2) };
            Denoiser::open(&weights, Sampler::new(&case.options.sampler, 6).unwrap(), false, &options).unwrap()
        };
        let [mut floats, mut integers, mut nudged] = [open(false), open(true), open(false)];
        let products = |l: &Denoiser| l.engine().profile().iter().filter(|s| s.execution == Execution::Int8).count();
        assert_eq!(products(&floats), 0);
        let quantized = lowered.plan.full.values.iter().filter(
            |v| matches!(v.source, cqc_proto::plan::Source::Constant(c) if lowered.plan.constants[c].codes.is_some()),
        );
        assert!(products(&integers) >= quantized.count(), "{} products of integers", products(&integers));
        let profile = integers.engine().profile();
        assert!(
            profile.iter().any(|s| s.execution == Execution::Int8 && s.op == "attention"),
            "attention multiplies codes"
        );
        // what codes cannot say is an error, not a wrong result
        let full = &lowered.plan.full;
        let rounding = full.steps.iter().find(|s| matches!(s.op, cqc_proto::Op::FakeQuant { .. })).unwrap();
        let cqc_proto::plan::Source::Table(scale) = full.values[rounding.inputs[1].unwrap()].source else { panic!() };
        let segments = lowered.plan.constants[scale].ty.fixed_shape().unwrap()[1];
        let refused = integers.set_table_row(scale, 0, &vec![0.0; segments]);
        assert!(refused.unwrap_err().to_string().contains("low_precision: false"));
        let mut trajectories = [&mut floats, &mut integers, &mut nudged].map(|l| l.begin(&case.request, 0).unwrap());
        trajectories[2].map_channels(&[1.0 + 1e-6; 3], &[0.0; 3]);
        for evaluation in 0..6 {
            let kind = lowered.plan.program_at(evaluation);
            for (l, trajectory) in [&mut floats, &mut integers, &mut nudged].into_iter().zip(&mut trajectories) {
                l.evaluate_as(kind, trajectory).unwrap();
            }
            // an activation that lies between two levels may take the other one, as it does when the sample changes by parts in a million
            let [found, chaos] = [&integers, &nudged].map(|l| sqnr(l.output(), floats.output()));
            println!("evaluation {evaluation}: {found:.1} dB, {chaos:.1} dB from a nudged sample");
            // a single level, early, is worth 46 dB here
            assert!(found > chaos.min(45.0) - 3.0, "evaluation {evaluation}: {found:.1} dB, nudged {chaos:.1} dB");
            for (l, trajectory) in [&floats, &integers, &nudged].into_iter().zip(&mut trajectories) {
                l.advance(trajectory, floats.output());
            }
        }
    }
}

#[test]
fn rounding_is_what_the_definition_says() {
    let model = load("dit-dy23");
    let labels = |n: i64| Tensor::from_i64(&[n as usize], &(0..n).collect::<Vec<_>>());
    let input = model.inputs.iter().find(|i| i.role == cqc_proto::plan::InputRole::Condition).unwrap();
    let request = Request { conditions: BTreeMap::from([(input.name.clone(), labels(2))]), ..plain(2) };
    let case = Case::new(&model, SamplerKind::Ddim, 3, request);
    let (_, lowered) = case.quantize(None, &How { outputs: Outputs::All, fit: 2, ..PLAIN }).unwrap();
    let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
    let sampler = || Sampler::new(&case.options.sampler, 3).unwrap();
    let output = |reference| {
        let options = EngineOptions { reference, ..engine(1) };
        let mut denoiser = Denoiser::open(&weights, sampler(), false, &options).unwrap();
        let mut trajectory = denoiser.begin(&case.request, 0).unwrap();
        denoiser.evaluate_as(ProgramKind::Full, &mut trajectory).unwrap();
        denoiser.output().to_vec()
    };
    // sums in another order: an activation that lies between two levels may take the other one
    let found = sqnr(&output(false), &output(true));
    assert!(found > 35.0, "{found:.1} dB");
}
