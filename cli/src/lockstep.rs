//! Runs two denoisers along the same trajectories: with the same noise and conditions, evaluation
//! by evaluation.

use super::args::Shard;
use super::prompt::Pictures;
use super::report::Failure;
use super::sampling::{SamplingArgs, Selected};
use super::source::{SampleSource, check_comparable};
use super::term::ProgressBar;
use cqc_runtime::engine::EngineOptions;
use cqc_runtime::{Denoiser, DenoiserOptions, Device, Request};
use std::ops::{ControlFlow, Range};

/// A reference and the candidate that is compared with it.
pub struct Lockstep {
    reference: Denoiser,
    candidate: Denoiser,
    /// The request to the reference.
    pub request: Request,
    candidate_request: Request,
    /// Indices of these samples among the samples of all shards.
    pub range: Range<usize>,
    /// Number of samples of all shards.
    pub total: usize,
    /// Number of elements of a sample.
    len: usize,
}

/// Consecutive samples of both.
#[derive(Default)]
pub struct Chunk {
    /// Samples of the reference, `[samples, ...]`.
    pub reference: Vec<f32>,
    /// Samples of the candidate, `[samples, ...]`.
    pub candidate: Vec<f32>,
    /// The reference's samples after each evaluation.
    pub trajectory: Vec<Vec<f32>>,
    /// `[samples, evaluations]`: the relative error |x − x′| / |x| after each evaluation. It is
    /// empty if the two make different evaluations.
    pub errors: Vec<f64>,
}

impl Lockstep {
    /// Opens both for the request of the command line.
    pub fn open(
        reference: &SampleSource,
        candidate: &SampleSource,
        args: &SamplingArgs,
        shard: Option<Shard>,
    ) -> Result<Lockstep, Failure> {
        check_comparable(candidate, reference)?;
        let none = Pictures::none();
        let Selected { request, range, total } = args.request(reference, shard, &none)?;
        let Selected { request: candidate_request, .. } = args.request(candidate, shard, &none)?;
        let (batch, threads) = (args.batch(request.samples), args.threads.count());
        let open = |source: &SampleSource, request: &Request| -> Result<Denoiser, Failure> {
            let engine = EngineOptions { batch, threads, ..Default::default() };
            let options =
                DenoiserOptions { device: Device::Cpu, ..source.options(request, engine) };
            Ok(source.artifact.denoiser(&options)?)
        };
        Ok(Lockstep {
            reference: open(reference, &request)?,
            candidate: open(candidate, &candidate_request)?,
            request,
            candidate_request,
            range,
            total,
            len: reference.sample_shape()?.iter().product(),
        })
    }

    /// Number of evaluations of the candidate.
    pub fn evaluations(&self) -> usize {
        self.candidate.sampler().evaluations().len()
    }

    /// Whether both evaluate their networks at the same time steps.
    pub fn in_step(&self) -> bool {
        self.candidate.sampler().evaluations() == self.reference.sampler().evaluations()
    }

    /// Number of samples that are computed together: the larger batch of the two.
    fn width(&self) -> usize {
        self.reference.width().max(self.candidate.width())
    }

    /// The samples of this request, in chunks.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (width, samples) = (self.width(), self.request.samples);
        (0..samples).step_by(width).map(move |first| first..samples.min(first + width))
    }

    /// A progress bar that [`Lockstep::run`] moves.
    pub fn progress(&self, what: &'static str, quiet: bool) -> ProgressBar {
        let count = |range: Range<usize>| {
            let of =
                |l: &Denoiser| range.len().div_ceil(l.width()) * l.sampler().evaluations().len();
            of(&self.reference) + of(&self.candidate)
        };
        ProgressBar::new(what, self.chunks().map(count).sum::<usize>() as u64, quiet)
    }

    /// Computes the samples `range` of the request with both.
    pub fn run(
        &mut self,
        range: &Range<usize>,
        progress: &mut ProgressBar,
    ) -> Result<Chunk, Failure> {
        let len = self.len;
        let in_step = self.in_step();
        let evaluations = if in_step { self.evaluations() } else { 0 };
        let mut chunk = Chunk {
            trajectory: vec![vec![0.0; range.len() * len]; evaluations],
            ..Chunk::default()
        };
        let request = self.request.part(range.clone());
        let mut unread = None;
        let samples = self.reference.sample(&request, &mut |moment| {
            progress.step();
            if in_step {
                let target = &mut chunk.trajectory[moment.evaluation][moment.samples.start * len..];
                let count = moment.samples.len() * len;
                match moment.x() {
                    Ok(x) => target[..count].copy_from_slice(&x[..count]),
                    Err(e) => {
                        unread = Some(e);
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        let samples = unread.take().map_or(samples, |e| Err(e.into()))?;
        chunk.reference = samples.to_f32_vec();
        let mut errors = vec![0.0; range.len() * evaluations];
        let request = self.candidate_request.part(range.clone());
        let samples = self.candidate.sample(&request, &mut |moment| {
            progress.step();
            if !in_step {
                return ControlFlow::Continue(());
            }
            let x = match moment.x() {
                Ok(x) => x,
                Err(e) => {
                    unread = Some(e);
                    return ControlFlow::Break(());
                }
            };
            for (i, x) in moment.samples.clone().zip(x.chunks_exact(len)) {
                let expected = &chunk.trajectory[moment.evaluation][i * len..][..len];
                errors[i * moment.evaluations + moment.evaluation] = relative_error(x, expected);
            }
            ControlFlow::Continue(())
        });
        let samples = unread.take().map_or(samples, |e| Err(e.into()))?;
        chunk.candidate = samples.to_f32_vec();
        chunk.errors = errors;
        Ok(chunk)
    }
}

/// |found − expected| / |expected| in the Euclidean norm; 0 if both are 0.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(expected);
    let error: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let size: f64 = expected.iter().map(|&b| square(b.into())).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}

/// Whether an error is beyond a limit; NaN always is.
pub fn crosses(error: f64, limit: f64) -> bool {
    error.is_nan() || error > limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_expected() {
        assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 0.0]), f64::INFINITY);
        assert_eq!(relative_error(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert_eq!(relative_error(&[0.0, 0.0], &[3.0, 4.0]), 1.0);
        assert!(crosses(relative_error(&[f32::NAN], &[1.0]), f64::INFINITY));
        assert!(!crosses(0.5, 0.5));
    }
}
