//! Chooses the inputs of products that are rounded to bf16, because 8 bits cost more there than
//! integers save.
//!
//! Rounding errors are not spread evenly. A shortcut late in a U-Net reads the residual stream
//! itself, whose error reaches the end undamped, and it has hardly any work that integers could
//! save. A few such inputs make most of the error of a loop with 8 bits.

use super::{PROBES, TunableLoop, sensitivity};
use crate::calibrate::{CalibrateError, EvaluationCounter, PartialBatches};
use crate::compile::Assembled;
use cqc_passes::quant::{Layer, QuantTables, Survey};
use cqc_runtime::denoise::Request;

/// Number of samples on which effects are measured.
const PROBED_SAMPLES: usize = 2;

/// An input is chosen only if its effect is at least this share of the sum of all measured effects.
const LEAST_EFFECT: f64 = 0.01;

/// The sites of `survey` to leave out, by the effect of rounding each of them in a loop like
/// `study`, whose plan does not round yet.
pub(super) fn float_inputs(
    study: &TunableLoop,
    survey: &Survey,
    tables: &QuantTables,
    request: &Request,
    work: &InputWork,
    progress: &mut EvaluationCounter,
) -> Result<Vec<usize>, CalibrateError> {
    let affordable = (0..survey.sites.len()).filter(|&site| work.is_affordable(site)).count();
    if affordable == 0 {
        return Ok(vec![]);
    }
    // without the rows that were written into the study's tables
    let width = study.denoiser.width();
    let mut small = study.of_width(PROBED_SAMPLES.min(width))?;
    let small_width = small.denoiser.width();
    let count = PartialBatches::new(small_width, width);
    // one round of evaluations of the estimate is for this search
    let evaluations = study.denoiser.sampler().evaluations().len();
    let probing = (PROBES * affordable * 2 + evaluations) * small_width / width;
    progress.all += probing.saturating_sub(evaluations) as u64;
    let is_affordable = |site| work.is_affordable(site);
    let effects =
        sensitivity(&mut small, survey, tables, request, &is_affordable, count, progress)?;
    let all = effects.iter().sum::<f64>() / 100.0;
    for (site, share) in work.shares() {
        let (name, effect) = (&survey.sites[site].name, effects[site] / all);
        tracing::debug!("{name}: {effect:.2} % of the effects, {:.2} % of the work", share * 100.0);
    }
    Ok(work.choose(&effects))
}

/// The multiplications that read each site of a loop.
pub(super) struct InputWork {
    /// Per site, over all evaluations; `None` if an attention reads it.
    sites: Vec<Option<f64>>,
    /// Multiplications of all layers.
    all: f64,
    /// Multiplications whose inputs may be left out together.
    budget: f64,
}

impl InputWork {
    /// With a budget of `share` of all multiplications.
    pub(super) fn new(assembled: &Assembled, survey: &Survey, share: f64) -> InputWork {
        let evaluations = assembled.evaluations() as f64;
        let full = match assembled.full_evaluations() {
            [] => evaluations,
            full => full.len() as f64,
        };
        let work =
            |layer: &Layer| layer.macs as f64 * if layer.is_live { evaluations } else { full };
        let of_site = |site: usize| {
            let mut readers = survey.layers.iter().filter(|layer| layer.sites.contains(&site));
            readers.try_fold(0.0, |sum, layer| layer.weight.as_ref().map(|_| sum + work(layer)))
        };
        let all = survey.layers.iter().map(work).sum::<f64>();
        InputWork {
            sites: (0..survey.sites.len()).map(of_site).collect(),
            all,
            budget: share * all,
        }
    }

    /// Whether the work that reads a site is within the budget.
    fn is_affordable(&self, site: usize) -> bool {
        self.sites[site].is_some_and(|work| work <= self.budget)
    }

    /// The affordable sites, and their shares of all multiplications.
    fn shares(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let affordable = (0..self.sites.len()).filter(|&site| self.is_affordable(site));
        affordable.filter_map(|site| Some((site, self.sites[site]? / self.all)))
    }

    /// The sites to leave out, in order: those first that have the greatest effect for their work,
    /// until the budget is spent.
    fn choose(&self, effects: &[f64]) -> Vec<usize> {
        let least = LEAST_EFFECT * effects.iter().sum::<f64>();
        let mut sites: Vec<(f64, usize, f64)> = self
            .sites
            .iter()
            .enumerate()
            .filter_map(|(site, work)| {
                Some((effects[site] / work.filter(|&w| w > 0.0)?, site, (*work)?))
            })
            .filter(|&(_, site, _)| effects[site] > least)
            .collect();
        sites.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut left = self.budget;
        let mut chosen: Vec<usize> = vec![];
        for (_, site, work) in sites {
            if work <= left {
                left -= work;
                chosen.push(site);
            }
        }
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(sites: &[Option<f64>], budget: f64) -> InputWork {
        InputWork { sites: sites.to_vec(), all: sites.iter().flatten().sum(), budget }
    }

    #[test]
    fn what_hurts_most_for_its_work_stays_float_while_the_budget_lasts() {
        let work = work(&[Some(10.0), Some(2.0), Some(2.0), None, Some(1.0)], 5.0);
        assert_eq!(work.shares().map(|(site, _)| site).collect::<Vec<_>>(), [1, 2, 4]);
        // the first is too much work, the fourth an attention's, the last too small an effect
        assert_eq!(work.choose(&[100.0, 3.0, 8.0, 50.0, 1.5]), [1, 2]);
        // the third is left out where the second is better
        let tight = InputWork { budget: 3.0, ..work };
        assert_eq!(tight.choose(&[0.0, 9.0, 8.0, 0.0, 7.0]), [1, 4]);
        assert_eq!(tight.choose(&[0.0; 5]), [] as [usize; 0]);
    }

    #[test]
    fn without_a_budget_nothing_stays_float() {
        assert_eq!(work(&[Some(1.0), Some(0.0)], 0.0).choose(&[1.0, 1.0]), [] as [usize; 0]);
    }
}
