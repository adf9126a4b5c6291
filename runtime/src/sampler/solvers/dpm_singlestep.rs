//! The singlestep form of DPM-Solver and DPM-Solver++ (arXiv:2206.00927, algorithms 1 and 2). Steps
//! form groups of up to 3 with rising order, and each is taken from the start of its group.

use super::super::levels::dpm::DpmLevels;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use super::dpm::{Integral, predict};
use cqc_proto::sampler::{FinalSigma, SamplerConfig, SolverType};

/// The predictions of the group's evaluations, in order.
const PREDICTED: [Register; 3] = [Register::Kept(0), Register::Kept(1), Register::Kept(2)];
/// The sample at the beginning of the group.
const START: Register = Register::Kept(3);
const SLOPE: Register = Register::Temp(0);
const LONG_SLOPE: Register = Register::Temp(1);
const FIRST: Register = Register::Temp(2);
const SECOND: Register = Register::Temp(3);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let DpmLevels { levels, timesteps } = DpmLevels::new(config, steps)?;
    let orders = orders(config, timesteps.len(), begin);
    let mut rows = Vec::with_capacity(timesteps.len());
    for (i, (&t, &order)) in timesteps.iter().zip(&orders).enumerate() {
        let mut row = Row::new(Evaluation::unscaled(t, i).of(levels[i]));
        let first = i + 1 - order;
        let [d0, d1, d2] = PREDICTED;
        predict(config, levels[i], PREDICTED[order - 1], &mut row);
        let integral = Integral::new(config.algorithm_type, levels[first], levels[i + 1]);
        // the position of the group's second and third evaluation in the step, from 0 to 1
        let at = |n: usize| (levels[first + n].lambda() - levels[first].lambda()) / integral.width;
        let step = match order {
            1 => {
                if orders.get(i + 1).is_some_and(|&next| next > 1) {
                    row.push(Op::sum(START, &[(Register::X, 1.0)]));
                }
                integral.step(Register::X, d0, &[])
            }
            2 => {
                row.push(Op::sum(SLOPE, &[(d1, 1.0), (d0, -1.0)]).times(1.0 / at(1)));
                integral.step(START, d0, &[(SLOPE, integral.second(config.solver_type))])
            }
            _ => {
                let (near, far) = (at(1), at(2));
                row.push(Op::sum(LONG_SLOPE, &[(d2, 1.0), (d0, -1.0)]).times(1.0 / far));
                if config.solver_type == SolverType::Heun {
                    row.push(Op::sum(SLOPE, &[(d1, 1.0), (d0, -1.0)]).times(1.0 / near));
                    let first = Op::sum(FIRST, &[(SLOPE, far), (LONG_SLOPE, -near)]);
                    row.push(first.over(far - near));
                    let second = Op::sum(SECOND, &[(LONG_SLOPE, 1.0), (SLOPE, -1.0)]);
                    row.push(second.times(2.0).over(far - near));
                    let further = [(FIRST, integral.slope), (SECOND, integral.curvature)];
                    integral.step(START, d0, &further)
                } else {
                    integral.step(START, d0, &[(LONG_SLOPE, integral.slope)])
                }
            }
        };
        row.push(step);
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

/// The order of every step: 1, 2, …, 1, 2, …. It is lower at the end if the steps do not fill a
/// group or the configuration asks for it, and at the beginning of a loop that begins within a
/// group.
fn orders(config: &SamplerConfig, steps: usize, begin: Begin) -> Vec<usize> {
    let order = config.solver_order as usize;
    let ends_in_zero = config.final_sigmas_type == FinalSigma::Zero;
    let mut orders: Vec<usize> = (0..steps).map(|i| i % order + 1).collect();
    if ends_in_zero || (config.lower_order_final && steps.is_multiple_of(order)) {
        orders[steps - 1] = 1;
    }
    orders.iter_mut().enumerate().for_each(|(i, order)| *order = (*order).min(begin.since(i) + 1));
    orders
}
