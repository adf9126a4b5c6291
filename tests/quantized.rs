//! Quantization from the model to the samples: the fitted tables, the errors, and the artifact.

mod common;

use cachequant::calibrate::CachingChoice;
use cachequant::compile::{Session, assemble_loop};
use cachequant::recipe::{
    Array, CacheFit, CompensationMode, Correct, Grouping, Quant, Recipe, SamplerKind,
};
use cachequant::runtime::DenoiserOptions;
use cachequant::runtime::denoise::{Denoiser, Request};
use cachequant::runtime::engine::{Engine, EngineOptions, Execution};
use cachequant::{Compiled, Model};
use common::{compiled, labels, load, on_cpu, samples, sqnr};
use cqc_passes::ir::ValueId;
use cqc_passes::quant::{AnnotateOptions, Layer, PreludeWeight, QuantSpec, QuantTables, Survey};
use cqc_proto::plan::{InputRole, ProgramKind, Source};
use cqc_proto::{Op, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A loop that is quantized and not cached, fitted on two samples.
fn recipe(steps: usize) -> Recipe {
    Recipe {
        steps: Some(steps),
        interval: Some(1),
        quant: Some(Quant::W8a8),
        calib_samples: Some(4),
        seed: Some(1000),
        threads: Some(2),
        ..Recipe::default()
    }
}

/// The same loop with a cache that a forecast corrects.
fn cached(steps: usize, interval: usize) -> Recipe {
    let (schedule, cache_fit) = (Some("uniform".parse().unwrap()), Some(CacheFit::Forecast));
    Recipe { interval: Some(interval), schedule, cache_fit, ..recipe(steps) }
}

/// The same steps in float and without a cache.
fn float(model: &Model, steps: usize) -> Compiled<'_> {
    let recipe = Recipe {
        steps: Some(steps),
        interval: Some(1),
        quant: Some(Quant::None),
        ..Recipe::default()
    };
    compiled(model, &recipe)
}

fn session<'m>(model: &'m Model, recipe: &Recipe) -> Session<'m> {
    Session::new(model, recipe).unwrap()
}

fn decide(session: &Session) -> CachingChoice {
    session.decide(&mut ()).unwrap().expect("something is cached")
}

/// The artifact with a schedule that another session has decided.
fn quantized<'m>(model: &'m Model, recipe: &Recipe, choice: &CachingChoice) -> Compiled<'m> {
    let session = session(model, recipe);
    let quantized = session.quantize(Some(choice), &mut ()).unwrap();
    session.into_compiled(Some(choice.clone()), quantized).unwrap()
}

/// Noise that is not in the calibration set.
fn unseen(samples: usize) -> Request {
    Request { samples, ..Request::default() }
}

fn open(compiled: &Compiled, engine: EngineOptions) -> Denoiser {
    let options = DenoiserOptions { engine, ..on_cpu(1) };
    compiled.artifact().unwrap().denoiser(&options).unwrap()
}

/// The network's output at the first evaluation.
fn first_output(mut denoiser: Denoiser, request: &Request) -> Vec<f32> {
    let mut trajectory = denoiser.begin(request, 0).unwrap();
    denoiser.evaluate_as(ProgramKind::Full, &mut trajectory).unwrap();
    denoiser.output().to_vec()
}

fn corrects(compiled: &Compiled) -> bool {
    !compiled.quantized().unwrap().fitted.tables.corrections.is_empty()
}

#[test]
fn the_trained_model_survives_8_bits_with_and_without_a_cache() {
    let model = load("ddpm-shapes32");
    let expected = samples(&float(&model, 20), &unseen(4));
    let quantized_alone = compiled(&model, &recipe(20));
    let alone = sqnr(&samples(&quantized_alone, &unseen(4)), &expected);
    println!("8 bits: {alone:.1} dB");
    assert!(alone > 20.0, "8 bits: {alone:.1} dB");
    // the first and the last layer have 3 channels at one end
    let survey = &quantized_alone.quantized().unwrap().survey;
    let float_layers: Vec<&str> =
        survey.float_layers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(float_layers.len(), 2, "{float_layers:?}");

    let both = cached(20, 4);
    let alone = session(&model, &Recipe { quant: Some(Quant::None), ..both.clone() });
    let choice = decide(&alone);
    let cache_alone = alone.into_compiled(Some(choice.clone()), None).unwrap();
    let cache_alone = sqnr(&samples(&cache_alone, &unseen(4)), &expected);
    let both = quantized(&model, &both, &choice);
    assert!(corrects(&both));
    let both = sqnr(&samples(&both, &unseen(4)), &expected);
    println!("the cache alone {cache_alone:.1} dB, with 8 bits {both:.1}");
    assert!(both > cache_alone - 3.0, "the cache alone {cache_alone:.1} dB, with 8 bits {both:.1}");
}

