//! exp, erf, tanh, sigmoid and the activations over the whole range of f32.

mod common;
use common::*;
use cqc_kernels::*;

/// Every 4099th bit pattern of both signs, and the places where formulas change.
fn inputs() -> Vec<f32> {
    let sweep = (0..=u32::MAX).step_by(4099).map(f32::from_bits).filter(|x| !x.is_nan());
    let dense = (-110_000..110_000).map(|i| i as f32 * 1e-3);
    let special = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    let borders = [
        0.55,
        0.550_000_1,
        0.927_734_4,
        0.927_734_3,
        88.722_84,
        88.722_85,
        -87.336_54,
        -103.972_08,
        -104.0,
    ];
    let mut all: Vec<f32> = sweep.chain(dense).chain(special).chain(borders).collect();
    all.push(f32::NAN);
    all
}

/// Largest relative error where the result is a normal number; elsewhere one step of the denormals
/// is allowed.
fn worst(isa: Isa, op: Unary) -> (f32, f32) {
    let x = inputs();
    let mut y = vec![0.0; x.len()];
    unary(isa, &Pool::new(1), op, &x, &mut y);
    let mut worst = (0.0, 0.0);
    for ((&x, &y), want) in x.iter().zip(&y).zip(definition::unary(op, &x)) {
        if want.is_nan() || want.is_infinite() {
            assert!(
                y == want || (want.is_nan() && y.is_nan()),
                "{isa} {op:?}({x}) = {y}, not {want}"
            );
        } else if want.abs() < 1e-37 {
            assert!((y - want).abs() <= 1e-37, "{isa} {op:?}({x}) = {y}, not {want}");
        } else if x.is_finite() && (y - want).abs() > worst.0 * want.abs() {
            worst = ((y - want).abs() / want.abs(), x);
        }
    }
    worst
}

#[test]
fn functions_are_within_3e7_of_their_definition() {
    for isa in isas() {
        for op in
            [Unary::Exp, Unary::Erf, Unary::Act(Act::Tanh), Unary::Act(Act::Sigmoid), Unary::Sqrt]
        {
            let (error, x) = worst(isa, op);
            println!("{isa} {op:?}: {error:e} at {x}");
            assert!(error <= 3e-7, "{isa} {op:?}: {error} at {x}");
        }
    }
}

#[test]
fn activations_are_within_3e6_of_their_definition() {
    // Where exp(−u) is the result, an error of 6e-8 · u in its argument is one of the result, so
    // the bound is relative only from −5 on, where u ≤ 17, and absolute below, where results are
    // small. The polynomial of erfc is only made for small absolute errors, so gelu from −1 on.
    for isa in isas() {
        for act in Act::ALL {
            let (mut relative, mut absolute) = (0.0f32, 0.0f32);
            let border = if act == Act::GeluErf { -1.0 } else { -5.0 };
            let x: Vec<f32> = (-100_000..100_000).map(|i| i as f32 * 1e-3).collect();
            let mut y = vec![0.0; x.len()];
            unary(isa, &Pool::new(1), Unary::Act(act), &x, &mut y);
            for ((&x, &y), want) in x.iter().zip(&y).zip(definition::activation(act, &x)) {
                if x >= border && x != 0.0 {
                    relative = relative.max((y - want).abs() / want.abs().max(f32::MIN_POSITIVE));
                } else {
                    absolute = absolute.max((y - want).abs() / (1.0 + want.abs()));
                }
            }
            println!(
                "{isa} {act:?}: relative {relative:e} from {border} on, absolute {absolute:e} below"
            );
            assert!(
                relative <= 3e-6 && absolute <= 3e-7,
                "{isa} {act:?}: {relative:e}, {absolute:e}"
            );
        }
    }
}

#[test]
fn activations_of_extreme_values_equal_their_definition() {
    let x = [
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
        1e-45,
        -1e-45,
        0.0,
        -0.0,
        1e20,
        -1e20,
    ];
    for isa in isas() {
        for act in Act::ALL {
            let mut y = [0.0; 11];
            unary(isa, &Pool::new(1), Unary::Act(act), &x, &mut y);
            for ((&x, &y), want) in x.iter().zip(&y).zip(definition::activation(act, &x)) {
                let same = y == want || y.is_nan() && want.is_nan() || (y - want).abs() <= 1e-37;
                assert!(same, "{isa} {act:?}({x}) = {y}, not {want}");
            }
        }
    }
}
