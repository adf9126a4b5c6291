//! Fits corrections, each on a trajectory in which all earlier corrections are in place.

use super::{Places, TunableLoop};
use crate::calibrate::correct::CacheTables;
use crate::calibrate::observe::{Snapshot, channels, snapshot};
use crate::calibrate::{CalibrateError, EvaluationCounter};
use cqc_passes::cache::affine::Moments;
use cqc_passes::calib::compensate::{self, CompensationMode};
use cqc_passes::ir::{LayerId, NodeOrigin};
use cqc_passes::quant::{QuantTables, Survey};
use cqc_proto::cq::CacheCorrection;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Compensation, Denoiser, Request, Trajectory};
use cqc_runtime::engine::Watched;
use std::collections::HashMap;

/// The ridge that draws the factors of corrections towards 1. The paper fits without one.
const RIDGE: f64 = 1e-3;

/// The layers whose sums are corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// No layers.
    None,
    /// The layers that read the cache, as published.
    Cut,
    /// All layers.
    All,
}

impl Outputs {
    /// Indices of these layers in a survey.
    pub fn layers(self, survey: &Survey) -> Vec<usize> {
        let meant = |i: &usize| {
            let layer = &survey.layers[*i];
            let wanted = match self {
                Outputs::None => false,
                Outputs::Cut => layer.reads_cache,
                Outputs::All => true,
            };
            // where nothing but weights is rounded there is little to correct
            wanted && layer.weight.is_some() && layer.bias.is_some() && !layer.sites.is_empty()
        };
        (0..survey.layers.len()).filter(meant).collect()
    }
}

/// The correction of the cache, fitted again to the tensors that the quantized loop stores.
#[derive(Clone, Debug)]
pub struct CacheRefit {
    /// The constants of the plan, per slot.
    pub places: Vec<CacheCorrection>,
    /// The tables that are in place.
    pub tables: CacheTables,
}

/// The corrections to fit.
pub struct Sequential {
    /// The correction of the cache, if the plan has one.
    pub cache: Option<CacheRefit>,
    /// The mode of the sample compensation, if it is wanted.
    pub compensation: Option<CompensationMode>,
    /// Number of samples to fit on, from the first.
    pub fit: usize,
}

/// The fitted tables.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Fitted {
    /// The given ranges, and the fitted corrections of layers.
    pub tables: QuantTables,
    /// The fitted correction of the cache.
    pub cache: Option<CacheTables>,
    /// The fitted sample compensation.
    pub compensation: Option<Compensation>,
}

/// An ordinary trajectory and a quantized one from the same noise.
struct Pair {
    ordinary: Trajectory,
    quantized: Trajectory,
}

/// Runs `float` and `study` side by side. The plan of `float` is neither corrected nor quantized.
/// The plan of `study` has reference sums for the layers that `tables` correct.
pub(crate) fn sequential(
    float: &mut Denoiser,
    study: &mut TunableLoop,
    survey: &Survey,
    mut tables: QuantTables,
    request: &Request,
    options: Sequential,
    progress: &mut EvaluationCounter,
) -> Result<Fitted, CalibrateError> {
    let TunableLoop { denoiser: quantized, places } = study;
    let evaluations = quantized.sampler().evaluations().len();
    (0..evaluations).try_for_each(|t| places.set_sites(quantized, &tables, t))?;
    let sums = ReferenceSums::new(places, &tables);
    if options.cache.is_none() && options.compensation.is_none() && sums.layers.is_empty() {
        return Ok(Fitted { tables, cache: None, compensation: None });
    }
    let needs_truth = options.cache.is_some() || options.compensation.is_some();
    let samples = quantized.channels();
    let ones = vec![1.0; evaluations * samples];
    let mut compensation = Compensation { shift: vec![0.0; ones.len()], scale: ones };
    let mut cache = options.cache;
    let mut pairs: Vec<Pair> = (0..options.fit)
        .step_by(quantized.width())
        .map(|first| {
            Ok(Pair {
                ordinary: float.begin(request, first)?,
                quantized: quantized.begin(request, first)?,
            })
        })
        .collect::<Result<_, CalibrateError>>()?;
    for t in 0..evaluations {
        let kind = quantized.engine().plan().program_at(t);
        if needs_truth {
            for pair in &mut pairs {
                float.evaluate_as(ProgramKind::Full, &mut pair.ordinary)?;
                progress.step()?;
                float.advance(&mut pair.ordinary, float.output());
            }
        }
        if let (Some(refit), ProgramKind::Cached) = (&mut cache, kind) {
            refit_cache(refit, float, quantized, &pairs, t)?;
        }
        if !sums.layers.is_empty() {
            sums.fit(quantized, survey, &mut tables, &pairs, t, progress)?;
        }
        for pair in &mut pairs {
            quantized.evaluate_as(kind, &mut pair.quantized)?;
            progress.step()?;
            quantized.advance(&mut pair.quantized, quantized.output());
        }
        if let Some(mode) = options.compensation {
            let [accelerated, ordinary]: [Vec<f32>; 2] = [
                pairs.iter().flat_map(|p| p.quantized.x()).copied().collect(),
                pairs.iter().flat_map(|p| p.ordinary.x()).copied().collect(),
            ];
            let plane = quantized.sample_shape()[1..].iter().product();
            let row = compensate::fit(&accelerated, &ordinary, samples, plane, mode, true);
            pairs.iter_mut().for_each(|p| p.quantized.map_channels(&row.scale, &row.shift));
            compensation.scale[t * samples..][..samples].copy_from_slice(&row.scale);
            compensation.shift[t * samples..][..samples].copy_from_slice(&row.shift);
        }
    }
    Ok(Fitted {
        tables,
        cache: cache.map(|c| c.tables),
        compensation: options.compensation.map(|_| compensation),
    })
}

