//! Euler steps along the straight path of a flow-matching model: x′ = x + (σ′ − σ)·v
//! (arXiv:2403.03206; diffusers' `FlowMatchEulerDiscreteScheduler`). The stochastic form, and the
//! one for models distilled to consistency (`FlowMatchLCMScheduler`), mix the predicted image with
//! new noise of the next level.

use super::super::levels::flow::FlowLevels;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::flow_sign;
use cqc_proto::sampler::{SamplerConfig, SamplerKind};

const IMAGE: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let FlowLevels { sigmas, timesteps } = FlowLevels::new(config, steps)?;
    let sign = flow_sign(config);
    let renews = config.stochastic_sampling || config.kind == SamplerKind::FlowLcm;
    let (x, out) = (Register::X, Register::Out);
    let row = |(i, &t): (usize, &f64)| {
        let (now, next) = (sigmas[i], sigmas[i + 1]);
        let mut row = Row::new(Evaluation::unscaled(t, i).at(1.0 - now, now));
        if renews {
            row.push(Op::sum(IMAGE, &[(x, 1.0), (out, -sign * now)]));
            row.push(Op::sum(x, &[(IMAGE, 1.0 - next), (Register::Noise, next)]));
        } else {
            row.push(Op::sum(x, &[(x, 1.0), (out, sign * (next - now))]));
        }
        row
    };
    Ok(Table { rows: timesteps.iter().enumerate().map(row).collect(), initial_scale: 1.0 })
}
