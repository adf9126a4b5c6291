//! Loops whose solver is the caller's.

use super::{Beginning, Course, DenoiseError, Denoiser, Request, Trajectory, check_request};
use crate::noise::Noise;
use crate::sampler::State;

impl Denoiser {
    /// Begins samples `first ..` of a request with any evaluation, for a caller who moves the samples
    /// and asks for predictions ([`Denoiser::predict`]). The first evaluation runs in full whatever
    /// the schedule says. The trajectory's own samples are zeros, and the request's noise and image
    /// are not looked at.
    ///
    /// # Errors
    /// Conditions that do not fit, [`DenoiseError::NoNull`], [`DenoiseError::Finished`] where there is
    /// no such evaluation.
    pub fn begin_at(
        &mut self,
        request: &Request,
        first: usize,
        evaluation: usize,
    ) -> Result<Trajectory, DenoiseError> {
        let evaluations = self.evaluations();
        if evaluation >= evaluations {
            return Err(DenoiseError::Finished { evaluations });
        }
        let course = Course { evaluations: evaluation..evaluations, beginning: Beginning::Given };
        let guidance = self.guidance(request, &course)?;
        check_request(self.engine.plan(), request)?;
        if self.guided && request.unconditional.is_empty() && self.defaults.null.is_empty() {
            return Err(DenoiseError::NoNull);
        }
        let requests = self.begin_requests(request, first, None)?;
        self.prepare_outage(&guidance, &course.evaluations)?;
        let len: usize = self.shape.iter().product();
        Ok(Trajectory {
            requests,
            x: vec![0.0; self.width * len],
            state: State::new(&self.sampler, self.width, len),
            noise: Noise::new(request.seed, request.first, self.width),
            steps: self.steps_of(request, &self.indices(request.samples, first))?,
            guidance,
            next: evaluation,
            end: evaluations,
            full_until: self.full_until(evaluation)?,
            sampler: None,
            repaint: None,
            width: self.width,
        })
    }
}
