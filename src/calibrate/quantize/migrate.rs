//! Chooses the channels of layer inputs that are divided by powers of two, on the float loop. See
//! [`cqc_passes::quant::migrate`].

use super::{PROBES, TunableLoop};
use crate::calibrate::{CalibrateError, EvaluationCounter, PartialBatches};
use cqc_passes::quant::migrate::{Migrate, Seen, choose};
use cqc_passes::quant::{Layer, Survey};
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::Request;
use cqc_runtime::engine::Watched;

/// Number of samples that are looked at, and number that is held out.
const LOOKED_AT: usize = 2;

/// Number of rows of a site that are kept per full evaluation that is looked at. Full evaluations
/// run every layer.
const ROWS: usize = 64;

/// Per site of `survey`, the exponents of the powers of two by which its channels are divided, if
/// any are. The plan of `study` does not round yet. The samples from `fit` on are held out.
pub(super) fn migrations(
    study: &TunableLoop,
    survey: &Survey,
    request: &Request,
    fit: usize,
    how: Migrate,
    progress: &mut EvaluationCounter,
) -> Result<Vec<Option<Vec<i8>>>, CalibrateError> {
    let has_weights =
        |site: usize| survey.layers.iter().filter(|l| l.sites.contains(&site)).all(has_weights);
    let wanted: Vec<bool> = (0..survey.sites.len()).map(has_weights).collect();
    if how == Migrate::None || !wanted.contains(&true) {
        return Ok(vec![None; survey.sites.len()]);
    }
    let mut small = study.of_width(LOOKED_AT.min(study.denoiser.width()))?;
    let TunableLoop { denoiser, places } = &mut small;
    let evaluations = denoiser.sampler().evaluations().len();
    let mut count = PartialBatches::new(denoiser.width(), study.denoiser.width());
    progress.all += (2 * evaluations * denoiser.width() / study.denoiser.width()) as u64;
    let mut seen = vec![Seen::default(); survey.sites.len()];
    // without held-out samples, only the error of the fitted rows is known
    let starts = [(0, false), (if fit < request.samples { fit } else { 0 }, true)];
    for (first, held_out) in starts {
        let mut trajectory = denoiser.begin(request, first)?;
        let full: Vec<usize> = (0..evaluations)
            .filter(|&t| denoiser.engine().plan().program_at(t) == ProgramKind::Full)
            .collect();
        let some = PROBES.min(full.len());
        let probed: Vec<usize> =
            (0..some).map(|k| full[k * (full.len() - 1) / (some - 1).max(1)]).collect();
        for t in 0..evaluations {
            let kind = denoiser.engine().plan().program_at(t);
            let keep = probed.contains(&t).then_some(ROWS);
            let mut watch = |step: &Watched| {
                let site = places.site_of(step.kind, step.step).filter(|&site| wanted[site]);
                if let (Some(site), false) = (site, step.done) {
                    let channels = survey.sites[site].segments.iter().sum();
                    seen[site].add(&step.input(0).to_f32_vec(), channels, keep, held_out);
                }
            };
            denoiser.evaluate_watched(kind, &mut trajectory, Some(&mut watch))?;
            count.step(progress)?;
            denoiser.advance(&mut trajectory, denoiser.output());
        }
    }
    let found: Vec<Option<Vec<i8>>> =
        (0..seen.len()).map(|site| choose(survey, site, &seen[site], how)).collect();
    for (site, exponents) in survey.sites.iter().zip(&found) {
        let Some(e) = exponents else { continue };
        let ends = [e.iter().min().copied(), e.iter().max().copied()].map(|e| e.unwrap_or(0));
        tracing::debug!("{}: scales migrate by 2^{} to 2^{}", site.name, ends[0], ends[1]);
    }
    Ok(found)
}

fn has_weights(layer: &Layer) -> bool {
    layer.weight.is_some()
}
