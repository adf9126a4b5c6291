//! Cuts of a step, and the list of cuts that are offered.

use super::flow::{Batch, Flow, live};
use super::{chain, tensors};
use crate::bind::{InputOrigin, Part};
use crate::ir::{Graph, ValueId};
use cqc_proto::ValueType;
use cqc_proto::plan::InputRole;

/// A tensor that is kept from one evaluation for later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cached {
    /// The value itself.
    Value(ValueId),
    /// The difference `after - before` of two values of one type. A cached step uses `before +
    /// delta` as `after`. The difference that a range of residual blocks makes changes less from
    /// step to step than the sum to which it is added (δ-DiT, arXiv:2406.01125; CacheQuant does the
    /// same for transformers).
    Delta {
        /// The value that the range reads.
        before: ValueId,
        /// The value that the range computes.
        after: ValueId,
    },
}

impl Cached {
    /// The value that a cached step does not compute.
    pub fn replaces(&self) -> ValueId {
        match *self {
            Cached::Value(v) | Cached::Delta { after: v, .. } => v,
        }
    }

    /// Type of the stored tensor.
    pub fn ty<'g>(&self, g: &'g Graph) -> &'g ValueType {
        g.ty(self.replaces())
    }

    /// The name of the tensor as `--cut` takes it, `BEFORE..AFTER` for a delta.
    pub fn name(&self, g: &Graph) -> String {
        match *self {
            Cached::Value(v) => source_name(g, v).to_string(),
            Cached::Delta { before, after } => {
                format!("{}..{}", source_name(g, before), source_name(g, after))
            }
        }
    }
}

/// The value's name. Where the name was numbered here, it is the source model's name of the same
/// tensor under another shape.
fn source_name(g: &Graph, v: ValueId) -> &str {
    let value = g.value(v);
    if !value.numbered {
        return &value.name;
    }
    let views = g
        .nodes()
        .filter(|(_, n)| matches!(n.op, cqc_proto::Op::Reshape { .. }) && n.input(0) == Some(v));
    let mut shaped = views.map(|(_, n)| g.value(n.outputs[0])).filter(|view| !view.numbered);
    shaped.next().map_or(&value.name, |view| &view.name)
}

/// A cut of a step, with its cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The cached tensors, in graph order.
    pub tensors: Vec<Cached>,
    /// Multiply-accumulates of a full step, per sample.
    pub macs_full: i64,
    /// Multiply-accumulates of a cached step, per sample.
    pub macs_cached: i64,
    /// Bytes of the cached tensors, per sample.
    pub bytes: i64,
}

impl Cut {
    /// Multiply-accumulates of a cached step as a share of those of a full step, 0 to 1.
    pub fn share(&self) -> f64 {
        if self.macs_full == 0 { 1.0 } else { self.macs_cached as f64 / self.macs_full as f64 }
    }

    /// Whether one of the cached tensors is a delta.
    pub fn has_delta(&self) -> bool {
        self.tensors.iter().any(|c| matches!(c, Cached::Delta { .. }))
    }

    /// The names of the tensors as `--cut` takes them, separated by commas.
    pub fn name(&self, g: &Graph) -> String {
        self.tensors.iter().map(|c| c.name(g)).collect::<Vec<_>>().join(",")
    }

    /// The cut at these tensors, with its cost.
    pub(super) fn price(flow: &Flow, mut tensors: Vec<Cached>) -> Cut {
        tensors.sort_by_key(Cached::replaces);
        let macs_cached = flow.sum(&live(flow.g, &tensors).nodes);
        let bytes = tensors.iter().map(|c| flow.bytes(c.replaces())).sum();
        Cut { tensors, macs_full: flow.macs_full, macs_cached, bytes }
    }

    pub(super) fn saved(&self) -> i64 {
        self.macs_full - self.macs_cached
    }

    /// Whether the cut saves enough to be offered, and leaves some of the network: a network that
    /// ends in `x + f(x)` could cache all of f.
    pub(super) fn pays(&self) -> bool {
        self.saved() as f64 >= LEAST_SAVED * self.macs_full as f64 && self.macs_cached > 0
    }
}

/// Least share of the multiply-accumulates that a candidate saves.
const LEAST_SAVED: f64 = 0.1;

/// Candidates whose cached steps differ by less than this share of the full step count as the same.
const SAME_COST: f64 = 0.005;

/// The sample among the inputs of a step.
pub fn sample_value(step: &Part, roles: &[InputRole]) -> Option<ValueId> {
    let is_sample = |o: &InputOrigin| matches!(o, InputOrigin::Input(i) if roles.get(*i) == Some(&InputRole::Sample));
    step.origins.iter().position(is_sample).map(|i| step.graph.inputs[i])
}

/// The cuts of a step that are offered, from deep (saves least) to shallow (saves most). A network
/// with skip connections has one candidate per level, one made of residual blocks has one per
/// number of skipped blocks, and others have none.
///
/// Each candidate saves a tenth of the multiply-accumulates or more, and its cached step still
/// reads the sample. The time grows with the square of the number of nodes: 0.06 s for 2 500 nodes
/// of a synthetic U-Net, 1.3 s for 10 000.
pub fn candidates(step: &Graph, sample: ValueId, batch: Batch) -> Vec<Cut> {
    let flow = Flow::new(step, sample, batch);
    let backbone = chain::backbone(&flow);
    let mut found = tensors::cuts(&flow, backbone.as_ref());
    found.extend(backbone.iter().flat_map(|b| b.cuts(&flow)));
    found.retain(|cut| cut.pays() && flow.sees_sample(&live(step, &cut.tensors)));
    found.sort_by_key(|cut| (cut.saved(), cut.bytes));
    let same = (SAME_COST * flow.macs_full as f64) as i64;
    found.dedup_by(|next, kept| {
        let repeats = next.saved() - kept.saved() <= same && next.has_delta() == kept.has_delta();
        if repeats && next.bytes < kept.bytes {
            std::mem::swap(next, kept);
        }
        repeats
    });
    found
}
