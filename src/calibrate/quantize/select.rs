//! Selects the samples and evaluations on which quantization ranges are found.

use crate::calibrate::{CalibrateError, EvaluationCounter};
use cqc_passes::calib::select::{SamplePool, Tap, Tdac};
use cqc_runtime::denoise::{Denoiser, Request, Trajectory};
use std::collections::BTreeSet;

/// The method that selects pairs of sample and evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Select {
    /// Every sample at every evaluation. The samples themselves are drawn at random.
    #[default]
    All,
    /// The first samples of this number, at every evaluation, as CacheQuant draws them.
    First(usize),
    /// Q&C's temporal-aware parallel clustering of pairs of sample and evaluation
    /// (arXiv:2503.02508).
    Tap(Tap),
    /// EDA-DM's selection by density and diversity (arXiv:2401.04585), with the number of pairs to
    /// select.
    Tdac(usize),
}

/// The selected pairs of sample and evaluation; `None` means all of them.
pub(crate) fn select(
    how: &Select,
    denoiser: &mut Denoiser,
    request: &Request,
    fit: usize,
    progress: &mut EvaluationCounter,
) -> Result<Option<BTreeSet<(usize, usize)>>, CalibrateError> {
    let evaluations = denoiser.sampler().evaluations().len();
    let pairs = || (0..evaluations).flat_map(|t| (0..fit).map(move |sample| (sample, t)));
    match how {
        Select::All => Ok(None),
        Select::First(count) => Ok(Some(pairs().filter(|(sample, _)| sample < count).collect())),
        Select::Tap(tap) => {
            let rows = latents(denoiser, request, fit, progress)?;
            let evaluations: Vec<usize> = pairs().map(|(_, t)| t).collect();
            let chosen = tap.select(&SamplePool::new(&rows, &evaluations));
            Ok(Some(chosen.into_iter().map(|i| (i % fit, i / fit)).collect()))
        }
        Select::Tdac(total) => {
            let channels = denoiser.channels();
            let rows = channels_last(
                &latents(denoiser, request, fit, progress)?,
                channels,
                denoiser.sample_shape(),
            );
            let evaluations: Vec<usize> = pairs().map(|(_, t)| t).collect();
            let tdac = Tdac { total: *total, ..Tdac::new(channels) };
            let chosen = tdac.select(&SamplePool::new(&rows, &evaluations));
            Ok(Some(chosen.into_iter().map(|i| (i % fit, i / fit)).collect()))
        }
    }
}

/// The samples before each evaluation, `[evaluations, fit, …]`.
fn latents(
    denoiser: &mut Denoiser,
    request: &Request,
    fit: usize,
    progress: &mut EvaluationCounter,
) -> Result<Vec<f32>, CalibrateError> {
    let plan = denoiser.engine().plan();
    let kinds: Vec<_> = (0..plan.evaluations).map(|t| plan.program_at(t)).collect();
    let mut trajectories: Vec<Trajectory> = (0..fit)
        .step_by(denoiser.width())
        .map(|first| denoiser.begin(request, first))
        .collect::<Result<_, _>>()?;
    let len: usize = denoiser.sample_shape().iter().product();
    let mut rows = Vec::with_capacity(kinds.len() * fit * len);
    for kind in kinds {
        let now: Vec<f32> = trajectories.iter().flat_map(|t| t.x()).copied().collect();
        rows.extend_from_slice(&now[..fit * len]);
        for trajectory in &mut trajectories {
            denoiser.evaluate_as(kind, trajectory)?;
            progress.step()?;
            denoiser.advance(trajectory, denoiser.output());
        }
    }
    Ok(rows)
}

/// Transposes `[…, channels, plane]` to `[…, plane, channels]`.
fn channels_last(rows: &[f32], channels: usize, shape: &[usize]) -> Vec<f32> {
    let plane: usize = shape[1..].iter().product();
    let transposed = |row: &[f32]| -> Vec<f32> {
        (0..plane)
            .flat_map(|at| (0..channels).map(move |c| (c, at)))
            .map(|(c, at)| row[c * plane + at])
            .collect()
    };
    rows.chunks_exact(channels * plane).flat_map(transposed).collect()
}
