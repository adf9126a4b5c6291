//! What the cut finder asks a step graph: who needs what, what depends on the sample, what it
//! costs.

use super::cut::Cached;
use crate::ir::{Graph, NodeId, ValueId};
use cqc_proto::{Bindings, Dim, Op};
use std::collections::HashSet;

/// The batch of a step graph; costs are per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch<'a> {
    /// A symbol.
    Symbol(&'a str),
    /// That many samples.
    Fixed(usize),
}

/// A set of nodes, by node id.
pub type Set = Vec<bool>;

/// A graph with the facts that do not change while cuts are tried.
pub struct Flow<'a> {
    pub g: &'a Graph,
    /// Whether the node depends on the sample.
    pub sampled: Set,
    /// Nodes that read the value, by value id.
    pub readers: Vec<Vec<NodeId>>,
    /// Multiply-accumulates per node and sample.
    pub macs: Vec<i64>,
    /// [`Flow::macs`] of everything the outputs need.
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

    /// Elements of the value, per sample.
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

    /// Nodes that the values need.
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

    /// Adds the node and all that depends on it.
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

    /// Whether the outputs still see the sample when these tensors are cached.
    pub fn sees_sample(&self, live: &Live) -> bool {
        live.values.contains(&self.sample)
    }

    /// Whether the value can be kept between evaluations: made by a node that writes memory of its
    /// own (lowering turns reshapes into aliases), and of a type that the correction takes.
    pub fn storable(&self, v: ValueId) -> bool {
        let ty = self.g.ty(v);
        let written = self.g.producer_node(v).is_some_and(|n| !matches!(n.op, Op::Reshape { .. }));
        written && ty.dtype.is_float() && ty.rank() >= 2
    }
}

/// The value that `v` is a reshape of, through any number of them; `v` itself if it is none.
pub fn root(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(node) = g.producer_node(v).filter(|n| matches!(n.op, Op::Reshape { .. })) {
        v = node.inputs[0].expect("verified");
    }
    v
}

/// What a step still does when some tensors are cached.
pub struct Live {
    /// Nodes that run.
    pub nodes: Set,
    /// Values that running nodes or outputs read, cached ones included.
    pub values: HashSet<ValueId>,
}

/// What the outputs need when these tensors are cached.
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
