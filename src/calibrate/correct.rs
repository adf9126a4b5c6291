//! Tables that correct the cache.

use super::observe::{Observed, Snapshot, channels, restore, snapshot};
use super::{CalibrateError, Progress};
use cqc_passes::cache::affine::{Affine, Moments};
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Loop, Request, Trajectory};
use std::fmt;

/// How tables are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Both tensors from the ordinary trajectory (CacheQuant section 7.3).
    TeacherForced,
    /// What the accelerated trajectory has stored against the tensor of the ordinary one, evaluation by evaluation (section 13.3).
    Sequential,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fit::TeacherForced => "teacher-forced",
            Fit::Sequential => "sequential",
        })
    }
}

/// Draws factors towards 1 (section 13.4).
const RIDGE: f64 = 1e-3;

/// Per slot and evaluation; the identity at full ones.
pub type Tables = Vec<Vec<Affine>>;

/// Whether and from where evaluation `t` reads the cache.
pub fn anchor(full: &[usize], t: usize) -> Option<usize> {
    match full.binary_search(&t) {
        Ok(_) => None,
        Err(after) => Some(full[after - 1]),
    }
}

/// Tables from the moments of the ordinary trajectory.
pub fn teacher_forced(observed: &Observed, channels: &[usize], full: &[usize], evaluations: usize) -> Tables {
    let of_slot = |(moments, &channels): (&cqc_passes::cache::affine::BandMoments, &usize)| {
        let at = |t| anchor(full, t).map_or(Affine::identity(channels), |i| moments.moments(i, t).fit(RIDGE));
        (0..evaluations).map(at).collect()
    };
    observed.moments.iter().zip(channels).map(of_slot).collect()
}

/// Writes the corrected anchor.
pub fn apply(trajectory: &mut Trajectory, stored: &Snapshot, tables: &Tables, t: usize) {
    let corrected: Snapshot = stored
        .iter()
        .zip(tables)
        .map(|(x, table)| {
            let mut y = vec![0.0; x.len()];
            table[t].apply(x, &mut y);
            y
        })
        .collect();
    restore(trajectory, &corrected);
}

/// Runs the ordinary and the accelerated loop side by side and fits each evaluation when all before it are corrected.
pub fn sequential(
    denoiser: &mut Loop,
    request: &Request,
    fit: usize,
    full: &[usize],
    progress: &mut Progress,
) -> Result<Tables, CalibrateError> {
    let evaluations = denoiser.sampler().evaluations().len();
    let channels = channels(denoiser);
    let mut tables: Tables = channels.iter().map(|_| Vec::with_capacity(evaluations)).collect();
    let mut pairs: Vec<(Trajectory, Trajectory, Snapshot)> = (0..fit)
        .step_by(denoiser.width())
        .map(|first| Ok((denoiser.begin(request, first)?, denoiser.begin(request, first)?, vec![])))
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
                *stored = snapshot(accelerated);
                denoiser.advance(accelerated, denoiser.output());
            } else {
                let truth = snapshot(ordinary);
                moments.iter_mut().zip(stored.iter().zip(&truth)).for_each(|(m, (x, y))| m.add(x, y));
            }
        }
        for (table, moments) in tables.iter_mut().zip(&moments) {
            table.push(moments.fit(RIDGE));
        }
        for (_, accelerated, stored) in pairs.iter_mut().filter(|_| !is_full) {
            apply(accelerated, stored, &tables, t);
            denoiser.evaluate_as(ProgramKind::Cached, accelerated)?;
            progress.step()?;
            denoiser.advance(accelerated, denoiser.output());
        }
    }
    Ok(tables)
}
