//! What rounding each site does to the end of the trajectory.

use super::Places;
use crate::calibrate::{CalibrateError, Narrow, Progress};
use cqc_passes::cache::affine::rms;
use cqc_passes::quant::{QuantTables, Survey};
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Loop, Request};

/// Evaluations at which it is tried out.
const PROBES: usize = 6;

/// Per site, the square of how far the end of the trajectory moves when it alone is rounded: at a few of the full evaluations of one batch the error of the
/// output, weighted by what the sampler makes of it
/// ([`output_weights`](cqc_runtime::sampler::Sampler::output_weights)). An error that cached steps repeat adds up with itself, others do not: sites that only full
/// steps read count as many times as a full step is reused. Sites that `wanted` refuses have no effect. `denoiser` runs a plan that does not
/// round yet; `count` counts its evaluations.
pub(crate) fn sensitivity(
    denoiser: &mut Loop,
    survey: &Survey,
    tables: &QuantTables,
    request: &Request,
    wanted: &dyn Fn(usize) -> bool,
    mut count: Narrow,
    progress: &mut Progress,
) -> Result<Vec<f64>, CalibrateError> {
    let places = Places::new(denoiser.engine().plan(), survey);
    let weights = denoiser.sampler().output_weights();
    let full: Vec<usize> =
        (0..weights.len()).filter(|&t| denoiser.engine().plan().program_at(t) == ProgramKind::Full).collect();
    let some = PROBES.min(full.len());
    let probes: Vec<usize> = (0..some).map(|k| full[k * (full.len() - 1) / some.saturating_sub(1).max(1)]).collect();
    let mut effects = vec![0.0; survey.sites.len()];
    let mut trajectory = denoiser.begin(request, 0)?;
    for (t, weight) in weights.iter().enumerate() {
        if probes.contains(&t) {
            let mut trial = trajectory.clone();
            denoiser.evaluate_as(ProgramKind::Full, &mut trial)?;
            let answer = denoiser.output().to_vec();
            let read = |site: &usize| wanted(*site) && places.is_read(*site, ProgramKind::Full);
            for site in (0..effects.len()).filter(read) {
                places.set_site(denoiser, tables, site, t)?;
                let mut trial = trajectory.clone();
                denoiser.evaluate_as(ProgramKind::Full, &mut trial)?;
                count.step(progress)?;
                effects[site] += (weight * rms(denoiser.output(), &answer)).powi(2);
                places.clear_site(denoiser, tables, site, t)?;
            }
        }
        if probes.last() == Some(&t) {
            break;
        }
        denoiser.evaluate_as(denoiser.engine().plan().program_at(t), &mut trajectory)?;
        count.step(progress)?;
        denoiser.advance(&mut trajectory, denoiser.output());
    }
    let reuse = weights.len() as f64 / full.len().max(1) as f64;
    let repeats = |site: usize| !survey.layers.iter().any(|layer| layer.is_live && layer.sites.contains(&site));
    effects.iter_mut().enumerate().filter(|(site, _)| repeats(*site)).for_each(|(_, effect)| *effect *= reuse);
    Ok(effects)
}
