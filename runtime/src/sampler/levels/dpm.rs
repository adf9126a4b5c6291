//! Noise levels for the solvers that integrate over the half log-SNR λ: DPM-Solver and its
//! descendants.
//!
//! Their time steps are whole numbers for any levels. diffusers rounds the time steps of Karras
//! levels and truncates those of other levels.

use super::super::SamplerError;
use super::schedule::{Level, in_training, leading, linspace, stride, trailing};
use super::sigmas::{interpolate, log_levels, spread, timestep_of, trained_sigmas};
use cqc_proto::sampler::{Betas, FinalSigma, SamplerConfig, SamplerKind, SigmaSchedule, Spacing};

/// The noise level of each evaluation and the one after the last, and the time step of each
/// evaluation.
pub(in super::super) struct DpmLevels {
    /// At least one more than there are time steps.
    pub levels: Vec<Level>,
    pub timesteps: Vec<f64>,
}

impl DpmLevels {
    /// The levels and time steps of `config`.
    ///
    /// # Errors
    /// [`SamplerError::TimestepOutside`], and [`SamplerError::NoShift`] if the shift of flow
    /// matching depends on an unknown number of tokens.
    pub fn new(config: &SamplerConfig, steps: usize) -> Result<Self, SamplerError> {
        let trained = trained_sigmas(config);
        let ends = (f64::from(trained[0]), f64::from(trained[trained.len() - 1]));
        let (mut sigmas, mut timesteps) = match config.sigma_schedule {
            SigmaSchedule::Plain => plain(config, steps, &trained)?,
            SigmaSchedule::Flow if config.kind == SamplerKind::Unipc => {
                timed(unipc_flow(config, steps)?, config)
            }
            SigmaSchedule::Flow => timed(flow(config, steps)?, config),
            SigmaSchedule::KarrasFlow => {
                let sigmas = between(config, SigmaSchedule::Karras, ends, steps);
                timed(sigmas.into_iter().map(|s| s / (s + 1.0)).collect(), config)
            }
            schedule => {
                let sigmas = between(config, schedule, ends, steps);
                let timesteps = timesteps_of(config, &sigmas, &trained);
                (sigmas, timesteps)
            }
        };
        let repeated = sigmas[sigmas.len() - 1];
        let is_plain = config.sigma_schedule == SigmaSchedule::Plain;
        sigmas.push(match (config.kind, config.final_sigmas_type) {
            (SamplerKind::DpmMultistepInverse, _) if is_plain => {
                let noisiest = trained.len() - 1 - clipped(config, &trained) as usize;
                trained[noisiest].into()
            }
            (SamplerKind::DpmMultistepInverse, _) => repeated,
            (SamplerKind::Deis | SamplerKind::Sa, _)
            | (SamplerKind::Unipc, FinalSigma::SigmaMin)
                if !is_plain =>
            {
                repeated
            }
            (SamplerKind::Deis | SamplerKind::Sa, _) | (_, FinalSigma::SigmaMin) => ends.0,
            (_, FinalSigma::Zero) => 0.0,
        });
        if config.kind == SamplerKind::DpmMultistepInverse {
            // diffusers drops repeated time steps, but not their levels
            timesteps.dedup();
        }
        let is_flow = config.sigma_schedule.is_flow();
        let level = |sigma: f64| match (is_flow, sigma as f32) {
            (true, sigma) => Level { signal: 1.0 - sigma, noise: sigma },
            (false, sigma) => Level::of_sigma(sigma),
        };
        Ok(Self { levels: sigmas.into_iter().map(level).collect(), timesteps })
    }
}

impl Level {
    fn of_sigma(sigma: f32) -> Self {
        let signal = (sigma * sigma + 1.0).sqrt().recip();
        Self { signal, noise: sigma * signal }
    }

    /// Half the logarithm of the signal-to-noise ratio.
    pub fn lambda(self) -> f32 {
        self.signal.ln() - self.noise.ln()
    }
}

type LevelsAndTimes = (Vec<f64>, Vec<f64>);

/// Computes the time steps first, and then their levels.
fn plain(
    config: &SamplerConfig,
    steps: usize,
    trained: &[f32],
) -> Result<LevelsAndTimes, SamplerError> {
    let train = config.num_train_timesteps;
    let timesteps = match &config.timesteps {
        Some(given) => given.iter().map(|t| t.trunc()).collect(),
        None => spaced(config, steps, trained)?,
    };
    for &t in &timesteps {
        in_training(t, train)?;
    }
    let sigmas = timesteps.iter().map(|&t| interpolate(trained, t)).collect();
    Ok((sigmas, timesteps))
}

