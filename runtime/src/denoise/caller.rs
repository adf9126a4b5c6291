//! Loops in which the caller has its own solver.

use super::{Beginning, Course, DenoiseError, Denoiser, Request, Trajectory, check_request};
use crate::noise::Noise;
use crate::sampler::State;

impl Denoiser {
    /// Begins samples `first ..` of a request at any evaluation, for a caller that moves the
    /// samples itself and only asks for predictions ([`Denoiser::predict`]). The first evaluation
    /// runs the full step, whatever the schedule says. The samples of the trajectory are zeros, and
    /// the noise and the image of the request are ignored.
    ///
    /// # Errors
    /// [`DenoiseError::Finished`] if the loop has no such evaluation, [`DenoiseError::NoNull`] if
    /// guidance has no null condition, and the errors of [`check_request`] and of conditions whose
    /// shape does not fit.
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
