//! Consistency sampling of TrigFlow (sCM, arXiv:2410.11081, section 4; SANA-Sprint,
//! arXiv:2503.09641): x = cos(t)·image + sin(t)·noise with t from π/2 down to 0. Each step predicts
//! the image and adds new noise of the next t.
//!
//! The network returns TrigFlow's velocity. With flow prediction it is instead the flow-matching
//! network from which SANA-Sprint makes it (section 3.1). That network is told the flow's level s =
//! sin(t)/(sin(t) + cos(t)), and sees the sample scaled to that level.

use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use cqc_proto::sampler::{Prediction, SamplerConfig};

const IMAGE: Register = Register::Temp(0);

/// Nearly π/2, the value with which the models are run.
#[expect(clippy::approx_constant, reason = "diffusers rounds the quarter of a circle")]
const START: f64 = 1.5708;

/// The second time of two steps, which SANA-Sprint found by search.
const MIDDLE_OF_TWO: f64 = 1.3;

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let even = |i: usize| START - START * i as f64 / steps as f64;
    let mut times: Vec<f64> = match &config.timesteps {
        Some(times) => times.clone(),
        None if steps == 2 => vec![START, MIDDLE_OF_TWO],
        None => (0..steps).map(even).collect(),
    };
    times.push(0.0);
    let flow = config.prediction_type == Prediction::Flow;
    // in the flow's scale the data have unit deviation
    let std = if flow { 1.0 } else { config.sigma_data };
    let (x, out) = (Register::X, Register::Out);
    let row = |step: usize| {
        let [(sin, cos), (next_sin, next_cos)] =
            [times[step], times[step + 1]].map(|t| f64::from(t as f32).sin_cos());
        let t = f64::from(times[step] as f32);
        let scale = 1.0 / (sin + cos);
        let (timestep, input_scale) = if flow { (sin * scale, scale as f32) } else { (t, 1.0) };
        let mut row = Row::new(Evaluation::scaled(timestep, input_scale, step));
        // with flow: (sample at the flow's level − s·velocity) / (1 − s), converted back to
        // TrigFlow
        let (of_x, of_out) = if flow { (scale, sin * scale) } else { (cos, sin) };
        row.push(Op::sum(IMAGE, &[(x, of_x as f32), (out, -of_out as f32)]));
        let noise = (next_sin * std) as f32;
        row.push(Op::sum(x, &[(IMAGE, next_cos as f32), (Register::Noise, noise)]));
        row
    };
    Ok(Table { rows: (0..times.len() - 1).map(row).collect(), initial_scale: 1.0 })
}
