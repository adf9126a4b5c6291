//! Fits the tables that correct the cache.

use super::observe::{Observed, Snapshot, channels, restore, snapshot};
use super::{CalibrateError, EvaluationCounter};
use cqc_passes::cache::affine::{Affine, Moments};
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request, Trajectory};
use std::fmt;

/// The data on which the correction is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum CorrectionFit {
    /// Both tensors come from the ordinary trajectory, as published (CacheQuant, arXiv:2503.01323).
    TeacherForced,
    /// The tensor that the accelerated trajectory has stored is fitted to that of the ordinary
    /// trajectory, evaluation by evaluation, each with all earlier corrections in place.
    Sequential,
    /// As sequential, but from the last two stored tensors: along the line through both, as far as
    /// that helps.
    Forecast,
}

impl CorrectionFit {
    /// Whether it reads the tensor that was stored before the last one.
    pub fn uses_previous(self) -> bool {
        self == CorrectionFit::Forecast
    }
}

impl fmt::Display for CorrectionFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CorrectionFit::TeacherForced => "teacher-forced",
            CorrectionFit::Sequential => "sequential",
            CorrectionFit::Forecast => "forecast",
        })
    }
}

/// The ridge that draws factors towards 1. The paper fits without one.
const RIDGE: f64 = 1e-3;

pub use crate::compile::CacheTables;

/// The full evaluation whose cache evaluation `t` reads; `None` if `t` is full itself.
pub fn anchor(full: &[usize], t: usize) -> Option<usize> {
    match full.binary_search(&t) {
        Ok(_) => None,
        Err(after) => Some(full[after - 1]),
    }
}

/// Fits tables from the moments of the ordinary trajectory.
pub fn teacher_forced(
    observed: &Observed,
    channels: &[usize],
    full: &[usize],
    evaluations: usize,
) -> CacheTables {
    let of_slot = |(moments, &channels): (&cqc_passes::cache::affine::BandMoments, &usize)| {
        let at = |t| {
            anchor(full, t).map_or(Affine::identity(channels), |i| moments.moments(i, t).fit(RIDGE))
        };
        (0..evaluations).map(at).collect()
    };
    observed.moments.iter().zip(channels).map(of_slot).collect()
}

/// The tensors that the last two full evaluations have stored.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    last: Snapshot,
    /// The tensors of the full evaluation before the last one; those of the first one while there
    /// is no other.
    before: Snapshot,
}

impl Stored {
    /// Stores the tensors of a full evaluation that has run.
    pub fn push(&mut self, now: Snapshot) {
        self.before = std::mem::replace(&mut self.last, now);
        if self.before.is_empty() {
            self.before = self.last.clone();
        }
    }

    /// Writes the corrected cache of evaluation `t`.
    pub fn restore(&self, trajectory: &mut Trajectory, tables: &CacheTables, t: usize) {
        let slots = self.last.iter().zip(&self.before).zip(tables);
        let corrected: Snapshot =
            slots.map(|((last, before), table)| table[t].apply(last, before)).collect();
        restore(trajectory, &corrected);
    }
}

/// Runs the ordinary and the accelerated loop side by side. Each evaluation is fitted when all
/// evaluations before it are corrected.
pub fn sequential(
    denoiser: &mut Denoiser,
    request: &Request,
    fit: usize,
    full: &[usize],
    forecast: bool,
    progress: &mut EvaluationCounter,
) -> Result<CacheTables, CalibrateError> {
    let evaluations = denoiser.sampler().evaluations().len();
    let channels = channels(denoiser);
    let mut tables: CacheTables =
        channels.iter().map(|_| Vec::with_capacity(evaluations)).collect();
    let mut pairs: Vec<(Trajectory, Trajectory, Stored)> = (0..fit)
        .step_by(denoiser.width())
        .map(|first| {
            Ok((
                denoiser.begin(request, first)?,
                denoiser.begin(request, first)?,
                Stored::default(),
            ))
        })
        .collect::<Result<_, CalibrateError>>()?;
    for t in 0..evaluations {
        let is_full = anchor(full, t).is_none();
        let mut moments: Vec<Moments> = channels.iter().map(|&c| Moments::new(c)).collect();
        for (ordinary, accelerated, stored) in &mut pairs {
            denoiser.evaluate_as(ProgramKind::Full, ordinary)?;
            progress.step()?;
            denoiser.advance(ordinary, denoiser.output());
            if is_full {
                denoiser.evaluate_as(ProgramKind::Full, accelerated)?;
                progress.step()?;
                stored.push(snapshot(accelerated));
                denoiser.advance(accelerated, denoiser.output());
                continue;
            }
            let truth = snapshot(ordinary);
            for (slot, moments) in moments.iter_mut().enumerate() {
                let (last, truth) = (&stored.last[slot], &truth[slot]);
                match forecast {
                    true => moments.add_with_previous(last, &stored.before[slot], truth),
                    false => moments.add(last, truth),
                }
            }
        }
        for ((table, moments), &channels) in tables.iter_mut().zip(&moments).zip(&channels) {
            let mut map = moments.fit(RIDGE);
            if forecast && map.previous.is_empty() {
                map.previous = vec![0.0; channels];
            }
            table.push(map);
        }
        for (_, accelerated, stored) in pairs.iter_mut().filter(|_| !is_full) {
            stored.restore(accelerated, &tables, t);
            denoiser.evaluate_as(ProgramKind::Cached, accelerated)?;
            progress.step()?;
            denoiser.advance(accelerated, denoiser.output());
        }
    }
    Ok(tables)
}
