//! Finds the quantization ranges of layer inputs.

use super::TunableLoop;
use crate::calibrate::{CalibrateError, EvaluationCounter};
use cqc_passes::calib::groups;
use cqc_passes::calib::histogram::Histogram;
use cqc_passes::calib::range::{ClippingRange, search};
use cqc_passes::quant::{QuantTables, Survey};
use cqc_runtime::denoise::{Request, Trajectory};
use std::fmt;
use std::str::FromStr;

/// Bits of activations.
const BITS: u32 = 8;

/// About how many values of a site are counted per evaluation. Of larger sites, every k-th row is
/// counted. The extremes are always exact.
const COUNTED: usize = 1 << 20;

/// The evaluations that share a quantization range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Every evaluation has its own range. The text form is `none`.
    PerEvaluation,
    /// This number of groups of consecutive evaluations, whose borders are placed where they cost
    /// least (the time groups of TQ-DiT). The text form is the number.
    Groups(usize),
    /// One range for all evaluations. The text form is `all`.
    Pooled,
}

impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grouping::PerEvaluation => f.write_str("none"),
            Grouping::Groups(n) => write!(f, "{n}"),
            Grouping::Pooled => f.write_str("all"),
        }
    }
}

impl FromStr for Grouping {
    type Err = String;

    fn from_str(text: &str) -> Result<Grouping, String> {
        match text {
            "none" => Ok(Grouping::PerEvaluation),
            "all" => Ok(Grouping::Pooled),
            _ => match text.parse() {
                Ok(n) if n > 0 => Ok(Grouping::Groups(n)),
                _ => Err("expected none, all, or a number of groups".into()),
            },
        }
    }
}

/// Runs the samples `0 .. fit` through the loop of a plan whose sites do not round yet, all of them
/// side by side, and finds the ranges. `select` says which sample is looked at in which evaluation.
///
/// Only the histograms of one evaluation are in memory, whatever the number of samples and
/// evaluations.
pub(crate) fn ranges(
    study: &mut TunableLoop,
    survey: &Survey,
    request: &Request,
    fit: usize,
    grouping: Grouping,
    select: &dyn Fn(usize, usize) -> bool,
    progress: &mut EvaluationCounter,
) -> Result<QuantTables, CalibrateError> {
    let TunableLoop { denoiser, places } = study;
    let (evaluations, images) = (denoiser.sampler().evaluations().len(), denoiser.engine().batch());
    let mut tables = QuantTables::float(survey, evaluations);
    let firsts: Vec<usize> = (0..fit).step_by(denoiser.width()).collect();
    let mut trajectories: Vec<Trajectory> =
        firsts.iter().map(|&first| denoiser.begin(request, first)).collect::<Result<_, _>>()?;
    let empty = || -> Vec<Vec<Histogram>> {
        survey.sites.iter().map(|s| vec![Histogram::default(); s.segments.len()]).collect()
    };
    let mut seen = empty();
    let mut found: Vec<Vec<Vec<Option<ClippingRange>>>> =
        survey.sites.iter().map(|s| vec![vec![None; evaluations]; s.segments.len()]).collect();
    for t in 0..evaluations {
        let kind = denoiser.engine().plan().program_at(t);
        let width = denoiser.width();
        for (&first, trajectory) in firsts.iter().zip(&mut trajectories) {
            let wanted: Vec<bool> =
                (0..width).map(|i| first + i < fit && select(first + i, t)).collect();
            let mut watch = |step: &cqc_runtime::engine::Watched| {
                if let (Some(site), false) = (places.site_of(step.kind, step.step), step.done) {
                    let x = step.input(0).to_f32_vec();
                    let every = (x.len() * firsts.len()).div_ceil(COUNTED);
                    add(
                        &mut seen[site],
                        &survey.sites[site].segments,
                        &x,
                        [images, every],
                        &wanted,
                    );
                }
            };
            denoiser.evaluate_watched(kind, trajectory, Some(&mut watch))?;
            progress.step()?;
            denoiser.advance(trajectory, denoiser.output());
        }
        if let Some(site) =
            (0..seen.len()).find(|&site| seen[site].iter().any(|h| h.first_not_finite().is_some()))
        {
            return Err(CalibrateError::NotFinite {
                value: survey.sites[site].name.clone(),
                evaluation: t,
            });
        }
        if grouping == Grouping::Pooled && t + 1 < evaluations {
            continue;
        }
        let rows = if grouping == Grouping::Pooled { 0..evaluations } else { t..t + 1 };
        for (found, histograms) in found.iter_mut().zip(std::mem::replace(&mut seen, empty())) {
            for (found, histogram) in
                found.iter_mut().zip(&histograms).filter(|(_, h)| !h.is_empty())
            {
                let range = search(histogram, BITS);
                found[rows.clone()].fill(Some(range));
            }
        }
    }
    if let Grouping::Groups(groups) = grouping {
        found.iter_mut().for_each(|site| share(site, groups));
    }
    for (table, found) in tables.sites.iter_mut().zip(&found) {
        for (segment, rows) in found.iter().enumerate() {
            for (t, range) in rows.iter().enumerate() {
                let (scale, zero) = range.map_or((0.0, 0), |range| range.parameters(BITS));
                table.scale[t * found.len() + segment] = storable(scale);
                table.zero_point[t * found.len() + segment] = f32::from(zero);
            }
        }
    }
    Ok(tables)
}

