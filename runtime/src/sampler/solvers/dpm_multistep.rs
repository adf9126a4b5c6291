//! The multistep form of DPM-Solver and DPM-Solver++, of order 1 to 3 (arXiv:2211.01095, algorithm
//! 2; arXiv:2206.00927, appendix B). Past predictions are extrapolated and integrated exactly over
//! the half log-SNR λ. The inverse form goes from an image to its noise.

use super::super::levels::dpm::DpmLevels;
use super::super::levels::schedule::Level;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use super::dpm::{FEW_STEPS, Integral, predict};
use cqc_proto::sampler::{FinalSigma, SamplerConfig, SamplerKind, SolverType};

const SLOPE: Register = Register::Temp(0);
const OLDER_SLOPE: Register = Register::Temp(1);
const BEND: Register = Register::Temp(2);
const FIRST: Register = Register::Temp(3);
const SECOND: Register = Register::Temp(4);
/// The register of the prediction if no later step reads it.
const ONLY: Register = Register::Temp(5);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let DpmLevels { levels, timesteps } = DpmLevels::new(config, steps)?;
    // there are fewer than `steps` if `lambda_min_clipped` cuts off time steps of `trailing`
    let count = timesteps.len();
    let memory = config.solver_order as usize;
    // the register of the prediction of evaluation `i`
    let predicted = |i: usize| match memory {
        1 => ONLY,
        _ => Register::Kept((i % memory) as u8),
    };
    let mut rows = Vec::with_capacity(count);
    for (i, &t) in timesteps.iter().enumerate() {
        let mut row = Row::new(Evaluation::unscaled(t, i).of(levels[i]));
        predict(config, levels[i], predicted(i), &mut row);
        // a step between two equal levels, which may be the last one, has a width of 0 and order 1
        let stands = i + 1 == count && levels[i] == levels[i + 1];
        let order = match order_of(config, i, count, begin) {
            2 if config.solver_type == SolverType::Midpoint => 2, // is finite all the same
            _ if stands => 1,
            order => order,
        };
        advance(config, &levels, i, order, predicted, &mut row);
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

/// One step from `levels[i]` to the next level, with the predictions of the last `order`
/// evaluations.
pub fn advance(
    config: &SamplerConfig,
    levels: &[Level],
    i: usize,
    order: usize,
    predicted: impl Fn(usize) -> Register,
    row: &mut Row,
) {
    let now = predicted(i);
    let integral = Integral::new(config.algorithm_type, levels[i], levels[i + 1]);
    let before = |back: usize| before(levels, i, back, integral.width);
    let x = Register::X;
    let step = match order {
        1 => integral.step(x, now, &[]),
        2 => {
            row.push(slope(SLOPE, now, predicted(i - 1), before(1)));
            integral.step(x, now, &[(SLOPE, integral.second(config.solver_type))])
        }
        _ => {
            let (near, far) = (before(1), before(2));
            row.push(slope(SLOPE, now, predicted(i - 1), near));
            row.push(slope(OLDER_SLOPE, predicted(i - 1), predicted(i - 2), far));
            row.push(Op::sum(BEND, &[(SLOPE, 1.0), (OLDER_SLOPE, -1.0)]));
            row.push(Op::sum(FIRST, &[(SLOPE, 1.0), (BEND, near / (near + far))]));
            row.push(Op::sum(SECOND, &[(BEND, 1.0 / (near + far))]));
            let further = [(FIRST, integral.slope), (SECOND, integral.curvature)];
            integral.step(x, now, &further)
        }
    };
    row.push(step);
}

/// The width of the step that began `back` evaluations before `i`, relative to the step at `i`.
fn before(levels: &[Level], i: usize, back: usize, width: f32) -> f32 {
    (levels[i + 1 - back].lambda() - levels[i - back].lambda()) / width
}

/// `to` = the difference of two predictions divided by their distance.
fn slope(to: Register, new: Register, old: Register, distance: f32) -> Op {
    Op::sum(to, &[(new, 1.0), (old, -1.0)]).times(1.0 / distance)
}

/// The order of step `i` of `count`.
pub fn order_of(config: &SamplerConfig, i: usize, count: usize, begin: Begin) -> usize {
    let lowers = config.lower_order_final && count < FEW_STEPS;
    // with σ = 0 at the end λ is infinite, and only the first-order rule has a limit
    let ends_in_zero = config.final_sigmas_type == FinalSigma::Zero
        && config.kind != SamplerKind::DpmMultistepInverse;
    let most = match count - 1 - i {
        0 if ends_in_zero || config.euler_at_final || lowers => 1,
        1 if lowers => 2,
        _ => 3,
    };
    most.min(begin.since(i) + 1).min(config.solver_order as usize)
}
