//! Caching from the model to the samples: schedules, corrections, samplers, guidance.

mod common;

use cachequant::Recipe;
use cachequant::calibrate::CachingChoice;
use cachequant::compile::Session;
use cachequant::recipe::{CacheFit, Correct, Quant, SamplerKind, ScheduleSpec};
use cachequant::runtime::denoise::Request;
use common::{compiled, labels, load, run, samples};
use cqc_proto::cq::Schedule;
use cqc_proto::plan::ProgramKind;

/// A loop that is cached and not quantized, calibrated on two samples and measured on two.
fn recipe(steps: usize, interval: usize) -> Recipe {
    Recipe {
        steps: Some(steps),
        interval: Some(interval),
        quant: Some(Quant::None),
        calib_samples: Some(4),
        seed: Some(1000),
        threads: Some(2),
        ..Recipe::default()
    }
}

/// The same loop with a schedule and without corrections.
fn uncorrected(steps: usize, interval: usize, schedule: &str) -> Recipe {
    Recipe {
        schedule: Some(schedule.parse().unwrap()),
        correct: Some(vec![Correct::None]),
        ..recipe(steps, interval)
    }
}

fn uncached(steps: usize) -> Recipe {
    Recipe { steps: Some(steps), interval: Some(1), quant: Some(Quant::None), ..Recipe::default() }
}

fn decide(session: &Session) -> CachingChoice {
    session.decide(&mut ()).unwrap().expect("something is cached")
}

/// Noise that is not in the calibration set.
fn unseen(samples: usize) -> Request {
    Request { samples, seed: 5, ..Request::default() }
}

