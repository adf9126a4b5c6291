//! DDPM in continuous time, of Würstchen (arXiv:2306.00637) and Stable Cascade: ᾱ(t) is a squared
//! cosine, t runs from 1 to 0, and the network is told t.

use super::super::levels::schedule::Level;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use cqc_proto::sampler::SamplerConfig;
use std::f32::consts::PI;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let even = |i: usize| (1.0 - i as f64 / steps as f64) as f32;
    let mut times: Vec<f32> = match &config.timesteps {
        Some(times) => times.iter().map(|&t| t as f32).collect(),
        None => (0..steps).map(even).collect(),
    };
    times.push(0.0);
    let row = |step: usize| {
        let [now, next] = [times[step], times[step + 1]].map(|t| alpha_cumprod(config, t));
        let alpha = now / next;
        let mut row =
            Row::new(Evaluation::unscaled(times[step].into(), step).of(Level::of_alpha(now)));
        let (x, factor) = (Register::X, (1.0 / alpha).sqrt());
        let less = Op::sum(x, &[(x, 1.0)]);
        row.push(
            less.plus_quotient(Register::Out, -(1.0 - alpha), (1.0 - now).sqrt()).times(factor),
        );
        let std = ((1.0 - alpha) * (1.0 - next) / (1.0 - now)).sqrt();
        let std = if step + 2 < times.len() { std } else { 0.0 };
        row.push(Op::sum(x, &[(x, 1.0), (Register::Noise, std)]));
        row
    };
    Ok(Table { rows: (0..times.len() - 1).map(row).collect(), initial_scale: 1.0 })
}

/// ᾱ at `t`, from 0 (data) to 1 (noise).
fn alpha_cumprod(config: &SamplerConfig, t: f32) -> f32 {
    let (scaler, s) = (config.scaler as f32, config.s as f32);
    let t = match scaler {
        _ if scaler > 1.0 => 1.0 - (1.0 - t).powf(scaler),
        _ if scaler < 1.0 => t.powf(scaler),
        _ => t,
    };
    let cosine = |t: f32| ((t + s) / (1.0 + s) * PI * 0.5).cos().powi(2);
    (cosine(t) / cosine(0.0)).clamp(0.0001, 0.9999)
}