/// Fits the correction of evaluation `t` to the tensors that the quantized loop has stored.
fn refit_cache(
    refit: &mut CacheRefit,
    float: &Denoiser,
    quantized: &mut Denoiser,
    pairs: &[Pair],
    t: usize,
) -> Result<(), CalibrateError> {
    let plan = quantized.engine().plan();
    let slots = plan.cache.iter().flat_map(|cache| &cache.slots).collect::<Vec<_>>();
    let previous: Vec<Option<usize>> = (0..refit.places.len())
        .map(|slot| slots.iter().position(|s| s.previous_of == Some(slot)))
        .collect();
    for (slot, &channels) in channels(float).iter().enumerate() {
        let forecast = !refit.tables[slot][t].previous.is_empty();
        let mut moments = Moments::new(channels);
        for pair in pairs {
            let (truth, stored): (Snapshot, Snapshot) =
                (snapshot(&pair.ordinary), snapshot(&pair.quantized));
            match previous[slot].filter(|_| forecast) {
                Some(before) => {
                    moments.add_with_previous(&stored[slot], &stored[before], &truth[slot])
                }
                None => moments.add(&stored[slot], &truth[slot]),
            }
        }
        let mut map = moments.fit(RIDGE);
        if forecast && map.previous.is_empty() {
            map.previous = vec![0.0; channels];
        }
        let place = refit.places[slot];
        quantized.set_table_row(place.scale, t, &map.scale)?;
        quantized.set_table_row(place.shift, t, &map.shift)?;
        if let Some(constant) = place.previous_scale {
            quantized.set_table_row(constant, t, &map.previous)?;
        }
        refit.tables[slot][t] = map;
    }
    Ok(())
}

/// The layers whose sums are corrected.
struct ReferenceSums {
    /// Index in the survey, and the constants of factor and bias.
    layers: Vec<(usize, [usize; 2])>,
    /// By step: the index in `layers`, and whether the step is the rounded sum.
    steps: HashMap<(ProgramKind, usize), (usize, bool)>,
}

impl ReferenceSums {
    /// Finds the layers that `tables` correct.
    ///
    /// # Panics
    /// If the loop has no tables for one of these layers.
    fn new(places: &Places, tables: &QuantTables) -> ReferenceSums {
        let layers: Vec<(usize, [usize; 2])> =
            tables.corrections.keys().map(|&i| (i, places.corrections[&LayerId(i)])).collect();
        let position = |id: &LayerId| layers.iter().position(|(i, _)| *i == id.0);
        let steps = places.steps.iter().filter_map(|(&at, origin)| match origin {
            NodeOrigin::FloatSum(id) => Some((at, (position(id)?, false))),
            NodeOrigin::RoundedSum(id) => Some((at, (position(id)?, true))),
            _ => None,
        });
        ReferenceSums { steps: steps.collect(), layers }
    }

    /// Fits all layers at evaluation `t`, each to the float sum of its inputs in the quantized
    /// loop.
    fn fit(
        &self,
        quantized: &mut Denoiser,
        survey: &Survey,
        tables: &mut QuantTables,
        pairs: &[Pair],
        t: usize,
        progress: &mut EvaluationCounter,
    ) -> Result<(), CalibrateError> {
        let kind = quantized.engine().plan().program_at(t);
        let mut moments: Vec<Moments> =
            self.layers.iter().map(|(i, _)| Moments::new(survey.layers[*i].channels)).collect();
        for pair in pairs {
            // the tensors that this run stores are not kept
            let mut trial = pair.quantized.clone();
            let mut float = Vec::new();
            let mut watch = |step: &Watched| {
                let Some(&(at, rounded)) =
                    self.steps.get(&(step.kind, step.step)).filter(|_| step.done)
                else {
                    return;
                };
                match rounded {
                    false => float = step.result().to_f32_vec(),
                    true => moments[at].add(&step.result().to_f32_vec(), &float),
                }
            };
            quantized.evaluate_watched(kind, &mut trial, Some(&mut watch))?;
            progress.step()?;
        }
        for ((layer, [factor, bias]), moments) in self.layers.iter().zip(&moments) {
            let map = moments.fit(RIDGE);
            let own = survey.layers[*layer].bias.as_ref().expect("only such layers are corrected");
            let shifted: Vec<f32> =
                map.shift.iter().zip(own).map(|(shift, bias)| shift + bias).collect();
            quantized.set_table_row(*factor, t, &map.scale)?;
            quantized.set_table_row(*bias, t, &shifted)?;
            let (table, c) = (tables.corrections.get_mut(layer).expect("its key"), own.len());
            table.a[t * c..][..c].copy_from_slice(&map.scale);
            table.bias[t * c..][..c].copy_from_slice(&shifted);
        }
        Ok(())
    }
}
