//! Finds cuts at deltas: ranges of residual blocks.
//!
//! A chain is h₀, h₁, … h_L, where h_{k+1} adds h_k to a branch that is computed from it, and
//! everything in the branch that depends on the sample depends on it through h_k. A transformer is
//! one such chain. The chains inside a U-Net's blocks are short, and a cut at tensors saves more
//! there. So a chain counts only if it has half of the step's arithmetic, and no more than half of
//! that in one element: it is then the backbone of the model.

use super::cut::{Cached, Cut};
use super::flow::{Flow, Set, root};
use crate::ir::{NodeId, ValueId};
use cqc_proto::Op;
use cqc_proto::op::BinaryKind;
use cqc_proto::op::operand::{GATE, RESIDUAL, ROW, X};
use petgraph::algo::dominators::{Dominators, simple_fast};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{HashMap, HashSet};

/// Least share of the step's multiply-accumulates in a chain that is the model's backbone.
const BACKBONE: f64 = 0.5;

/// Largest share of a chain's multiply-accumulates in one element. With more, it is a level of a
/// U-Net whose skip is added.
const ELEMENT: f64 = 0.5;

/// Largest number of candidates that a chain gives. Longer chains are thinned evenly.
const MOST_RANGES: usize = 24;

/// The residual chain of which the model is made.
pub struct Backbone {
    /// h₀ … h_L.
    states: Vec<ValueId>,
    /// The nodes between a state and the next.
    pub elements: Vec<Set>,
}

/// The chain with most arithmetic, if it is the model's backbone.
pub fn backbone(flow: &Flow) -> Option<Backbone> {
    let dominators = Dominance::of(flow);
    let mut before: HashMap<ValueId, ValueId> = HashMap::new();
    for (id, _) in flow.g.nodes() {
        if let Some((from, to)) = residual(flow, id)
            && dominators.pass(flow, from, to)
        {
            before.insert(to, from);
        }
    }
    let inner: HashSet<ValueId> = before.values().copied().collect();
    let chains = before.keys().filter(|v| !inner.contains(v)).map(|&end| {
        let mut states: Vec<ValueId> =
            std::iter::successors(Some(end), |v| before.get(v).copied()).collect();
        states.reverse();
        let all = Cut::price(flow, vec![Cached::Delta { before: states[0], after: end }]);
        (all.saved(), end, states)
    });
    let (saved, _, states) = chains.max()?;
    if (saved as f64) < BACKBONE * flow.macs_full as f64 {
        return None;
    }
    let upstream: Vec<Set> = states.iter().map(|&v| flow.upstream([v])).collect();
    let between = |pair: &[Set]| {
        pair[1].iter().zip(&pair[0]).map(|(after, before)| *after && !before).collect()
    };
    let elements: Vec<Set> = upstream.windows(2).map(between).collect();
    let largest = elements.iter().map(|e| flow.sum(e)).max()?;
    (largest as f64 <= ELEMENT * saved as f64).then_some(Backbone { states, elements })
}

impl Backbone {
    /// One range per number of skipped blocks, in the middle of the chain and with at least one
    /// block before it, because the first and the last blocks change most from step to step.
    pub fn cuts(&self, flow: &Flow) -> Vec<Cut> {
        let period = self.period(flow);
        let blocks = self.elements.len() / period;
        let stride = blocks.div_ceil(MOST_RANGES).max(1);
        let range = |skipped: usize| {
            let kept = blocks - skipped;
            let (front, back) = (kept.div_ceil(2), kept / 2);
            // an incomplete period counts with the last block
            let end = if back == 0 { self.elements.len() } else { (blocks - back) * period };
            let (before, after) = (self.states[front * period], self.states[end]);
            (flow.g.ty(before) == flow.g.ty(after)).then_some(Cached::Delta { before, after })
        };
        (1..blocks)
            .rev()
            .step_by(stride)
            .filter_map(range)
            .map(|d| Cut::price(flow, vec![d]))
            .collect()
    }

    /// The number of elements after which the chain repeats, at least twice (2 for attention and
    /// MLP); 1 if it does not repeat.
    fn period(&self, flow: &Flow) -> usize {
        let signatures: Vec<_> = self.elements.iter().map(|e| signature(flow, e)).collect();
        let repeats = |p: &usize| signatures.windows(p + 1).all(|w| w[0] == w[*p]);
        (1..=signatures.len() / 2).find(repeats).unwrap_or(1)
    }
}

/// The multiply-accumulates of an element's products, in ascending order.
fn signature(flow: &Flow, element: &Set) -> Vec<i64> {
    let in_element = |i: &usize| element[*i] && flow.sampled[*i] && flow.macs[*i] > 0;
    let mut macs: Vec<i64> = (0..element.len()).filter(in_element).map(|i| flow.macs[i]).collect();
    macs.sort_unstable();
    macs
}

/// `(h, y)` if the node computes y = h + branch(h), both without the reshapes around them.
pub fn residual(flow: &Flow, id: NodeId) -> Option<(ValueId, ValueId)> {
    let node = flow.g.get(id);
    let branch_of = |h: ValueId, operands: &[usize]| {
        let producer = flow.g.producer(root(flow.g, h))?;
        let branch = flow.upstream(operands.iter().filter_map(|&i| node.input(i)));
        branch[producer.0 as usize].then_some((root(flow.g, h), node.outputs[0]))
    };
    let same_type = |v: ValueId| flow.g.ty(v) == flow.g.ty(node.outputs[0]);
    match node.op {
        Op::Binary { kind: BinaryKind::Add } => {
            let (a, b) = (node.inputs[0]?, node.inputs[1]?);
            let first = same_type(a).then(|| branch_of(a, &[1])).flatten();
            first.or_else(|| same_type(b).then(|| branch_of(b, &[0])).flatten())
        }
        Op::Linear { .. } | Op::Conv { .. } => branch_of(node.input(RESIDUAL)?, &[X, ROW, GATE]),
        _ => None,
    }
}

/// The nodes that every path from the sample to another node has to pass.
struct Dominance(Dominators<NodeIndex>);

impl Dominance {
    fn of(flow: &Flow) -> Dominance {
        let mut net: DiGraph<(), ()> = DiGraph::new();
        let at: Vec<NodeIndex> = flow.sampled.iter().map(|_| net.add_node(())).collect();
        let sample = net.add_node(());
        for (id, node) in flow.g.nodes().filter(|(id, _)| flow.sampled[id.0 as usize]) {
            for &v in node.inputs.iter().flatten().filter(|&&v| flow.depends(v)) {
                let from = flow.g.producer(v).map_or(sample, |p| at[p.0 as usize]);
                net.add_edge(from, at[id.0 as usize], ());
            }
        }
        Dominance(simple_fast(&net, sample))
    }

    /// Whether every path from the sample to `to` passes `from`.
    fn pass(&self, flow: &Flow, from: ValueId, to: ValueId) -> bool {
        let node = |v| flow.g.producer(v).map(|p| NodeIndex::new(p.0 as usize));
        let (Some(from), Some(to)) = (node(from), node(to)) else { return false };
        self.0.dominators(to).is_some_and(|mut all| all.any(|d| d == from))
    }
}
