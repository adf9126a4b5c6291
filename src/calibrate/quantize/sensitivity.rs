//! What rounding each site does to the end of the trajectory.

use super::Places;
use crate::calibrate::{CalibrateError, Progress};
use cqc_passes::cache::affine::rms;
use cqc_passes::quant::{QuantTables, Survey};
use cqc_runtime::denoise::{Loop, Request};

/// Evaluations at which it is tried out.
const PROBES: usize = 6;

/// Per site, the square of how far the end of the trajectory moves when it alone is rounded: at a few evaluations of one batch the error of the
/// network's output, weighted by what the sampler makes of it
/// ([`output_weights`](cqc_runtime::sampler::Sampler::output_weights)). `denoiser` runs a plan that does not round yet.
pub(crate) fn sensitivity(
    denoiser: &mut Loop,
    survey: &Survey,
    tables: &QuantTables,
    request: &Request,
    progress: &mut Progress,
) -> Result<Vec<f64>, CalibrateError> {
    let places = Places::new(denoiser.engine().plan(), survey);
    let weights = denoiser.sampler().output_weights();
    let evaluations = weights.len();
    let count = PROBES.min(evaluations);
    let probes: Vec<usize> = (0..count).map(|k| k * (evaluations - 1) / count.saturating_sub(1).max(1)).collect();
    let mut effects = vec![0.0; survey.sites.len()];
    let mut trajectory = denoiser.begin(request, 0)?;
    for (t, weight) in weights.iter().enumerate() {
        let kind = denoiser.engine().plan().program_at(t);
        if probes.contains(&t) {
            let mut trial = trajectory.clone();
            denoiser.evaluate_as(kind, &mut trial)?;
            let answer = denoiser.output().to_vec();
            for (site, effect) in effects.iter_mut().enumerate().filter(|(site, _)| places.is_read(*site, kind)) {
                places.set_site(denoiser, tables, site, t)?;
                let mut trial = trajectory.clone();
                denoiser.evaluate_as(kind, &mut trial)?;
                progress.step()?;
                *effect += (weight * rms(denoiser.output(), &answer)).powi(2);
                places.clear_site(denoiser, tables, site, t)?;
            }
        }
        denoiser.evaluate_as(kind, &mut trajectory)?;
        progress.step()?;
        denoiser.advance(&mut trajectory, denoiser.output());
    }
    Ok(effects)
}
