//! Measures the accelerated loop against the ordinary one on held-out samples.

use super::correct::{CacheTables, Stored, anchor};
use super::observe::snapshot;
use super::{CalibrateError, EvaluationCounter};
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request};

/// The held-out samples and the ends of the ordinary loop for them.
#[derive(Clone, Debug)]
pub struct Holdout {
    /// Index of the first sample of each batch.
    firsts: Vec<usize>,
    /// Index after the last sample.
    end: usize,
    /// The ends, batch by batch.
    finals: Vec<Vec<f32>>,
    /// Largest minus smallest element of all ends, which is the peak of the PSNR.
    range: f64,
}

impl Holdout {
    /// Runs the ordinary loop on the samples `from .. request.samples`.
    pub(crate) fn new(
        denoiser: &mut Denoiser,
        request: &Request,
        from: usize,
        progress: &mut EvaluationCounter,
    ) -> Result<Holdout, CalibrateError> {
        let firsts: Vec<usize> = (from..request.samples).step_by(denoiser.width()).collect();
        let evaluations = denoiser.sampler().evaluations().len();
        let mut finals = Vec::new();
        for &first in &firsts {
            let mut trajectory = denoiser.begin(request, first)?;
            for _ in 0..evaluations {
                denoiser.evaluate_as(ProgramKind::Full, &mut trajectory)?;
                progress.step()?;
                denoiser.advance(&mut trajectory, denoiser.output());
            }
            finals.push(trajectory.x().to_vec());
        }
        let values = || finals.iter().flatten().copied();
        let (low, high) =
            (values().fold(f32::INFINITY, f32::min), values().fold(f32::NEG_INFINITY, f32::max));
        Ok(Holdout { firsts, end: request.samples, finals, range: f64::from(high - low) })
    }

    /// Index of the first held-out sample.
    pub(crate) fn from(&self) -> usize {
        self.firsts.first().map_or(self.end, |&first| first)
    }

    /// Mean PSNR, as in [`Holdout::psnr`], of another loop with its own programs and its own
    /// schedule.
    pub(crate) fn psnr_of(
        &self,
        denoiser: &mut Denoiser,
        request: &Request,
        progress: &mut EvaluationCounter,
    ) -> Result<f64, CalibrateError> {
        let (mut sum, mut count) = (0.0, 0);
        for (&first, expected) in self.firsts.iter().zip(&self.finals) {
            let mut trajectory = denoiser.begin(request, first)?;
            for _ in 0..denoiser.evaluations() {
                denoiser.step(&mut trajectory)?;
                progress.step()?;
            }
            self.compare(trajectory.x(), expected, first, denoiser.width(), &mut sum, &mut count);
        }
        Ok(sum / f64::from(count))
    }

    /// Adds the PSNR of every sample of a batch, and their number.
    fn compare(
        &self,
        found: &[f32],
        expected: &[f32],
        first: usize,
        width: usize,
        sum: &mut f64,
        count: &mut u32,
    ) {
        let len = expected.len() / width;
        let pairs = found.chunks_exact(len).zip(expected.chunks_exact(len));
        for (found, expected) in pairs.take(self.end - first) {
            let square = |(a, b): (&f32, &f32)| f64::from(a - b) * f64::from(a - b);
            let mse = found.iter().zip(expected).map(square).sum::<f64>() / len as f64;
            *sum += (10.0 * (self.range * self.range / mse).log10()).min(100.0);
            *count += 1;
        }
    }

    /// Mean over samples of the peak signal-to-noise ratio of the accelerated loop, in dB. The peak
    /// is the range of the ordinary loop's ends. A sample counts as 100 dB at most.
    pub(crate) fn psnr(
        &self,
        denoiser: &mut Denoiser,
        request: &Request,
        full: &[usize],
        tables: Option<&CacheTables>,
        progress: &mut EvaluationCounter,
    ) -> Result<f64, CalibrateError> {
        let evaluations = denoiser.sampler().evaluations().len();
        let (mut sum, mut count) = (0.0, 0);
        for (&first, expected) in self.firsts.iter().zip(&self.finals) {
            let mut trajectory = denoiser.begin(request, first)?;
            let mut stored = Stored::default();
            for t in 0..evaluations {
                if anchor(full, t).is_none() {
                    denoiser.evaluate_as(ProgramKind::Full, &mut trajectory)?;
                    if tables.is_some() {
                        stored.push(snapshot(&trajectory));
                    }
                } else {
                    if let Some(tables) = tables {
                        stored.restore(&mut trajectory, tables, t);
                    }
                    denoiser.evaluate_as(ProgramKind::Cached, &mut trajectory)?;
                }
                progress.step()?;
                denoiser.advance(&mut trajectory, denoiser.output());
            }
            self.compare(trajectory.x(), expected, first, denoiser.width(), &mut sum, &mut count);
        }
        Ok(sum / f64::from(count))
    }
}