/// The nearest scale that f16 can hold, which halves the size of tables; it differs by a 2000th at
/// most. Scales outside the normal numbers of f16 are kept.
fn storable(scale: f32) -> f32 {
    let near = half::f16::from_f32(scale);
    if near.is_normal() { near.to_f32() } else { scale }
}

/// Lets consecutive evaluations share ranges. Evaluations that do not read the site have none.
fn share(site: &mut [Vec<Option<ClippingRange>>], groups: usize) {
    let read: Vec<usize> = (0..site[0].len()).filter(|&t| site[0][t].is_some()).collect();
    let ranges: Vec<Vec<ClippingRange>> = site
        .iter()
        .map(|rows| read.iter().map(|&t| rows[t].expect("read by all segments alike")).collect())
        .collect();
    let firsts = groups::optimal(&ranges, groups);
    let group = groups::group_of(&firsts, read.len());
    for (rows, ranges) in site.iter_mut().zip(&ranges) {
        let shared = groups::rows(ranges, &firsts);
        read.iter().zip(&group).for_each(|(&t, &group)| rows[t] = Some(shared[group]));
    }
}

/// Adds a tensor whose first axis is the batch of `images`, the halves of guidance one after the
/// other, and whose last axis has the segments. A tensor that is the same for all samples is added
/// as it is. Every `every`-th of its rows (positions) is counted.
fn add(
    histograms: &mut [Histogram],
    segments: &[usize],
    x: &[f32],
    [images, every]: [usize; 2],
    wanted: &[bool],
) {
    let columns: usize = segments.iter().sum();
    let whole = wanted.iter().all(|w| *w) || !(x.len() / columns).is_multiple_of(images);
    if segments.len() == 1 && whole {
        return histograms[0].add_some(x, columns, every);
    }
    let rows = x.chunks_exact(if whole { x.len() } else { x.len() / images }).enumerate();
    let chosen: Vec<&[f32]> =
        rows.filter(|(i, _)| whole || wanted[i % wanted.len()]).map(|(_, rows)| rows).collect();
    let mut start = 0;
    let mut part = Vec::new();
    for (histogram, &n) in histograms.iter_mut().zip(segments) {
        part.clear();
        let rows = chosen.iter().flat_map(|rows| rows.chunks_exact(columns));
        rows.for_each(|row| part.extend_from_slice(&row[start..start + n]));
        histogram.add_some(&part, n, every);
        start += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Smallest and largest value seen in each segment of two images of two positions and three
    /// columns, or of two halves of them.
    fn seen([images, every]: [usize; 2], wanted: &[bool]) -> Vec<Option<(f32, f32)>> {
        let x: Vec<f32> = (0..images * 6).map(|i| i as f32).collect();
        let mut histograms = vec![Histogram::default(); 2];
        add(&mut histograms, &[1, 2], &x, [images, every], wanted);
        histograms.iter().map(Histogram::extremes).collect()
    }

    #[test]
    fn only_wanted_samples_are_looked_at_in_both_halves() {
        assert_eq!(seen([2, 1], &[true, true]), [Some((0.0, 9.0)), Some((1.0, 11.0))]);
        assert_eq!(seen([2, 1], &[false, true]), [Some((6.0, 9.0)), Some((7.0, 11.0))]);
        assert_eq!(seen([4, 1], &[true, false]), [Some((0.0, 15.0)), Some((1.0, 17.0))]);
        assert_eq!(seen([4, 1], &[false, false]), [None, None]);
        assert_eq!(
            seen([2, 2], &[true, true]),
            [Some((0.0, 9.0)), Some((1.0, 11.0))],
            "extremes of rows that are not counted"
        );
    }
}
