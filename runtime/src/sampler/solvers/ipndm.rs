//! Linear multistep over the angle of a cosine schedule (arXiv:2202.09778, equations 9, 12 and 13;
//! diffusers' `IPNDMScheduler`, Dance Diffusion). With x = cos(φ)·image + sin(φ)·ε, the network
//! predicts dx/dφ = cos(φ)·ε − sin(φ)·image and is told 2φ/π.

use super::super::levels::schedule::linspace_f32;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use cqc_proto::sampler::SamplerConfig;
use std::f32::consts::{FRAC_PI_2, PI};

const ORDER: usize = 4;
/// The mixture of the noises that follow from the last outputs.
const MIXED: Register = Register::Temp(0);
const IMAGE: Register = Register::Temp(1);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let noises: Vec<f32> = match &config.sigmas {
        Some(list) => list.iter().map(|&noise| noise as f32).collect(),
        None => {
            let sine = |t: f32| f64::from(t * FRAC_PI_2).sin() as f32;
            let times = linspace_f32(1.0, 0.0, steps + 1);
            times.into_iter().map(|t| sine(t) * sine(t)).collect()
        }
    };
    let signals: Vec<f32> = noises.iter().map(|noise| (1.0 - noise * noise).sqrt()).collect();
    let (x, out) = (Register::X, Register::Out);
    let rows = (0..steps).map(|step| {
        let (signal, noise) = (signals[step], noises[step]);
        let timestep = f64::from(noise.atan2(signal) / PI * 2.0);
        let mut row = Row::new(Evaluation::unscaled(timestep, step));
        // the registers of ε of the last ORDER evaluations, used in turn
        let old = |back: usize| Register::Kept(((step - back) % ORDER) as u8);
        row.push(Op::sum(old(0), &[(x, noise), (out, signal)]));
        row.push(match begin.since(step) {
            0 => Op::sum(MIXED, &[(old(0), 1.0)]),
            1 => Op::sum(MIXED, &[(old(0), 3.0), (old(1), -1.0)]).over(2.0),
            2 => Op::sum(MIXED, &[(old(0), 23.0), (old(1), -16.0), (old(2), 5.0)]).over(12.0),
            _ => Op::sum(MIXED, &[(old(0), 55.0), (old(1), -59.0), (old(2), 37.0), (old(3), -9.0)])
                .times(1.0 / 24.0),
        });
        row.push(Op::sum(IMAGE, &[(x, 1.0), (MIXED, -noise)]).over(signal.max(1e-8)));
        row.push(Op::sum(x, &[(IMAGE, signals[step + 1]), (MIXED, noises[step + 1])]));
        row
    });
    Ok(Table { rows: rows.collect(), initial_scale: 1.0 })
}
