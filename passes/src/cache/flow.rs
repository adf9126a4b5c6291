//! The data flow of a step graph, as the cut finder needs it: the readers of values, the nodes that
//! depend on the sample, and their costs.

use super::cut::Cached;
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::{Bindings, Dim, Op};
use std::collections::HashSet;

/// The batch of a step graph. Costs are per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch<'a> {
    /// A symbolic size.
    Symbol(&'a str),
    /// A fixed number of samples.
    Fixed(usize),
}

/// A set of nodes, indexed by node id.
pub type Set = Vec<bool>;

/// A graph with the facts that do not change while cuts are tried.
pub struct Flow<'a> {
    pub g: &'a Graph,
    /// Whether a node depends on the sample.
    pub sampled: Set,
    /// The nodes that read a value, indexed by value id.
    pub readers: Vec<Vec<NodeId>>,
    /// Multiply-accumulates per node and sample.
    pub macs: Vec<i64>,
    /// [`Flow::macs`] of all nodes that the outputs need.
    pub macs_full: i64,
    sample: ValueId,
    bindings: Bindings,
    samples: i64,
}

impl<'a> Flow<'a> {
    pub fn new(g: &'a Graph, sample: ValueId, batch: Batch) -> Flow<'a> {
        let (bindings, samples) = match batch {
            Batch::Symbol(name) => (Bindings::from([(name.into(), 1)]), 1),
            Batch::Fixed(n) => (Bindings::new(), n.max(1) as i64),
        };
        let mut readers = vec![vec![]; g.values().count()];
        let mut sampled = vec![false; g.node_count()];
        for (id, node) in g.nodes() {
            for v in node.inputs.iter().flatten() {
                readers[v.0 as usize].push(id);
                sampled[id.0 as usize] |=
                    *v == sample || g.producer(*v).is_some_and(|p| sampled[p.0 as usize]);
            }
        }
        let mut flow =
            Flow { g, sampled, readers, macs: vec![], macs_full: 0, sample, bindings, samples };
        flow.macs = g.nodes().map(|(_, node)| flow.per_sample(&g.cost(node).macs)).collect();
        flow.macs_full = flow.sum(&live(g, &[]).nodes);
        flow
    }

    fn per_sample(&self, d: &Dim) -> i64 {
        d.eval(&self.bindings).unwrap_or(0) / self.samples
    }

    /// Number of elements of the value, per sample.
    pub fn elements(&self, v: ValueId) -> i64 {
        self.g.ty(v).elements().map_or(0, |n| self.per_sample(&n))
    }

    /// Bytes of the value, per sample.
    pub fn bytes(&self, v: ValueId) -> i64 {
        self.elements(v) * self.g.ty(v).dtype.size() as i64
    }

    /// Multiply-accumulates of the nodes.
    pub fn sum(&self, nodes: &Set) -> i64 {
        self.macs.iter().zip(nodes).filter(|(_, in_set)| **in_set).map(|(m, _)| m).sum()
    }

    /// Whether the value is the sample or depends on it.
    pub fn depends(&self, v: ValueId) -> bool {
        v == self.sample || self.g.producer(v).is_some_and(|p| self.sampled[p.0 as usize])
    }

    /// The nodes that the values need.
    pub fn upstream(&self, values: impl IntoIterator<Item = ValueId>) -> Set {
        let mut found = vec![false; self.g.node_count()];
        let mut stack: Vec<NodeId> =
            values.into_iter().filter_map(|v| self.g.producer(v)).collect();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut found[id.0 as usize], true) {
                stack.extend(
                    self.g.get(id).inputs.iter().flatten().filter_map(|&v| self.g.producer(v)),
                );
            }
        }
        found
    }

    /// Adds the node and all nodes that depend on it.
    pub fn add_downstream(&self, node: NodeId, to: &mut Set) {
        let mut seen = vec![false; self.g.node_count()];
        let mut stack = vec![node];
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut seen[id.0 as usize], true) {
                to[id.0 as usize] = true;
                stack.extend(
                    self.g.get(id).outputs.iter().flat_map(|v| &self.readers[v.0 as usize]),
                );
            }
        }
    }

    /// Whether the outputs still depend on the sample when these tensors are cached.
    pub fn sees_sample(&self, live: &Live) -> bool {
        live.values.contains(&self.sample)
    }

    /// Whether the value can be kept between evaluations: it is computed by a node that writes
    /// memory of its own (lowering turns reshapes into aliases), and its type suits the correction.
    pub fn storable(&self, v: ValueId) -> bool {
        let ty = self.g.ty(v);
        let written = self.g.producer_node(v).is_some_and(|n| !matches!(n.op, Op::Reshape { .. }));
        written && ty.dtype.is_float() && ty.rank() >= 2
    }
}

/// The value of which `v` is a reshape, through any number of reshapes; `v` itself if it is none.
pub fn root(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(node) = g.producer_node(v).filter(|n| matches!(n.op, Op::Reshape { .. })) {
        v = node.inputs[0].expect("verified");
    }
    v
}

/// The rest of a step when some tensors are cached.
pub struct Live {
    /// The nodes that run.
    pub nodes: Set,
    /// The values that running nodes or outputs read, cached ones included.
    pub values: HashSet<ValueId>,
}

/// The nodes and values that the outputs need when these tensors are cached.
pub fn live(g: &Graph, cached: &[Cached]) -> Live {
    let mut live = Live { nodes: vec![false; g.node_count()], values: HashSet::new() };
    let mut stack: Vec<ValueId> = g.outputs.iter().map(|(_, v)| *v).collect();
    while let Some(v) = stack.pop() {
        if !live.values.insert(v) {
            continue;
        }
        let end = cached.iter().find(|c| c.replaces() == v);
        match end {
            Some(Cached::Value(_)) => {}
            Some(Cached::Delta { before, .. }) => stack.push(*before),
            None => {
                if let Some(id) = g.producer(v)
                    && !std::mem::replace(&mut live.nodes[id.0 as usize], true)
                {
                    stack.extend(g.get(id).inputs.iter().flatten());
                }
            }
        }
    }
    live
}
