use super::*;
use cqc_proto::sampler::{Betas, FinalSigma, Prediction, SigmaSchedule, SolverType, Spacing};

fn config(kind: SamplerKind) -> SamplerConfig {
    SamplerConfig::of_kind(kind)
}

#[test]
fn plms_evaluates_its_first_step_twice() {
    let sampler = Sampler::new(&config(SamplerKind::Plms), 50).unwrap();
    let steps: Vec<usize> =
        sampler.evaluations().iter().map(|evaluation| evaluation.step).collect();
    assert_eq!((steps.len(), &steps[..4], steps[50]), (51, &[0, 0, 1, 2][..], 49));
}

#[test]
fn weight_of_a_ddim_output_is_the_noise_level_it_removes() {
    let config = SamplerConfig { clip_sample: true, ..config(SamplerKind::Ddim) };
    let sampler = Sampler::new(&config, 10).unwrap();
    let alphas = levels::schedule::alphas_cumprod(&config);
    let sigma = |t: usize| f64::from((1.0 - alphas[t]) / alphas[t]).sqrt();
    let weights = sampler.output_weights();
    for (i, weight) in weights.iter().enumerate() {
        let t = 900 - 100 * i;
        let expected = sigma(t) - t.checked_sub(100).map_or(0.0, sigma);
        // float32 differences of nearly equal signals: about 1e-7 of the largest sigma, which is 60
        assert!((weight - expected).abs() < 1e-4, "t = {t}: {weight} against {expected}");
    }
}

#[test]
fn every_kind_has_a_weight_per_evaluation() {
    for &kind in SamplerKind::ALL {
        let sampler = Sampler::new(&config(kind), 15).unwrap();
        let weights = sampler.output_weights();
        assert_eq!(weights.len(), sampler.evaluations().len(), "{kind}");
        assert!(
            weights.iter().all(|weight| weight.is_finite()) && weights.iter().sum::<f64>() > 0.0,
            "{kind}"
        );
    }
}

#[test]
fn a_second_half_is_ignored_by_kinds_without_variance() {
    for &kind in SamplerKind::ALL {
        let sampler = Sampler::new(&config(kind), 5).unwrap();
        let (plain, doubled) = ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 9.0, 9.0, 0.3, 0.4, 9.0, 9.0]);
        let run = |output: &[f32]| {
            let (mut x, mut state) = ([1.0, -1.0, 0.5, 0.0], State::new(&sampler, 2, 2));
            for i in 0..sampler.evaluations().len() {
                sampler.advance(&mut state, i, &mut x, output, |noise| noise.fill(0.25));
            }
            x
        };
        assert_eq!(run(&plain), run(&doubled), "{kind}");
    }
}

#[test]
fn a_state_serves_one_trajectory_after_another() {
    for &kind in SamplerKind::ALL {
        let sampler = Sampler::new(&config(kind), 6).unwrap();
        let mut state = State::new(&sampler, 1, 2);
        let mut run = || {
            let mut x = [0.3, -0.7];
            for i in 0..sampler.evaluations().len() {
                let output = x.map(f32::sin);
                sampler.advance(&mut state, i, &mut x, &output, |noise| noise.fill(0.5));
            }
            x
        };
        assert_eq!(run(), run(), "{kind}");
    }
}

#[test]
fn pndm_evaluates_its_first_three_steps_four_times() {
    let sampler = Sampler::new(&config(SamplerKind::Pndm), 5).unwrap();
    let steps: Vec<usize> =
        sampler.evaluations().iter().map(|evaluation| evaluation.step).collect();
    assert_eq!(steps, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4]);
    let error = Sampler::new(&config(SamplerKind::Pndm), 3).unwrap_err();
    assert!(error.to_string().contains("4 to 1000"));
}