/// Shortcuts late in the decoder have hardly any work, and make most of the error.
#[test]
fn a_few_cheap_inputs_in_float_take_most_of_the_error_away() {
    let model = load("ddpm-shapes32");
    let expected = samples(&float(&model, 20), &unseen(4));
    let quality = |float_work| {
        let compiled = compiled(&model, &Recipe { float_work: Some(float_work), ..recipe(20) });
        let layers = &compiled.quantized().unwrap().survey.layers;
        let passed = layers.iter().filter(|layer| layer.sites.is_empty());
        let work = |layers: &mut dyn Iterator<Item = &Layer>| {
            layers.map(|layer| layer.macs).sum::<i64>() as f64
        };
        let names: Vec<&str> = passed.clone().map(|layer| layer.name.as_str()).collect();
        let share = work(&mut passed.clone()) / work(&mut layers.iter());
        assert!(share <= float_work, "{share} of the work reads {names:?}");
        assert!(
            passed.clone().all(|layer| layer.weight.is_some()),
            "weights are quantized all the same: {names:?}"
        );
        multiplies_bf16(&compiled, names.len());
        (sqnr(&samples(&compiled, &unseen(4)), &expected), names.len())
    };
    let ((rounded, none), (passed, some)) = (quality(0.0), quality(0.03));
    assert!(none == 0 && some > 0);
    println!("all rounded {rounded:.1} dB, {some} inputs in float {passed:.1}");
    assert!(
        passed > rounded + 3.0,
        "all rounded {rounded:.1} dB, {some} inputs in float {passed:.1}"
    );
}

/// Compares one evaluation with products of bf16 and of codes with one that has the rounded
/// operands in f32. They may differ as much as the integers make them differ.
fn multiplies_bf16(compiled: &Compiled, layers: usize) {
    let artifact = compiled.artifact().unwrap();
    let timesteps: Vec<f64> =
        artifact.sampler().unwrap().evaluations().iter().map(|e| e.timestep).collect();
    let plan = &artifact.manifest().plan;
    let evaluated = |options: EngineOptions| {
        let options = EngineOptions { profile: true, threads: 2, batch: 2, ..options };
        let mut engine = Engine::open(artifact.weights(), &options).unwrap();
        let sample = plan.inputs.iter().position(|i| i.role == InputRole::Sample).unwrap();
        let shape = engine.input_shape(sample).to_vec();
        let noise: Vec<f32> =
            (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin() * 1.4).collect();
        let sample = (plan.inputs[sample].name.clone(), Tensor::from_f32(&shape, &noise));
        let request = engine.run_at(0, &timesteps, &BTreeMap::from([sample])).unwrap();
        let profile = engine.profile();
        let products = profile.iter().filter(|s| s.execution == Execution::Bf16 && s.calls > 0);
        (engine.outputs(&request)[&plan.outputs[0].name].to_f32_vec(), products.count())
    };
    let (multiplied, products) =
        evaluated(EngineOptions { emulate_bf16: true, ..EngineOptions::default() });
    let (in_f32, none) =
        evaluated(EngineOptions { low_precision: false, ..EngineOptions::default() });
    assert_eq!((products, none), (layers, 0), "products of bf16");
    let agree = sqnr(&multiplied, &in_f32);
    assert!(agree > 35.0, "{agree:.1} dB between executions, {layers} layers read bf16");
}