/// Spaced time steps, the noisiest first. Of `steps + 1` time steps the lowest is dropped, because
/// the solver ends there. For the inverse solver the noisiest comes last, and is dropped.
///
/// # Errors
/// [`SamplerError::TimestepOutside`] if `lambda_min_clipped` leaves no time step.
fn spaced(config: &SamplerConfig, steps: usize, trained: &[f32]) -> Result<Vec<f64>, SamplerError> {
    let train = config.num_train_timesteps;
    let kept = train - clipped(config, trained);
    if kept == 0 {
        return Err(SamplerError::TimestepOutside { timestep: -1.0, train });
    }
    let mut ascending = match (config.kind, config.timestep_spacing) {
        (SamplerKind::DpmSinglestep, _) | (_, Spacing::Linspace | Spacing::Quadratic) => {
            linspace(0.0, f64::from(kept) - 1.0, steps + 1).map(f64::round_ties_even).collect()
        }
        (_, Spacing::Leading) => leading(kept, steps + 1, config.steps_offset),
        // one fewer, because this spacing does not include 0
        (_, Spacing::Trailing) => trailing(kept.into(), stride(train, steps), steps),
    };
    let is_one_more = ascending.len() > steps;
    if config.kind == SamplerKind::DpmMultistepInverse {
        ascending.truncate(steps);
        return Ok(ascending);
    }
    if is_one_more {
        ascending.remove(0);
    }
    ascending.reverse();
    Ok(ascending)
}

/// The number of the noisiest training steps with a half log-SNR below `lambda_min_clipped`.
fn clipped(config: &SamplerConfig, trained: &[f32]) -> u32 {
    let Some(limit) = config.lambda_min_clipped else { return 0 };
    let below = |sigma: &&f32| -f64::from(**sigma).ln() < limit;
    trained.iter().rev().take_while(below).count() as u32
}

/// Levels spread between `ends`, the lowest and the highest level of training, or between the ends
/// in the configuration.
fn between(
    config: &SamplerConfig,
    schedule: SigmaSchedule,
    ends: (f64, f64),
    steps: usize,
) -> Vec<f64> {
    let (low, high) = match config.kind {
        // this solver goes from the lowest to the highest level
        SamplerKind::DpmMultistepInverse => (ends.1, ends.0),
        _ => ends,
    };
    if schedule == SigmaSchedule::LuLambdas {
        let [low, high] = [low, high].map(|sigma| f64::from(numpy_ln(sigma as f32)));
        let ramp = linspace(0.0, 1.0, steps);
        return ramp.map(|ramp| (high + ramp * (low - high)).exp()).collect();
    }
    let (low, high) = (config.sigma_min.unwrap_or(low), config.sigma_max.unwrap_or(high));
    spread(schedule, low, high, steps)
}

/// The time step of each level as a whole number.
fn timesteps_of(config: &SamplerConfig, sigmas: &[f64], trained: &[f32]) -> Vec<f64> {
    let is_cosine =
        config.kind == SamplerKind::DpmMultistep && config.betas == Betas::SquaredcosCapV2;
    let rounds = matches!(
        config.sigma_schedule,
        SigmaSchedule::Karras | SigmaSchedule::LuLambdas if !is_cosine
    );
    // where fractions are truncated, the last bit of a logarithm decides about the first and last
    // step
    let logs = match config.sigma_schedule {
        SigmaSchedule::Karras => log_levels(trained),
        _ => trained.iter().map(|&sigma| numpy_ln(sigma)).collect(),
    };
    let whole = if rounds { f64::round_ties_even } else { f64::trunc };
    sigmas.iter().map(|&sigma| whole(timestep_of(sigma.max(1e-10).ln(), &logs))).collect()
}

