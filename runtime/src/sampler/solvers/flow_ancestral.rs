//! Euler steps of a flow-matching model that go below the next level and return to it with new
//! noise. It is the ancestral step of the implementations of arXiv:2206.00364, for samples x = (1 −
//! σ)·image + σ·noise. The class of diffusers is `LTXEulerAncestralRFScheduler`.

use super::super::levels::flow::FlowLevels;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::flow_sign;
use cqc_proto::sampler::SamplerConfig;

const IMAGE: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let FlowLevels { sigmas, timesteps } = FlowLevels::new(config, steps)?;
    let (eta, s_noise) = (config.eta as f32, config.s_noise as f32);
    let (x, out) = (Register::X, Register::Out);
    let row = |(i, &t): (usize, &f64)| {
        let (now, next) = (sigmas[i], sigmas[i + 1]);
        let mut row = Row::new(Evaluation::unscaled(t, i).at(1.0 - now, now));
        let image = if next < 1e-8 { x } else { IMAGE };
        row.push(Op::sum(image, &[(x, 1.0), (out, -flow_sign(config) * now)]));
        if image == x {
            return row;
        }
        let down = next * (1.0 + (next / now - 1.0) * eta);
        let ratio = down / now;
        row.push(Op::sum(x, &[(x, ratio), (image, 1.0 - ratio)]));
        if eta > 0.0 && s_noise > 0.0 {
            // scale the signal to that of the next level, and add the noise that is then missing
            let (signal, down_signal) = (1.0 - next, 1.0 - down);
            let left = down * down * (signal * signal) / (down_signal * down_signal + 1e-12);
            let std = (next * next - left).max(0.0).sqrt() * s_noise;
            row.push(Op::sum(x, &[(x, signal / (down_signal + 1e-12)), (Register::Noise, std)]));
        }
        row
    };
    Ok(Table { rows: timesteps.iter().enumerate().map(row).collect(), initial_scale: 1.0 })
}