#[test]
fn weights_take_a_byte_or_half_of_one() {
    let model = load("ddpm-shapes32");
    let session = session(&model, &recipe(50));
    let assembled = assemble_loop(&model, session.options()).unwrap();
    // float weights of the source: 4 bytes per parameter
    let float = 4.0 * model.parameters as f64;
    for (bits, limit) in [(8, 0.27), (4, 0.15)] {
        let survey = assembled.survey(&QuantSpec::new(bits));
        let tables = QuantTables::float(&survey, assembled.evaluations());
        let lowered =
            assembled.lower(Some((&survey, &tables, AnnotateOptions::default()))).unwrap().0;
        let share = lowered.weights.len as f64 / float;
        assert!(share < limit, "{bits} bits: {share:.3} of the float weights");
    }
}

#[test]
fn second_order_rounding_helps_4_bits() {
    let model = load("ddpm-shapes32");
    let expected = samples(&float(&model, 10), &unseen(4));
    let quality = |reconstruct| {
        let recipe = Recipe { quant: Some(Quant::W4a8), reconstruct, ..recipe(10) };
        sqnr(&samples(&compiled(&model, &recipe), &unseen(4)), &expected)
    };
    let (nearest, second_order) = (quality(false), quality(true));
    println!("nearest {nearest:.1} dB, second order {second_order:.1}");
    assert!(
        second_order > nearest + 1.0,
        "nearest {nearest:.1} dB, second order {second_order:.1}"
    );
}

#[test]
fn weights_of_preludes_with_4_bits_are_rounded_by_what_they_read() {
    let model = load("dit-dy23");
    let request = Request { conditions: labels(&[0, 1, 2, 3]), ..unseen(4) };
    let recipe = Recipe { quant: Some(Quant::W4a8), labels: vec![0, 1, 2, 3], ..recipe(6) };
    let session = session(&model, &recipe);
    let quantized = session.quantize(None, &mut ()).unwrap().unwrap();
    let float = first_output(session.open(&session.uncached().unwrap(), 4).unwrap(), &request);
    let assembled = assemble_loop(&model, session.options()).unwrap();
    // all layers of the steps stay float
    let quality = |preludes: Vec<PreludeWeight>| {
        let survey = Survey { preludes, ..Survey::default() };
        let tables = QuantTables::float(&survey, assembled.evaluations());
        let lowered =
            assembled.lower(Some((&survey, &tables, AnnotateOptions::default()))).unwrap().0;
        sqnr(&first_output(session.open(&lowered, 4).unwrap(), &request), &float)
    };
    let preludes = quantized.survey.preludes;
    assert!(preludes.len() > 1 && preludes.iter().all(|p| p.weight.bits == 4));
    let (nearest, second_order) =
        (quality(assembled.survey(&QuantSpec::new(4)).preludes), quality(preludes));
    println!("nearest {nearest:.1} dB, second order {second_order:.1}");
    assert!(
        second_order > nearest + 3.0,
        "nearest {nearest:.1} dB, second order {second_order:.1}"
    );
}

#[test]
fn fits_do_not_depend_on_threads() {
    let model = load("ddpm-shapes32");
    let bytes = |threads| {
        let recipe = Recipe {
            correct: Some(vec![Correct::Cache, Correct::QuantAll]),
            variance_compensation: Some(CompensationMode::Mse),
            reconstruct: true,
            calib_select: Some("tap=12".parse().unwrap()),
            threads: Some(threads),
            ..cached(6, 3)
        };
        compiled(&model, &recipe).to_bytes().unwrap()
    };
    assert!(bytes(1) == bytes(2));
}

