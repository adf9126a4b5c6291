//! Where real exports can be cut, and that their cached steps agree with the full ones.

mod common;

use common::shared_dir;
use cqc::model::{Model, ModelOptions};
use cqc_passes::bind::{self, Origin, Part};
use cqc_passes::cache::{self, Batch, Cut, CutSpec};
use cqc_passes::interpret::interpret;
use cqc_passes::ir::{ValueId, verify};
use cqc_proto::{Bindings, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model's step and where it can be cut.
struct Step {
    model: Model,
    part: Part,
    sample: ValueId,
    cuts: Vec<Cut>,
}

impl Step {
    fn load(path: &Path) -> Step {
        let model = Model::load(path, &ModelOptions::default(), |_, _| {}).unwrap();
        let roles: Vec<_> = model.inputs.iter().map(|i| i.role).collect();
        let part = bind::bind(&model.graph, &roles, model.batch_symbol.as_deref(), &[1.0]).unwrap().full;
        let sample = cache::sample_value(&part, &roles).unwrap();
        let cuts = cache::candidates(&part.graph, sample, batch(&model));
        Step { cuts, sample, part, model }
    }

    fn choose(&self, spec: &CutSpec) -> Cut {
        cache::choose(&self.cuts, spec, &self.part.graph, self.sample, batch(&self.model)).unwrap()
    }

    /// Shares in thousandths, and what is stored, without names: the same for every exporter.
    fn list(&self) -> Vec<String> {
        self.cuts.iter().map(|cut| self.line(cut)).collect()
    }

    fn line(&self, cut: &Cut) -> String {
        let g = &self.part.graph;
        let types: Vec<String> = cut.tensors.iter().map(|c| c.ty(g).to_string()).collect();
        let kind = if cut.has_delta() { "delta " } else { "" };
        format!("{:.3} {kind}{}", cut.share(), types.join(" "))
    }
}

fn batch(model: &Model) -> Batch<'_> {
    match &model.batch_symbol {
        Some(symbol) => Batch::Symbol(symbol),
        None => Batch::Fixed(model.fixed_batch.unwrap()),
    }
}

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}
