//! Runs one ordinary trajectory per calibration sample and observes what reuse of the cache would
//! cost.

use super::probe::{PROBED_SAMPLES, probe};
use super::{CalibrateError, EvaluationCounter, PartialBatches};
use cqc_passes::cache::affine::{BandMoments, l1, rms};
use cqc_passes::cache::band::Band;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request, Trajectory};
use std::collections::VecDeque;

/// The observations.
pub struct Observed {
    /// L1 distance between the tensors cached at two evaluations, summed over samples. With several
    /// tensors, each is weighted by one over its mean norm. CacheQuant sums the L1 distances of one
    /// tensor.
    pub features: Band,
    /// The cost at the end of the trajectory if evaluation `t` is computed from the cache of `i`.
    /// It is the root mean square error of the output, times the effect of an error of 1 on the end
    /// by the sampler's arithmetic
    /// ([`output_weights`](cqc_runtime::sampler::Sampler::output_weights)), times the observed
    /// factor by which later evaluations change that effect.
    pub output: Band,
    /// Moments of each slot for the affine fit.
    pub moments: Vec<BandMoments>,
}

/// The cached tensors after an evaluation: all rows of each slot, for both halves of guidance.
pub type Snapshot = Vec<Vec<f32>>;

/// The slots of a trajectory. If guidance is split, the halves follow each other.
pub fn snapshot(trajectory: &Trajectory) -> Snapshot {
    let slots = trajectory.requests.first().map_or(0, |r| r.slots());
    let halves =
        |slot| trajectory.requests.iter().map(|r| r.slot(slot)).collect::<Vec<&[f32]>>().concat();
    (0..slots).map(halves).collect()
}

/// Writes the slots of a trajectory.
pub fn restore(trajectory: &mut Trajectory, snapshot: &[Vec<f32>]) {
    let halves = trajectory.requests.len();
    for (slot, values) in snapshot.iter().enumerate() {
        let part = values.len() / halves;
        for (request, values) in trajectory.requests.iter_mut().zip(values.chunks_exact(part)) {
            request.set_slot(slot, values);
        }
    }
}

/// Number of channels of each slot.
pub fn channels(denoiser: &Denoiser) -> Vec<usize> {
    let plan = denoiser.engine().plan();
    let slots = plan.cache.iter().flat_map(|cache| &cache.slots);
    let last = |value: usize| plan.full.values[value].ty.shape.last().and_then(|d| d.as_const());
    slots.map(|slot| last(slot.value).map_or(1, |c| c as usize)).collect()
}

/// Runs the samples `0 .. fit` of the request. The cost at the output is observed on the first
/// `output_samples` of them, and only if a schedule needs it.
pub fn observe(
    denoiser: &mut Denoiser,
    request: &Request,
    fit: usize,
    width: usize,
    output_samples: usize,
    progress: &mut EvaluationCounter,
) -> Result<Observed, CalibrateError> {
    let evaluations = denoiser.sampler().evaluations().len();
    let weights = if output_samples > 0 {
        let mut small = denoiser.of_width(PROBED_SAMPLES.min(denoiser.width()))?;
        let count = PartialBatches::new(small.width(), denoiser.width());
        probe(&mut small, request, width.div_ceil(4), count, progress)?
    } else {
        denoiser.sampler().output_weights()
    };
    let channels = channels(denoiser);
    let mut features = vec![Band::new(evaluations, width); channels.len()];
    let mut norms = vec![0.0; channels.len()];
    let mut output = Band::new(evaluations, width);
    let mut moments: Vec<BandMoments> =
        channels.iter().map(|&c| BandMoments::new(evaluations, width, c)).collect();
    for first in (0..fit).step_by(denoiser.width()) {
        let mut trajectory = denoiser.begin(request, first)?;
        // the last `width - 1` evaluations and the tensors that they cached
        let mut ring: VecDeque<(usize, Snapshot)> = VecDeque::with_capacity(width);
        for t in 0..evaluations {
            denoiser.evaluate_as(ProgramKind::Full, &mut trajectory)?;
            progress.step()?;
            let answer = denoiser.output().to_vec();
            let now = snapshot(&trajectory);
            for (slot, x) in now.iter().enumerate() {
                moments[slot].add(t, x);
                norms[slot] += x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                for (i, stored) in &ring {
                    features[slot].add(*i, t, l1(&stored[slot], x));
                    moments[slot].add_pair(*i, t, &stored[slot], x);
                }
            }
            if first < output_samples {
                for (i, stored) in &ring {
                    restore(&mut trajectory, stored);
                    denoiser.evaluate_as(ProgramKind::Cached, &mut trajectory)?;
                    progress.step()?;
                    output.add(*i, t, rms(denoiser.output(), &answer));
                }
            }
            denoiser.advance(&mut trajectory, &answer);
            ring.push_back((t, now));
            if ring.len() >= width {
                ring.pop_front();
            }
        }
    }
    Ok(Observed {
        features: weighted(features, &norms),
        output: scaled(&output, &weights),
        moments,
    })
}

fn scaled(band: &Band, weights: &[f64]) -> Band {
    let mut out = Band::new(band.evaluations(), band.width());
    for i in 0..band.evaluations() {
        (i + 1..(i + band.width()).min(band.evaluations()))
            .for_each(|t| out.add(i, t, band.get(i, t) * weights[t]));
    }
    out
}

impl Observed {
    /// The squared distance between the tensors cached at two evaluations that remains after an
    /// affine map per channel. With several tensors, each contributes as a share of its own sum of
    /// squares.
    pub fn residuals(&self) -> Band {
        let (evaluations, width) = (self.features.evaluations(), self.features.width());
        let bands: Vec<Band> = self
            .moments
            .iter()
            .map(|moments| {
                let mut band = Band::new(evaluations, width);
                for i in 0..evaluations {
                    (i + 1..(i + width).min(evaluations))
                        .for_each(|t| band.add(i, t, moments.residual(i, t)));
                }
                band
            })
            .collect();
        let norms: Vec<f64> = self.moments.iter().map(|m| m.squares()).collect();
        weighted(bands, &norms)
    }
}

/// The weighted sum of several bands; a single band stays as it is.
fn weighted(mut bands: Vec<Band>, norms: &[f64]) -> Band {
    if bands.len() == 1 {
        return bands.remove(0);
    }
    let first = &bands[0];
    let (evaluations, width) = (first.evaluations(), first.width());
    let mut sum = Band::new(evaluations, width);
    for (band, norm) in bands.iter().zip(norms) {
        for i in 0..evaluations {
            (i + 1..(i + width).min(evaluations))
                .for_each(|t| sum.add(i, t, band.get(i, t) / norm.max(f64::MIN_POSITIVE)));
        }
    }
    sum
}
