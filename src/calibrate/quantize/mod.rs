//! Fits what a quantized loop needs, on the trajectory that will really run.
//!
//! ```text
//! ranges      the accelerated loop in float: histograms of what layers read, by evaluation; ranges of the quantizers
//! sequential  the ordinary and the quantized, accelerated loop side by side, evaluation by evaluation: the correction of the
//!             cache, of the layers' sums, of the sample, each fitted when everything before it is in place
//! ```

mod driver;
mod float_inputs;
mod keep_float;
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
use cqc_passes::quant::annotate::table_name;
use cqc_passes::quant::{Layer, QuantTables, Survey};
use cqc_proto::Op;
use cqc_proto::plan::{Plan, ProgramKind};
use cqc_runtime::denoise::Denoiser;
use std::collections::HashMap;

/// Where the tables of a quantized plan are.
pub struct Places {
    /// Per site: constants of scale and zero point; none if no program reads it.
    sites: Vec<Option<[usize; 2]>>,
    /// Step of `full` and of `cached`: the site it rounds.
    steps: HashMap<(ProgramKind, usize), usize>,
}

impl Places {
    /// Of a plan made from that survey.
    pub fn new(plan: &Plan, survey: &Survey) -> Places {
        let constant = |name: String| plan.constants.iter().position(|c| c.name == name);
        let of = |i: usize| format!("{}#{i}", survey.sites[i].name);
        let find = |i| Some([constant(table_name(&of(i), "scale"))?, constant(table_name(&of(i), "zero_point"))?]);
        let sites: Vec<Option<[usize; 2]>> = (0..survey.sites.len()).map(find).collect();
        let names: HashMap<String, usize> = (0..sites.len()).map(|i| (format!("{}/rounded", of(i)), i)).collect();
        let programs = [ProgramKind::Full, ProgramKind::Cached];
        let steps =
            programs.into_iter().flat_map(|kind| plan.program(kind).steps.iter().enumerate().map(move |s| (kind, s)));
        let steps = steps
            .filter(|(_, (_, step))| matches!(step.op, Op::FakeQuant { .. }))
            .filter_map(|(kind, (i, step))| Some(((kind, i), *names.get(&step.name)?)));
        Places { sites, steps: steps.collect() }
    }

    /// Writes row `t` of all sites.
    fn set_sites(&self, denoiser: &mut Denoiser, tables: &QuantTables, t: usize) -> Result<(), CalibrateError> {
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
        let Some([scale, zero]) = self.sites[site] else { return Ok(()) };
        let (table, width) = (&tables.sites[site], tables.sites[site].scale.len() / tables.evaluations);
        let row = t * width..(t + 1) * width;
        denoiser.set_table_row(scale, t, &table.scale[row.clone()])?;
        Ok(denoiser.set_table_row(zero, t, &table.zero_point[row])?)
    }

    /// Lets one site pass at evaluation `t`.
    fn clear_site(
        &self,
        denoiser: &mut Denoiser,
        tables: &QuantTables,
        site: usize,
        t: usize,
    ) -> Result<(), CalibrateError> {
        let Some([scale, _]) = self.sites[site] else { return Ok(()) };
        let width = tables.sites[site].scale.len() / tables.evaluations;
        Ok(denoiser.set_table_row(scale, t, &vec![0.0; width])?)
    }

    /// Whether a program rounds the site.
    fn is_read(&self, site: usize, kind: ProgramKind) -> bool {
        self.steps.iter().any(|(&(of, _), &s)| of == kind && s == site)
    }
}

/// Constants of a layer's correction.
fn correction_places(plan: &Plan, layer: &Layer) -> Option<[usize; 2]> {
    let constant = |what| plan.constants.iter().position(|c| c.name == table_name(&layer.key, what));
    Some([constant("a")?, constant("bias")?])
}
