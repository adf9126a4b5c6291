//! Fits the ranges, roundings and corrections of a quantized loop, on the trajectory that the
//! artifact will run.
//!
//! ```text
//! ranges      the accelerated loop in float: histograms of layer inputs, by evaluation, and from
//!             them the ranges of the quantizers
//! sequential  the ordinary and the quantized, accelerated loop side by side, evaluation by
//!             evaluation: the correction of the cache, of the layers' sums, and of the sample,
//!             each fitted when everything before it is in place
//! ```

mod driver;
mod float_inputs;
mod keep_float;
mod migrate;
mod preludes;
mod ranges;
mod reconstruct;
mod select;
mod sensitivity;
mod sequential;

pub use driver::{QuantizeError, QuantizeOptions, Quantized, evaluations_to_come, quantize};
pub(crate) use preludes::reconstruct_preludes;
pub use ranges::Grouping;
pub(crate) use ranges::ranges;
pub(crate) use reconstruct::reconstruct;
pub use select::Select;
pub(crate) use select::select;
pub(crate) use sensitivity::{PROBES, sensitivity};
pub(crate) use sequential::{CacheRefit, Sequential, sequential};
pub use sequential::{Fitted, Outputs};

use super::CalibrateError;
use crate::compile::Lowered;
use cqc_passes::ir::{LayerId, NodeId, NodeOrigin, SiteId};
use cqc_passes::quant::QuantTables;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::Denoiser;
use cqc_runtime::engine::{EngineOptions, Weights};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A loop of a quantized plan whose tables are written row by row, and the places of these tables.
pub(crate) struct TunableLoop {
    /// The loop.
    pub denoiser: Denoiser,
    /// The places of its tables.
    places: Arc<Places>,
}

impl TunableLoop {
    /// Makes the loop tunable.
    ///
    /// # Panics
    /// If `lowered`, which the denoiser runs, is not quantized.
    pub fn new(denoiser: Denoiser, lowered: &Lowered) -> TunableLoop {
        TunableLoop { denoiser, places: Arc::new(Places::new(lowered)) }
    }

    /// Opens a quantized plan with the sampler of `like`, and with guidance if `like` has it.
    pub fn open(
        lowered: &Lowered,
        like: &Denoiser,
        engine: &EngineOptions,
    ) -> Result<TunableLoop, QuantizeError> {
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
        let denoiser = Denoiser::open(&weights, like.sampler().clone(), like.is_guided(), engine)?;
        Ok(TunableLoop::new(denoiser, lowered))
    }

    /// The same loop for another number of samples at once, with the tables of the plan.
    pub fn of_width(&self, samples: usize) -> Result<TunableLoop, CalibrateError> {
        Ok(TunableLoop {
            denoiser: self.denoiser.of_width(samples)?,
            places: Arc::clone(&self.places),
        })
    }
}

/// The places of the tables and layers of a quantized loop in its plan.
pub(crate) struct Places {
    /// Per site: the constants of scale and zero point.
    sites: Vec<[usize; 2]>,
    /// Per corrected layer: the constants of factor and bias.
    corrections: BTreeMap<LayerId, [usize; 2]>,
    /// The nodes of the graph for which steps stand.
    steps: HashMap<(ProgramKind, usize), NodeOrigin>,
}

impl Places {
    fn new(lowered: &Lowered) -> Places {
        let (index, tables) =
            (&lowered.index, lowered.annotation.as_ref().expect("the loop is quantized"));
        let sites = tables.sites.iter().map(|t| [index.table(t.scale), index.table(t.zero_point)]);
        let corrections = tables
            .corrections
            .iter()
            .map(|(&id, t)| (id, [index.table(t.factor), index.table(t.bias)]));
        let steps = ProgramKind::ALL
            .into_iter()
            .flat_map(|kind| index.steps(kind).map(move |(i, of)| ((kind, i), of)));
        Places {
            sites: sites.collect(),
            corrections: corrections.collect(),
            steps: steps.collect(),
        }
    }

    /// The site that a step rounds.
    fn site_of(&self, kind: ProgramKind, step: usize) -> Option<usize> {
        match self.steps.get(&(kind, step)) {
            Some(NodeOrigin::Rounds(site)) => Some(site.0),
            _ => None,
        }
    }

    /// The steps of some programs that stand for nodes of the model's graph, with the value of each
    /// node.
    fn steps_of(
        &self,
        kinds: &[ProgramKind],
        nodes: &HashMap<NodeId, usize>,
    ) -> BTreeMap<(ProgramKind, usize), usize> {
        let of_kinds = self.steps.iter().filter(|((kind, _), _)| kinds.contains(kind));
        let found = of_kinds.filter_map(|(&at, origin)| match origin {
            NodeOrigin::Source(node) => Some((at, *nodes.get(node)?)),
            _ => None,
        });
        found.collect()
    }

    /// Writes row `t` of all sites.
    fn set_sites(
        &self,
        denoiser: &mut Denoiser,
        tables: &QuantTables,
        t: usize,
    ) -> Result<(), CalibrateError> {
        (0..self.sites.len()).try_for_each(|site| self.set_site(denoiser, tables, site, t))
    }

    /// Writes row `t` of one site.
    fn set_site(
        &self,
        denoiser: &mut Denoiser,
        tables: &QuantTables,
        site: usize,
        t: usize,
    ) -> Result<(), CalibrateError> {
        let [scale, zero] = self.sites[site];
        let (table, width) =
            (&tables.sites[site], tables.sites[site].scale.len() / tables.evaluations);
        let row = t * width..(t + 1) * width;
        denoiser.set_table_row(scale, t, &table.scale[row.clone()])?;
        Ok(denoiser.set_table_row(zero, t, &table.zero_point[row])?)
    }

    /// Lets one site pass unrounded at evaluation `t`.
    fn clear_site(
        &self,
        denoiser: &mut Denoiser,
        tables: &QuantTables,
        site: usize,
        t: usize,
    ) -> Result<(), CalibrateError> {
        let [scale, _] = self.sites[site];
        let width = tables.sites[site].scale.len() / tables.evaluations;
        Ok(denoiser.set_table_row(scale, t, &vec![0.0; width])?)
    }

    /// Whether a program rounds the site.
    fn is_read(&self, site: usize, kind: ProgramKind) -> bool {
        let rounds = NodeOrigin::Rounds(SiteId(site));
        self.steps.iter().any(|(&(of, _), &origin)| of == kind && origin == rounds)
    }
}
