//! Heun's method along the straight path of a flow-matching model (arXiv:2206.00364, algorithm 1
//! without churn, on x′ = x + (σ′ − σ)·v; diffusers' `FlowMatchHeunDiscreteScheduler`).
//!
//! A step begins with an Euler step. The second evaluation is made at its end, and the step is then
//! taken from the start with the mean of both velocities. The last step, to σ = 0, is an Euler
//! step.

use super::super::levels::flow::FlowLevels;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::flow_sign;
use cqc_proto::sampler::SamplerConfig;

/// The sample at the beginning of the step.
const START: Register = Register::Kept(0);
/// The velocity at the beginning of the step.
const VELOCITY: Register = Register::Kept(1);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let FlowLevels { sigmas, timesteps } = FlowLevels::new(config, steps)?;
    let sign = flow_sign(config);
    let (x, out) = (Register::X, Register::Out);
    let mut rows = Vec::with_capacity(2 * timesteps.len());
    for (step, &t) in timesteps.iter().enumerate() {
        let width = sign * (sigmas[step + 1] - sigmas[step]);
        let mut first =
            Row::new(Evaluation::unscaled(t, step).at(1.0 - sigmas[step], sigmas[step]));
        let second = timesteps.get(step + 1).map(|&t| {
            first.push(Op::sum(START, &[(x, 1.0)]));
            first.push(Op::sum(VELOCITY, &[(out, 1.0)]));
            let next = sigmas[step + 1];
            let mut second = Row::new(Evaluation::unscaled(t, step).at(1.0 - next, next));
            second.push(Op::sum(VELOCITY, &[(VELOCITY, 1.0), (out, 1.0)]).times(0.5));
            second.push(Op::sum(x, &[(START, 1.0), (VELOCITY, width)]));
            second
        });
        first.push(Op::sum(x, &[(x, 1.0), (out, width)]));
        rows.push(first);
        rows.extend(second);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}