fn rms(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

#[test]
fn a_schedule_of_full_evaluations_is_the_uncached_loop_bit_for_bit() {
    let model = load("ddpm-shapes32");
    let all_full = compiled(&model, &uncorrected(4, 2, "[0,1,2,3]"));
    assert!(all_full.lowered().plan.cache.is_some());
    let expected = samples(&compiled(&model, &uncached(4)), &unseen(2));
    assert!(samples(&all_full, &unseen(2)) == expected);
}

#[test]
fn what_is_decided_comes_closer_to_the_uncached_loop_than_the_uniform_schedule() {
    let model = load("ddpm-shapes32");
    let expected = samples(&compiled(&model, &uncached(20)), &unseen(4));
    let error = |recipe: &Recipe| rms(&samples(&compiled(&model, recipe), &unseen(4)), &expected);
    let (uniform, best) = (error(&uncorrected(20, 4, "uniform")), error(&recipe(20, 4)));
    assert!(best < 0.7 * uniform, "{best}, uniform {uniform}");
}

#[test]
fn a_forecast_on_the_engine_is_what_calibration_measured() {
    let model = load("ddpm-shapes32");
    let schedule = Some("uniform".parse().unwrap());
    let (cut, cache_fit) = (Some("shallow".parse().unwrap()), Some(CacheFit::Forecast));
    let session =
        Session::new(&model, &Recipe { schedule, cut, cache_fit, ..recipe(10, 3) }).unwrap();
    let choice = decide(&session);

    // the tables by hand, on the plan without corrections
    let mut denoiser = session.open(&session.uncached().unwrap(), 4).unwrap();
    let mut trajectory = denoiser.begin(&unseen(4), 0).unwrap();
    let (_, tables) = choice.tables.as_ref().unwrap();
    let (mut last, mut before) = (vec![], vec![]);
    for (t, table) in tables[0].iter().enumerate() {
        if choice.full.contains(&t) {
            denoiser.evaluate_as(ProgramKind::Full, &mut trajectory).unwrap();
            before = std::mem::replace(&mut last, trajectory.requests[0].slot(0).to_vec());
        } else {
            let before = if before.is_empty() { &last } else { &before };
            trajectory.requests[0].set_slot(0, &table.apply(&last, before));
            denoiser.evaluate_as(ProgramKind::Cached, &mut trajectory).unwrap();
        }
        denoiser.advance(&mut trajectory, denoiser.output());
    }

    let compiled = session.into_compiled(Some(choice), None).unwrap();
    let Schedule::Cached(schedule) = &compiled.manifest().schedule else { panic!("it is cached") };
    assert!(schedule.corrections[0].previous_scale.is_some());
    let cache = compiled.lowered().plan.cache.as_ref().unwrap();
    assert_eq!(cache.slots.len(), 2);
    // the correction is part of the load from the cache: the cached step has one operator more at
    // most
    let names: Vec<String> = cache.cached.steps.iter().map(|s| s.op.name()).collect();
    assert_eq!(names.iter().filter(|n| *n == "affine").count(), 1, "{names:?}");
    let sampled = samples(&compiled, &unseen(4));
    assert!(rms(&sampled[..trajectory.x().len()], trajectory.x()) < 1e-5);
}

#[test]
fn samplers_that_evaluate_a_step_twice_can_be_cached() {
    let model = load("ddpm-shapes32");
    let plms = |of: Recipe| Recipe { sampler: Some(SamplerKind::Plms), ..of };
    for schedule in ["uniform", "dps", "dps-output"] {
        let (kind, cache_fit) = (schedule.parse().unwrap(), Some(CacheFit::TeacherForced));
        let compiled =
            compiled(&model, &plms(Recipe { schedule: Some(kind), cache_fit, ..recipe(8, 2) }));
        let cached = compiled.session().cached().unwrap();
        let choice = compiled.choice().unwrap();
        let found = (cached.evaluations(), choice.full.len(), choice.full[0]);
        assert_eq!(found, (9, 4, 0), "{schedule}");
        assert!(samples(&compiled, &unseen(4)).iter().all(|x| x.is_finite()));
    }
    let uniform = Session::new(&model, &plms(uncorrected(8, 2, "uniform"))).unwrap();
    assert_eq!(decide(&uniform).full, [0, 3, 5, 7]);
}

#[test]
fn schedules_that_are_searched_cost_no_more_than_the_uniform_one() {
    let model = load("ddpm-shapes32");
    let choice = |schedule: &str| {
        let cut = Some("shallow".parse().unwrap());
        let session =
            Session::new(&model, &Recipe { cut, ..uncorrected(12, 3, schedule) }).unwrap();
        decide(&session)
    };
    for schedule in ["dps", "dps-affine", "dps-output"] {
        let (cost, uniform) = choice(schedule).cost.unwrap();
        assert!(cost <= uniform.unwrap(), "{cost}, uniform {uniform:?}");
    }
    let quadratic = choice("quadratic");
    assert_eq!((quadratic.full.len(), quadratic.cost), (4, None));
}

/// A transformer with class labels and a delta cut, whose cache has both halves of guidance, in one
/// batch or apart.
#[test]
fn guided_transformers_cache_deltas_in_both_halves() {
    for name in ["dit-dy23", "dit-ts14-static"] {
        let model = load(name);
        let guided = |of: Recipe| Recipe { guidance: Some(2.0), null_label: Some(2), ..of };
        let labelled = |of: Recipe| Recipe { labels: vec![1, 0, 1, 2], ..guided(of) };
        let request = Request { conditions: labels(&[1, 0, 1, 2]), ..unseen(4) };
        let expected = samples(&compiled(&model, &guided(uncached(8))), &request);

        let (schedule, cache_fit) = (Some(ScheduleSpec::Auto), Some(CacheFit::Forecast));
        let recipe = labelled(Recipe { schedule, cache_fit, ..recipe(8, 2) });
        let session = Session::new(&model, &recipe).unwrap();
        assert!(session.cached().unwrap().cut.has_delta(), "{name}");
        let full = &mut session.open(&session.uncached().unwrap(), 4).unwrap();
        let unconditional = labels(&[2]);
        let identical =
            run(full, &Request { unconditional, guidance: Some(2.0), ..request.clone() });
        assert!(rms(&identical, &expected) < 1e-5, "{name}: a delta is added in another order");
        let choice = decide(&session);
        let error =
            rms(&samples(&session.into_compiled(Some(choice), None).unwrap(), &request), &expected);
        assert!(error < 0.2 * rms(&expected, &vec![0.0; expected.len()]), "{name}: {error}");
    }
}
