//! Residual shifting (ResShift, arXiv:2307.12348): a chain from a low-resolution image y to a
//! high-resolution one, x_t = image + η_t·(y − image) + κ·√η_t·ε, with η from nearly 1 down to
//! nearly 0. It begins with y + κ·√η·ε, and the network predicts the image.
//!
//! √η_t is √η_1 times the quotient of the last and the first √η, raised to the power (t/(T − 1))^p
//! (section 3.3, equation 10).

use super::super::table::{Op, Register, Row, Table};
use super::super::{Evaluation, SamplerError};
use super::image_limit;
use cqc_proto::sampler::{ResShift, SamplerConfig};

const IMAGE: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize) -> Result<Table, SamplerError> {
    let chain = config.res_shift;
    let train = config.num_train_timesteps as usize;
    // with fewer steps than in training, an evenly spread subset of the training steps is visited
    let visited: Vec<usize> =
        (0..steps).map(|i| (train as f64 / steps as f64 * i as f64) as usize).collect();
    let root = |t: usize| sqrt_eta(&chain, t, train);
    let x = Register::X;
    let row = |k: usize| {
        let (now, t) = (root(visited[k]), visited[k]);
        let (eta, next) = (now * now, if k > 0 { root(visited[k - 1]).powi(2) } else { 0.0 });
        let scale = match (chain.normalize_input, chain.latent_flag) {
            (false, _) => 1.0,
            (true, true) => 1.0 / (eta * chain.kappa * chain.kappa + 1.0).sqrt(),
            (true, false) => 1.0 / (3.0 * now * chain.kappa + 1.0),
        };
        let evaluation = Evaluation::scaled(t as f64, scale as f32, steps - 1 - k);
        // the levels of the other evaluations depend on an image that is not known
        let begins = k + 1 == steps;
        let mut row = Row::new(match begins {
            true => evaluation.at(1.0, (chain.kappa * now) as f32),
            false => evaluation,
        });
        row.push(Op::sum(IMAGE, &[(Register::Out, 1.0)]).limited(image_limit(config)));
        let (keep, image) = (next / eta, (eta - next) / eta);
        row.push(Op::sum(x, &[(x, keep as f32), (IMAGE, image as f32)]));
        if k > 0 {
            let std = chain.kappa * (keep * (eta - next)).sqrt();
            row.push(Op::sum(x, &[(x, 1.0), (Register::Noise, std as f32)]));
        }
        row
    };
    let highest = chain.kappa * root(visited[steps - 1]);
    let initial_scale = (highest * highest + 1.0).sqrt() as f32;
    Ok(Table { rows: (0..steps).rev().map(row).collect(), initial_scale })
}

/// √η of training step `t`. Step 0 has the least noise.
fn sqrt_eta(chain: &ResShift, t: usize, train: usize) -> f64 {
    let (start, end) = (chain.sqrt_eta_start(), chain.etas_end);
    let share = (t as f64 / (train - 1) as f64).powf(chain.power);
    start * (end / start).powf(share)
}