/// numpy's natural logarithm of a float32. For positive normal numbers it gives the same bits as
/// numpy's vectorized version, which is off by one unit in the last place for a tenth of all
/// arguments. With the argument 2^k · m and m near 1, it is a quotient of polynomials in m − 1.
///
/// DEIS takes differences of such logarithms, which magnify the last bit.
pub(in super::super) fn numpy_ln(x: f32) -> f32 {
    const ABOVE: [f32; 6] = [0.025_899_792, 0.380_883_78, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
    const BELOW: [f32; 6] =
        [0.005_875_095_3, 0.154_647_63, 0.986_494_3, 2.453_006, 2.612_677_6, 1.0];
    if !x.is_normal() || x < 0.0 {
        return x.ln();
    }
    // m from 1/2 to 1, then from 1/√2 to √2
    let k = x.log2().floor() as i32 + 1;
    let (mut k, mut m) = (k, x * (-k as f32).exp2());
    while m >= 1.0 {
        (k, m) = (k + 1, m / 2.0);
    }
    while m < 0.5 {
        (k, m) = (k - 1, m * 2.0);
    }
    if m <= std::f32::consts::FRAC_1_SQRT_2 {
        (k, m) = (k - 1, m * 2.0);
    }
    let horner = |factors: [f32; 6]| {
        factors.into_iter().reduce(|sum, factor| sum.mul_add(m - 1.0, factor)).unwrap_or(0.0)
    };
    (k as f32).mul_add(std::f32::consts::LN_2, horner(ABOVE) / horner(BELOW))
}

/// The levels of flow matching together with the time steps that the network is told.
fn timed(sigmas: Vec<f64>, config: &SamplerConfig) -> LevelsAndTimes {
    let train = f64::from(config.num_train_timesteps);
    let timesteps = sigmas.iter().map(|sigma| (sigma * train).trunc()).collect();
    (sigmas, timesteps)
}

/// Levels from 1 − 1/training steps down to the last one above 0, shifted.
fn flow(config: &SamplerConfig, steps: usize) -> Result<Vec<f64>, SamplerError> {
    let shift = match &config.dynamic_shift {
        Some(dynamic) => dynamic.mu.ok_or(SamplerError::NoShift)?.exp(),
        None => config.flow_shift,
    };
    let lowest = 1.0 / f64::from(config.num_train_timesteps);
    let mut sigmas: Vec<f64> = linspace(1.0, lowest, steps + 1)
        .skip(1)
        .map(|alpha| 1.0 - alpha)
        .map(|sigma| shift * sigma / (1.0 + (shift - 1.0) * sigma))
        .collect();
    sigmas.reverse();
    Ok(sigmas)
}

/// The levels of UniPC: from 1 down, or as listed, shifted, and stretched to the terminal level.
fn unipc_flow(config: &SamplerConfig, steps: usize) -> Result<Vec<f64>, SamplerError> {
    let lowest = 1.0 / f64::from(config.num_train_timesteps);
    let mut sigmas = match &config.sigmas {
        Some(sigmas) => sigmas.clone(),
        None => linspace(1.0, lowest, steps + 1).take(steps).collect(),
    };
    match &config.dynamic_shift {
        Some(dynamic) => {
            let mu = dynamic.mu.ok_or(SamplerError::NoShift)?;
            let mu = if dynamic.linear { mu } else { mu.exp() };
            sigmas.iter_mut().for_each(|s| *s = mu / (mu + (1.0 / *s - 1.0)));
        }
        None => {
            let shift = config.flow_shift;
            sigmas.iter_mut().for_each(|s| *s = shift * *s / (1.0 + (shift - 1.0) * *s));
        }
    }
    if let Some(terminal) = config.shift_terminal {
        let scale = (1.0 - sigmas[sigmas.len() - 1]) / (1.0 - terminal);
        sigmas.iter_mut().for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
    }
    // a level of 1 has no signal, and its λ is not finite
    const PURE: f64 = 1e-6;
    if (sigmas[0] - 1.0).abs() < PURE {
        sigmas[0] -= PURE;
    }
    Ok(sigmas)
}

#[cfg(test)]
mod tests {
    use super::numpy_ln;

    /// The bits of x and of numpy.log(x), recorded with numpy 2.4 on x86-64.
    const RECORDED: &[(u32, u32)] = &[
        (0x3f9e5a13, 0x3e59e56a),
        (0x454fa14a, 0x4101bbca),
        (0x3ad8ab80, 0xc0ccf6cd),
        (0x4548f587, 0x41013607),
        (0x3d0a7b1b, 0xc058c52a),
        (0x3e80cad1, 0xbfb0a7e7),
        (0x43b6459b, 0x40bcc1b7),
        (0x3e47bf79, 0xbfd13487),
        (0x401c447d, 0x3f648719),
        (0x3f000000, 0xbf317218),
        (0x3f800000, 0x00000000),
        (0x3f3504f3, 0xbeb17218),
        (0x3f3504f4, 0xbeb17215),
        (0x40000000, 0x3f317218),
        (0x358637bd, 0xc15d0c55),
        (0x431d6840, 0x40a1e1fd),
        (0x4149e3ad, 0x40223f97),
        (0x3fbb70dc, 0x3ec34b32),
        (0x3ec24f58, 0xbf7807e0),
        (0x3f5cc32f, 0xbe17a4f9),
        (0x41177c38, 0x400fdd96),
        (0x3faa5c8e, 0x3e926086),
        (0x3f8eb994, 0x3ddf011c),
        (0x3f414e59, 0xbe8fd27e),
    ];

    #[test]
    fn logarithms_have_the_bits_of_numpy() {
        for &(x, ln) in RECORDED {
            let x = f32::from_bits(x);
            assert_eq!(numpy_ln(x).to_bits(), ln, "{x}");
        }
    }
}