/// diffusers divides 0 by 0 there, because Karras levels end at the level that `sigma_min` repeats.
#[test]
fn a_repeated_last_level_is_stood_still_at() {
    let common = SamplerConfig {
        sigma_schedule: SigmaSchedule::Karras,
        final_sigmas_type: FinalSigma::SigmaMin,
        lower_order_final: false,
        solver_order: 3,
        ..config(SamplerKind::DpmMultistep)
    };
    let heun = SamplerConfig { solver_order: 2, solver_type: SolverType::Heun, ..common.clone() };
    let unipc = SamplerConfig {
        kind: SamplerKind::Unipc,
        solver_type: SolverType::Bh1,
        disable_corrector: vec![18],
        ..common.clone()
    };
    for config in [common, heun, unipc] {
        let sampler = Sampler::new(&config, 20).unwrap();
        let (mut state, mut x) = (State::new(&sampler, 1, 2), [0.5, -0.25]);
        for i in 0..20 {
            let before = x;
            sampler.advance(&mut state, i, &mut x, &before.map(f32::cos), |_| unreachable!());
            assert!(x.iter().all(|x| x.is_finite()));
            assert_eq!(x == before, i == 19, "{}, evaluation {i}", config.kind);
        }
    }
}

/// diffusers multiplies 0 by the infinite width of the step to σ = 0; the limit is the image.
#[test]
fn unipc_ends_in_the_predicted_image_whatever_its_rule() {
    let mut last = Vec::new();
    for (solver_type, lower_order_final) in
        [(SolverType::Bh1, true), (SolverType::Bh1, false), (SolverType::Bh2, false)]
    {
        let disable_corrector = vec![0, 1, 2];
        let config = SamplerConfig {
            solver_type,
            lower_order_final,
            disable_corrector,
            prediction_type: Prediction::Sample,
            ..config(SamplerKind::Unipc)
        };
        let sampler = Sampler::new(&config, 4).unwrap();
        let (mut state, mut x) = (State::new(&sampler, 1, 1), [1.0]);
        for i in 0..4 {
            sampler.advance(&mut state, i, &mut x, &[0.125], |_| unreachable!());
        }
        last.push(x[0]);
    }
    assert_eq!(last, [0.125; 3]);
}

#[test]
fn a_shift_by_tokens_must_be_known() {
    for kind in [SamplerKind::DpmMultistep, SamplerKind::Unipc, SamplerKind::Deis] {
        let json = r#"{"use_flow_sigmas": true, "use_dynamic_shifting": true,
            "prediction_type": "flow_prediction"}"#;
        let config = SamplerConfig::from_diffusers_json(json, Some(kind)).unwrap();
        assert!(matches!(Sampler::new(&config, 4), Err(SamplerError::NoShift)), "{kind}");
    }
}

#[test]
fn what_has_no_trajectory_is_refused() {
    let error = |config: &SamplerConfig, steps| {
        Sampler::new(config, steps).expect_err("refused").to_string()
    };
    let ddim = config(SamplerKind::Ddim);
    assert!(error(&ddim, 0).contains("1 to 1000"));
    assert!(error(&ddim, 1001).contains("1 to 1000"));
    let long = SamplerConfig { num_train_timesteps: 1_000_000, ..ddim.clone() };
    assert!(error(&long, 10_001).contains("1 to 10000"));
    let pure_noise = SamplerConfig {
        rescale_betas_zero_snr: true,
        timestep_spacing: Spacing::Trailing,
        ..ddim.clone()
    };
    assert!(error(&pure_noise, 10).contains("evaluation 0 (time step 999)"));
    let standing_still =
        SamplerConfig { timestep_spacing: Spacing::Leading, ..config(SamplerKind::DpmMultistep) };
    assert!(error(&standing_still, 1000).contains("no finite update"));
    let clipping = SamplerKind::ALL.iter().filter(|kind| kind.is_of_dpm());
    for &kind in clipping {
        for timestep_spacing in [Spacing::Leading, Spacing::Trailing, Spacing::Linspace] {
            let all_clipped =
                SamplerConfig { lambda_min_clipped: Some(1e6), timestep_spacing, ..config(kind) };
            for steps in [1, 10] {
                let sampler = Sampler::new(&all_clipped, steps);
                assert!(sampler.is_err(), "{kind}, {timestep_spacing:?}, {steps} steps");
            }
        }
    }
    // ᾱ underflows to 0, and σ is infinite
    let betas = Betas::Trained(vec![0.999; 1000]);
    for &kind in SamplerKind::ALL.iter().filter(|kind| kind.is_of_dpm()) {
        for sigma_schedule in [SigmaSchedule::Plain, SigmaSchedule::Exponential] {
            let without_signal =
                SamplerConfig { betas: betas.clone(), sigma_schedule, ..config(kind) };
            assert!(Sampler::new(&without_signal, 5).is_err(), "{kind}");
        }
    }
    let eta = SamplerConfig { eta: f64::NAN, ..ddim };
    assert!(error(&eta, 10).contains("eta = NaN"));
}

