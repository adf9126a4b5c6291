//! DPM-Solver and DPM-Solver++, multistep, of order 1 to 3 (arXiv:2211.01095, algorithm 2;
//! arXiv:2206.00927, appendix B): past predictions extrapolated, integrated exactly over the half
//! log-SNR λ. Inverse: the same from an image to its noise.

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
/// What is predicted, where no later step looks at it.
const ONLY: Register = Register::Temp(5);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let DpmLevels { levels, timesteps } = DpmLevels::new(config, steps)?;
    // fewer than `steps` when `lambda_min_clipped` cuts `trailing` ones off
    let count = timesteps.len();
    let memory = config.solver_order as usize;
    // what was predicted at evaluation `i`
    let predicted = |i: usize| match memory {
        1 => ONLY,
        _ => Register::Kept((i % memory) as u8),
    };
    let mut rows = Vec::with_capacity(count);
    for (i, &t) in timesteps.iter().enumerate() {
        let mut row = Row::new(Evaluation::unscaled(t, i).of(levels[i]));
        predict(config, levels[i], predicted(i), &mut row);
        // a repeated level, as the last one may be, is stood still at
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

/// One step from `levels[i]` to the next, with what was `predicted` at the last `order` evaluations.
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

/// The width of the step that began `back` evaluations before `i`, in widths of the step at `i`.
fn before(levels: &[Level], i: usize, back: usize, width: f32) -> f32 {
    (levels[i + 1 - back].lambda() - levels[i - back].lambda()) / width
}

/// `to` = the difference of two predictions over their distance.
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