#[test]
fn guided_split_and_order_aware_loops_are_quantized() {
    for (name, kind) in [("dit-dy23", SamplerKind::Ddim), ("dit-ts14-static", SamplerKind::Plms)] {
        let model = load(name);
        let recipe = Recipe {
            sampler: Some(kind),
            guidance: Some(2.0),
            null_label: Some(0),
            labels: vec![0, 1, 2, 3],
            ..cached(6, 2)
        };
        let request = Request { conditions: labels(&[0, 1, 2, 3]), ..unseen(4) };
        // In these random networks each output moves the next one, so that loops drift apart.
        // Therefore one evaluation is compared.
        let in_float = session(&model, &Recipe { quant: Some(Quant::None), ..recipe.clone() });
        let choice = decide(&in_float);
        let engine = || EngineOptions { batch: 2, ..EngineOptions::default() };
        let in_float = in_float.into_compiled(Some(choice.clone()), None).unwrap();
        let expected = first_output(open(&in_float, engine()), &request);
        for correct in [Correct::Quant, Correct::QuantAll] {
            let recipe = Recipe { correct: Some(vec![Correct::Cache, correct]), ..recipe.clone() };
            let compiled = quantized(&model, &recipe, &choice);
            assert!(corrects(&compiled), "{name} {correct}");
            let found = sqnr(&first_output(open(&compiled, engine()), &request), &expected);
            println!("{name} {correct}: {found:.1} dB");
            assert!(found > 20.0, "{name} {correct}: {found:.1} dB");
            assert!(samples(&compiled, &request).iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn shared_ranges_cover_what_each_evaluation_needs() {
    let model = load("dit-ts14-static");
    let distinct = |grouping| {
        let recipe = Recipe { share_ranges: Some(grouping), labels: vec![0, 1], ..recipe(8) };
        let quantized = session(&model, &recipe).quantize(None, &mut ()).unwrap().unwrap();
        let count =
            |scale: &[f32]| scale.iter().map(|s| s.to_bits()).collect::<BTreeSet<_>>().len();
        quantized.fitted.tables.sites.iter().map(|site| count(&site.scale)).max().unwrap()
    };
    assert_eq!(distinct(Grouping::Pooled), 1);
    assert!((2..=3).contains(&distinct(Grouping::Groups(3))));
    assert!(distinct(Grouping::PerEvaluation) > 3);
}

#[test]
fn a_single_step_and_a_single_sample_to_fit_on_are_enough() {
    let model = load("ddpm-shapes32");
    let recipe = Recipe {
        calib_samples: Some(2),
        correct: Some(vec![Correct::QuantAll]),
        variance_compensation: Some(CompensationMode::Variance),
        ..recipe(1)
    };
    assert!(samples(&compiled(&model, &recipe), &unseen(1)).iter().all(|x| x.is_finite()));
}

/// A convolution whose weights are all zero, and one with a channel that is always the same.
#[test]
fn layers_that_do_nothing_are_quantized() {
    let mut model = load("ddpm-shapes32");
    let g = &mut model.graph;
    let wide = |t: &Tensor| {
        t.shape().len() == 4 && t.shape().iter().all(|&n| n >= 3) && t.shape()[1] >= 16
    };
    let weights: Vec<(ValueId, Tensor)> = g
        .values()
        .filter_map(|(v, _)| Some((v, g.tensor(v).filter(|t| wide(t))?.clone())))
        .collect();
    for (i, rows) in [(1, usize::MAX), (2, 1), (weights.len() - 3, usize::MAX)] {
        let (old, tensor) = &weights[i];
        let mut values = tensor.to_f32_vec();
        let row = values.len() / tensor.shape()[0];
        values.chunks_mut(row).take(rows).for_each(|row| row.fill(0.0));
        let new = g.constant("nothing", Tensor::from_f32(tensor.shape(), &values));
        g.substitute(&HashMap::from([(*old, new)]));
    }
    g.compact().unwrap();
    let all = Recipe { correct: Some(vec![Correct::Cache, Correct::QuantAll]), ..cached(6, 3) };
    let narrow = Recipe { quant: Some(Quant::W4a8), reconstruct: true, ..cached(6, 3) };
    let choice = decide(&session(&model, &all));
    for recipe in [all, narrow] {
        let compiled = quantized(&model, &recipe, &choice);
        assert!(samples(&compiled, &unseen(2)).iter().all(|x| x.is_finite()));
    }
}

/// Only the first evaluation is computed in full.
#[test]
fn an_interval_as_long_as_the_loop_is_quantized() {
    let model = load("ddpm-shapes32");
    let compiled = compiled(&model, &cached(4, 4));
    assert_eq!(compiled.choice().unwrap().full, [0]);
    assert!(samples(&compiled, &unseen(2)).iter().all(|x| x.is_finite()));
}

#[test]
fn activations_that_are_not_finite_are_named() {
    let model = load("ddpm-shapes32");
    let noise = Tensor::from_f32(&[2, 3, 32, 32], &vec![f32::MAX; 2 * 3 * 32 * 32]);
    let (calib_noise, calib_samples) = (Some(Array::Tensor(noise)), None);
    let recipe = Recipe { calib_noise, calib_samples, ..recipe(4) };
    let Err(error) = session(&model, &recipe).quantize(None, &mut ()) else {
        panic!("what overflows has no range")
    };
    let text = error.to_string();
    assert!(text.contains("not finite at evaluation 0") && text.contains('/'), "{text}");
}

/// The same plan executed in integers and in f32, on the same operands.
#[test]
fn integers_are_what_rounded_floats_stand_for() {
    let model = load("ddpm-shapes32");
    let all = Recipe { correct: Some(vec![Correct::Cache, Correct::QuantAll]), ..cached(6, 3) };
    let narrow = Recipe { quant: Some(Quant::W4a8), ..cached(6, 3) };
    let choice = decide(&session(&model, &all));
    for recipe in [all, narrow] {
        let compiled = quantized(&model, &recipe, &choice);
        let plan = &compiled.lowered().plan;
        let artifact = compiled.artifact().unwrap();
        let open = |low_precision| {
            let engine =
                EngineOptions { batch: 2, threads: 2, low_precision, ..EngineOptions::default() };
            artifact.denoiser(&DenoiserOptions { engine, ..on_cpu(2) }).unwrap()
        };
        let [mut floats, mut integers, mut nudged] = [open(false), open(true), open(false)];
        let products = |l: &Denoiser| {
            l.engine().profile().iter().filter(|s| s.execution == Execution::Int8).count()
        };
        assert_eq!(products(&floats), 0);
        let is_codes = |source: &Source| matches!(source, Source::Constant(c) if plan.constants[*c].codes.is_some());
        let quantized = plan.full.values.iter().filter(|v| is_codes(&v.source)).count();
        assert!(products(&integers) >= quantized, "{} products of integers", products(&integers));
        let profile = integers.engine().profile();
        assert!(
            profile.iter().any(|s| s.execution == Execution::Int8 && s.op == "attention"),
            "attention multiplies codes"
        );
        // numbers that codes cannot represent are an error, not a wrong result
        let rounding =
            plan.full.steps.iter().find(|s| matches!(s.op, Op::FakeQuant { .. })).unwrap();
        let Source::Table(scale) = plan.full.values[rounding.inputs[1].unwrap()].source else {
            panic!()
        };
        let segments = plan.constants[scale].ty.fixed_shape().unwrap()[1];
        let refused = integers.set_table_row(scale, 0, &vec![0.0; segments]);
        assert!(refused.unwrap_err().to_string().contains("low_precision: false"));
        let mut trajectories =
            [&mut floats, &mut integers, &mut nudged].map(|l| l.begin(&unseen(8), 0).unwrap());
        trajectories[2].map_channels(&[1.0 + 1e-6; 3], &[0.0; 3]);
        for evaluation in 0..6 {
            let kind = plan.program_at(evaluation);
            for (l, trajectory) in
                [&mut floats, &mut integers, &mut nudged].into_iter().zip(&mut trajectories)
            {
                l.evaluate_as(kind, trajectory).unwrap();
            }
            // An activation that lies between two levels may take the other one, as it does when
            // the sample changes by parts in a million.
            let [found, chaos] = [&integers, &nudged].map(|l| sqnr(l.output(), floats.output()));
            println!("evaluation {evaluation}: {found:.1} dB, {chaos:.1} dB from a nudged sample");
            // here, a single level at an early layer makes 46 dB
            assert!(
                found > chaos.min(45.0) - 3.0,
                "evaluation {evaluation}: {found:.1} dB, nudged {chaos:.1} dB"
            );
            for (l, trajectory) in [&floats, &integers, &nudged].into_iter().zip(&mut trajectories)
            {
                l.advance(trajectory, floats.output());
            }
        }
    }
}

#[test]
fn rounding_is_what_the_definition_says() {
    let model = load("dit-dy23");
    let request = Request { conditions: labels(&[0, 1]), ..unseen(2) };
    let recipe = Recipe { labels: vec![0, 1], correct: Some(vec![Correct::QuantAll]), ..recipe(3) };
    let compiled = compiled(&model, &recipe);
    let output = |reference| {
        let engine = EngineOptions { batch: 2, threads: 1, reference, ..EngineOptions::default() };
        first_output(open(&compiled, engine), &request)
    };
    // sums in another order: an activation that lies between two levels may take the other one
    let found = sqnr(&output(false), &output(true));
    println!("{found:.1} dB");
    assert!(found > 35.0, "{found:.1} dB");
}