#[test]
fn a_second_visit_of_the_lowest_level_is_finite_in_every_order() {
    for (solver_type, solver_order) in
        [(SolverType::Midpoint, 2), (SolverType::Heun, 2), (SolverType::Heun, 3)]
    {
        let edm = SamplerConfig {
            final_sigmas_type: FinalSigma::SigmaMin,
            lower_order_final: false,
            solver_type,
            solver_order,
            ..config(SamplerKind::EdmDpm)
        };
        let sampler = Sampler::new(&edm, 20).unwrap();
        let mut state = State::new(&sampler, 1, 1);
        let mut x = [0.5];
        for i in 0..19 {
            sampler.advance(&mut state, i, &mut x, &[0.3], |_| unreachable!());
        }
        let before = x[0];
        sampler.advance(&mut state, 19, &mut x, &[0.3], |_| unreachable!());
        assert!((x[0] - before).abs() < 1e-5, "order {solver_order}: {before} to {}", x[0]);
    }
}

/// √(to² − up²) is 0 in float32 if the first level is 20000 times the second, and diffusers divides
/// by it.
#[test]
fn ancestral_steps_from_a_very_high_level_are_finite() {
    for kind in [SamplerKind::EulerAncestral, SamplerKind::Kdpm2Ancestral, SamplerKind::DpmSde] {
        let cosine = SamplerConfig { betas: Betas::SquaredcosCapV2, ..config(kind) };
        for steps in [1, 2, 3] {
            Sampler::new(&cosine, steps).unwrap();
        }
    }
}

#[test]
fn a_loop_that_begins_in_the_middle_ends_as_the_whole_one() {
    // solvers that do not use earlier evaluations have the same rows; for the others, all are
    // finite
    for &kind in SamplerKind::ALL.iter().filter(|&&kind| kind != SamplerKind::Pndm) {
        let whole = Sampler::new(&config(kind), 12).unwrap();
        for step in 1..whole.steps() {
            let begin = whole.evaluation_of_step(step);
            let part = whole.beginning_at(begin).unwrap();
            assert_eq!((part.begin(), part.evaluations()), (begin, whole.evaluations()), "{kind}");
            assert!(part.table().kept() <= MAX_REGISTERS && part.table().temps() <= MAX_REGISTERS);
        }
    }
    let heun = Sampler::new(&config(SamplerKind::Heun), 12).unwrap();
    assert_eq!(heun.beginning_at(4).unwrap().table(), heun.table());
    assert!(matches!(heun.beginning_at(3), Err(SamplerError::Middle { evaluation: 3, .. })));
    assert!(matches!(heun.beginning_at(99), Err(SamplerError::Middle { .. })));
}

#[test]
fn residual_shifting_begins_with_its_image_and_noise() {
    let sampler = Sampler::new(&config(SamplerKind::ResShift), 15).unwrap();
    assert!(sampler.needs_image());
    let levels: Vec<Option<Level>> = sampler.evaluations().iter().map(|e| e.level).collect();
    // κ·√η = 2 · 0.99
    assert_eq!(levels[0], Some(Level { signal: 1.0, noise: 1.98 }));
    assert!(levels[1..].iter().all(Option::is_none));
}
